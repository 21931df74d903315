//! RocksDB's files as they lie on disk, read without RocksDB.
//!
//! Which tables and blob files are live, whose they are, how long they should be and what their
//! checksums were when they were written: all of that is in the MANIFEST, which `CURRENT` names. A
//! store reads it before RocksDB opens, so that a damaged file is named with the replica it belongs
//! to, and a scrub reads it while RocksDB is at work.
//!
//! Not here: the write-ahead log, and what the rows in these files mean.

mod check;
mod current;
mod manifest;
mod records;

pub(crate) use check::{Reading, check_size, open_without_cache, verify};
pub(crate) use current::{Unread, read, read_or_restore, unlisted};
pub(crate) use manifest::{LiveFile, Manifest};
