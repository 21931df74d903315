//! Reports followers that have lost entries they acknowledged to their own nodes, which quarantine
//! them: a follower that votes with a shorter log than it promised may elect a leader without
//! committed entries.
//!
//! The leader notices it (`raft/acknowledged.rs`). Does not decide whether the others can do
//! without the follower: its own node does (`raft/quarantine.rs`).

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use statehouse_store::{EntryId, ReplicaId};
use tokio::time::{MissedTickBehavior, interval};

use crate::raft::Group;
use crate::{NodeId, Shards};

/// Time between looks at the groups that this node leads.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Reports reverted followers until the shards are gone.
pub(crate) async fn run(shards: Weak<Shards>) {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported: BTreeSet<ReplicaId> = BTreeSet::new();
    loop {
        ticks.tick().await;
        let Some(shards) = shards.upgrade() else { return };
        let groups = shards.groups();
        for (replica, node, missing) in groups.iter().flat_map(reverted) {
            if reported.contains(&replica) {
                continue;
            }
            let detail = format!("it has lost entry {missing}, which it had acknowledged");
            match shards.control().report_damage(node, replica, &detail).await {
                Ok(()) => {
                    reported.insert(replica);
                }
                Err(error) => tracing::warn!(%replica, %node, %error, "it is not told so yet"),
            }
        }
    }
}

/// Returns the members of a group that have reverted, with their nodes and what they miss.
fn reverted(group: &Arc<Group>) -> Vec<(ReplicaId, NodeId, EntryId)> {
    let status = group.status();
    let node = |replica| status.voters.get(replica).or_else(|| status.learners.get(replica));
    let found = status.reverted.iter();
    found.filter_map(|(replica, missing)| Some((*replica, *node(replica)?, *missing))).collect()
}
