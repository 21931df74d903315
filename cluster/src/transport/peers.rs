//! All peers of a node: their addresses, when each was heard, and faults for tests.
//!
//! Addresses come from outside and may be swapped at any time; a peer whose address changes is
//! connected to anew. Connections are made when first needed and kept.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use statehouse_proto::v1;
use statehouse_proto::v1::control_client::ControlClient;
use statehouse_proto::v1::peer_client::PeerClient;
use statehouse_store::ENTRY_FORMAT;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::append::Appends;
use super::link::Link;
use super::talk::Talk;
use super::{Config, Lost, PROTOCOL_FORMAT};
use crate::clock::NodeClock;
use crate::{ClusterId, Error, NodeId};

/// A node's address book: `host:port` of each peer's peer listener.
pub(super) type Book = BTreeMap<NodeId, String>;

/// The peers of a node.
pub struct Peers {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    pub(super) config: Config,
    /// The node's clock, which its peers' are compared with.
    clock: NodeClock,
    /// Those that read no entries of the newest format.
    older: RwLock<HashSet<NodeId>>,
    /// Where connections run: whoever asks may be on a thread that waits for no socket.
    runtime: Handle,
    book: watch::Sender<Book>,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
    cut: RwLock<HashSet<NodeId>>,
    /// Members no more: whatever they say is not heard.
    removed: RwLock<HashSet<NodeId>>,
    /// Connections for single asks, by node, and the address each goes to.
    control: Mutex<HashMap<NodeId, (String, Channel)>>,
    closed: AtomicBool,
}

/// One peer: how to reach it, and when it was heard.
pub(crate) struct Peer {
    pub talk: Talk,
    pub appends: Appends,
    pub(super) hearing: Arc<Hearing>,
}

/// When a peer was last heard, on whatever stream.
pub(super) struct Hearing {
    started: Instant,
    /// Milliseconds since the start, plus one; 0 is never.
    heard: AtomicU64,
    /// The connection that pings broke and was not made again.
    pub lost: AtomicBool,
    /// Its disk has less free than its reserve, as it said last.
    short: AtomicBool,
    /// Why its disk has failed, as it said last; empty: it has not.
    failed: Mutex<String>,
}

