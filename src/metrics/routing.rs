//! Calls that went to other nodes, and calls refused because another node leads.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counts what routing does. Cheap to clone.
#[derive(Clone, Default)]
pub struct RoutingMetrics {
    /// Calls and parts of batches sent to another node, each attempt.
    pub forwarded: Counter,
    /// Attempts after the first.
    pub retries: Counter,
    /// Forwarded calls refused: this node doesn't lead.
    pub refused: Counter,
}

impl RoutingMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let forwarded = "Calls and parts of batches sent to the node that leads";
        registry.register("calls_forwarded", forwarded, self.forwarded.clone());
        let retries = "Attempts to reach the leader after a call's first";
        registry.register("call_retries", retries, self.retries.clone());
        let refused = "Forwarded calls refused because another node leads";
        registry.register("calls_refused_not_leader", refused, self.refused.clone());
    }
}
