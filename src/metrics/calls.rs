//! Calls: how many, how long, how many failed and why.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use statehouse_cluster::Foreground;

use crate::failure::Failure;
use crate::states::Prefetched;

/// Upper bounds of the latency histogram, in seconds.
const SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 10.0,
];

/// Which call is counted, whether it came alone or on a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// `Get`.
    Get,
    /// `BatchGet`.
    BatchGet,
    /// `Put`.
    Put,
    /// `BatchPut`.
    BatchPut,
    /// `Patch`.
    Patch,
    /// `Delete`.
    Delete,
    /// `Score`.
    Score,
    /// `ScoreBatch`.
    ScoreBatch,
    /// A step of an upload.
    Upload,
    /// `Write`, whole.
    Write,
    /// `Read`, whole.
    Read,
    /// `Prefetch`.
    Prefetch,
}

impl CallKind {
    /// As metrics and logs call it.
    pub fn name(self) -> &'static str {
        KINDS[self as usize].1
    }

    /// Batches and large states take as long as their size makes them.
    fn is_long(self) -> bool {
        use CallKind::{BatchGet, BatchPut, Prefetch, Read, ScoreBatch, Upload, Write};
        matches!(self, BatchGet | BatchPut | ScoreBatch | Upload | Write | Read | Prefetch)
    }
}

const KINDS: [(CallKind, &str); 12] = [
    (CallKind::Get, "get"),
    (CallKind::BatchGet, "batch_get"),
    (CallKind::Put, "put"),
    (CallKind::BatchPut, "batch_put"),
    (CallKind::Patch, "patch"),
    (CallKind::Delete, "delete"),
    (CallKind::Score, "score"),
    (CallKind::ScoreBatch, "score_batch"),
    (CallKind::Upload, "upload"),
    (CallKind::Write, "write"),
    (CallKind::Read, "read"),
    (CallKind::Prefetch, "prefetch"),
];

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabel {
    call: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FailureLabel {
    call: &'static str,
    reason: &'static str,
}

/// Counts calls. Cheap to clone.
#[derive(Clone)]
pub struct CallMetrics {
    seconds: Family<CallLabel, Histogram>,
    failures: Family<FailureLabel, Counter>,
    under_way: Gauge,
    /// By kind, found once so that a call does not look its labels up.
    histograms: Arc<[Histogram]>,
    prefetched: Family<PrefetchedLabel, Counter>,
    foreground: Arc<Foreground>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PrefetchedLabel {
    outcome: &'static str,
}

impl CallMetrics {
    /// Tells what runs in the background how long calls take.
    pub fn new(foreground: Arc<Foreground>) -> Self {
        let seconds = Family::<CallLabel, Histogram>::new_with_constructor(|| {
            Histogram::new(SECONDS.iter().copied())
        });
        let histograms = KINDS
            .iter()
            .map(|(_, call)| seconds.get_or_create(&CallLabel { call }).clone())
            .collect();
        let (failures, under_way) = (Family::default(), Gauge::default());
        let prefetched = Family::default();
        CallMetrics { seconds, failures, under_way, histograms, prefetched, foreground }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "call",
            "Time from a call's arrival to its answer",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register("call_failures", "Calls refused or failed", self.failures.clone());
        registry.register("calls_under_way", "Calls not answered yet", self.under_way.clone());
        let prefetched = "Keys of prefetches done on this node";
        registry.register("prefetched_keys", prefetched, self.prefetched.clone());
    }

    /// Counts a call from its first poll to its end, also when its caller leaves.
    pub async fn count<T>(
        &self,
        kind: CallKind,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let under_way = UnderWay::enter(&self.under_way);
        let started = Instant::now();
        let answer = call.await;
        drop(under_way);
        let took = started.elapsed();
        self.histograms[kind as usize].observe(took.as_secs_f64());
        if !kind.is_long() {
            self.foreground.note(took);
        }
        if let Err(failure) = &answer {
            self.failed(kind, failure);
        }
        answer
    }

    /// Counts a key that was prefetched here; `None`: in vain.
    pub fn prefetched(&self, prefetched: Option<Prefetched>) {
        let outcome = match prefetched {
            Some(Prefetched::InMemory) => "in_memory",
            Some(Prefetched::Loaded) => "loaded",
            Some(Prefetched::Partly) => "partly",
            Some(Prefetched::NoState) => "no_state",
            None => "failed",
        };
        self.prefetched.get_or_create(&PrefetchedLabel { outcome }).inc();
    }

    /// Counts a failure, also of an answer that had begun.
    pub fn failed(&self, kind: CallKind, failure: &Failure) {
        let (_, call) = KINDS[kind as usize];
        let label = FailureLabel { call, reason: failure.reason.name() };
        self.failures.get_or_create(&label).inc();
    }
}

struct UnderWay<'a>(&'a Gauge);

impl<'a> UnderWay<'a> {
    fn enter(gauge: &'a Gauge) -> Self {
        gauge.inc();
        UnderWay(gauge)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_at_its_place() {
        for (at, (kind, _)) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, at);
        }
    }
}
