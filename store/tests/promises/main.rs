//! What the store promises, each promise a test, all through the front door.
//!
//! One binary, because each one links RocksDB.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod blobs;
mod crash;
mod directory;
mod encoding;
mod extents;
mod failure;
mod faults;
mod fields;
mod flush;
mod log;
mod read;
mod scripts;
mod size;
mod support;
mod transfer;
mod uploads;
mod usage;
