//! What the store promises, each promise a test, all through the front door.
//!
//! One binary, because each one links RocksDB.

mod blobs;
mod crash;
mod directory;
mod encoding;
mod extents;
mod failure;
mod log;
mod read;
mod scripts;
mod support;
