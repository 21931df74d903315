//! Records kept decoded in memory: the states that are read and written most.
//!
//! One cache for all replicas of a node, bounded in bytes. It is written through: applying puts
//! the new record of every key it changes, a read that missed puts what it found. Not kept: chunks
//! of large fields (the block cache has those) and keys without a state.
//!
//! A read must never put back what a write has replaced. So before a batch is written, each of its
//! keys is *held*: whoever reads it meanwhile goes to the database and keeps nothing, and a read
//! under way finds its place taken. After the write the new records take the places.
//!
//! Pinned collections have a part of their own, so that what is done with the others never evicts
//! their states. It takes its share only while there are some.

mod part;
mod place;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

pub(crate) use part::{Asked, Found, PartStats};
pub(crate) use place::{Carried, Place, Space};

use crate::error::Error;
use crate::ids::CollectionId;
use crate::keys;
use crate::record::Record;
use crate::reuse::Curve;
use part::Part;
use place::Homes;

/// Of the cache's bytes, pinned collections have one in so many.
const PINNED_SHARE: u64 = 2;

/// Decoded records in memory.
pub(crate) struct RecordCache {
    bytes: u64,
    shared: Part,
    /// Empty as long as nothing is pinned.
    pinned: Part,
    homes: Homes,
    spaces: AtomicU64,
    /// One change of what is pinned at a time.
    pinning: Mutex<()>,
    /// No collection moves while places are held.
    writing: RwLock<()>,
}

