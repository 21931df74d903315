//! All replicas of a node: opens them, replays their logs, locates keys, closes.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::Sender;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use statehouse_store::{Command, Log, ReplicaId, Reply, Shard, Store};

use crate::checkpointer::{self, Checkpointer};
use crate::driver::{Driver, Event};
use crate::proposals::Limits;
use crate::replica::Replica;
use crate::{Error, META_SHARD, ShardId, ShardMap};

/// The row of `meta` that says which shards this node holds.
const DESCRIPTOR: &str = "shards";

/// Log bytes read at a time while replaying.
const REPLAY_BYTES_MAX: usize = 8 << 20;

/// How a node's shards are laid out and bounded.
#[derive(Debug, Clone)]
pub struct Config {
    /// Shards of a new node; what is on disk wins.
    pub shards: NonZeroU16,
    /// Proposals that may wait in one shard.
    pub proposals_waiting_max: usize,
    /// Bytes of proposals that may wait in one shard.
    pub proposals_waiting_bytes_max: usize,
    /// What replicas may have applied and not flushed: bounds their logs.
    pub checkpoints: checkpointer::Limits,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        Config {
            shards: NonZeroU16::new(16).expect("16 is not zero"),
            proposals_waiting_max: limits.waiting_max,
            proposals_waiting_bytes_max: limits.waiting_bytes_max,
            checkpoints: checkpointer::Limits::default(),
        }
    }
}

/// What `meta` keeps, as JSON: written once, read at each start.
#[derive(Debug, Serialize, Deserialize)]
struct Descriptor {
    format: u32,
    shards: NonZeroU16,
    /// Indexed by shard; ids are never used again.
    replicas: Vec<u64>,
}

/// The replicas that this node holds.
pub struct Shards {
    store: Store,
    map: ShardMap,
    replicas: Vec<Arc<Replica>>,
    events: Sender<Event>,
    driver: Mutex<Option<JoinHandle<()>>>,
    checkpointer: Checkpointer,
}

impl Shards {
    /// Opens every replica, makes them on a new disk, and replays what the logs hold beyond what
    /// was applied. Blocks on the disk.
    pub fn open(store: Store, config: &Config) -> Result<Arc<Self>, Error> {
        let descriptor = match store.meta_get(DESCRIPTOR)? {
            Some(row) => serde_json::from_slice::<Descriptor>(&row)
                .map_err(|error| Error::Invalid(format!("read the shard descriptor: {error}")))?,
            None => create(&store, config.shards)?,
        };
        let map = ShardMap::even(descriptor.shards);
        let limits = Limits {
            waiting_max: config.proposals_waiting_max,
            waiting_bytes_max: config.proposals_waiting_bytes_max,
            ..Limits::default()
        };
        let mut owned = HashMap::new();
        let mut opened = Vec::new();
        for (shard_id, id) in map.all().zip(&descriptor.replicas) {
            let id = ReplicaId(*id);
            let mut shard = store.shard(id)?;
            let log = store.log(id)?;
            let last = replay(&store, &mut shard, &log)?;
            opened.push((shard_id, id, log, store.reader(id)?, last + 1));
            owned.insert(id, shard);
        }
        let (driver, events) = Driver::new(store.clone(), owned);
        let replicas = opened
            .into_iter()
            .map(|(shard_id, id, log, reader, next)| {
                Replica::new(shard_id, (id, log, reader), limits, next, events.clone())
            })
            .collect();
        let thread = std::thread::Builder::new()
            .name("apply".into())
            .spawn(move || driver.run())
            .map_err(|error| Error::Invalid(format!("start the apply thread: {error}")))?;
        let driver = Mutex::new(Some(thread));
        let checkpointer = Checkpointer::start(store.clone(), config.checkpoints)?;
        Ok(Arc::new(Shards { store, map, replicas, events, driver, checkpointer }))
    }

    /// Which shard holds which key.
    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// The store beneath.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The replica that serves a key of a user's collection.
    pub fn locate(&self, key: &[u8]) -> &Arc<Replica> {
        self.replica(self.map.shard_of(key))
    }

    /// The replica of a shard; this node holds them all.
    pub fn replica(&self, shard: ShardId) -> &Arc<Replica> {
        &self.replicas[usize::from(shard.0)]
    }

    /// The catalog's replica.
    pub fn meta(&self) -> &Arc<Replica> {
        self.replica(META_SHARD)
    }

    /// All replicas, the catalog's first.
    pub fn replicas(&self) -> &[Arc<Replica>] {
        &self.replicas
    }

    /// Proposes and awaits the reply.
    pub async fn propose(&self, shard: ShardId, command: Command) -> Result<Reply, Error> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done = Box::new(move |reply| {
            // The caller may have given up; the write stands all the same.
            let _ = sender.send(reply);
        });
        self.replica(shard).propose(command, done);
        receiver.await.unwrap_or_else(|_| {
            Err(Error::OutcomeUnknown { reason: "the node stopped before the reply".into() })
        })
    }

    /// Refuses new proposals, lets the ones under way finish, and stops the driver. Blocks.
    pub fn close(&self) {
        for replica in &self.replicas {
            replica.close("the node is stopping", Vec::new());
        }
        let _ = self.events.send(Event::Stop);
        if let Some(thread) = self.driver.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the apply thread had panicked");
        }
        self.checkpointer.close();
    }
}

/// Makes one replica per shard. The descriptor comes last: a crash before it leaves replicas
/// that the next start finds and uses again, still empty.
fn create(store: &Store, shards: NonZeroU16) -> Result<Descriptor, Error> {
    let existing = store.replicas();
    let replicas: Vec<u64> = (0..=u64::from(shards.get())).map(|shard| shard + 1).collect();
    for id in &replicas {
        if !existing.contains(&ReplicaId(*id)) {
            store.create_replica(ReplicaId(*id))?;
        }
    }
    let descriptor = Descriptor { format: 1, shards, replicas };
    let row = serde_json::to_vec(&descriptor).expect("plain numbers become JSON");
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let done = Box::new(move |result| {
        let _ = sender.send(result);
    });
    store.meta_put(DESCRIPTOR, Bytes::from(row), done)?;
    receiver.recv().map_err(|_| Error::Closed { reason: "the commit thread is gone".into() })??;
    Ok(descriptor)
}

/// Applies what the log holds beyond the applied index; answers the last index.
fn replay(store: &Store, shard: &mut Shard, log: &Log) -> Result<u64, Error> {
    let last = log.last().map_or(0, |last| last.index);
    let mut next = shard.applied().index + 1;
    while next <= last {
        let entries = log.read(next..last + 1, REPLAY_BYTES_MAX)?;
        assert!(!entries.is_empty(), "the log holds every index up to its last");
        let mut batch = store.apply_batch();
        for entry in &entries {
            shard.apply(&mut batch, entry)?;
            next = entry.index + 1;
        }
        batch.commit()?;
    }
    Ok(last.max(shard.applied().index))
}
