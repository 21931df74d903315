//! Records kept decoded in memory: the states that are read and written most.
//!
//! One cache for all replicas of a node, bounded in bytes. It is written through: applying puts
//! the new record of every key it changes, a read that missed puts what it found. Not kept: chunks
//! of large fields (the block cache has those) and keys without a state.
//!
//! A read must never put back what a write has replaced. So before a batch is written, each of its
//! keys is *held*: whoever reads it meanwhile goes to the database and keeps nothing, and a read
//! under way finds its place taken. After the write the new records take the places.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::sync::{Cache, GuardResult, PlaceholderGuard};
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};

use crate::error::Error;
use crate::ids::CollectionId;
use crate::keys;
use crate::record::{Content, Record};

/// What a kept record costs beside its bytes: its key, its place, its allocations.
const RECORD_OVERHEAD_BYTES: u64 = 320;

/// What each of its fields costs beside its bytes.
const FIELD_OVERHEAD_BYTES: u64 = 128;

/// A record of more than this share of a part of the cache is not kept.
const PART_SHARE: u64 = 4;

/// Bytes of a place's key in front of the row's.
const SPACE_BYTES: usize = 8;

/// What the number of places is estimated by; only a first guess.
const RECORD_BYTES_GUESS: usize = 2 << 10;

/// A replica's part of the cache, named by a number that is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space(u64);

/// The key of a place: the space, then the row's key.
pub(crate) struct Place(Vec<u8>);

impl Place {
    /// The place of a row.
    pub fn new(space: Space, row: &[u8]) -> Self {
        let mut place = Place::with_capacity(space, row.len());
        place.0.extend_from_slice(row);
        place
    }

    /// The place of a state.
    pub fn of(space: Space, collection: CollectionId, key: &[u8]) -> Self {
        let mut place = Place::with_capacity(space, keys::RECORD_PREFIX + key.len());
        keys::extend_with_record(&mut place.0, collection, key);
        place
    }

    fn with_capacity(space: Space, row: usize) -> Self {
        let mut key = Vec::with_capacity(SPACE_BYTES + row);
        key.extend_from_slice(&space.0.to_be_bytes());
        Place(key)
    }

    /// The row's key.
    pub fn row(&self) -> &[u8] {
        &self.0[SPACE_BYTES..]
    }
}

#[derive(Clone)]
enum Slot {
    Kept(Arc<Record>),
    /// A write of this key is under way.
    Held,
}

/// Decoded records in memory.
pub(crate) struct RecordCache {
    slots: Slots,
    spaces: AtomicU64,
}

type Slots = Cache<Vec<u8>, Slot, BytesOf, DefaultHashBuilder, Pinning>;

#[derive(Clone)]
struct BytesOf;

impl Weighter<Vec<u8>, Slot> for BytesOf {
    fn weight(&self, key: &Vec<u8>, slot: &Slot) -> u64 {
        key.len() as u64
            + match slot {
                Slot::Kept(record) => bytes_of(record),
                Slot::Held => RECORD_OVERHEAD_BYTES,
            }
    }
}

fn bytes_of(record: &Record) -> u64 {
    let field = |content: &Content| match content {
        Content::Inline(bytes) => FIELD_OVERHEAD_BYTES + bytes.len() as u64,
        Content::Blobs(extents) => FIELD_OVERHEAD_BYTES + size_of_val(&extents[..]) as u64,
    };
    RECORD_OVERHEAD_BYTES + record.fields.iter().map(|f| field(&f.content)).sum::<u64>()
}

/// A held place stays until its write is done.
#[derive(Clone)]
struct Pinning;

impl Lifecycle<Vec<u8>, Slot> for Pinning {
    type RequestState = ();

    fn is_pinned(&self, _: &Vec<u8>, slot: &Slot) -> bool {
        matches!(slot, Slot::Held)
    }
}

/// What looking for a record came to.
pub(crate) enum Found<'a> {
    Kept(Arc<Record>),
    /// Not here: read it, and keep what you find.
    Vacant(Vacancy<'a>),
    /// Read it, and keep nothing.
    Busy,
}

/// A place for what a read finds, good as long as nobody writes the key.
pub(crate) struct Vacancy<'a>(
    PlaceholderGuard<'a, Vec<u8>, Slot, BytesOf, DefaultHashBuilder, Pinning>,
);

impl Vacancy<'_> {
    /// Keeps a record; it must have been read after the vacancy was found.
    pub fn keep(self, record: Arc<Record>) {
        // Refused if the key was written meanwhile: then it is out of date.
        let _ = self.0.insert(Slot::Kept(record));
    }
}

