//! Why a replica no longer takes part, once something has gone wrong under it.
//!
//! Noted by whoever sees it first: the state machine, a reader, or the end of the Raft core. From
//! then on the replica neither leads nor serves; `quarantine.rs` takes it out.

use std::sync::OnceLock;

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The replica's: other replicas rebuild it.
    Replica,
    /// The node's: it is stopping, or its disk has failed. That says nothing of the replica.
    Node,
}

/// The first fault of a replica, if there was one.
#[derive(Debug, Default)]
pub struct Fault(OnceLock<(Whose, String)>);

impl Fault {
    /// Notes a fault; the first one stays. Returns whether this was the first.
    pub fn note(&self, whose: Whose, reason: String) -> bool {
        self.0.set((whose, reason)).is_ok()
    }

    /// Returns whose fault it is, and what went wrong.
    pub fn get(&self) -> Option<(Whose, &str)> {
        self.0.get().map(|(whose, reason)| (*whose, reason.as_str()))
    }

    /// Returns whether there was a fault.
    pub fn is_noted(&self) -> bool {
        self.0.get().is_some()
    }
}
