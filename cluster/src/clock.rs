//! What time it is: the wall clock for people, the node's time for what expires.
//!
//! | file | what |
//! |---|---|
//! | `steady.rs` * | a clock that runs with real time, whatever the wall clock does |
//! | `skew.rs` * | what the clocks of the other nodes say, and their median |
//! | `shard_time.rs` * | a shard's time, which never runs backwards |
//! | `node_clock.rs` | the node's time, made of these |
//! | `reference.rs` | what of it outlives the process |
//! | `keeping.rs` | the task that steers it |
//!
//! Files marked * are pure: clocks come in as values. Nothing but these files reads a clock to
//! decide what has expired; the wall clock goes into what people read.

mod keeping;
mod node_clock;
mod reference;
mod shard_time;
mod skew;
mod steady;

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use keeping::Keeper;
pub use node_clock::{ClockReport, NodeClock, SKEW_WARN_MS};
pub(crate) use shard_time::ShardTime;
pub(crate) use skew::Reading;

/// Unix milliseconds by this machine's wall clock.
pub(crate) fn unix_now_ms() -> u64 {
    wall_us() / 1_000
}

/// Unix microseconds by this machine's wall clock.
pub(crate) fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds since the machine started, time asleep included: it runs on when the wall clock
/// steps. Asked of the kernel itself, so that what pretends another wall clock does not change it.
pub(crate) fn elapsed_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (now.tv_sec.max(0) as u64, now.tv_nsec.max(0) as u64);
    seconds * 1_000_000 + nanos / 1_000
}
