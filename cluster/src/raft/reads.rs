//! Linearizable reads: by read index, one round shared by all that wait at a moment.
//!
//! A round asks a quorum whether this replica still leads, then waits until what was committed by
//! then is applied. No leases: a lease that a restarted voter has forgotten would let two leaders
//! answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use parking_lot::Mutex;
use statehouse_proto::v1;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use statehouse_store::EntryId;
use tokio::sync::oneshot;

use super::group::Group;
use super::proposing::leader_of;
use super::types;
use crate::Error;

/// Rounds of one group under way at a time: a read waits for half a round less than with one.
const ROUNDS_MAX: usize = 2;

type Waiter = oneshot::Sender<Result<EntryId, Error>>;

/// Reads that wait for a round.
#[derive(Default)]
pub struct Reads {
    waiting: Mutex<Waiting>,
    /// The term in which this replica led alone and had applied what was committed before: from
    /// then on whatever is answered is applied. After a start it has yet to apply its log.
    sure: AtomicU64,
    /// Rounds under way: the heartbeats that they need must not wait for company.
    pub hurry: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Waiting {
    waiters: Vec<Waiter>,
    rounds: usize,
}

impl Group {
    /// Returns once everything acknowledged before the call is applied here. On a leader that a
    /// quorum follows; `NotLeader` elsewhere.
    pub async fn linearizable(self: &Arc<Self>) -> Result<(), Error> {
        let alone = self.leads_alone();
        if alone.is_some_and(|term| self.reads.sure.load(Ordering::Acquire) == term) {
            return Ok(());
        }
        let at = self.read_index().await?;
        self.wait_applied(at.index).await?;
        if let Some(term) = alone {
            self.reads.sure.store(term, Ordering::Release);
        }
        Ok(())
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
        let answer = peer.talk.ask(route, Ask::ReadIndex(v1::ReadIndexAsk {}), true).await;
        match answer {
            Ok(Answer::ReadIndex(at)) => self.wait_applied(at.index).await,
            Ok(_) => Err(nobody()),
            Err(lost) => Err(Error::Unreachable { node: leader.node, reason: lost.to_string() }),
        }
    }

    /// The entry up to which a replica must have applied to serve a linearizable read. On a
    /// leader that a quorum follows; `NotLeader` elsewhere.
    pub async fn read_index(self: &Arc<Self>) -> Result<EntryId, Error> {
        let (waiter, answer) = oneshot::channel();
        let starts = {
            let mut waiting = self.reads.waiting.lock();
            waiting.waiters.push(waiter);
            let starts = waiting.rounds < ROUNDS_MAX;
            waiting.rounds += usize::from(starts);
            starts
        };
        if starts {
            self.runtime.spawn(self.clone().rounds());
        }
        answer.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    /// Rounds until nobody waits.
    async fn rounds(self: Arc<Self>) {
        loop {
            let waiters = {
                let mut waiting = self.reads.waiting.lock();
                if waiting.waiters.is_empty() {
                    waiting.rounds -= 1;
                    return;
                }
                std::mem::take(&mut waiting.waiters)
            };
            self.reads.hurry.fetch_add(1, Ordering::AcqRel);
            let result = self.round().await;
            self.reads.hurry.fetch_sub(1, Ordering::AcqRel);
            for waiter in waiters {
                // Who gave up waiting does not mind.
                let _ = waiter.send(result.clone());
            }
        }
    }

    async fn round(&self) -> Result<EntryId, Error> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(types::entry_id(*linearizer.read_log_id().log_id())),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                let leader = leader_of(&forward).filter(|leader| leader.replica != self.replica);
                Err(Error::NotLeader { shard: self.shard, leader })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(Error::NotLeader { shard: self.shard, leader: None })
            }
            Err(RaftError::Fatal(_)) => Err(self.stopped()),
        }
    }
}
