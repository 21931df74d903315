//! One replica of one shard, as the rest of the node sees it.
//!
//! The front door of a Raft group: proposals (`proposing.rs`), linearizable reads (`reads.rs`),
//! status (`status.rs`), members (`members.rs`). What comes in from peers is `inbound.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use statehouse_store::{EntryId, Log, Reader, ReplicaId, Reply, Shard, Store};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::config::Config;
use super::confirm::{Confirmer, Promise};
use super::convert;
use super::fault::{Fault, Whose};
use super::heard::Heard;
use super::lag::Lag;
use super::landed::Landed;
use super::log_storage::LogStorage;
use super::network::{Exchanged, Network};
use super::proposing::Proposals;
use super::quarantine::{Event, Ward};
use super::retained::Retained;
use super::room::SharedRoom;
use super::state_machine::StateMachine;
use super::status::GroupStatus;
use super::transfers::Transfers;
use super::types::TypeConfig;
use crate::applier::Applier;
use crate::clock::{ShardTime, elapsed_us};
use crate::transport::Peers;
use crate::{Error, NodeId, ShardId};

/// How long a replica that is told of an entry may take to apply it before others are asked.
const APPLY_WAIT_MAX: Duration = Duration::from_secs(10);

/// Called once with a proposal's reply, on the apply thread or a Raft task: it must not block.
pub type Done = Box<dyn FnOnce(Result<Reply, Error>) + Send>;

pub(super) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Who leads a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// The replica that leads.
    pub replica: ReplicaId,
    /// The node where it is.
    pub node: NodeId,
}

/// One replica of one shard on this node.
pub struct Group {
    pub(super) shard: ShardId,
    pub(super) replica: ReplicaId,
    pub(super) raft: Raft,
    pub(super) config: Arc<Config>,
    pub(super) runtime: Handle,
    pub(super) proposals: Mutex<Proposals>,
    /// What this replica's votes allow.
    pub(super) promise: Arc<Promise>,
    pub(super) confirmer: Arc<Confirmer>,
    /// What this replica has told its followers while it led, and they it.
    pub(super) exchanged: Arc<Exchanged>,
    pub(super) log: Log,
    pub(super) heard: Mutex<Heard>,
    time: ShardTime,
    /// What was proven of how old the applied state is.
    pub(super) lag: Mutex<Lag>,
    /// The last entry applied.
    pub(super) applied: watch::Receiver<EntryId>,
    pub(super) status: watch::Sender<GroupStatus>,
    /// Told when somebody begins to watch the status.
    pub(super) watched: Arc<Notify>,
    pub(super) retained: Arc<Mutex<Retained>>,
    pub(super) transfers: Arc<Transfers>,
    pub(super) peers: Arc<Peers>,
    pub(super) room: SharedRoom,
    /// Entries of the leader are refused for want of space.
    pub(super) out_of_room: AtomicBool,
    pub(super) store: Store,
    /// Commands answered by this replica.
    pub(super) commands: AtomicU64,
    /// What ended this replica's service.
    pub(super) fault: Arc<Fault>,
    pub(super) ward: Arc<Ward>,
    /// It asks whether the others can do without it.
    pub(super) leaving: AtomicBool,
    closing: AtomicBool,
    reader: Reader,
    applier: Applier,
    publisher: Mutex<Option<JoinHandle<()>>>,
}

/// What a group is made from.
pub(super) struct Parts {
    pub shard: ShardId,
    pub replica: ReplicaId,
    pub store: Store,
    pub applier: Applier,
    pub peers: Arc<Peers>,
    pub transfers: Arc<Transfers>,
    pub confirmer: Arc<Confirmer>,
    pub config: Arc<Config>,
    pub ward: Arc<Ward>,
}

impl Group {
    /// Starts a replica that the store has: replays nothing yet, waits for a leader's word or an
    /// election.
    pub(super) async fn start(parts: Parts) -> Result<Arc<Group>, Error> {
        let Parts { shard, replica, store, applier, peers, transfers, confirmer, config, ward } =
            parts;
        let fault = Arc::<Fault>::default();
        let log = store.log(replica)?;
        let reader = store.reader(replica)?;
        let state: Shard = store.shard(replica)?;
        let (applied_sender, applied) = watch::channel(EntryId::default());
        let landed = Arc::new(Landed::through(log.last().map_or(0, |last| last.index)));
        let parts = (store.clone(), replica, log.clone(), state);
        let shared = (landed.clone(), fault.clone());
        let machine = StateMachine::new(parts, applier.clone(), applied_sender, shared)?;
        let exchanged = Arc::<Exchanged>::default();
        let room = exchanged.room.clone();
        let network =
            Network::new((peers.clone(), transfers.clone()), shard, replica, exchanged.clone());
        let retained: Arc<Mutex<Retained>> = Arc::default();
        let vote = log.vote().map(|bytes| convert::vote_of_bytes(&bytes)).transpose();
        let vote =
            vote.map_err(|error| Error::Invalid(format!("read a replica's vote: {error}")))?;
        let promise = Arc::new(Promise::of(vote.map_or(0, |vote| vote.leader_id.term)));
        let storage = LogStorage::new(
            log.clone(),
            applied.clone(),
            retained.clone(),
            landed,
            promise.clone(),
        );
        let openraft = Arc::new(config.openraft()?);
        let raft = Raft::new(replica.0, openraft, network, storage, machine).await;
        let raft = raft.map_err(|error| Error::Closed { reason: error.to_string() })?;
        let group = Arc::new(Group {
            shard,
            replica,
            raft,
            runtime: Handle::current(),
            proposals: Mutex::new(Proposals::new(config.limits)),
            config,
            promise,
            confirmer,
            exchanged,
            log,
            heard: Mutex::default(),
            time: ShardTime::default(),
            lag: Mutex::default(),
            applied,
            status: watch::Sender::new(GroupStatus::default()),
            watched: Arc::default(),
            retained,
            transfers,
            peers,
            room,
            out_of_room: AtomicBool::new(false),
            store,
            commands: AtomicU64::new(0),
            fault,
            ward,
            leaving: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            reader,
            applier,
            publisher: Mutex::new(None),
        });
        group.heard.lock().turn(Instant::now());
        group.status.send_replace(group.status());
        let publisher = tokio::spawn(super::status::publish(Arc::downgrade(&group)));
        *group.publisher.lock() = Some(publisher);
        Ok(group)
    }

