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
use statehouse_store as store;
use statehouse_store::{Body, Damage, EntryId, Export, Log, Received, ReplicaId, Shard, Store};
use tokio::sync::{oneshot, watch};

use super::convert;
use super::fault::{Fault, Whose};
use super::landed::Landed;
use super::log_storage::blocking;
use super::types::{self, Entry, LogId, Replies, SnapshotMeta, StoredMembership, TypeConfig};
use crate::Error;
use crate::applier::{Answer, Applier, Run};

/// Entries handed to the apply thread at a time.
const ENTRIES_PER_RUN_MAX: usize = 256;

/// openraft's name for a snapshot and what it says of it.
pub type Snapshot = openraft::Snapshot<types::CommittedLeaderId, u64, types::Member, View>;

/// What stands behind a snapshot.
pub enum View {
    /// Nothing to send: says how far the state is durable.
    Durable,
    /// The state as it is now, to be sent.
    Outgoing(Box<Export>),
    /// Another replica's state, to be installed.
    Incoming(Box<Received>),
}

/// One replica's state machine, as openraft drives it.
pub struct StateMachine {
    store: Store,
    replica: ReplicaId,
    log: Log,
    applier: Applier,
    state: Arc<Mutex<State>>,
    /// The last entry applied, for those who wait for one.
    applied: watch::Sender<EntryId>,
    landed: Arc<Landed>,
    fault: Arc<Fault>,
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
        (store, replica, log, shard): (Store, ReplicaId, Log, Shard),
        applier: Applier,
        applied: watch::Sender<EntryId>,
        (landed, fault): (Arc<Landed>, Arc<Fault>),
    ) -> Result<Self, Error> {
        let state = State {
            applied: shard.applied(),
            memberships: VecDeque::from([stored_membership(shard.membership())?]),
        };
        applied.send_replace(state.applied);
        applier.own(replica, shard);
        Ok(StateMachine {
            store,
            replica,
            log,
            applier,
            state: Arc::new(Mutex::new(state)),
            applied,
            landed,
            fault,
        })
    }

    /// Has entries applied; answers who waits for their replies.
    async fn run(&self, entries: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let Some((last, _)) = entries.last() else { return Ok(()) };
        let last = last.stored.id();
        if !self.landed.reach(last.index).await {
            let reason = "the log is not durable: nothing more is applied";
            self.fault.note(Whose::Node, reason.to_owned());
            return Err(io::Error::other(reason));
        }
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
        applied.await.map_err(|_| self.gone())?.map_err(|error| self.failed("apply", &error))?;
        let mut state = self.state.lock();
        state.applied = last;
        state.memberships.extend(memberships);
        Ok(())
    }

    /// The replica can't go on: it leads no more from here on, before Raft knows.
    fn failed(&self, what: &str, error: &store::Error) -> io::Error {
        self.fault.note(Whose::Replica, format!("{what}: {error}"));
        if matches!(error, store::Error::Corrupt { .. }) {
            let detail = error.to_string();
            let replica = Some(self.replica);
            self.store.report_damage(&Damage { replica, file: None, offset: None, detail });
        }
        io::Error::other(error.clone())
    }

    /// The node can't go on: that says nothing of the replica.
    fn gone(&self) -> io::Error {
        let reason = "the apply thread has stopped";
        self.fault.note(Whose::Node, reason.to_owned());
        io::Error::other(reason)
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

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, view: View) -> io::Result<()> {
        let View::Incoming(received) = view else {
            return Err(io::Error::other("expected a view that was received"));
        };
        let mut shard = self.applier.lend(self.replica).await.ok_or_else(|| self.gone())?;
        let (shard, installed) = blocking(move || {
            let installed = shard.install(*received);
            (shard, installed)
        })
        .await?;
        self.applier.own(self.replica, shard);
        installed.map_err(|error| self.failed("install a snapshot", &error))?;
        let applied = types::entry_id_or_default(meta.last_log_id);
        {
            let mut state = self.state.lock();
            state.applied = applied;
            state.memberships = VecDeque::from([meta.last_membership.clone()]);
        }
        self.landed.replaced(self.log.last().map_or(0, |last| last.index));
        self.applied.send_replace(applied);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        // Nothing is applied meanwhile: openraft asks where it applies.
        if self.state.lock().applied.index == 0 {
            return Ok(None);
        }
        let (store, replica) = (self.store.clone(), self.replica);
        let export = blocking(move || store.export(replica)).await?;
        let export = export.map_err(|error| self.failed("make a snapshot", &error))?;
        let last_membership = stored_membership(export.membership()).map_err(io::Error::other)?;
        let meta = SnapshotMeta { last_log_id: types::log_id(export.applied()), last_membership };
        Ok(Some(Snapshot { meta, snapshot: View::Outgoing(Box::new(export)) }))
    }
}

/// Says how far a replica's state is durable.
pub struct DurablePoint {
    log: Log,
    state: Arc<Mutex<State>>,
}

impl RaftSnapshotBuilder<TypeConfig> for DurablePoint {
    type SnapshotData = View;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let log = self.log.clone();
        let flushed = blocking(move || log.flushed()).await?.map_err(io::Error::other)?;
        let last_log_id = types::log_id(flushed);
        let last_membership = self.state.lock().membership_at(last_log_id.as_ref());
        let meta = SnapshotMeta { last_log_id, last_membership };
        Ok(Snapshot { meta, snapshot: View::Durable })
    }
}