impl RecordCache {
    /// A cache of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / RECORD_BYTES_GUESS).max(1))
            .weight_capacity(bytes as u64)
            .build()
            .expect("both capacities are given");
        let slots = Cache::with_options(options, BytesOf, DefaultHashBuilder::default(), Pinning);
        RecordCache { slots, spaces: AtomicU64::new(0) }
    }

    /// A part that nothing was kept in yet.
    pub fn space(&self) -> Space {
        Space(self.spaces.fetch_add(1, Ordering::Relaxed))
    }

    /// A record, if it is kept.
    pub fn get(&self, place: &Place) -> Option<Arc<Record>> {
        match self.slots.get(&place.0[..])? {
            Slot::Kept(record) => Some(record),
            Slot::Held => None,
        }
    }

    /// A record, or a place for it. Never waits.
    pub fn find(&self, place: &Place) -> Found<'_> {
        match self.slots.get_value_or_guard(&place.0[..], Some(Duration::ZERO)) {
            GuardResult::Value(Slot::Kept(record)) => Found::Kept(record),
            GuardResult::Guard(guard) => Found::Vacant(Vacancy(guard)),
            GuardResult::Value(Slot::Held) | GuardResult::Timeout => Found::Busy,
        }
    }

    /// Before a key is written: nobody keeps what is read of it from here on.
    pub fn hold(&self, place: &Place) {
        self.slots.insert(place.0.clone(), Slot::Held);
    }

    /// After it was written: the new row, or that there is none.
    pub fn release(&self, place: Place, row: Option<&Bytes>) -> Result<(), Error> {
        let Some(row) = row else {
            self.slots.remove(&place.0[..]);
            return Ok(());
        };
        let record = Record::decode(row.clone());
        let record = record.map_err(|error| Error::corrupt("state record", error))?;
        match bytes_of(&record) > self.slots.shard_capacity() / PART_SHARE {
            true => drop(self.slots.remove(&place.0[..])),
            false => self.slots.insert(place.0, Slot::Kept(Arc::new(record))),
        }
        Ok(())
    }

    /// Forgets the rows of a range.
    pub fn forget(&self, space: Space, start: &[u8], end: &[u8]) {
        let (start, end) = (Place::new(space, start), Place::new(space, end));
        self.slots.retain(|key, _| *key < start.0 || *key >= end.0);
    }

    /// Bytes kept.
    pub fn bytes(&self) -> u64 {
        self.slots.weight()
    }

    /// Lookups answered, and lookups not answered, so far.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.slots.hits(), self.slots.misses())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordField;
    use crate::value::FieldType;

    fn record(version: u64, bytes: usize) -> Record {
        let content = Content::Inline(Bytes::from(vec![1; bytes]));
        let (name, field_type) = ("f".into(), FieldType::Bytes);
        let field = RecordField { name, field_type, expires_at_ms: None, content };
        Record { version, writer: 0, expires_at_ms: None, model: None, fields: vec![field] }
    }

    fn row(version: u64) -> Bytes {
        record(version, 10).encode().into()
    }

    fn version(cache: &RecordCache, place: &Place) -> Option<u64> {
        cache.get(place).map(|record| record.version)
    }

    #[test]
    fn a_read_keeps_what_it_found_unless_the_key_is_written_meanwhile() {
        let cache = RecordCache::new(1 << 20);
        let space = cache.space();
        let place = || Place::of(space, CollectionId(7), b"k");
        let Found::Vacant(vacancy) = cache.find(&place()) else { panic!("nothing is kept yet") };
        assert!(matches!(cache.find(&place()), Found::Busy), "one read at a time keeps");
        vacancy.keep(Arc::new(record(1, 10)));
        assert_eq!(version(&cache, &place()), Some(1));

        // A read that began before a write, and ends in the middle of it or after it.
        cache.release(place(), None).unwrap();
        let Found::Vacant(vacancy) = cache.find(&place()) else { panic!("it was removed") };
        cache.hold(&place());
        assert!(matches!(cache.find(&place()), Found::Busy), "a write is under way");
        vacancy.keep(Arc::new(record(1, 10)));
        assert_eq!(version(&cache, &place()), None, "what it read is out of date");
        cache.release(place(), Some(&row(2))).unwrap();
        assert_eq!(version(&cache, &place()), Some(2));
    }

    #[test]
    fn what_is_kept_is_bounded_and_a_held_place_stays() {
        let cache = RecordCache::new(1 << 20);
        let space = cache.space();
        let place = |n: u64| Place::of(space, CollectionId(7), &n.to_be_bytes());
        cache.hold(&place(0));
        for n in 1..2_000 {
            cache.release(place(n), Some(&record(n, 4_000).encode().into())).unwrap();
        }
        assert!(cache.bytes() <= 1 << 20, "{} bytes", cache.bytes());
        assert!(cache.bytes() > 1 << 18, "{} bytes", cache.bytes());
        assert!(matches!(cache.find(&place(0)), Found::Busy), "its write is still under way");
        let huge = record(9, 1 << 20).encode().into();
        cache.release(place(0), Some(&huge)).unwrap();
        assert_eq!(version(&cache, &place(0)), None, "too large to keep");
        assert!(matches!(cache.find(&place(0)), Found::Vacant(_)), "and no longer held");
    }

    #[test]
    fn a_range_is_forgotten_and_spaces_are_apart() {
        let cache = RecordCache::new(1 << 20);
        let (one, two) = (cache.space(), cache.space());
        for space in [one, two] {
            for collection in [7, 8] {
                let place = Place::of(space, CollectionId(collection), b"k");
                cache.release(place, Some(&row(collection))).unwrap();
            }
        }
        let (start, end) = keys::records(CollectionId(7));
        cache.forget(one, &start, &end);
        let kept =
            |space, collection| version(&cache, &Place::of(space, CollectionId(collection), b"k"));
        assert_eq!((kept(one, 7), kept(one, 8)), (None, Some(8)));
        assert_eq!((kept(two, 7), kept(two, 8)), (Some(7), Some(8)));
    }
}
