//! What a cluster is ↔ the `Admin` service's messages.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use statehouse_cluster::admin::{Joined, Plan};
use statehouse_cluster::controller::observe::Observed;
use statehouse_cluster::meta::{NodeRow, NodeState};
use statehouse_cluster::placement::{By, Move};
use statehouse_cluster::raft::Role;
use statehouse_cluster::task::{Purpose, State, Step, Task};
use statehouse_cluster::{META_SHARD, NodeId, ShardId, Shards};
use statehouse_proto::v1;
use statehouse_store::ReplicaId;

use crate::size::ByteSize;

pub fn cluster(shards: &Arc<Shards>, seen: &Observed) -> v1::ClusterStatus {
    let wanted = usize::from(seen.cluster.replicas.get());
    let takes_part = |(replica, node): (&ReplicaId, &NodeId)| {
        seen.answers(*node) && seen.stopped(*node, *replica).is_none()
    };
    let whole = |shard: &ShardId| {
        let voters = seen.voters(*shard);
        voters.len() >= wanted && voters.iter().all(takes_part)
    };
    let stopped = seen.reports.iter().flat_map(|(node, report)| {
        report.stopped.iter().map(|it| v1::StoppedReplica {
            shard: it.shard.0.into(),
            replica: it.replica.0,
            node: node.0,
            reason: it.reason.clone(),
        })
    });
    let all = || seen.placements.keys();
    v1::ClusterStatus {
        cluster_id: shards.cluster().to_string(),
        node: shards.me().0,
        shards: seen.cluster.shards.get().into(),
        replicas: seen.cluster.replicas.get().into(),
        epoch: shards.topology().epoch,
        paused: seen.cluster.paused,
        controller: seen.leader(META_SHARD).map_or(0, |(node, _)| node.0),
        nodes: seen.members().count() as u32,
        nodes_alive: seen.reports.len() as u32,
        shards_without_leader: all().filter(|id| seen.leader(**id).is_none()).count() as u32,
        shards_under_replicated: all().filter(|id| !whole(id)).count() as u32,
        tasks_running: seen.running().count() as u32,
        disk_ills: seen.members().filter_map(|(node, _)| disk_ill(shards, seen, node)).collect(),
        clocks_off_ms: clocks_off(seen),
        stopped: stopped.collect(),
    }
}

/// What is wrong with a node's disk, as it says or said last.
fn disk_ill(shards: &Shards, seen: &Observed, node: NodeId) -> Option<String> {
    let (was_short, failed) = shards.peers().disk(node);
    match (seen.reports.get(&node), failed) {
        (None, Some(failed)) => Some(format!("node {node} has stopped: {failed}")),
        (None, None) if was_short => {
            Some(format!("node {node} is silent, and was short of disk space when last heard"))
        }
        (Some(report), _) if report.disk_short => {
            let free = ByteSize(report.disk_free_bytes);
            let mut ill = format!("node {node} is short of disk space ({free} free)");
            if report.out_of_room > 0 {
                let replicas = report.out_of_room;
                ill.push_str(&format!(": {replicas} of its replicas wait for it"));
            }
            Some(ill)
        }
        _ => None,
    }
}

pub fn nodes(
    shards: &Arc<Shards>,
    seen: &Observed,
    rates: &BTreeMap<ShardId, f64>,
    all: bool,
) -> Vec<v1::Node> {
    let shown = seen.nodes.iter().filter(|(_, row)| all || row.state != NodeState::Removed);
    shown.map(|(id, row)| node(shards, seen, rates, (*id, row))).collect()
}

pub fn node(
    shards: &Arc<Shards>,
    seen: &Observed,
    rates: &BTreeMap<ShardId, f64>,
    (id, row): (NodeId, &NodeRow),
) -> v1::Node {
    let report = seen.reports.get(&id);
    let placed = seen
        .placements
        .keys()
        .filter(|shard| seen.voters(**shard).values().any(|node| *node == id));
    let led: Vec<ShardId> = seen
        .placements
        .keys()
        .filter(|shard| seen.leader(**shard).is_some_and(|(node, _)| node == id))
        .copied()
        .collect();
    let silent = shards.peers().silence(id).map_or(0, |(silence, _)| silence.as_millis() as u64);
    v1::Node {
        id: id.0,
        address: row.address.clone(),
        peer_address: row.peer_address.clone(),
        state: match row.state {
            NodeState::Active => v1::NodeState::Active,
            NodeState::Draining => v1::NodeState::Draining,
            NodeState::Removed => v1::NodeState::Removed,
        }
        .into(),
        alive: report.is_some(),
        silent_ms: if report.is_some() { 0 } else { silent },
        replicas: placed.count() as u32,
        leaders: led.len() as u32,
        bytes: report.map_or(0, |it| it.groups.iter().map(|group| group.bytes).sum()),
        disk_free_bytes: report.map_or(0, |it| it.disk_free_bytes),
        disk_short: report.is_some_and(|it| it.disk_short),
        clock_skew_ms: report.and_then(|it| it.clock).map(|it| it.skew_ms),
        commands_per_second: led.iter().filter_map(|shard| rates.get(shard)).sum(),
        version: report.map_or(String::new(), |it| it.version.clone()),
    }
}

/// The nodes whose wall clocks are off, and by how many milliseconds they are ahead.
fn clocks_off(seen: &Observed) -> HashMap<u64, i64> {
    let clocks = seen.reports.iter().filter_map(|(node, report)| Some((node.0, report.clock?)));
    clocks.filter(|(_, clock)| clock.is_off()).map(|(node, it)| (node, it.skew_ms)).collect()
}

