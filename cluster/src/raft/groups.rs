//! All replicas of a node: opened, created, found, destroyed.
//!
//! A replica's descriptor is synced before anything else of it, and outlives it as a tombstone:
//! replica ids are never used again, and whoever still calls a destroyed one is told so. A wiped
//! node that came back under an old id could vote twice in one term.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use statehouse_proto::v1;
use statehouse_store::{EntryId, ReplicaId, Store};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::config::Config;
use super::confirm::Confirmer;
use super::descriptor::{self, Descriptor};
use super::group::{Group, Parts};
use super::log_storage::blocking;
use super::quarantine::{Event, Stopped, Ward};
use super::room;
use super::thread::RaftThread;
use super::transfers::{Transfer, Transfers};
use crate::applier::Applier;
use crate::checkpointer::Checkpointer;
use crate::transport::Peers;
use crate::{ClusterId, Error, Foreground, MembersProblem, NodeId, ShardId};

/// The row of the store's `meta` that says whose disk it is.
const IDENTITY: &str = "cluster";

/// The replicas that this node holds.
pub struct Groups {
    store: Store,
    applier: Applier,
    thread: RaftThread,
    peers: Arc<Peers>,
    config: Arc<Config>,
    transfers: Arc<Transfers>,
    confirmer: Arc<Confirmer>,
    checkpointer: Checkpointer,
    ward: Arc<Ward>,
    groups: RwLock<Map>,
    /// Counts replicas created and destroyed.
    changes: watch::Sender<u64>,
    /// One replica is created or destroyed at a time.
    changing: tokio::sync::Mutex<()>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Map {
    by_replica: HashMap<ReplicaId, Arc<Group>>,
    by_shard: HashMap<ShardId, Arc<Group>>,
}

/// Why a replica is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// It was, and never will be again.
    Destroyed,
    /// It is damaged, and waits to be destroyed.
    Quarantined,
    /// It never was.
    Unknown,
}

impl Groups {
    /// Opens every replica on a disk, finishes what a crash interrupted, and starts the node's
    /// heartbeats, failure detector and checkpoints. Refuses a disk of another cluster or node.
    pub async fn open(
        store: Store,
        peers: Arc<Peers>,
        config: Config,
    ) -> Result<Arc<Groups>, Error> {
        config.openraft()?;
        claim(&store, peers.cluster(), peers.node()).await?;
        let applier = Applier::start(store.clone())?;
        let (events, told) = mpsc::unbounded_channel();
        let groups = Arc::new(Groups {
            checkpointer: Checkpointer::start(store.clone(), config.checkpoints)?,
            transfers: Transfers::new(&config),
            confirmer: Confirmer::new(peers.clone(), config.election_timeout_max),
            store,
            applier,
            thread: RaftThread::start()?,
            peers,
            config: Arc::new(config),
            ward: Arc::new(Ward::new(events)),
            groups: RwLock::default(),
            changes: watch::Sender::new(0),
            changing: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
        });
        for replica in groups.store.replicas() {
            groups.open_replica(replica).await?;
        }
        if groups.store.was_set_aside()? {
            groups.keep_out_lost().await?;
        }
        let ward = groups.ward.clone();
        groups.store.on_damage(Box::new(move |damage| {
            if let Some(replica) = damage.replica {
                ward.tell(Event::Damage(replica, damage.to_string(), None));
            }
        }));
        let thread = groups.thread.handle();
        let tasks = vec![
            thread.spawn(super::pulse::beat(Arc::downgrade(&groups))),
            thread.spawn(super::pulse::elect(Arc::downgrade(&groups))),
            thread.spawn(super::freshness::ask(Arc::downgrade(&groups))),
            thread.spawn(super::apart::watch(Arc::downgrade(&groups))),
            thread.spawn(super::purger::run(Arc::downgrade(&groups))),
            tokio::spawn(super::quarantine::run(Arc::downgrade(&groups), told)),
        ];
        *groups.tasks.lock() = tasks;
        Ok(groups)
    }

