//! A write that succeeds and leaves its state above what its collection warns of.

use std::time::Instant;

use statehouse_cluster::catalog::Collection;

use super::States;
use crate::metrics::CallKind;

/// What is said of such a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeWarning {
    /// Bytes of all fields of the state.
    pub state_bytes: u64,
    /// The collection's setting.
    pub state_bytes_warn: u64,
}

/// A write as far as a warning tells of it.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Which call.
    pub kind: CallKind,
    /// Bytes that it brought.
    pub bytes: u64,
    /// When it came.
    pub started: Instant,
}

impl Attempt {
    /// One that begins now.
    pub fn new(kind: CallKind, bytes: u64) -> Self {
        Attempt { kind, bytes, started: Instant::now() }
    }
}

impl States {
    /// Whether a write is to be warned of; it's counted and noted then. A repeat has 0 bytes, and
    /// is not.
    pub fn size_warning(
        &self,
        collection: &Collection,
        key: &[u8],
        attempt: Attempt,
        state_bytes: u64,
    ) -> Option<SizeWarning> {
        let state_bytes_warn = collection.settings.state_bytes_warn;
        if state_bytes_warn == 0 || state_bytes <= state_bytes_warn {
            return None;
        }
        let (place, bytes) = ((collection.name.as_str(), key), (attempt.bytes, state_bytes));
        self.large.state(attempt.kind, place, bytes, attempt.started.elapsed());
        Some(SizeWarning { state_bytes, state_bytes_warn })
    }
}