pub fn shard(seen: &Observed, rates: &BTreeMap<ShardId, f64>, id: ShardId) -> v1::Shard {
    let leader = seen.leader(id);
    let mut members = seen.voters(id);
    members.extend(leader.iter().flat_map(|(_, group)| group.learners.clone()));
    let replicas = members.into_iter().map(|(replica, node)| {
        let found = seen.replica(node, id).filter(|group| group.replica == replica);
        let report = seen.reports.get(&node);
        let stopped = report.and_then(|it| it.stopped.iter().find(|it| it.replica == replica));
        let role = match found.map(|group| group.role) {
            Some(Role::Leader) if leader.is_some_and(|(at, _)| at == node) => {
                v1::ReplicaRole::Leader
            }
            Some(Role::Leader | Role::Follower | Role::Candidate) => v1::ReplicaRole::Follower,
            Some(Role::Learner) => v1::ReplicaRole::Learner,
            Some(Role::Stopped) => v1::ReplicaRole::Stopped,
            None if stopped.is_some() => v1::ReplicaRole::Stopped,
            None => v1::ReplicaRole::Missing,
        };
        v1::Replica {
            id: replica.0,
            node: node.0,
            role: role.into(),
            applied: found.map_or(0, |group| group.applied),
            reason: stopped.map(|it| it.reason.clone()).unwrap_or_default(),
        }
    });
    let sizes = seen.reports.values().flat_map(|report| &report.groups);
    let bytes = sizes.filter(|group| group.shard == id).map(|group| group.bytes).max();
    let task = seen.running().find(|task| task.shard == id.0);
    v1::Shard {
        id: id.0.into(),
        replicas: replicas.collect(),
        leader: leader.map_or(0, |(node, _)| node.0),
        term: leader.map_or(0, |(_, group)| group.term),
        committed: leader.map_or(0, |(_, group)| group.committed),
        bytes: bytes.unwrap_or(0),
        commands_per_second: rates.get(&id).copied().unwrap_or(0.0),
        task: task.map_or(0, |task| task.id),
    }
}

pub fn task(task: &Task, seen: Option<&Observed>) -> v1::Task {
    let moved = task.add.filter(|_| !task.is_over()).and_then(|add| {
        let group = seen?.replica(NodeId(add.node), ShardId(task.shard))?;
        Some(if group.receiving > 0 { group.receiving } else { group.bytes })
    });
    v1::Task {
        id: task.id,
        shard: task.shard.into(),
        from: task.remove.map_or(0, |side| side.node),
        to: task.add.map_or(0, |side| side.node),
        purpose: match task.purpose {
            Purpose::Asked => "asked".to_owned(),
            Purpose::Mend => "mend".to_owned(),
            Purpose::Balance => "balance".to_owned(),
            Purpose::Drain { node } => format!("drain node {node}"),
        },
        step: match task.step {
            Step::Create => "create",
            Step::Learn => "learn",
            Step::CatchUp => "catch_up",
            Step::Join => "join",
            Step::Record => "record",
            Step::Destroy => "destroy",
            Step::End => "end",
        }
        .to_owned(),
        state: match task.state {
            State::Running => v1::TaskState::Running,
            State::Undoing => v1::TaskState::Undoing,
            State::Done => v1::TaskState::Done,
            State::Canceled => v1::TaskState::Canceled,
            State::Failed => v1::TaskState::Failed,
        }
        .into(),
        created_at_ms: task.created_at_ms,
        changed_at_ms: task.changed_at_ms,
        entries_have: task.entries.0,
        entries_all: task.entries.1,
        bytes: task.bytes,
        bytes_moved: moved.unwrap_or(0),
        eta_ms: task.eta_ms(crate::clock::unix_now_ms()),
        error: task.error.clone().unwrap_or_default(),
        tries: task.tries,
    }
}

pub fn by(by: v1::RebalanceBy) -> By {
    match by {
        v1::RebalanceBy::Unspecified | v1::RebalanceBy::Bytes => By::Bytes,
        v1::RebalanceBy::Leaders => By::Leaders,
        v1::RebalanceBy::Load => By::Load,
    }
}

pub fn plan(plan: &Plan, by: By) -> v1::RebalanceResponse {
    let moves = plan.moves.iter().map(|planned| {
        let (from, to, leader) = match *planned {
            Move::Add { to, .. } => (0, to.0, false),
            Move::Replace { from, to, .. } => (from.0, to.0, false),
            Move::Rebuild { at, .. } => (at.0, at.0, false),
            Move::Remove { from, .. } => (from.0, 0, false),
            Move::Lead { to, .. } => (0, to.0, true),
        };
        v1::PlannedMove { shard: planned.shard().0.into(), from, to, leader }
    });
    let after = plan.after.weights(by);
    let weights = plan.before.weights(by).into_iter().map(|(node, before)| v1::Weight {
        node: node.0,
        before,
        after: after.get(&node).copied().unwrap_or(0),
    });
    v1::RebalanceResponse {
        moves: moves.collect(),
        weights: weights.collect(),
        tasks: plan.tasks.clone(),
    }
}

pub fn joined(joined: Joined) -> v1::JoinResponse {
    v1::JoinResponse {
        cluster_id: Bytes::copy_from_slice(&joined.cluster.0),
        node: joined.node.0,
        shards: joined.shards.get().into(),
        replicas: joined.replicas.get().into(),
        peers: joined.peers.into_iter().map(|(node, at)| (node.0, at)).collect(),
    }
}
