//! Has replicas flushed, so that their logs may be purged and a start replays little.
//!
//! What a replica has applied is in memory until RocksDB flushes its column family, which it does
//! by its own measure: when memtables are full. A replica of few or idle writes would hold its
//! log for ever, and one of large payloads a long one. One thread looks at all replicas of a store
//! and flushes those whose unflushed entries are too many or too old. So it does with one whose log
//! was purged of much: the space of what that deleted comes back after a flush.
//!
//! Knows nothing of shards or quorums, and purges nothing: that is up to whoever drives the log.

use std::collections::HashMap;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use statehouse_store as store;
use statehouse_store::{ReplicaId, Store};

use crate::Error;

/// How often the replicas are looked at; their logs pass a limit by what comes meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How much may be applied and not flushed.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of entries of one replica.
    pub replica_bytes_max: u64,
    /// Bytes of entries of all replicas together.
    pub node_bytes_max: u64,
    /// How long an entry may wait to be flushed.
    pub age_max: Duration,
    /// Bytes of large fields that purges of a replica's log have deleted.
    pub freed_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            replica_bytes_max: 32 << 20,
            node_bytes_max: 256 << 20,
            age_max: Duration::from_secs(60),
            freed_bytes_max: 8 << 20,
        }
    }
}

/// The thread that has replicas flushed.
pub struct Checkpointer {
    stop: Sender<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What one replica has applied and not flushed.
#[derive(Debug, Clone, Copy)]
struct Standing {
    replica: ReplicaId,
    bytes: u64,
    /// How long at least the oldest entry waits.
    age: Duration,
    /// Bytes deleted by purges.
    freed: u64,
}

/// Entries up to an index were applied when they were looked at.
struct Mark {
    applied: u64,
    at: Instant,
}

impl Checkpointer {
    /// Starts the thread. It ends with [`Checkpointer::close`], or when the store fails.
    pub fn start(store: Store, limits: Limits) -> Result<Self, Error> {
        let (stop, stopped) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || run(&store, limits, &stopped))
            .map_err(|error| Error::Invalid(format!("start the checkpoint thread: {error}")))?;
        Ok(Checkpointer { stop, thread: Mutex::new(Some(thread)) })
    }

    /// Ends the thread after the flush under way. Blocks. Once: again does nothing.
    pub fn close(&self) {
        // Full: it was told already.
        let _ = self.stop.try_send(());
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint thread had panicked");
        }
    }
}

fn run(store: &Store, limits: Limits, stopped: &Receiver<()>) {
    let mut marks = HashMap::new();
    while stopped.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let limits = match store.is_short_of_space() {
            false => limits,
            // What is deleted already takes its space until it is flushed, purged, flushed.
            true => Limits { age_max: LOOK_INTERVAL, freed_bytes_max: 0, ..limits },
        };
        let flushed = look(store, &mut marks).and_then(|standings| {
            for replica in plan(standings, limits) {
                // A flush takes a moment, and whoever stops us waits.
                if !stopped.is_empty() {
                    return Ok(());
                }
                store.flush(&[replica])?;
            }
            Ok(())
        });
        if let Err(error) = flushed {
            tracing::error!(%error, "replicas not flushed");
            if store.failure().is_some() {
                return;
            }
        }
    }
}

/// What each replica has applied and not flushed.
fn look(
    store: &Store,
    marks: &mut HashMap<ReplicaId, Mark>,
) -> Result<Vec<Standing>, store::Error> {
    let mut standings = Vec::new();
    let replicas = store.replicas();
    marks.retain(|replica, _| replicas.contains(replica));
    for replica in replicas {
        // One that is dropped meanwhile has nothing to flush.
        let (Ok(log), Ok(reader)) = (store.log(replica), store.reader(replica)) else { continue };
        let freed = log.freed_bytes();
        let idle = Standing { replica, bytes: 0, age: Duration::ZERO, freed };
        if log.unflushed_bytes() == 0 {
            marks.remove(&replica);
            standings.push(idle);
            continue;
        }
        let applied = reader.applied_index();
        let flushed = match log.flushed() {
            Ok(flushed) => flushed.index,
            Err(store::Error::Replica { .. }) => continue,
            Err(error) => return Err(error),
        };
        if applied <= flushed {
            marks.remove(&replica);
            standings.push(idle);
            continue;
        }
        let now = Instant::now();
        let mark = marks.entry(replica).or_insert(Mark { applied, at: now });
        if mark.applied <= flushed {
            *mark = Mark { applied, at: now };
        }
        let age = now - mark.at;
        standings.push(Standing { replica, bytes: log.unflushed_bytes(), age, freed });
    }
    Ok(standings)
}

