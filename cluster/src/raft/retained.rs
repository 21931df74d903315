//! About how many bytes of a log lie behind an index. Pure.
//!
//! Counts what was appended since the start; what was there before counts nothing.

use std::collections::VecDeque;

/// Bytes between two marks.
const MARK_BYTES: u64 = 1 << 20;

/// Marks kept: beyond, old ones are thinned out.
const MARKS_MAX: usize = 4_096;

/// How many bytes were appended, and where.
#[derive(Debug, Default)]
pub struct Retained {
    /// `(index, bytes appended through it)`, each about [`MARK_BYTES`] after the one before.
    marks: VecDeque<(u64, u64)>,
    total: u64,
}

impl Retained {
    /// Entries up to an index were appended, of so many bytes.
    pub fn note(&mut self, last: u64, bytes: u64) {
        self.total += bytes;
        while self.marks.back().is_some_and(|(index, _)| *index >= last) {
            // A tail was truncated and replaced.
            self.marks.pop_back();
        }
        let marked = self.marks.back().map_or(0, |(_, through)| *through);
        if self.total - marked >= MARK_BYTES {
            self.marks.push_back((last, self.total));
        }
        if self.marks.len() > MARKS_MAX {
            self.marks.pop_front();
        }
    }

    /// The last index behind which there are more than so many bytes; 0 if there are fewer in
    /// all.
    pub fn index_before(&self, bytes: u64) -> u64 {
        let keep_from = self.total.saturating_sub(bytes);
        let before = self.marks.iter().take_while(|(_, through)| *through <= keep_from);
        before.last().map_or(0, |(index, _)| *index)
    }

    /// Entries up to an index are gone.
    pub fn purged(&mut self, through: u64) {
        while self.marks.get(1).is_some_and(|(index, _)| *index <= through) {
            self.marks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_kept_and_what_is_before_it_may_go() {
        let mut retained = Retained::default();
        assert_eq!(retained.index_before(0), 0);
        for index in 1..=100 {
            retained.note(index, MARK_BYTES);
        }
        assert_eq!(retained.index_before(10 * MARK_BYTES), 90);
        assert_eq!(retained.index_before(1_000 * MARK_BYTES), 0);
        retained.purged(90);
        assert_eq!(retained.index_before(10 * MARK_BYTES), 90);
        assert!(retained.marks.len() <= 11);
    }

    #[test]
    fn small_entries_take_few_marks_and_a_truncated_tail_none() {
        let mut retained = Retained::default();
        for index in 1..=10_000 {
            retained.note(index, MARK_BYTES / 100);
        }
        assert!(retained.marks.len() <= 100, "{}", retained.marks.len());
        retained.note(5_000, MARK_BYTES);
        assert!(retained.marks.iter().all(|(index, _)| *index <= 5_000));
    }
}
