//! What is asked of this very node: done here.

use std::sync::Arc;

use statehouse_store::{Command, Reply, Store};

use super::{ANSWER_WAIT_MAX, Change, GroupReport, NodeReport};
use crate::raft::{Direction, Group, Groups, Role};
use crate::{Error, ShardId};

/// What RocksDB says of a replica's size: its files, and what is not in files yet.
const SIZES: [&str; 3] = [
    "rocksdb.live-sst-files-size",
    "rocksdb.live-blob-file-size",
    "rocksdb.cur-size-all-mem-tables",
];

fn replica_of(groups: &Groups, shard: ShardId) -> Result<Arc<Group>, Error> {
    groups.get(shard).ok_or(Error::NotLeader { shard, leader: None })
}

/// Proposes, and awaits the reply.
pub async fn propose(
    groups: &Groups,
    shard: ShardId,
    command: Command,
) -> Result<(Reply, u64), Error> {
    let group = replica_of(groups, shard)?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let done = Box::new(move |reply| {
        // The caller may have given up; the write stands all the same.
        let _ = sender.send(reply);
    });
    group.propose(command, done);
    let reply = receiver.await.unwrap_or_else(|_| {
        Err(Error::OutcomeUnknown { reason: "the node stopped before the reply".into() })
    })?;
    Ok((reply, group.reader().applied_index()))
}

/// Changes who belongs to a group that this node leads. What is so already is fine. Bounded in
/// time: a leader that has lost its quorum would wait for it.
pub async fn change(groups: &Groups, shard: ShardId, change: Change) -> Result<(), Error> {
    let group = replica_of(groups, shard)?;
    let changed = tokio::time::timeout(ANSWER_WAIT_MAX, change_members(&group, change)).await;
    changed.unwrap_or_else(|_| {
        let reason = format!("a change of shard {shard}'s members was not committed in time");
        Err(Error::OutcomeUnknown { reason })
    })
}

async fn change_members(group: &Arc<Group>, change: Change) -> Result<(), Error> {
    match change {
        Change::AddLearner { replica, node } => group.add_learner(replica, node).await,
        Change::RemoveLearner { replica } => group.remove_learner(replica).await,
        Change::Lead { replica } => group.transfer_leader(replica).await,
        Change::Voters { mut add, mut remove } => {
            let status = group.status();
            if !status.joint {
                add.retain(|replica| !status.voters.contains_key(replica));
                remove.retain(|replica| status.voters.contains_key(replica));
            }
            if add.is_empty() && remove.is_empty() && status.membership_committed {
                return Ok(());
            }
            group.change(add, remove, status.membership_at).await
        }
    }
}

/// How this node is.
pub fn report(groups: &Groups, sizes: bool) -> NodeReport {
    let receiving = groups.transfers_under_way();
    let store = groups.store();
    let report = |group: Arc<Group>| {
        let status = group.status();
        let coming = receiving
            .iter()
            .find(|it| it.direction == Direction::In && it.replica == group.replica());
        GroupReport {
            shard: group.shard(),
            replica: group.replica(),
            role: if group.is_leaving() { Role::Stopped } else { status.role },
            term: status.term,
            leader: status.leader,
            last_index: status.last_index,
            committed: status.committed.index,
            applied: status.applied.index,
            voters: status.voters,
            learners: status.learners,
            joint: status.joint,
            matched: status.matched.into_iter().map(|(id, at)| (id, at.index)).collect(),
            bytes: if sizes { bytes_of(store, &group) } else { 0 },
            commands: group.commands(),
            receiving: coming.map_or(0, |it| it.bytes),
            membership_at: status.membership_at,
            membership_committed: status.membership_committed,
        }
    };
    NodeReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        disk_free_bytes: store.stats().disk_free_bytes.unwrap_or(0),
        disk_short: store.check_space().is_err(),
        out_of_room: groups.all().iter().filter(|group| group.is_out_of_room()).count() as u32,
        clock: Some(groups.peers().clock().report()),
        groups: groups.all().into_iter().map(report).collect(),
        stopped: groups.stopped(),
    }
}

/// What a replica takes on disk.
pub fn bytes_of(store: &Store, group: &Group) -> u64 {
    let size = |name| store.property(Some(group.replica()), name)?.parse::<u64>().ok();
    SIZES.into_iter().filter_map(size).sum()
}
