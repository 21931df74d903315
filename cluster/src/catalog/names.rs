//! The names of collections, read from a disk that no node has open.
//!
//! For people who repair one: what is lost is known by the ids of its collections. What is applied
//! lags behind the log, which has the rows that were written last.

use std::collections::BTreeMap;

use statehouse_store::{Body, CollectionId, Command, Entry, Log, Moment, ReplicaId, Store};

use super::COLLECTIONS;
use super::collections::CollectionRow;
use crate::rows::{self, Row};
use crate::{Error, META_SHARD, raft};

/// Bytes of the log that are read at a time.
const READ_BYTES_MAX: usize = 4 << 20;

/// The names of collections by their ids.
pub type Names = BTreeMap<CollectionId, String>;

/// Returns the names of the collections that a store's replica of shard 0 knows of, those that are
/// being dropped too. Blocks.
pub fn names_on_disk(store: &Store) -> Result<Names, Error> {
    let mut names = Names::new();
    for replica in raft::replicas_of(store, META_SHARD)? {
        add_names(store, replica, &mut names)?;
    }
    Ok(names)
}

fn add_names(store: &Store, replica: ReplicaId, names: &mut Names) -> Result<(), Error> {
    let reader = store.reader(replica)?;
    for row in rows::scan_in::<CollectionRow>(&reader, COLLECTIONS)? {
        names.insert(row.value.id(row.version), row.key);
    }
    let log = store.log(replica)?;
    for_each_entry(&log, reader.applied_index() + 1, |entry| {
        for row in rows_of(entry) {
            names.insert(row.value.id(row.version), row.key);
        }
    })
}

fn for_each_entry(log: &Log, mut next: u64, mut look: impl FnMut(&Entry)) -> Result<(), Error> {
    let Some(last) = log.last() else { return Ok(()) };
    while next <= last.index {
        let entries = log.read(next..last.index + 1, READ_BYTES_MAX)?;
        if entries.is_empty() {
            break;
        }
        next += entries.len() as u64;
        entries.iter().for_each(|entry| look(entry));
    }
    Ok(())
}

/// The rows of collections that an entry asks to write.
fn rows_of(entry: &Entry) -> impl Iterator<Item = Row<CollectionRow>> {
    let commands = match &entry.body {
        Body::Commands(batch) => &batch.commands[..],
        Body::Blank | Body::Membership(_) => &[],
    };
    commands.iter().enumerate().filter_map(|(position, command)| {
        let Command::Put(put) = command else { return None };
        let target = &put.write.target;
        if target.collection != COLLECTIONS {
            return None;
        }
        let moment = Moment { index: entry.index, position: position as u16, time_ms: 0 };
        // One that this version can't read has no name to tell.
        rows::parse(&target.key, moment.version(), &put.fields).ok()
    })
}