    /// The shard that this is a replica of.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The replica's id: unique in the cluster, never used again.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Reads what is applied here, however old that is.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The shard's time in Unix milliseconds: what an entry made now would carry, and by what reads
    /// see things expire. It runs with real time, within 5 %, and never backwards.
    pub fn now_ms(&self) -> u64 {
        let elapsed_us = elapsed_us();
        let (clock, entry_ms) = (self.peers.clock(), self.reader.time_ms());
        // A clock that nobody's was compared with hides nothing.
        let node_us = match clock.is_settled() || entry_ms == 0 {
            true => clock.time_us(elapsed_us),
            false => 0,
        };
        self.time.now_ms(entry_ms, node_us, elapsed_us)
    }

    /// Whether this replica no longer takes part: something went wrong under it, and it is being
    /// taken out of service.
    pub fn has_failed(&self) -> bool {
        self.fault.is_noted()
    }

    /// Whether it asks the others if they can do without it: nobody may count on it meanwhile.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// Who leads, as far as this replica knows.
    pub fn leader(&self) -> Option<Leader> {
        if self.has_failed() {
            return None;
        }
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let replica = metrics.current_leader?;
        let member = metrics.membership_config.get_node(&replica)?;
        Some(Leader { replica: ReplicaId(replica), node: NodeId(member.node) })
    }

    /// Whether this replica leads, as far as it knows. By what `leader` goes by as well: the two
    /// never disagree.
    pub fn leads(&self) -> bool {
        self.leading_term().is_some()
    }

    /// How old what is applied here may be, on this node's clock: everything acknowledged longer
    /// ago is applied. `None` before anything is known of it, and of a replica that has failed. A
    /// leader with other voters counts from when they last confirmed it, and asks them anew for a
    /// linearizable read only.
    pub fn lag(&self) -> Option<Duration> {
        if self.has_failed() {
            return None;
        }
        if self.is_certain_alone() {
            return Some(Duration::ZERO);
        }
        // What is applied before the clock is looked at: time that passes between counts.
        let applied = self.applied.borrow().index;
        self.lag.lock().of(applied, Instant::now())
    }

    /// Commands answered by this replica since it began.
    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    /// The last entry applied, as it changes.
    pub fn applied(&self) -> watch::Receiver<EntryId> {
        self.applied.clone()
    }

    /// Waits until the entry of an index is applied here; `Closed` if it is not within
    /// ten seconds (`APPLY_WAIT_MAX`): then another replica has to serve.
    pub async fn wait_applied(&self, index: u64) -> Result<(), Error> {
        let reached = |applied: &EntryId| applied.index >= index;
        if reached(&self.applied.borrow()) {
            return Ok(());
        }
        let mut applied = self.applied.clone();
        match tokio::time::timeout(APPLY_WAIT_MAX, applied.wait_for(reached)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.stopped()),
            Err(_) => {
                let replica = self.replica;
                let reason = format!("replica {replica} has not applied entry {index} in time");
                Err(Error::Closed { reason })
            }
        }
    }

    /// Leads, and has heard of a quorum within the lease.
    pub(super) fn leads_a_quorum(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.current_leader != Some(self.replica.0) || !metrics.state.is_leader() {
            return false;
        }
        let alone = metrics.membership_config.voter_ids().eq([self.replica.0]);
        let lease = self.config.election_timeout_max;
        alone || metrics.last_quorum_acked.is_some_and(|acked| acked.elapsed() < lease)
    }

    pub(super) fn not_leader(&self) -> Error {
        let leader = self.leader().filter(|leader| leader.replica != self.replica);
        Error::NotLeader { shard: self.shard, leader }
    }

    /// Whether somebody has asked it to stop.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// The Raft core has ended.
    pub(super) fn core_ended(&self) {
        if self.is_closing() {
            return;
        }
        let ended = self.raft.metrics().borrow_watched().running_state.clone();
        let reason = match ended {
            Err(fatal) => fatal.to_string(),
            Ok(()) => "its Raft core ended by a panic".to_owned(),
        };
        self.fault.note(Whose::Replica, reason);
        self.ward.tell(Event::Fault(self.replica));
    }

    pub(super) fn stopped(&self) -> Error {
        Error::Closed { reason: format!("replica {} has stopped", self.replica) }
    }

    /// Refuses from now on, tells everyone who waits, and stops. The store's replica is free for
    /// another owner, or to be dropped, when this returns.
    pub async fn shutdown(&self) {
        self.closing.store(true, Ordering::Release);
        self.close("the replica is stopping");
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(shard = %self.shard, %error, "raft did not stop in order");
        }
        let publisher = self.publisher.lock().take();
        if let Some(publisher) = publisher {
            publisher.abort();
        }
        drop(self.applier.lend(self.replica).await);
    }
}
