//! openraft's own conformance suite over our log and state machine.
//!
//! The suite begins logs in the middle, applies entries that no log has, and purges what was
//! never applied. Our store refuses all of that, since none of it happens to a replica; here the
//! gaps are filled with blank entries first.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, TryFutureExt as _};
use openraft::entry::RaftEntry;
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftLogStorageExt,
    RaftStateMachine,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, StorageError};
use statehouse_store::{Config, Error, ReplicaId, Store};
use tempfile::TempDir;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use super::landed::Landed;
use super::log_storage::LogStorage;
use super::state_machine::{DurablePoint, Snapshot, StateMachine, View};
use super::types::{
    CommittedLeaderId, Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig, Vote,
};
use crate::applier::Applier;

const REPLICA: ReplicaId = ReplicaId(1);

/// Long enough for a refusal to come.
const TRIED: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(20);

type Machine = Arc<Mutex<StateMachine>>;

#[test]
fn the_log_and_the_state_machine_do_what_openraft_expects() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(Suite::test_all(Builder { config: Config::default() })).unwrap();
}

#[test]
fn what_a_full_commit_queue_does_not_take_waits_until_it_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // With one job in it the queue is full.
        let config = Config { commit_queue_entries_max: 1, ..Config::default() };
        let (built, filling, _machine) = Builder { config }.build().await.unwrap();
        let (store, mut log) = (&built.store, filling.log.clone());
        let entries: Vec<_> = (0..4).map(|index| blank(1, index)).collect();
        let appended = log.blocking_append(entries.clone());
        waits(store, appended.map_err(io::Error::other)).await;
        waits(store, log.truncate_after(Some(entries[1].log_id()))).await;
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(entries[1].log_id()));
        apply_all(&filling.machine, entries[..2].to_vec()).await.unwrap();
        store.flush(&[REPLICA]).unwrap();
        waits(store, log.purge(entries[1].log_id())).await;
        let purged = log.get_log_state().await.unwrap().last_purged_log_id;
        assert_eq!(purged, Some(entries[1].log_id()));
    });
}

/// Asserts that something is neither refused nor done while the commit queue is full, and done once
/// it is not.
async fn waits(store: &Store, job: impl Future<Output = io::Result<()>>) {
    let full = fill_queue(store);
    let mut job = std::pin::pin!(job);
    let early = timeout(TRIED, &mut job).await;
    assert!(early.is_err(), "with a full queue: {early:?}");
    drop(full);
    timeout(PATIENCE, job).await.expect("it is done in the end").unwrap();
}

/// Holds up the commit thread and fills its queue until the answer is dropped.
fn fill_queue(store: &Store) -> mpsc::Sender<()> {
    let (hold, held) = mpsc::channel();
    let held = Arc::new(std::sync::Mutex::new(held));
    let (begin, begun) = mpsc::channel();
    let holding = || {
        let (begin, held) = (begin.clone(), held.clone());
        Box::new(move |_| {
            begin.send(()).unwrap();
            // An error means that it was held for long enough.
            let _ = held.lock().unwrap().recv();
        })
    };
    // A job that nobody waits for, such as a truncation, may still be in the queue.
    while let Err(error) = store.meta_put("held", Bytes::new(), holding()) {
        assert!(matches!(error, Error::Overloaded { .. }), "{error}");
        std::thread::yield_now();
    }
    begun.recv().unwrap();
    while store.meta_put("filled", Bytes::new(), Box::new(|_| ())).is_ok() {}
    hold
}

struct Builder {
    config: Config,
}

/// Stops what was built, in order.
struct Built {
    applier: Applier,
    store: Store,
    _dir: TempDir,
}

impl Drop for Built {
    fn drop(&mut self) {
        self.applier.stop();
        self.store.close().unwrap();
    }
}

impl StoreBuilder<TypeConfig, Filling, FillingMachine, Built> for Builder {
    async fn build(&self) -> Result<(Built, Filling, FillingMachine), StorageError<TypeConfig>> {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path(), self.config.clone()).unwrap();
        store.create_replica(REPLICA).unwrap();
        let applier = Applier::start(store.clone()).unwrap();
        let (applied_sender, applied) = watch::channel(statehouse_store::EntryId::default());
        let log = store.log(REPLICA).unwrap();
        let shard = store.shard(REPLICA).unwrap();
        let parts = (store.clone(), REPLICA, log.clone(), shard);
        // The suite applies entries that it never appended.
        let landed = Arc::new(Landed::through(u64::MAX));
        let shared = (landed.clone(), Arc::default());
        let machine = StateMachine::new(parts, applier.clone(), applied_sender, shared);
        let machine: Machine = Arc::new(Mutex::new(machine.unwrap()));
        let log = LogStorage::new(log, applied, Arc::default(), landed, Arc::default());
        let filling = Filling { store: store.clone(), log: log.clone(), machine: machine.clone() };
        let machine = FillingMachine { store: store.clone(), log, machine };
        Ok((Built { applier, store, _dir: dir }, filling, machine))
    }
}

