//! What people ask of a cluster: members in and out, replicas and leads moved, tasks undone.
//!
//! Any node carries it out: what is decided is written to shard 0, wherever that is led; the
//! controller does the rest. What must not be is refused before anything is written.

use std::num::NonZeroU16;
use std::sync::Arc;

use statehouse_store::ReplicaId;

use crate::clock::unix_now_ms;
use crate::control::Change;
use crate::controller::observe::{Observed, observe};
use crate::meta::{self, NodeRow, NodeState};
use crate::placement::{By, Move, Refusal, View};
use crate::task::{Purpose, Side, State, Step, Task, TaskId};
use crate::{ClusterId, Error, META_SHARD, NodeId, ShardId, Shards};

/// What a node that joins is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub node: NodeId,
    /// Shards that hold states.
    pub shards: NonZeroU16,
    /// Replicas that each should have.
    pub replicas: NonZeroU16,
    /// Peer addresses of the nodes there are.
    pub peers: Vec<(NodeId, String)>,
}

/// Makes the owner of a fresh disk a member. The same disk again gets the same id.
pub async fn join(shards: &Arc<Shards>, store: [u8; 16]) -> Result<Joined, Error> {
    shards.catch_up().await?;
    let nodes = meta::nodes(shards)?;
    let known = nodes.iter().find(|(_, row)| row.store == store);
    let node = match known {
        Some((node, row)) if row.state == NodeState::Removed => {
            let reason = format!("this disk was node {node}'s, which was removed: use a fresh one");
            return Err(Error::Refused(Refusal::Disk(reason)));
        }
        Some((node, _)) => *node,
        None => {
            let node = meta::take_node_id(shards).await?;
            meta::change_node(shards, node, |row| Ok(row.is_none().then(|| NodeRow::new(store))))
                .await?;
            node
        }
    };
    let cluster = cluster_row(shards)?;
    let peers = meta::nodes(shards)?.into_iter();
    let peers =
        peers.filter(|(_, row)| row.state != NodeState::Removed && !row.peer_address.is_empty());
    Ok(Joined {
        cluster: shards.cluster(),
        node,
        shards: cluster.shards,
        replicas: cluster.replicas,
        peers: peers.map(|(node, row)| (node, row.peer_address)).collect(),
    })
}

fn cluster_row(shards: &Shards) -> Result<meta::ClusterRow, Error> {
    let row = meta::cluster(shards)?;
    row.ok_or_else(|| Error::Invalid("the cluster's row is missing".to_owned()))
}

/// Writes a task down that makes a move, if it may be made.
pub(crate) async fn begin(
    shards: &Arc<Shards>,
    seen: &Observed,
    wanted: Move,
    purpose: Purpose,
) -> Result<Task, Error> {
    seen.view(&Default::default()).check(wanted)?;
    let shard = wanted.shard();
    let voters = seen.voters(shard);
    let stopped = seen.stopped_voters(shard);
    let leaving = |from: NodeId| {
        let on = |(_, node): &(&ReplicaId, &NodeId)| **node == from;
        // Of two on one node, one half rebuilt, it is the stopped one.
        let found = stopped.iter().find(on).or_else(|| voters.iter().find(on));
        found.map(|(replica, node)| Side { replica: replica.0, node: node.0 })
    };
    let (to, from) = match wanted {
        Move::Add { to, .. } => (Some(to), None),
        Move::Replace { from, to, .. } => (Some(to), Some(from)),
        Move::Rebuild { at, .. } => (Some(at), Some(at)),
        Move::Remove { from, .. } => (None, Some(from)),
        Move::Lead { .. } => (None, None),
    };
    let add = match to {
        Some(to) => Some(Side { replica: coming(shards, seen, shard, to).await?.0, node: to.0 }),
        None => None,
    };
    let id = meta::take_task_id(shards).await?;
    let mut task = Task::new(id, shard.0, (add, from.and_then(leaving)), purpose, unix_now_ms());
    task.bytes = seen.leader(shard).map_or(0, |(_, group)| group.bytes);
    // The row first: a claim without its task would hold the shard for ever.
    meta::change_task(shards, id, |_| Ok(Some(task.clone()))).await?;
    let claimed = meta::change_placement(shards, shard, |row| {
        let mut row = row.ok_or(Refusal::UnknownShard(shard))?;
        if row.task.is_some() {
            return Ok(None);
        }
        row.task = Some(id);
        Ok(Some(row))
    });
    if claimed.await?.is_none_or(|row| row.task != Some(id)) {
        meta::change_task(shards, id, |row| {
            Ok(row.map(|row| Task { state: State::Failed, step: Step::End, ..row }))
        })
        .await?;
        return Err(Refusal::Busy(shard).into());
    }
    Ok(task)
}

