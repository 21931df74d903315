//! What the cache of decoded states does, beside what it would do if it had another size.

use crate::cache::{PartStats, RecordCache};
use crate::reuse::Curve;

/// A part of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachePart {
    /// Of all collections that are not pinned.
    Shared,
    /// Of those that are.
    Pinned,
}

/// A part of the cache, as it is and as it would be.
#[derive(Clone, Debug, PartialEq)]
pub struct CachePlan {
    /// Which part.
    pub part: CachePart,
    /// What it may hold, in bytes.
    pub capacity_bytes: u64,
    /// What it holds.
    pub used_bytes: u64,
    /// Lookups that found their state, since the node started.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// The estimated hit rate of the size that it has.
    pub estimated_now: f64,
    /// Other sizes, in order.
    pub points: Vec<CachePoint>,
    /// The share of all keys that the estimate goes by.
    pub sampled_share: f64,
    /// How many keys those are.
    pub sampled_keys: u64,
    /// Lookups that it goes by.
    pub sampled_lookups: u64,
}

/// A size, and its hit rate as estimated from all lookups since the node started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CachePoint {
    /// What the part would hold.
    pub bytes: u64,
    /// 0 to 1.
    pub hit_rate: f64,
}

impl CachePlan {
    /// Of the part that collections share; of the other one too where there is or was one.
    pub(crate) fn of(cache: &RecordCache) -> Vec<CachePlan> {
        let ((shared, pinned), curves) = (cache.stats(), cache.curves());
        let shared_plan = CachePlan::new(CachePart::Shared, shared, &curves.0);
        let used = pinned.capacity > 0 || pinned.hits + pinned.misses > 0;
        let pinned_plan = used.then(|| CachePlan::new(CachePart::Pinned, pinned, &curves.1));
        std::iter::once(shared_plan).chain(pinned_plan).collect()
    }

    fn new(part: CachePart, stats: PartStats, curve: &Curve) -> CachePlan {
        let PartStats { bytes, capacity, hits, misses } = stats;
        let point = |(bytes, hit_rate)| CachePoint { bytes, hit_rate };
        CachePlan {
            part,
            capacity_bytes: capacity,
            used_bytes: bytes,
            hits,
            misses,
            estimated_now: curve.hit_rate(capacity),
            points: curve.points(capacity).into_iter().map(point).collect(),
            sampled_share: curve.share,
            sampled_keys: curve.keys,
            sampled_lookups: curve.seen,
        }
    }
}
