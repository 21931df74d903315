//! The thread that applies committed entries, for all replicas of a node.
//!
//! It takes every run of entries that waits, applies all of them in one store batch, then
//! answers. A run is one replica's; a replica has one under way at most, which bounds the queue.
//! It owns every `Shard`; whoever needs one for itself (to install a snapshot) borrows it.
//!
//! Decides nothing about what is committed: that is Raft's.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use statehouse_store as store;
use statehouse_store::{Entry, EntryId, ReplicaId, Reply, Shard, Store};
use tokio::sync::{oneshot, watch};

use crate::Error;

/// Entries applied in one store batch, unless one run alone has more.
const ENTRIES_PER_BATCH_MAX: usize = 256;

/// Bytes of changes in one store batch, unless one run alone has more.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// Takes the replies of one entry. Called on the apply thread: must not block.
pub type Answer = Box<dyn FnOnce(Vec<Reply>) + Send>;

/// Entries of one replica, in order.
pub struct Run {
    pub replica: ReplicaId,
    pub entries: Vec<(Arc<Entry>, Option<Answer>)>,
    /// Told the last entry when all are applied, before anybody is answered.
    pub applied: watch::Sender<EntryId>,
    /// Told when all are applied, behind the answers.
    pub done: oneshot::Sender<Result<(), store::Error>>,
}

enum Event {
    Own(ReplicaId, Shard),
    Apply(Run),
    Lend(ReplicaId, oneshot::Sender<Option<Shard>>),
    Stop,
}

/// A handle to the thread. Cheap to clone.
#[derive(Clone)]
pub struct Applier {
    events: Sender<Event>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Applier {
    /// Starts the thread.
    pub fn start(store: Store) -> Result<Applier, Error> {
        // Bounded by the replicas: each has at most one run under way.
        let (events, receiver) = crossbeam_channel::unbounded();
        let worker = Worker { store, shards: HashMap::new(), events: receiver };
        let thread = std::thread::Builder::new()
            .name("apply".into())
            .spawn(move || worker.run())
            .map_err(|error| Error::Invalid(format!("start the apply thread: {error}")))?;
        Ok(Applier { events, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Hands a shard over, for the first time or after it was lent.
    pub fn own(&self, replica: ReplicaId, shard: Shard) {
        let _ = self.events.send(Event::Own(replica, shard));
    }

    /// Has a run applied. A stopped thread drops it, and with it whoever waits.
    pub fn apply(&self, run: Run) {
        let _ = self.events.send(Event::Apply(run));
    }

    /// Takes a shard out, behind the runs that wait. Its runs fail until it is back.
    pub async fn lend(&self, replica: ReplicaId) -> Option<Shard> {
        let (sender, receiver) = oneshot::channel();
        let _ = self.events.send(Event::Lend(replica, sender));
        receiver.await.ok().flatten()
    }

    /// Stops the thread behind the runs that wait. Blocks.
    pub fn stop(&self) {
        let _ = self.events.send(Event::Stop);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the apply thread had panicked");
        }
    }
}

struct Worker {
    store: Store,
    shards: HashMap<ReplicaId, Shard>,
    events: Receiver<Event>,
}

impl Worker {
    fn run(mut self) {
        while let Ok(first) = self.events.recv() {
            let mut runs = Vec::new();
            let mut entries = 0;
            let mut next = Some(first);
            while let Some(event) = next {
                if let Event::Apply(run) = event {
                    entries += run.entries.len();
                    runs.push(run);
                } else {
                    self.take(std::mem::take(&mut runs));
                    entries = 0;
                    match event {
                        Event::Own(replica, shard) => {
                            self.shards.insert(replica, shard);
                        }
                        Event::Lend(replica, borrower) => {
                            if let Err(Some(shard)) = borrower.send(self.shards.remove(&replica)) {
                                self.shards.insert(replica, shard);
                            }
                        }
                        Event::Stop => return,
                        Event::Apply(_) => unreachable!("handled above"),
                    }
                }
                if entries >= ENTRIES_PER_BATCH_MAX {
                    break;
                }
                next = self.events.try_recv().ok();
            }
            self.take(runs);
        }
    }

    /// Applies runs in as few batches as their size allows.
    fn take(&mut self, runs: Vec<Run>) {
        let mut runs = runs.into_iter().peekable();
        while runs.peek().is_some() {
            let mut batch = self.store.apply_batch();
            let mut applied = Vec::new();
            for run in runs.by_ref() {
                match apply(self.shards.get_mut(&run.replica), &mut batch, &run) {
                    Ok(replies) => applied.push((run, replies)),
                    // This replica stops: one of the others may have no part in it.
                    Err(error) => {
                        let _ = run.done.send(Err(error));
                    }
                }
                if batch.bytes() >= BATCH_BYTES_MAX {
                    break;
                }
            }
            match batch.commit() {
                Ok(()) => applied.into_iter().for_each(answer),
                // Nobody knows what was written: the store has failed, and with it the node.
                Err(error) => {
                    tracing::error!(%error, "apply failed: replicas stop");
                    for (run, _) in applied {
                        let _ = run.done.send(Err(error.clone()));
                    }
                }
            }
        }
    }
}

/// Adds a run to a batch. A replica that fails, or panics, is left out of the batch.
fn apply(
    shard: Option<&mut Shard>,
    batch: &mut store::ApplyBatch,
    run: &Run,
) -> Result<Vec<Vec<Reply>>, store::Error> {
    let stopped = |detail: String| store::Error::Io { what: "apply", detail };
    let Some(shard) = shard else { return Err(stopped("the replica has stopped".to_owned())) };
    let applying = AssertUnwindSafe(|| {
        run.entries.iter().map(|(entry, _)| shard.apply(batch, entry)).collect()
    });
    match std::panic::catch_unwind(applying) {
        Ok(applied) => applied,
        Err(_) => {
            let error = stopped("an entry could not be applied: it panicked".to_owned());
            batch.fail(run.replica, &error);
            Err(error)
        }
    }
}

fn answer((run, replies): (Run, Vec<Vec<Reply>>)) {
    if let Some((last, _)) = run.entries.last() {
        run.applied.send_replace(last.id());
    }
    for ((_, answer), replies) in run.entries.into_iter().zip(replies) {
        if let Some(answer) = answer {
            answer(replies);
        }
    }
    // A group that has stopped no longer waits.
    let _ = run.done.send(Ok(()));
}
