//! The rooms' own counters as metrics: store, shards, models.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use statehouse_cluster::Shards;
use statehouse_inference::Handle;

/// Reads every room at a scrape.
pub struct Rooms {
    shards: Arc<Shards>,
    worker: Handle,
}

impl fmt::Debug for Rooms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rooms").finish_non_exhaustive()
    }
}

impl Rooms {
    pub fn new(shards: Arc<Shards>, worker: Handle) -> Self {
        Rooms { shards, worker }
    }

    fn store(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.shards.store().stats();
        let bytes = Some(&Unit::Bytes);
        counter(out, "commit_jobs", "Appends, votes and purges done", None, stats.commit.jobs)?;
        counter(out, "commit", "Bytes of the rows of commits", bytes, stats.commit.bytes)?;
        counter(out, "syncs", "Syncs of the write-ahead log", None, stats.commit.syncs)?;
        counter(out, "commands_applied", "Commands applied", None, stats.commands_applied)?;
        gauge(
            out,
            "commit_waiting",
            "Jobs that wait to commit",
            None,
            stats.commit.waiting as u64,
        )?;
        gauge(
            out,
            "reads_waiting",
            "Reads that wait for a thread",
            None,
            stats.reads_waiting as u64,
        )?;
        let (hits, misses) = (stats.state_cache_hits, stats.state_cache_misses);
        counter(out, "state_cache_hits", "States found decoded in memory", None, hits)?;
        counter(out, "state_cache_misses", "States not found decoded", None, misses)?;
        let (hits, misses) = (stats.state_cache_pinned_hits, stats.state_cache_pinned_misses);
        counter(out, "state_cache_pinned_hits", "Of these, of pinned collections", None, hits)?;
        let help = "Of those not found, of pinned collections";
        counter(out, "state_cache_pinned_misses", help, None, misses)?;
        let memory = stats.memory;
        gauge(out, "block_cache", "Block cache", bytes, memory.block_cache_bytes)?;
        gauge(
            out,
            "block_cache_pinned",
            "Of the block cache, held by readers",
            bytes,
            memory.block_cache_pinned_bytes,
        )?;
        gauge(out, "state_cache", "Decoded states", bytes, memory.state_cache_bytes)?;
        let pinned = memory.state_cache_pinned_bytes;
        gauge(out, "state_cache_pinned", "Of pinned collections", bytes, pinned)?;
        gauge(out, "memtables", "Memtables", bytes, memory.memtable_bytes)?;
        gauge(out, "log_tail", "Log entries in memory", bytes, memory.log_tail_bytes)?;
        if let Some(free) = stats.disk_free_bytes {
            gauge(out, "disk_free", "Free on the disk", bytes, free)?;
        }
        quantiles(out, "sync_micros", "Microseconds of a write and its sync", |share| {
            stats.commit.sync_micros.quantile(share)
        })?;
        quantiles(out, "jobs_per_sync", "Jobs that shared a sync", |share| {
            stats.commit.jobs_per_sync.quantile(share)
        })
    }

    fn shards(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family =
            out.encode_descriptor("proposals_waiting", "Proposals that wait", None, gauge_type())?;
        for replica in self.shards.groups() {
            let label = [("shard", replica.shard().to_string())];
            encode_in(&mut family, &label, replica.waiting() as u64)?;
        }
        let mut family =
            out.encode_descriptor("applied_index", "Last entry applied", None, gauge_type())?;
        for replica in self.shards.groups() {
            let label = [("shard", replica.shard().to_string())];
            encode_in(&mut family, &label, replica.reader().applied_index())?;
        }
        let transfers = self.shards.transfers();
        let paused = transfers.iter().filter(|it| it.paused).count() as u64;
        let under_way = transfers.len() as u64;
        gauge(out, "transfers", "Replicas on their way to and from this node", None, under_way)?;
        gauge(out, "transfers_paused", "Those that wait because callers do", None, paused)
    }

    fn process(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(resident) = resident_bytes() else { return Ok(()) };
        gauge(out, "resident", "Memory of the process", Some(&Unit::Bytes), resident)
    }
}

impl Collector for Rooms {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        self.store(&mut out)?;
        self.shards(&mut out)?;
        super::models::encode(&self.worker, &mut out)?;
        self.process(&mut out)
    }
}

fn gauge_type() -> prometheus_client::metrics::MetricType {
    prometheus_client::metrics::MetricType::Gauge
}

pub(super) fn counter(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: u64,
) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(out.encode_descriptor(name, help, unit, counter.metric_type())?)
}

pub(super) fn gauge(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: u64,
) -> fmt::Result {
    let gauge = ConstGauge::new(value as i64);
    gauge.encode(out.encode_descriptor(name, help, unit, gauge.metric_type())?)
}

/// A gauge per quantile, from a histogram that keeps powers of two.
fn quantiles(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    at: impl Fn(f64) -> u64,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, gauge_type())?;
    for (label, share) in [("0.5", 0.5), ("0.99", 0.99), ("1", 1.0)] {
        encode_in(&mut family, &[("quantile", label.to_owned())], at(share))?;
    }
    Ok(())
}

pub(super) fn encode_in<const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(&'static str, String); N],
    value: u64,
) -> fmt::Result {
    ConstGauge::new(value as i64).encode(family.encode_family(labels)?)
}

/// Resident bytes of this process, as Linux tells them.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
