//! Large states: loads whose states differ in size by five orders of magnitude, and what one read,
//! write or patch of a large state costs.
//!
//! `plan.rs` decides (pure, seeded) which states there are and which calls are made on them, the
//! same for a node (`mixed.rs`) and for Redis (`peer.rs`). The rest measures one thing each. What
//! starts and watches the processes is `benches/peers/large.py`.

mod content;
mod mixed;
mod patches;
mod peer;
mod plan;
mod ranges;
mod streams;
mod tally;

use std::time::Duration;

use serde_json::{Value as Json, json};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Write states of 1 KiB to 256 MiB, an equal share of the bytes in each class of sizes.
    Load,
    /// Read, write, patch and step those states.
    Mixed,
    /// Set the same states in the same order in a Redis.
    PeerLoad,
    /// Write states of one size, as many and as many at a time as told.
    Write,
    /// Read them.
    Read,
    /// Write and read them, half of the workers each, until the time is over.
    Churn,
    /// Read 4 KiB of them, cold and hot, beside states of 1 MiB.
    Ranges,
    /// Read a whole state to its last byte, and 4 KiB of it.
    Whole,
    /// The same of a Redis.
    PeerWhole,
    /// Patch 4 KiB of them, beside puts of 4 KiB.
    Patches,
    /// Nothing: says what machine this is.
    Machine,
}

/// How it is measured; each part takes what concerns it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node's, or the peer's.
    pub endpoint: String,
    /// Of all states of a mixed load.
    pub total_bytes: u64,
    /// Of one state, where all are of one size.
    pub state_bytes: u64,
    /// Calls, where they are counted.
    pub count: u64,
    /// Keys that states of one size are written to.
    pub keys: u64,
    /// Calls under way.
    pub workers: usize,
    /// Time after which no call begins.
    pub duration: Duration,
    /// Exponent of the keys' Zipf distribution.
    pub zipf: f64,
    /// What steps score with.
    pub model: String,
    /// Repeats everything.
    pub seed: u64,
}

/// Measures a part.
pub async fn measure(part: Part, options: &Options) -> anyhow::Result<Json> {
    match part {
        Part::Load => mixed::load(options).await,
        Part::Mixed => mixed::run(options).await,
        Part::PeerLoad => peer::load(options).await,
        Part::Write => streams::write(options).await,
        Part::Read => streams::read(options).await,
        Part::Churn => streams::churn(options).await,
        Part::Ranges => ranges::ranges(options).await,
        Part::Whole => ranges::whole(options).await,
        Part::PeerWhole => peer::whole(options).await,
        Part::Patches => patches::patches(options).await,
        Part::Machine => Ok(json!({})),
    }
}
