//! How commands become entries: gathered per group, proposed, answered when applied.
//!
//! A proposal that is refused before it became an entry is tried again as long as this replica
//! leads but has yet to hear of its quorum (a new leader's first moments); anywhere else the
//! caller learns who leads. An entry that was discarded may live on at another leader: its
//! outcome is unknown. Nobody waits for longer than about a second at a leader that has lost its
//! quorum (`apart.rs`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::FutureExt;
use openraft::errors::{ClientWriteError, ForwardReason, ForwardToLeader};
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use statehouse_store::{Command, ReplicaId};

use super::group::{Done, Group, Leader};
use super::types::{Callback, Landing, Proposed, Replies, TypeConfig};
use crate::proposals::{Cut, Limits, Proposal, Queue};
use crate::{Error, NodeId};

/// How long a leader without a quorum waits before it tries a proposal again.
const RETRY_WAIT: Duration = Duration::from_millis(5);

/// Who waits for the replies of an entry on its way; empty once they were told.
type Waiters = Arc<Mutex<Vec<Done>>>;

/// A group's waiting commands.
pub struct Proposals {
    queue: Queue<Done>,
    /// Who waits for entries that are proposed and not committed, by the number of their cut.
    under_way: HashMap<u64, Waiters>,
    closed: Option<String>,
    /// Since when proposals come back because no quorum was heard of.
    refused_since: Option<Instant>,
    /// An entry is being handed to Raft: the next must not overtake it.
    handing_over: bool,
}

impl Proposals {
    pub fn new(limits: Limits) -> Self {
        Proposals {
            queue: Queue::new(limits),
            under_way: HashMap::new(),
            closed: None,
            refused_since: None,
            handing_over: false,
        }
    }
}

impl Group {
    /// Hands a command over; `done` gets its reply once a quorum has it and it is applied here.
    ///
    /// Errors: `NotLeader` (nothing happened; ask who leads), `Overloaded` (nothing happened;
    /// later), `OutcomeUnknown` (it may have happened), `Closed`.
    pub fn propose(self: &Arc<Self>, command: Command, done: Done) {
        let bytes = command.bytes();
        let mut proposals = self.proposals.lock();
        if let Some(reason) = &proposals.closed {
            let reason = reason.clone();
            drop(proposals);
            return done(Err(Error::Closed { reason }));
        }
        if let Err(refused) = proposals.queue.push(Proposal { command, done }, bytes) {
            let waiting = proposals.queue.waiting();
            drop(proposals);
            let shard = u32::from(self.shard.0);
            return refused(Err(Error::Overloaded { shard, waiting }));
        }
        drop(proposals);
        self.hand_over();
    }

    /// Proposals that wait for the next entry.
    pub fn waiting(&self) -> usize {
        self.proposals.lock().queue.waiting()
    }

    /// Whether a command waits here, or for an entry that is not committed.
    pub(super) fn has_waiting(&self) -> bool {
        let proposals = self.proposals.lock();
        proposals.queue.waiting() > 0 || !proposals.under_way.is_empty()
    }

    /// Tells everyone who waits that this replica can't have entries committed: nothing happened
    /// to what was not proposed, and the outcome of what was is unknown.
    pub(super) fn give_up_waiting(&self) {
        let (waiting, under_way) = {
            let mut proposals = self.proposals.lock();
            (proposals.queue.drain(), std::mem::take(&mut proposals.under_way))
        };
        for done in waiting {
            done(Err(self.not_leader()));
        }
        let reason = "the entry was proposed, and the leader has lost its quorum".to_owned();
        let unknown = Error::OutcomeUnknown { reason };
        for waiters in under_way.into_values() {
            tell(&waiters, &unknown);
        }
    }

    /// Hands to Raft what may leave now. One caller at a time, so that the order stays; not under
    /// the lock, since a stopped Raft answers at once.
    fn hand_over(self: &Arc<Self>) {
        while let Some(cut) = self.next_cut() {
            let (proposed, sequence) = (Proposed::new(cut.batch), cut.sequence);
            let waiters: Waiters = Arc::new(Mutex::new(cut.waiters));
            self.proposals.lock().under_way.insert(sequence, waiters.clone());
            let (group, landed) = (self.clone(), false);
            let flight = Flight { group, proposed: proposed.clone(), sequence, waiters, landed };
            let responder = Callback::<ClientWriteResult<TypeConfig>>(Box::new(flight));
            let raft = self.raft.clone();
            let write = async move {
                // A stopped Raft drops the responder, which answers.
                let _ = raft.client_write_ff(proposed, Some(responder)).await;
            };
            // There is room in Raft's queue nearly always, so that nothing is waited for.
            let mut write = Box::pin(tokio::task::unconstrained(write));
            if write.as_mut().now_or_never().is_none() {
                let group = self.clone();
                self.runtime.spawn(async move {
                    write.await;
                    group.proposals.lock().handing_over = false;
                    group.hand_over();
                });
                return;
            }
            self.proposals.lock().handing_over = false;
        }
    }

    /// The node knows its time by now: what waited for that leaves.
    pub(crate) fn clock_settled(self: &Arc<Self>) {
        self.hand_over();
    }

