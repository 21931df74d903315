//! The node's heartbeats for all groups that it leads, and its elections where nobody leads.
//!
//! All groups beat at the same moment, so that their beats travel together. openraft's own clocks
//! are off: one task looks after all groups, instead of one in each that wakes all the time.
//!
//! A follower that has not heard its leader for the lease and a random time wants to lead, as in
//! the Raft paper (5.2). Where the leader's whole node has fallen silent it does not wait for the
//! random time, which is there to keep strangers apart: followers take their turns by replica id
//! as soon as the lease is out. Every wish is a pre-vote first.

use std::collections::{HashMap, HashSet};
use std::sync::Weak;
use std::time::{Duration, Instant};

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use rand::Rng;
use statehouse_store::ReplicaId;
use tokio::time::{MissedTickBehavior, interval};

use super::config::Config;
use super::group::Group;
use super::groups::Groups;
use crate::NodeId;

/// How often silent peers are looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Of so many looks one is at every group, whether or not a peer is silent.
const LOOKS_PER_ROUND: u32 = 4;

/// A lease is over this long after openraft's own clock may say so.
const LEASE_MARGIN: Duration = Duration::from_millis(5);

/// Beats for all groups that this node leads, until the groups are gone.
pub(super) async fn beat(groups: Weak<Groups>) {
    let Some(every) = groups.upgrade().map(|groups| groups.config().heartbeat_interval) else {
        return;
    };
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(groups) = groups.upgrade() else { return };
        let short = groups.short_of_space();
        for group in groups.all() {
            group.look_for_room(&short);
            if group.leads() {
                // A stopped group has no one to beat for.
                let _ = group.raft.trigger().heartbeat().await;
            }
        }
    }
}

/// When a group last wished to lead, and how long it waits until it does again.
struct Wish {
    at: Option<Instant>,
    patience: Duration,
}

/// Has leaders elected where there are none, until the groups are gone.
pub(super) async fn elect(groups: Weak<Groups>) {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut wishes: HashMap<ReplicaId, Wish> = HashMap::new();
    let mut looks = 0u32;
    loop {
        ticks.tick().await;
        let Some(groups) = groups.upgrade() else { return };
        let config = groups.config();
        let silent = groups.peers().silent(config.silence_max);
        looks = looks.wrapping_add(1);
        if silent.is_empty() && !looks.is_multiple_of(LOOKS_PER_ROUND) {
            continue;
        }
        let now = Instant::now();
        let mut seen = HashSet::new();
        for group in groups.all() {
            let Some(want) = group.want(config, &silent) else { continue };
            seen.insert(group.replica());
            let patience = || rand::rng().random_range(config.election_timeouts());
            let wish = wishes
                .entry(group.replica())
                .or_insert_with(|| Wish { at: None, patience: patience() });
            let last = wish.at.map_or(want.since, |at| at.max(want.since));
            let due = match want.after {
                After::Turn(wait) => (want.since + wait).max(last + config.election_stagger),
                After::Lease(lease) => last + lease + wish.patience,
                After::Nothing => wish.at.map_or(want.since, |_| last + wish.patience),
            };
            if now < due {
                continue;
            }
            *wish = Wish { at: Some(now), patience: patience() };
            tracing::debug!(shard = %group.shard(), "wants to lead");
            // A stopped group elects nobody.
            let _ = group.raft.trigger().elect(want.others).await;
        }
        wishes.retain(|replica, _| seen.contains(replica));
    }
}

/// That a replica may want to lead.
struct Want {
    /// When something was last heard or happened.
    since: Instant,
    after: After,
    /// There are others to ask first.
    others: bool,
}

/// How long after that.
enum After {
    /// It votes alone.
    Nothing,
    /// The leader's node is silent: after the lease, and those whose turn is before.
    Turn(Duration),
    /// After the lease, if there is one, and a random time.
    Lease(Duration),
}

impl Group {
    /// Whether this replica may want to lead; `None` if it leads or has no vote.
    fn want(&self, config: &Config, silent: &HashSet<NodeId>) -> Option<Want> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        match metrics.state {
            ServerState::Follower | ServerState::Candidate => {}
            ServerState::Leader | ServerState::Learner | ServerState::Shutdown => return None,
        }
        let membership = &metrics.membership_config;
        let voters: Vec<u64> = membership.voter_ids().collect();
        // As long as its going is not committed, those who do not know of it may need its vote.
        let mut committed = metrics.committed_membership_config.voter_ids();
        if !voters.contains(&self.replica.0) && !committed.any(|voter| voter == self.replica.0) {
            return None;
        }
        let (since, heard) = {
            let heard = self.heard.lock();
            (heard.since(), heard.last())
        };
        if voters == [self.replica.0] {
            return Some(Want { since, after: After::Nothing, others: false });
        }
        let leader = metrics.current_leader.filter(|leader| *leader != self.replica.0);
        // A lease counts from what was heard since the start.
        let after = match leader.zip(heard) {
            None => After::Lease(Duration::ZERO),
            Some((leader, _)) => {
                let lease = config.election_timeout_max;
                let node = membership.get_node(&leader).map(|member| NodeId(member.node));
                let others = voters.iter().filter(|voter| **voter != leader);
                let rank = others.take_while(|voter| **voter != self.replica.0).count() as u32;
                match node.is_some_and(|node| silent.contains(&node)) {
                    true => After::Turn(lease + LEASE_MARGIN + config.election_stagger * rank),
                    false => After::Lease(lease),
                }
            }
        };
        Some(Want { since, after, others: true })
    }
}
