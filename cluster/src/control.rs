//! What one node asks of another, one thing at a time: to make or end a replica, to change a
//! group's members, to say how it is, to propose what it leads.
//!
//! Every ask may be made twice: what is so already is fine. Asking oneself takes no connection.
//! Does not know why things are asked: that is the controller's.

mod cache;
mod convert;
mod local;
mod server;
mod sums;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use statehouse_store::{Body, Command, CommandBatch, Entry, EntryId, ReplicaId, Reply};
use tonic::{Code, Request, Status};

use crate::clock::ClockReport;
use crate::raft::{Groups, Leader, Role, Stopped};
use crate::shards::Addresses;
use crate::{Error, NodeId, ShardId};

pub use cache::{cache_plans, plans_out};
pub(crate) use server::Service;
pub use usage::{ReplicaUsage, Wanted};

/// How long an answer may take: a change of members waits for a quorum, twice.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a report may take.
const REPORT_WAIT_MAX: Duration = Duration::from_millis(800);

/// A change of a group's members, asked of the replica that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A replica receives entries from now on.
    AddLearner {
        /// Which replica.
        replica: ReplicaId,
        /// Where it is.
        node: NodeId,
    },
    /// A learner receives no entries any more.
    RemoveLearner {
        /// Which replica.
        replica: ReplicaId,
    },
    /// Learners become voters, voters leave: in one change.
    Voters {
        /// Who becomes one.
        add: Vec<ReplicaId>,
        /// Who leaves.
        remove: Vec<ReplicaId>,
    },
    /// Another replica leads.
    Lead {
        /// Which.
        replica: ReplicaId,
    },
}

/// How a node is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// Of its program.
    pub version: String,
    /// On its disk.
    pub disk_free_bytes: u64,
    /// That is less than its reserve: it refuses writes.
    pub disk_short: bool,
    /// Replicas that do without entries of their leaders for want of space.
    pub out_of_room: u32,
    /// How its clock is; `None` of a node of an older version.
    pub clock: Option<ClockReport>,
    /// Its replicas.
    pub groups: Vec<GroupReport>,
    /// Its replicas that take no part any more.
    pub stopped: Vec<Stopped>,
}

/// How a replica is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupReport {
    /// Of which shard it is.
    pub shard: ShardId,
    /// Which replica.
    pub replica: ReplicaId,
    /// The part it plays.
    pub role: Role,
    /// The term that it knows of.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<Leader>,
    /// Index of its log's last entry.
    pub last_index: u64,
    /// Index of the last entry committed, as far as it knows.
    pub committed: u64,
    /// Index of the last entry applied.
    pub applied: u64,
    /// Who votes.
    pub voters: BTreeMap<ReplicaId, NodeId>,
    /// Who receives entries and has no vote.
    pub learners: BTreeMap<ReplicaId, NodeId>,
    /// A change of voters is half done.
    pub joint: bool,
    /// On a leader: up to which index the others' logs are.
    pub matched: BTreeMap<ReplicaId, u64>,
    /// On disk; 0 unless asked for.
    pub bytes: u64,
    /// Commands answered since it began.
    pub commands: u64,
    /// Bytes that came of a snapshot on its way here.
    pub receiving: u64,
    /// The entry with the membership that all this says; index 0 before the first.
    pub membership_at: EntryId,
    /// Whether a quorum has that entry.
    pub membership_committed: bool,
}

impl GroupReport {
    /// Who votes in the end, were a change under way to finish: all who are voters now.
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        self.voters.values().copied().collect()
    }
}

/// Asks nodes. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    groups: Arc<Groups>,
}

impl Control {
    /// For the node that has these groups.
    pub fn new(groups: Arc<Groups>) -> Self {
        Control { groups }
    }

    fn is_here(&self, node: NodeId) -> bool {
        self.groups.peers().node() == node
    }

