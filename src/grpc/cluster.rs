//! `statehouse.v1.Cluster`: which node to ask for which key, from what this node knows.

use std::ops::Range;

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
            slots: slots_of(shards.map(), shard),
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
            cluster_id: shards.cluster().to_string(),
        }
    }
}

fn slots_of(map: &ShardMap, shard: ShardId) -> Vec<v1::SlotRange> {
    let range = |slots: Range<usize>| v1::SlotRange {
        first: slots.start as u32,
        last: slots.end as u32 - 1,
    };
    map.slots_of(shard).map(range).collect()
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
