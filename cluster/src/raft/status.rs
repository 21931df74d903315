//! What a group says of itself: its part, its leader, its log, its members.
//!
//! A status is made when it is asked for. Those who watch get each change of part, leader or
//! members at once, and the log's progress every [`PROGRESS_INTERVAL`] at most.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::{Duration, Instant};

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use statehouse_store::{EntryId, ReplicaId};
use tokio::sync::watch;

use super::group::{Group, Leader};
use super::types::{entry_id, entry_id_or_default};
use crate::NodeId;

/// How often progress is told to those who watch.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(20);

/// The part that a replica plays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// Receives entries and has no vote.
    #[default]
    Learner,
    /// Receives entries and votes.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Proposes entries.
    Leader,
    /// Has stopped.
    Stopped,
}

/// What a group says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// The part that this replica plays.
    pub role: Role,
    /// The term that it knows of.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<Leader>,
    /// Index of the last entry of its log; 0 before the first.
    pub last_index: u64,
    /// The last entry that it knows to be committed; index 0 before the first.
    pub committed: EntryId,
    /// The last entry applied.
    pub applied: EntryId,
    /// The last entry purged from its log.
    pub purged: EntryId,
    /// Who votes, and where they are.
    pub voters: BTreeMap<ReplicaId, NodeId>,
    /// Who receives entries and has no vote, and where they are.
    pub learners: BTreeMap<ReplicaId, NodeId>,
    /// A change of voters is half done.
    pub joint: bool,
    /// The voters that a half-done change leads to; all voters otherwise.
    pub target_voters: BTreeSet<ReplicaId>,
    /// The entry that says all this; what `Group::change` expects.
    pub membership_at: EntryId,
    /// Whether a quorum has that entry.
    pub membership_committed: bool,
    /// On a leader: up to which entry each other replica has the log.
    pub matched: BTreeMap<ReplicaId, EntryId>,
    /// Members that have lost what they acknowledged to this replica while it led, each with an
    /// entry that is missing: they have to be replaced.
    pub reverted: BTreeMap<ReplicaId, EntryId>,
}

impl Role {
    /// Whether it proposes entries.
    pub(super) fn is_leader(self) -> bool {
        self == Role::Leader
    }
}

impl GroupStatus {
    /// Whether the voters other than `replica` are a quorum without it; `None` as long as that is
    /// not sure: the replica is so new that it knows of no voters yet, or the last change of voters
    /// may still be undone.
    pub fn can_do_without(&self, replica: ReplicaId) -> Option<bool> {
        if self.voters.is_empty() || !self.membership_committed {
            return None;
        }
        let others = self.voters.keys().filter(|voter| **voter != replica).count();
        Some(others * 2 > self.voters.len())
    }
}

impl Group {
    /// What the group says of itself now.
    pub fn status(&self) -> GroupStatus {
        let status = self.status_of_raft();
        match self.has_failed() {
            true => GroupStatus { role: Role::Stopped, leader: None, ..status },
            false => status,
        }
    }

    /// What its Raft core says, whether or not the replica has failed.
    pub(super) fn status_of_raft(&self) -> GroupStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let stored = &metrics.membership_config;
        let membership = stored.membership();
        let node_of =
            |replica: u64| NodeId(membership.get_node(&replica).map_or(0, |member| member.node));
        let placed = |replica: u64| (ReplicaId(replica), node_of(replica));
        let voters: BTreeMap<_, _> = membership.voter_ids().map(placed).collect();
        let configs = membership.get_joint_config();
        let target = configs.last().into_iter().flatten().map(|replica| ReplicaId(*replica));
        let others = |(replica, _): &(&u64, _)| **replica != self.replica.0;
        let replication = metrics.replication.iter().flatten().filter(others);
        let leader = metrics
            .current_leader
            .map(|replica| Leader { replica: ReplicaId(replica), node: node_of(replica) });
        let mut reverted = self.exchanged.acknowledged.reverted();
        reverted.retain(|replica, _| membership.get_node(&replica.0).is_some());
        GroupStatus {
            reverted,
            role: match metrics.state {
                ServerState::Learner => Role::Learner,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Leader => Role::Leader,
                ServerState::Shutdown => Role::Stopped,
            },
            term: metrics.current_term,
            leader,
            last_index: metrics.last_log_index.map_or(0, |index| index + 1),
            committed: entry_id_or_default(metrics.local_committed),
            applied: *self.applied.borrow(),
            purged: entry_id_or_default(metrics.purged),
            target_voters: target.collect(),
            joint: configs.len() > 1,
            learners: membership.learner_ids().map(placed).collect(),
            voters,
            membership_at: entry_id_or_default(*stored.log_id()),
            membership_committed: stored.log_id() == metrics.committed_membership_config.log_id(),
            matched: replication
                .filter_map(|(replica, at)| Some((ReplicaId(*replica), entry_id((*at)?))))
                .collect(),
        }
    }

    /// The status as it changes.
    pub fn watch(&self) -> watch::Receiver<GroupStatus> {
        let receiver = self.status.subscribe();
        self.watched.notify_one();
        self.publish_now();
        receiver
    }

    fn publish_now(&self) {
        let status = self.status();
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}

/// Keeps the status of those who watch up to date, until the group is gone.
pub(super) async fn publish(group: Weak<Group>) {
    let Some((raft, begun)) = group.upgrade().map(|it| (it.raft.clone(), it.watched.clone()))
    else {
        return;
    };
    let mut server = raft.server_metrics();
    let mut all = raft.metrics();
    drop(raft);
    loop {
        // Progress is told to those who watch: for nobody it would wake every group all the time.
        let watched = group.upgrade().is_some_and(|group| group.status.receiver_count() > 0);
        let (ended, turned) = tokio::select! {
            changed = server.changed() => (changed.is_err(), true),
            changed = all.changed(), if watched => {
                tokio::time::sleep(PROGRESS_INTERVAL).await;
                (changed.is_err(), false)
            }
            () = begun.notified(), if !watched => (false, false),
        };
        let Some(group) = group.upgrade() else { return };
        if turned {
            group.heard.lock().turn(Instant::now());
        }
        if ended {
            group.core_ended();
        }
        group.publish_now();
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_voters(voters: &[u64]) -> GroupStatus {
        let placed = |replica: &u64| (ReplicaId(*replica), NodeId(*replica));
        let voters = voters.iter().map(placed).collect();
        GroupStatus { voters, membership_committed: true, ..GroupStatus::default() }
    }

    #[test]
    fn a_group_can_do_without_a_replica_if_its_other_voters_are_a_quorum() {
        let asked = ReplicaId(1);
        assert_eq!(with_voters(&[1]).can_do_without(asked), Some(false));
        assert_eq!(with_voters(&[1, 2]).can_do_without(asked), Some(false));
        assert_eq!(with_voters(&[1, 2, 3]).can_do_without(asked), Some(true));
        assert_eq!(with_voters(&[2, 3]).can_do_without(asked), Some(true), "it has no vote");
    }

    #[test]
    fn a_replica_that_knows_of_no_voters_yet_can_not_say_who_can_do_without_it() {
        assert_eq!(with_voters(&[]).can_do_without(ReplicaId(1)), None);
        let open = GroupStatus { membership_committed: false, ..with_voters(&[1, 2, 3]) };
        assert_eq!(open.can_do_without(ReplicaId(1)), None);
    }
}
