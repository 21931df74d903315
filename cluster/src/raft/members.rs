//! Who belongs to a group: the first members, learners, changes of voters, hand-over of the lead.
//!
//! Every change is one at a time and names the membership that it builds on, so that of two who
//! change at once one learns that it was late. What to change, and whether it is wise, is for
//! others to say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::errors::{ChangeMembershipError, ClientWriteError, InitializeError, RaftError};
use openraft::raft::ClientWriteResponse;
use openraft::{ChangeMembers, Precondition};
use statehouse_store::{EntryId, ReplicaId};

use super::group::Group;
use super::proposing::leader_of;
use super::status::Role;
use super::types::{self, Member, TypeConfig};
use crate::{Error, MembersProblem, NodeId};

/// A hand-over is refused to a replica that lacks more entries than this.
const HAND_OVER_BEHIND_MAX: u64 = 256;

type Changed = Result<ClientWriteResponse<TypeConfig>, RaftError<TypeConfig, WriteError>>;
type WriteError = ClientWriteError<TypeConfig>;

impl Group {
    /// Makes an empty replica the first of its group, with these voters. To be asked of one
    /// replica only, or of all with the same voters. A replica that has begun already stays as it
    /// is: asking again is fine.
    pub async fn initialize(&self, members: BTreeMap<ReplicaId, NodeId>) -> Result<(), Error> {
        let members: BTreeMap<u64, Member> =
            members.into_iter().map(|(replica, node)| (replica.0, node.into())).collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                Err(self.problem(MembersProblem::Unknown(self.replica)))
            }
            Err(RaftError::Fatal(_)) => Err(self.stopped()),
        }
    }

    /// Lets a replica receive entries. Returns when that is committed, not when the replica has
    /// caught up: see `GroupStatus::matched`. On the leader.
    pub async fn add_learner(&self, replica: ReplicaId, node: NodeId) -> Result<(), Error> {
        let status = self.status();
        let known = status.voters.get(&replica).or(status.learners.get(&replica));
        if status.role == Role::Leader && status.membership_committed && known == Some(&node) {
            return Ok(());
        }
        self.changed(self.raft.add_learner(replica.0, node.into(), false).await)
    }

    /// Lets learners vote and voters leave, in one joint change; those who leave are out
    /// entirely. `expected` is the status's `membership_at`; if the group has another one by now,
    /// nothing happens. A change that an earlier leader left half done is finished first, which
    /// changes `membership_at`. On the leader.
    pub async fn change(
        &self,
        add: Vec<ReplicaId>,
        remove: Vec<ReplicaId>,
        expected: EntryId,
    ) -> Result<(), Error> {
        let status = self.status();
        if status.joint {
            let target: BTreeSet<u64> = status.target_voters.iter().map(|id| id.0).collect();
            self.changed(self.raft.change_membership(target, false).await)?;
        }
        if let Some(unknown) = add.iter().find(|id| !status.learners.contains_key(id))
            && !status.voters.contains_key(unknown)
            && status.role == Role::Leader
        {
            return Err(self.problem(MembersProblem::Unknown(*unknown)));
        }
        let ids = |ids: Vec<ReplicaId>| ids.into_iter().map(|id| id.0).collect();
        let changes = ChangeMembers::Batch(vec![
            ChangeMembers::AddVoterIds(ids(add)),
            ChangeMembers::RemoveVoters(ids(remove)),
        ]);
        let same =
            Precondition::LastMembershipLogId { last_membership_log_id: types::log_id(expected) };
        self.changed(self.raft.change_membership_if(changes, false, [same]).await)
    }

    /// Lets a learner go. On the leader.
    pub async fn remove_learner(&self, replica: ReplicaId) -> Result<(), Error> {
        let status = self.status();
        if status.voters.contains_key(&replica) {
            return Err(self.problem(MembersProblem::Votes(replica)));
        }
        if status.role == Role::Leader && !status.learners.contains_key(&replica) {
            return Ok(());
        }
        let changes = ChangeMembers::RemoveNodes(BTreeSet::from([replica.0]));
        self.changed(self.raft.change_membership(changes, false).await)
    }

    /// Hands the lead over. Returns when the other leads, or with an error if it does not within
    /// two election timeouts. On the leader; to a voter whose log is nearly complete.
    pub async fn transfer_leader(self: &Arc<Self>, to: ReplicaId) -> Result<(), Error> {
        let status = self.status();
        let leads = |leader: Option<super::Leader>| leader.is_some_and(|it| it.replica == to);
        if leads(status.leader) {
            return Ok(());
        }
        if status.role != Role::Leader {
            return Err(self.not_leader());
        }
        if !status.voters.contains_key(&to) {
            return Err(self.problem(MembersProblem::Unknown(to)));
        }
        let matched = status.matched.get(&to).map_or(0, |matched| matched.index);
        if matched + HAND_OVER_BEHIND_MAX < status.last_index {
            return Err(self.problem(MembersProblem::Behind(to)));
        }
        let mut watched = self.watch();
        let trigger = self.raft.trigger().transfer_leader(to.0).await;
        trigger.map_err(|_| self.stopped())?;
        let patience = 2 * self.config.election_timeout_max;
        let handed = watched.wait_for(|status| leads(status.leader));
        match tokio::time::timeout(patience, handed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.stopped()),
            Err(_) => Err(self.problem(MembersProblem::NotTaken(to))),
        }
    }

    fn problem(&self, problem: MembersProblem) -> Error {
        Error::Members { shard: self.shard, problem }
    }

    fn changed(&self, changed: Changed) -> Result<(), Error> {
        let error = match changed {
            Ok(_) => return Ok(()),
            Err(RaftError::Fatal(_)) => return Err(self.stopped()),
            Err(RaftError::APIError(error)) => error,
        };
        Err(match error {
            ClientWriteError::ForwardToLeader(forward) => {
                let leader = leader_of(&forward).filter(|leader| leader.replica != self.replica);
                Error::NotLeader { shard: self.shard, leader }
            }
            ClientWriteError::LogEntryDiscarded(_) => {
                Error::OutcomeUnknown { reason: error.to_string() }
            }
            ClientWriteError::PreconditionFailed(_) => self.problem(MembersProblem::Changed),
            ClientWriteError::ChangeMembershipError(error) => self.problem(match error {
                ChangeMembershipError::InProgress(_)
                | ChangeMembershipError::UncommittedLeaderLog(_) => MembersProblem::Busy,
                ChangeMembershipError::LearnerNotFound(missing) => {
                    MembersProblem::Unknown(ReplicaId(missing.node_id))
                }
                ChangeMembershipError::EmptyMembership(_)
                | ChangeMembershipError::UnsupportedMembershipTransition(_)
                | ChangeMembershipError::NodeMetadataChanged(_) => MembersProblem::Refused,
            }),
        })
    }
}
