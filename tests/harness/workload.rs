//! Clients that write, change, delete and read the states of a few keys, through any node, while
//! a test does to the cluster what it likes; and the judgement of what they were answered.
//!
//! Half of the writes are sent more than once under one request id: at the same time through
//! different nodes, or again when the first send brought no answer. An error is only taken for
//! "it did not happen" where the table of errors says so.

mod client;
mod record;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1;
use tokio::task::JoinHandle;

use super::cluster::{Cluster, await_some};
use super::history::History;
use super::history::search::Search;
use client::Worker;
use record::Record;

/// The collection that all clients use.
pub const COLLECTION: &str = "ledger";

/// Operations of a key up to which the search is asked for its verdict too.
const SEARCHED_MAX: usize = 600;

/// How much goes on.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Each has one write or read under way at a time.
    pub clients: u64,
    /// Few, so that clients meet.
    pub keys: u64,
    /// Between two operations of a client; zero for all that the cluster can take.
    pub pace: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Load { clients: 12, keys: 24, pace: Duration::from_millis(2) }
    }
}

/// Clients at work.
pub struct Workload {
    record: Arc<Record>,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

/// What there was to judge.
#[derive(Debug, Clone, Copy, Default)]
pub struct Verdict {
    pub keys: usize,
    pub writes: usize,
    pub acknowledged: usize,
    pub unknown: usize,
    pub looks: usize,
    /// Of those, answers to bounded reads.
    pub bounded: usize,
    /// Keys of which the search was asked too, and answered.
    pub searched: usize,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Verdict { keys, writes, acknowledged, unknown, looks, bounded, searched } = self;
        write!(f, "{keys} keys linearizable ({searched} by search too), {writes} writes, ")?;
        write!(f, "{acknowledged} acknowledged, {unknown} of unknown outcome, {looks} looks, ")?;
        write!(f, "{bounded} of them bounded")
    }
}

impl Workload {
    /// Creates the collection and starts clients, each with a seed of its own.
    pub async fn start(cluster: &Cluster, load: Load, seed: u64) -> Workload {
        Workload::through(cluster, &cluster.nodes(), load, seed).await
    }

    /// As `start`, with clients that know only some of the nodes.
    pub async fn through(cluster: &Cluster, nodes: &[u64], load: Load, seed: u64) -> Workload {
        create_collection(cluster).await;
        let record = Arc::new(Record::new());
        let stop = Arc::new(AtomicBool::new(false));
        let mut random = StdRng::seed_from_u64(seed);
        let endpoints: Vec<String> = nodes.iter().map(|node| cluster.endpoint(*node)).collect();
        let workers = (0..load.clients)
            .map(|number| {
                let worker = Worker::new(number, load, endpoints.clone(), record.clone());
                tokio::spawn(worker.work(random.random(), stop.clone()))
            })
            .collect();
        Workload { record, stop, workers }
    }

    /// Writes and reads that were answered so far.
    pub fn answered(&self) -> u64 {
        self.record.answered()
    }

    /// Waits until so many more were answered: the cluster works.
    pub async fn answers(&self, more: u64) {
        let enough = self.answered() + more;
        await_some(&format!("{more} more answers"), async || match self.answered() {
            now if now >= enough => Ok(()),
            now => Err(format!("{} to go; {}", enough - now, self.record.last_error())),
        })
        .await;
    }

    /// The errors that clients met, by reason.
    pub fn errors(&self) -> HashMap<String, u64> {
        self.record.errors()
    }

    /// Ends the clients, and holds what they were answered to the rules. A history that breaks
    /// them is kept in `dir`.
    pub async fn judge(self, dir: &Path) -> Verdict {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.await.unwrap();
        }
        println!("errors met: {:?}", self.record.errors());
        let verdict = judge(&self.record.histories(), dir);
        println!("{verdict}");
        verdict
    }
}

fn judge(histories: &HashMap<String, History>, dir: &Path) -> Verdict {
    let mut verdict = Verdict { keys: histories.len(), ..Verdict::default() };
    for (key, history) in histories {
        let keep = || {
            let path = dir.join(format!("{key}.history"));
            std::fs::write(&path, format!("{history:#?}")).unwrap();
            path.display().to_string()
        };
        if let Err(violation) = history.check() {
            panic!("{key}: {violation}\nthe history is in {}", keep());
        }
        let operations = history.writes.len() + history.looks.len();
        if operations <= SEARCHED_MAX {
            match history.search(Search::Bare) {
                Some(true) => verdict.searched += 1,
                Some(false) => panic!("{key}: no order explains the history in {}", keep()),
                None => {}
            }
        }
        let count = |wanted: fn(&super::history::Outcome) -> bool| {
            history.writes.iter().filter(|write| wanted(&write.outcome)).count()
        };
        use super::history::Outcome;
        verdict.writes += history.writes.len();
        verdict.acknowledged += count(|outcome| matches!(outcome, Outcome::Done { .. }));
        verdict.unknown += count(|outcome| *outcome == Outcome::Unknown);
        verdict.looks += history.looks.len();
        verdict.bounded += history.looks.iter().filter(|look| look.lag.is_some()).count();
    }
    verdict
}

async fn create_collection(cluster: &Cluster) {
    await_some("the collection is there", async || {
        let node = *cluster.running().first().ok_or("no node runs")?;
        let client = cluster.client(node).await;
        let request = v1::CreateCollectionRequest {
            name: COLLECTION.to_owned(),
            settings: None,
            if_not_exists: true,
        };
        client.create_collection(request).await.map_err(|error| error.to_string())
    })
    .await;
}
