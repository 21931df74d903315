//! Purges logs: what is durable in the state and no live follower needs goes.
//!
//! A follower that is alive and a little behind still gets entries; one that is far behind, or
//! has been away for long, gets a snapshot when it is back. How far behind is bounded in bytes.

use std::sync::Weak;

use openraft::async_runtime::WatchReceiver;
use tokio::time::{MissedTickBehavior, interval};

use super::group::Group;
use super::groups::Groups;
use super::types::entry_id_or_default;

/// Purges every log now and then, until the groups are gone.
pub(super) async fn run(groups: Weak<Groups>) {
    let Some(every) = groups.upgrade().map(|groups| groups.config().checkpoint_interval) else {
        return;
    };
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(groups) = groups.upgrade() else { return };
        for group in groups.all() {
            group.checkpoint().await;
        }
    }
}

impl Group {
    /// Purges what was durable at the last checkpoint, and asks how far the state is durable now.
    pub(super) async fn checkpoint(&self) {
        if let Some(upto) = self.purgeable() {
            // openraft counts from 0. A stopped group purges nothing.
            let _ = self.raft.trigger().purge_log(upto - 1).await;
        }
        let _ = self.raft.trigger().snapshot().await;
    }

    /// Index of the last entry that nobody needs.
    fn purgeable(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let durable = entry_id_or_default(metrics.snapshot).index;
        let purged = entry_id_or_default(metrics.purged).index;
        let behind = metrics.replication.iter().flatten();
        let matched = behind.map(|(_, matched)| entry_id_or_default(*matched).index).min();
        let needed = matched.unwrap_or(durable).min(durable);
        let upto = needed.saturating_sub(self.config.log_entries_kept);
        // In runs, not entry by entry.
        (upto >= purged + self.config.log_entries_kept).then_some(upto)
    }
}
