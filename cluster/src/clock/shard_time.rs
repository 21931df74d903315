//! A shard's time: what its next entry carries, and by what its readers see things expire. Pure:
//! clocks come in as values.
//!
//! It is the node's time, unless the shard is ahead of that: a former leader's clock was, or the
//! machine's was before it was set right and started anew. A shard's time can't run backwards, and
//! must not stand still either, or what expires in a minute would last until all clocks have
//! caught up. So it runs on from the last entry as real time does, 5 % slower, until they have.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::steady::SLEW_MAX_PPM;

const MILLION: u64 = 1_000_000;

/// What one replica knows of its shard's time.
#[derive(Debug, Default)]
pub struct ShardTime {
    /// The shard may be ahead of the node: `run` counts.
    ahead: AtomicBool,
    run: Mutex<Run>,
}

/// A time that was seen, and when.
#[derive(Debug, Default, Clone, Copy)]
struct Run {
    time_us: u64,
    elapsed_us: u64,
}

impl ShardTime {
    /// The shard's time in Unix milliseconds, when the last entry applied carried `entry_ms`, the
    /// node's time is `node_us` and the machine has run for `elapsed_us`.
    pub fn now_ms(&self, entry_ms: u64, node_us: u64, elapsed_us: u64) -> u64 {
        let entry_us = entry_ms.saturating_mul(1_000);
        if entry_us <= node_us && !self.ahead.load(Ordering::Acquire) {
            return node_us / 1_000;
        }
        let mut run = self.run.lock();
        let mut time_us = run.at(elapsed_us);
        if entry_us > time_us {
            (time_us, *run) = (entry_us, Run { time_us: entry_us, elapsed_us });
        }
        self.ahead.store(time_us > node_us, Ordering::Release);
        time_us.max(node_us) / 1_000
    }
}

impl Run {
    fn at(self, elapsed_us: u64) -> u64 {
        let passed = elapsed_us.saturating_sub(self.elapsed_us);
        let slower = passed / MILLION * SLEW_MAX_PPM as u64
            + passed % MILLION * SLEW_MAX_PPM as u64 / MILLION;
        self.time_us.saturating_add(passed - slower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;
    const WALL: u64 = 1_800_000_000 * SECOND;
    const QUARTER: u64 = 16 * 60 * SECOND;

    #[test]
    fn a_shard_that_is_not_ahead_has_the_nodes_time() {
        let time = ShardTime::default();
        assert_eq!(time.now_ms(0, WALL, 5), WALL / 1_000);
        assert_eq!(time.now_ms(WALL / 1_000, WALL + SECOND, 6), WALL / 1_000 + 1_000);
    }

    #[test]
    fn a_shard_that_is_ahead_runs_on_with_real_time_until_the_node_has_caught_up() {
        let time = ShardTime::default();
        let ahead_ms = (WALL + QUARTER) / 1_000;
        assert_eq!(time.now_ms(ahead_ms, WALL, 0), ahead_ms);
        let minute = 60 * SECOND;
        assert_eq!(time.now_ms(ahead_ms, WALL + minute, minute), ahead_ms + 57_000);
        let caught_up = 20 * QUARTER;
        let late = caught_up + 60 * SECOND;
        assert_eq!(time.now_ms(ahead_ms, WALL + late, late), (WALL + late) / 1_000);
        let later = late + SECOND;
        assert_eq!(time.now_ms(ahead_ms, WALL + later, later), (WALL + later) / 1_000);
    }

    #[test]
    fn many_entries_in_a_millisecond_do_not_hold_it_up() {
        let time = ShardTime::default();
        let mut entry_ms = (WALL + QUARTER) / 1_000;
        let first = entry_ms;
        for n in 0..1_000_000 {
            let elapsed_us = n * 10;
            entry_ms = time.now_ms(entry_ms, WALL + elapsed_us, elapsed_us);
        }
        assert!((9_499..=9_500).contains(&(entry_ms - first)), "{}", entry_ms - first);
    }

    #[test]
    fn another_leader_may_take_it_further_and_none_back() {
        let time = ShardTime::default();
        let ahead_ms = (WALL + QUARTER) / 1_000;
        time.now_ms(ahead_ms, WALL, 0);
        assert_eq!(time.now_ms(ahead_ms + 5_000, WALL, SECOND), ahead_ms + 5_000);
        assert_eq!(time.now_ms(ahead_ms + 5_000, WALL, 2 * SECOND), ahead_ms + 5_950);
        assert_eq!(time.now_ms(ahead_ms + 5_001, WALL, 2 * SECOND), ahead_ms + 5_950);
    }
}
