//! The shards as one node sees them: those that it has replicas of, and where the others are.
//!
//! A node's start, in order: whose disk it is; the replicas on it; the peer listener; on a fresh
//! disk the founding of a cluster of one; then what the cluster knows is followed from this
//! node's own replica of shard 0. A cluster of one goes the same way as any other.
//!
//! Does not decide where replicas should be: that is the controller's.

mod announce;
mod follow;
mod found;
mod policy;
mod propose;

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use statehouse_store::{ReplicaId, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::Keeper;
use crate::control::Control;
use crate::proposals::Limits;
use crate::raft::{self, Group, Groups, Stopped, Transfer};
use crate::transport::{self, Peers};
use crate::{Error, Foreground, Identity, META_SHARD, NodeId, ShardId, ShardMap, Topology};
use crate::{checkpointer, controller, divergence, reverted};

pub use announce::Addresses;
pub(crate) use announce::note;

/// How long a proposal looks for who leads.
const PROPOSE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a node that stops waits for others to take its leads.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);

/// A node not heard for so long takes no lead.
const SILENCE: Duration = Duration::from_millis(500);

/// The wait before a proposal is tried again, and the longest.
const RETRY_WAIT: Duration = Duration::from_millis(10);
const RETRY_WAIT_MAX: Duration = Duration::from_millis(200);

/// How a node's shards are laid out and bounded.
#[derive(Debug, Clone)]
pub struct Config {
    /// Shards of a new cluster; what is on disk wins.
    pub shards: NonZeroU16,
    /// Replicas that each shard of a new cluster should have.
    pub replicas: NonZeroU16,
    /// Proposals that may wait in one shard.
    pub proposals_waiting_max: usize,
    /// Bytes of proposals that may wait in one shard.
    pub proposals_waiting_bytes_max: usize,
    /// Bytes of entries sent to one other node and not answered; one entry may be larger.
    pub append_bytes_in_flight_max: usize,
    /// What replicas may have applied and not flushed: bounds their logs.
    pub checkpoints: checkpointer::Limits,
    /// Of snapshots that this node sends, per second.
    pub transfer_bytes_per_second: u64,
    /// Those pause while more than one of a hundred calls takes longer; zero: never.
    pub foreground_p99_max: Duration,
    /// How the cluster is kept as it should be.
    pub controller: controller::Config,
    /// Between comparisons of what replicas have applied; zero: never.
    pub hash_check_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        Config {
            shards: NonZeroU16::new(16).expect("16 is not zero"),
            replicas: NonZeroU16::new(3).expect("3 is not zero"),
            proposals_waiting_max: limits.waiting_max,
            proposals_waiting_bytes_max: limits.waiting_bytes_max,
            append_bytes_in_flight_max: transport::Config::default().append_bytes_in_flight_max,
            checkpoints: checkpointer::Limits::default(),
            transfer_bytes_per_second: raft::Config::default().transfer_bytes_per_second,
            foreground_p99_max: raft::Config::default().foreground_p99_max,
            controller: controller::Config::default(),
            hash_check_interval: Duration::from_secs(60),
        }
    }
}

impl Config {
    fn transport(&self) -> transport::Config {
        let append_bytes_in_flight_max = self.append_bytes_in_flight_max;
        transport::Config { append_bytes_in_flight_max, ..transport::Config::default() }
    }

    fn raft(&self) -> raft::Config {
        raft::Config {
            limits: Limits {
                waiting_max: self.proposals_waiting_max,
                waiting_bytes_max: self.proposals_waiting_bytes_max,
                ..Limits::default()
            },
            checkpoints: self.checkpoints,
            transfer_bytes_per_second: self.transfer_bytes_per_second,
            foreground_p99_max: self.foreground_p99_max,
            ..raft::Config::default()
        }
    }
}

