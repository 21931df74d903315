//! One shard's replica on a node that holds every shard alone: a group with one member.

use std::sync::Arc;

use statehouse_store::{Command, Reader};

use crate::ShardId;
use crate::raft::{Done, Group};

/// One shard's copy on this node.
pub struct Replica {
    group: Arc<Group>,
}

impl Replica {
    pub(crate) fn new(group: Arc<Group>) -> Arc<Self> {
        Arc::new(Replica { group })
    }

    /// The group that it is the only member of.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// The shard that this is a copy of.
    pub fn shard_id(&self) -> ShardId {
        self.group.shard()
    }

    /// Reads what is applied. Linearizable as long as a replica is its own quorum, since a write
    /// is answered after it is applied.
    pub fn reader(&self) -> &Reader {
        self.group.reader()
    }

    /// Proposals that wait for the next entry.
    pub fn waiting(&self) -> usize {
        self.group.waiting()
    }

    /// Hands a command over; `done` gets its reply once it is durable and applied.
    pub fn propose(&self, command: Command, done: Done) {
        self.group.propose(command, done);
    }
}