    /// Opens what the disk has of a replica, as its descriptor says.
    async fn open_replica(&self, replica: ReplicaId) -> Result<(), Error> {
        match descriptor::read(&self.store, replica)? {
            Some(Descriptor::Live(shard)) => match self.damage_of(replica) {
                Some(damage) => self.open_quarantined(shard, replica, damage).await,
                None => match self.start(shard, replica).await {
                    Ok(_) => Ok(()),
                    Err(error) => self.not_started(shard, replica, error).await,
                },
            },
            Some(Descriptor::Quarantined(shard, reason)) => {
                self.open_quarantined(shard, replica, reason).await
            }
            Some(Descriptor::Destroyed(_)) => {
                let store = self.store.clone();
                run(move || store.drop_replica(replica)).await
            }
            None => Err(Error::Invalid(format!("replica {replica} has no descriptor"))),
        }
    }

    /// Makes an empty replica of a shard: it waits to be initialized or added. The same again is
    /// fine; an id that was destroyed, or is of another shard, is refused.
    pub async fn create(&self, shard: ShardId, replica: ReplicaId) -> Result<Arc<Group>, Error> {
        let _changing = self.changing.lock().await;
        if let Ok(group) = self.replica(replica)
            && group.shard() == shard
        {
            return Ok(group);
        }
        if self.get(shard).is_some() {
            return Err(Error::Invalid(format!("shard {shard} has another replica here")));
        }
        let waits = |it: &Stopped| it.shard == shard && !it.quarantined && it.replica != replica;
        if self.stopped().iter().any(waits) {
            // A restart would open both.
            let reason = format!("shard {shard} has a stopped replica here, not in quarantine yet");
            return Err(Error::Invalid(reason));
        }
        self.clear(shard).await?;
        match descriptor::read(&self.store, replica)? {
            None => descriptor::write(&self.store, replica, Descriptor::Live(shard)).await?,
            Some(Descriptor::Live(of)) if of == shard => {}
            Some(
                Descriptor::Live(of) | Descriptor::Destroyed(of) | Descriptor::Quarantined(of, _),
            ) => {
                let reason = format!("replica {replica} was used already, for shard {of}");
                return Err(Error::Invalid(reason));
            }
        }
        if !self.store.replicas().contains(&replica) {
            let store = self.store.clone();
            run(move || store.create_replica(replica)).await?;
        }
        self.start(shard, replica).await
    }

    /// Ends a replica and deletes what it has; its id is never used again. For a replica that its
    /// group has let go: this does not tell the group. One that is not here gets its tombstone
    /// all the same.
    pub async fn destroy(&self, shard: ShardId, replica: ReplicaId) -> Result<(), Error> {
        let _changing = self.changing.lock().await;
        descriptor::write(&self.store, replica, Descriptor::Destroyed(shard)).await?;
        let group = self.let_go(replica);
        self.ward.dismiss(replica);
        if let Some(group) = group {
            self.tell_change();
            group.shutdown().await;
        }
        if self.store.replicas().contains(&replica) {
            let store = self.store.clone();
            run(move || store.drop_replica(replica)).await?;
        }
        Ok(())
    }

    /// As [`Groups::destroy`], for somebody who says as of which membership the replica has left
    /// its group. Refused if the replica knows a newer one that it belongs to: then whoever asks
    /// was out of touch, and the replica may hold what was acknowledged. Refused too without a
    /// membership, if the replica votes by all that it knows.
    pub async fn destroy_left(
        &self,
        shard: ShardId,
        replica: ReplicaId,
        left_at: Option<EntryId>,
    ) -> Result<(), Error> {
        if let Ok(group) = self.replica(replica) {
            let status = group.status();
            let votes = status.voters.contains_key(&replica);
            let belongs = votes || status.learners.contains_key(&replica);
            let refused = match left_at {
                Some(left_at) => belongs && status.membership_at.index >= left_at.index,
                None => votes,
            };
            if refused {
                let problem = MembersProblem::Belongs(replica);
                return Err(Error::Members { shard, problem });
            }
        }
        self.destroy(shard, replica).await
    }

    /// Takes a replica out of the maps: nobody finds it from then on.
    pub(super) fn let_go(&self, replica: ReplicaId) -> Option<Arc<Group>> {
        let mut groups = self.groups.write();
        groups.by_shard.retain(|_, group| group.replica() != replica);
        groups.by_replica.remove(&replica)
    }

