//! How others speak to a node: the Rust client.
//!
//! Calls are multiplexed over a few long-lived `Pipeline` streams, which costs a tenth of a unary
//! call; the admin calls (collections, models) are unary. A stream that breaks is opened again;
//! a call that was under way on it is sent once more only if that is safe: reads, and writes
//! that carry a request id.
//!
//! Not done: following shard hints (one node serves every shard).

mod client;
mod error;
mod pipeline;

pub use client::{Client, Config};
pub use error::Error;
pub use pipeline::Pipeline;
/// The messages that calls take and answer.
pub use statehouse_proto::v1;
