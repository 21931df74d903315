//! The commit thread: one synced batch for everything that waits, of all replicas.
//!
//! Jobs come in one bounded queue and are done in order: appends, votes, truncations, purges.
//! The thread takes what waits (up to [`BATCH_BYTES_MAX`]), writes it as one unsynced batch,
//! syncs the write-ahead log once, then tells everyone. While it syncs, the next batch gathers.
//! It waits a little for as many jobs as it had last, since who was told often comes back: that
//! makes fewer syncs of the same jobs. It waits [`GATHER_MAX`] at most, however long the last sync
//! took, and not at all with an urgent job (a vote, which an election waits for). A job that comes
//! alone again and again never waits.
//!
//! Each batch carries a commit number. When it is synced, and before anybody is told, the file
//! `synced` claims it (`witness.rs`), so that a start can tell whether all of it is still there.
//!
//! Unsynced write plus separate sync, because a synced write would keep RocksDB's write queue
//! locked and make every apply wait for the disk.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::config::Config;
use crate::db::{Batch, Db, Family, Mutation, Owner};
use crate::error::Error;
use crate::failure::Failure;
use crate::ids::{EntryId, ReplicaId};
use crate::keys;
use crate::ledger::Ledger;
use crate::stats::{CommitCounters, CommitStats};
use crate::witness::Witness;

/// Bytes committed together, unless one job alone is larger.
pub const BATCH_BYTES_MAX: usize = 8 << 20;

/// Called once when a job is done, on the commit thread: it must not block.
pub type Callback = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Something to write.
pub(crate) struct Job {
    pub mutations: Vec<Mutation>,
    /// Whether `done` waits for a sync. Order holds either way.
    pub sync: bool,
    /// The last entry of a replica's log afterwards, if the job removes entries at its end.
    pub log_end: Option<(ReplicaId, EntryId)>,
    pub done: Callback,
}

impl Job {
    /// A job that is done when it is synced.
    pub fn synced(mutations: Vec<Mutation>, done: Callback) -> Self {
        Job { mutations, sync: true, log_end: None, done }
    }
}

/// What the thread keeps account of.
pub(crate) struct Books {
    pub ledger: Ledger,
    pub witness: Witness,
    /// Where each commit leaves its number.
    pub meta: Family,
    /// The newest commit that is synced.
    pub synced: u64,
}

/// The queue to the commit thread, and the thread.
pub(crate) struct Commit {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// How long the thread waits for jobs to gather: this part of what the last batch took.
const GATHER_SHARE: u32 = 2;

/// The longest that it does: a sync that took seconds says nothing of the next one.
const GATHER_MAX: Duration = Duration::from_millis(3);

/// How long a batch waits at most while memtables are far beyond their limit, so that flushes
/// catch up; and between two looks. Not for ever: a flush may wait for what a batch brings.
const BEHIND_WAIT_MAX: Duration = Duration::from_millis(100);
const BEHIND_LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// What the thread did last.
#[derive(Default)]
struct Last {
    jobs: usize,
    took: Duration,
}

struct Shared {
    inbox: Inbox,
    jobs_max: usize,
    bytes_max: usize,
    failure: Arc<Failure>,
    counters: CommitCounters,
    /// The thread's own, but for the end.
    books: Mutex<Books>,
}

/// Jobs on their way to the thread.
#[derive(Default)]
struct Inbox {
    queue: Mutex<Queue>,
    /// Signalled when as many jobs wait as the thread sleeps for, and at the end.
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Job, usize)>,
    bytes: usize,
    /// The thread sleeps until so many jobs wait.
    awaited: usize,
    /// An urgent job waits: nothing gathers.
    urgent: bool,
    closed: bool,
}

