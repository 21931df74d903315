//! One part of the cache: bounded in bytes by itself, with an estimate of what other bounds
//! would do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use quick_cache::sync::{Cache, GuardResult, PlaceholderGuard};
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use super::place::{Carried, Place};
use crate::record::{Content, Record};
use crate::reuse::{Curve, Reuse};

/// What a kept record costs beside its bytes: its key, its place, its allocations.
const RECORD_OVERHEAD_BYTES: u64 = 336;

/// What each of its fields costs beside its bytes.
const FIELD_OVERHEAD_BYTES: u64 = 128;

/// A record of more than this share of a lock's part of the cache is not kept.
const LOCK_SHARE: u64 = 4;

/// What the number of places is estimated by; only a first guess.
const RECORD_BYTES_GUESS: u64 = 2 << 10;

#[derive(Clone)]
enum Slot {
    Kept(Arc<Record>),
    /// A write of this key is under way.
    Held,
}

type Slots = Cache<Place, Slot, BytesOf, Carried, Holding>;

#[derive(Clone)]
struct BytesOf;

impl Weighter<Place, Slot> for BytesOf {
    fn weight(&self, place: &Place, slot: &Slot) -> u64 {
        match slot {
            Slot::Kept(record) => weight(place, record),
            Slot::Held => place.len() as u64 + RECORD_OVERHEAD_BYTES,
        }
    }
}

fn weight(place: &Place, record: &Record) -> u64 {
    let field = |content: &Content| match content {
        Content::Inline(bytes) => FIELD_OVERHEAD_BYTES + bytes.len() as u64,
        Content::Blobs(extents) => FIELD_OVERHEAD_BYTES + size_of_val(&extents[..]) as u64,
    };
    let fields = record.fields.iter().map(|it| field(&it.content)).sum::<u64>();
    place.len() as u64 + RECORD_OVERHEAD_BYTES + fields
}

/// A held place stays until its write is done.
#[derive(Clone)]
struct Holding;

impl Lifecycle<Place, Slot> for Holding {
    type RequestState = ();

    fn is_pinned(&self, _: &Place, slot: &Slot) -> bool {
        matches!(slot, Slot::Held)
    }
}

/// Whether a lookup is a reader's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It is, and it is the first one of that read: it counts.
    First,
    /// The same read looks again, or nobody reads: it does not count.
    Again,
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
pub(crate) struct Vacancy<'a> {
    part: &'a Part,
    place: &'a Place,
    guard: PlaceholderGuard<'a, Place, Slot, BytesOf, Carried, Holding>,
}

impl Vacancy<'_> {
    /// Keeps a record; it must have been read after the vacancy was found.
    pub fn keep(self, record: Arc<Record>) {
        if let Some(mut reuse) = self.part.sampled(self.place) {
            reuse.kept(self.place.spread(), weight(self.place, &record));
        }
        // Refused if the key was written meanwhile: then it is out of date.
        let _ = self.guard.insert(Slot::Kept(record));
    }
}

/// What a part has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartStats {
    pub bytes: u64,
    pub capacity: u64,
    pub hits: u64,
    pub misses: u64,
}

/// A part of the cache.
pub(crate) struct Part {
    slots: Slots,
    /// Places that are spread below are looked at.
    sampled_below: AtomicU64,
    reuse: Mutex<Reuse>,
    /// What the slots have counted too much: second looks of a read, and their own. They count a
    /// miss twice where they make room, and as a miss and a hit where somebody else makes it.
    hits_too_many: AtomicU64,
    misses_too_many: AtomicU64,
}

