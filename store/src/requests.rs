//! Where a shard's remembered requests lie, and how many there are: bounded by time, count, bytes.
//!
//! Rows lie in numbered buckets (`dedup.rs`). A bucket's number is that of its five minutes of the
//! shard's time, or the next free one if the bucket before was full first. Old buckets go when
//! their newest row is ten minutes old, or when all together hold too much, the oldest first: then
//! a repeat is recognised for less than ten minutes.
//!
//! Pure, and a part of the applied row: every replica decides the same from the same entries. A
//! shard from before this was counted has rows in buckets that are not listed; they are looked at
//! by their numbers until their time is over.

use crate::codec::{Malformed, Scanner, Writer};
use crate::dedup::{bucket, oldest_kept};

/// Requests that a shard remembers at most, unless a sweep has said otherwise.
pub const REQUESTS_MAX: u64 = 1 << 20;

/// The fewest requests that a limit may say.
pub const REQUESTS_MIN: u64 = 1 << 10;

/// Bytes of requests, their answers included, that a shard remembers at most.
pub const REQUEST_BYTES_MAX: u64 = 256 << 20;

/// A bucket is full with one part in so many of what all may hold: as much goes at once, and the
/// others hold the newest.
const SHARE: u64 = 4;

/// Buckets of which a row is read: more than there can be.
const BUCKETS_MAX: u32 = 1_024;

/// What a shard remembers of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Request ids.
    pub requests: u64,
    /// Bytes of their rows, answers included.
    pub bytes: u64,
    /// How many ids there may be.
    pub requests_max: u64,
}

/// The buckets that a shard has written to, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requests {
    pub max: u64,
    buckets: Vec<Bucket>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    number: u32,
    /// The shard's time when the newest row was written.
    last_ms: u64,
    rows: u64,
    bytes: u64,
}

impl Default for Requests {
    fn default() -> Self {
        Requests { max: REQUESTS_MAX, buckets: Vec::new() }
    }
}

impl Requests {
    /// Whether the applied row need not say anything of it.
    pub fn is_default(&self) -> bool {
        *self == Requests::default()
    }

    /// The bucket for a row that is written now.
    pub fn place(&mut self, time_ms: u64, bytes: u64) -> u32 {
        let due = bucket(time_ms);
        let full = |it: &Bucket| {
            it.rows >= (self.max / SHARE).max(1) || it.bytes >= REQUEST_BYTES_MAX / SHARE
        };
        let number = match self.buckets.last() {
            Some(last) if last.number >= due && full(last) => last.number.saturating_add(1),
            Some(last) => last.number.max(due),
            None => due,
        };
        if self.buckets.last().is_none_or(|last| last.number != number) {
            self.buckets.push(Bucket { number, last_ms: time_ms, rows: 0, bytes: 0 });
        }
        let last = self.buckets.last_mut().expect("one was pushed if there was none");
        last.last_ms = last.last_ms.max(time_ms);
        last.rows += 1;
        last.bytes += bytes;
        number
    }

    /// The buckets in which a request may lie, the newest first.
    pub fn live(&self, time_ms: u64) -> Vec<u32> {
        let listed = self.buckets.iter().filter(|it| it.is_live(time_ms)).map(|it| it.number);
        self.unlisted(time_ms).chain(listed).rev().collect()
    }

    /// The first bucket whose rows are kept; those of all before it may go. Forgets what goes.
    pub fn retire(&mut self, time_ms: u64) -> u32 {
        let mut end = self.end(time_ms);
        while self.is_over() && self.buckets.len() > 1 {
            self.buckets.remove(0);
            end = end.max(self.buckets[0].number);
        }
        self.buckets.retain(|it| it.number >= end);
        end
    }

    /// As `retire` would say, without changing anything.
    pub fn retirable(&self, time_ms: u64) -> u32 {
        self.clone().retire(time_ms)
    }

    /// More is held than may be, and some of it may go.
    pub fn is_over(&self) -> bool {
        let Remembered { requests, bytes, requests_max } = self.remembered();
        requests > requests_max || bytes > REQUEST_BYTES_MAX
    }

    /// How much is held.
    pub fn remembered(&self) -> Remembered {
        Remembered {
            requests: self.buckets.iter().map(|it| it.rows).sum(),
            bytes: self.buckets.iter().map(|it| it.bytes).sum(),
            requests_max: self.max,
        }
    }

    /// The first bucket that time keeps.
    fn end(&self, time_ms: u64) -> u32 {
        let live = self.buckets.iter().filter(|it| it.is_live(time_ms)).map(|it| it.number);
        live.min().unwrap_or(u32::MAX).min(oldest_kept(time_ms))
    }

