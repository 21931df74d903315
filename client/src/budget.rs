//! How many retries a client may make: a share of the calls that succeed. When it's spent, retries
//! go on at the slowest pace, so that a cluster in trouble isn't given ten times the load.

use std::sync::atomic::{AtomicI64, Ordering};

/// Retries saved up at most.
const RETRIES_MAX: i64 = 1_000;

/// Answers that earn one retry.
const ANSWERS_PER_RETRY: i64 = 10;

/// Counted in answers.
pub struct Budget(AtomicI64);

impl Default for Budget {
    fn default() -> Self {
        Budget(AtomicI64::new(RETRIES_MAX * ANSWERS_PER_RETRY))
    }
}

impl Budget {
    /// A call was answered.
    pub fn earn(&self) {
        // Nearly always full: then it costs a load and no more.
        if self.0.load(Ordering::Relaxed) < RETRIES_MAX * ANSWERS_PER_RETRY {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes a retry, if one is left.
    pub fn spend(&self) -> bool {
        let spend = |left: i64| (left >= ANSWERS_PER_RETRY).then_some(left - ANSWERS_PER_RETRY);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_earn_retries_up_to_a_limit() {
        let budget = Budget::default();
        budget.earn();
        let spent = (0..).take_while(|_| budget.spend()).count();
        assert_eq!(spent as i64, RETRIES_MAX);
        (1..ANSWERS_PER_RETRY).for_each(|_| budget.earn());
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend() && !budget.spend());
    }
}
