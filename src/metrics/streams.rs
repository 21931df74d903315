//! Streams of large states: how many are open, what they move, and what becomes of uploads.
//! Counted where the caller's stream ends: what one node passes on for another is counted once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Which way a stream's bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// They are brought.
    Write,
    /// They are taken.
    Read,
}

const DIRECTIONS: [(Direction, &str); 2] = [(Direction::Write, "write"), (Direction::Read, "read")];

/// Counts streams. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StreamMetrics {
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    /// By direction.
    bytes: [AtomicU64; 2],
    open: [AtomicU64; 2],
    cut_off: AtomicU64,
    uploads: Uploads,
}

/// What became of uploads that came in streams.
#[derive(Debug, Default)]
pub struct Uploads {
    begun: AtomicU64,
    ended: AtomicU64,
    aborted: AtomicU64,
}

impl Uploads {
    /// One began; what continues one does not count again.
    pub fn begun(&self) {
        self.begun.fetch_add(1, Relaxed);
    }

    /// One became a state.
    pub fn ended(&self) {
        self.ended.fetch_add(1, Relaxed);
    }

    /// One was given up.
    pub fn aborted(&self) {
        self.aborted.fetch_add(1, Relaxed);
    }
}

impl StreamMetrics {
    /// A stream is open until what comes back is dropped.
    pub fn open(&self, direction: Direction) -> OpenStream {
        self.counters.open[direction as usize].fetch_add(1, Relaxed);
        OpenStream { counters: self.counters.clone(), direction }
    }

    /// A stream or an answer was cut off, since its other end stood still.
    pub fn cut_off(&self) {
        self.counters.cut_off.fetch_add(1, Relaxed);
    }

    /// What counts uploads.
    pub fn uploads(&self) -> &Uploads {
        &self.counters.uploads
    }
}

/// A stream that is counted as open.
pub struct OpenStream {
    counters: Arc<Counters>,
    direction: Direction,
}

impl OpenStream {
    /// So many bytes of fields were brought or taken.
    pub fn moved(&self, bytes: usize) {
        self.counters.bytes[self.direction as usize].fetch_add(bytes as u64, Relaxed);
    }

    /// What counts uploads.
    pub fn uploads(&self) -> &Uploads {
        &self.counters.uploads
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.counters.open[self.direction as usize].fetch_sub(1, Relaxed);
    }
}

impl Collector for StreamMetrics {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        let bytes = Some(&Unit::Bytes);
        let help = "Bytes of fields that streams brought and took";
        let mut family = out.encode_descriptor("stream", help, bytes, MetricType::Counter)?;
        for (direction, call) in DIRECTIONS {
            let value = self.counters.bytes[direction as usize].load(Relaxed);
            ConstCounter::new(value).encode(family.encode_family(&[("call", call)])?)?;
        }
        let help = "Streams of large states under way";
        let mut family = out.encode_descriptor("streams_open", help, None, MetricType::Gauge)?;
        for (direction, call) in DIRECTIONS {
            let value = self.counters.open[direction as usize].load(Relaxed) as i64;
            ConstGauge::new(value).encode(family.encode_family(&[("call", call)])?)?;
        }
        let help = "Streams and answers cut off, since their other end stood still";
        let value = ConstCounter::new(self.counters.cut_off.load(Relaxed));
        value.encode(out.encode_descriptor("streams_cut", help, None, MetricType::Counter)?)?;
        let Uploads { begun, ended, aborted } = &self.counters.uploads;
        let help = "Uploads that came in streams, by what became of them";
        let mut family = out.encode_descriptor("uploads", help, None, MetricType::Counter)?;
        for (step, count) in [("begun", begun), ("ended", ended), ("aborted", aborted)] {
            let value = ConstCounter::new(count.load(Relaxed));
            value.encode(family.encode_family(&[("step", step)])?)?;
        }
        Ok(())
    }
}