impl Part {
    /// A part of so many bytes.
    pub fn new(bytes: u64) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / RECORD_BYTES_GUESS).max(1) as usize)
            .weight_capacity(bytes)
            .build()
            .expect("both capacities are given");
        let reuse = Reuse::default();
        Part {
            slots: Cache::with_options(options, BytesOf, Carried::default(), Holding),
            sampled_below: AtomicU64::new(reuse.sampled_below()),
            reuse: Mutex::new(reuse),
            hits_too_many: AtomicU64::new(0),
            misses_too_many: AtomicU64::new(0),
        }
    }

    /// Bounds it anew; what is too much goes.
    pub fn resize(&self, bytes: u64) {
        self.slots.set_capacity(bytes);
    }

    /// A record, if it is kept.
    pub fn get(&self, place: &Place) -> Option<Arc<Record>> {
        self.note_lookup(place);
        match self.slots.get(place)? {
            Slot::Kept(record) => Some(record),
            Slot::Held => None,
        }
    }

    /// A record, or a place for it. Never waits.
    pub fn find<'a>(&'a self, place: &'a Place, asked: Asked) -> Found<'a> {
        if asked == Asked::First {
            self.note_lookup(place);
        }
        let found = self.slots.get_value_or_guard(place, Some(Duration::ZERO));
        let again = u64::from(asked == Asked::Again);
        match found {
            GuardResult::Value(slot) => {
                if asked == Asked::Again {
                    self.hits_too_many.fetch_add(1, Relaxed);
                }
                match slot {
                    Slot::Kept(record) => Found::Kept(record),
                    Slot::Held => Found::Busy,
                }
            }
            GuardResult::Guard(guard) => {
                self.misses_too_many.fetch_add(1 + again, Relaxed);
                Found::Vacant(Vacancy { part: self, place, guard })
            }
            GuardResult::Timeout => {
                self.hits_too_many.fetch_add(1, Relaxed);
                self.misses_too_many.fetch_add(again, Relaxed);
                Found::Busy
            }
        }
    }

    /// Before a key is written: nobody keeps what is read of it from here on.
    pub fn hold(&self, place: &Place) {
        self.slots.insert(place.clone(), Slot::Held);
    }

    /// Keeps a record that was written in the place that is held for it.
    pub fn keep(&self, place: Place, record: Record) {
        let bytes = weight(&place, &record);
        if bytes > self.slots.shard_capacity() / LOCK_SHARE {
            return self.remove(&place);
        }
        if let Some(mut reuse) = self.sampled(&place) {
            reuse.kept(place.spread(), bytes);
        }
        self.slots.insert(place, Slot::Kept(Arc::new(record)));
    }

    /// Gives a place up.
    pub fn remove(&self, place: &Place) {
        if let Some(mut reuse) = self.sampled(place) {
            reuse.gone(place.spread());
        }
        self.slots.remove(place);
    }

    /// Gives up every place that does not stay.
    pub fn retain(&self, stays: impl Fn(&Place) -> bool) {
        self.slots.retain(|place, _| stays(place));
    }

    #[inline]
    fn note_lookup(&self, place: &Place) {
        if place.spread() < self.sampled_below.load(Relaxed) {
            self.note_sampled(place);
        }
    }

    #[cold]
    fn note_sampled(&self, place: &Place) {
        if let Some(mut reuse) = self.reuse.try_lock() {
            reuse.looked_up(place.spread());
            self.sampled_below.store(reuse.sampled_below(), Relaxed);
        }
    }

    /// What estimates, if it is to know of this place. One that is busy misses something: better
    /// than that readers wait for each other.
    fn sampled(&self, place: &Place) -> Option<MutexGuard<'_, Reuse>> {
        match place.spread() < self.sampled_below.load(Relaxed) {
            true => self.reuse.try_lock(),
            false => None,
        }
    }

    /// Figures as of now.
    pub fn stats(&self) -> PartStats {
        PartStats {
            bytes: self.slots.weight(),
            capacity: self.slots.capacity(),
            hits: self.slots.hits().saturating_sub(self.hits_too_many.load(Relaxed)),
            misses: self.slots.misses().saturating_sub(self.misses_too_many.load(Relaxed)),
        }
    }

    /// What share of the lookups so far would have found their record, by the part's size.
    pub fn curve(&self) -> Curve {
        let PartStats { hits, misses, .. } = self.stats();
        self.reuse.lock().curve(hits + misses)
    }
}
