//! The thread that applies what is durable, for all replicas of a node.
//!
//! It takes every entry that became durable meanwhile, first lets the next entries leave (so that
//! the disk is busy while it works), then applies all of them in one store batch, then answers.

use std::collections::HashMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use statehouse_store as store;
use statehouse_store::{Entry, ReplicaId, Shard, Store};

use crate::Error;
use crate::replica::{Done, Replica};

/// Entries applied in one store batch.
const ENTRIES_PER_BATCH_MAX: usize = 256;

/// Entries kept behind the applied one; purging comes in runs of as many.
const LOG_KEPT_ENTRIES: u64 = 1_024;

/// An entry that the commit thread has dealt with.
pub struct Appended {
    pub replica: Arc<Replica>,
    pub entry: Arc<Entry>,
    pub waiters: Vec<Done>,
    pub result: Result<(), store::Error>,
}

/// What the driver is told.
pub enum Event {
    Appended(Appended),
    Stop,
}

/// Applies entries; owns every `Shard` of the node.
pub struct Driver {
    store: Store,
    shards: HashMap<ReplicaId, Shard>,
    /// The applied index at which the log is purged next.
    next_purges: HashMap<ReplicaId, u64>,
    events: Receiver<Event>,
}

impl Driver {
    pub fn new(store: Store, shards: HashMap<ReplicaId, Shard>) -> (Self, Sender<Event>) {
        // Bounded by the replicas: each has at most one entry on its way.
        let (sender, events) = crossbeam_channel::unbounded();
        (Driver { store, shards, next_purges: HashMap::new(), events }, sender)
    }

    /// Runs until told to stop, or until every sender is gone.
    pub fn run(mut self) {
        let mut stopping = false;
        while !stopping {
            let Ok(first) = self.events.recv() else { return };
            let mut appended = Vec::new();
            for event in std::iter::once(first).chain(self.events.try_iter()) {
                match event {
                    Event::Appended(event) => appended.push(event),
                    Event::Stop => stopping = true,
                }
                if appended.len() == ENTRIES_PER_BATCH_MAX || stopping {
                    break;
                }
            }
            self.take(appended);
        }
    }

    fn take(&mut self, appended: Vec<Appended>) {
        let mut durable = Vec::with_capacity(appended.len());
        for event in appended {
            match &event.result {
                Ok(()) => {
                    event.replica.landed();
                    durable.push(event);
                }
                Err(error) => {
                    let reason = error.to_string();
                    event.replica.close(&reason, event.waiters);
                }
            }
        }
        if durable.is_empty() {
            return;
        }
        match self.apply(&durable) {
            Ok(replies) => {
                for (event, replies) in durable.into_iter().zip(replies) {
                    self.purge(&event.replica, event.entry.index);
                    for (done, reply) in event.waiters.into_iter().zip(replies) {
                        done(Ok(reply));
                    }
                }
            }
            // Going on after a failed apply would be a guess: every replica here closes.
            Err(error) => {
                tracing::error!(%error, "apply failed: replicas stop");
                let reason = error.to_string();
                for event in durable {
                    event.replica.close(&reason, event.waiters);
                }
            }
        }
    }

    fn apply(&mut self, durable: &[Appended]) -> Result<Vec<Vec<store::Reply>>, Error> {
        let mut batch = self.store.apply_batch();
        let mut replies = Vec::with_capacity(durable.len());
        for event in durable {
            let shard = self
                .shards
                .get_mut(&event.replica.id())
                .expect("the driver owns the shard of every replica that appends");
            replies.push(shard.apply(&mut batch, &event.entry)?);
        }
        batch.commit()?;
        Ok(replies)
    }

    /// Purges what is flushed, but for the last entries. `checkpointer.rs` sees to the flushes.
    fn purge(&mut self, replica: &Replica, applied: u64) {
        let next = self.next_purges.entry(replica.id()).or_default();
        if applied < *next {
            return;
        }
        *next = applied + LOG_KEPT_ENTRIES;
        let (shard, log) = (replica.shard_id(), replica.log());
        let purged = log.flushed().and_then(|flushed| {
            let through = flushed.index.min(applied.saturating_sub(LOG_KEPT_ENTRIES));
            if through <= log.purged().map_or(0, |purged| purged.index) {
                return Ok(());
            }
            let done = move |result: Result<(), store::Error>| {
                if let Err(error) = result {
                    tracing::warn!(%shard, %error, "log not purged");
                }
            };
            log.purge_through(through, Box::new(done))
        });
        if let Err(error) = purged {
            tracing::warn!(%shard, %error, "log not purged");
        }
    }
}
