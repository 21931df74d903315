//! What a model has done since it was loaded, for metrics.

use crate::batch::Reason;
use crate::histogram::Histogram;
use std::time::Duration;

/// Counters of one loaded model.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Rows answered with a result.
    pub rows: u64,
    /// Batches run.
    pub batches: u64,
    /// Rows answered with an error of the run or of their own result.
    pub failed: u64,
    /// Rows refused or dropped because the answer would have come too late.
    pub late: u64,
    /// Rows refused because the queue was full.
    pub overloaded: u64,
    /// Rows waiting now.
    pub queued: usize,
    /// Rows per batch.
    pub batch_rows: Histogram,
    /// Microseconds from a row's arrival to its batch's start.
    pub queued_us: Histogram,
    /// Microseconds per batch: gathering, running, reading back.
    pub ran_us: Histogram,
    /// Batches by why they were as large as they were.
    pub reasons: Reasons,
}

/// Batches by [`Reason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reasons {
    /// All the rows they may have.
    pub full: u64,
    /// The device was free.
    pub free: u64,
    /// The oldest row had waited long enough.
    pub waited: u64,
    /// A deadline allowed no more rows.
    pub deadline: u64,
}

impl Stats {
    /// Counts a batch.
    pub fn batch(&mut self, rows: usize, ran: Duration, reason: Reason) {
        self.batches += 1;
        self.batch_rows.record(rows as u64);
        self.ran_us.record(micros(ran));
        match reason {
            Reason::Full => self.reasons.full += 1,
            Reason::Free => self.reasons.free += 1,
            Reason::Waited => self.reasons.waited += 1,
            Reason::Deadline => self.reasons.deadline += 1,
        }
    }

    /// Counts how long a row waited.
    pub fn waited(&mut self, queued: Duration) {
        self.queued_us.record(micros(queued));
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
