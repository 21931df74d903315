//! What this node's store does at its next start with replicas that have lost acknowledged rows.
//!
//! The store is opened before anything is known of the cluster, so it is told beforehand, and keeps
//! it: as long as the other voters of every shard that this node has a replica of are a quorum
//! without it, such replicas are put in quarantine and rebuilt from the others. A node that
//! somebody's data depends on refuses to start: a person may accept the loss there.
//!
//! Where a start has set a whole database aside, its files are removed once every replica that was
//! in it is rebuilt.

use std::sync::{Arc, Weak};
use std::time::Duration;

use statehouse_store::DamagePolicy;
use tokio::time::{MissedTickBehavior, interval};

use super::Shards;
use crate::raft::Group;

/// How often memberships are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Keeps the store's policy in step with the groups' members, until the shards are gone.
pub(super) async fn run(shards: Weak<Shards>) {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut told, mut tidied) = (None, false);
    loop {
        ticks.tick().await;
        let Some(shards) = shards.upgrade() else { return };
        let Some(policy) = policy(&shards.groups()) else { continue };
        if !tidied && policy == DamagePolicy::Quarantine && shards.groups.stopped().is_empty() {
            tidied = remove_set_aside(&shards).await;
        }
        if told == Some(policy) {
            continue;
        }
        let store = shards.store().clone();
        let set = tokio::task::spawn_blocking(move || store.set_damage_policy(policy)).await;
        match set {
            Ok(Ok(())) => {
                tracing::info!(?policy, "policy for damage found at a start");
                told = Some(policy);
            }
            Ok(Err(error)) => tracing::warn!(%error, "the policy for damage is not written down"),
            Err(error) => tracing::warn!(%error, "the policy for damage is not written down"),
        }
    }
}

/// Removes databases that were set aside, since nothing of them is missing any more. Returns
/// whether that is done.
async fn remove_set_aside(shards: &Shards) -> bool {
    let store = shards.store().clone();
    let removed = tokio::task::spawn_blocking(move || store.remove_set_aside()).await;
    match removed {
        Ok(Ok(0)) => true,
        Ok(Ok(count)) => {
            tracing::info!(target: "audit", count, "databases that were set aside are removed");
            true
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "a database that was set aside stays");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "a database that was set aside stays");
            false
        }
    }
}

/// The policy that the groups' members allow; `None` as long as that is not sure.
fn policy(groups: &[Arc<Group>]) -> Option<DamagePolicy> {
    if groups.is_empty() {
        return None;
    }
    let mut spared = true;
    for group in groups {
        spared &= group.status().can_do_without(group.replica())?;
    }
    Some(if spared { DamagePolicy::Quarantine } else { DamagePolicy::Refuse })
}
