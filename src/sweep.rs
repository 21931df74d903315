//! Sweeps of what has expired, and of request ids too old to be repeated, shard by shard.
//!
//! What a shard's leader sweeps, all its replicas sweep: a sweep is a command like any other.

use std::sync::Arc;
use std::time::Duration;

use statehouse_cluster::Shards;
use statehouse_cluster::raft::Group;
use statehouse_store::{Command, Sweep};
use tokio::sync::watch;

/// States that one sweep of a shard deletes, as a whole or fields of them; and how many sweeps
/// follow each other, until all that has expired is gone.
const SWEEP_STATES_MAX: u32 = 1_024;
const SWEEPS_MAX: usize = 256;

/// How a node sweeps.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// From one look at all shards to the next.
    pub interval: Duration,
    /// Request ids that a shard remembers.
    pub requests_max: u64,
}

/// Deletes expired states and fields and old request ids, until told to stop.
pub async fn run(shards: Arc<Shards>, config: Config, mut stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(config.interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        for replica in shards.groups().iter().filter(|replica| replica.leads()) {
            if let Err(error) = sweep_shard(&shards, replica, config.requests_max).await {
                tracing::warn!(shard = %replica.shard(), %error, "sweep failed");
            }
        }
    }
}

/// Sweeps a shard as long as there is something to sweep, others' commands in between.
async fn sweep_shard(shards: &Shards, replica: &Group, requests_max: u64) -> anyhow::Result<()> {
    // What all replicas keep to is a part of the shard, and this node leads it: its setting counts.
    let limit = requests_max != replica.reader().remembered().requests_max;
    let mut requests_max = limit.then_some(requests_max);
    let now_ms = replica.now_ms();
    let mut before = None;
    for _ in 0..SWEEPS_MAX {
        let reader = replica.reader().clone();
        let start = tokio::task::spawn_blocking(move || reader.sweep_start(now_ms)).await??;
        // What a sweep leaves, since the log's time is behind this clock, has its time later.
        if (start.is_none() || start == before) && requests_max.is_none() {
            return Ok(());
        }
        let cursor = start.as_ref().and_then(|start| start.cursor.clone());
        before = start;
        let (limit, requests_max) = (SWEEP_STATES_MAX, requests_max.take());
        let sweep = Sweep { now_ms, limit, cursor, requests_max };
        shards.propose(replica.shard(), Command::Sweep(sweep)).await?;
    }
    Ok(())
}
