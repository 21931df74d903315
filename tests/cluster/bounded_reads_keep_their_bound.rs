//! The lag that a bounded read is answered with is true: nothing that was acknowledged longer ago
//! than that, on the caller's own clock, is missing from it. Neither at a follower that stood still
//! while its leader's messages gathered in its sockets, nor right after every node was killed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1::{self, state_client::StateClient};
use statehouse_client::{Error, HOP};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::harness::cluster::{Cluster, Shape, await_some};
use crate::harness::workload::{Load, Workload};
use crate::harness::{bytes_field, create, field_bytes, get, put, report, scale, seed};

/// Pauses of a short run; `PAUSES` overrides it.
const PAUSES: u64 = 12;

/// Kills of all nodes in a short run; `ALL_KILLS` overrides it.
const ALL_KILLS: u64 = 4;

/// How long a follower stands still: longer than it takes its leader to suspect it.
const STILL: Duration = Duration::from_millis(1_300);

/// How old the answers may be.
const LAG_MAX: Duration = Duration::from_millis(350);

/// For how long the follower is read from after it goes on.
const READ_FOR: Duration = Duration::from_millis(700);

/// Readers of the follower at a time.
const READERS: usize = 4;

/// When an answer is given up.
const ANSWER_MAX: Duration = Duration::from_secs(3);

const KEY: &str = "counter";

/// What was acknowledged and when, and what was read of it.
#[derive(Default)]
struct Book {
    /// Values in the order of their acknowledgements, which is that of the values too.
    acknowledged: Vec<(Instant, u64)>,
    reads: Vec<Read>,
}

/// One answer of a follower.
#[derive(Debug)]
struct Read {
    sent: Instant,
    lag: Duration,
    value: u64,
}

impl Book {
    /// The newest value acknowledged by then.
    fn acknowledged_by(&self, moment: Instant) -> u64 {
        let by_then = self.acknowledged.iter().rev().find(|(at, _)| *at <= moment);
        by_then.map_or(0, |(_, value)| *value)
    }

    fn judge(&self) {
        for read in &self.reads {
            let Some(moment) = read.sent.checked_sub(read.lag) else { continue };
            let owed = self.acknowledged_by(moment);
            assert!(
                read.value >= owed,
                "a read saw {} and said it lags by {:?}; {owed} was acknowledged before",
                read.value,
                read.lag
            );
        }
    }
}

fn state_client(cluster: &Cluster, node: u64) -> StateClient<Channel> {
    StateClient::new(Endpoint::from_shared(cluster.endpoint(node)).unwrap().connect_lazy())
}

/// Writes ever greater values through one node, until told to stop.
async fn write(
    mut node: StateClient<Channel>,
    above: u64,
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
) {
    let mut value = above;
    while !stop.load(Ordering::Relaxed) {
        value += 1;
        let request = put("ledger", KEY, vec![bytes_field("v", value.to_le_bytes().to_vec())]);
        if matches!(timeout(ANSWER_MAX, node.put(request)).await, Ok(Ok(_))) {
            book.lock().unwrap().acknowledged.push((Instant::now(), value));
        }
    }
}

/// Reads what one node's own replica has, until told to stop. Refusals are fine.
async fn read(mut node: StateClient<Channel>, book: Arc<Mutex<Book>>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let mut request = tonic::Request::new(v1::GetRequest {
            consistency: v1::Consistency::Bounded as i32,
            max_lag_ms: LAG_MAX.as_millis() as u64,
            ..get("ledger", KEY)
        });
        // Not to be forwarded to the leader.
        request.metadata_mut().insert(HOP, "1".parse().unwrap());
        let sent = Instant::now();
        match timeout(ANSWER_MAX, node.get(request)).await {
            Ok(Ok(found)) => {
                let found = found.into_inner();
                let bytes = field_bytes(&found.state.unwrap(), "v");
                let value = u64::from_le_bytes(bytes[..].try_into().unwrap());
                let lag = Duration::from_millis(found.lag_ms);
                assert!(lag <= LAG_MAX, "asked for {LAG_MAX:?}, answered {lag:?}");
                book.lock().unwrap().reads.push(Read { sent, lag, value });
            }
            Ok(Err(status)) => {
                let error = Error::from_status("", &status);
                match error.reason() {
                    // As old as was asked for, and nothing yet.
                    Some("STATE_NOT_FOUND") => {
                        book.lock().unwrap().reads.push(Read { sent, lag: LAG_MAX, value: 0 });
                    }
                    // It does not know enough, or its copy of the catalog does not.
                    Some("NOT_LEADER" | "UNAVAILABLE") => {}
                    _ => panic!("{error}"),
                }
            }
            Err(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_stood_still_does_not_take_old_news_for_fresh() {
    let cluster = &mut Cluster::of(Shape { shards: 1, ..Shape::default() }).await;
    create(&cluster.client(1).await, "ledger").await;
    let book: Arc<Mutex<Book>> = Arc::default();
    for round in 0..scale("PAUSES", PAUSES) {
        let leader = cluster.leader(1).await;
        let follower = leader % 3 + 1;
        let stop: Arc<AtomicBool> = Arc::default();
        *book.lock().unwrap() = Book::default();
        let (writer, stopped) = (state_client(cluster, leader), stop.clone());
        let mut tasks = vec![tokio::spawn(write(writer, round << 32, book.clone(), stopped))];
        let readers = (0..READERS).map(|_| {
            let reader = state_client(cluster, follower);
            tokio::spawn(read(reader, book.clone(), stop.clone()))
        });
        tasks.extend(readers);
        // The follower serves by itself, and connections to it stand.
        served(&book, 20).await;
        cluster.pause(follower);
        passed(STILL).await;
        cluster.resume(follower);
        passed(READ_FOR).await;
        // It is fresh again, and says so.
        served(&book, 20).await;
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.unwrap();
        }
        book.lock().unwrap().judge();
    }
    cluster.whole().await;
}

/// Waits while the clients go on for so long.
async fn passed(time: Duration) {
    let began = Instant::now();
    await_some("the time has passed", async || match began.elapsed() {
        elapsed if elapsed >= time => Ok(()),
        elapsed => Err(format!("{elapsed:?}")),
    })
    .await;
}

/// Waits until the follower has served so many more reads.
async fn served(book: &Arc<Mutex<Book>>, more: usize) {
    let enough = book.lock().unwrap().reads.len() + more;
    await_some("the follower serves reads by itself", async || {
        let reads = book.lock().unwrap().reads.len();
        if reads >= enough { Ok(()) } else { Err(format!("{reads} of {enough}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_reads_right_after_all_nodes_were_killed_keep_their_bound() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3).await;
    // Few keys, written all the time: much lies behind what is flushed, and is replayed.
    let load = Load { keys: 8, ..Load::default() };
    let load = Workload::start(&cluster, load, random.random()).await;
    let kills = scale("ALL_KILLS", ALL_KILLS);
    for _ in 0..kills {
        load.answers(random.random_range(300..900)).await;
        for node in 1..=3 {
            cluster.kill(node);
        }
        for node in 1..=3 {
            cluster.launch(node).await;
        }
        // Reads are under way all the time; each node serves as soon as it can.
        for node in 1..=3 {
            cluster.ready(node).await;
        }
        load.answers(300).await;
    }
    let verdict = load.judge(&cluster.dir()).await;
    assert!(verdict.bounded > 100, "bounded reads were judged: {verdict}");
    cluster.whole().await;
    report(
        "bounded reads after all were killed",
        &format!("seed {seed}, {kills} kills, {verdict}"),
    );
}
