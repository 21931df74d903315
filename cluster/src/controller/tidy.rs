//! What a cluster needs besides its plan: a learner of shard 0 on every node, no replica that
//! belongs to nothing, no endless list of old tasks.

use std::sync::Arc;

use statehouse_store::ReplicaId;

use super::observe::Observed;
use crate::control::{Change, GroupReport};
use crate::meta;
use crate::task::Side;
use crate::{Error, META_SHARD, NodeId, ShardId, Shards};

/// Tasks that are over and remembered.
const TASKS_KEPT: usize = 256;

/// Gives every member that answers a replica of shard 0, without a vote if need be: it follows
/// nodes, placements and the catalog from it. Answers whether anything changed.
pub(super) async fn learners(shards: &Arc<Shards>, seen: &Observed) -> Result<bool, Error> {
    let Some((leader, group)) = seen.leader(META_SHARD) else { return Ok(false) };
    let mut changed = false;
    let busy = seen.running().any(|task| task.shard == META_SHARD.0);
    for (node, row) in seen.members() {
        let votes = group.voters.values().any(|at| *at == node);
        let learns = |(replica, at): (&ReplicaId, &NodeId)| {
            *at == node && seen.stopped(node, *replica).is_none()
        };
        let known = votes || group.learners.iter().any(learns);
        if known || busy || row.peer_address.is_empty() || !seen.answers(node) {
            continue;
        }
        // One that was made and not added yet is as good as a new one.
        let replica = match seen.replica(node, META_SHARD) {
            Some(found) => found.replica,
            None => meta::take_replica_id(shards).await?,
        };
        let control = shards.control();
        control.create(node, META_SHARD, replica).await?;
        control.change(leader, META_SHARD, Change::AddLearner { replica, node }).await?;
        tracing::info!(%node, "the node follows shard 0");
        changed = true;
    }
    let learners: Vec<(ReplicaId, NodeId)> =
        group.learners.iter().map(|(replica, node)| (*replica, *node)).collect();
    for (replica, node) in learners {
        let member = seen.members().any(|(id, _)| id == node);
        let stopped = seen.answers(node) && seen.stopped(node, replica).is_some();
        if (!member || stopped) && !busy {
            let change = Change::RemoveLearner { replica };
            shards.control().change(leader, META_SHARD, change).await?;
            changed = true;
        }
    }
    Ok(changed)
}

/// Lets learners go that no task brings up: an undone task may have left one behind. Answers
/// whether there was one.
pub(super) async fn left_learners(shards: &Arc<Shards>, seen: &Observed) -> Result<bool, Error> {
    let mut changed = false;
    for shard in seen.placements.keys().copied().filter(|shard| *shard != META_SHARD) {
        let Some((leader, group)) = seen.leader(shard) else { continue };
        for replica in group.learners.keys().copied().filter(|id| !is_coming(seen, *id)) {
            tracing::info!(%shard, %replica, "letting a learner go that no task brings up");
            let change = Change::RemoveLearner { replica };
            match shards.control().change(leader, shard, change).await {
                Ok(()) => changed = true,
                Err(error) => tracing::warn!(%shard, %replica, %error, "the learner stays"),
            }
        }
    }
    Ok(changed)
}

/// Ends replicas that no group knows and no task needs: left behind by a node that was away when
/// its replica was moved.
pub(super) async fn strays(shards: &Arc<Shards>, seen: &Observed) {
    for (node, report) in &seen.reports {
        let live = report.groups.iter().filter(|group| is_stray(seen, group));
        let live = live.map(|group| (group.shard, group.replica));
        // Learners of shard 0 come without a task; one that has stopped is a stray as well.
        let stopped = report.stopped.iter().map(|it| (it.shard, it.replica));
        let stopped = stopped.filter(|(shard, replica)| is_left(seen, *shard, *replica));
        for (shard, replica) in live.chain(stopped).collect::<Vec<_>>() {
            let Some(left_at) = seen.left_at(shard, replica) else { continue };
            tracing::info!(%node, %shard, %replica, "ending a replica that belongs to nothing");
            let control = shards.control();
            if let Err(error) = control.destroy(*node, shard, (replica, left_at)).await {
                tracing::warn!(%node, %shard, %replica, %error, "it is still there");
            }
        }
    }
}

/// Whether a task is about to add a replica.
fn is_coming(seen: &Observed, replica: ReplicaId) -> bool {
    seen.running().any(|task| task.add.is_some_and(|side| side.replica == replica.0))
}

/// Whether a replica is neither a member, nor placed, nor part of a task.
fn is_left(seen: &Observed, shard: ShardId, replica: ReplicaId) -> bool {
    let placed = seen.placements.get(&shard);
    let placed = placed.is_some_and(|row| row.replicas().any(|(id, _)| id == replica));
    let goes = |side: Option<Side>| side.is_some_and(|side| side.replica == replica.0);
    let moved = seen.running().any(|task| goes(task.add) || goes(task.remove));
    seen.left_at(shard, replica).is_some() && !placed && !moved
}

/// Whether the shard's leader knows nothing of a replica, and nobody is about to add it.
fn is_stray(seen: &Observed, group: &GroupReport) -> bool {
    let leads = seen.leader(group.shard).is_some_and(|(_, it)| it.replica == group.replica);
    // Learners of shard 0 come without a task.
    group.shard != META_SHARD && !leads && is_left(seen, group.shard, group.replica)
}

/// Forgets the oldest tasks that are over.
pub(super) async fn forget(shards: &Shards, seen: &Observed) -> Result<(), Error> {
    let over: Vec<u64> = seen.tasks.values().filter(|it| it.is_over()).map(|it| it.id).collect();
    let old = over.len().saturating_sub(TASKS_KEPT);
    for task in &over[..old] {
        meta::forget_task(shards, *task).await?;
    }
    Ok(())
}
