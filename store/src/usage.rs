//! How much a replica holds, counted where it changes: totals of each collection, and an index of
//! its large states. Asking costs the same however much there is.
//!
//! Both follow from the records and uploads alone: every replica that has applied the same entries
//! has the same rows, and a count of all records comes to the same. They are changed in the batch
//! that changes the records (`shard/usage.rs`), and travel with them.
//!
//! ```text
//! totals = format u8 | states u64 | state_bytes u64 | uploads u64 | upload_bytes u64
//! ```
//!
//! A large state is one with chunks. Its row stands where its size says, in steps of a sixteenth
//! of a power of two: a state that grows bit by bit seldom moves. The exact size is the record's.
//!
//! A replica that was written before there were such rows is counted once, when it is opened or
//! comes in. The mark that says so is written last: who does not find it counts again.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{Malformed, Scanner, Writer};
use crate::db::{Batch, Db, Family, Look, Walk};
use crate::error::Error;
use crate::ids::CollectionId;
use crate::keys;
use crate::record::{Content, Record};
use crate::upload::Kept;

/// How rows are counted. Another one has all counted again.
const COUNT_FORMAT: u8 = 1;

const TOTALS_FORMAT: u8 = 1;

/// Rows that a count writes at once.
const ROWS_PER_WRITE_MAX: usize = 10_000;

/// What a collection holds in one replica. Expired states count until they are swept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// States.
    pub states: u64,
    /// Bytes of all their fields.
    pub state_bytes: u64,
    /// Uploads that are no states yet.
    pub uploads: u64,
    /// Bytes that came of these.
    pub upload_bytes: u64,
}

/// What counts of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub bytes: u64,
    /// Some of it lies in chunks.
    pub large: bool,
}

impl Size {
    pub fn of(record: &Record) -> Size {
        let bytes = record.fields.iter().map(|field| field.content.len()).sum();
        let large = |content: &Content| matches!(content, Content::Blobs(_));
        Size { bytes, large: record.fields.iter().any(|field| large(&field.content)) }
    }

    /// Where a state of this size stands among the large ones, if it is one.
    pub fn step(self) -> Option<u16> {
        self.large.then(|| step(self.bytes))
    }
}

/// Bytes in sixteenths of powers of two, rounded down: grows with them.
fn step(bytes: u64) -> u16 {
    let Some(power) = bytes.checked_ilog2().filter(|power| *power >= 4) else {
        return bytes as u16;
    };
    // The highest bit is the power's; the four below say how many sixteenths are above it.
    (power as u16 - 3) << 4 | (bytes >> (power - 4) & 15) as u16
}

impl Totals {
    /// Takes in what became of a state.
    pub(crate) fn count_state(&mut self, before: Option<Size>, after: Option<Size>) {
        exchange(&mut self.states, &mut self.state_bytes, [before, after].map(bytes_of));
    }

    /// Takes in what became of an upload, by its bytes.
    pub(crate) fn count_upload(&mut self, before: Option<u64>, after: Option<u64>) {
        exchange(&mut self.uploads, &mut self.upload_bytes, [before, after]);
    }

    /// The row; none if nothing is there.
    fn encode(&self) -> Option<Vec<u8>> {
        if *self == Totals::default() {
            return None;
        }
        let mut out = Writer::with_capacity(33);
        out.u8(TOTALS_FORMAT);
        for number in [self.states, self.state_bytes, self.uploads, self.upload_bytes] {
            out.u64(number);
        }
        Some(out.into_vec())
    }

    /// Reads a row.
    pub(crate) fn decode(row: Bytes) -> Result<Totals, Error> {
        let read = |row| {
            let mut scan = Scanner::new(row);
            scan.format(TOTALS_FORMAT)?;
            let totals = Totals {
                states: scan.u64("a number of states")?,
                state_bytes: scan.u64("bytes of states")?,
                uploads: scan.u64("a number of uploads")?,
                upload_bytes: scan.u64("bytes of uploads")?,
            };
            scan.finish()?;
            Ok(totals)
        };
        read(row).map_err(|error: Malformed| Error::corrupt("usage row", error))
    }
}

