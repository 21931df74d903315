//! Large requests, and writes that left their state above its collection's warning size.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::CallKind;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabel {
    call: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CollectionLabel {
    collection: String,
}

/// Counts what is large. Cheap to clone.
#[derive(Clone, Default)]
pub struct LargeMetrics {
    messages: Family<CallLabel, Counter>,
    states: Family<CollectionLabel, Counter>,
}

impl LargeMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let messages = "Calls whose request or answer is above large_request_bytes";
        registry.register("large_requests", messages, self.messages.clone());
        let states = "Writes that left a state above its collection's state_bytes_warn";
        registry.register("writes_above_warn", states, self.states.clone());
    }

    /// A call was large.
    pub fn message(&self, kind: CallKind) {
        self.messages.get_or_create(&CallLabel { call: kind.name() }).inc();
    }

    /// A write was warned of.
    pub fn state(&self, collection: &str) {
        let label = CollectionLabel { collection: collection.to_owned() };
        self.states.get_or_create(&label).inc();
    }
}
