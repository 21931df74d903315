//! Every node is stopped and started again, one after the other, while clients write and read:
//! no request fails, and the slowest answer comes soon.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use statehouse_client::{Client, Config};

use crate::harness::cluster::{Cluster, await_some};
use crate::harness::{bytes_field, create, field_bytes, get, put, report, scale};

/// Clients, each with keys of its own.
const CLIENTS: u64 = 8;

/// Rounds through all nodes in a short run; `ROUNDS` overrides it.
const ROUNDS: u64 = 1;

/// The longest that a request may take while a node is restarted.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Tally {
    answers: AtomicU64,
    slowest_us: AtomicU64,
    stop: AtomicBool,
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_nodes_are_restarted() {
    let mut cluster = Cluster::start(3).await;
    let config = Config { timeout: Some(ANSWER_MAX), ..Config::any_of(cluster.endpoints()) };
    let client = Client::connect(config).await.unwrap();
    create(&client, "counters").await;
    let tally = Arc::new(Tally::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(count(client.clone(), number, tally.clone())))
        .collect();
    let rounds = scale("ROUNDS", ROUNDS);
    for _ in 0..rounds {
        for node in 1..=3 {
            more(&tally, 300).await;
            cluster.stop(node).await;
            more(&tally, 300).await;
            cluster.start_node(node).await;
            cluster.whole().await;
        }
    }
    more(&tally, 300).await;
    tally.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let slowest = Duration::from_micros(tally.slowest_us.load(Ordering::Relaxed));
    let answers = tally.answers.load(Ordering::Relaxed);
    let figures = format!("{} restarts, {answers} answers, the slowest {slowest:?}", 3 * rounds);
    report("a rolling restart", &figures);
}

/// Counts its key up; every answer must be there and right.
async fn count(client: Client, number: u64, tally: Arc<Tally>) {
    let key = format!("client-{number}");
    for value in 1u64.. {
        if tally.stop.load(Ordering::Relaxed) {
            return;
        }
        let began = Instant::now();
        let fields = vec![bytes_field("value", value.to_le_bytes().to_vec())];
        let written = client.put(put("counters", &key, fields)).await;
        let written = written.unwrap_or_else(|error| panic!("{key}: put {value}: {error}"));
        let read = client.get(get("counters", &key)).await;
        let read = read.unwrap_or_else(|error| panic!("{key}: get {value}: {error}"));
        assert_eq!(read.version, written.version, "{key}: {value}");
        assert_eq!(field_bytes(&read, "value"), value.to_le_bytes().as_slice());
        tally.slowest_us.fetch_max(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        tally.answers.fetch_add(2, Ordering::Relaxed);
    }
}

async fn more(tally: &Tally, answers: u64) {
    let enough = tally.answers.load(Ordering::Relaxed) + answers;
    await_some("more answers", async || match tally.answers.load(Ordering::Relaxed) {
        now if now >= enough => Ok(()),
        now => Err(format!("{} to go", enough - now)),
    })
    .await;
}
