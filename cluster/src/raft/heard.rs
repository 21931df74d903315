//! When a follower last heard its leader. Pure: the clock comes in.
//!
//! For elections alone: a message that was buffered counts as heard when it is taken up. How old
//! the applied state may be is another question, with another answer (`lag.rs`).

use std::time::Instant;

/// What was heard of the leader.
#[derive(Debug, Default)]
pub struct Heard {
    last: Option<Instant>,
    /// When the replica began, its leader or its term last changed.
    turned: Option<Instant>,
}

impl Heard {
    /// A leader's message was taken up.
    pub fn note(&mut self, at: Instant) {
        self.last = Some(at);
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
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn silence_counts_from_what_was_heard_or_changed_last() {
        let start = Instant::now();
        let mut heard = Heard::default();
        heard.turn(start);
        assert_eq!((heard.since(), heard.last()), (start, None));
        let message = start + Duration::from_millis(20);
        heard.note(message);
        assert_eq!((heard.since(), heard.last()), (message, Some(message)));
        let turn = start + Duration::from_millis(30);
        heard.turn(turn);
        assert_eq!((heard.since(), heard.last()), (turn, Some(message)));
    }
}
