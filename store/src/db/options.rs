//! How RocksDB is set up: memory, files, one set of options per kind of column family.
//!
//! Part of the door in `db.rs`. What each value buys is said beside it; values without a word
//! are RocksDB's advice for small machines.

use rocksdb::{
    AsRawPtr, BlockBasedIndexType, BlockBasedOptions, BlockBasedTablePinningTier, Cache,
    ChecksumType, DBCompressionType, DBRecoveryMode, LogLevel, Options, WriteBufferManager,
    statistics::StatsLevel,
};

use crate::config::Config;

/// Bytes of write-ahead log for each byte of memtables, beyond which the column families that
/// hold it back are flushed: bounds what a start replays, and holds in memory while it does.
const WAL_PER_MEMTABLE: u64 = 2;

/// Table files held open; more are opened when needed.
const OPEN_FILES_MAX: i32 = 4_096;

/// Memtables of so many times what they should have say that flushes fall behind.
const BEHIND_FACTOR: usize = 2;

/// The cache and the memtable budget that all column families share.
pub(super) struct Memory {
    pub cache: Cache,
    pub memtables: WriteBufferManager,
    memtable_bytes_max: usize,
}

impl Memory {
    pub fn new(config: &Config) -> Self {
        // Memtables are charged to the cache: room for both, so that blocks keep theirs.
        let cache =
            Cache::new_hyper_clock_cache(config.block_cache_bytes + config.memtable_bytes_max, 0);
        // Over the budget it flushes, one family a write, and does not stall: a stall waits for
        // memory that nobody gives back when the one flush under way was of a small family.
        let memtables = WriteBufferManager::new_write_buffer_manager_with_cache(
            config.memtable_bytes_max,
            false,
            cache.clone(),
        );
        Memory { cache, memtables, memtable_bytes_max: config.memtable_bytes_max }
    }

    /// Has the cache keep so many bytes of blocks.
    pub fn set_block_cache_bytes(&self, bytes: usize) {
        self.cache.clone().set_capacity(bytes + self.memtable_bytes_max);
    }

    /// Whether memtables have far more than they should: flushes fall behind.
    pub fn memtables_are_behind(&self) -> bool {
        self.memtables.get_usage() > BEHIND_FACTOR * self.memtable_bytes_max
    }
}

/// How the write-ahead log is replayed when the database is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// All of it, or the opening is refused.
    Whole,
    /// What is whole of it, though records or files are missing. Only for a store that knows what
    /// it has lost.
    Rest,
    /// All of it, and nothing on disk is changed.
    LookOnly,
    /// What is in front of the first record that is not whole, and nothing on disk is changed.
    LookAtPrefix,
}

impl Recovery {
    /// Whether the opening changes nothing on disk, and the database can't be written.
    pub fn is_look(self) -> bool {
        match self {
            Recovery::Whole | Recovery::Rest => false,
            Recovery::LookOnly | Recovery::LookAtPrefix => true,
        }
    }
}

/// Options of the database.
pub(super) fn database(
    config: &Config,
    memory: &Memory,
    direct_io: bool,
    recovery: Recovery,
) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_write_buffer_manager(&memory.memtables);
    options.set_max_background_jobs(config.background_jobs as i32);
    options.set_max_subcompactions(1);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_skip_stats_update_on_db_open(true);
    options.set_max_total_wal_size(WAL_PER_MEMTABLE * config.memtable_bytes_max as u64);
    options.set_wal_recovery_mode(match recovery {
        // A torn end is cut off before (`opening.rs`): RocksDB never has to guess.
        Recovery::Whole | Recovery::LookOnly => DBRecoveryMode::AbsoluteConsistency,
        Recovery::LookAtPrefix => DBRecoveryMode::PointInTime,
        Recovery::Rest => DBRecoveryMode::SkipAnyCorruptedRecord,
    });
    options.set_track_and_verify_wals_in_manifest(recovery != Recovery::Rest);
    // No recycled log files, though they sync faster: RocksDB refuses unlogged writes with them.
    // Written back as it goes, so that a sync never finds a cliff of dirty pages.
    options.set_bytes_per_sync(1 << 20);
    options.set_wal_bytes_per_sync(1 << 20);
    // The block cache is the cache: the page cache would hold everything twice.
    options.set_use_direct_reads(direct_io);
    options.set_use_direct_io_for_flush_and_compaction(direct_io);
    options.set_compaction_readahead_size(2 << 20);
    options.set_writable_file_max_buffer_size(1 << 20);
    options.set_ratelimiter(config.background_bytes_per_second as i64, 100_000, 10);
    options.set_avoid_unnecessary_blocking_io(true);
    options.enable_statistics();
    options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(8 << 20);
    leave_memtables(&mut options);
    keep_checksums(&mut options);
    options
}

/// Has the MANIFEST keep a CRC-32C of each table and blob file, which a scrub compares.
fn keep_checksums(options: &mut Options) {
    // SAFETY: the options are alive and share the factory, whose handle is destroyed once.
    unsafe {
        let factory = librocksdb_sys::rocksdb_file_checksum_gen_crc32c_factory_create();
        let raw = options.as_raw_ptr();
        librocksdb_sys::rocksdb_options_set_file_checksum_gen_factory(raw, factory);
        librocksdb_sys::rocksdb_file_checksum_gen_factory_destroy(factory);
    }
}