/// Which replicas to flush, the one with the most first.
fn plan(mut standings: Vec<Standing>, limits: Limits) -> Vec<ReplicaId> {
    standings.sort_by_key(|standing| std::cmp::Reverse(standing.bytes));
    let mut held: u64 = standings.iter().map(|standing| standing.bytes).sum();
    let mut due = Vec::new();
    for Standing { replica, bytes, age, freed } in standings {
        let too_long =
            (bytes > 0 && held > limits.node_bytes_max) || bytes > limits.replica_bytes_max;
        if too_long || age >= limits.age_max || freed > limits.freed_bytes_max {
            held -= bytes;
            due.push(replica);
        }
    }
    due
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use bytes::Bytes;
    use statehouse_store::{Body, Entry, Log};

    use super::*;

    const LIMITS: Limits = Limits {
        replica_bytes_max: 10,
        node_bytes_max: 25,
        age_max: Duration::from_secs(60),
        freed_bytes_max: 100,
    };

    fn check(standings: &[(u64, u64, u64)], due: &[u64]) {
        let standing = |&(replica, bytes, seconds)| Standing {
            replica: ReplicaId(replica),
            bytes,
            age: Duration::from_secs(seconds),
            freed: 0,
        };
        let planned = plan(standings.iter().map(standing).collect(), LIMITS);
        assert_eq!(planned, due.iter().copied().map(ReplicaId).collect::<Vec<_>>());
    }

    #[test]
    fn replicas_with_too_much_or_too_old_entries_are_flushed_and_no_others() {
        check(&[], &[]);
        check(&[(1, 10, 59), (2, 1, 0)], &[]);
        check(&[(1, 11, 0), (2, 10, 0)], &[1]);
        check(&[(1, 1, 60), (2, 10, 59)], &[1]);
        // Together too much: the longest go until the rest is short enough.
        check(&[(1, 8, 0), (2, 9, 0), (3, 7, 0), (4, 6, 0)], &[2]);
        check(&[(1, 8, 0), (2, 9, 0), (3, 10, 0), (4, 7, 0), (5, 6, 60)], &[3, 2, 5]);
    }

    #[test]
    fn a_replica_that_freed_much_is_flushed_though_nothing_was_applied() {
        let standing = |replica, freed| Standing {
            replica: ReplicaId(replica),
            bytes: 0,
            age: Duration::ZERO,
            freed,
        };
        let due = plan(vec![standing(1, 100), standing(2, 101), standing(3, 0)], LIMITS);
        assert_eq!(due, [ReplicaId(2)]);
    }

    /// A replica with one applied entry of some bytes; its log.
    fn replica(store: &Store, id: u64, bytes: usize) -> Log {
        store.create_replica(ReplicaId(id)).unwrap();
        let log = store.log(ReplicaId(id)).unwrap();
        let entry = Entry::new(1, 1, Body::Membership(Bytes::from(vec![7; bytes])));
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let done = Box::new(move |result| sender.send(result).unwrap());
        log.append(vec![entry.clone()], done).unwrap();
        receiver.recv().unwrap().unwrap();
        let mut batch = store.apply_batch();
        store.shard(ReplicaId(id)).unwrap().apply(&mut batch, &entry).unwrap();
        batch.commit().unwrap();
        log
    }

    fn flushed_within_a_minute(log: &Log) {
        let started = Instant::now();
        while log.flushed().unwrap().index < 1 {
            assert!(started.elapsed() < Duration::from_secs(60), "nobody flushes it");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_long_log_is_flushed_and_a_short_one_when_it_is_old() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = Store::open(dir.path(), store::Config::default()).unwrap();
        let (long, short) = (replica(&store, 1, 2_000), replica(&store, 2, 10));
        assert_eq!((long.flushed().unwrap().index, short.flushed().unwrap().index), (0, 0));
        let hour = Duration::from_secs(3_600);
        let limits = Limits { replica_bytes_max: 1_000, age_max: hour, ..Limits::default() };
        let checkpointer = Checkpointer::start(store.clone(), limits).unwrap();
        flushed_within_a_minute(&long);
        checkpointer.close();
        assert_eq!(short.flushed().unwrap().index, 0);
        let limits = Limits { age_max: Duration::from_millis(1), ..Limits::default() };
        let checkpointer = Checkpointer::start(store.clone(), limits).unwrap();
        flushed_within_a_minute(&short);
        checkpointer.close();
        checkpointer.close();
        assert_eq!((long.unflushed_bytes(), short.unflushed_bytes()), (0, 0));
        store.close().unwrap();
    }
}
