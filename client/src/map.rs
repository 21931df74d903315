//! The shard map as a client keeps it: which node to ask for which key.
//!
//! A hint, not a truth: a node that is asked in vain forwards the call or says who leads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use statehouse_proto::v1;
use xxhash_rust::xxh3::xxh3_64;

/// The most slots that a map may have.
const SLOTS_MAX: u32 = 1 << 20;

/// Key -> shard -> nodes, as of one epoch.
#[derive(Debug, Default)]
pub struct Map {
    epoch: u64,
    /// Place in `shards` by slot.
    slots: Vec<u32>,
    shards: Vec<Shard>,
    /// Endpoints by node.
    nodes: BTreeMap<u64, String>,
}

#[derive(Debug)]
struct Shard {
    id: u32,
    /// Who has a voting replica.
    nodes: Vec<u64>,
    /// Who leads, as last heard; 0: unknown.
    leader: AtomicU64,
}

impl Map {
    /// Reads what a node answered; `None` if it does not cover every slot.
    pub fn of(answer: v1::ShardMap) -> Option<Map> {
        let slots = answer.slots;
        if !slots.is_power_of_two() || slots > SLOTS_MAX {
            return None;
        }
        let mut table = vec![u32::MAX; slots as usize];
        for (place, shard) in answer.shards.iter().enumerate() {
            for range in &shard.slots {
                let range = range.first as usize..=range.last as usize;
                table.get_mut(range)?.fill(place as u32);
            }
        }
        if table.contains(&u32::MAX) {
            return None;
        }
        let shard = |shard: v1::MappedShard| Shard {
            id: shard.shard,
            nodes: shard.nodes,
            leader: AtomicU64::new(shard.leader),
        };
        let node = |node: v1::MappedNode| (node.node, with_scheme(node.address));
        Some(Map {
            epoch: answer.epoch,
            slots: table,
            shards: answer.shards.into_iter().map(shard).collect(),
            nodes: answer.nodes.into_iter().map(node).collect(),
        })
    }

    /// Grows with each change of nodes or replicas.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether there is no choice of whom to ask.
    pub fn is_single(&self) -> bool {
        self.nodes.len() <= 1
    }

    /// The place of a key's shard. Not on an empty map.
    pub fn place(&self, key: &[u8]) -> usize {
        self.slots[(xxh3_64(key) as usize) & (self.slots.len() - 1)] as usize
    }

    /// Whom to ask for a shard's states, the likeliest first: who leads, who has a replica,
    /// anybody. Some may come twice.
    pub fn candidates(&self, place: usize) -> impl Iterator<Item = (u64, &str)> {
        let shard = &self.shards[place];
        let leader = shard.leader.load(Ordering::Relaxed);
        let likely = std::iter::once(leader).chain(shard.nodes.iter().copied());
        let all = likely.chain(self.nodes.keys().copied());
        all.filter_map(|node| Some((node, self.nodes.get(&node)?.as_str())))
    }

    /// Every node's endpoint; empty if it is where the map came from.
    pub fn nodes(&self) -> impl Iterator<Item = (u64, &str)> {
        self.nodes.iter().map(|(node, endpoint)| (*node, endpoint.as_str()))
    }

    /// Who leads a shard, as last heard; 0: unknown.
    pub fn leader(&self, place: usize) -> u64 {
        self.shards[place].leader.load(Ordering::Relaxed)
    }

    /// A shard's leader was heard of; answers whether the map knows that node.
    pub fn learn(&self, place: usize, node: u64) -> bool {
        self.shards[place].leader.store(node, Ordering::Relaxed);
        self.nodes.contains_key(&node)
    }

    /// Keeps what was heard of leaders since, where the newer map does not know.
    pub fn inherit(&self, older: &Map) {
        for shard in &self.shards {
            let known = older.shards.iter().find(|other| other.id == shard.id);
            let Some(known) = known.map(|known| known.leader.load(Ordering::Relaxed)) else {
                continue;
            };
            // Somebody else may have learned meanwhile: then that is newer.
            let _ = shard.leader.compare_exchange(0, known, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

fn with_scheme(address: String) -> String {
    if address.is_empty() || address.contains("://") {
        address
    } else {
        format!("http://{address}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(shard: u32, first: u32, last: u32, leader: u64) -> v1::MappedShard {
        let slots = vec![v1::SlotRange { first, last }];
        v1::MappedShard { shard, slots, nodes: vec![1, 2, 3], leader }
    }

    fn answer(leaders: [u64; 2]) -> v1::ShardMap {
        let node = |node| v1::MappedNode { node, address: format!("10.0.0.{node}:7070") };
        v1::ShardMap {
            epoch: 4,
            slots: 16_384,
            shards: vec![shard(1, 0, 8_191, leaders[0]), shard(2, 8_192, 16_383, leaders[1])],
            nodes: (1..=4).map(node).collect(),
            answered_by: 1,
            cluster_id: String::new(),
        }
    }

    #[test]
    fn keys_go_to_the_shard_of_their_slot_and_leaders_come_first() {
        let map = Map::of(answer([2, 3])).unwrap();
        // Slots 4,040 and 4,986, 7,706: the same as the nodes compute.
        assert_eq!(map.place(b"account-2"), 0);
        assert_eq!(map.place(b"account-1"), 0);
        let second = (0..).map(|n: u32| n.to_string()).find(|key| map.place(key.as_bytes()) == 1);
        assert!(second.is_some());
        let nodes: Vec<u64> = map.candidates(1).map(|(node, _)| node).collect();
        assert_eq!(nodes[..3], [3, 1, 2]);
        assert!(nodes.contains(&4), "in the end anybody");
        assert_eq!(map.candidates(0).next(), Some((2, "http://10.0.0.2:7070")));
    }

    #[test]
    fn what_is_heard_goes_before_what_was_and_survives_a_map_that_does_not_know() {
        let older = Map::of(answer([2, 3])).unwrap();
        assert!(older.learn(0, 1));
        assert!(!older.learn(1, 9), "node 9 is not in the map");
        let newer = Map::of(answer([0, 2])).unwrap();
        newer.inherit(&older);
        assert_eq!((newer.leader(0), newer.leader(1)), (1, 2));
    }

    #[test]
    fn a_map_that_does_not_cover_every_slot_is_refused() {
        let mut gap = answer([1, 1]);
        gap.shards[1].slots[0].first += 1;
        assert!(Map::of(gap).is_none());
        let mut past = answer([1, 1]);
        past.shards[1].slots[0].last += 1;
        assert!(Map::of(past).is_none());
        assert!(Map::of(v1::ShardMap::default()).is_none());
    }
}