fn bytes_of(size: Option<Size>) -> Option<u64> {
    size.map(|size| size.bytes)
}

fn exchange(number: &mut u64, bytes: &mut u64, [before, after]: [Option<u64>; 2]) {
    *number = (*number + u64::from(after.is_some())).saturating_sub(u64::from(before.is_some()));
    *bytes = bytes.saturating_add(after.unwrap_or(0)).saturating_sub(before.unwrap_or(0));
}

/// Totals that a batch has changed and not written yet.
#[derive(Default)]
pub(crate) struct Changed {
    by_collection: HashMap<CollectionId, Counted>,
}

/// A collection's totals as they are, and as they are stored if that is known.
struct Counted {
    stored: Option<Totals>,
    now: Totals,
}

impl Changed {
    /// A collection's totals, to be changed.
    pub fn of(
        &mut self,
        db: &Arc<Db>,
        family: &Family,
        collection: CollectionId,
    ) -> Result<&mut Totals, Error> {
        use std::collections::hash_map::Entry;
        Ok(match self.by_collection.entry(collection) {
            Entry::Occupied(counted) => &mut counted.into_mut().now,
            Entry::Vacant(vacant) => {
                let row = db.fetch(family, &keys::usage(collection))?;
                let now = row.map(Totals::decode).transpose()?.unwrap_or_default();
                &mut vacant.insert(Counted { stored: Some(now), now }).now
            }
        })
    }

    /// Nothing is left of a collection.
    pub fn drop_all(&mut self, collection: CollectionId) {
        let nothing = Counted { stored: None, now: Totals::default() };
        self.by_collection.insert(collection, nothing);
    }

    /// Adds what has changed to a batch.
    pub fn write(&self, family: &Family, batch: &mut Batch) {
        for (collection, Counted { stored, now }) in &self.by_collection {
            if *stored == Some(*now) {
                continue;
            }
            match now.encode() {
                Some(row) => batch.put(family, &keys::usage(*collection), &row),
                None => batch.delete(family, &keys::usage(*collection)),
            }
        }
    }
}

/// Adds the mark of a replica whose rows are counted from its first entry on.
pub(crate) fn mark(family: &Family, batch: &mut Batch) {
    batch.put(family, keys::USAGE, &[COUNT_FORMAT]);
}

/// Counts a replica unless that was done. Nobody else may change it meanwhile.
pub(crate) fn ensure(db: &Arc<Db>, family: &Family) -> Result<(), Error> {
    if db.fetch(family, keys::APPLIED)?.is_none() {
        // Nothing is there: its first entry brings the mark.
        return Ok(());
    }
    match db.fetch(family, keys::USAGE)?.as_deref() {
        Some([COUNT_FORMAT]) => return Ok(()),
        Some([found, ..]) if *found > COUNT_FORMAT => {
            let (found, supported) = (u32::from(*found), u32::from(COUNT_FORMAT));
            return Err(Error::NewerFormat { found, supported });
        }
        Some(_) | None => {}
    }
    recount(db, family)
}

fn recount(db: &Arc<Db>, family: &Family) -> Result<(), Error> {
    // What an interrupted count has left.
    forget(db, family)?;
    let mut batch = Batch::default();
    let mut rows = 0;
    let totals = count(db, family, &mut |row| {
        batch.put(family, &row, &[]);
        rows += 1;
        match rows % ROWS_PER_WRITE_MAX {
            0 => db.write_unlogged(std::mem::take(&mut batch)),
            _ => Ok(()),
        }
    })?;
    let states: u64 = totals.values().map(|totals| totals.states).sum();
    for (collection, totals) in totals {
        if let Some(row) = totals.encode() {
            batch.put(family, &keys::usage(collection), &row);
        }
    }
    mark(family, &mut batch);
    db.write_unlogged(batch)?;
    tracing::info!(states, large = rows, "counted a replica of an older format");
    Ok(())
}