impl Hearing {
    pub fn note(&self) {
        self.heard.store(self.started.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// Notes what the peer says of its disk.
    pub fn note_disk(&self, short: bool, failed: &str) {
        self.short.store(short, Ordering::Relaxed);
        let mut known = self.failed.lock();
        if *known != failed {
            failed.clone_into(&mut known);
        }
    }

    fn silence(&self) -> Duration {
        match self.heard.load(Ordering::Relaxed) {
            0 => self.started.elapsed(),
            heard => self.started.elapsed().saturating_sub(Duration::from_millis(heard - 1)),
        }
    }
}

impl Peers {
    /// The peers of a node, none of them known yet. Connections run on the current runtime.
    pub fn new(cluster: ClusterId, node: NodeId, config: Config) -> Arc<Self> {
        Arc::new(Peers {
            cluster,
            node,
            config,
            clock: NodeClock::default(),
            older: RwLock::default(),
            runtime: Handle::current(),
            book: watch::Sender::new(Book::new()),
            peers: Mutex::default(),
            cut: RwLock::default(),
            removed: RwLock::default(),
            control: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// Where whatever waits for a socket runs.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The cluster that all of them belong to.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The node's clock.
    pub fn clock(&self) -> &NodeClock {
        &self.clock
    }

    /// A node has said which entries it reads.
    pub(super) fn note_format(&self, node: NodeId, entry_format: u32) {
        let is_older = entry_format < u32::from(ENTRY_FORMAT);
        if self.older.read().contains(&node) != is_older {
            match is_older {
                true => self.older.write().insert(node),
                false => self.older.write().remove(&node),
            };
        }
    }

    /// Whether every node that was heard, and is a member, reads entries of the newest format.
    pub(crate) fn read_newest_entries(&self) -> bool {
        let older = self.older.read();
        older.is_empty() || older.is_subset(&self.removed.read())
    }

    /// The node whose peers they are.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Swaps the address book: `host:port` of each node's peer listener.
    pub fn set_addresses(&self, book: BTreeMap<NodeId, String>) {
        self.book.send_if_modified(|old| {
            let changed = *old != book;
            *old = book;
            changed
        });
    }

    /// The nodes whose addresses are known.
    pub fn known(&self) -> Vec<NodeId> {
        self.book.borrow().keys().copied().collect()
    }

    pub(super) fn book(&self) -> watch::Receiver<Book> {
        self.book.subscribe()
    }

    /// The peer of a node's id, known or not.
    pub(crate) fn peer(self: &Arc<Self>, node: NodeId) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        let peer = peers.entry(node).or_insert_with(|| {
            let hearing = Arc::new(Hearing {
                started: Instant::now(),
                heard: AtomicU64::new(0),
                lost: AtomicBool::new(false),
                short: AtomicBool::new(false),
                failed: Mutex::default(),
            });
            Arc::new(Peer {
                talk: Talk::start(self, node, hearing.clone()),
                appends: Appends::start(self, node, hearing.clone()),
                hearing,
            })
        });
        peer.clone()
    }

    /// A message of a node has come in.
    pub(crate) fn note(self: &Arc<Self>, node: NodeId) {
        self.peer(node).hearing.note();
    }

    /// For how long a node was not heard, since it is known; and whether the connection to it
    /// broke and could not be made again, so that it is likely gone.
    pub fn silence(&self, node: NodeId) -> Option<(Duration, bool)> {
        let peer = self.peers.lock().get(&node).cloned()?;
        Some((peer.hearing.silence(), peer.hearing.lost.load(Ordering::Relaxed)))
    }

    /// The peers that were not heard for so long, or to which the connection broke.
    pub(crate) fn silent(&self, silence_max: Duration) -> HashSet<NodeId> {
        let peers = self.peers.lock();
        let silent = peers.iter().filter(|(_, peer)| {
            let lost = peer.hearing.lost.load(Ordering::Relaxed);
            lost || peer.hearing.silence() > silence_max
        });
        silent.map(|(node, _)| *node).collect()
    }

    /// The peers whose disks have less free than their reserve, as they said last.
    pub(crate) fn short_of_space(&self) -> HashSet<NodeId> {
        let peers = self.peers.lock();
        let short = peers.iter().filter(|(_, peer)| peer.hearing.short.load(Ordering::Relaxed));
        short.map(|(node, _)| *node).collect()
    }

    /// What a peer said last of its disk, however long ago: whether it has less free than its
    /// reserve, and why it has failed, if it has.
    pub fn disk(&self, node: NodeId) -> (bool, Option<String>) {
        let Some(peer) = self.peers.lock().get(&node).cloned() else { return (false, None) };
        let failed = peer.hearing.failed.lock().clone();
        let short = peer.hearing.short.load(Ordering::Relaxed);
        (short, Some(failed).filter(|failed| !failed.is_empty()))
    }

    /// For fault tests: from now on nothing passes between this node and another, either way.
    /// Small messages vanish, appends break off, and nothing is connected anew.
    pub fn cut(&self, node: NodeId) {
        self.cut.write().insert(node);
    }

    /// Undoes [`Peers::cut`].
    pub fn heal(&self, node: NodeId) {
        self.cut.write().remove(&node);
    }

    pub(crate) fn is_cut(&self, node: NodeId) -> bool {
        self.cut.read().contains(&node)
    }

    pub(crate) fn append_answer_timeout(&self) -> Duration {
        self.config.append_answer_timeout
    }

    /// Swaps the set of nodes that were members and are no more.
    pub fn set_removed(&self, nodes: HashSet<NodeId>) {
        *self.removed.write() = nodes;
    }

    /// Who calls, if it is a member and means this node.
    pub(crate) fn greeted(&self, hello: Option<v1::PeerHello>) -> Result<NodeId, Status> {
        let refused = |reason: String| Err(Status::failed_precondition(reason));
        let Some(hello) = hello else {
            return refused("expected a hello first".to_owned());
        };
        if hello.format != PROTOCOL_FORMAT {
            let format = hello.format;
            return refused(format!("peer protocol {format}, expected {PROTOCOL_FORMAT}"));
        }
        if hello.cluster_id[..] != self.cluster.0 {
            return refused(format!("another cluster's node, expected {}'s", self.cluster));
        }
        if hello.to_node != self.node.0 {
            return refused(format!("node {} was called, this is {}", hello.to_node, self.node));
        }
        let from = NodeId(hello.from_node);
        if self.removed.read().contains(&from) {
            return refused(format!("node {from} was removed from the cluster"));
        }
        Ok(from)
    }

    /// A connection for single asks of a node; made when the first is sent.
    pub(crate) fn control_client(&self, node: NodeId) -> Result<ControlClient<Channel>, Error> {
        let unreachable = |reason: &str| Error::Unreachable { node, reason: reason.to_owned() };
        if self.is_cut(node) || self.is_closed() {
            return Err(unreachable("cut off"));
        }
        let address = self.book.borrow().get(&node).cloned();
        let address = address.ok_or_else(|| unreachable("its address is not known"))?;
        let mut control = self.control.lock();
        let known = control.get(&node).filter(|(at, _)| *at == address);
        let channel = match known {
            Some((_, channel)) => channel.clone(),
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{address}"))
                    .map_err(|error| unreachable(&error.to_string()))?
                    .tcp_nodelay(true)
                    .connect_timeout(self.config.connect_timeout);
                let channel = endpoint.connect_lazy();
                control.insert(node, (address, channel.clone()));
                channel
            }
        };
        Ok(ControlClient::new(channel))
    }

    /// A connection of its own for a snapshot to a node.
    pub(crate) async fn snapshot_client(
        self: &Arc<Self>,
        node: NodeId,
    ) -> Result<PeerClient<Channel>, Lost> {
        Link::new(self, node).connect().await
    }

    /// How a stream to a node begins.
    pub(crate) fn hello(&self, node: NodeId) -> v1::PeerHello {
        super::link::hello(self.cluster, self.node, node)
    }

    /// Ends all connections; what waits for an answer learns that there will be none.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for (_, peer) in self.peers.lock().drain() {
            peer.talk.close();
            peer.appends.close();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}
