//! What `/metrics` shows: calls as they are counted, and the rooms' own counters, read at each
//! scrape so that they cost nothing on the way of a request.

mod calls;
mod large;
mod memory;
mod models;
mod rooms;
mod routing;
mod streams;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use calls::{CallKind, CallMetrics};
pub use large::LargeMetrics;
pub use rooms::Rooms;
pub use routing::RoutingMetrics;
pub use streams::{Direction, OpenStream, StreamMetrics};

/// A node's metrics.
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Over the counters of a node's rooms, and of its calls.
    pub fn new(
        device: &str,
        rooms: Rooms,
        (calls, routing, streams, large): (
            &CallMetrics,
            &RoutingMetrics,
            &StreamMetrics,
            &LargeMetrics,
        ),
    ) -> Self {
        let mut registry = Registry::with_prefix("statehouse");
        let labels = vec![
            ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("device".to_owned(), device.to_owned()),
        ];
        registry.register("build", "What runs here", Info::new(labels));
        calls.register(&mut registry);
        routing.register(&mut registry);
        large.register(&mut registry);
        registry.register_collector(Box::new(streams.clone()));
        registry.register_collector(Box::new(rooms));
        Metrics { registry }
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 << 10);
        encode(&mut out, &self.registry).expect("writing to a string does not fail");
        out
    }
}