/// Has the end of background work leave memtables as they are: a store that closes has flushed
/// them, and one whose disk has failed would wait for ever.
fn leave_memtables(options: &mut Options) {
    // SAFETY: the options are alive, and the call sets one of their fields.
    unsafe {
        librocksdb_sys::rocksdb_options_set_avoid_flush_during_shutdown(options.as_raw_ptr(), 1);
    }
}

/// Has an opening keep what it reads from the write-ahead log in memtables, and the log as it is,
/// instead of writing tables: a full disk has no room for them. The files go with the next flushes.
pub(super) fn keep_recovered_memtables(options: &mut Options) {
    // SAFETY: the options are alive, and the call sets one of their fields.
    unsafe {
        librocksdb_sys::rocksdb_options_set_avoid_flush_during_recovery(options.as_raw_ptr(), 1);
    }
}

/// Values of more bytes lie in blob files, which compaction does not write again: the chunks of
/// large states do, records do not.
const BLOB_BYTES_MIN: u64 = 64 << 10;

/// Bytes of one blob file: what its garbage is counted by.
const BLOB_FILE_BYTES: u64 = 64 << 20;

/// Of the oldest blob files, this share is looked through when tables are compacted, and their
/// live chunks moved; if so much of them is garbage, a compaction is made for it.
const BLOB_GC_AGE: f64 = 0.1;
const BLOB_GC_GARBAGE: f64 = 0.5;

/// The same while the disk is nearly full: all blob files are looked through, and a smaller share
/// of garbage is enough.
const BLOB_GC_AGE_SHORT: f64 = 1.0;
const BLOB_GC_GARBAGE_SHORT: f64 = 0.2;

/// The options of a replica's family that say which blob files are looked through for garbage.
pub(super) fn blob_gathering(all: bool) -> [(&'static str, String); 2] {
    let (age, garbage) = match all {
        true => (BLOB_GC_AGE_SHORT, BLOB_GC_GARBAGE_SHORT),
        false => (BLOB_GC_AGE, BLOB_GC_GARBAGE),
    };
    [
        ("blob_garbage_collection_age_cutoff", age.to_string()),
        ("blob_garbage_collection_force_threshold", garbage.to_string()),
    ]
}

/// The share of deletions in a table from which on it is compacted by itself. Writes of states,
/// which delete what they replace, stay below.
const DELETIONS_COMPACTED_FROM: f64 = 0.5;

/// Options of a replica's column family: small records and 256 KiB chunks, read by key.
pub(super) fn replica(memory: &Memory) -> Options {
    let mut options = family(memory, 8 << 10);
    options.set_write_buffer_size(16 << 20);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(BLOB_BYTES_MIN);
    options.set_blob_file_size(BLOB_FILE_BYTES);
    options.set_blob_compression_type(DBCompressionType::None);
    options.set_enable_blob_gc(true);
    options.set_blob_gc_age_cutoff(BLOB_GC_AGE);
    options.set_blob_gc_force_threshold(BLOB_GC_GARBAGE);
    options.set_blob_compaction_readahead_size(2 << 20);
    options.set_blob_cache(&memory.cache);
    // What was deleted in bulk is given back though nobody writes any more: a table that is mostly
    // deletions is compacted by itself.
    options.add_compact_on_deletion_collector_factory(0, 0, DELETIONS_COMPACTED_FROM);
    // Most lookups of a write are for rows that are not there: a request's, a new state's.
    options.set_memtable_prefix_bloom_ratio(0.01);
    options.set_memtable_whole_key_filtering(true);
    options
}

/// Options of the log: written once, read seldom, deleted soon.
pub(super) fn log(memory: &Memory) -> Options {
    let mut options = family(memory, 16 << 10);
    options.set_write_buffer_size(32 << 20);
    options
}

/// Options of the store's own few rows.
pub(super) fn meta(memory: &Memory) -> Options {
    let mut options = family(memory, 4 << 10);
    // Each commit replaces a row of some 50 bytes here.
    options.set_write_buffer_size(8 << 20);
    options
}

fn family(memory: &Memory, block_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&memory.cache);
    table.set_block_size(block_bytes);
    table.set_format_version(6);
    table.set_checksum_type(ChecksumType::XXH3);
    table.set_ribbon_filter(10.0);
    table.set_optimize_filters_for_memory(true);
    table.set_whole_key_filtering(true);
    // Indexes and filters live in the cache, in parts: ten GiB of data must not mean hundreds
    // of MiB of indexes.
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(8 << 10);
    table.set_top_level_index_pinning_tier(BlockBasedTablePinningTier::All);
    table.set_unpartitioned_pinning_tier(BlockBasedTablePinningTier::FlushAndSimilar);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    // States are floats: they do not compress, and two cores have better things to do.
    options.set_compression_type(DBCompressionType::None);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_target_file_size_base(64 << 20);
    options.set_max_bytes_for_level_base(256 << 20);
    options.set_max_write_buffer_number(4);
    // An idle replica's memtable costs one of these; there may be 128 replicas.
    options.set_arena_block_size(64 << 10);
    options
}