impl Commit {
    /// Starts the thread.
    pub fn start(
        db: Arc<Db>,
        failure: Arc<Failure>,
        config: &Config,
        books: Books,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            inbox: Inbox::default(),
            jobs_max: config.commit_queue_entries_max,
            bytes_max: config.commit_queue_bytes_max,
            failure,
            counters: CommitCounters::default(),
            books: Mutex::new(books),
        });
        let run = {
            let shared = shared.clone();
            move || {
                let mut last = Last::default();
                while let Some((jobs, bytes)) = shared.inbox.take(&last) {
                    last = shared.commit(&db, jobs, bytes);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("commit".into())
            .spawn(run)
            .map_err(|error| Error::io("start the commit thread", error))?;
        Ok(Commit { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Puts a job in the queue. If it is refused, `done` is not called.
    pub fn push(&self, job: Job) -> Result<(), Error> {
        self.enqueue(job, false)
    }

    /// The same of a job that does not wait for others to share its sync: nor do those in front.
    pub fn push_urgent(&self, job: Job) -> Result<(), Error> {
        self.enqueue(job, true)
    }

    fn enqueue(&self, job: Job, urgent: bool) -> Result<(), Error> {
        self.shared.failure.check()?;
        let bytes = job.mutations.iter().map(Mutation::bytes).sum();
        let mut queue = self.shared.inbox.queue.lock();
        if queue.closed {
            return Err(Error::io("commit", "the store is closed"));
        }
        if queue.jobs.len() >= self.shared.jobs_max {
            let max = self.shared.jobs_max;
            return Err(Error::Overloaded { queue: "commit queue (jobs)", max });
        }
        if !queue.jobs.is_empty() && queue.bytes + bytes > self.shared.bytes_max {
            let max = self.shared.bytes_max;
            return Err(Error::Overloaded { queue: "commit queue (bytes)", max });
        }
        queue.bytes += bytes;
        queue.jobs.push_back((job, bytes));
        queue.urgent |= urgent;
        let enough = urgent || queue.jobs.len() == queue.awaited;
        drop(queue);
        if enough {
            self.shared.inbox.arrived.notify_one();
        }
        Ok(())
    }

    /// Writes something and waits until it is synced.
    pub fn write_and_wait(&self, mutations: Vec<Mutation>) -> Result<(), Error> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let done = Box::new(move |result| {
            // The receiver waits right below.
            let _ = sender.send(result);
        });
        self.push_urgent(Job::synced(mutations, done))?;
        receiver.recv().unwrap_or_else(|_| Err(Error::io("commit", "the commit thread ended")))
    }

    /// Refuses new jobs, lets the thread do what waits, and ends it. Blocks, unless it is that
    /// thread itself that calls: it ends later then.
    pub fn close(&self) {
        self.stop();
        if let Some(thread) = self.thread.lock().take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the commit thread ended in a panic");
        }
    }

    fn stop(&self) {
        self.shared.inbox.queue.lock().closed = true;
        self.shared.inbox.arrived.notify_one();
    }

    /// As [`Commit::close_books`], but does not wait and claims nothing more.
    pub fn stop_books(&self) {
        // Held while a commit is under way: its thread then ends by itself, later.
        if let Some(books) = self.shared.books.try_lock() {
            books.witness.stop();
        }
    }

    /// Ends what the file `synced` is written by, after [`Commit::close`]; with a last claim in all
    /// its slots if the store is whole. Blocks.
    pub fn close_books(&self, whole: bool) -> Result<(), Error> {
        let books = self.shared.books.lock();
        books.witness.close(whole.then_some(&books.ledger))
    }

    pub fn stats(&self) -> CommitStats {
        let counters = &self.shared.counters;
        let queue = self.shared.inbox.queue.lock();
        CommitStats {
            jobs: counters.jobs.load(Relaxed),
            bytes: counters.bytes.load(Relaxed),
            syncs: counters.syncs.load(Relaxed),
            jobs_per_sync: counters.jobs_per_sync.read(),
            sync_micros: counters.sync_micros.read(),
            waiting: queue.jobs.len(),
            waiting_bytes: queue.bytes,
        }
    }
}

impl Inbox {
    /// Waits for jobs and takes as many as one batch may have. `None`: closed and empty.
    fn take(&self, last: &Last) -> Option<(Vec<Job>, usize)> {
        let mut queue = self.queue.lock();
        while queue.jobs.is_empty() {
            if queue.closed {
                return None;
            }
            queue.awaited = 1;
            self.arrived.wait(&mut queue);
        }
        if queue.jobs.len() < last.jobs && !queue.closed && !queue.urgent {
            queue.awaited = last.jobs;
            self.arrived.wait_for(&mut queue, (last.took / GATHER_SHARE).min(GATHER_MAX));
        }
        let (mut jobs, mut taken) = (Vec::new(), 0);
        while let Some((_, bytes)) = queue.jobs.front() {
            if !jobs.is_empty() && taken + bytes > BATCH_BYTES_MAX {
                break;
            }
            let (job, bytes) = queue.jobs.pop_front().expect("the front was there");
            queue.bytes -= bytes;
            taken += bytes;
            jobs.push(job);
        }
        // What did not fit is next, and has waited already.
        queue.urgent &= !queue.jobs.is_empty();
        Some((jobs, taken))
    }
}

impl Shared {
    fn commit(&self, db: &Db, jobs: Vec<Job>, bytes: usize) -> Last {
        let count = jobs.len();
        let started = Instant::now();
        let result = self
            .failure
            .check()
            .and_then(|()| self.write(db, &jobs).map_err(|error| self.failure.raise(&error)));
        self.counters.committed(jobs.len(), bytes);
        let took = started.elapsed();
        for job in jobs {
            let (done, result) = (job.done, result.clone());
            // A callback that panics must not take everybody's disk away.
            if std::panic::catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
                tracing::error!("a commit callback panicked");
            }
        }
        Last { jobs: count, took }
    }

    fn write(&self, db: &Db, jobs: &[Job]) -> Result<(), Error> {
        let started = Instant::now();
        let mut books = self.books.lock();
        let (mut batch, mut touched) = (Batch::default(), Vec::new());
        for mutation in jobs.iter().flat_map(|job| &job.mutations) {
            batch.add(mutation);
            // The same few families again and again, often several times in a row.
            if !touched.iter().rev().any(|it: &&Family| it.owner() == mutation.family().owner()) {
                touched.push(mutation.family());
            }
        }
        if !batch.is_empty() {
            while db.is_behind() && started.elapsed() < BEHIND_WAIT_MAX {
                std::thread::sleep(BEHIND_LOOK_INTERVAL);
            }
            books.number(&mut batch, &touched);
            db.write(batch)?;
            books.note(jobs, &touched);
        }
        if jobs.iter().any(|job| job.sync) {
            db.sync()?;
            books.claim()?;
            self.counters.synced(jobs.len(), started.elapsed());
        }
        if jobs.iter().flat_map(|job| &job.mutations).any(Mutation::is_fact) {
            // Few and small, and nothing works without them: in a table file too at once.
            db.flush(&books.meta)?;
        }
        Ok(())
    }
}

impl Books {
    /// Adds the number of the commit to its batch, once for each family that it writes to.
    fn number(&self, batch: &mut Batch, touched: &[&Family]) {
        let number = self.ledger.commit + 1;
        batch.put(&self.meta, keys::COMMIT, &keys::commit_value(number, self.synced));
        for family in touched {
            if family.owner() != Owner::Meta {
                batch.put(family, keys::COMMIT, &number.to_le_bytes());
            }
        }
    }

    fn note(&mut self, jobs: &[Job], touched: &[&Family]) {
        self.ledger.commit += 1;
        jobs.iter().for_each(|job| self.ledger.note(job));
        touched.iter().for_each(|family| self.ledger.touch(family));
    }

    /// Claims all that was written so far, which is synced.
    fn claim(&mut self) -> Result<(), Error> {
        if self.synced == self.ledger.commit {
            return Ok(());
        }
        self.witness.claim(&self.ledger)?;
        self.synced = self.ledger.commit;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Jobs in the inbox, of which one may be urgent.
    fn queued(jobs: usize, urgent: bool) -> Inbox {
        let job = || (Job::synced(Vec::new(), Box::new(|_| ())), 0);
        let jobs = (0..jobs).map(|_| job()).collect();
        Inbox {
            queue: Mutex::new(Queue { jobs, urgent, ..Queue::default() }),
            arrived: Condvar::new(),
        }
    }

    #[test]
    fn an_urgent_job_waits_for_no_others() {
        let last = Last { jobs: 100, took: Duration::from_secs(10) };
        let waits = || {
            let started = Instant::now();
            queued(1, true).take(&last).expect("a job waits");
            started.elapsed()
        };
        // The machine may be busy with something else: of many at least one is quick.
        let quickest = (0..50).map(|_| waits()).min().expect("there are 50");
        assert!(quickest < GATHER_MAX, "{quickest:?}");
    }

    #[test]
    fn after_a_sync_of_ten_seconds_jobs_wait_for_others_a_few_milliseconds() {
        let last = Last { jobs: 100, took: Duration::from_secs(10) };
        for urgent in [false, true] {
            let started = Instant::now();
            let inbox = queued(1, urgent);
            let (jobs, _) = inbox.take(&last).expect("a job waits");
            assert_eq!(jobs.len(), 1);
            let waited = started.elapsed();
            assert!(waited < Duration::from_secs(2), "urgent {urgent}: {waited:?}");
            assert!(urgent || waited >= GATHER_MAX, "it does gather: {waited:?}");
            assert!(!inbox.queue.lock().urgent, "what is taken is urgent no more");
        }
    }
}
