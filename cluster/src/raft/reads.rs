//! Linearizable reads: once it's sure that there was no newer leader when they began, and that
//! whatever anybody may have seen before is applied.
//!
//! Of this leader's term that is what it has acknowledged, which it applies before, and what its
//! followers know to be committed: they may apply it sooner and show it. Of former terms it is
//! everything before the leader's first own entry. No leases: a lease that a restarted voter has
//! forgotten would let two leaders answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openraft::async_runtime::WatchReceiver;
use statehouse_proto::v1;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use statehouse_store::EntryId;

use super::group::Group;
use crate::Error;

/// The newest commit index that this replica has told others.
#[derive(Debug, Default)]
pub struct Told(AtomicU64);

impl Told {
    /// To be called before it is sent.
    pub fn raise(&self, committed: u64) {
        self.0.fetch_max(committed, Ordering::SeqCst);
    }
}

impl Group {
    /// Returns once everything acknowledged before the call is applied here. On a leader that a
    /// quorum follows; `NotLeader` elsewhere.
    pub async fn linearizable(self: &Arc<Self>) -> Result<(), Error> {
        let term = self.leading_term().ok_or_else(|| self.not_leader())?;
        let told = self.exchanged.told.0.load(Ordering::SeqCst);
        if !self.votes_alone() || !self.promise.allows(term) {
            self.confirmer.confirm(self, term).await?;
        }
        let reached = |applied: &EntryId| applied.term >= term && applied.index >= told;
        if reached(&self.applied.borrow()) {
            return Ok(());
        }
        // What is committed is applied soon. A new leader's first entry is committed by the quorum
        // that was just heard, or this one leads no more.
        let mut applied = self.applied.clone();
        let came =
            tokio::time::timeout(self.config.election_timeout_max, applied.wait_for(reached));
        match came.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.stopped()),
            Err(_) => Err(self.not_leader()),
        }
    }

    /// Returns once everything acknowledged before the call is applied here, whoever leads.
    /// `NotLeader` if nobody is known to, or whoever was does not any more.
    pub async fn catch_up(self: &Arc<Self>) -> Result<(), Error> {
        if self.leads() {
            return self.linearizable().await;
        }
        let leader = self.leader().filter(|leader| leader.replica != self.replica);
        let nobody = || Error::NotLeader { shard: self.shard, leader: None };
        let leader = leader.ok_or_else(nobody)?;
        let route = v1::PeerRoute {
            shard: self.shard.0.into(),
            from_replica: self.replica.0,
            to_replica: leader.replica.0,
        };
        let peer = self.peers.peer(leader.node);
        let answer = peer.talk.ask(Some(route), Ask::ReadIndex(v1::ReadIndexAsk {}), true).await;
        match answer {
            Ok(Answer::ReadIndex(at)) => self.wait_applied(at.index).await,
            Ok(_) => Err(nobody()),
            Err(lost) => Err(Error::Unreachable { node: leader.node, reason: lost.to_string() }),
        }
    }

    /// The entry up to which a replica must have applied to serve a linearizable read. On a
    /// leader that a quorum follows; `NotLeader` elsewhere.
    pub async fn read_index(self: &Arc<Self>) -> Result<EntryId, Error> {
        self.linearizable().await?;
        Ok(*self.applied.borrow())
    }

    /// Whether this voter has promised nothing newer than a term: who led in it may lead still.
    pub(super) fn confirms(&self, term: u64) -> bool {
        !self.has_failed() && self.promise.allows(term)
    }

    /// The term, if this replica leads as far as it knows.
    pub(super) fn leading_term(&self) -> Option<u64> {
        // The core's last word may be from before it failed.
        if self.has_failed() {
            return None;
        }
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.state.is_leader().then_some(metrics.vote.leader_id.term)
    }

    /// Whether this replica leads, nobody else votes, and all that was acknowledged is applied.
    pub(super) fn is_certain_alone(&self) -> bool {
        let Some(term) = self.leading_term() else { return false };
        self.votes_alone() && self.promise.allows(term) && self.applied.borrow().term >= term
    }

    /// Whether nobody else votes.
    fn votes_alone(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().eq([self.replica.0])
    }
}
