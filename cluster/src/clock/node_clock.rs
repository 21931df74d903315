//! The node's time: what its shards' entries carry and its reads go by.
//!
//! It is *settled* once, at the median of the clocks of a majority of the nodes, or on a node alone
//! at what it has itself; from then on it only slews towards the median of the wall clocks. Until
//! then no entry is made, so that no entry's time is of a clock that nobody has looked at.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};

use super::skew::{Reading, Skews};
use super::steady::Steady;
use super::{elapsed_us, wall_us};
use crate::NodeId;

/// A wall clock further from the node's time is warned of, in milliseconds.
pub const SKEW_WARN_MS: u64 = 1_000;

/// The clocks of a node: its own, and what it knows of the others'.
#[derive(Debug)]
pub struct NodeClock {
    steady: RwLock<Steady>,
    settled: AtomicBool,
    skews: Mutex<Skews>,
}

/// How a node's clock is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClockReport {
    /// How far the wall clock is ahead of the node's time, in milliseconds.
    pub skew_ms: i64,
    /// The node knows its time.
    pub settled: bool,
}

impl ClockReport {
    /// The wall clock is wrong, or has been until lately.
    pub fn is_off(self) -> bool {
        self.skew_ms.unsigned_abs() > SKEW_WARN_MS
    }
}

impl Default for NodeClock {
    /// A clock that has settled at the wall clock.
    fn default() -> Self {
        NodeClock {
            steady: RwLock::new(Steady::new(elapsed_us(), wall_us())),
            settled: AtomicBool::new(true),
            skews: Mutex::default(),
        }
    }
}

impl NodeClock {
    /// The node's time, in Unix milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.time_us(elapsed_us()) / 1_000
    }

    /// How the clock is.
    pub fn report(&self) -> ClockReport {
        let read = self.read();
        let skew_us = i128::from(read.wall_us) - i128::from(read.time_us);
        let skew_ms = (skew_us / 1_000).clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        ClockReport { skew_ms, settled: self.is_settled() }
    }

    /// Whether entries may be made by this clock.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// The node's time, in Unix microseconds.
    pub(crate) fn time_us(&self, elapsed_us: u64) -> u64 {
        self.steady.read().time_us(elapsed_us)
    }

    /// The clocks of this node, now.
    pub(crate) fn read(&self) -> Reading {
        Reading { wall_us: wall_us(), time_us: self.time_us(elapsed_us()) }
    }

    /// A ping of another node, sent at a time since the machine's start, was answered now.
    pub(crate) fn note(&self, node: NodeId, sent_us: u64, read: Option<Reading>) {
        self.skews.lock().note(node, (sent_us, elapsed_us()), read);
    }

    /// How many of these nodes were heard of.
    pub(super) fn heard(&self, nodes: &[NodeId]) -> usize {
        self.skews.lock().heard(nodes, elapsed_us())
    }

    /// Takes the settling back: the clock starts at a time that is yet to be compared.
    pub(super) fn unsettle(&self, elapsed_us: u64, time_us: u64) {
        self.settled.store(false, Ordering::Release);
        *self.steady.write() = Steady::new(elapsed_us, time_us);
    }

    /// Sets the clock to the median of its own time and those of these nodes.
    pub(super) fn settle(&self, nodes: &[NodeId]) {
        let (own, elapsed_us) = (self.read(), elapsed_us());
        let time_us = self.skews.lock().median(own, nodes, elapsed_us).time_us;
        *self.steady.write() = Steady::new(elapsed_us, time_us);
        self.settled.store(true, Ordering::Release);
    }

    /// Has the clock come nearer to the median of the wall clocks of this and these nodes.
    pub(super) fn steer(&self, nodes: &[NodeId], for_us: u64) {
        let (own, elapsed_us) = (self.read(), elapsed_us());
        let wall_us = self.skews.lock().median(own, nodes, elapsed_us).wall_us;
        self.steady.write().steer(elapsed_us, wall_us, for_us);
    }
}
