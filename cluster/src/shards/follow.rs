//! Follows what all nodes share, from this node's own replica of shard 0.
//!
//! No stream to watch and nobody to ask: whatever is applied here is what this node knows. Every
//! node has such a replica, three of them with a vote.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Shards;
use crate::raft::Group;
use crate::{Error, Identity, META_SHARD, NodeId, meta};

/// How long a start waits for leaders before it serves what it can without.
const LEADERS_WAIT_MAX: Duration = Duration::from_secs(10);

/// How often a start that waits says so.
const SAY_INTERVAL: Duration = Duration::from_secs(10);

/// How often a start looks whether all is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Changes that come together are taken up together.
const GATHER: Duration = Duration::from_millis(5);

/// Follows until the shards are gone.
pub(super) async fn run(shards: Weak<Shards>) {
    loop {
        let Some(mut created) = shards.upgrade().map(|shards| shards.groups.changes()) else {
            return;
        };
        let group = shards.upgrade().and_then(|shards| shards.group(META_SHARD));
        match group {
            Some(group) => follow(&shards, &group).await,
            None => {
                if created.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Follows one replica until it is gone.
async fn follow(shards: &Weak<Shards>, group: &Arc<Group>) {
    let mut applied = group.applied();
    loop {
        applied.borrow_and_update();
        {
            let Some(shards) = shards.upgrade() else { return };
            if let Err(error) = take_up(&shards) {
                tracing::error!(%error, "what the cluster knows can't be read");
            }
            if let Err(error) = remember_peers(&shards).await {
                tracing::warn!(%error, "where the other nodes are is not written down");
            }
        }
        tokio::select! {
            changed = applied.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = replaced(shards, group) => return,
        }
        tokio::time::sleep(GATHER).await;
    }
}

/// Resolves when the node has another replica of shard 0, or none.
async fn replaced(shards: &Weak<Shards>, group: &Arc<Group>) {
    let Some(mut changes) = shards.upgrade().map(|shards| shards.groups.changes()) else { return };
    loop {
        let Some(now) = shards.upgrade().map(|shards| shards.group(META_SHARD)) else { return };
        if now.is_none_or(|now| now.replica() != group.replica())
            || changes.changed().await.is_err()
        {
            return;
        }
    }
}

fn take_up(shards: &Arc<Shards>) -> Result<(), Error> {
    let _taking_up = shards.taking_up.lock();
    let (topology, removed) = meta::topology(shards)?;
    if topology.epoch < shards.topology.load().epoch {
        // A replica that takes the place of one that has stopped knows less at first.
        return Ok(());
    }
    let peers = shards.groups.peers();
    if !topology.nodes.is_empty() {
        let known = topology.nodes.iter().filter(|(_, member)| !member.peer_address.is_empty());
        let book = known.map(|(node, member)| (*node, member.peer_address.clone())).collect();
        peers.set_addresses(book);
    }
    if removed.contains(&peers.node()) {
        shards.removed.send_replace(true);
    }
    peers.set_removed(removed.into_iter().collect());
    if **shards.topology.load() != topology {
        shards.topology.store(Arc::new(topology));
    }
    shards.changes.send_modify(|changes| *changes += 1);
    Ok(())
}

/// Writes down where the other nodes are: a start without a replica of shard 0, since that is
/// damaged, has to tell one of them where this node is.
async fn remember_peers(shards: &Arc<Shards>) -> Result<(), Error> {
    let me = shards.me();
    let topology = shards.topology.load_full();
    let others = topology.nodes.iter().filter(|(node, _)| **node != me);
    let known = others.filter(|(_, member)| !member.peer_address.is_empty());
    let peers: BTreeMap<NodeId, String> =
        known.map(|(node, member)| (*node, member.peer_address.clone())).collect();
    if peers.is_empty() || *shards.peers_known.lock() == peers {
        return Ok(());
    }
    let Some(identity) = Identity::read(&shards.store)? else { return Ok(()) };
    if identity.peers != peers && !identity.founding {
        Identity { peers: peers.clone(), ..identity }.write(&shards.store).await?;
    }
    *shards.peers_known.lock() = peers;
    Ok(())
}

/// Returns when this node can serve: it has its replica of shard 0, up to date, and knows what
/// time it is and who leads its groups. Goes without the leaders if they do not show in time.
pub(super) async fn ready(shards: &Arc<Shards>) -> Result<(), Error> {
    let mut said = tokio::time::Instant::now();
    let begun = said;
    loop {
        let meta = shards.group(META_SHARD);
        let informed = !shards.topology.load().nodes.is_empty();
        let led = || shards.groups().iter().all(|group| group.leader().is_some());
        if let Some(meta) = &meta {
            let late = informed && begun.elapsed() > LEADERS_WAIT_MAX;
            if late {
                tracing::warn!("serving, though not every shard has a leader");
                return Ok(());
            }
            if led()
                && shards.groups.peers().clock().is_settled()
                && tokio::time::timeout(LOOK_INTERVAL * 10, meta.catch_up())
                    .await
                    .is_ok_and(|it| it.is_ok())
            {
                let local = shards.groups();
                let led_here = local.iter().filter(|group| group.leads());
                let applied = led_here.map(Group::linearizable);
                let all = futures::future::try_join_all(applied);
                if tokio::time::timeout(LEADERS_WAIT_MAX, all).await.is_ok_and(|it| it.is_ok()) {
                    return take_up(shards);
                }
            }
        }
        if said.elapsed() > SAY_INTERVAL {
            said = tokio::time::Instant::now();
            let what = if meta.is_some() { "leaders" } else { "a replica of shard 0" };
            tracing::info!(waiting_for = what, "not ready yet");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
