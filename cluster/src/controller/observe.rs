//! The cluster as it is at a moment: what is written down, and what each node says of itself.
//!
//! Any node may look. Who does not answer is part of the picture.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use statehouse_store::{EntryId, ReplicaId};

use crate::control::{GroupReport, NodeReport};
use crate::meta::{self, ClusterRow, NodeRow, NodeState, PlacementRow};
use crate::placement::{NodeView, ShardView, View};
use crate::raft::Role;
use crate::task::{Task, TaskId};
use crate::{Error, NodeId, ShardId, Shards};

/// What was seen.
#[derive(Debug, Clone)]
pub struct Observed {
    /// What the cluster knows of itself.
    pub cluster: ClusterRow,
    /// Every node there ever was.
    pub nodes: BTreeMap<NodeId, NodeRow>,
    /// Where replicas that vote should be.
    pub placements: BTreeMap<ShardId, PlacementRow>,
    /// Every task that is remembered.
    pub tasks: BTreeMap<TaskId, Task>,
    /// What the members say that answer.
    pub reports: BTreeMap<NodeId, NodeReport>,
}

/// Looks at everything; with sizes on disk if asked for.
pub async fn observe(shards: &Shards, sizes: bool) -> Result<Observed, Error> {
    let cluster = meta::cluster(shards)?;
    let cluster = cluster.ok_or_else(|| Error::Invalid("the cluster's row is missing".into()))?;
    let nodes = meta::nodes(shards)?;
    let members = nodes.iter().filter(|(_, row)| row.state != NodeState::Removed);
    let asks = members
        .map(|(node, _)| async move { (*node, shards.control().report(*node, sizes).await) });
    let mut reports = BTreeMap::new();
    for (node, report) in join_all(asks).await {
        match report {
            Ok(report) => {
                reports.insert(node, report);
            }
            Err(error) => tracing::debug!(%node, %error, "no report"),
        }
    }
    let (placements, tasks) = (meta::placements(shards)?, meta::tasks(shards)?);
    Ok(Observed { cluster, nodes, placements, tasks, reports })
}

impl Observed {
    /// The members: nodes that were not removed.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &NodeRow)> {
        let members = self.nodes.iter().filter(|(_, row)| row.state != NodeState::Removed);
        members.map(|(node, row)| (*node, row))
    }

    /// A member that was heard.
    pub fn answers(&self, node: NodeId) -> bool {
        self.reports.contains_key(&node)
    }

    /// What a node says of its replica of a shard.
    pub fn replica(&self, node: NodeId, shard: ShardId) -> Option<&GroupReport> {
        self.reports.get(&node)?.groups.iter().find(|group| group.shard == shard)
    }

    /// Why a replica takes no part any more, if its node says so. One that its node knows nothing
    /// of is lost too.
    pub fn stopped(&self, node: NodeId, replica: ReplicaId) -> Option<String> {
        let report = self.reports.get(&node)?;
        if let Some(stopped) = report.stopped.iter().find(|it| it.replica == replica) {
            return Some(stopped.reason.clone());
        }
        match report.groups.iter().find(|group| group.replica == replica) {
            Some(group) if group.role == Role::Stopped => Some("it has just stopped".to_owned()),
            Some(_) => None,
            None => Some("its node has no such replica".to_owned()),
        }
    }

    /// The voters of a shard that take no part any more, though their nodes answer.
    pub fn stopped_voters(&self, shard: ShardId) -> BTreeMap<ReplicaId, NodeId> {
        let voters = self.voters(shard).into_iter();
        voters.filter(|(replica, node)| self.stopped(*node, *replica).is_some()).collect()
    }

    /// The membership as of which a replica has left its group, as the shard's leader knows it;
    /// `None` if there is no leader, or the replica is still a member to it.
    pub fn left_at(&self, shard: ShardId, replica: ReplicaId) -> Option<EntryId> {
        let (_, leader) = self.leader(shard)?;
        let member = leader.voters.contains_key(&replica) || leader.learners.contains_key(&replica);
        (leader.membership_committed && !member).then_some(leader.membership_at)
    }

    /// Where a shard is led, and what its leader says. Of two who think they lead, the one of the
    /// later term.
    pub fn leader(&self, shard: ShardId) -> Option<(NodeId, &GroupReport)> {
        let all = self.reports.keys().filter_map(|node| {
            let group = self.replica(*node, shard)?;
            (group.role == Role::Leader).then_some((*node, group))
        });
        all.max_by_key(|(_, group)| group.term)
    }

    /// Tasks that are not over.
    pub fn running(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values().filter(|task| !task.is_over())
    }

    /// The nodes with replicas of a shard that vote: as its leader says, or else as is written.
    pub fn voters(&self, shard: ShardId) -> BTreeMap<ReplicaId, NodeId> {
        if let Some((_, leader)) = self.leader(shard) {
            return leader.voters.clone();
        }
        self.placements.get(&shard).into_iter().flat_map(PlacementRow::replicas).collect()
    }

    /// The picture that plans are made of. Loads are commands per second by shard.
    pub fn view(&self, loads: &BTreeMap<ShardId, f64>) -> View {
        let nodes = self.members().map(|(id, row)| NodeView {
            id,
            alive: self.answers(id),
            open: row.state == NodeState::Active,
            short: self.reports.get(&id).is_some_and(|report| report.disk_short),
        });
        let busy: BTreeSet<ShardId> = self.running().map(|task| ShardId(task.shard)).collect();
        let shards = self.placements.iter().map(|(id, placement)| {
            let leader = self.leader(*id);
            let sizes = self.reports.values().flat_map(|report| &report.groups);
            let bytes = sizes.filter(|group| group.shard == *id).map(|group| group.bytes).max();
            ShardView {
                id: *id,
                nodes: self.voters(*id).into_values().collect(),
                stopped: self.stopped_voters(*id).into_values().collect(),
                leader: leader.map(|(node, _)| node),
                bytes: bytes.unwrap_or(0),
                load: loads.get(id).map_or(0, |load| *load as u64),
                busy: busy.contains(id) || placement.task.is_some(),
            }
        });
        View {
            replicas: usize::from(self.cluster.replicas.get()),
            nodes: nodes.collect(),
            shards: shards.collect(),
        }
    }
}
