//! The machine's wall clock, as the number that entries carry.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix milliseconds by this machine's clock.
pub(crate) fn unix_now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