    /// Has a node propose a command for a shard that it leads; answers the reply, and the entry
    /// that one must have applied to see the effect. `Unreachable` if it was not even sent, and
    /// `OutcomeUnknown` if the answer did not come.
    pub async fn propose(
        &self,
        node: NodeId,
        shard: ShardId,
        command: Command,
    ) -> Result<(Reply, u64), Error> {
        if self.is_here(node) {
            return local::propose(&self.groups, shard, command).await;
        }
        // Whoever leads gives the entry its time.
        let batch = CommandBatch { time_ms: 0, commands: vec![command] };
        let entry = Entry::new(0, 0, Body::Commands(batch)).encode();
        let hello = Some(self.groups.peers().hello(node));
        let ask = statehouse_proto::v1::ProposeAsk { hello, shard: shard.0.into(), entry };
        let mut client = self.groups.peers().control_client(node)?;
        let answer = client.propose(limited(ask, ANSWER_WAIT_MAX)).await;
        let answer = answer.map_err(|status| match never_sent(&status) {
            true => lost(node, &status),
            false => Error::OutcomeUnknown { reason: lost(node, &status).to_string() },
        })?;
        convert::proposed(answer.into_inner(), node, shard)
    }

    /// Has a node make an empty replica.
    pub async fn create(
        &self,
        node: NodeId,
        shard: ShardId,
        replica: ReplicaId,
    ) -> Result<(), Error> {
        if self.is_here(node) {
            return self.groups.create(shard, replica).await.map(|_| ());
        }
        let ask = convert::replica_ask(self.groups.peers().hello(node), shard, replica);
        let mut client = self.groups.peers().control_client(node)?;
        let answer = client.create_replica(limited(ask, ANSWER_WAIT_MAX)).await;
        convert::done(answer.map_err(|status| lost(node, &status))?.into_inner(), node, shard)
    }

    /// Has a node end a replica, and delete what it has. `left_at` is the membership in which it
    /// is no member: a node whose replica knows a newer one with itself in it refuses.
    pub async fn destroy(
        &self,
        node: NodeId,
        shard: ShardId,
        (replica, left_at): (ReplicaId, EntryId),
    ) -> Result<(), Error> {
        if self.is_here(node) {
            return self.groups.destroy_left(shard, replica, Some(left_at)).await;
        }
        let mut ask = convert::replica_ask(self.groups.peers().hello(node), shard, replica);
        ask.membership_at = Some(convert::position(left_at));
        let mut client = self.groups.peers().control_client(node)?;
        let answer = client.destroy_replica(limited(ask, ANSWER_WAIT_MAX)).await;
        convert::done(answer.map_err(|status| lost(node, &status))?.into_inner(), node, shard)
    }

    /// Has the node that leads a shard change who belongs to it.
    pub async fn change(&self, node: NodeId, shard: ShardId, change: Change) -> Result<(), Error> {
        if self.is_here(node) {
            return local::change(&self.groups, shard, change).await;
        }
        let ask = convert::members_ask(self.groups.peers().hello(node), shard, change);
        let mut client = self.groups.peers().control_client(node)?;
        let answer = client.change_members(limited(ask, ANSWER_WAIT_MAX)).await;
        convert::done(answer.map_err(|status| lost(node, &status))?.into_inner(), node, shard)
    }

    /// Tells a node where this one is; answers where all are.
    pub async fn announce(
        &self,
        node: NodeId,
        addresses: &Addresses,
    ) -> Result<BTreeMap<NodeId, String>, Error> {
        let ask = statehouse_proto::v1::AnnounceAsk {
            hello: Some(self.groups.peers().hello(node)),
            address: addresses.client.clone(),
            peer_address: addresses.peer.clone(),
        };
        let mut client = self.groups.peers().control_client(node)?;
        let answer = client.announce(limited(ask, ANSWER_WAIT_MAX)).await;
        convert::announced(answer.map_err(|status| lost(node, &status))?.into_inner(), node)
    }

    /// How a node is, with sizes on disk if asked for.
    pub async fn report(&self, node: NodeId, sizes: bool) -> Result<NodeReport, Error> {
        if self.is_here(node) {
            return Ok(local::report(&self.groups, sizes));
        }
        let hello = Some(self.groups.peers().hello(node));
        let ask = statehouse_proto::v1::ReportAsk { hello, sizes };
        let mut client = self.groups.peers().control_client(node)?;
        let answer = client.report(limited(ask, REPORT_WAIT_MAX)).await;
        convert::report(answer.map_err(|status| lost(node, &status))?.into_inner())
    }
}

fn limited<T>(ask: T, wait: Duration) -> Request<T> {
    let mut request = Request::new(ask);
    request.set_timeout(wait);
    request
}

/// Whether there was no connection to send the ask on, or its hello was refused.
fn never_sent(status: &Status) -> bool {
    if status.code() == Code::FailedPrecondition {
        return true;
    }
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn lost(node: NodeId, status: &Status) -> Error {
    Error::Unreachable { node, reason: status.message().to_owned() }
}
