//! The rooms' own counters as metrics: store, shards, models.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use statehouse_cluster::Shards;
use statehouse_inference::Handle;
use statehouse_store::WrittenStats;

use crate::admission::Admission;
use crate::grpc::Transfers;
use crate::memory::Plan;

/// Reads every room at a scrape.
pub struct Rooms {
    /// With the store beneath.
    pub shards: Arc<Shards>,
    /// Of the device.
    pub worker: Handle,
    /// How memory is shared out.
    pub memory: Plan,
    /// What calls hold of it.
    pub admission: Admission,
    /// What large transfers hold of it.
    pub transfers: Transfers,
    /// What the block cache does without.
    pub taken: Arc<AtomicU64>,
}

impl fmt::Debug for Rooms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rooms").finish_non_exhaustive()
    }
}

impl Rooms {
    fn store(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.shards.store().stats();
        let bytes = Some(&Unit::Bytes);
        counter(out, "commit_jobs", "Appends, votes and purges done", None, stats.commit.jobs)?;
        counter(out, "commit", "Bytes of the rows of commits", bytes, stats.commit.bytes)?;
        counter(out, "syncs", "Syncs of the write-ahead log", None, stats.commit.syncs)?;
        counter(out, "commands_applied", "Commands applied", None, stats.commands_applied)?;
        let payload = stats.payload_applied_bytes;
        counter(out, "payload_applied", "Bytes of fields that commands brought", bytes, payload)?;
        written(out, &stats.written)?;
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
        if let Some(free) = stats.disk_free_bytes {
            gauge(out, "disk_free", "Free on the disk", bytes, free)?;
        }
        let short = u64::from(self.shards.store().check_space().is_err());
        let help = "Whether less is free on the disk than the reserve";
        gauge(out, "disk_short", help, None, short)?;
        let waiting = self.shards.groups().iter().filter(|it| it.is_out_of_room()).count() as u64;
        let help = "Replicas here that do without entries of their leaders for want of space";
        gauge(out, "replicas_out_of_room", help, None, waiting)?;
        gauge(out, "damages", "Damaged places found on disk", None, stats.damages)?;
        counter(out, "scrub", "Bytes that scrubs have read", bytes, stats.scrub_bytes)?;
        let finished = stats.scrubs_finished;
        counter(out, "scrubs_finished", "Scrubs that have read everything", None, finished)?;
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
        self.remembered(out)?;
        let clock = self.shards.peers().clock().report();
        let help = "Milliseconds by which the wall clock is ahead of the node's time";
        let family = out.encode_descriptor("clock_skew_ms", help, None, gauge_type())?;
        ConstGauge::new(clock.skew_ms).encode(family)?;
        let stopped = self.shards.stopped().len() as u64;
        let help = "Replicas of this node that have stopped and are not replaced yet";
        gauge(out, "replicas_stopped", help, None, stopped)?;
        let transfers = self.shards.transfers();
        let paused = transfers.iter().filter(|it| it.paused).count() as u64;
        let under_way = transfers.len() as u64;
        gauge(out, "transfers", "Replicas on their way to and from this node", None, under_way)?;
        gauge(out, "transfers_paused", "Those that wait because callers do", None, paused)
    }
}

impl Rooms {
    /// How many request ids each replica remembers.
    fn remembered(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let groups = self.shards.groups();
        let all: Vec<_> = groups.iter().map(|it| (it.shard(), it.reader().remembered())).collect();
        let help = "Request ids remembered, so that their repeats are recognised";
        let mut family = out.encode_descriptor("request_ids", help, None, gauge_type())?;
        for (shard, remembered) in &all {
            encode_in(&mut family, &[("shard", shard.to_string())], remembered.requests)?;
        }
        let (help, bytes) = ("What they take, answers included", Some(&Unit::Bytes));
        let mut family = out.encode_descriptor("request_ids", help, bytes, gauge_type())?;
        for (shard, remembered) in &all {
            encode_in(&mut family, &[("shard", shard.to_string())], remembered.bytes)?;
        }
        Ok(())
    }
}

impl Collector for Rooms {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        self.store(&mut out)?;
        self.shards(&mut out)?;
        super::models::encode(&self.worker, &mut out)?;
        super::memory::encode(self, &mut out)
    }
}

/// Each byte that RocksDB wrote under one kind: their sum over the payload is the amplification.
fn written(out: &mut DescriptorEncoder<'_>, written: &WrittenStats) -> fmt::Result {
    let help = "Bytes that RocksDB wrote, by what for";
    let mut family =
        out.encode_descriptor("written", help, Some(&Unit::Bytes), MetricType::Counter)?;
    for (kind, bytes) in [
        ("wal", written.wal_bytes),
        ("flush", written.flush_bytes),
        ("compaction", written.compaction_bytes),
        ("garbage_collection", written.garbage_collection_bytes),
    ] {
        ConstCounter::new(bytes).encode(family.encode_family(&[("kind", kind)])?)?;
    }
    Ok(())
}

pub(super) fn gauge_type() -> prometheus_client::metrics::MetricType {
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
