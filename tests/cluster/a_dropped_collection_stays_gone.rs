//! A collection is dropped while others write and read it by plans that they made before. None of
//! its states is seen again: by its old name, through another node, from the cache, or in a new
//! collection of that name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use statehouse_client::{Client, Error, v1};
use tokio::task::JoinHandle;

use crate::harness::cluster::{Cluster, await_some};
use crate::harness::{bytes_field, create, get, put, reason};

const NODES: u64 = 3;

/// States that nobody writes any more when the collection is dropped, and those that are written
/// all the time.
const OLD: u64 = 64;
const BUSY: u64 = 64;

fn old(n: u64) -> String {
    format!("old-{}", n % OLD)
}

fn busy(n: u64) -> String {
    format!("busy-{}", n % BUSY)
}

/// What is said of a state that is gone.
fn is_gone(error: &Error) -> bool {
    matches!(error.reason(), Some("COLLECTION_NOT_FOUND" | "STATE_NOT_FOUND"))
}

/// What those who use the collection share.
#[derive(Default)]
struct Shared {
    /// The drop was answered.
    dropped: AtomicBool,
    stop: AtomicBool,
    /// Calls answered.
    calls: AtomicU64,
}

impl Shared {
    /// The number of a call, until there shall be no more.
    fn next(&self) -> Option<u64> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        (!self.stop.load(Ordering::SeqCst)).then_some(number)
    }
}

/// Writes by whichever node, until told to stop.
async fn write(client: Client, shared: Arc<Shared>) {
    while let Some(n) = shared.next() {
        let written = client.state().put(put("c", &busy(n), vec![bytes_field("v", "x")])).await;
        if let Err(status) = written {
            let error = client.error(&status);
            assert!(is_gone(&error), "a write: {error}");
        }
    }
}

/// Reads from the cache of whoever leads, until told to stop: what was there stays gone.
async fn read(client: Client, shared: Arc<Shared>) {
    while let Some(n) = shared.next() {
        let dropped = shared.dropped.load(Ordering::SeqCst);
        match client.get(get("c", &old(n))).await {
            Ok(state) => assert!(!dropped, "a state is back: {state:?}"),
            Err(error) => assert!(dropped || is_gone(&error), "a read: {error}"),
        }
    }
}

/// Waits until so many more calls are answered.
async fn go_on(shared: &Shared, more: u64) {
    let enough = shared.calls.load(Ordering::SeqCst) + more;
    await_some("calls go on", async || match shared.calls.load(Ordering::SeqCst) {
        now if now >= enough => Ok(()),
        now => Err(format!("{} to go", enough - now)),
    })
    .await;
}

/// Waits until a node knows a collection by its id.
async fn knows(client: &Client, id: u64) {
    await_some("a node knows the new collection", async || {
        let request = v1::DescribeCollectionRequest { name: "c".into() };
        match client.state().describe_collection(request).await {
            Ok(found) if found.get_ref().id == id => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_dropped_collection_is_seen_again() {
    let mut cluster = Cluster::start(NODES).await;
    let mut clients = Vec::new();
    for node in 1..=NODES {
        clients.push(cluster.client(node).await);
    }
    let first = create(&clients[0], "c").await;
    for n in 0..OLD {
        clients[0].put(put("c", &old(n), vec![bytes_field("v", "x")])).await.unwrap();
    }
    let shared = Arc::<Shared>::default();
    let mut users: Vec<JoinHandle<()>> = Vec::new();
    for client in &clients {
        knows(client, first.id).await;
        users.push(tokio::spawn(write(client.clone(), shared.clone())));
        users.push(tokio::spawn(read(client.clone(), shared.clone())));
    }
    go_on(&shared, 1_000).await;
    let drop = v1::DropCollectionRequest { name: "c".into() };
    clients[0].state().drop_collection(drop).await.unwrap();
    shared.dropped.store(true, Ordering::SeqCst);
    go_on(&shared, 500).await;
    shared.stop.store(true, Ordering::SeqCst);
    for user in users {
        user.await.unwrap();
    }
    let second = create(&clients[0], "c").await;
    assert_ne!(first.id, second.id);
    for client in &clients {
        knows(client, second.id).await;
    }
    for client in &clients {
        for key in (0..OLD).map(old).chain((0..BUSY).map(busy)) {
            assert_eq!(reason(client.get(get("c", &key)).await), "STATE_NOT_FOUND", "{key}");
        }
    }
    cluster.level().await;
    cluster.stop_all().await;
}
