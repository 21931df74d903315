//! Purges logs: what is durable in the state and no live follower needs goes.
//!
//! A follower that is alive and a little behind still gets entries; one that is far behind, or
//! has been away for long, gets a snapshot when it is back. How far behind is bounded in bytes.

use std::sync::Weak;

use openraft::async_runtime::WatchReceiver;
use statehouse_store::ReplicaId;
use tokio::time::{MissedTickBehavior, interval};

use super::group::Group;
use super::groups::Groups;
use super::types::entry_id_or_default;
use crate::NodeId;

/// Bytes of what no state has any more, for which a log is purged of all that no follower needs.
const GARBAGE_BYTES_MAX: u64 = 64 << 20;

/// Purges every log now and then, until the groups are gone.
pub(super) async fn run(groups: Weak<Groups>) {
    let Some(every) = groups.upgrade().map(|groups| groups.config().purge_interval) else {
        return;
    };
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(groups) = groups.upgrade() else { return };
        let config = groups.config();
        let away = |node: NodeId| {
            let silence = groups.peers().silence(node);
            silence.is_none_or(|(silence, _)| silence > config.follower_away_max)
        };
        for group in groups.all() {
            group.purge(away).await;
        }
    }
}

impl Group {
    /// Purges what was durable when last asked, and asks how far the state is durable now.
    async fn purge(&self, away: impl Fn(NodeId) -> bool) {
        if let Some(through) = self.purgeable(away) {
            // openraft counts from 0. A stopped group purges nothing.
            let _ = self.raft.trigger().purge_log(through - 1).await;
            self.retained.lock().purged(through);
        }
        let _ = self.raft.trigger().snapshot().await;
    }

    /// Index of the last entry that nobody needs, if enough can go.
    fn purgeable(&self, away: impl Fn(NodeId) -> bool) -> Option<u64> {
        let (durable, purged) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            (entry_id_or_default(metrics.snapshot), entry_id_or_default(metrics.purged))
        };
        // Space that waits for a purge is worth more than entries that nobody asks for.
        let hurry = self.wants_space();
        let kept = if hurry { 0 } else { self.config.log_entries_kept };
        let heavy = self.retained.lock().index_before(self.config.log_bytes_kept);
        let mut needed = durable.index.saturating_sub(kept).max(heavy.min(durable.index));
        let status = self.status();
        for (replica, node) in status.voters.iter().chain(&status.learners) {
            let follower = status.role == super::Role::Leader && *replica != self.replica;
            if follower && !away(*node) {
                needed = needed.min(matched(&status, *replica));
            }
        }
        needed = needed.min(self.transfers.held(self.shard).unwrap_or(u64::MAX));
        let over_budget = self.retained.lock().index_before(self.config.log_bytes_kept_max);
        let through = needed.max(over_budget.min(durable.index));
        // In runs, not entry by entry; a long log goes at once.
        let run = through >= purged.index + kept.max(1) || heavy.max(over_budget) > purged.index;
        (run && through > purged.index).then_some(through)
    }
}

impl Group {
    /// Whether much of what was deleted lies on disk until the log is purged, or the disk is short
    /// of space.
    fn wants_space(&self) -> bool {
        self.log.garbage_bytes() >= GARBAGE_BYTES_MAX || self.store.is_short_of_space()
    }
}

fn matched(status: &super::GroupStatus, replica: ReplicaId) -> u64 {
    status.matched.get(&replica).map_or(0, |matched| matched.index)
}
