//! What can go wrong between a proposal and its reply, one variant per thing a caller does.

use statehouse_store as store;
use statehouse_store::ReplicaId;

use crate::placement::Refusal;
use crate::raft::Leader;
use crate::{NodeId, ShardId};

/// Why a proposal has no reply, or the catalog no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Retry later: a named queue is full.
    #[error("shard {shard} has {waiting} proposals waiting, its limit")]
    Overloaded {
        /// The shard whose queue is full.
        shard: u32,
        /// How many wait.
        waiting: usize,
    },
    /// Most of a shard's replicas are on disks that are nearly full: nothing that adds to them is
    /// taken.
    #[error("most replicas of shard {shard} are on disks with less free than their reserve")]
    DisksFull {
        /// The shard.
        shard: ShardId,
    },
    /// The node is stopping, or the disk under it failed: ask another one.
    #[error("replica is closed: {reason}")]
    Closed {
        /// What closed it.
        reason: String,
    },
    /// Nothing happened: ask who leads, or anybody a little later if nobody is known to.
    #[error("shard {shard} is not led here{}", hint(leader.as_ref()))]
    NotLeader {
        /// The shard.
        shard: ShardId,
        /// Who leads, as far as is known.
        leader: Option<Leader>,
    },
    /// A change of a group's members was refused.
    #[error("shard {shard}: {problem}")]
    Members {
        /// The shard.
        shard: ShardId,
        /// Why.
        problem: MembersProblem,
    },
    /// The write may or may not have happened: retry with the same request id.
    #[error("outcome unknown: {reason}")]
    OutcomeUnknown {
        /// What interrupted it.
        reason: String,
    },
    /// Another node could not be asked, or its answer did not come.
    #[error("node {node} does not answer: {reason}")]
    Unreachable {
        /// Which node.
        node: NodeId,
        /// What went wrong.
        reason: String,
    },
    /// Another node refused.
    #[error("node {node}: {reason}")]
    Peer {
        /// Which node.
        node: NodeId,
        /// What it said.
        reason: String,
        /// Whether to try again may help.
        passes: bool,
    },
    /// A change of where replicas are was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk under the replica refused or failed.
    #[error(transparent)]
    Store(#[from] std::sync::Arc<store::Error>),
    /// A catalog name that is not there.
    #[error("{kind} {name:?} does not exist")]
    Unknown {
        /// "collection", "model", "model version", "node" or "task".
        kind: &'static str,
        /// What was asked for.
        name: String,
    },
    /// A catalog name that is there already.
    #[error("{kind} {name:?} exists already{difference}")]
    Exists {
        /// "collection" or "model".
        kind: &'static str,
        /// The name.
        name: String,
        /// How it differs from what was asked for; empty, or starts with a space.
        difference: String,
    },
    /// The active version of a model can't be deleted.
    #[error("version {version} of model {name:?} is active: activate another one first")]
    Active {
        /// The model.
        name: String,
        /// The version asked for.
        version: u64,
    },
    /// Somebody else changed the same catalog row at the same time.
    #[error("{name:?} was changed meanwhile: try again")]
    Changed {
        /// The row.
        name: String,
    },
    /// The catalog or the shard descriptor is not what this version writes.
    #[error("{0}")]
    Invalid(String),
}

/// Why a change of a group's members was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MembersProblem {
    /// Another change is under way, or the leader is too new: try again.
    #[error("its members are being changed already")]
    Busy,
    /// The members are not those that the change was made for: look again.
    #[error("its members were changed meanwhile")]
    Changed,
    /// The replica is no member, or not of the kind that the change needs.
    #[error("replica {0} is not a member of the kind needed")]
    Unknown(ReplicaId),
    /// The replica votes: it is no learner.
    #[error("replica {0} votes, expected a learner")]
    Votes(ReplicaId),
    /// The replica's log is not complete enough to lead.
    #[error("replica {0} is too far behind to lead")]
    Behind(ReplicaId),
    /// The replica did not take the lead in time.
    #[error("replica {0} did not take the lead")]
    NotTaken(ReplicaId),
    /// The replica is a member of its group, by all that it knows: it must not be destroyed.
    #[error(
        "replica {0} belongs to its group: whoever wants it destroyed knows an older membership"
    )]
    Belongs(ReplicaId),
    /// The change can't be made.
    #[error("the change of its members can't be made")]
    Refused,
}

impl Error {
    /// The error of a call that has had some of its effect when it failed.
    #[must_use]
    pub(crate) fn after_effect(self) -> Self {
        match self {
            Error::OutcomeUnknown { .. } => self,
            other => Error::OutcomeUnknown { reason: format!("begun, and not finished: {other}") },
        }
    }
}

fn hint(leader: Option<&Leader>) -> String {
    leader.map_or(String::new(), |leader| format!(", but by node {}", leader.node))
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Error::Store(std::sync::Arc::new(error))
    }
}