    pub(super) fn tell_change(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    pub(super) fn ward(&self) -> &Ward {
        &self.ward
    }

    pub(super) fn changing(&self) -> &tokio::sync::Mutex<()> {
        &self.changing
    }

    /// The replica of a shard, if this node has one.
    pub fn get(&self, shard: ShardId) -> Option<Arc<Group>> {
        self.groups.read().by_shard.get(&shard).cloned()
    }

    /// All replicas, in the order of their shards.
    pub fn all(&self) -> Vec<Arc<Group>> {
        let mut all: Vec<_> = self.groups.read().by_replica.values().cloned().collect();
        all.sort_by_key(|group| group.shard());
        all
    }

    /// Tells when a replica was created or destroyed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The node's peers.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// The disk beneath.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Snapshots that are being sent and taken.
    pub fn transfers_under_way(&self) -> Vec<Transfer> {
        self.transfers.all()
    }

    /// Where the calls of callers are to be noted: transfers make room for them.
    pub fn foreground(&self) -> &Arc<Foreground> {
        self.transfers.foreground()
    }

    pub(super) fn transfers(&self) -> &Arc<Transfers> {
        &self.transfers
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// The nodes, of this one and its peers, whose disks have less free than their reserve.
    pub(super) fn short_of_space(&self) -> HashSet<NodeId> {
        room::short_of_space(&self.peers, &self.store)
    }

    /// Whether a replica here has promised nothing newer than a term.
    pub(super) fn confirms(&self, claim: &v1::Claim) -> bool {
        self.addressed_by(claim).is_some_and(|(group, _)| group.confirms(claim.term))
    }

    /// The replica here that a claim is about.
    pub(super) fn addressed_by(&self, claim: &v1::Claim) -> Option<(Arc<Group>, v1::PeerRoute)> {
        let route = claim.route?;
        let groups = self.groups.read();
        let group = groups.by_replica.get(&ReplicaId(route.to_replica))?;
        (u32::from(group.shard().0) == route.shard).then(|| (group.clone(), route))
    }

    /// The replica of an id, or why there is none.
    pub(crate) fn replica(&self, replica: ReplicaId) -> Result<Arc<Group>, Absent> {
        if let Some(group) = self.groups.read().by_replica.get(&replica) {
            return Ok(group.clone());
        }
        match descriptor::read(&self.store, replica) {
            Ok(Some(Descriptor::Destroyed(_))) => Err(Absent::Destroyed),
            Ok(Some(Descriptor::Quarantined(..))) => Err(Absent::Quarantined),
            Ok(Some(Descriptor::Live(_)) | None) | Err(_) => Err(Absent::Unknown),
        }
    }

    async fn start(&self, shard: ShardId, replica: ReplicaId) -> Result<Arc<Group>, Error> {
        let parts = Parts {
            shard,
            replica,
            store: self.store.clone(),
            applier: self.applier.clone(),
            peers: self.peers.clone(),
            transfers: self.transfers.clone(),
            confirmer: self.confirmer.clone(),
            config: self.config.clone(),
            ward: self.ward.clone(),
        };
        let group = self.thread.run(Group::start(parts)).await?;
        let mut groups = self.groups.write();
        groups.by_replica.insert(replica, group.clone());
        groups.by_shard.insert(shard, group.clone());
        drop(groups);
        self.tell_change();
        Ok(group)
    }

    /// Stops every replica, then their threads, then the connections. The store can be closed
    /// when this returns. Does not hand leaders over: do that first.
    pub async fn shutdown(self: &Arc<Self>) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        let stopping = self.all().into_iter().map(|group| async move { group.shutdown().await });
        futures::future::join_all(stopping).await;
        *self.groups.write() = Map::default();
        self.peers.close();
        let groups = self.clone();
        let joined = blocking(move || {
            groups.applier.stop();
            groups.checkpointer.close();
            groups.thread.stop();
        });
        if joined.await.is_err() {
            tracing::error!("the node's threads were not joined");
        }
    }
}

/// Runs something of the store that waits for the disk.
async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, statehouse_store::Error> + Send + 'static,
) -> Result<T, Error> {
    let done = blocking(work).await;
    let done = done.map_err(|error| Error::Closed { reason: error.to_string() })?;
    done.map_err(Error::from)
}

/// Makes the disk this node's, or checks that it is.
async fn claim(store: &Store, cluster: ClusterId, node: NodeId) -> Result<(), Error> {
    let ours = [&[1][..], &cluster.0, &node.0.to_le_bytes()].concat();
    match store.meta_get(IDENTITY)? {
        Some(row) if row[..] == ours => Ok(()),
        Some(_) => {
            let reason = format!("the disk is of another node or cluster, expected {node} of");
            Err(Error::Invalid(format!("{reason} {cluster}")))
        }
        None => descriptor::put(store, IDENTITY, Bytes::from(ours)).await,
    }
}