fn blank(term: u64, index: u64) -> Entry {
    let log_id = LogId { leader_id: CommittedLeaderId::new(term), index };
    Entry::new(log_id, EntryPayload::Blank)
}

fn next_index(last: Option<LogId>) -> u64 {
    last.map_or(0, |last| last.index + 1)
}

async fn apply_all(machine: &Machine, entries: Vec<Entry>) -> io::Result<()> {
    let entries = entries.into_iter().map(|entry| Ok((entry, None)));
    machine.lock().await.apply(futures::stream::iter(entries)).await
}

/// A log whose gaps are filled.
struct Filling {
    store: Store,
    log: LogStorage,
    machine: Machine,
}

impl RaftLogReader<TypeConfig> for Filling {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        self.log.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.log.read_vote().await
    }
}

impl RaftLogStorage<TypeConfig> for Filling {
    type LogReader = LogStorage;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.log.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogStorage {
        self.log.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.log.save_vote(vote).await
    }

    async fn append<I>(&mut self, entries: I, done: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let first = entries[0].log_id();
        let last = self.log.get_log_state().await?.last_log_id;
        let missing = next_index(last)..first.index;
        let filled = missing.map(|index| blank(first.leader_id.term, index)).chain(entries);
        self.log.append(filled.collect::<Vec<_>>(), done).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.log.truncate_after(last).await
    }

    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        let (applied, _) = self.machine.lock().await.applied_state().await?;
        let first = next_index(applied);
        if first <= through.index {
            let mut entries = self.log.try_get_log_entries(first..=through.index).await?;
            let have = first + entries.len() as u64;
            let missing = have..=through.index;
            entries.extend(missing.map(|index| blank(through.leader_id.term, index)));
            apply_all(&self.machine, entries).await?;
        }
        // Only what is flushed is purged, and only that is a snapshot.
        self.store.flush(&[REPLICA]).unwrap();
        self.log.purge(through).await
    }
}

/// A state machine whose gaps are filled.
struct FillingMachine {
    store: Store,
    log: LogStorage,
    machine: Machine,
}

impl RaftStateMachine<TypeConfig> for FillingMachine {
    type SnapshotData = View;
    type SnapshotBuilder = DurablePoint;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        self.machine.lock().await.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let entries: Vec<_> = futures::TryStreamExt::try_collect(entries).await?;
        let entries: Vec<Entry> = entries.into_iter().map(|(entry, _)| entry).collect();
        let (applied, _) = self.applied_state().await?;
        let first = entries[0].log_id();
        let missing = next_index(applied)..first.index;
        let mut filled = self.log.try_get_log_entries(missing.clone()).await?;
        let have = missing.start + filled.len() as u64;
        filled.extend((have..missing.end).map(|index| blank(first.leader_id.term, index)));
        // What the suite applies in one call may have gaps as well.
        for entry in entries {
            while let Some(last) = filled.last()
                && last.log_id().index + 1 < entry.log_id().index
            {
                filled.push(blank(first.leader_id.term, last.log_id().index + 1));
            }
            filled.push(entry);
        }
        apply_all(&self.machine, filled).await?;
        self.store.flush(&[REPLICA]).unwrap();
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> DurablePoint {
        self.machine.lock().await.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: View,
    ) -> Result<(), io::Error> {
        // As a transfer does it: block by block into files.
        let View::Outgoing(mut export) = snapshot else { panic!("a view to send") };
        let mut incoming = self.store.receive(REPLICA).unwrap();
        while let Some(block) = export.next(1 << 20).unwrap() {
            incoming.add(block).unwrap();
        }
        let received = View::Incoming(Box::new(incoming.finish().unwrap()));
        self.machine.lock().await.install_snapshot(meta, received).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.machine.lock().await.get_current_snapshot().await
    }
}
