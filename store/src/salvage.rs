//! Keeps what is whole of replicas whose tables or blob files are damaged, and says what is lost.
//!
//! For a node whose rows nobody else holds, while it is not running. What can be read of a damaged
//! replica is copied to its next generation, which takes its place as a received view would; what
//! can't be read any more is left out and listed. A state is kept if its record and each of its
//! chunks are whole. Counts and the expiry index are made anew from the states.
//!
//! Entries of the log that can't be read, or whose payloads can't, and all behind them, are cut
//! off, unless their changes are in the rows already: a start purges the log of those. Nothing is
//! made up: a replica that has lost the row that says what is applied stays as it is.

mod gap;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::blob;
use crate::config::Config;
use crate::damage::{DamageLog, DamagePolicy};
use crate::db::{Batch, Db, Family, Fetched, Look, Opening, Recovery, Walk};
use crate::directory::Directory;
use crate::disk::{decode_applied, decode_descriptor, encode_descriptor};
use crate::error::Error;
use crate::extent::chunks_of;
use crate::ids::{CollectionId, ReplicaId};
use crate::keys;
use crate::opening::diagnose;
use crate::proof::{Depth, Held, entry_problem};
use crate::record::Record;
use crate::repair::flush_all;
use crate::witness::Witness;

/// Bytes written together.
const WRITE_BYTES: usize = 4 << 20;

/// Rows of a replica that are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The replica.
    pub replica: ReplicaId,
    /// Which of its rows.
    pub rows: LostRows,
}

/// Which rows are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LostRows {
    /// One state: its record makes no sense, or a chunk of it is gone.
    State(CollectionId, Bytes),
    /// The states behind one key and before another, whatever there was; `None`: from the first
    /// one, or to the last.
    States {
        /// The last state in front that is whole.
        after: Option<(CollectionId, Bytes)>,
        /// The first state behind that is whole.
        before: Option<(CollectionId, Bytes)>,
    },
    /// Some uploads that were under way.
    Uploads,
    /// Some ids of requests done in the last minutes: a repeat of one acts again.
    Requests,
    /// Entries of the log from this one on, and what they changed.
    EntriesFrom(u64),
}

impl Lost {
    /// Says what is gone; `name` says what a collection is called.
    pub fn describe(&self, name: impl Fn(CollectionId) -> String) -> String {
        let state = |collection: CollectionId, key: &Bytes| {
            format!("\"{}\" of collection {}", key.escape_ascii(), name(collection))
        };
        let end = |end: &Option<(CollectionId, Bytes)>, none: &str| match end {
            None => none.to_owned(),
            Some((collection, key)) => state(*collection, key),
        };
        let rows = match &self.rows {
            LostRows::State(collection, key) => format!("state {}", state(*collection, key)),
            LostRows::States { after, before } => {
                let (after, before) = (end(after, "the beginning"), end(before, "the end"));
                format!("states between {after} and {before}")
            }
            LostRows::Uploads => "uploads under way".to_owned(),
            LostRows::Requests => "ids of recent requests: a repeat acts again".to_owned(),
            LostRows::EntriesFrom(first) => format!("log entries from {first} on"),
        };
        format!("replica {}: {rows}", self.replica)
    }
}

/// Makes a store that is not open one that opens again as far as its tables and blob files go:
/// keeps what is whole and returns what is lost. Reads everything. `InUse` if the store is open,
/// `Damaged` if the write-ahead log is damaged too ([`crate::accept_loss`] comes first then), or
/// more than single replicas is. A store whose replicas are rebuilt from other nodes is left as it
/// is.
pub fn salvage_tables(dir: &Path) -> Result<Vec<Lost>, Error> {
    let directory = Directory::existing(dir)?;
    let config = Config::default();
    if DamagePolicy::read(&directory.policy) == DamagePolicy::Quarantine {
        return Ok(Vec::new());
    }
    let diagnosis = diagnose(&directory, &config)?;
    if diagnosis.is_hopeless() || !diagnosis.survey.breaks.is_empty() {
        return Err(Error::Damaged { damages: diagnosis.damages.into() });
    }
    let (tolerant, direct_io) = (true, directory.direct_io);
    let (recovery, damage) = (Recovery::Whole, Arc::<DamageLog>::default());
    let opening = Opening { config: &config, direct_io, recovery, tolerant, damage };
    let lock = directory.lock.try_clone().map_err(|error| Error::io("share the lock", error))?;
    let db = Db::open(&directory.database, opening, lock)?;
    let lost = salvage(&db)?;
    flush_all(&db, &directory.database)?;
    let ledger = Held::read(&db, Depth::Ends)?.ledger;
    Witness::start(directory.synced, &ledger, Arc::default())?.close(Some(&ledger))?;
    db.stop_background_work();
    Ok(lost)
}