    fn next_cut(&self) -> Option<Cut<Done>> {
        if !self.peers.clock().is_settled() {
            return None;
        }
        let mut proposals = self.proposals.lock();
        if proposals.handing_over || proposals.closed.is_some() {
            return None;
        }
        let mut cut = proposals.queue.cut(self.now_ms())?;
        proposals.handing_over = true;
        if !self.peers.read_newest_entries() {
            cut.batch = cut.batch.made_absolute();
        }
        Some(cut)
    }

    /// An entry is out of the way: the next one leaves.
    fn landed(self: &Arc<Self>, sequence: u64) {
        {
            let mut proposals = self.proposals.lock();
            proposals.under_way.remove(&sequence);
            proposals.queue.landed();
            proposals.refused_since = None;
        }
        self.hand_over();
    }

    /// A leader that has not heard of its quorum refused an entry: it is tried again, for as long
    /// as an election may take.
    fn give_back(self: &Arc<Self>, cut: Cut<Done>) {
        let mut proposals = self.proposals.lock();
        proposals.under_way.remove(&cut.sequence);
        proposals.queue.give_back(cut);
        let since = *proposals.refused_since.get_or_insert_with(Instant::now);
        let patience = 2 * self.config.election_timeout_max;
        if proposals.closed.is_some() || since.elapsed() > patience {
            proposals.refused_since = None;
            let waiters = proposals.queue.drain();
            let closed = proposals.closed.clone();
            drop(proposals);
            for done in waiters {
                done(Err(match &closed {
                    Some(reason) => Error::Closed { reason: reason.clone() },
                    None => Error::NotLeader { shard: self.shard, leader: None },
                }));
            }
            return;
        }
        drop(proposals);
        let group = self.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(RETRY_WAIT).await;
            group.hand_over();
        });
    }

    /// Refuses from now on, and tells everyone who waits.
    pub(super) fn close(&self, reason: &str) {
        let waiting = {
            let mut proposals = self.proposals.lock();
            proposals.closed.get_or_insert_with(|| reason.to_owned());
            proposals.queue.drain()
        };
        for done in waiting {
            done(Err(Error::Closed { reason: reason.to_owned() }));
        }
    }
}

/// An entry on its way, and who waits for its replies.
struct Flight {
    group: Arc<Group>,
    proposed: Proposed,
    sequence: u64,
    waiters: Waiters,
    landed: bool,
}

/// Tells everyone who waits for an entry the same.
fn tell(waiters: &Waiters, error: &Error) {
    // Not under the lock: whoever is told may propose again.
    let waiters = std::mem::take(&mut *waiters.lock());
    for done in waiters {
        done(Err(error.clone()));
    }
}

impl Flight {
    fn land(&mut self) {
        if !std::mem::replace(&mut self.landed, true) {
            self.group.landed(self.sequence);
        }
    }

    /// Nothing was proposed: say who leads, or try again.
    fn refused(&mut self, forward: &ForwardToLeader<TypeConfig>) {
        let waiters = std::mem::take(&mut *self.waiters.lock());
        if forward.reason == ForwardReason::LeaseExpired
            && !waiters.is_empty()
            && let Some(batch) = self.proposed.take()
        {
            self.landed = true;
            let cut = Cut { sequence: self.sequence, batch, waiters };
            return self.group.give_back(cut);
        }
        let leader = leader_of(forward).or_else(|| self.group.leader());
        let leader = leader.filter(|leader| leader.replica != self.group.replica);
        self.land();
        let error = Error::NotLeader { shard: self.group.shard, leader };
        for done in waiters {
            done(Err(error.clone()));
        }
    }
}

impl Landing<ClientWriteResult<TypeConfig>> for Flight {
    fn committed(&mut self) {
        self.land();
    }

    fn completed(mut self: Box<Self>, outcome: ClientWriteResult<TypeConfig>) {
        match outcome {
            Ok(written) => {
                self.land();
                let Replies(replies) = written.data;
                self.group.commands.fetch_add(replies.len() as u64, Ordering::Relaxed);
                let waiters = std::mem::take(&mut *self.waiters.lock());
                // Nobody, if they were told that the outcome is unknown.
                assert!(
                    waiters.is_empty() || replies.len() == waiters.len(),
                    "one reply for each command"
                );
                for (done, reply) in waiters.into_iter().zip(replies) {
                    done(Ok(reply));
                }
            }
            Err(ClientWriteError::ForwardToLeader(forward)) => self.refused(&forward),
            Err(error) => {
                self.land();
                tell(&self.waiters, &Error::OutcomeUnknown { reason: error.to_string() });
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.land();
        let reason = "the replica stopped before the reply".to_owned();
        tell(&self.waiters, &Error::OutcomeUnknown { reason });
    }
}

/// Who leads, as the refusal says.
pub(super) fn leader_of(forward: &ForwardToLeader<TypeConfig>) -> Option<Leader> {
    let (replica, member) = forward.leader_id.zip(forward.leader_node)?;
    Some(Leader { replica: ReplicaId(replica), node: NodeId(member.node) })
}
