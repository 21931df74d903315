//! A cluster in one process, and short ways to say things to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use statehouse_cluster::raft::{Config, Group, GroupStatus, Groups, Role};
use statehouse_cluster::transport::{self, Peers};
use statehouse_cluster::{ClusterId, Error, NodeId, ShardId};
use statehouse_store::{
    CollectionId, Command, Condition, Expiry, Field, Put, ReplicaId, Reply, Selection, Store,
    Target, Value, Write, WriteLimits,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
pub const SHARD: ShardId = ShardId(1);
pub const USERS: CollectionId = CollectionId(7);

/// Longer than anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Node {
    pub id: NodeId,
    pub dir: PathBuf,
    pub store: Store,
    pub peers: Arc<Peers>,
    pub groups: Arc<Groups>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Node {
    async fn start(id: NodeId, dir: PathBuf, listener: TcpListener, config: Config) -> Node {
        let store = Store::open(&dir, statehouse_store::Config::default()).unwrap();
        let peers = Peers::new(CLUSTER, id, transport::Config::default());
        let groups = Groups::open(store.clone(), peers.clone(), config).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = groups.clone();
        let server = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            transport::serve(listener, serving, Weak::new(), stopped).await.unwrap();
        });
        Node { id, dir, store, peers, groups, stop, server }
    }

    /// Stops everything, in order. The directory can be opened again.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.groups.shutdown().await;
        self.server.await.unwrap();
        drop(self.groups);
        let store = self.store;
        tokio::task::spawn_blocking(move || store.close().unwrap()).await.unwrap();
    }

    pub fn group(&self, shard: ShardId) -> Arc<Group> {
        self.groups.get(shard).unwrap()
    }
}

pub struct Cluster {
    nodes: BTreeMap<NodeId, Node>,
    book: BTreeMap<NodeId, String>,
    dir: TempDir,
    config: Config,
}

/// The id of a node's first replica of a shard.
pub fn replica_of(shard: ShardId, node: NodeId) -> ReplicaId {
    ReplicaId(u64::from(shard.0) * 1_000 + node.0)
}

pub fn node_ids(count: u64) -> Vec<NodeId> {
    (1..=count).map(NodeId).collect()
}

/// Timings under which a busy machine unseats no leader: for tests in which none is to go.
pub fn steady() -> Config {
    Config {
        election_timeout_min: Duration::from_millis(2_500),
        election_timeout_max: Duration::from_millis(3_000),
        ..Config::default()
    }
}

impl Cluster {
    /// Nodes that know each other and hold nothing.
    pub async fn of(count: u64, config: Config) -> Cluster {
        let dir = TempDir::new().unwrap();
        let mut cluster = Cluster { nodes: BTreeMap::new(), book: BTreeMap::new(), dir, config };
        for id in node_ids(count) {
            cluster.start(id).await;
        }
        cluster
    }

    /// Three nodes with a replica each of one shard, and a leader.
    pub async fn of_three() -> Cluster {
        Cluster::formed(Config::default()).await
    }

    /// Starts three nodes with a replica each of one shard, and a leader that stays.
    pub async fn steady_three() -> Cluster {
        Cluster::formed(steady()).await
    }

    async fn formed(config: Config) -> Cluster {
        let mut cluster = Cluster::of(3, config).await;
        cluster.form(SHARD, &node_ids(3)).await;
        cluster
    }

    /// Starts a node, for the first time or again.
    pub async fn start(&mut self, id: NodeId) {
        let address = self.book.get(&id).cloned().unwrap_or("127.0.0.1:0".to_owned());
        let listener = TcpListener::bind(&address).await.unwrap();
        self.book.insert(id, listener.local_addr().unwrap().to_string());
        let dir = self.dir.path().join(id.to_string());
        let node = Node::start(id, dir, listener, self.config.clone()).await;
        self.nodes.insert(id, node);
        for node in self.nodes.values() {
            node.peers.set_addresses(self.book.clone());
        }
    }

    /// Stops a node; its address stays known.
    pub async fn stop(&mut self, id: NodeId) {
        self.take(id).stop().await;
    }

    /// Takes a node out, to be stopped by the caller.
    pub fn take(&mut self, id: NodeId) -> Node {
        self.nodes.remove(&id).unwrap()
    }

