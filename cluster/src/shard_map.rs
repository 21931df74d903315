//! Key → slot → shard. Pure: no I/O, no clock, no locks.
//!
//! Slots are fixed for ever; which shard a slot belongs to stands in an explicit table. Shard 0
//! holds the catalog and no slot. Does not say which node holds a shard: that is placement.

use std::fmt;
use std::num::NonZeroU16;
use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

/// How many slots the hashed key space has.
pub const SLOTS: usize = 16_384;

/// The shard of the catalog: collections and models.
pub const META_SHARD: ShardId = ShardId(0);

/// A range of the hashed key space, the unit of replication and movement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The slot of a key: the same in every version of Statehouse.
pub fn slot_of(key: &[u8]) -> usize {
    (xxh3_64(key) as usize) & (SLOTS - 1)
}

/// Which shard each slot belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardMap {
    epoch: u64,
    shards: NonZeroU16,
    table: Vec<ShardId>,
}

impl ShardMap {
    /// Slots in even, contiguous ranges over the shards `1..=shards`.
    pub fn even(shards: NonZeroU16) -> Self {
        let count = usize::from(shards.get());
        let table = (0..SLOTS).map(|slot| ShardId((slot * count / SLOTS) as u16 + 1)).collect();
        ShardMap { epoch: 1, shards, table }
    }

    /// Grows with each change of the map.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many shards hold states, the catalog's not counted.
    pub fn shards(&self) -> NonZeroU16 {
        self.shards
    }

    /// The shard that holds a key, in every collection that users make.
    pub fn shard_of(&self, key: &[u8]) -> ShardId {
        self.table[slot_of(key)]
    }

    /// The slots of a shard, as few ranges as possible, in order.
    pub fn slots_of(&self, shard: ShardId) -> impl Iterator<Item = Range<usize>> {
        let mut at = 0;
        self.table.chunk_by(|a, b| a == b).filter_map(move |run| {
            let slots = at..at + run.len();
            at = slots.end;
            (run[0] == shard).then_some(slots)
        })
    }

    /// All shards, the catalog's first.
    pub fn all(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..=self.shards.get()).map(ShardId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keys_slot_is_in_the_range_of_its_shard() {
        for shards in [1u16, 3, 7, 16, 100] {
            let map = ShardMap::even(NonZeroU16::new(shards).unwrap());
            let ranges: Vec<_> = map.all().map(|shard| map.slots_of(shard).collect()).collect();
            for key in 0u32..5_000 {
                let key = key.to_le_bytes();
                let of_shard: &Vec<Range<usize>> = &ranges[usize::from(map.shard_of(&key).0)];
                let slot = slot_of(&key);
                assert!(of_shard.iter().any(|range| range.contains(&slot)), "{slot} of {shards}");
            }
            let slots: usize = ranges.iter().flatten().map(Range::len).sum();
            assert_eq!(slots, SLOTS, "every slot once");
            assert!(ranges[usize::from(META_SHARD.0)].is_empty());
        }
    }

    #[test]
    fn a_shard_with_slots_in_two_places_has_two_ranges() {
        let mut map = ShardMap::even(NonZeroU16::new(2).unwrap());
        map.table[SLOTS - 1] = ShardId(1);
        let ranges: Vec<_> = map.slots_of(ShardId(1)).collect();
        assert_eq!(ranges, [0..SLOTS / 2, SLOTS - 1..SLOTS]);
    }

    #[test]
    fn every_slot_has_a_shard_and_shards_are_even() {
        for shards in [1u16, 3, 16, 64] {
            let map = ShardMap::even(NonZeroU16::new(shards).unwrap());
            let mut slots = vec![0usize; usize::from(shards) + 1];
            for shard in &map.table {
                slots[usize::from(shard.0)] += 1;
            }
            assert_eq!(slots[0], 0, "the catalog's shard holds no slot");
            let (least, most) = (slots[1..].iter().min(), slots[1..].iter().max());
            assert!(most.unwrap() - least.unwrap() <= 1, "{shards} shards: {slots:?}");
        }
    }

    #[test]
    fn slots_of_known_keys_never_change() {
        // A change here would lose every state on disk.
        let slots: Vec<usize> =
            [&b""[..], b"account-1", b"account-2", &[0xff; 512]].into_iter().map(slot_of).collect();
        assert_eq!(slots, [5_314, 7_706, 4_040, 4_986]);
    }
}
