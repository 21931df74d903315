//! Every step is sent one to three times, at once or one after the other, through any node, while
//! leaders are killed between their commit and their answer: each event is counted once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1::{self, score_client::ScoreClient};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::harness::cluster::{Cluster, await_some};
use crate::harness::steps::{self, Event};
use crate::harness::{counter, create, field_bytes, get, push, report, scale, seed};

const COLLECTION: &str = "counts";

/// Fewer keys than clients, so that clients meet.
const KEYS: u64 = 6;

const CLIENTS: u64 = 8;

/// Kills of a short run; `KILLS` overrides it.
const KILLS: u64 = 5;

/// When an answer is given up.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Rounds of sends after which an event is left open.
const ROUNDS_MAX: usize = 20;

type Told = Arc<Mutex<HashMap<String, Vec<Event>>>>;

struct Stepper {
    nodes: Vec<ScoreClient<Channel>>,
    began: Instant,
    told: Told,
    next: Arc<AtomicU64>,
    answers: Arc<AtomicU64>,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_counted_once_however_often_it_is_sent() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3).await;
    let model = cluster.dir().join("model");
    counter::write_model(&model);
    let client = cluster.client(1).await;
    create(&client, COLLECTION).await;
    push(&client, &model).await.unwrap();

    let (told, answers) = (Told::default(), Arc::new(AtomicU64::new(0)));
    let (next, stop) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let connect = |endpoint: String| {
                let endpoint = Endpoint::from_shared(endpoint).unwrap();
                ScoreClient::new(endpoint.connect_timeout(ANSWER_MAX).connect_lazy())
            };
            let stepper = Stepper {
                nodes: cluster.endpoints().into_iter().map(connect).collect(),
                began,
                told: told.clone(),
                next: next.clone(),
                answers: answers.clone(),
            };
            tokio::spawn(stepper.work(random.random(), stop.clone()))
        })
        .collect();
    let more = async |more: u64| {
        let enough = answers.load(Ordering::Relaxed) + more;
        await_some("more steps", async || match answers.load(Ordering::Relaxed) {
            now if now >= enough => Ok(()),
            now => Err(format!("{} to go", enough - now)),
        })
        .await;
    };
    let kills = scale("KILLS", KILLS);
    for _ in 0..kills {
        more(random.random_range(50..250)).await;
        let leader = cluster.leader(random.random_range(1..=4)).await;
        cluster.kill(leader);
        more(random.random_range(50..250)).await;
        cluster.start_node(leader).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    cluster.whole().await;
    let client = cluster.client(2).await;
    let told = told.lock().await;
    let mut all = 0;
    for (key, events) in told.iter() {
        let state = client.get(get(COLLECTION, key)).await.unwrap();
        let count = field_bytes(&state, "count");
        let count = f32::from_le_bytes(count[..4].try_into().unwrap()) as u64;
        if let Err(miscount) = steps::check(events, count) {
            panic!("{key}: {miscount}\n{events:#?}");
        }
        all += count;
    }
    assert!(all > 500, "there was something to count");
    let figures = format!("seed {seed}, {kills} kills, {all} steps of {} keys", told.len());
    report("repeated steps", &figures);
}

impl Stepper {
    async fn work(mut self, seed: u64, stop: Arc<AtomicBool>) {
        let mut random = StdRng::seed_from_u64(seed);
        while !stop.load(Ordering::Relaxed) {
            let key = format!("count-{}", random.random_range(0..KEYS));
            let event = self.step(&key, &mut random).await;
            self.told.lock().await.entry(key).or_default().push(event);
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    async fn step(&mut self, key: &str, random: &mut StdRng) -> Event {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut event = Event { id, sent: self.now(), answered: None, answers: Vec::new() };
        for _ in 0..ROUNDS_MAX {
            let copies = random.random_range(1..=3);
            let sends: Vec<_> = (0..copies)
                .map(|_| {
                    let mut node = self.nodes[random.random_range(0..self.nodes.len())].clone();
                    let request = counter::step(COLLECTION, key, id);
                    async move { timeout(ANSWER_MAX, node.score(request)).await }
                })
                .collect();
            for answer in join_all(sends).await {
                let scored: v1::ScoreResponse = match answer {
                    Ok(Ok(scored)) => scored.into_inner(),
                    Ok(Err(_)) | Err(_) => continue,
                };
                event.answers.push((counter::total(&scored), scored.state_version));
                event.answered.get_or_insert_with(|| self.now());
            }
            if event.answered.is_some() {
                self.answers.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
        event
    }
}
