//! What bounds a store: memory, queues, threads. Every limit of the crate that is not part of a
//! format is here.

/// Limits of one store. The defaults suit a small node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of blocks kept in memory. Memtables are charged to the same cache, on top.
    pub block_cache_bytes: usize,
    /// Bytes of decoded states kept in memory.
    pub state_cache_bytes: usize,
    /// Bytes of all memtables together; beyond, each write has a family flushed.
    pub memtable_bytes_max: usize,
    /// Bytes of disk that [`crate::Store::check_space`] keeps free.
    pub disk_reserve_bytes: u64,
    /// Bytes of disk that [`crate::Store::check_space_to_free`] keeps free: at most as many.
    pub disk_freeing_reserve_bytes: u64,
    /// Bytes of durable entries kept in memory, all logs together.
    pub log_tail_bytes_max: usize,
    /// Threads of the store's read pool.
    pub read_threads: usize,
    /// Reads that may wait for a thread of the read pool.
    pub read_queue_max: usize,
    /// Threads that read long stretches piece by piece, apart from those of small reads.
    pub stream_threads: usize,
    /// Pieces that may wait for these.
    pub stream_queue_max: usize,
    /// Jobs that may wait for the commit thread.
    pub commit_queue_entries_max: usize,
    /// Bytes of jobs that may wait for the commit thread.
    pub commit_queue_bytes_max: usize,
    /// Flushes and compactions at a time.
    pub background_jobs: usize,
    /// Bytes per second that flushes and compactions may write.
    pub background_bytes_per_second: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            block_cache_bytes: 64 << 20,
            state_cache_bytes: 64 << 20,
            memtable_bytes_max: 64 << 20,
            disk_reserve_bytes: 512 << 20,
            disk_freeing_reserve_bytes: 128 << 20,
            log_tail_bytes_max: 32 << 20,
            read_threads: 8,
            read_queue_max: 4_096,
            stream_threads: 2,
            stream_queue_max: 1_024,
            commit_queue_entries_max: 65_536,
            commit_queue_bytes_max: 256 << 20,
            background_jobs: 2,
            background_bytes_per_second: 600 << 20,
        }
    }
}