impl RecordCache {
    /// A cache of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let bytes = bytes as u64;
        RecordCache {
            bytes,
            shared: Part::new(bytes),
            pinned: Part::new(bytes / PINNED_SHARE),
            homes: Homes::default(),
            spaces: AtomicU64::new(0),
            pinning: Mutex::new(()),
            writing: RwLock::new(()),
        }
    }

    /// A space that nothing was kept in yet.
    pub fn space(&self) -> Space {
        Space(self.spaces.fetch_add(1, Ordering::Relaxed))
    }

    /// The place of a state.
    pub fn place_of(&self, space: Space, collection: CollectionId, key: &[u8]) -> Place {
        self.homes.place_of(space, collection, key)
    }

    /// The place of a state's row.
    pub fn place(&self, space: Space, row: &[u8]) -> Place {
        self.homes.place(space, row)
    }

    fn part(&self, place: &Place) -> &Part {
        if place.home().pinned { &self.pinned } else { &self.shared }
    }

    /// A record, if it is kept.
    pub fn get(&self, place: &Place) -> Option<Arc<Record>> {
        self.part(place).get(place)
    }

    /// A record, or a place for it. Never waits.
    pub fn find<'a>(&'a self, place: &'a Place, asked: Asked) -> Found<'a> {
        self.part(place).find(place, asked)
    }

    /// To be held from before the first place is found that will be held, until all are released:
    /// a place that is held protects its key only as long as readers look there.
    pub fn writing(&self) -> RwLockReadGuard<'_, ()> {
        self.writing.read()
    }

    /// Before a key is written: nobody keeps what is read of it from here on.
    pub fn hold(&self, place: &Place) {
        self.part(place).hold(place);
    }

    /// After it was written: the new row, or that there is none.
    pub fn release(&self, place: Place, row: Option<&Bytes>) -> Result<(), Error> {
        let Some(row) = row else {
            self.part(&place).remove(&place);
            return Ok(());
        };
        let record = Record::decode(row.clone());
        let record = record.map_err(|error| Error::corrupt("state record", error))?;
        self.part(&place).keep(place, record);
        Ok(())
    }

    /// Forgets the rows of a range.
    pub fn forget(&self, space: Space, start: &[u8], end: &[u8]) {
        let stays = |it: &Place| it.space() != space || it.row() < start || it.row() >= end;
        self.shared.retain(stays);
        self.pinned.retain(stays);
    }

    /// After rows of these ranges were deleted from a replica. What was kept of their collections
    /// is forgotten, and so is what a read that began before still finds: it puts that where the
    /// collection was, and nobody looks there any more.
    pub fn dropped(&self, space: Space, ranges: &[(Vec<u8>, Vec<u8>)]) {
        let records = ranges.iter().filter(|(start, _)| keys::is_record(start));
        let collections: HashSet<_> =
            records.map(|(start, _)| keys::collection_of(start)).collect();
        if collections.is_empty() {
            return;
        }
        {
            let _pinning = self.pinning.lock();
            let _nobody_writes = self.writing.write();
            self.homes.leave(&collections);
        }
        let stays = |place: &Place| {
            !collections.contains(&place.collection())
                || (place.space() != space && self.homes.of(place.collection()) == place.home())
        };
        self.shared.retain(stays);
        self.pinned.retain(stays);
    }

    /// Keeps the states of these collections in a part of their own, and of no others. Those that
    /// were kept elsewhere are forgotten.
    pub fn pin(&self, collections: &HashSet<CollectionId>) {
        let _pinning = self.pinning.lock();
        let moved = {
            let _nobody_writes = self.writing.write();
            self.homes.pin(collections)
        };
        if moved.is_empty() {
            return;
        }
        let share = if collections.is_empty() { 0 } else { self.bytes / PINNED_SHARE };
        self.shared.resize(self.bytes - share);
        let stays = |place: &Place| {
            let collection = place.collection();
            !moved.contains(&collection) || self.homes.of(collection) == place.home()
        };
        self.shared.retain(stays);
        self.pinned.retain(stays);
    }

    /// Figures of the part that collections share, and of the pinned ones' part.
    pub fn stats(&self) -> (PartStats, PartStats) {
        let mut pinned = self.pinned.stats();
        if !self.homes.any_pinned() {
            pinned.capacity = 0;
        }
        (self.shared.stats(), pinned)
    }

    /// What other sizes would do for either part.
    pub fn curves(&self) -> (Curve, Curve) {
        (self.shared.curve(), self.pinned.curve())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Content, RecordField};
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
        let place = || cache.place_of(space, CollectionId(7), b"k");
        let here = place();
        let find = || cache.find(&here, Asked::First);
        let Found::Vacant(vacancy) = find() else { panic!("nothing is kept yet") };
        assert!(matches!(find(), Found::Busy), "one read at a time keeps");
        vacancy.keep(Arc::new(record(1, 10)));
        assert_eq!(version(&cache, &place()), Some(1));

        // A read that began before a write, and ends in the middle of it or after it.
        cache.release(place(), None).unwrap();
        let Found::Vacant(vacancy) = find() else { panic!("it was removed") };
        cache.hold(&place());
        assert!(matches!(find(), Found::Busy), "a write is under way");
        vacancy.keep(Arc::new(record(1, 10)));
        assert_eq!(version(&cache, &place()), None, "what it read is out of date");
        cache.release(place(), Some(&row(2))).unwrap();
        assert_eq!(version(&cache, &place()), Some(2));
    }

    #[test]
    fn what_is_kept_is_bounded_and_a_held_place_stays() {
        let cache = RecordCache::new(1 << 20);
        let space = cache.space();
        let place = |n: u64| cache.place_of(space, CollectionId(7), &n.to_be_bytes());
        let first = place(0);
        cache.hold(&place(0));
        for n in 1..2_000 {
            cache.release(place(n), Some(&record(n, 4_000).encode().into())).unwrap();
        }
        let bytes = cache.stats().0.bytes;
        assert!(bytes <= 1 << 20 && bytes > 1 << 18, "{bytes} bytes");
        assert!(
            matches!(cache.find(&first, Asked::First), Found::Busy),
            "its write is still under way"
        );
        let huge = record(9, 1 << 20).encode().into();
        cache.release(place(0), Some(&huge)).unwrap();
        assert_eq!(version(&cache, &place(0)), None, "too large to keep");
        assert!(matches!(cache.find(&first, Asked::First), Found::Vacant(_)), "and no longer held");
    }

    #[test]
    fn a_range_is_forgotten_and_spaces_are_apart() {
        let cache = RecordCache::new(1 << 20);
        let (one, two) = (cache.space(), cache.space());
        for space in [one, two] {
            for collection in [7, 8] {
                let place = cache.place_of(space, CollectionId(collection), b"k");
                cache.release(place, Some(&row(collection))).unwrap();
            }
        }
        let (start, end) = keys::records(CollectionId(7));
        cache.forget(one, &start, &end);
        let kept = |space, collection| {
            version(&cache, &cache.place_of(space, CollectionId(collection), b"k"))
        };
        assert_eq!((kept(one, 7), kept(one, 8)), (None, Some(8)));
        assert_eq!((kept(two, 7), kept(two, 8)), (Some(7), Some(8)));
    }

    #[test]
    fn what_a_read_found_before_its_collection_was_dropped_is_seen_by_nobody() {
        let cache = RecordCache::new(1 << 20);
        let space = cache.space();
        for pinned in [false, true] {
            let collection = CollectionId(7 + u64::from(pinned));
            if pinned {
                cache.pin(&HashSet::from([collection]));
            }
            let place = || cache.place_of(space, collection, b"k");
            let before = place();
            let Found::Vacant(vacancy) = cache.find(&before, Asked::First) else {
                panic!("nothing is kept yet")
            };
            cache.dropped(space, &[keys::records(collection)]);
            vacancy.keep(Arc::new(record(1, 10)));
            assert_eq!(version(&cache, &place()), None, "it was read before the drop");
            // A write that comes late is kept like any other.
            cache.hold(&place());
            cache.release(place(), Some(&row(2))).unwrap();
            assert_eq!(version(&cache, &place()), Some(2));
        }
    }

    #[test]
    fn what_others_do_evicts_no_pinned_state() {
        let cache = RecordCache::new(1 << 20);
        let space = cache.space();
        let (loud, quiet) = (CollectionId(7), CollectionId(8));
        let place = |collection, n: u64| cache.place_of(space, collection, &n.to_be_bytes());
        let write = |collection, n| {
            cache.release(place(collection, n), Some(&record(n, 1_000).encode().into())).unwrap();
        };
        let kept = || (0..200).filter(|n| cache.get(&place(quiet, *n)).is_some()).count();
        cache.pin(&HashSet::from([quiet]));
        // Again and again, so that the others' are the hot ones.
        let make_noise = || {
            for n in (0..5).flat_map(|_| 0..2_000) {
                if cache.get(&place(loud, n)).is_none() {
                    write(loud, n);
                }
            }
        };
        make_noise();
        (0..200).for_each(|n| write(quiet, n));
        make_noise();
        assert_eq!(kept(), 200);
        let (shared, pinned) = cache.stats();
        assert!(shared.bytes <= shared.capacity && shared.bytes > 1 << 18, "{shared:?}");
        assert!(pinned.bytes <= pinned.capacity && pinned.bytes > 1 << 17, "{pinned:?}");
        assert!(shared.capacity + pinned.capacity <= (1 << 20) + 64);

        cache.pin(&HashSet::new());
        assert_eq!(kept(), 0, "it has to be found again where it is now");
        let (shared, pinned) = cache.stats();
        assert_eq!((pinned.bytes, pinned.capacity), (0, 0));
        assert!(shared.capacity >= 1 << 20, "all of it is the others' again");
        make_noise();
        (0..200).for_each(|n| write(quiet, n));
        make_noise();
        assert!(kept() < 200, "it is one of many again");
    }

    #[test]
    fn no_collection_moves_while_it_is_written() {
        let cache = RecordCache::new(1 << 20);
        let (space, collection) = (cache.space(), CollectionId(7));
        let place = || cache.place_of(space, collection, b"k");
        std::thread::scope(|scope| {
            let writing = cache.writing();
            let held = place();
            cache.hold(&held);
            let pinning = scope.spawn(|| cache.pin(&HashSet::from([collection])));
            for _ in 0..1_000 {
                assert_eq!(place(), held);
                std::thread::yield_now();
            }
            assert!(!pinning.is_finished());
            cache.release(held, Some(&row(1))).unwrap();
            drop(writing);
            pinning.join().unwrap();
        });
        assert!(place().home().pinned);
        assert_eq!(version(&cache, &place()), None, "it is found again where it is now");
    }

    #[test]
    fn a_second_look_of_a_read_does_not_count() {
        let cache = RecordCache::new(1 << 20);
        let here = cache.place_of(cache.space(), CollectionId(7), b"k");
        for asked in [Asked::First, Asked::Again] {
            assert!(matches!(cache.find(&here, asked), Found::Vacant(_)));
        }
        cache.release(here.clone(), Some(&row(1))).unwrap();
        for asked in [Asked::First, Asked::Again] {
            assert!(matches!(cache.find(&here, asked), Found::Kept(_)));
        }
        let stats = cache.stats().0;
        assert_eq!((stats.hits, stats.misses), (1, 1));
    }
}
