//! What a cluster promises, held against real processes that are killed, paused, cut off, moved
//! and wiped under load: one file per promise. Every run prints its SEED.
//!
//! One binary for all of them: they share a large harness, and run one after the other anyway.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "../harness/mod.rs"]
mod harness;

mod a_cluster_is_looked_after;
mod no_acknowledged_write_is_lost_in_a_cluster;
