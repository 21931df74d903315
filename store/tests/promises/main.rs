//! What the store promises, each promise a test, all through the front door.
//!
//! One binary, because each one links RocksDB.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod blobs;
mod compactions;
mod crash;
mod damage;
mod directory;
mod encoding;
mod extents;
mod failure;
mod faults;
mod fields;
mod flips;
mod flush;
mod log;
mod log_tables;
mod parts;
mod power;
mod read;
mod reclaimed;
mod retry;
mod salvage;
mod scripts;
mod set_aside;
mod size;
mod support;
mod transfer;
mod uploads;
mod usage;
