//! What a group of replicas promises, on several nodes in one process: real listeners on
//! loopback, real disks, nothing replaced but the operating system's processes.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod faults;
mod freshness;
mod members;
mod played;
mod quarantine;
mod reads;
mod silence;
mod snapshots;
mod strangers;
mod support;
mod writes;
