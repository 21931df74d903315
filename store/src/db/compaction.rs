//! Compactions that are asked for, and how much each gives back.
//!
//! RocksDB compacts by its own measure: how much a level has, and how many of a file's rows are
//! deletions of single rows. A deletion of a range counts as one row, so nobody comes for what lies
//! under it; and blob files whose chunks are gone in part stay, unless they are the oldest ones.

use rocksdb::CompactOptions;

use super::{Db, Family, failed, options};
use crate::error::Error;

/// What a family has on disk, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OnDisk {
    pub tables: u64,
    pub blobs: u64,
    /// Of the blobs, what no table refers to any more.
    pub blob_garbage: u64,
}

impl Db {
    /// Compacts the rows of a range down to the last level: what is deleted there goes from disk.
    /// Blocks. Ends early when background work is stopped; a failure of the disk is one of those
    /// that [`Db::background_failure`] tells.
    pub fn compact(&self, family: &Family, (start, end): (&[u8], &[u8])) {
        let mut how = CompactOptions::default();
        // Automatic compactions go on beside it.
        how.set_exclusive_manual_compaction(false);
        self.rocks.compact_range_cf_opt(&family.0.handle, Some(start), Some(end), &how);
    }

    /// Has compactions of a family look through all of its blob files for garbage, or through the
    /// oldest ones alone, as usual.
    pub fn gather_all_blobs(&self, family: &Family, all: bool) -> Result<(), Error> {
        let options = options::blob_gathering(all);
        let options = options.each_ref().map(|(name, value)| (*name, value.as_str()));
        self.rocks
            .set_options_cf(&family.0.handle, &options)
            .map_err(|error| failed("set a replica's options", error))
    }

    /// Returns what a family has on disk.
    pub fn on_disk(&self, family: &Family) -> OnDisk {
        let bytes = |name| {
            let text = self.property(Some(family), name);
            text.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        OnDisk {
            tables: bytes("rocksdb.live-sst-files-size"),
            blobs: bytes("rocksdb.live-blob-file-size"),
            blob_garbage: bytes("rocksdb.live-blob-file-garbage-size"),
        }
    }
}
