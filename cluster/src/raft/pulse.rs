//! The node's heartbeats for all groups that it leads, and its watch over silent peers.
//!
//! All groups beat at the same moment, so that their beats travel together. A follower whose
//! leader's node has fallen silent elects another as soon as the lease is out, without the random
//! wait that keeps strangers apart: followers take their turns by replica id.

use std::collections::{HashMap, HashSet};
use std::sync::Weak;
use std::time::{Duration, Instant};

use statehouse_store::ReplicaId;
use tokio::time::{MissedTickBehavior, interval};

use super::config::Config;
use super::group::Group;
use super::groups::Groups;
use crate::NodeId;

/// How often silent peers are looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

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
        for group in groups.all() {
            if group.leads() {
                // A stopped group has no one to beat for.
                let _ = group.raft.trigger().heartbeat().await;
            }
        }
    }
}

/// Has leaders elected for groups whose leader's node is silent, until the groups are gone.
pub(super) async fn watch_peers(groups: Weak<Groups>) {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tried: HashMap<ReplicaId, Instant> = HashMap::new();
    loop {
        ticks.tick().await;
        let Some(groups) = groups.upgrade() else { return };
        let config = groups.config();
        let silent = groups.peers().silent(config.silence_max);
        if silent.is_empty() {
            continue;
        }
        let now = Instant::now();
        for group in groups.all() {
            let Some(turn) = turn(&group, config, &silent) else { continue };
            let last = tried.get(&group.replica()).copied();
            let again = last.is_none_or(|last| now - last >= config.election_stagger);
            if now >= turn && again {
                tried.insert(group.replica(), now);
                tracing::info!(shard = %group.shard(), "the leader's node is silent: electing");
                // A stopped group elects nobody.
                let _ = group.raft.trigger().elect(true).await;
            }
        }
        tried.retain(|_, last| now - *last < config.election_timeout_max);
    }
}

/// From when on this replica may try to lead, if its leader's node is silent.
fn turn(group: &Group, config: &Config, silent: &HashSet<NodeId>) -> Option<Instant> {
    let leader = group.leader().filter(|leader| leader.replica != group.replica())?;
    if !silent.contains(&leader.node) {
        return None;
    }
    let heard = group.heard.lock().last()?;
    let others = group.voters().into_iter().filter(|voter| *voter != leader.replica);
    let rank = others.into_iter().position(|voter| voter == group.replica())? as u32;
    let lease = config.election_timeout_max + LEASE_MARGIN;
    Some(heard + lease + config.election_stagger * rank)
}