/// The shards as this node sees them.
pub struct Shards {
    store: Store,
    map: ShardMap,
    groups: Arc<Groups>,
    control: Control,
    topology: ArcSwap<Topology>,
    /// Where the other nodes are, as it is written down.
    peers_known: Mutex<BTreeMap<NodeId, String>>,
    /// One reading of shard 0 at a time: what was read first must not be put in place last.
    taking_up: Mutex<()>,
    /// Counts changes of what all nodes share.
    changes: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    /// This node was taken out of its cluster.
    removed: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Shards {
    /// Opens every replica on a disk, founds a cluster if the disk is fresh, and serves peers on
    /// the listener. Returns when this node has what it needs to serve, which for one that has
    /// just joined means that its cluster has given it a replica of shard 0.
    pub async fn open(
        store: Store,
        listener: TcpListener,
        addresses: Addresses,
        config: &Config,
    ) -> Result<Arc<Self>, Error> {
        let identity = match Identity::read(&store)? {
            Some(identity) => identity,
            None => {
                let founder = Identity::founder(&store, config.shards, config.replicas);
                founder.write(&store).await?;
                founder
            }
        };
        let peers = Peers::new(identity.cluster, identity.node, config.transport());
        peers.set_addresses(identity.peers.clone());
        let keeper = Keeper::start(peers.clock(), store.dir(), identity.founding);
        let groups = Groups::open(store.clone(), peers, config.raft()).await?;
        let stop = watch::Sender::new(false);
        let shards = Arc::new(Shards {
            store,
            map: ShardMap::even(identity.shards),
            control: Control::new(groups.clone()),
            groups,
            taking_up: Mutex::default(),
            topology: ArcSwap::default(),
            peers_known: Mutex::default(),
            changes: watch::Sender::new(0),
            stop,
            removed: watch::Sender::new(false),
            tasks: Mutex::default(),
        });
        let serving = tokio::spawn(serve(listener, Arc::downgrade(&shards)));
        shards.tasks.lock().push(serving);
        let keeping = tokio::spawn(keeper.run(Arc::downgrade(&shards)));
        shards.tasks.lock().push(keeping);
        if identity.founding {
            found::found(&shards, identity).await?;
        }
        let following = tokio::spawn(follow::run(Arc::downgrade(&shards)));
        let announcing = tokio::spawn(announce::run(Arc::downgrade(&shards), addresses));
        let policy = tokio::spawn(policy::run(Arc::downgrade(&shards)));
        shards.tasks.lock().extend([following, announcing, policy]);
        let controller = tokio::spawn(controller::run(Arc::downgrade(&shards), config.controller));
        shards.tasks.lock().push(controller);
        shards.tasks.lock().push(tokio::spawn(reverted::run(Arc::downgrade(&shards))));
        if !config.hash_check_interval.is_zero() {
            let comparing = divergence::run(Arc::downgrade(&shards), config.hash_check_interval);
            shards.tasks.lock().push(tokio::spawn(comparing));
        }
        follow::ready(&shards).await?;
        Ok(shards)
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

    /// The cluster that it belongs to.
    pub fn cluster(&self) -> crate::ClusterId {
        self.groups.peers().cluster()
    }

    /// Which nodes there are, and where replicas are.
    pub fn topology(&self) -> Arc<Topology> {
        self.topology.load_full()
    }

    /// Tells when something changed that all nodes share: nodes, placements, the catalog.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Resolves when this node was taken out of its cluster: what it knows is of the past then.
    pub async fn removed(&self) {
        let mut removed = self.removed.subscribe();
        if removed.wait_for(|removed| *removed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Asks things of nodes.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The other nodes, and when they were heard.
    pub fn peers(&self) -> &Arc<Peers> {
        self.groups.peers()
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

    /// This node's replicas that have stopped: damaged, or ended by an error.
    pub fn stopped(&self) -> Vec<Stopped> {
        self.groups.stopped()
    }

    /// Where calls are to be noted: moved replicas make room for them.
    pub fn foreground(&self) -> &Arc<Foreground> {
        self.groups.foreground()
    }

    /// Replicas on their way to and from this node.
    pub fn transfers(&self) -> Vec<Transfer> {
        self.groups.transfers_under_way()
    }

    /// Returns once this node has applied everything of shard 0 that was acknowledged before.
    pub async fn catch_up(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PROPOSE_PATIENCE;
        let mut wait = RETRY_WAIT;
        loop {
            let caught_up = match self.meta() {
                Ok(meta) => meta.catch_up().await,
                Err(error) => Err(error),
            };
            match caught_up {
                Err(Error::NotLeader { .. } | Error::Unreachable { .. })
                    if Instant::now() < deadline =>
                {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_WAIT_MAX);
                }
                done => return done,
            }
        }
    }

    /// Where a shard is led, as far as this node knows, or one of the nodes that may know.
    pub fn leader_of(&self, shard: ShardId) -> Option<NodeId> {
        if let Some(leader) = self.group(shard).and_then(|group| group.leader()) {
            return Some(leader.node);
        }
        let topology = self.topology();
        let others: Vec<NodeId> = match topology.shards.get(&shard) {
            Some(replicas) => replicas.iter().map(|(_, node)| *node).collect(),
            None => topology.nodes.keys().copied().collect(),
        };
        let others: Vec<NodeId> = others.into_iter().filter(|node| *node != self.me()).collect();
        let at = rand::random_range(0..others.len().max(1));
        others.get(at).copied()
    }

    /// Hands over every group that this node leads and another one could, so that nobody has to
    /// find out that it is gone. Bounded in time.
    pub async fn hand_over(&self) {
        let led = self.groups().into_iter().filter(|group| group.leads());
        let handed = led.map(|group| async move {
            let status = group.status();
            let others = status.voters.keys().filter(|id| **id != group.replica());
            let silent = |id: &ReplicaId| {
                let node = status.voters.get(id).copied().unwrap_or(NodeId(0));
                self.peers().silence(node).is_none_or(|(silence, lost)| lost || silence > SILENCE)
            };
            let mut choices: Vec<ReplicaId> = others.copied().filter(|id| !silent(id)).collect();
            choices.sort_by_key(|id| std::cmp::Reverse(status.matched.get(id).copied()));
            for to in choices {
                match group.transfer_leader(to).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(shard = %group.shard(), %error, "not taken"),
                }
            }
        });
        let all = futures::future::join_all(handed);
        if tokio::time::timeout(HAND_OVER_MAX, all).await.is_err() {
            tracing::warn!("not every lead was handed over");
        }
    }

    /// Refuses new proposals, lets the ones under way finish, and stops.
    pub async fn close(&self) {
        self.stop.send_replace(true);
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        self.groups.shutdown().await;
    }
}

async fn serve(listener: TcpListener, shards: Weak<Shards>) {
    let Some(here) = shards.upgrade() else { return };
    let (groups, mut stopping) = (here.groups.clone(), here.stop.subscribe());
    drop(here);
    let stopped = async move {
        // An error means that the node is gone, which is a stop too.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    if let Err(error) = transport::serve(listener, groups, shards, stopped).await {
        tracing::error!(%error, "the peer listener failed");
    }
}
