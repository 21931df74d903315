//! A cluster of real processes: formed by `init` and `join`, asked by `admin`'s calls, and
//! mistreated: killed, paused, cut off, wiped.
//!
//! One cluster runs at a time in a test process: two would fight for the same two cores, and
//! each would call the other's slowness a fault. A test that fails leaves the directory with
//! data and logs, and prints the end of each log; `NODE_LOG=debug` has nodes log more.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde_json::Value as Json;
use statehouse_client::v1;
use statehouse_client::{Client, Config};
use statehouse_proto::v1::admin_client::AdminClient;
use tempfile::TempDir;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::addresses::free_addresses;
pub use super::condition::await_some;
use super::power::Disk;
use super::process::{Process, tail};
use super::proxy::Proxies;
use super::{PATIENCE, statehouse};

/// How long one node may take over an admin call before the next one is asked.
const ASK_MAX: Duration = Duration::from_secs(5);

/// Lines of each log that a failing test prints.
const TAIL_LINES: usize = 40;

static ONE_AT_A_TIME: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);

/// The turn to run a cluster, for a test that forms its own.
pub fn turn() -> OwnedMutexGuard<()> {
    ONE_AT_A_TIME.clone().blocking_lock_owned()
}

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    pub nodes: u64,
    pub shards: u32,
    pub replicas: u32,
    /// More of the environment of each node.
    pub env: Vec<(String, String)>,
    /// Nodes reach each other through proxies that can cut them off.
    pub proxied: bool,
    /// Each node's data lies on a file system of its own of so many MiB, which can lose power.
    pub disk_mib: Option<u64>,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { nodes: 3, shards: 4, replicas: 3, env: Vec::new(), proxied: false, disk_mib: None }
    }
}

/// One member: its directory and addresses stay when its process goes.
struct Member {
    /// What the cluster calls it.
    id: u64,
    grpc: SocketAddr,
    http: SocketAddr,
    peer: SocketAddr,
    process: Option<Process>,
    paused: bool,
    /// Its environment alone, besides that of all.
    env: Vec<(String, String)>,
}

/// Processes that are one cluster.
pub struct Cluster {
    members: BTreeMap<u64, Member>,
    /// The highest number that a member ever had.
    last: u64,
    shape: Shape,
    proxies: Option<Proxies>,
    /// Unmounted once no process is left, and before the directory goes.
    disks: BTreeMap<u64, Disk>,
    dir: Option<TempDir>,
    _turn: OwnedMutexGuard<()>,
}

impl Cluster {
    /// So many nodes with everything else by default.
    pub async fn start(nodes: u64) -> Cluster {
        Cluster::of(Shape { nodes, ..Shape::default() }).await
    }

    /// Forms a cluster, and waits until every shard has a leader and all its replicas.
    pub async fn of(shape: Shape) -> Cluster {
        let turn = ONE_AT_A_TIME.clone().lock_owned().await;
        let dir = tempfile::Builder::new().prefix("statehouse-cluster-").tempdir().unwrap();
        println!("cluster in {}", dir.path().display());
        let proxies = if shape.proxied { Some(Proxies::default()) } else { None };
        let members = BTreeMap::new();
        let nodes = shape.nodes;
        let (disks, dir) = (BTreeMap::new(), Some(dir));
        let mut cluster = Cluster { members, last: 0, shape, proxies, disks, dir, _turn: turn };
        for _ in 0..nodes {
            cluster.add().await;
        }
        cluster.whole().await;
        cluster
    }

    /// Prepares a directory and starts a node on it; answers the node's id.
    pub async fn add(&mut self) -> u64 {
        let number = self.last + 1;
        self.last = number;
        if let Some(mib) = self.shape.disk_mib {
            self.disks.insert(number, Disk::mount(&self.data(number), mib).unwrap());
        }
        let id = self.prepare(number);
        let [grpc, http, peer] = free_addresses();
        let member = Member { id, grpc, http, peer, process: None, paused: false, env: Vec::new() };
        self.members.insert(number, member);
        assert_eq!(id, number, "nodes are numbered as they come");
        self.start_node(number).await;
        number
    }

