//! How old the applied state of a replica may be, by what was proven of it. Pure: the clock comes
//! in.
//!
//! A *proof* is a moment on this node's own clock and an entry: everything acknowledged before the
//! moment lies at or below the entry. Once the entry is applied, the state is no older than the
//! moment. A proof holds for ever, whoever leads afterwards: it says nothing of what comes later.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Proofs kept whose entries are not applied yet. Beyond, new ones are left out: the old ones
/// are applied first.
const AHEAD_MAX: usize = 64;

/// The proofs of one replica.
#[derive(Debug, Default)]
pub struct Lag {
    /// The newest moment whose entry is applied.
    proven: Option<Instant>,
    /// Moments and entries that were not applied when last looked at.
    ahead: VecDeque<(Instant, u64)>,
}

impl Lag {
    /// Takes a proof: everything acknowledged before `moment` lies at or below `index`.
    pub fn prove(&mut self, moment: Instant, index: u64, applied: u64) {
        self.settle(applied);
        if index <= applied {
            self.proven = self.proven.max(Some(moment));
        } else if self.ahead.len() < AHEAD_MAX {
            self.ahead.push_back((moment, index));
        }
    }

    /// How old what is applied may be; `None` before anything was proven of it.
    pub fn of(&mut self, applied: u64, now: Instant) -> Option<Duration> {
        self.settle(applied);
        self.proven.map(|moment| now.saturating_duration_since(moment))
    }

    fn settle(&mut self, applied: u64) {
        while let Some((moment, index)) = self.ahead.front().copied()
            && index <= applied
        {
            self.proven = self.proven.max(Some(moment));
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
    fn lag_counts_from_the_newest_moment_whose_entry_is_applied() {
        let start = Instant::now();
        let mut lag = Lag::default();
        assert_eq!(lag.of(0, start), None, "nothing was proven");
        lag.prove(at(start, 0), 5, 3);
        assert_eq!(lag.of(3, at(start, 10)), None, "nothing proven is applied");
        lag.prove(at(start, 20), 8, 3);
        assert_eq!(lag.of(5, at(start, 30)), Some(Duration::from_millis(30)));
        assert_eq!(lag.of(7, at(start, 30)), Some(Duration::from_millis(30)));
        assert_eq!(lag.of(8, at(start, 30)), Some(Duration::from_millis(10)));
        lag.prove(at(start, 40), 8, 8);
        assert_eq!(lag.of(8, at(start, 40)), Some(Duration::ZERO));
        assert_eq!(lag.of(8, at(start, 1_340)), Some(Duration::from_millis(1_300)));
    }

    #[test]
    fn an_answer_that_comes_late_takes_nothing_back() {
        let start = Instant::now();
        let mut lag = Lag::default();
        lag.prove(at(start, 40), 8, 8);
        lag.prove(at(start, 10), 6, 8);
        assert_eq!(lag.of(8, at(start, 50)), Some(Duration::from_millis(10)));
        // Nor does one of another leader that was ahead of what is applied.
        lag.prove(at(start, 60), 12, 8);
        lag.prove(at(start, 70), 8, 8);
        assert_eq!(lag.of(8, at(start, 80)), Some(Duration::from_millis(10)));
        assert_eq!(lag.of(12, at(start, 80)), Some(Duration::from_millis(10)));
    }

    #[test]
    fn a_replica_far_behind_keeps_little_and_still_catches_up() {
        let start = Instant::now();
        let mut lag = Lag::default();
        for n in 0..10_000 {
            lag.prove(at(start, n), n + 1, 0);
        }
        assert!(lag.ahead.len() <= AHEAD_MAX);
        let known = lag.of(10_000, at(start, 10_000)).unwrap();
        assert!(
            known >= Duration::from_millis(9_900),
            "claims nothing it does not know: {known:?}"
        );
    }
}
