//! One shard's copy on this node: commands in, replies out, and a reader beside.
//!
//! Decides nothing about batching (`proposals.rs`) and applies nothing (`driver.rs`).

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use statehouse_store::{Body, Command, Entry, Log, Reader, ReplicaId, Reply};

use crate::driver::{Appended, Event};
use crate::proposals::{Cut, Limits, Proposal, Queue};
use crate::{Error, ShardId};

/// Called once with a proposal's reply, on the driver's thread: it must not block.
pub type Done = Box<dyn FnOnce(Result<Reply, Error>) + Send>;

/// The term of every entry while a replica is its own quorum.
const TERM: u64 = 1;

/// One shard's copy on this node.
pub struct Replica {
    shard_id: ShardId,
    id: ReplicaId,
    log: Log,
    reader: Reader,
    proposals: Mutex<Proposals>,
    driver: Sender<Event>,
}

struct Proposals {
    queue: Queue<Done>,
    closed: Option<String>,
}

impl Replica {
    pub(crate) fn new(
        shard_id: ShardId,
        (id, log, reader): (ReplicaId, Log, Reader),
        limits: Limits,
        next_index: u64,
        driver: Sender<Event>,
    ) -> Arc<Self> {
        let proposals =
            Mutex::new(Proposals { queue: Queue::new(limits, next_index), closed: None });
        Arc::new(Replica { shard_id, id, log, reader, proposals, driver })
    }

    /// The shard that this is a copy of.
    pub fn shard_id(&self) -> ShardId {
        self.shard_id
    }

    pub(crate) fn id(&self) -> ReplicaId {
        self.id
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Reads what is applied. Linearizable as long as a replica is its own quorum, since a write
    /// is answered after it is applied.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Proposals that wait for the next entry.
    pub fn waiting(&self) -> usize {
        self.proposals.lock().queue.waiting()
    }

    /// Hands a command over; `done` gets its reply once it is durable and applied.
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
            let shard = u32::from(self.shard_id.0);
            return refused(Err(Error::Overloaded { shard, waiting }));
        }
        // Appended under the lock: entries must enter the log in the order of their indexes.
        let failed = proposals.queue.cut(unix_now_ms()).and_then(|cut| self.append(cut).err());
        drop(proposals);
        if let Some((error, waiters)) = failed {
            self.close(&error.to_string(), waiters);
        }
    }

    /// The entry on its way is durable: the next one leaves.
    pub(crate) fn landed(self: &Arc<Self>) {
        let mut proposals = self.proposals.lock();
        proposals.queue.landed();
        let failed = proposals.queue.cut(unix_now_ms()).and_then(|cut| self.append(cut).err());
        drop(proposals);
        if let Some((error, waiters)) = failed {
            self.close(&error.to_string(), waiters);
        }
    }

    fn append(self: &Arc<Self>, cut: Cut<Done>) -> Result<(), (Error, Vec<Done>)> {
        let entry =
            Arc::new(Entry { index: cut.index, term: TERM, body: Body::Commands(cut.batch) });
        let waiters = Arc::new(Mutex::new(cut.waiters));
        let appended = {
            let (replica, entry, waiters) = (self.clone(), entry.clone(), waiters.clone());
            move |result| {
                let waiters = std::mem::take(&mut *waiters.lock());
                let event = Appended { replica: replica.clone(), entry, waiters, result };
                // A closed driver means a stopping node; its waiters learn it from the drop.
                let _ = replica.driver.send(Event::Appended(event));
            }
        };
        self.log.append(vec![entry], Box::new(appended)).map_err(|error| {
            let waiters = std::mem::take(&mut *waiters.lock());
            (error.into(), waiters)
        })
    }

    /// Refuses from now on, and tells everyone who waits.
    pub(crate) fn close(&self, reason: &str, in_flight: Vec<Done>) {
        let waiting = {
            let mut proposals = self.proposals.lock();
            proposals.closed.get_or_insert_with(|| reason.to_owned());
            proposals.queue.drain()
        };
        for done in in_flight {
            done(Err(Error::OutcomeUnknown { reason: reason.to_owned() }));
        }
        for done in waiting {
            done(Err(Error::Closed { reason: reason.to_owned() }));
        }
    }
}

/// Unix milliseconds by this machine's clock.
pub(crate) fn unix_now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
