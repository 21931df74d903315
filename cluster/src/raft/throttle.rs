//! How fast bytes may leave. Pure: the clock comes in.

use std::time::{Duration, Instant};

/// A bucket that fills at a rate, up to a second's worth.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: u64,
    /// When the bucket was, or will be, empty.
    empty_at: Instant,
}

impl Throttle {
    /// A full bucket.
    pub fn new(bytes_per_second: u64, now: Instant) -> Self {
        let bytes_per_second = bytes_per_second.max(1);
        Throttle {
            bytes_per_second,
            empty_at: now.checked_sub(Duration::from_secs(1)).unwrap_or(now),
        }
    }

    /// Takes bytes out; answers how long to wait before they may leave.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let full = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        self.empty_at = self.empty_at.max(full) + cost;
        self.empty_at.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_free_and_then_the_rate_holds() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut throttle = Throttle::new(100, start);
        assert_eq!(throttle.take(100, start), Duration::ZERO);
        assert_eq!(throttle.take(50, start), Duration::from_millis(500));
        assert_eq!(throttle.take(50, start), Duration::from_secs(1));
        // The debt is paid after a second, and after another one the bucket is full again.
        let later = start + Duration::from_secs(60);
        assert_eq!(throttle.take(100, later), Duration::ZERO);
        assert_eq!(throttle.take(1, later), Duration::from_millis(10));
    }
}
