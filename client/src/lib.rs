//! How others speak to a cluster: the Rust client.
//!
//! Calls are multiplexed over a few long-lived `Pipeline` streams to each node, which costs a
//! tenth of a unary call; the admin calls (collections, models) are unary, at any node. Each call
//! goes to the node that leads its key's shard, by a map that any node gives and that is corrected
//! on the way; a wrong guess costs a hop. What fails is sent again while that is safe: reads, what
//! had no effect for certain, and writes that carry a request id (all do, unless told otherwise).
//!
//! | file | concept |
//! |---|---|
//! | `client.rs` | the front door: typed calls |
//! | `catalog.rs` | calls about collections and models |
//! | `large.rs` | states of any size, written and read in chunks |
//! | `trip.rs`, `scatter.rs` | one call's, one batch's way to those who lead |
//! | `nodes.rs` | the nodes there are, and whom to ask |
//! | `map.rs` | key → slot → shard → nodes |
//! | `lanes.rs`, `pipeline.rs` | streams to one node, and one of them |
//! | `call_metadata.rs` | metadata that goes with each request |
//! | `alone.rs` | calls too large for a stream that others share |
//! | `retry.rs` *, `budget.rs` | what may be sent again, when, how often |
//! | `batch.rs` * | batches taken apart and put together |
//! | `request_ids.rs` | what makes a write repeatable |
//!
//! Files marked * are pure; a node forwards with them too.
//!
//! Not done: TLS; the order of a key's calls across a change of its shard's leader, and of calls
//! with more than 256 KiB among others.

mod alone;
pub mod batch;
mod budget;
pub mod call_metadata;
mod catalog;
mod client;
mod error;
pub mod lanes;
mod large;
mod map;
mod nodes;
mod pipeline;
mod request_ids;
pub mod retry;
mod scatter;
mod trip;

pub use call_metadata::{CLUSTER, HOP};
pub use client::{Client, Config};
pub use error::Error;
pub use large::{Source, StateStream, WriteError};
pub use pipeline::{Answered, Pending, Pipeline};
/// The messages that calls take and answer.
pub use statehouse_proto::v1;
