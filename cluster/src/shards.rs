//! All shards of a node that stands alone: opens them, locates keys, closes.
//!
//! Each shard is a Raft group with one member, so that a node alone and a cluster write the same
//! way.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use statehouse_store::{Command, ReplicaId, Reply, Store};
use tokio::runtime::Handle;

use crate::checkpointer;
use crate::proposals::Limits;
use crate::raft::{self, Group, Groups};
use crate::transport::{self, Peers};
use crate::{ClusterId, Error, META_SHARD, NodeId, ShardId, ShardMap, Topology};

/// The row of `meta` that says which shards this node holds.
const DESCRIPTOR: &str = "shards";

/// The format of that row. Before 2 the logs were not Raft's.
const DESCRIPTOR_FORMAT: u32 = 2;

/// The id of a node that stands alone.
const ALONE: NodeId = NodeId(1);

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

/// The shards as this node sees them: those that it has a replica of, and where the others are.
pub struct Shards {
    store: Store,
    map: ShardMap,
    groups: Arc<Groups>,
    topology: ArcSwap<Topology>,
    runtime: Handle,
}

impl Shards {
    /// Opens every shard, makes them on a new disk, and replays what the logs hold beyond what
    /// was applied. Blocks; on a blocking thread of the runtime that the groups shall run on.
    pub fn open(store: Store, config: &Config) -> Result<Arc<Self>, Error> {
        let runtime = Handle::current();
        runtime.block_on(Self::start(store, config))
    }

    async fn start(store: Store, config: &Config) -> Result<Arc<Self>, Error> {
        let descriptor = match store.meta_get(DESCRIPTOR)? {
            Some(row) => serde_json::from_slice::<Descriptor>(&row)
                .map_err(|error| Error::Invalid(format!("read the shard descriptor: {error}")))?,
            None => create(&store, config.shards)?,
        };
        if descriptor.format != DESCRIPTOR_FORMAT {
            let (found, expected) = (descriptor.format, DESCRIPTOR_FORMAT);
            let reason = format!("the shards have format {found}, expected {expected}");
            return Err(Error::Invalid(reason));
        }
        let map = ShardMap::even(descriptor.shards);
        let peers = Peers::new(ClusterId(store.id()), ALONE, transport::Config::default());
        let limits = Limits {
            waiting_max: config.proposals_waiting_max,
            waiting_bytes_max: config.proposals_waiting_bytes_max,
            ..Limits::default()
        };
        let checkpoints = config.checkpoints;
        let config = raft::Config { limits, checkpoints, ..raft::Config::default() };
        let groups = Groups::open(store.clone(), peers, config).await?;
        let mut topology = Topology { epoch: 1, ..Topology::default() };
        for (shard, id) in map.all().zip(&descriptor.replicas) {
            let id = ReplicaId(*id);
            let group = groups.create(shard, id).await?;
            group.initialize(BTreeMap::from([(id, ALONE)])).await?;
            topology.shards.insert(shard, vec![(id, ALONE)]);
        }
        for group in groups.all() {
            let mut status = group.watch();
            // Leads, and has applied all that its log held.
            let leads = status.wait_for(|status| status.leader.is_some()).await.is_ok();
            if !leads {
                return Err(Error::Closed { reason: "a replica stopped at its start".into() });
            }
            group.linearizable().await?;
        }
        let runtime = Handle::current();
        let topology = ArcSwap::from_pointee(topology);
        Ok(Arc::new(Shards { store, map, groups, topology, runtime }))
    }

    /// Which shard holds which key.
    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// The store beneath.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The node whose view this is.
    pub fn me(&self) -> NodeId {
        self.groups.peers().node()
    }

    /// Which nodes there are, and where replicas are.
    pub fn topology(&self) -> Arc<Topology> {
        self.topology.load_full()
    }

    /// This node's replica of a shard, if it has one.
    pub fn group(&self, shard: ShardId) -> Option<Arc<Group>> {
        self.groups.get(shard)
    }

    /// This node's replica of the shard that holds a key of a user's collection.
    pub fn locate(&self, key: &[u8]) -> Result<Arc<Group>, Error> {
        self.local(self.map.shard_of(key))
    }

    /// This node's replica of a shard; `NotLeader` if it has none.
    pub fn local(&self, shard: ShardId) -> Result<Arc<Group>, Error> {
        self.group(shard).ok_or(Error::NotLeader { shard, leader: None })
    }

    /// This node's replica of the catalog.
    pub fn meta(&self) -> Result<Arc<Group>, Error> {
        self.local(META_SHARD)
    }

    /// This node's replicas, the catalog's first.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.groups.all()
    }

    /// Proposes and awaits the reply.
    pub async fn propose(&self, shard: ShardId, command: Command) -> Result<Reply, Error> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let done = Box::new(move |reply| {
            // The caller may have given up; the write stands all the same.
            let _ = sender.send(reply);
        });
        self.local(shard)?.propose(command, done);
        receiver.await.unwrap_or_else(|_| {
            Err(Error::OutcomeUnknown { reason: "the node stopped before the reply".into() })
        })
    }

    /// Refuses new proposals, lets the ones under way finish, and stops. Blocks; on a blocking
    /// thread.
    pub fn close(&self) {
        self.runtime.block_on(self.groups.shutdown());
    }
}

/// Says which replicas there will be: they are made by the first start that finds this.
fn create(store: &Store, shards: NonZeroU16) -> Result<Descriptor, Error> {
    let replicas: Vec<u64> = (0..=u64::from(shards.get())).map(|shard| shard + 1).collect();
    let descriptor = Descriptor { format: DESCRIPTOR_FORMAT, shards, replicas };
    let row = serde_json::to_vec(&descriptor).expect("plain numbers become JSON");
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let done = Box::new(move |result| {
        let _ = sender.send(result);
    });
    store.meta_put(DESCRIPTOR, Bytes::from(row), done)?;
    receiver.recv().map_err(|_| Error::Closed { reason: "the commit thread is gone".into() })??;
    Ok(descriptor)
}
