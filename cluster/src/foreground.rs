//! Whether callers wait too long: what runs in the background asks, and makes room.
//!
//! Counts, second by second, the calls that end and those of them that took longer than a limit.
//! The 99th percentile is above the limit where more than one of a hundred did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// With fewer calls in a second, one slow one says nothing.
const CALLS_MIN: u64 = 20;

/// One second's calls.
#[derive(Debug, Default)]
struct Window {
    second: AtomicU64,
    calls: AtomicU64,
    slow: AtomicU64,
}

/// The calls of callers, as they end.
#[derive(Debug)]
pub struct Foreground {
    start: Instant,
    /// `None`: callers are never waited for.
    limit: Option<Duration>,
    /// This second's and the one's before, in turn.
    windows: [Window; 2],
}

impl Foreground {
    /// With a limit of the 99th percentile; zero: none.
    pub fn new(limit: Duration) -> Self {
        let limit = Some(limit).filter(|limit| !limit.is_zero());
        Foreground { start: Instant::now(), limit, windows: Default::default() }
    }

    /// A call ends that took so long.
    pub fn note(&self, took: Duration) {
        self.note_at(took, Instant::now());
    }

    /// Whether the last second's 99th percentile was above the limit.
    pub fn is_slow(&self) -> bool {
        self.is_slow_at(Instant::now())
    }

    fn note_at(&self, took: Duration, at: Instant) {
        let Some(limit) = self.limit else { return };
        let second = self.second(at);
        let window = &self.windows[(second % 2) as usize];
        // Who comes first in a second clears what was there; a call lost in between is one of many.
        if window.second.swap(second, Ordering::Relaxed) != second {
            window.calls.store(0, Ordering::Relaxed);
            window.slow.store(0, Ordering::Relaxed);
        }
        window.calls.fetch_add(1, Ordering::Relaxed);
        window.slow.fetch_add(u64::from(took > limit), Ordering::Relaxed);
    }

    fn is_slow_at(&self, at: Instant) -> bool {
        let Some(before) = self.second(at).checked_sub(1) else { return false };
        let window = &self.windows[(before % 2) as usize];
        let calls = window.calls.load(Ordering::Relaxed);
        window.second.load(Ordering::Relaxed) == before
            && calls >= CALLS_MIN
            && window.slow.load(Ordering::Relaxed) * 100 > calls
    }

    /// From 1 on, so that an untouched window is of no second.
    fn second(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_secs() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    #[test]
    fn one_of_a_hundred_may_be_slow() {
        let foreground = Foreground::new(LIMIT);
        let at = |millis| foreground.start + Duration::from_millis(millis);
        for _ in 0..99 {
            foreground.note_at(LIMIT, at(500));
        }
        foreground.note_at(2 * LIMIT, at(600));
        assert!(!foreground.is_slow_at(at(900)), "its second is not over");
        assert!(!foreground.is_slow_at(at(1_100)), "one of a hundred");
        foreground.note_at(2 * LIMIT, at(700));
        assert!(foreground.is_slow_at(at(1_100)));
        assert!(!foreground.is_slow_at(at(2_100)), "nothing is known of the second before");
    }

    #[test]
    fn few_calls_say_nothing_and_no_limit_means_never() {
        let foreground = Foreground::new(LIMIT);
        let later = foreground.start + Duration::from_secs(1);
        for _ in 0..CALLS_MIN - 1 {
            foreground.note_at(2 * LIMIT, foreground.start);
        }
        assert!(!foreground.is_slow_at(later));
        foreground.note_at(2 * LIMIT, foreground.start);
        assert!(foreground.is_slow_at(later));
        let never = Foreground::new(Duration::ZERO);
        for _ in 0..1_000 {
            never.note_at(Duration::from_secs(9), never.start);
        }
        assert!(!never.is_slow_at(never.start + Duration::from_secs(1)));
    }
}
