//! What groups cost and how fast they are: three nodes in one process over loopback.
//!
//! ```text
//! cargo bench --profile release -p statehouse-cluster --bench groups -- writes 16 256 1024 2
//!     (groups, writes in flight, bytes of a value, entries of a group in flight)
//! ... -- failover 30     (deaths of leaders)
//! ... -- idle 64         (groups)
//! ```
//!
//! The nodes, their disks and the writers share the machine: rates are lower than on three
//! machines, and of use to compare one version with another.

#![allow(clippy::unwrap_used, reason = "a bench fails where it unwraps")]

#[path = "../tests/promises/support.rs"]
#[allow(dead_code, reason = "of what the tests use only some is needed here")]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use statehouse_cluster::raft::Config;
use statehouse_cluster::{NodeId, ShardId};

use support::{Cluster, SHARD, node_ids, put};

const WRITING: Duration = Duration::from_secs(8);
const IDLING: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|it| it != "--bench").collect();
    let number = |at: usize, default: u64| {
        words.get(at).map_or(default, |word| word.parse().expect("a number"))
    };
    match words.first().map(String::as_str) {
        Some("writes") => {
            writes(number(1, 16), number(2, 256), number(3, 1_024), number(4, 2)).await;
        }
        Some("failover") => failover(number(1, 30)).await,
        Some("idle") => idle(number(1, 64)).await,
        // What `cargo bench` runs with nothing said: a little of each.
        _ => {
            writes(16, 256, 1_024, 2).await;
            failover(5).await;
            idle(16).await;
        }
    }
}

/// Processor time of this process so far.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

async fn formed(groups: u64, config: Config) -> Cluster {
    let mut cluster = Cluster::of(3, config).await;
    for shard in 1..=groups {
        let first = shard % 3;
        let mut nodes = node_ids(3);
        nodes.rotate_left(first as usize);
        cluster.form(ShardId(shard as u16), &nodes).await;
    }
    cluster
}

async fn writes(groups: u64, in_flight: u64, bytes: u64, entries: u64) {
    let mut config = Config::default();
    config.limits.entries_in_flight_max = entries as usize;
    let cluster = formed(groups, config).await;
    let value = "x".repeat(bytes as usize);
    let mut leaders = Vec::new();
    for shard in 1..=groups {
        let shard = ShardId(shard as u16);
        leaders.push(cluster.node(cluster.leader(shard).await).group(shard));
    }
    let done = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let cpu = processor_time();
    let syncs = || cluster.nodes().map(|it| it.store.stats().commit.syncs).sum::<u64>();
    let synced = syncs();
    let writers = (0..in_flight).map(|writer| {
        let group = leaders[(writer % groups) as usize].clone();
        let (done, value) = (done.clone(), value.clone());
        tokio::spawn(async move {
            let mut waits = Vec::new();
            while started.elapsed() < WRITING {
                let asked = Instant::now();
                let key = format!("{writer}-{}", waits.len() % 1_000);
                if put(&group, &key, &value).await.is_ok() {
                    done.fetch_add(1, Ordering::Relaxed);
                    waits.push(asked.elapsed());
                }
            }
            waits
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut waits = Vec::new();
    for writer in writers {
        waits.extend(writer.await.unwrap());
    }
    let took = started.elapsed().as_secs_f64();
    waits.sort_unstable();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
    println!(
        "writes: {groups} groups, {in_flight} in flight, {bytes} B: {:.0}/s, p50 {:?} p99 {:?}, \
         {:.0} % of a core, {:.0} syncs/s over 3 nodes",
        done.load(Ordering::Relaxed) as f64 / took,
        at(0.5),
        at(0.99),
        (processor_time() - cpu).as_secs_f64() / took * 100.0,
        (syncs() - synced) as f64 / took,
    );
    let mut cluster = cluster;
    drop(leaders);
    cluster.stop_all().await;
}

/// From the death of a leader to the first write that is acknowledged.
async fn failover(deaths: u64) {
    let mut cluster = Cluster::of_three().await;
    let mut gaps = Vec::new();
    for death in 0..deaths {
        let leader = cluster.leader(SHARD).await;
        cluster.put(SHARD, "key", "before").await;
        // Not always at the same point between two heartbeats.
        tokio::time::sleep(Duration::from_millis(300 + 37 * (death % 11))).await;
        let others: Vec<NodeId> = node_ids(3).into_iter().filter(|node| *node != leader).collect();
        let groups: Vec<_> = others.iter().map(|node| cluster.node(*node).group(SHARD)).collect();
        let dying = cluster.take(leader);
        let died = Instant::now();
        let death = tokio::spawn(dying.stop());
        'alive: loop {
            for group in &groups {
                if group.leads() && put(group, "key", "after").await.is_ok() {
                    break 'alive;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gaps.push(died.elapsed());
        death.await.unwrap();
        cluster.start(leader).await;
        let back = cluster.node(leader).group(SHARD);
        support::until_caught_up(&back, &groups[0]).await;
    }
    gaps.sort_unstable();
    let at = |share: f64| gaps[((gaps.len() - 1) as f64 * share).round() as usize];
    println!(
        "failover: {deaths} deaths, p50 {:?} p90 {:?} p99 {:?} max {:?}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
    cluster.stop_all().await;
}

async fn idle(groups: u64) {
    let mut cluster = formed(groups, Config::default()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (cpu, started) = (processor_time(), Instant::now());
    tokio::time::sleep(IDLING).await;
    let share = (processor_time() - cpu).as_secs_f64() / started.elapsed().as_secs_f64();
    println!("idle: {groups} groups x 3: {:.1} % of a core per node", share / 3.0 * 100.0);
    cluster.stop_all().await;
}
