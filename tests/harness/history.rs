//! What clients did to one key and what they were answered: the material of a verdict.
//!
//! Every write has an id that no other write has, and leaves it in the state: a put sets the
//! field `trail` to its id alone, a patch appends its id. So a state read back names every write
//! since the last put, in order, and each of them once. The store adds a version to each state,
//! which grows with every write of the key. The two together make checking cheap: the order of
//! writes is told, and only has to be believed or refuted (`check.rs`), where a checker of bare
//! values has to search for it (`search.rs`).
//!
//! One write may be sent several times under one request id. It is one `Write` here: sent when
//! it was first sent, done when it was first answered. Each send that was refused is a `Look`
//! of its own, since a refusal tells what the state was.
//!
//! Deletes are always of a version: one that takes whatever is there tells nobody what that was,
//! so its place would have to be searched for.

pub mod check;
pub mod order;
pub mod search;

/// Nanoseconds since the run began. One process has all clients, so one clock.
pub type Nanos = u64;

/// Later than everything: when a write of unknown outcome may still happen.
pub const NEVER: Nanos = Nanos::MAX;

/// What a write needs to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Any,
    /// There is no state.
    Absent,
    /// The state is of this version.
    Version(u64),
}

/// What a write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Makes the trail this write alone.
    Put(Condition),
    /// Appends this write to the trail; refused where there is no state.
    Patch(Condition),
    /// Removes the state of this version.
    Delete(u64),
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged.
    Done {
        /// What each successful answer said; empty for a delete.
        versions: Vec<u64>,
        /// When the first of them came.
        at: Nanos,
    },
    /// Not acknowledged, and not every send was refused: it may have happened or may yet.
    Unknown,
    /// Every send was refused.
    Nothing,
}

/// One write, however often it was sent.
#[derive(Debug, Clone)]
pub struct Write {
    /// No other write has it.
    pub id: u64,
    /// What it does.
    pub action: Action,
    /// When it was first sent.
    pub sent: Nanos,
    /// What became of it.
    pub outcome: Outcome,
}

impl Write {
    /// When it had happened at the latest.
    pub fn done_at(&self) -> Nanos {
        match self.outcome {
            Outcome::Done { at, .. } => at,
            Outcome::Unknown | Outcome::Nothing => NEVER,
        }
    }
}

/// What an answer told of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Missing,
    /// Its version: all that a refusal tells.
    Version(u64),
    /// All of it.
    State {
        /// Which.
        version: u64,
        /// The ids of all writes since the last put.
        trail: Vec<u64>,
    },
}

/// A read, or the refusal of a write.
#[derive(Debug, Clone)]
pub struct Look {
    /// When it was sent.
    pub sent: Nanos,
    /// When it was answered.
    pub answered: Nanos,
    /// What it saw.
    pub seen: Seen,
    /// The write whose refusal it is.
    pub of: Option<u64>,
    /// Of a bounded read: how old what it saw may be. It misses nothing that was acknowledged
    /// longer than that before it was sent.
    pub lag: Option<Nanos>,
}

/// Everything that was done to one key.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// In any order.
    pub writes: Vec<Write>,
    /// In any order.
    pub looks: Vec<Look>,
}
