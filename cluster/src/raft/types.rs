//! The types that openraft is instantiated with.
//!
//! An entry is the store's own, shared: nothing is copied between Raft, log and apply. openraft
//! counts indexes from 0 and the store from 1; the difference lives in this file alone.
//! Leader ids are those of textbook Raft (one leader per term), so that a log id is the
//! store's `(term, index)`.

use std::fmt;
use std::sync::Arc;

use openraft::entry::RaftEntry;
use openraft::impls::{BoxedErrorSource, InlineBatch};
use openraft::raft::responder::Responder;
use openraft::vote::leader_id_std;
use openraft::{EntryPayload, RaftTypeConfig};
use parking_lot::Mutex;
use statehouse_store::{Body, CommandBatch, EntryId, Reply};

use super::convert;
use crate::NodeId;

/// Names every type that openraft is generic over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig;

pub type LeaderId = leader_id_std::LeaderId<u64, u64>;
pub type CommittedLeaderId = leader_id_std::CommittedLeaderId<u64>;
pub type LogId = openraft::LogId<CommittedLeaderId>;
pub type Vote = openraft::Vote<LeaderId>;
pub type Membership = openraft::Membership<u64, Member>;
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, Member>;
pub type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, u64, Member>;

impl RaftTypeConfig for TypeConfig {
    type D = Proposed;
    type R = Replies;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = EntryPayload<Proposed, u64, Member>;
    type Entry = Entry;
    type AsyncRuntime = openraft_rt_tokio::TokioRuntime;
    type Responder<T>
        = Callback<T>
    where
        T: Send + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// Where a replica lives. Only the node's id: addresses change and are kept elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Member {
    pub node: u64,
}

impl From<NodeId> for Member {
    fn from(node: NodeId) -> Self {
        Member { node: node.0 }
    }
}

/// Commands on their way into an entry. They leave when the entry is made; a proposal that is
/// refused before still has them, and can be made again.
#[derive(Clone)]
pub struct Proposed(Arc<Mutex<Option<CommandBatch>>>);

impl Proposed {
    pub fn new(batch: CommandBatch) -> Self {
        Proposed(Arc::new(Mutex::new(Some(batch))))
    }

    /// The commands, if no entry was made of them.
    pub fn take(&self) -> Option<CommandBatch> {
        self.0.lock().take()
    }
}

impl fmt::Debug for Proposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Proposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0.lock() {
            Some(batch) => write!(f, "{} commands", batch.commands.len()),
            None => f.write_str("commands of an entry"),
        }
    }
}

/// One reply for each command of an entry.
#[derive(Debug)]
pub struct Replies(pub Vec<Reply>);

/// An entry of the store, as openraft sees it.
#[derive(Clone)]
pub struct Entry {
    leader: CommittedLeaderId,
    pub stored: Arc<statehouse_store::Entry>,
}

impl From<Arc<statehouse_store::Entry>> for Entry {
    fn from(stored: Arc<statehouse_store::Entry>) -> Self {
        Entry { leader: CommittedLeaderId::new(stored.term), stored }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.stored.body {
            Body::Blank => "blank",
            Body::Membership(_) => "membership",
            Body::Commands(_) => "commands",
        };
        write!(f, "{} {kind}", self.stored.id())
    }
}

impl RaftEntry for Entry {
    type CommittedLeaderId = CommittedLeaderId;
    type Payload = EntryPayload<Proposed, u64, Member>;

    fn new(log_id: LogId, payload: Self::Payload) -> Self {
        let EntryId { index, term } = entry_id(log_id);
        let body = match payload {
            EntryPayload::Blank => Body::Blank,
            EntryPayload::Membership(membership) => {
                Body::Membership(convert::membership_to_bytes(&membership))
            }
            EntryPayload::Normal(proposed) => {
                let batch = proposed.take().expect("one entry is made of a proposal");
                Body::Commands(batch)
            }
        };
        Entry::from(Arc::new(statehouse_store::Entry::new(index, term, body)))
    }

    fn log_id_parts(&self) -> (&CommittedLeaderId, u64) {
        (&self.leader, self.stored.index - 1)
    }

    fn set_log_id(&mut self, new: LogId) {
        let EntryId { index, term } = entry_id(new);
        self.leader = new.leader_id;
        let body = self.stored.body.clone();
        self.stored = Arc::new(statehouse_store::Entry::new(index, term, body));
    }

    fn get_membership(&self) -> Option<Membership> {
        let Body::Membership(bytes) = &self.stored.body else { return None };
        Some(convert::membership_of_bytes(bytes).expect("who took the entry in has checked it"))
    }
}

/// What openraft calls with a proposal's outcome. Dropped, the outcome is unknown.
pub struct Callback<T>(pub Box<dyn Landing<T>>);

/// Somebody who waits for a proposal.
pub trait Landing<T>: Send {
    /// A quorum has the entry; it is going to be applied.
    fn committed(&mut self);
    /// The entry is applied, or was refused.
    fn completed(self: Box<Self>, outcome: T);
}

impl<T: Send + 'static> Responder<TypeConfig, T> for Callback<T> {
    fn on_commit(&mut self, _: LogId) {
        self.0.committed();
    }

    fn on_complete(self, outcome: T) {
        self.0.completed(outcome);
    }
}

/// The store's name of an entry.
pub fn entry_id(log_id: LogId) -> EntryId {
    EntryId { index: log_id.index + 1, term: log_id.leader_id.term }
}

/// The store's name of an entry; before the first one without.
pub fn entry_id_or_default(log_id: Option<LogId>) -> EntryId {
    log_id.map_or(EntryId::default(), entry_id)
}

/// openraft's name of an entry; `None` before the first one.
pub fn log_id(id: EntryId) -> Option<LogId> {
    let index = id.index.checked_sub(1)?;
    Some(LogId { leader_id: CommittedLeaderId::new(id.term), index })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_shifted_by_one_and_back() {
        assert_eq!(log_id(EntryId::default()), None);
        for id in [EntryId { index: 1, term: 0 }, EntryId { index: 900, term: 7 }] {
            assert_eq!(log_id(id).map(entry_id), Some(id));
        }
        let first = log_id(EntryId { index: 1, term: 0 }).unwrap();
        assert_eq!(Entry::new(first, EntryPayload::Blank).log_id_parts().1, 0);
    }

    #[test]
    fn a_refused_proposal_still_has_its_commands() {
        let proposed = Proposed::new(CommandBatch { time_ms: 1, commands: Vec::new() });
        let kept = proposed.clone();
        let at = log_id(EntryId { index: 3, term: 2 }).unwrap();
        assert!(format!("{kept}").contains("0 commands"));
        let entry = Entry::new(at, EntryPayload::Normal(proposed));
        assert_eq!(entry.stored.id(), EntryId { index: 3, term: 2 });
        assert!(kept.take().is_none(), "the entry has them now");
    }
}
