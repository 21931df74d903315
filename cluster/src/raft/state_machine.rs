//! openraft's state machine: forwards committed entries to the apply thread, and awaits.
//!
//! A snapshot is never built. To openraft "build" asks how far the state is durable, so that the
//! log may be purged up to there; the state itself is streamed from a fresh view when a follower
//! needs it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::RaftSnapshotBuilder;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use parking_lot::Mutex;
use statehouse_store::{Body, EntryId, Log, ReplicaId, Shard};
use tokio::sync::{oneshot, watch};

use super::convert;
use super::types::{self, Entry, LogId, Replies, SnapshotMeta, StoredMembership, TypeConfig};
use crate::Error;
use crate::applier::{Answer, Applier, Run};

/// Entries handed to the apply thread at a time.
const ENTRIES_PER_RUN_MAX: usize = 256;

/// openraft's name for a snapshot and what it says of it.
pub type Snapshot = openraft::Snapshot<types::CommittedLeaderId, u64, types::Member, View>;

/// What stands behind a snapshot.
#[derive(Debug)]
pub enum View {
    /// Nothing to send: says how far the state is durable.
    Durable,
}

/// One replica's state machine, as openraft drives it.
pub struct StateMachine {
    replica: ReplicaId,
    log: Log,
    applier: Applier,
    state: Arc<Mutex<State>>,
    /// The last entry applied, for those who wait for one.
    applied: watch::Sender<EntryId>,
}

/// How far the replica has come.
#[derive(Default)]
struct State {
    applied: EntryId,
    /// Memberships applied, in order: the last one, and those before that a durable point behind
    /// it may need.
    memberships: VecDeque<StoredMembership>,
}

impl StateMachine {
    /// Hands the shard to the apply thread.
    pub fn new(
        (replica, log, shard): (ReplicaId, Log, Shard),
        applier: Applier,
        applied: watch::Sender<EntryId>,
    ) -> Result<Self, Error> {
        let state = State {
            applied: shard.applied(),
            memberships: VecDeque::from([stored_membership(shard.membership())?]),
        };
        applied.send_replace(state.applied);
        applier.own(replica, shard);
        Ok(StateMachine { replica, log, applier, state: Arc::new(Mutex::new(state)), applied })
    }

    /// Has entries applied; answers who waits for their replies.
    async fn run(&self, entries: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let Some((last, _)) = entries.last() else { return Ok(()) };
        let last = last.stored.id();
        let memberships = entries.iter().filter_map(|(entry, _)| membership_in(entry));
        let memberships: Vec<StoredMembership> = memberships.collect();
        let entries = entries.into_iter().map(|(entry, responder)| {
            let answer = responder.map(answer_by);
            (entry.stored, answer)
        });
        let (done, applied) = oneshot::channel();
        self.applier.apply(Run {
            replica: self.replica,
            entries: entries.collect(),
            applied: self.applied.clone(),
            done,
        });
        let gone = io::Error::other("the apply thread has stopped");
        applied.await.map_err(|_| gone)?.map_err(io::Error::other)?;
        let mut state = self.state.lock();
        state.applied = last;
        state.memberships.extend(memberships);
        Ok(())
    }
}

fn answer_by(responder: ApplyResponder<TypeConfig>) -> Answer {
    Box::new(move |replies| responder.send(Replies(replies)))
}

fn membership_in(entry: &Entry) -> Option<StoredMembership> {
    let Body::Membership(bytes) = &entry.stored.body else { return None };
    let membership = convert::membership_of_bytes(bytes);
    let membership = membership.expect("who took the entry in has checked it");
    Some(StoredMembership::new(types::log_id(entry.stored.id()), membership))
}

/// What the store kept of a membership.
fn stored_membership(kept: Option<(EntryId, Bytes)>) -> Result<StoredMembership, Error> {
    let Some((id, bytes)) = kept else { return Ok(StoredMembership::default()) };
    let membership = convert::membership_of_bytes(&bytes)
        .map_err(|error| Error::Invalid(format!("read a replica's membership: {error}")))?;
    Ok(StoredMembership::new(types::log_id(id), membership))
}

impl State {
    fn membership(&self) -> StoredMembership {
        self.memberships.back().cloned().unwrap_or_default()
    }

    /// The membership as of an entry; forgets those that no later point can need.
    fn membership_at(&mut self, at: Option<&LogId>) -> StoredMembership {
        while let Some(next) = self.memberships.get(1)
            && next.log_id().as_ref() <= at
        {
            self.memberships.pop_front();
        }
        self.memberships.front().cloned().unwrap_or_default()
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = View;
    type SnapshotBuilder = DurablePoint;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.state.lock();
        Ok((types::log_id(state.applied), state.membership()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut run = Vec::new();
        while let Some(entry) = entries.next().await {
            run.push(entry?);
            if run.len() == ENTRIES_PER_RUN_MAX {
                self.run(std::mem::take(&mut run)).await?;
            }
        }
        self.run(run).await
    }

    async fn get_snapshot_builder(&mut self) -> DurablePoint {
        DurablePoint { log: self.log.clone(), state: self.state.clone() }
    }

    async fn install_snapshot(&mut self, _: &SnapshotMeta, _: View) -> Result<(), io::Error> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "nothing was received"))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(None)
    }
}

/// Says how far a replica's state is durable.
pub struct DurablePoint {
    #[allow(dead_code, reason = "the flushed index comes from here")]
    log: Log,
    state: Arc<Mutex<State>>,
}

impl RaftSnapshotBuilder<TypeConfig> for DurablePoint {
    type SnapshotData = View;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let mut state = self.state.lock();
        let last_log_id = types::log_id(state.applied);
        let last_membership = state.membership_at(last_log_id.as_ref());
        let meta = SnapshotMeta { last_log_id, last_membership };
        Ok(Snapshot { meta, snapshot: View::Durable })
    }
}