    pub async fn stop_all(&mut self) {
        while let Some((_, node)) = self.nodes.pop_first() {
            node.stop().await;
        }
    }

    /// Makes a shard with replicas on some nodes, and waits for its leader.
    pub async fn form(&mut self, shard: ShardId, nodes: &[NodeId]) -> NodeId {
        let members: BTreeMap<ReplicaId, NodeId> =
            nodes.iter().map(|node| (replica_of(shard, *node), *node)).collect();
        for (replica, node) in &members {
            self.nodes[node].groups.create(shard, *replica).await.unwrap();
        }
        let first = self.nodes[&nodes[0]].group(shard);
        first.initialize(members).await.unwrap();
        self.leader(shard).await
    }

    /// Where a node's peers reach it.
    pub fn address(&self, id: NodeId) -> &str {
        &self.book[&id]
    }

    /// Where a node keeps its data.
    pub fn data(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The node whose replica leads and answers reads, once there is one.
    pub async fn leader(&self, shard: ShardId) -> NodeId {
        let look = async {
            loop {
                for node in self.nodes.values() {
                    let Some(group) = node.groups.get(shard) else { continue };
                    if group.leads() && group.linearizable().await.is_ok() {
                        return node.id;
                    }
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, look).await.expect("somebody leads in the end")
    }

    /// Puts a state wherever it can be put, as a client would: again while nothing happened.
    pub async fn put(&self, shard: ShardId, key: &str, value: &str) -> Reply {
        let write = async {
            loop {
                let leader = self.leader(shard).await;
                match put(&self.node(leader).group(shard), key, value).await {
                    Ok(reply) => return reply,
                    Err(Error::NotLeader { .. } | Error::OutcomeUnknown { .. }) => {}
                    Err(error) => panic!("put failed: {error}"),
                }
            }
        };
        timeout(PATIENCE, write).await.expect("writes go on")
    }
}

impl Drop for Cluster {
    /// Stops what still runs: a database that is at work while the process exits may abort it.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let stop = || Handle::current().block_on(self.stop_all());
            tokio::task::block_in_place(stop);
        }
    }
}

pub fn put_command(key: &str, value: &str) -> Command {
    let write = Write {
        target: Target { collection: USERS, key: Bytes::from(key.to_owned()) },
        condition: Condition::Any,
        request: None,
        expiry: Expiry::Never,
        writer: 0,
        model: None,
        limits: WriteLimits { state_bytes_max: 1 << 30, inline_bytes_max: 16 << 10 },
        answer: Bytes::new(),
    };
    let value = Value::Bytes(Bytes::from(value.to_owned()));
    Command::Put(Put { write, fields: vec![Field::new("value", value)] })
}

/// Proposes a put to one replica.
pub async fn put(group: &Arc<Group>, key: &str, value: &str) -> Result<Reply, Error> {
    let (sender, receiver) = oneshot::channel();
    let done = Box::new(move |reply| {
        let _ = sender.send(reply);
    });
    group.propose(put_command(key, value), done);
    receiver.await.unwrap()
}

/// What one replica has under a key.
pub fn get(group: &Group, key: &str) -> Option<String> {
    let state = group.reader().get_whole(USERS, key.as_bytes(), &Selection::all(), 0).unwrap()?;
    let bytes = state.fields[0].bytes().to_vec();
    Some(String::from_utf8(bytes).unwrap())
}

/// Waits until a group says something of itself.
pub async fn until(group: &Group, what: impl FnMut(&GroupStatus) -> bool) -> GroupStatus {
    let mut watched = group.watch();
    let reached = timeout(PATIENCE, watched.wait_for(what)).await;
    let status = group.status();
    reached.unwrap_or_else(|_| panic!("not reached: {status:?}")).unwrap().clone()
}

/// Waits until something holds that no watch tells.
pub async fn eventually(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it holds in the end");
}

/// Waits until a replica has applied all that another one has.
pub async fn until_caught_up(behind: &Group, ahead: &Group) {
    let target = ahead.status().applied;
    timeout(PATIENCE, behind.wait_applied(target.index)).await.expect("it catches up").unwrap();
}

pub async fn until_leads(group: &Group) {
    until(group, |status| status.role == Role::Leader).await;
}

/// Copies a directory with all that is in it.
pub fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_files(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
