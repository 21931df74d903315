//! What a replica has applied, as one number: replicas that have applied the same entries from the
//! same one on have the same.
//!
//! Each entry adds a hash of what it did to records: which key, and the row it left. So the number
//! follows what apply decides and reads, entry by entry, at next to no cost; rows that rot on the
//! disk are found by their checksums. It is a sum, so that two replicas that began to count at
//! different entries can still be compared by what it grows between two entries.
//!
//! ```text
//! H = format u8 | since u64 | index u64 | sum u64
//! ```
//!
//! The row is written with the applied row, and is the replica's own: a replica that receives
//! another's state begins to count anew. One whose index is not the applied one was left by a
//! program that does not count.

use std::collections::VecDeque;

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::codec::{Malformed, Scanner, Writer};
use crate::ids::EntryId;

const FORMAT: u8 = 1;

/// The sum is remembered as of each entry whose index is a multiple of this, so that replicas that
/// are not equally far can be compared at the same entry.
const MARK_EVERY: u64 = 64;

/// Marks remembered: replicas this many times [`MARK_EVERY`] entries apart can't be compared.
const MARKS_MAX: usize = 64;

/// What one replica has applied, at some entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedSums {
    /// The last entry that is not counted; 0 if all are.
    pub since: u64,
    /// Sums, each as of the entry of an index; the last one is of the last entry applied.
    pub points: Vec<(u64, u64)>,
}

/// The sum of one replica, as entries are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    since: u64,
    index: u64,
    sum: u64,
    marks: VecDeque<(u64, u64)>,
}

impl Sums {
    /// Nothing counted yet, as of an applied entry.
    pub fn since(applied: u64) -> Self {
        Sums { since: applied, index: applied, ..Sums::default() }
    }

    /// As of an applied entry: what the row says, or nothing counted yet.
    pub fn open(row: Option<Bytes>, applied: u64) -> Result<Self, Malformed> {
        let anew = Sums::since(applied);
        let Some(row) = row else { return Ok(anew) };
        let mut scan = Scanner::new(row);
        scan.format(FORMAT)?;
        let (since, index) = (scan.u64("an index")?, scan.u64("an index")?);
        let sum = scan.u64("a sum")?;
        scan.finish()?;
        let found = Sums { since, index, sum, marks: VecDeque::new() };
        Ok(if index == applied { found } else { anew })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(32);
        out.u8(FORMAT);
        out.u64(self.since);
        out.u64(self.index);
        out.u64(self.sum);
        out.into_vec()
    }

    /// Counts the next entry.
    pub fn add(&mut self, entry: EntryId, did: u64) {
        let place = [entry.index.to_le_bytes(), entry.term.to_le_bytes()].concat();
        self.sum = self.sum.wrapping_add(xxh3_64_with_seed(&place, did));
        self.index = entry.index;
        if entry.index.is_multiple_of(MARK_EVERY) {
            self.marks.push_back((self.index, self.sum));
            if self.marks.len() > MARKS_MAX {
                self.marks.pop_front();
            }
        }
    }

    pub fn read(&self) -> AppliedSums {
        let mut points: Vec<_> = self.marks.iter().copied().collect();
        points.retain(|(index, _)| *index != self.index);
        points.push((self.index, self.sum));
        AppliedSums { since: self.since, points }
    }
}

/// Adds what becomes of a record to the hash of an entry. `None`: there is none any more.
pub(crate) fn fold(hash: u64, key: &[u8], row: Option<&[u8]>) -> u64 {
    let keyed = xxh3_64_with_seed(key, hash);
    match row {
        Some(row) => xxh3_64_with_seed(row, keyed),
        None => xxh3_64(&keyed.to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64) -> EntryId {
        EntryId { index, term: 1 }
    }

    /// Applies entries of a range; `odd` did something else than it should.
    fn counted(mut sums: Sums, range: std::ops::RangeInclusive<u64>, odd: Option<u64>) -> Sums {
        for index in range {
            let row = if odd == Some(index) { b"other" } else { b"value" };
            sums.add(entry(index), fold(0, &index.to_le_bytes(), Some(row)));
        }
        sums
    }

    #[test]
    fn one_entry_that_differs_makes_all_later_sums_differ_by_the_same() {
        let good = counted(Sums::default(), 1..=500, None).read();
        let bad = counted(Sums::default(), 1..=500, Some(250)).read();
        assert_eq!(good.points.last().unwrap().0, 500);
        for (one, other) in good.points.iter().zip(&bad.points) {
            assert_eq!(one.0, other.0);
            assert_eq!(one.1 == other.1, one.0 < 250, "at {}", one.0);
        }
    }

    #[test]
    fn what_a_sum_grows_by_does_not_depend_on_where_it_began() {
        let whole = counted(Sums::default(), 1..=300, None).read();
        let late = Sums::open(None, 100).unwrap();
        let late = counted(late, 101..=300, None).read();
        assert_eq!(late.since, 100);
        let at =
            |sums: &AppliedSums, index| sums.points.iter().find(|(at, _)| *at == index).unwrap().1;
        let grown = |sums: &AppliedSums| at(sums, 256).wrapping_sub(at(sums, 192));
        assert_eq!(grown(&whole), grown(&late));
        assert_ne!(at(&whole, 256), at(&late, 256));
    }

    #[test]
    fn a_row_goes_on_where_it_was_written_and_nowhere_else() {
        let sums = counted(Sums::default(), 1..=100, None);
        let row = Bytes::from(sums.encode());
        for len in 0..row.len() {
            assert!(Sums::open(Some(row.slice(..len)), 100).is_err(), "{len} of {}", row.len());
        }
        let again = Sums::open(Some(row.clone()), 100).unwrap();
        let (on, again) =
            (counted(sums, 101..=128, None).read(), counted(again, 101..=128, None).read());
        assert_eq!((on.since, on.points.last()), (again.since, again.points.last()));
        // A program that does not count has applied more.
        assert_eq!(Sums::open(Some(row), 101).unwrap(), Sums::open(None, 101).unwrap());
    }
}
