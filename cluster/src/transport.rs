//! What nodes say to each other, and over what: gRPC streams between each pair of nodes.
//!
//! Per peer two connections: one for small messages of all groups, gathered into batches (an
//! append of megabytes never stands before a vote), one for appends. Who hears nothing from a
//! peer learns it from [`Peers::silence`].
//!
//! | file | concept |
//! |---|---|
//! | `peers.rs` | all peers: addresses, who was heard when, faults for tests |
//! | `talk.rs` | small messages to one peer: gathering, answers, pings |
//! | `append.rs` | appends to one peer: sessions, credits |
//! | `link.rs` | one connection's address, hello and backoff |
//! | `server.rs` | the other end of all of them |
//!
//! Does not know Raft: `raft/` says what the messages mean.

pub(crate) mod append;
mod link;
mod peers;
mod server;
pub(crate) mod talk;

use std::time::Duration;

pub(crate) use peers::Peer;
pub use peers::Peers;
pub use server::serve;

/// The version of the peer protocol.
pub(crate) const PROTOCOL_FORMAT: u32 = 1;

/// Limits and timings of a node's transport.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long a connection may take to stand.
    pub connect_timeout: Duration,
    /// The wait before the first try to connect again; doubles up to the longest.
    pub reconnect_wait_min: Duration,
    /// The longest wait between two tries to connect.
    pub reconnect_wait_max: Duration,
    /// How often each peer is pinged.
    pub ping_interval: Duration,
    /// A connection that answers nothing for so long is given up.
    pub idle_timeout: Duration,
    /// How long a small message that is in no hurry waits for others to ride with.
    pub gather_max: Duration,
    /// Small messages that may wait for one peer.
    pub asks_waiting_max: usize,
    /// Bytes of appends sent to one peer and not yet answered; one append may be larger.
    pub append_bytes_in_flight_max: usize,
    /// An append that is not answered for so long is sent again.
    pub append_answer_timeout: Duration,
    /// A small message that is not answered for so long is given up.
    pub ask_answer_timeout: Duration,
    /// The largest message taken from a peer, in bytes.
    pub message_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            connect_timeout: Duration::from_millis(500),
            reconnect_wait_min: Duration::from_millis(20),
            reconnect_wait_max: Duration::from_millis(500),
            ping_interval: Duration::from_millis(100),
            idle_timeout: Duration::from_millis(1_500),
            gather_max: Duration::from_millis(2),
            asks_waiting_max: 16_384,
            append_bytes_in_flight_max: 32 << 20,
            append_answer_timeout: Duration::from_secs(10),
            ask_answer_timeout: Duration::from_secs(5),
            message_bytes_max: 2 << 30,
        }
    }
}

/// A message did not arrive, or its answer did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// There is no connection: wait before the next try.
    #[error("the peer can't be reached")]
    Unreachable,
    /// The connection broke while the answer was awaited.
    #[error("the connection to the peer broke")]
    Broken,
    /// The connection stands, and the answer did not come in time.
    #[error("the peer did not answer in time")]
    Silent,
}