    /// `init` for the first node, `join` for the others; answers the id that it got.
    fn prepare(&self, number: u64) -> u64 {
        let mut command = statehouse();
        if self.members.is_empty() {
            let (shards, replicas) = (self.shape.shards, self.shape.replicas);
            command.arg("init").args(["--shards", &shards.to_string()]);
            command.args(["--replicas", &replicas.to_string()]);
        } else {
            command.arg("join");
            for endpoint in self.endpoints() {
                command.args(["--seed", &endpoint]);
            }
        }
        let out = command.arg("--json").arg("--data").arg(self.data(number)).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "prepare node {number}: {said}");
        let told: Json = serde_json::from_slice(&out.stdout).unwrap();
        told["node"].as_u64().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.as_ref().expect("the directory is there until the end").path().join(name)
    }

    /// Where everything of this cluster is kept; it stays if the test fails.
    pub fn dir(&self) -> PathBuf {
        self.path("")
    }

    /// Where a node keeps its data.
    pub fn data(&self, node: u64) -> PathBuf {
        self.path(&format!("node-{node}"))
    }

    fn log(&self, node: u64) -> PathBuf {
        self.path(&format!("node-{node}.log"))
    }

    /// Whether a node ever logged these words.
    pub fn log_says(&self, node: u64, words: &str) -> bool {
        std::fs::read_to_string(self.log(node)).unwrap().contains(words)
    }

    /// Waits until a node knows that the others can rebuild what it may lose.
    pub async fn spared(&self, node: u64) {
        let file = self.data(node).join("damage-policy");
        await_some("the node knows that others have its rows", async || {
            let found = std::fs::read_to_string(&file).unwrap_or_default();
            (found == "quarantine\n").then_some(()).ok_or(found)
        })
        .await;
    }

    /// Starts the process of a node that has none, and waits until it's ready.
    pub async fn start_node(&mut self, node: u64) {
        self.launch(node).await;
        self.ready(node).await;
    }

    /// Starts the process of a node that has none.
    pub async fn launch(&mut self, node: u64) {
        let member = &self.members[&node];
        assert!(member.process.is_none(), "node {node} runs");
        let mut command = statehouse();
        command
            .args(["serve", "--log-format", "json", "--device", "cpu"])
            .args(["--log", &std::env::var("NODE_LOG").unwrap_or_else(|_| "info".to_owned())])
            .args(["--listen", &member.grpc.to_string()])
            .args(["--http-listen", &member.http.to_string()])
            .args(["--peer-listen", &member.peer.to_string()])
            .arg("--data")
            .arg(self.data(node))
            .envs(self.shape.env.iter().chain(&member.env).cloned());
        if let Some(proxies) = &self.proxies {
            let advertised = proxies.open(node, member.peer).await;
            command.args(["--peer-advertise", &advertised.to_string()]);
        }
        let process = Process::spawn(command, &self.log(node));
        if let Some(proxies) = &self.proxies {
            proxies.runs_as(node, process.pid());
        }
        self.member(node).process = Some(process);
    }

    /// Waits until a node that was launched is ready.
    pub async fn ready(&mut self, node: u64) {
        let process = self.member(node).process.as_mut().expect("the node was launched");
        let ready = timeout(PATIENCE, process.ready()).await;
        assert!(
            matches!(ready, Ok(Some(_))),
            "node {node} did not get ready ({}):\n{}",
            if ready.is_err() { "it still runs" } else { "it ended" },
            tail(&self.log(node), TAIL_LINES)
        );
    }

    fn member(&mut self, node: u64) -> &mut Member {
        self.members.get_mut(&node).unwrap()
    }

    fn take(&mut self, node: u64) -> Process {
        let member = self.member(node);
        member.paused = false;
        member.process.take().unwrap_or_else(|| panic!("node {node} does not run"))
    }

    /// kill -9.
    pub fn kill(&mut self, node: u64) {
        self.take(node).kill();
    }

    /// Nodes lose their power at one moment: what they had not synced is gone. Their disks are
    /// there again when this returns, so that they can be started.
    pub fn lose_power(&mut self, nodes: &[u64]) {
        for node in nodes {
            self.disks[node].lose_power().unwrap();
        }
        for node in nodes {
            // What it noticed of its own disk meanwhile is no matter.
            self.kill(*node);
        }
        for node in nodes {
            self.disks[node].return_power();
        }
    }

    /// Asks a node to stop; it must do so with exit code 0.
    pub async fn stop(&mut self, node: u64) {
        let process = self.take(node);
        let status = tokio::task::spawn_blocking(move || process.stop()).await.unwrap();
        assert!(status.success(), "node {node}: {status}\n{}", tail(&self.log(node), TAIL_LINES));
    }

    /// A node stands still, its connections stay open.
    pub fn pause(&mut self, node: u64) {
        let member = self.member(node);
        member.process.as_ref().expect("it runs").pause();
        member.paused = true;
    }

    pub fn resume(&mut self, node: u64) {
        let member = self.member(node);
        member.process.as_ref().expect("it runs").resume();
        member.paused = false;
    }

    /// Sets the environment that a node has besides that of all, from its next start on.
    pub fn set_env(&mut self, node: u64, env: Vec<(String, String)>) {
        self.member(node).env = env;
    }

    /// Has a node listen for its peers somewhere else from its next start on. It must not run.
    pub fn relocate(&mut self, node: u64) {
        assert!(self.proxies.is_none(), "a proxy would stay where it is");
        let member = self.member(node);
        assert!(member.process.is_none(), "node {node} runs");
        [member.peer, ..] = free_addresses();
    }

    /// Address at which a node listens for its peers.
    pub fn peer(&self, node: u64) -> SocketAddr {
        self.members[&node].peer
    }

    /// Removes everything that a node kept. It must not run.
    pub fn wipe(&mut self, node: u64) {
        assert!(self.members[&node].process.is_none(), "node {node} runs");
        std::fs::remove_dir_all(self.data(node)).unwrap();
    }

    /// A node that will never be back.
    pub fn forget(&mut self, node: u64) {
        let member = self.members.remove(&node).unwrap();
        assert!(member.process.is_none(), "node {node} runs");
    }

    /// The nodes that were ever started and are not forgotten.
    pub fn nodes(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    /// Those whose process runs and is not paused.
    pub fn running(&self) -> Vec<u64> {
        let runs = |member: &&Member| member.process.is_some() && !member.paused;
        self.members.values().filter(runs).map(|member| member.id).collect()
    }

    /// The process of a node that runs.
    pub fn pid(&self, node: u64) -> u32 {
        self.members[&node].process.as_ref().unwrap().pid()
    }

    /// Whether a node's process ended by itself.
    pub fn has_ended(&mut self, node: u64) -> bool {
        self.member(node).process.as_mut().is_none_or(Process::has_ended)
    }

    pub fn endpoint(&self, node: u64) -> String {
        format!("http://{}", self.members[&node].grpc)
    }

    /// Where a node serves HTTP.
    pub fn http(&self, node: u64) -> SocketAddr {
        self.members[&node].http
    }

    /// Where clients reach each node, running or not.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.keys().map(|node| self.endpoint(*node)).collect()
    }

    pub fn proxies(&self) -> &Proxies {
        self.proxies.as_ref().expect("the cluster's shape is proxied")
    }

    /// A client of one node.
    pub async fn client(&self, node: u64) -> Client {
        let endpoint = self.endpoint(node);
        Client::connect(Config::new(endpoint)).await.unwrap()
    }

    /// Runs `statehouse admin` against the nodes that run; it must succeed. Answers its JSON.
    pub fn admin_json(&self, args: &[&str]) -> Json {
        let out = self.admin(&[args, &["--json"]].concat());
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "admin {args:?}: {said}");
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// Runs `statehouse admin` against the nodes that run.
    pub fn admin(&self, args: &[&str]) -> std::process::Output {
        let running: Vec<String> =
            self.running().into_iter().map(|node| self.endpoint(node)).collect();
        admin_at(&running.join(","), args)
    }

    /// Runs `statehouse admin` with the addresses of all nodes, running or not.
    pub fn admin_anywhere(&self, args: &[&str]) -> std::process::Output {
        admin_at(&self.endpoints().join(","), args)
    }

    /// Runs `statehouse admin` against one node; it must succeed. Answers its JSON.
    pub fn admin_of(&self, node: u64, args: &[&str]) -> Json {
        let out = admin_at(&self.endpoint(node), &[args, &["--json"]].concat());
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "admin {args:?}: {said}");
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// Asks the nodes that run, one after the other, until one answers.
    pub async fn ask<T>(
        &self,
        call: impl AsyncFn(&mut AdminClient<Channel>) -> Result<T, tonic::Status>,
    ) -> Result<T, String> {
        let mut said = String::from("no node runs");
        for node in self.running() {
            let endpoint = Endpoint::from_shared(self.endpoint(node)).unwrap();
            let asked = timeout(ASK_MAX, async {
                let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
                let mut admin = AdminClient::new(channel);
                call(&mut admin).await.map_err(|status| status.to_string())
            });
            match asked.await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => said = format!("node {node}: {error}"),
                Err(_) => said = format!("node {node}: silent"),
            }
        }
        Err(said)
    }

    pub async fn shards(&self) -> Result<Vec<v1::Shard>, String> {
        self.ask(async |admin| {
            let listed = admin.list_shards(v1::ListShardsRequest::default()).await?;
            Ok(listed.into_inner().shards)
        })
        .await
    }

    /// The node that leads a shard, as soon as there is one that runs.
    pub async fn leader(&self, shard: u32) -> u64 {
        let running = self.running();
        await_some(&format!("shard {shard} has a leader"), async || {
            let shards = self.shards().await?;
            let found = shards.iter().find(|found| found.id == shard);
            let leader = found.map_or(0, |shard| shard.leader);
            if running.contains(&leader) { Ok(leader) } else { Err(format!("{found:?}")) }
        })
        .await
    }

    /// Waits until all nodes that run are known to be alive, every shard has a leader and all
    /// the replicas it can have, and nothing is being moved.
    pub async fn whole(&self) {
        await_some("the cluster is whole", async || self.is_whole().await).await;
    }

    async fn is_whole(&self) -> Result<(), String> {
        let request = v1::GetClusterRequest {};
        let status = self
            .ask(async |admin| admin.get_cluster(request).await.map(tonic::Response::into_inner))
            .await?;
        let running = self.running();
        let healthy = status.nodes_alive as usize >= running.len()
            && status.shards_without_leader == 0
            && status.tasks_running == 0
            && status.stopped.is_empty()
            && status.controller != 0;
        if !healthy {
            return Err(format!("{status:?}"));
        }
        let shards = self.shards().await?;
        if shards.len() != self.shape.shards as usize + 1 {
            return Err(format!("{} shards", shards.len()));
        }
        let wanted = (self.shape.replicas as usize).min(running.len());
        for shard in &shards {
            let counts = |role: i32| {
                role == v1::ReplicaRole::Leader as i32 || role == v1::ReplicaRole::Follower as i32
            };
            let voters: Vec<_> = shard
                .replicas
                .iter()
                .filter(|replica| counts(replica.role) && running.contains(&replica.node))
                .collect();
            if voters.len() < wanted || !running.contains(&shard.leader) {
                return Err(format!("{shard:?}"));
            }
        }
        Ok(())
    }

    /// Waits until every replica has applied everything that its shard committed.
    pub async fn level(&self) {
        await_some("every replica has everything", async || {
            let behind = self.shards().await?.into_iter().find(|shard| {
                shard.replicas.iter().any(|replica| replica.applied < shard.committed)
            });
            behind.map_or(Ok(()), |shard| Err(format!("{shard:?}")))
        })
        .await;
    }

    /// Stops every node that runs, politely.
    pub async fn stop_all(&mut self) {
        for node in self.running() {
            self.stop(node).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in self.nodes() {
            let log = self.log(node);
            eprintln!("--- {}\n{}", log.display(), tail(&log, TAIL_LINES));
        }
        if let Some(dir) = self.dir.take() {
            eprintln!("--- kept in {}", dir.keep().display());
        }
    }
}

fn admin_at(endpoints: &str, args: &[&str]) -> std::process::Output {
    let mut command = statehouse();
    command.arg("admin").args(args).env("STATEHOUSE_ENDPOINT", endpoints);
    command.output().unwrap()
}
