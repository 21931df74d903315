//! Tells those who wait at a leader that has lost its quorum.
//!
//! openraft refuses new entries of a leader that no quorum has answered within the lease, but an
//! entry that was proposed before waits for as long as the network is cut, and what waits behind
//! it waits too. So one task looks at all groups: where no quorum has answered for the lease, and
//! the task itself has seen that for as long again, everyone who waits is told. The second half is
//! there because a process that stood still finds every answer old, and has a quorum all the same.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::{Duration, Instant};

use statehouse_store::ReplicaId;
use tokio::time::{MissedTickBehavior, interval};

use super::groups::Groups;

/// How often all groups are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Looks until the groups are gone.
pub(super) async fn watch(groups: Weak<Groups>) {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut since: HashMap<ReplicaId, Instant> = HashMap::new();
    loop {
        ticks.tick().await;
        let Some(groups) = groups.upgrade() else { return };
        let patience = groups.config().election_timeout_max;
        let now = Instant::now();
        let all = groups.all();
        // One that follows by now may still have entries on their way from when it led.
        let apart: Vec<_> = all
            .iter()
            .filter(|group| (group.leads() || group.has_waiting()) && !group.leads_a_quorum())
            .collect();
        since.retain(|replica, _| apart.iter().any(|group| group.replica() == *replica));
        for group in apart {
            let since = *since.entry(group.replica()).or_insert(now);
            if now - since < patience || !group.has_waiting() {
                continue;
            }
            tracing::debug!(shard = %group.shard(), "refuses what waits: it has no quorum");
            group.give_up_waiting();
        }
    }
}
