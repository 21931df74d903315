//! `statehouse.v1.Cluster`: which node to ask for which key, from what this node knows.

use statehouse_cluster::{META_SHARD, SLOTS, ShardId, ShardMap};
use statehouse_proto::v1;
use statehouse_proto::v1::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use crate::router::Router;

/// Serves the shard map.
pub struct ClusterService {
    router: Router,
}

impl ClusterService {
    /// Over what a node's router knows.
    pub fn new(router: Router) -> Self {
        ClusterService { router }
    }

    fn map(&self) -> v1::ShardMap {
        let shards = self.router.shards();
        let (me, topology) = (shards.me(), shards.topology());
        let shard = |shard: ShardId| v1::MappedShard {
            shard: shard.0.into(),
            slots: vec![slots_of(shards.map(), shard)],
            nodes: topology.nodes_of(shard).map(|node| node.0).collect(),
            leader: self.router.leader_of(shard).map_or(0, |node| node.0),
        };
        let node =
            |(node, address): (u64, &str)| v1::MappedNode { node, address: address.to_owned() };
        let members = topology.nodes.iter().map(|(node, member)| (node.0, &member.address[..]));
        let mut nodes: Vec<v1::MappedNode> = members.map(node).collect();
        if nodes.is_empty() {
            nodes.push(node((me.0, "")));
        }
        v1::ShardMap {
            epoch: topology.epoch,
            slots: SLOTS as u32,
            shards: shards.map().all().filter(|shard| *shard != META_SHARD).map(shard).collect(),
            nodes,
            answered_by: me.0,
        }
    }
}

/// The slots of a shard: even, contiguous ranges, as the map deals them out.
fn slots_of(map: &ShardMap, shard: ShardId) -> v1::SlotRange {
    let (count, place) = (usize::from(map.shards().get()), usize::from(shard.0) - 1);
    let first = (place * SLOTS).div_ceil(count) as u32;
    let last = ((place + 1) * SLOTS).div_ceil(count) as u32 - 1;
    v1::SlotRange { first, last }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn get_map(
        &self,
        _: Request<v1::GetMapRequest>,
    ) -> Result<Response<v1::ShardMap>, Status> {
        Ok(Response::new(self.map()))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use statehouse_cluster::slot_of;

    use super::*;

    #[test]
    fn a_keys_slot_is_in_the_range_of_its_shard() {
        for shards in [1u16, 3, 7, 16, 100] {
            let map = ShardMap::even(NonZeroU16::new(shards).unwrap());
            for key in 0u32..5_000 {
                let key = key.to_le_bytes();
                let range = slots_of(&map, map.shard_of(&key));
                let slot = slot_of(&key) as u32;
                assert!((range.first..=range.last).contains(&slot), "{slot} of {shards} shards");
            }
            let last = slots_of(&map, ShardId(shards));
            assert_eq!(last.last as usize, SLOTS - 1);
        }
    }
}
