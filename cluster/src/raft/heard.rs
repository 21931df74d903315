//! When a follower last heard its leader, and of which commit. Pure: the clock comes in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What is kept of messages whose commit is not applied yet. Beyond, new ones are left out: the
/// old ones are applied first.
const AHEAD_MAX: usize = 64;

/// What was heard of the leader.
#[derive(Debug, Default)]
pub struct Heard {
    last: Option<Instant>,
    /// When the replica began, its leader or its term last changed.
    turned: Option<Instant>,
    /// When the newest commit index was heard that is applied.
    caught_up: Option<Instant>,
    /// Messages with commit indexes that were not applied when last looked at.
    ahead: VecDeque<(Instant, u64)>,
}

impl Heard {
    /// A leader's message has come, with its commit index.
    pub fn note(&mut self, at: Instant, committed: u64, applied: u64) {
        self.last = Some(at);
        if committed <= applied {
            self.caught_up = Some(at);
            self.ahead.clear();
            return;
        }
        self.settle(applied);
        if self.ahead.len() < AHEAD_MAX {
            self.ahead.push_back((at, committed));
        }
    }

    /// The replica begins, or its leader or its term has changed.
    pub fn turn(&mut self, at: Instant) {
        self.turned = Some(at);
    }

    /// Since when nothing was heard and nothing has changed.
    pub fn since(&self) -> Instant {
        let since = self.last.max(self.turned);
        since.expect("a replica begins before it is asked")
    }

    /// When a leader was last heard.
    pub fn last(&self) -> Option<Instant> {
        self.last
    }

    /// How old what is applied may be.
    pub fn lag(&mut self, applied: u64, now: Instant) -> Option<Duration> {
        self.settle(applied);
        self.caught_up.map(|at| now.saturating_duration_since(at))
    }

    fn settle(&mut self, applied: u64) {
        while let Some((at, committed)) = self.ahead.front().copied()
            && committed <= applied
        {
            self.caught_up = Some(at);
            self.ahead.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn lag_counts_from_the_newest_message_whose_commit_is_applied() {
        let start = Instant::now();
        let mut heard = Heard::default();
        assert_eq!(heard.lag(0, start), None, "nothing was heard");
        heard.note(at(start, 0), 5, 3);
        assert_eq!(heard.lag(3, at(start, 10)), None, "nothing heard is applied");
        heard.note(at(start, 20), 8, 3);
        assert_eq!(heard.lag(5, at(start, 30)), Some(Duration::from_millis(30)));
        assert_eq!(heard.lag(7, at(start, 30)), Some(Duration::from_millis(30)));
        assert_eq!(heard.lag(8, at(start, 30)), Some(Duration::from_millis(10)));
        heard.note(at(start, 40), 8, 8);
        assert_eq!(heard.lag(8, at(start, 40)), Some(Duration::ZERO));
        assert_eq!(heard.last(), Some(at(start, 40)));
    }

    #[test]
    fn a_follower_far_behind_keeps_little_and_still_catches_up() {
        let start = Instant::now();
        let mut heard = Heard::default();
        for n in 0..10_000 {
            heard.note(at(start, n), n + 1, 0);
        }
        assert!(heard.ahead.len() <= AHEAD_MAX);
        let lag = heard.lag(10_000, at(start, 10_000)).unwrap();
        assert!(lag >= Duration::from_millis(9_900), "claims nothing it does not know: {lag:?}");
    }
}