    /// Buckets of the last ten minutes that are not listed.
    fn unlisted(&self, time_ms: u64) -> impl DoubleEndedIterator<Item = u32> + use<> {
        let first = self.buckets.first().map_or(u32::MAX, |it| it.number);
        (oldest_kept(time_ms)..=bucket(time_ms)).filter(move |number| *number < first)
    }

    pub fn encode(&self, out: &mut Writer) {
        out.u64(self.max);
        out.u32(u32::try_from(self.buckets.len()).expect("there are few buckets"));
        for it in &self.buckets {
            out.u32(it.number);
            out.u64(it.last_ms);
            out.u64(it.rows);
            out.u64(it.bytes);
        }
    }

    pub fn decode(scan: &mut Scanner) -> Result<Requests, Malformed> {
        let max = scan.u64("a limit of requests")?;
        let count = scan.u32("a number of buckets")?;
        if count > BUCKETS_MAX {
            return Err(scan.malformed("few buckets of requests"));
        }
        let bucket = |_| {
            Ok(Bucket {
                number: scan.u32("a bucket's number")?,
                last_ms: scan.u64("a bucket's time")?,
                rows: scan.u64("a bucket's rows")?,
                bytes: scan.u64("a bucket's bytes")?,
            })
        };
        let buckets = (0..count).map(bucket).collect::<Result<_, Malformed>>()?;
        Ok(Requests { max, buckets })
    }
}

impl Bucket {
    /// Its newest row is young enough.
    fn is_live(&self, time_ms: u64) -> bool {
        bucket(self.last_ms) >= oldest_kept(time_ms)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::dedup::BUCKET_MS;

    const FIVE: u64 = BUCKET_MS;

    #[test]
    fn below_the_limit_a_bucket_is_five_minutes_of_the_shards_time() {
        let mut requests = Requests::default();
        for (time_ms, number) in
            [(0, 0), (FIVE - 1, 0), (FIVE, 1), (FIVE - 1, 1), (7 * FIVE, 7), (8 * FIVE, 8)]
        {
            assert_eq!(requests.place(time_ms, 50), number, "at {time_ms}");
        }
        assert_eq!(requests.live(8 * FIVE), [8, 7]);
        assert_eq!(requests.live(9 * FIVE), [8, 7]);
        assert_eq!(requests.live(10 * FIVE), [8]);
        assert_eq!(requests.retire(9 * FIVE), 7);
        assert_eq!(requests.remembered().requests, 2);
    }

    #[test]
    fn rows_from_before_buckets_were_listed_are_found_until_their_time_is_over() {
        let mut requests = Requests::default();
        assert_eq!(requests.live(7 * FIVE), [7, 6, 5]);
        requests.place(7 * FIVE, 50);
        assert_eq!(requests.live(7 * FIVE), [7, 6, 5]);
        assert_eq!(requests.live(9 * FIVE), [7]);
        assert_eq!(requests.retire(7 * FIVE), 5, "they are kept as well");
    }

    #[test]
    fn at_the_limit_the_oldest_go_first_and_the_newest_three_quarters_stay() {
        let mut requests = Requests { max: 8, ..Requests::default() };
        let placed: Vec<u32> = (0..9).map(|_| requests.place(0, 1)).collect();
        assert_eq!(placed, [0, 0, 1, 1, 2, 2, 3, 3, 4]);
        assert!(requests.is_over());
        assert_eq!(requests.retire(0), 1);
        assert!(!requests.is_over());
        // Bucket 0 may be one from before they were listed; nothing is in it any more.
        assert_eq!(requests.live(0), [4, 3, 2, 1, 0]);
        assert_eq!(requests.remembered().requests, 7);
        assert_eq!(requests.place(FIVE, 1), 4, "numbers are ahead of their time");
        assert_eq!(requests.place(9 * FIVE, 1), 9, "until time has caught up");
    }

    #[test]
    fn long_answers_are_bounded_in_bytes() {
        let mut requests = Requests::default();
        for _ in 0..5 {
            requests.place(0, REQUEST_BYTES_MAX / SHARE);
        }
        assert!(requests.is_over());
        assert_eq!(requests.retire(0), 1);
        assert_eq!(requests.remembered().bytes, REQUEST_BYTES_MAX);
    }

    #[test]
    fn it_survives_a_round_trip_and_no_truncation() {
        let mut requests = Requests { max: 4, ..Requests::default() };
        for number in 0..5 {
            requests.place(number * FIVE, 9);
        }
        let mut out = Writer::with_capacity(64);
        requests.encode(&mut out);
        let row = Bytes::from(out.into_vec());
        for len in 0..row.len() {
            assert!(Requests::decode(&mut Scanner::new(row.slice(..len))).is_err());
        }
        assert_eq!(Requests::decode(&mut Scanner::new(row)), Ok(requests));
    }
}
