//! How much a cluster holds: every node is asked what its replicas have counted, and each shard
//! speaks through its leader, or through the replica that has applied most where none leads.

use std::collections::BTreeMap;

use futures::future::join_all;

pub use crate::control::{ReplicaUsage, Wanted};
use crate::meta::{self, NodeState};
use crate::{Error, NodeId, ShardId, Shards};

/// What was counted.
#[derive(Debug, Clone)]
pub struct Usage {
    /// What each member has. `None`: it does not answer.
    pub nodes: BTreeMap<NodeId, Option<Vec<ReplicaUsage>>>,
    /// Every shard there is.
    pub shards: Vec<ShardId>,
}

/// Asks every node.
pub async fn usage(shards: &Shards, wanted: Wanted) -> Result<Usage, Error> {
    let nodes = meta::nodes(shards)?;
    let members = nodes.into_iter().filter(|(_, row)| row.state != NodeState::Removed);
    let asks = members.map(|(node, _)| async move {
        let answer = shards.control().usage(node, wanted).await;
        let answer = answer.inspect_err(|error| tracing::debug!(%node, %error, "no usage"));
        (node, answer.ok())
    });
    let nodes = join_all(asks).await.into_iter().collect();
    Ok(Usage { nodes, shards: meta::placements(shards)?.into_keys().collect() })
}

impl Usage {
    /// The replica that speaks for a shard, and where it is.
    pub fn of_shard(&self, shard: ShardId) -> Option<(NodeId, &ReplicaUsage)> {
        let replicas = self.nodes.iter().flat_map(|(node, replicas)| {
            replicas.iter().flatten().map(move |replica| (*node, replica))
        });
        let all = replicas.filter(|(_, replica)| replica.shard == shard);
        // Of two who think they lead, the one of the later term.
        all.max_by_key(|(_, it)| (it.leads, it.leads.then_some(it.term), it.applied))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(leads: bool, term: u64, applied: u64) -> ReplicaUsage {
        let (totals, largest) = (Vec::new(), Vec::new());
        ReplicaUsage { shard: ShardId(1), leads, term, applied, disk_bytes: 0, totals, largest }
    }

    #[test]
    fn a_shard_speaks_through_its_leader_or_through_whoever_has_applied_most() {
        let usage = |replicas: &[Option<ReplicaUsage>]| {
            let nodes = replicas
                .iter()
                .cloned()
                .zip(1..)
                .map(|(replica, node)| (NodeId(node), replica.map(|replica| vec![replica])));
            Usage { nodes: nodes.collect(), shards: vec![ShardId(1)] }
        };
        let speaker = |replicas: &[Option<ReplicaUsage>]| {
            usage(replicas).of_shard(ShardId(1)).map(|(node, _)| node.0)
        };
        let (old, new) = (Some(replica(true, 4, 90)), Some(replica(true, 5, 80)));
        let (ahead, behind) = (Some(replica(false, 5, 95)), Some(replica(false, 9, 10)));
        assert_eq!(speaker(&[old, new, ahead.clone()]), Some(2));
        assert_eq!(speaker(&[behind.clone(), ahead, None]), Some(2));
        assert_eq!(speaker(&[None, behind]), Some(2));
        assert_eq!(speaker(&[None, None]), None);
    }
}
