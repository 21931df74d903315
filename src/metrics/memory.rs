//! The process's memory as metrics: all of it, and each part beside what it may have.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;

use super::rooms::{Rooms, counter, encode_in, gauge, gauge_type};
use crate::memory::resident_bytes;

pub(super) fn encode(rooms: &Rooms, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let bytes = Some(&Unit::Bytes);
    if let Some(resident) = resident_bytes() {
        gauge(out, "resident", "Memory of the process", bytes, resident)?;
    }
    gauge(out, "memory_max", "What it may have", bytes, rooms.memory.memory_max)?;
    let help = "What each part of the memory may have";
    let mut family = out.encode_descriptor("memory_part_max", help, bytes, gauge_type())?;
    for (key, max) in rooms.memory.parts() {
        encode_in(&mut family, &[("part", part(key).to_owned())], max)?;
    }
    let held = held(rooms);
    let help = "What each part of the memory has";
    let mut family = out.encode_descriptor("memory_part", help, bytes, gauge_type())?;
    for (name, held) in held {
        encode_in(&mut family, &[("part", name.to_owned())], held)?;
    }
    let taken = rooms.taken.load(Ordering::Relaxed);
    let help = "What the block cache does without, since the process would have too much";
    gauge(out, "block_cache_taken", help, bytes, taken)?;
    let pinned = rooms.shards.store().memory().block_cache_pinned_bytes;
    gauge(out, "block_cache_pinned", "Of the block cache, held by readers", bytes, pinned)?;
    let pinned = rooms.shards.store().memory().state_cache_pinned_bytes;
    gauge(out, "state_cache_pinned", "Of decoded states, of pinned collections", bytes, pinned)?;
    let help = "Calls refused since others held the memory for them";
    counter(out, "memory_refusals", help, None, rooms.admission.refused())
}

/// A part's name, from the key of its setting.
fn part(key: &'static str) -> &'static str {
    key.strip_suffix("_max").unwrap_or(key).strip_suffix("_bytes").unwrap_or(key)
}

/// What is counted. A batch is on the device, and what is sent to other nodes lies in the logs'
/// tails: neither is counted apart.
fn held(rooms: &Rooms) -> [(&'static str, u64); 6] {
    let memory = rooms.shards.store().memory();
    [
        // Memtables are charged to it.
        ("block_cache", memory.block_cache_bytes.saturating_sub(memory.memtable_bytes)),
        ("memtable", memory.memtable_bytes),
        ("state_cache", memory.state_cache_bytes),
        ("log_tail", memory.log_tail_bytes),
        ("request", rooms.admission.held_bytes()),
        ("transfer", rooms.transfers.held_bytes()),
    ]
}
