//! Brings states into memory for reads that are to come.
//!
//! It stays behind the reads that callers wait for: a few of the read pool's threads work on it at
//! a time, and what it asks of them waits in line like everybody's.

use std::sync::Arc;

use futures::future::join_all;
use statehouse_cluster::catalog::Collection;
use statehouse_store::{Cached, Reader, Room, Selection, Store, Warmth};
use tokio::sync::Semaphore;

use super::read::failure;
use super::{KeyHere, States, check_key};
use crate::failure::{Failure, Reason};

/// Of the read pool's threads, one in so many may work on prefetches; one at least.
const THREADS_SHARE: usize = 4;

/// Keys that a thread brings in at a time, before other reads get their turn on it.
const KEYS_PER_READ: usize = 16;

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prefetched {
    /// Its state was in memory.
    InMemory,
    /// Its state is in memory by now.
    Loaded,
    /// Its state is, but for large fields that would displace too much.
    Partly,
    /// It has no state.
    NoState,
}

/// Holds prefetches to few of the read pool's threads. Cheap to clone.
#[derive(Clone)]
pub struct Prefetches(Arc<Semaphore>);

impl Prefetches {
    /// Of a node's read pool.
    pub fn new(store: &Store) -> Self {
        let threads = store.read_pool().threads() / THREADS_SHARE;
        Prefetches(Arc::new(Semaphore::new(threads.max(1))))
    }
}

/// A key that is read from disk: where it stands among the call's, and how to read it.
struct Cold {
    at: usize,
    key: bytes::Bytes,
    reader: Reader,
    /// Of its shard.
    now_ms: u64,
}

type Outcomes = Vec<(usize, Result<Prefetched, Failure>)>;

impl States {
    /// Brings states of one collection into memory, as far as they are on disk; each key has its
    /// own outcome, in their order.
    pub async fn prefetch(
        &self,
        collection: &Collection,
        keys: &[KeyHere<'_>],
        selection: &Selection,
    ) -> Vec<Result<Prefetched, Failure>> {
        let mut outcomes: Vec<Option<Result<Prefetched, Failure>>> =
            keys.iter().map(|key| at_once(collection, *key, selection)).collect();
        let cold: Vec<Cold> = (0..keys.len())
            .filter(|at| outcomes[*at].is_none())
            .map(|at| {
                let (key, group) = keys[at];
                let (key, reader) = (key.clone(), group.reader().clone());
                Cold { at, key, reader, now_ms: group.now_ms() }
            })
            .collect();
        let Some(first) = cold.first() else { return outcomes.into_iter().flatten().collect() };
        let room = Arc::new(first.reader.room());
        let selection = Arc::new(selection.clone());
        let mut cold = cold.into_iter();
        let mut loads = Vec::new();
        loop {
            let some: Vec<Cold> = cold.by_ref().take(KEYS_PER_READ).collect();
            if some.is_empty() {
                break;
            }
            loads.push(self.load(collection, some, selection.clone(), room.clone()));
        }
        for (at, outcome) in join_all(loads).await.into_iter().flatten() {
            outcomes[at] = Some(outcome);
        }
        outcomes.into_iter().flatten().collect()
    }

    /// Brings some keys in on one of the threads that may.
    async fn load(
        &self,
        collection: &Collection,
        cold: Vec<Cold>,
        selection: Arc<Selection>,
        room: Arc<Room>,
    ) -> Outcomes {
        let at: Vec<usize> = cold.iter().map(|cold| cold.at).collect();
        let failed = |failure: Failure| at.iter().map(|at| (*at, Err(failure.clone()))).collect();
        let stopping = || Failure::new(Reason::Unavailable, "the node is stopping");
        let Ok(permit) = self.prefetches.0.clone().acquire_owned().await else {
            return failed(stopping());
        };
        let id = collection.id;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let submitted = self.shards.store().read_pool().submit(Box::new(move || {
            // Held until the thread is free, whether or not the caller still waits.
            let _permit = permit;
            let warm = |cold: Cold| {
                let warmth = cold.reader.warm(id, &cold.key, &selection, cold.now_ms, &room);
                (cold.at, warmth.map(loaded).map_err(failure))
            };
            // The caller may have given up meanwhile.
            let _ = sender.send(cold.into_iter().map(warm).collect::<Outcomes>());
        }));
        match submitted {
            Ok(()) => receiver.await.unwrap_or_else(|_| failed(stopping())),
            Err(error) => failed(error.into()),
        }
    }
}

fn loaded(warmth: Warmth) -> Prefetched {
    match warmth {
        Warmth::Whole => Prefetched::Loaded,
        Warmth::Partly => Prefetched::Partly,
        Warmth::NoState => Prefetched::NoState,
    }
}

/// What became of a key that needs no disk.
fn at_once(
    collection: &Collection,
    (key, group): KeyHere<'_>,
    selection: &Selection,
) -> Option<Result<Prefetched, Failure>> {
    if let Err(failure) = check_key(key) {
        return Some(Err(failure));
    }
    match group.reader().try_warm(collection.id, key, selection, group.now_ms()) {
        Ok(Cached::Ready(Warmth::Whole)) => Some(Ok(Prefetched::InMemory)),
        Ok(Cached::Ready(other)) => Some(Ok(loaded(other))),
        Ok(Cached::NeedsDisk) => None,
        Err(error) => Some(Err(failure(error))),
    }
}