/// The id of the replica that comes to a node: shard 0 may have a learner there already.
async fn coming(
    shards: &Arc<Shards>,
    seen: &Observed,
    shard: ShardId,
    to: NodeId,
) -> Result<ReplicaId, Error> {
    let learners = seen.leader(shard).map(|(_, group)| &group.learners);
    let good = |(replica, node): &(&ReplicaId, &NodeId)| {
        **node == to && seen.stopped(to, **replica).is_none()
    };
    let learner = learners.and_then(|all| all.iter().find(good));
    match learner {
        Some((replica, _)) if shard == META_SHARD => Ok(*replica),
        _ => meta::take_replica_id(shards).await,
    }
}

/// Moves one replica of a shard from a node to another.
pub async fn move_shard(
    shards: &Arc<Shards>,
    shard: ShardId,
    from: NodeId,
    to: NodeId,
) -> Result<Task, Error> {
    let seen = fresh(shards).await?;
    begin(shards, &seen, Move::Replace { shard, from, to }, Purpose::Asked).await
}

async fn fresh(shards: &Arc<Shards>) -> Result<Observed, Error> {
    shards.catch_up().await?;
    observe(shards, true).await
}

/// Has another node's replica lead a shard; returns when it does.
pub async fn transfer_leader(
    shards: &Arc<Shards>,
    shard: ShardId,
    to: NodeId,
) -> Result<(), Error> {
    let seen = fresh(shards).await?;
    seen.view(&Default::default()).check(Move::Lead { shard, to })?;
    lead(shards, &seen, shard, to).await
}

pub(crate) async fn lead(
    shards: &Arc<Shards>,
    seen: &Observed,
    shard: ShardId,
    to: NodeId,
) -> Result<(), Error> {
    let nobody = || Error::NotLeader { shard, leader: None };
    let (leader, group) = seen.leader(shard).ok_or_else(nobody)?;
    if leader == to {
        return Ok(());
    }
    let replica = group.voters.iter().find(|(_, node)| **node == to).map(|(replica, _)| *replica);
    let replica = replica.ok_or(Refusal::Absent { shard, node: to })?;
    shards.control().change(leader, shard, Change::Lead { replica }).await
}

/// A plan, and what it makes of the nodes.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What to do.
    pub moves: Vec<Move>,
    /// As it is.
    pub before: View,
    /// As it would be.
    pub after: View,
    /// Tasks that were begun.
    pub tasks: Vec<TaskId>,
}

/// Plans what makes nodes more even, and begins it unless it's only simulated. Moves that can't
/// begin now, since their shard is being changed, are left out.
pub async fn rebalance(
    shards: &Arc<Shards>,
    by: By,
    loads: &std::collections::BTreeMap<ShardId, f64>,
    simulate: bool,
) -> Result<Plan, Error> {
    let seen = fresh(shards).await?;
    let before = seen.view(loads);
    let moves = before.balance(by);
    let after = before.after(&moves);
    let mut tasks = Vec::new();
    for wanted in moves.iter().filter(|_| !simulate) {
        match *wanted {
            Move::Lead { shard, to } => lead(shards, &seen, shard, to).await?,
            wanted => match begin(shards, &seen, wanted, Purpose::Balance).await {
                Ok(task) => tasks.push(task.id),
                Err(Error::Refused(Refusal::Busy(_))) => {}
                Err(error) => return Err(error),
            },
        }
    }
    Ok(Plan { moves, before, after, tasks })
}

