//! What the store counts about itself, for metrics and tests.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets of a histogram: bucket `i` counts values of `2^(i-1)..2^i`, the first one zeros.
pub const HISTOGRAM_BUCKETS: usize = 40;

/// Counts values by their magnitude.
pub(crate) struct Counters {
    buckets: [AtomicU64; HISTOGRAM_BUCKETS],
    sum: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Counters { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) }
    }
}

impl Counters {
    pub fn add(&self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.buckets[bucket.min(HISTOGRAM_BUCKETS - 1)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    pub fn read(&self) -> Histogram {
        Histogram {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].load(Relaxed)),
            sum: self.sum.load(Relaxed),
        }
    }
}

/// Values counted by their magnitude.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Bucket `i` counts values below `2^i`, and not below `2^(i-1)`.
    pub buckets: [u64; HISTOGRAM_BUCKETS],
    /// Of all values.
    pub sum: u64,
}

impl Histogram {
    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The mean of all values; 0 if there are none.
    pub fn mean(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.sum as f64 / count as f64,
        }
    }

    /// A bound that at least this share (0 to 1) of the values lies below.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return 1 << bucket;
            }
        }
        u64::MAX
    }
}

/// What the commit thread counts.
#[derive(Default)]
pub(crate) struct CommitCounters {
    pub jobs: AtomicU64,
    pub bytes: AtomicU64,
    pub syncs: AtomicU64,
    pub jobs_per_sync: Counters,
    pub sync_micros: Counters,
}

impl CommitCounters {
    pub fn committed(&self, jobs: usize, bytes: usize) {
        self.jobs.fetch_add(jobs as u64, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub fn synced(&self, jobs: usize, took: Duration) {
        self.syncs.fetch_add(1, Relaxed);
        self.jobs_per_sync.add(jobs as u64);
        self.sync_micros.add(took.as_micros() as u64);
    }
}

/// What the commit thread has done.
#[derive(Clone, Debug)]
pub struct CommitStats {
    /// Jobs done: appends, votes, truncations, purges, facts.
    pub jobs: u64,
    /// Bytes of their rows.
    pub bytes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Jobs that shared a sync.
    pub jobs_per_sync: Histogram,
    /// Microseconds of a write and its sync.
    pub sync_micros: Histogram,
    /// Jobs that wait now.
    pub waiting: usize,
    /// Bytes of jobs that wait now.
    pub waiting_bytes: usize,
}

/// Bytes that the store holds in memory now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStats {
    /// The block cache, what is charged to it for memtables included.
    pub block_cache_bytes: u64,
    /// Of these, what readers hold.
    pub block_cache_pinned_bytes: u64,
    /// Decoded states.
    pub state_cache_bytes: u64,
    /// Of these, states of pinned collections.
    pub state_cache_pinned_bytes: u64,
    /// Memtables.
    pub memtable_bytes: u64,
    /// Entries in the tails of the logs.
    pub log_tail_bytes: u64,
}

/// Bytes that RocksDB has written, each counted under one kind. What a replica receives from
/// another node is written beside the database and is not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrittenStats {
    /// The write-ahead log.
    pub wal_bytes: u64,
    /// Memtables to files, blob files included.
    pub flush_bytes: u64,
    /// Compactions, without the live chunks that they moved.
    pub compaction_bytes: u64,
    /// Live chunks moved out of blob files that were mostly garbage.
    pub garbage_collection_bytes: u64,
}

impl WrittenStats {
    /// From RocksDB's counters: a compaction's bytes are all that its thread wrote, so the chunks
    /// that it moved are taken out of them.
    pub(crate) fn of(ticker: impl Fn(&str) -> Option<u64>) -> Self {
        let count = |name| ticker(name).unwrap_or_default();
        let moved = count("rocksdb.blobdb.gc.bytes.relocated");
        WrittenStats {
            wal_bytes: count("rocksdb.wal.bytes"),
            flush_bytes: count("rocksdb.flush.write.bytes"),
            compaction_bytes: count("rocksdb.compact.write.bytes").saturating_sub(moved),
            garbage_collection_bytes: moved,
        }
    }

    /// All of them.
    pub fn bytes(&self) -> u64 {
        self.wal_bytes + self.flush_bytes + self.compaction_bytes + self.garbage_collection_bytes
    }
}

/// A store's figures at a moment.
#[derive(Clone, Debug)]
pub struct Stats {
    /// The commit thread.
    pub commit: CommitStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Lookups of a state that found it decoded in memory.
    pub state_cache_hits: u64,
    /// Lookups that did not.
    pub state_cache_misses: u64,
    /// Of the lookups that found it, those of states of pinned collections.
    pub state_cache_pinned_hits: u64,
    /// Of those that did not.
    pub state_cache_pinned_misses: u64,
    /// Replicas open.
    pub replicas: usize,
    /// Reads that wait for a thread of the read pool.
    pub reads_waiting: usize,
    /// Commands applied.
    pub commands_applied: u64,
    /// Bytes of fields that they brought.
    pub payload_applied_bytes: u64,
    /// Bytes written to the disk since the store was opened.
    pub written: WrittenStats,
    /// Bytes free on the disk, as far as the system says.
    pub disk_free_bytes: Option<u64>,
    /// Damaged places found since the store was opened, and at its opening.
    pub damages: u64,
    /// Bytes that scrubs have read since the store was opened.
    pub scrub_bytes: u64,
    /// Scrubs that have read everything since the store was opened.
    pub scrubs_finished: u64,
}
