//! Proxies between the nodes of a cluster: each node is reached through one of its own, and what
//! flows from one node to another can be cut off, either way alone or both.
//!
//! A cut holds bytes back instead of closing connections, as a network does that loses packets:
//! who waits, waits, and what was sent may arrive after the cut is healed. Connections can be
//! made across a cut, but nothing comes through them. All links together can be slow, so that what
//! nodes do one after the other takes long enough to be interrupted.
//!
//! All nodes have the same address, so who connects is found by the process that has the socket.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::addresses::free_addresses;

/// Bytes taken at a time.
const PIECE_BYTES: usize = 64 << 10;

/// From which node to which nothing flows.
type Cuts = HashSet<(u64, u64)>;

/// State of the links between nodes.
#[derive(Clone)]
struct Links {
    cuts: watch::Sender<Cuts>,
    /// Time that each piece is on its way.
    delay: watch::Sender<Duration>,
}

/// The proxies of a cluster.
pub struct Proxies {
    links: Links,
    /// Which node each process is.
    processes: Arc<Mutex<HashMap<u32, u64>>>,
    open: Mutex<HashMap<u64, (SocketAddr, JoinHandle<()>)>>,
}

impl Default for Proxies {
    fn default() -> Self {
        let cuts = watch::Sender::new(Cuts::new());
        Proxies {
            links: Links { cuts, delay: watch::Sender::new(Duration::ZERO) },
            processes: Arc::default(),
            open: Mutex::default(),
        }
    }
}

impl Proxies {
    /// The address of a node's proxy, which is opened if it's not.
    pub async fn open(&self, node: u64, target: SocketAddr) -> SocketAddr {
        if let Some((address, _)) = self.open.lock().unwrap().get(&node) {
            return *address;
        }
        let [address, ..] = free_addresses();
        let listener = TcpListener::bind(address).await.unwrap();
        let (links, processes) = (self.links.clone(), self.processes.clone());
        let task = tokio::spawn(accept(listener, (node, target), links, processes));
        self.open.lock().unwrap().insert(node, (address, task));
        address
    }

    /// A node's process, by which its connections are told from others.
    pub fn runs_as(&self, node: u64, pid: u32) {
        self.processes.lock().unwrap().insert(pid, node);
    }

    /// Nothing flows from one node to the other, until it's healed.
    pub fn cut_one_way(&self, from: u64, to: u64) {
        self.links.cuts.send_modify(|cuts| {
            cuts.insert((from, to));
        });
    }

    /// Whatever flows between nodes is on its way for so long, from now on.
    pub fn slow(&self, delay: Duration) {
        self.links.delay.send_replace(delay);
    }

    /// Nothing flows between two nodes.
    pub fn cut(&self, one: u64, other: u64) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Everything flows again.
    pub fn heal(&self) {
        self.links.cuts.send_modify(HashSet::clear);
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        for (_, (_, task)) in self.open.lock().unwrap().drain() {
            task.abort();
        }
    }
}

async fn accept(
    listener: TcpListener,
    (to, target): (u64, SocketAddr),
    links: Links,
    processes: Arc<Mutex<HashMap<u32, u64>>>,
) {
    let here = listener.local_addr().unwrap();
    loop {
        let Ok((from_there, address)) = listener.accept().await else { continue };
        let (links, processes) = (links.clone(), processes.clone());
        tokio::spawn(async move {
            let known = processes.lock().unwrap().clone();
            let ports = (address.port(), here.port());
            let find = move || owner(ports, &known);
            // The process may be gone already, and its connection with it.
            let Ok(Some(from)) = tokio::task::spawn_blocking(find).await else { return };
            let Ok(to_here) = TcpStream::connect(target).await else { return };
            // Without delay, as the nodes' own connections are.
            if from_there.set_nodelay(true).is_err() || to_here.set_nodelay(true).is_err() {
                return;
            }
            let (there_in, there_out) = from_there.into_split();
            let (here_in, here_out) = to_here.into_split();
            tokio::select! {
                () = pump(there_in, here_out, (from, to), &links) => {}
                () = pump(here_in, there_out, (to, from), &links) => {}
            }
        });
    }
}

/// Carries bytes one way until either side ends.
async fn pump(mut source: OwnedReadHalf, mut sink: OwnedWriteHalf, way: (u64, u64), links: &Links) {
    let mut cuts = links.cuts.subscribe();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let Ok(read @ 1..) = source.read(&mut piece).await else { return };
        let delay = *links.delay.borrow();
        if !delay.is_zero() {
            sleep_until(Instant::now() + delay).await;
        }
        if cuts.wait_for(|cuts| !cuts.contains(&way)).await.is_err() {
            return;
        }
        if sink.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}

/// The node whose process has the socket of a connection between two local ports.
fn owner((port, to): (u16, u16), processes: &HashMap<u32, u64>) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    // "sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ..."
    let (from, to) = (format!(":{port:04X}"), format!(":{to:04X}"));
    let inode = table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let found = columns.get(1)?.ends_with(&from) && columns.get(2)?.ends_with(&to);
        found.then(|| columns.get(9).copied())?
    })?;
    let socket = format!("socket:[{inode}]");
    processes.iter().find_map(|(pid, node)| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        links.any(|link| link.as_os_str() == socket.as_str()).then_some(*node)
    })
}