/// As [`salvage_tables`], of an open database that nobody else uses.
pub(crate) fn salvage(db: &Arc<Db>) -> Result<Vec<Lost>, Error> {
    let missing = |what| Error::corrupt("database", format!("it has no family {what:?}"));
    let log = db.family(keys::LOG_FAMILY).ok_or(missing(keys::LOG_FAMILY))?;
    let meta = db.family(keys::META_FAMILY).ok_or(missing(keys::META_FAMILY))?;
    let mut replicas = Vec::new();
    db.walk(&meta, keys::descriptors(), Walk::Few, &mut |row, value| {
        let id = keys::replica_of_descriptor(row)
            .ok_or_else(|| Error::corrupt("replica's descriptor", "its key is malformed"))?;
        replicas.push((id, decode_descriptor(Bytes::copy_from_slice(value))?));
        Ok(ControlFlow::Continue(()))
    })?;
    let mut lost = Vec::new();
    for (id, generation) in replicas {
        let Some(family) = db.family(&keys::family(id, generation)) else { continue };
        if !is_whole(db, &family)? {
            lost.extend(replace(db, &meta, (id, generation), family.clone())?);
        }
        lost.extend(cut_log(db, &log, &meta, id)?);
    }
    Ok(lost)
}

/// Whether every row of a replica can be read, and every state has its chunks.
fn is_whole(db: &Arc<Db>, family: &Family) -> Result<bool, Error> {
    let all = Walk::Ahead { keep: false };
    let read = db.walk(family, keys::everything(), all, &mut |row, value| {
        if keys::is_record(row) {
            check_record(db, family, row, value)?;
        }
        Ok(ControlFlow::Continue(()))
    });
    match read {
        Ok(()) => Ok(true),
        Err(Error::Corrupt { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn check_record(db: &Arc<Db>, family: &Family, row: &[u8], value: &[u8]) -> Result<Record, Error> {
    let record = Record::decode(Bytes::copy_from_slice(value));
    let record = record.map_err(|error| Error::corrupt("state record", error))?;
    for extent in record.extents() {
        let span = chunks_of(&extent);
        for number in span.first..span.end {
            let key = keys::chunk(keys::collection_of(row), extent.blob, number);
            match db.get(family, &key, Look::Disk)? {
                Fetched::Found(chunk) => blob::within(&extent, number, chunk.len())?,
                Fetched::Absent | Fetched::NeedsDisk => {
                    return Err(Error::corrupt("state", "a chunk is missing"));
                }
            };
        }
    }
    Ok(record)
}

/// Puts a copy of what is whole in the place of a replica's generation.
fn replace(
    db: &Arc<Db>,
    meta: &Family,
    (id, generation): (ReplicaId, u64),
    old: Family,
) -> Result<Vec<Lost>, Error> {
    // Without it nobody could say which entries these rows have.
    db.fetch(&old, keys::APPLIED)?;
    let name = keys::family(id, generation + 1);
    if db.family(&name).is_some() {
        db.drop_family(&name)?;
    }
    db.create_family(&name)?;
    let missing = || Error::corrupt("database", format!("it has no family {name:?}"));
    let new = db.family(&name).ok_or_else(missing)?;
    let mut copy = Copy {
        db,
        old: &old,
        new: &new,
        replica: id,
        batch: Batch::default(),
        bytes: 0,
        lost: Vec::new(),
    };
    // Not `L`, `T` and `X`: they follow from the states.
    let kept = [(b'A', b'D'), (b'D', b'E'), (b'G', b'H'), (b'S', b'T'), (b'U', b'V'), (b'W', b'X')];
    for (start, end) in kept {
        copy.range(vec![start], &[end])?;
    }
    copy.write()?;
    let lost = copy.lost;
    db.flush(&new)?;
    let mut flip = Batch::default();
    flip.put(meta, &keys::descriptor(id), &encode_descriptor(generation + 1));
    db.write(flip)?;
    db.sync()?;
    drop(old);
    db.drop_family(&keys::family(id, generation))?;
    tracing::warn!(target: "audit", replica = %id, lost = lost.len(), "salvaged a damaged replica");
    Ok(lost)
}

/// A copy of one family to another, under way.
struct Copy<'a> {
    db: &'a Arc<Db>,
    old: &'a Family,
    new: &'a Family,
    replica: ReplicaId,
    batch: Batch,
    bytes: usize,
    lost: Vec<Lost>,
}

impl Copy<'_> {
    /// Copies the rows of a range, stretch by stretch between those that can't be read.
    fn range(&mut self, start: Vec<u8>, end: &[u8]) -> Result<(), Error> {
        let (db, old, all) = (self.db, self.old, Walk::Ahead { keep: false });
        let mut cursor = start.clone();
        loop {
            let mut last = None;
            let read = db.walk(old, (cursor.clone(), end.to_vec()), all, &mut |row, value| {
                last = Some(row.to_vec());
                self.row(row, value)?;
                Ok(ControlFlow::Continue(()))
            });
            match read {
                Ok(()) => return Ok(()),
                Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
            let mut from = last.clone().unwrap_or(cursor);
            if last.is_some() {
                from.push(0);
            }
            let next = gap::end_of(db, old, &from, end)?;
            self.gap(start[0], last.as_deref(), next.as_deref());
            let Some(next) = next else { return Ok(()) };
            cursor = next;
        }
    }

    fn row(&mut self, row: &[u8], value: &[u8]) -> Result<(), Error> {
        if keys::is_record(row) {
            let record = match check_record(self.db, self.old, row, value) {
                Ok(record) => record,
                Err(Error::Corrupt { .. }) => {
                    let key = Bytes::copy_from_slice(keys::key_of_record(row));
                    self.lose(LostRows::State(keys::collection_of(row), key));
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            if let Some(at_ms) = record.next_expiry_ms() {
                let (collection, key) = (keys::collection_of(row), keys::key_of_record(row));
                self.batch.put(self.new, &keys::expiry(at_ms, collection, key), &[]);
            }
        }
        self.batch.put(self.new, row, value);
        self.bytes += row.len() + value.len();
        if self.bytes >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        self.db.write_unlogged(std::mem::take(&mut self.batch))
    }

    fn gap(&mut self, tag: u8, after: Option<&[u8]>, before: Option<&[u8]>) {
        let state = |row: &[u8]| {
            let whole = keys::is_record(row) && row.len() >= keys::RECORD_PREFIX;
            let key = || Bytes::copy_from_slice(keys::key_of_record(row));
            whole.then(|| (keys::collection_of(row), key()))
        };
        match tag {
            b'S' => {
                let (after, before) = (after.and_then(state), before.and_then(state));
                self.lose(LostRows::States { after, before });
            }
            b'U' => self.lose(LostRows::Uploads),
            b'D' => self.lose(LostRows::Requests),
            // Chunks are missed with the states that need them, garbage is missed by nobody.
            _ => {}
        }
    }

    fn lose(&mut self, rows: LostRows) {
        self.lost.push(Lost { replica: self.replica, rows });
    }
}

/// Cuts a log off where it can't be read any more, behind what is applied.
fn cut_log(
    db: &Arc<Db>,
    log: &Family,
    meta: &Family,
    id: ReplicaId,
) -> Result<Option<Lost>, Error> {
    let generation = db.fetch(meta, &keys::descriptor(id))?.map_or(Ok(0), decode_descriptor)?;
    let Some(family) = db.family(&keys::family(id, generation)) else { return Ok(None) };
    let applied = decode_applied(db.fetch(&family, keys::APPLIED)?)?.id.index;
    let (mut next, all) = (applied + 1, Walk::Ahead { keep: false });
    let range = (keys::entry(id, next), keys::entry(id, u64::MAX));
    let read = db.walk(log, range.clone(), all, &mut |key, row| {
        if keys::index_of_entry(key) != Some(next) {
            return Err(Error::corrupt("log", format!("entry {next} is missing")));
        }
        if let Some(problem) = entry_problem(db, &family, Bytes::copy_from_slice(row), true)? {
            return Err(Error::corrupt("log", problem));
        }
        next += 1;
        Ok(ControlFlow::Continue(()))
    });
    match read {
        Ok(()) => return Ok(None),
        Err(Error::Corrupt { .. }) => {}
        Err(error) => return Err(error),
    }
    let mut batch = Batch::default();
    batch.delete_range(log, &keys::entry(id, next), &range.1);
    db.write(batch)?;
    Ok(Some(Lost { replica: id, rows: LostRows::EntriesFrom(next) }))
}
