//! Which nodes there are and which of them have replicas of which shard: what a node knows of its
//! cluster, from its own replica of shard 0.
//!
//! Who leads is not in it: that changes too often. A replica's group knows, or whoever is asked.

use std::collections::BTreeMap;

use statehouse_store::ReplicaId;

use crate::{NodeId, ShardId};

/// The cluster as one node knows it, all of it as of one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// Grows with each change.
    pub epoch: u64,
    /// Every member that was not removed.
    pub nodes: BTreeMap<NodeId, Member>,
    /// Every shard's replicas that vote.
    pub shards: BTreeMap<ShardId, Vec<(ReplicaId, NodeId)>>,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where clients reach it: `host:port`.
    pub address: String,
    /// Where other nodes reach it: `host:port`.
    pub peer_address: String,
    /// Its replicas are going elsewhere.
    pub draining: bool,
}

impl Topology {
    /// The nodes that have a voting replica of a shard.
    pub fn nodes_of(&self, shard: ShardId) -> impl Iterator<Item = NodeId> {
        self.shards.get(&shard).into_iter().flatten().map(|(_, node)| *node)
    }
}