/// Reads every record and upload: shows the row of each large state, answers the totals.
fn count(
    db: &Arc<Db>,
    family: &Family,
    large: &mut dyn FnMut(Vec<u8>) -> Result<(), Error>,
) -> Result<BTreeMap<CollectionId, Totals>, Error> {
    let mut totals: BTreeMap<CollectionId, Totals> = BTreeMap::new();
    let walk = Walk::Ahead { keep: false };
    db.walk(family, keys::all_records(), walk, &mut |row, value| {
        let record = Record::decode(Bytes::copy_from_slice(value));
        let record = record.map_err(|error| Error::corrupt("state record", error))?;
        let (collection, size) = (keys::collection_of(row), Size::of(&record));
        totals.entry(collection).or_default().count_state(None, Some(size));
        if let Some(step) = size.step() {
            large(keys::large(collection, step, keys::key_of_record(row)))?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    db.walk(family, keys::all_uploads(), walk, &mut |row, value| {
        let kept = Kept::decode(Bytes::copy_from_slice(value));
        let kept = kept.map_err(|error| Error::corrupt("upload row", error))?;
        let collection = keys::collection_of(row);
        totals.entry(collection).or_default().count_upload(None, Some(kept.bytes()));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(totals)
}

/// Removes every row of usage.
pub(crate) fn forget(db: &Arc<Db>, family: &Family) -> Result<(), Error> {
    let mut batch = Batch::default();
    for (start, end) in [keys::all_usage(), keys::all_large()] {
        batch.delete_range(family, &start, &end);
    }
    db.write_unlogged(batch)
}

/// Whether the rows are what a count of everything comes to; else what differs first.
pub(crate) fn audit(db: &Arc<Db>, family: &Family) -> Result<Option<String>, Error> {
    let mut expected = BTreeMap::new();
    let totals = count(db, family, &mut |row| {
        expected.insert(row, Vec::new());
        Ok(())
    })?;
    for (collection, totals) in totals {
        expected.extend(totals.encode().map(|row| (keys::usage(collection), row)));
    }
    if db.fetch(family, keys::APPLIED)?.is_some() {
        expected.insert(keys::USAGE.to_vec(), vec![COUNT_FORMAT]);
    }
    let mut found = BTreeMap::new();
    for range in [keys::all_usage(), keys::all_large()] {
        db.walk_at(Look::Disk, family, range, Walk::Few, &mut |row, value| {
            found.insert(row.to_vec(), value.to_vec());
            Ok(ControlFlow::Continue(()))
        })?;
    }
    let other = |ours: &BTreeMap<_, _>, theirs: &BTreeMap<_, _>| {
        ours.iter().find(|(row, value)| theirs.get(*row) != Some(*value)).map(|found| {
            let (row, value): (&Vec<u8>, &Vec<u8>) = found;
            format!("{} = {value:?}", row.escape_ascii())
        })
    };
    let missing = other(&expected, &found).map(|row| format!("expected {row}"));
    Ok(missing.or_else(|| other(&found, &expected).map(|row| format!("found {row}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_survive_a_round_trip_and_no_truncation() {
        let totals = Totals { states: 3, state_bytes: 1 << 40, uploads: 2, upload_bytes: 77 };
        let row = Bytes::from(totals.encode().expect("something is there"));
        for len in 0..row.len() {
            assert!(Totals::decode(row.slice(..len)).is_err(), "{len} of {}", row.len());
        }
        assert_eq!(Totals::decode(row).expect("it was just encoded"), totals);
        assert_eq!(Totals::default().encode(), None);
    }

    #[test]
    fn steps_grow_with_bytes_by_a_sixteenth_at_most() {
        let mut last = 0;
        for bytes in 0..100_000u64 {
            let step = step(bytes);
            assert!(step == last || step == last + 1, "{bytes}: {last}, {step}");
            last = step;
        }
        for power in 10..63 {
            let bytes = 1u64 << power;
            assert_eq!(step(bytes) + 16, step(2 * bytes));
            assert_eq!(step(bytes), step(bytes + bytes / 17));
            assert_eq!(step(bytes) + 1, step(bytes + bytes / 16));
        }
        assert!(step(u64::MAX) < u16::MAX);
    }
}