/// Has a node's replicas go elsewhere, or lets some come again.
pub async fn set_draining(shards: &Arc<Shards>, node: NodeId, draining: bool) -> Result<(), Error> {
    let seen = fresh(shards).await?;
    if draining {
        // Refused now rather than never done.
        seen.view(&Default::default()).drain(node)?;
    }
    let state = if draining { NodeState::Draining } else { NodeState::Active };
    meta::change_node(shards, node, |row| {
        let row = row.filter(|row| row.state != NodeState::Removed);
        let row = row.ok_or(Refusal::UnknownNode(node))?;
        Ok((row.state != state).then(|| row.with_state(state)))
    })
    .await
    .map(|_| ())
}

/// Takes a node out for ever. It must have no replica that votes; if it's alive it must have been
/// drained.
pub async fn remove_node(shards: &Arc<Shards>, node: NodeId) -> Result<(), Error> {
    let seen = fresh(shards).await?;
    let member = seen.members().any(|(id, _)| id == node);
    if !member {
        return Err(Refusal::UnknownNode(node).into());
    }
    let placed = seen.placements.iter().filter(|(shard, row)| {
        row.replicas().any(|(_, at)| at == node)
            || seen.voters(**shard).values().any(|at| *at == node)
    });
    let replicas = placed.count();
    if replicas > 0 {
        return Err(Refusal::Full { node, replicas }.into());
    }
    let moving = seen.running().find(|task| {
        let sides = [task.add, task.remove];
        sides.into_iter().flatten().any(|side| side.node == node.0)
    });
    if let Some(task) = moving {
        return Err(Refusal::Busy(ShardId(task.shard)).into());
    }
    meta::change_node(shards, node, |row| {
        let row = row.ok_or(Refusal::UnknownNode(node))?;
        Ok((row.state != NodeState::Removed).then(|| row.with_state(NodeState::Removed)))
    })
    .await
    .map(|_| ())
}

/// Moves every replica of a node to another one.
pub async fn replace_node(
    shards: &Arc<Shards>,
    node: NodeId,
    with: NodeId,
) -> Result<Vec<TaskId>, Error> {
    let seen = fresh(shards).await?;
    let view = seen.view(&Default::default());
    let placed = view.shards.iter().filter(|shard| shard.nodes.contains(&node));
    let moves: Vec<Move> =
        placed.map(|shard| Move::Replace { shard: shard.id, from: node, to: with }).collect();
    if !seen.members().any(|(id, _)| id == node) {
        return Err(Refusal::UnknownNode(node).into());
    }
    // All or none.
    for wanted in &moves {
        view.check(*wanted)?;
    }
    meta::change_node(shards, node, |row| Ok(row.map(|row| row.with_state(NodeState::Draining))))
        .await?;
    let mut tasks = Vec::new();
    for wanted in moves {
        let purpose = Purpose::Drain { node: node.0 };
        tasks.push(begin(shards, &seen, wanted, purpose).await?.id);
    }
    Ok(tasks)
}

/// One task.
pub async fn task(shards: &Arc<Shards>, id: TaskId) -> Result<Task, Error> {
    shards.catch_up().await?;
    meta::tasks(shards)?.remove(&id).ok_or_else(|| unknown_task(id))
}

fn unknown_task(id: TaskId) -> Error {
    Error::Unknown { kind: "task", name: id.to_string() }
}

/// Undoes a task, if its shard's members are as they were.
pub async fn cancel(shards: &Arc<Shards>, id: TaskId) -> Result<Task, Error> {
    shards.catch_up().await?;
    let changed = meta::change_task(shards, id, |task| {
        let mut task = task.ok_or_else(|| unknown_task(id))?;
        let before = task.clone();
        if !task.cancel(unix_now_ms()) {
            return Err(Refusal::TooLate { task: id, step: format!("{:?}", task.step) }.into());
        }
        Ok((task != before).then_some(task))
    });
    changed.await?.ok_or_else(|| unknown_task(id))
}

/// Holds every task where it is, or lets all go on.
pub async fn set_paused(shards: &Arc<Shards>, paused: bool) -> Result<(), Error> {
    shards.catch_up().await?;
    meta::change_cluster(shards, |row| row.paused = paused).await.map(|_| ())
}

/// Everything, as it is now; with sizes on disk.
pub async fn look(shards: &Arc<Shards>) -> Result<Observed, Error> {
    observe(shards, true).await
}
