//! What a cluster needs besides its plan: a learner of shard 0 on every node, no replica that
//! belongs to nothing, no endless list of old tasks.

use std::sync::Arc;

use statehouse_store::ReplicaId;

use super::observe::Observed;
use crate::control::{Change, GroupReport};
use crate::meta;
use crate::{Error, META_SHARD, NodeId, Shards};

/// Tasks that are over and remembered.
const TASKS_KEPT: usize = 256;

/// Gives every member that answers a replica of shard 0, without a vote if need be: it follows
/// nodes, placements and the catalog from it. Answers whether anything changed.
pub(super) async fn learners(shards: &Arc<Shards>, seen: &Observed) -> Result<bool, Error> {
    let Some((leader, group)) = seen.leader(META_SHARD) else { return Ok(false) };
    let mut changed = false;
    let busy = seen.running().any(|task| task.shard == META_SHARD.0);
    for (node, row) in seen.members() {
        let known = group.voters.values().chain(group.learners.values()).any(|at| *at == node);
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
        if !member && !busy {
            let change = Change::RemoveLearner { replica };
            shards.control().change(leader, META_SHARD, change).await?;
            changed = true;
        }
    }
    Ok(changed)
}

/// Ends replicas that no group knows and no task needs: left behind by a node that was away when
/// its replica was moved.
pub(super) async fn strays(shards: &Arc<Shards>, seen: &Observed) {
    for (node, report) in &seen.reports {
        for group in &report.groups {
            if is_stray(seen, group) {
                let (shard, replica) = (group.shard, group.replica);
                tracing::info!(%node, %shard, %replica, "ending a replica that belongs to nothing");
                if let Err(error) = shards.control().destroy(*node, shard, replica).await {
                    tracing::warn!(%node, %shard, %replica, %error, "it is still there");
                }
            }
        }
    }
}

/// Whether the shard's leader knows nothing of a replica, and nobody is about to add it.
fn is_stray(seen: &Observed, group: &GroupReport) -> bool {
    let Some((_, leader)) = seen.leader(group.shard) else { return false };
    let known = |replica: ReplicaId| {
        leader.voters.contains_key(&replica) || leader.learners.contains_key(&replica)
    };
    let placed = seen.placements.get(&group.shard);
    let placed = placed.is_some_and(|row| row.replicas().any(|(id, _)| id == group.replica));
    let coming =
        seen.running().any(|task| task.add.is_some_and(|side| side.replica == group.replica.0));
    // Learners of shard 0 come without a task.
    group.shard != META_SHARD
        && group.replica != leader.replica
        && !known(group.replica)
        && !placed
        && !coming
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
