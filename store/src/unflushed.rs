//! How many bytes of a replica's applied entries are not known to be flushed.
//!
//! What apply writes is in memory alone until its column family is flushed, and until then the
//! log must keep the entries that it came from. This counts them, so that whoever drives the
//! store can have a replica flushed before its log has grown too long. Counted in runs of
//! entries, and so a little too high: by at most one run.

use std::collections::VecDeque;

/// Bytes of entries that are counted as one run.
const RUN_BYTES: u64 = 256 << 10;

/// Bytes of entries by the index up to which they reach.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    /// Last index and bytes of each run, in order.
    runs: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Unflushed {
    /// Entries up to `index` were applied.
    pub fn grow(&mut self, index: u64, bytes: u64) {
        self.bytes += bytes;
        match self.runs.back_mut() {
            Some((last, run)) if *run < RUN_BYTES => {
                *last = index;
                *run += bytes;
            }
            Some(_) | None => self.runs.push_back((index, bytes)),
        }
    }

    /// Everything up to `index` is flushed.
    pub fn settle(&mut self, index: u64) {
        while let Some((_, bytes)) = self.runs.front().filter(|(last, _)| *last <= index) {
            self.bytes -= bytes;
            self.runs.pop_front();
        }
    }

    /// Bytes applied and not known to be flushed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_flushed_no_longer_counts_and_what_follows_does() {
        let mut unflushed = Unflushed::default();
        for index in 1..=10 {
            unflushed.grow(index, RUN_BYTES);
        }
        assert_eq!(unflushed.bytes(), 10 * RUN_BYTES);
        unflushed.settle(4);
        assert_eq!(unflushed.bytes(), 6 * RUN_BYTES);
        unflushed.settle(3);
        assert_eq!(unflushed.bytes(), 6 * RUN_BYTES);
        unflushed.settle(10);
        assert_eq!(unflushed.bytes(), 0);
    }

    #[test]
    fn small_entries_share_runs_and_count_until_the_last_of_a_run_is_flushed() {
        let mut unflushed = Unflushed::default();
        for index in 1..=100_000 {
            unflushed.grow(index, 100);
        }
        assert!(unflushed.runs.len() as u64 <= 100_000 * 100 / RUN_BYTES + 1);
        unflushed.settle(50_000);
        let left = unflushed.bytes();
        assert!((50_000 * 100..50_000 * 100 + RUN_BYTES + 100).contains(&left), "{left}");
        unflushed.settle(100_000);
        assert_eq!(unflushed.bytes(), 0);
    }
}
