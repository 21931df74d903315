//! Which rows run together, and how rows become a batch and a batch becomes rows. Pure.
//!
//! The rule: the device is free, so run now with what is there, earliest deadline first, as many
//! rows as the earliest deadline allows. A row that would come too late is dropped before it costs
//! anything. If not all that waits can be served in time, the most urgent rows are given up as far
//! as they would make the batch too small to be worth its cost.

use crate::cost::Cost;
use crate::tensor::Tensor;
use bytes::{Bytes, BytesMut};
use std::time::{Duration, Instant};

/// A batch is worth its cost if it serves this share of the rows per second that the best one
/// would.
const WORTHWHILE: f64 = 0.9;

/// What waits in one lane, earliest deadline first.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    /// The time.
    pub now: Instant,
    /// Deadlines in order; those without one come last.
    pub deadlines: &'a [Option<Instant>],
    /// When the row that waits longest came.
    pub oldest: Instant,
}

/// What a model allows.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Rows per batch.
    pub rows_max: usize,
    /// How long the oldest row may wait for a batch to fill.
    pub wait_max: Duration,
}

/// Why a batch is as large as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has all the rows it may have.
    Full,
    /// The device was free and these rows were there.
    Free,
    /// The oldest row had waited long enough.
    Waited,
    /// A deadline allowed no more rows.
    Deadline,
}

/// A decision about one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing to run before this time, unless more rows come.
    Wait(Instant),
    /// Drop the first `dropped` rows, run the `rows` after them (none if all were dropped).
    Run { dropped: usize, rows: usize, reason: Reason },
}

/// Decides what to run.
pub fn cut(waiting: Waiting<'_>, rules: Rules, cost: &Cost) -> Cut {
    let Waiting { now, deadlines, oldest } = waiting;
    let mut dropped = 0;
    let mut rows = 0;
    while dropped < deadlines.len() {
        rows = rows_in_time(now, &deadlines[dropped..], rules.rows_max, cost);
        if rows > 0 {
            break;
        }
        dropped += 1;
    }
    if rows == 0 {
        return Cut::Run { dropped, rows, reason: Reason::Deadline };
    }
    let here = (deadlines.len() - dropped).min(rules.rows_max);
    if rows < here && some_will_miss(now, &deadlines[dropped..], rules.rows_max, cost) {
        let (more, worthwhile) = worthwhile(now, &deadlines[dropped..], rules.rows_max, cost);
        dropped += more;
        rows = worthwhile;
    }
    let here = (deadlines.len() - dropped).min(rules.rows_max);
    let until = oldest + rules.wait_max;
    if dropped == 0 && rows == here && here < rules.rows_max && now < until {
        let in_time = |deadline| until + cost.estimate(here) <= deadline;
        if deadlines[0].is_none_or(in_time) {
            return Cut::Wait(until);
        }
    }
    let reason = match rows {
        rows if rows < here => Reason::Deadline,
        rows if rows == rules.rows_max => Reason::Full,
        _ if rules.wait_max > Duration::ZERO => Reason::Waited,
        _ => Reason::Free,
    };
    Cut::Run { dropped, rows, reason }
}

/// The largest batch that still meets the first row's deadline; 0 if none does.
fn rows_in_time(
    now: Instant,
    deadlines: &[Option<Instant>],
    rows_max: usize,
    cost: &Cost,
) -> usize {
    let here = deadlines.len().min(rows_max);
    let Some(deadline) = deadlines[0] else { return here };
    let fits = |rows: usize| now + cost.estimate(rows) <= deadline;
    if fits(here) {
        return here;
    }
    // Costs are known per power of two, so only those are worth trying.
    let mut rows = here.next_power_of_two() / 2;
    while rows > 0 {
        if fits(rows) {
            return rows;
        }
        rows /= 2;
    }
    // With nothing else to run, only what can't possibly be in time is dropped.
    usize::from(deadlines.len() == 1 && now + cost.at_least(1) <= deadline)
}

/// Whether serving every row from the first on, each batch as large as its deadline allows, makes a
/// later row late.
fn some_will_miss(
    mut now: Instant,
    mut deadlines: &[Option<Instant>],
    rows_max: usize,
    cost: &Cost,
) -> bool {
    while !deadlines.is_empty() {
        let rows = rows_in_time(now, deadlines, rows_max, cost);
        if rows == 0 {
            return true;
        }
        now += cost.estimate(rows);
        deadlines = &deadlines[rows..];
    }
    false
}

/// How many rows to give up so that the batch behind them is worth its cost, and its size. Without
/// this an overloaded device serves ever smaller batches to ever more urgent rows, and loses most
/// of them.
fn worthwhile(
    now: Instant,
    deadlines: &[Option<Instant>],
    rows_max: usize,
    cost: &Cost,
) -> (usize, usize) {
    let sizes: Vec<usize> = (0..deadlines.len())
        .map(|from| rows_in_time(now, &deadlines[from..], rows_max, cost))
        .collect();
    // Rows per second; a cost of zero means that nothing was measured yet.
    let rate = |rows: usize| rows as f64 / cost.estimate(rows).as_secs_f64().max(1e-9);
    let best = sizes.iter().map(|&rows| rate(rows)).fold(0.0, f64::max);
    let from = sizes.iter().position(|&rows| rows > 0 && rate(rows) >= best * WORTHWHILE);
    from.map_or((0, sizes[0]), |from| (from, sizes[from]))
}

/// How many rows that need so many bytes a batch may have: they stay within `bytes_max`, but one
/// row always runs.
pub fn rows_within(bytes_max: usize, row_needs: usize, rows_max: usize) -> usize {
    rows_max.min(bytes_max / row_needs.max(1)).max(1)
}

/// What was seen of a row that ran alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowPeak {
    /// Bytes of its inputs and states.
    pub row_bytes: usize,
    /// The most that these, its results and what lies between took at a time.
    pub peak_bytes: usize,
}

impl RowPeak {
    /// The bytes that a row of so many bytes needs while it runs: as many as the one that was
    /// seen, in proportion, and as many for results as for itself at least.
    pub fn needs(self, row_bytes: usize) -> usize {
        let seen = self.peak_bytes as u128 * row_bytes as u128;
        let seen = seen.checked_div(self.row_bytes as u128).unwrap_or(self.peak_bytes as u128);
        usize::try_from(seen).unwrap_or(usize::MAX).max(row_bytes.saturating_mul(2))
    }

    /// The one that needs more.
    pub fn or_more(self, other: RowPeak) -> RowPeak {
        if other.peak_bytes > self.peak_bytes { other } else { self }
    }
}

/// The rows that a batch is filled up to, if the device wants few different sizes.
pub fn padded(rows: usize, rows_max: usize, pads: bool) -> usize {
    if pads { rows.next_power_of_two().min(rows_max.max(rows)) } else { rows }
}

/// Joins equal rows along a new axis, repeating the first row up to `padded`.
pub fn gather(rows: &[&Tensor], batch_axis: usize, padded: usize) -> Tensor {
    let first = rows[0];
    let mut shape = first.shape.clone();
    shape.insert(batch_axis, padded);
    if rows.len() == 1 && padded == 1 {
        return Tensor { dtype: first.dtype, shape, data: first.data.clone() };
    }
    let outer: usize = first.shape[..batch_axis].iter().product();
    let inner = first.data.len().checked_div(outer).unwrap_or(0);
    let mut data = BytesMut::with_capacity(first.data.len() * padded);
    for part in 0..outer {
        let range = part * inner..(part + 1) * inner;
        for row in rows {
            data.extend_from_slice(&row.data[range.clone()]);
        }
        for _ in rows.len()..padded {
            data.extend_from_slice(&first.data[range.clone()]);
        }
    }
    Tensor { dtype: first.dtype, shape, data: data.freeze() }
}

/// Cuts the first `rows` rows out of a batch. `None` if the batch axis isn't `padded` long. Rows
/// share the batch's memory where a row is one piece of it.
pub fn scatter(
    batch: &Tensor,
    batch_axis: usize,
    rows: usize,
    padded: usize,
) -> Option<Vec<Tensor>> {
    if batch.shape.get(batch_axis) != Some(&padded) {
        return None;
    }
    let mut shape = batch.shape.clone();
    shape.remove(batch_axis);
    let outer: usize = shape[..batch_axis].iter().product();
    let row_bytes = batch.data.len() / padded.max(1);
    let inner = row_bytes.checked_div(outer).unwrap_or(0);
    let row = |row: usize| -> Bytes {
        if outer == 1 {
            return batch.data.slice(row * row_bytes..(row + 1) * row_bytes);
        }
        let mut data = BytesMut::with_capacity(row_bytes);
        for part in 0..outer {
            let start = (part * padded + row) * inner;
            data.extend_from_slice(&batch.data[start..start + inner]);
        }
        data.freeze()
    };
    Some(
        (0..rows)
            .map(|at| Tensor { dtype: batch.dtype, shape: shape.clone(), data: row(at) })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// One row costs 1 ms, and each doubling 1 ms more: 8 rows 4 ms, 64 rows 7 ms.
    fn cost() -> Cost {
        let mut cost = Cost::default();
        for power in 0..=6 {
            (0..400).for_each(|_| cost.record(1 << power, MS * (power + 1)));
        }
        cost
    }

    /// Cuts with rows_max 8; deadlines in tenths of ms from now, 0 for none; the oldest row came 1
    /// ms ago.
    fn decide(tenths: &[u32], wait_max: Duration) -> Cut {
        let now = Instant::now();
        let deadlines: Vec<Option<Instant>> =
            tenths.iter().map(|&left| (left > 0).then(|| now + MS / 10 * left)).collect();
        let waiting = Waiting { now, deadlines: &deadlines, oldest: now - MS };
        match cut(waiting, Rules { rows_max: 8, wait_max }, &cost()) {
            Cut::Wait(until) => Cut::Wait(now + (until - now)),
            run @ Cut::Run { .. } => run,
        }
    }

    fn run(dropped: usize, rows: usize, reason: Reason) -> Cut {
        Cut::Run { dropped, rows, reason }
    }

    #[test]
    fn a_row_needs_what_was_seen_in_proportion_and_as_much_again_for_results_at_least() {
        let peak = RowPeak { row_bytes: 8, peak_bytes: 80 };
        assert_eq!((peak.needs(8), peak.needs(4), peak.needs(0)), (80, 40, 0));
        let little = RowPeak { row_bytes: 8, peak_bytes: 9 };
        assert_eq!((little.needs(8), little.or_more(peak).needs(8)), (16, 80));
        // Nothing was seen, or a row of no bytes.
        assert_eq!(RowPeak::default().needs(8), 16);
        assert_eq!(RowPeak { row_bytes: 0, peak_bytes: 5 }.needs(0), 5);
        assert_eq!(peak.needs(usize::MAX), usize::MAX);
        assert_eq!(rows_within(100, 40, 8), 2);
        assert_eq!(rows_within(10, 40, 8), 1, "one row always runs");
    }

    #[test]
    fn runs_what_is_there() {
        assert_eq!(decide(&[0, 0, 0], Duration::ZERO), run(0, 3, Reason::Free));
        assert_eq!(decide(&[0; 20], Duration::ZERO), run(0, 8, Reason::Full));
        assert_eq!(decide(&[500, 600, 0], Duration::ZERO), run(0, 3, Reason::Free));
    }

    #[test]
    fn a_tight_deadline_makes_the_batch_smaller() {
        assert_eq!(decide(&[25, 500, 500, 500, 500], Duration::ZERO), run(0, 2, Reason::Deadline));
    }

    #[test]
    fn what_would_be_late_is_dropped_unless_it_is_alone_and_may_make_it() {
        assert_eq!(decide(&[9, 9, 500], Duration::ZERO), run(2, 1, Reason::Free));
        let now = Instant::now();
        let past = [Some(now - MS)];
        let waiting = Waiting { now, deadlines: &past, oldest: now - MS };
        let rules = Rules { rows_max: 8, wait_max: Duration::ZERO };
        assert_eq!(cut(waiting, rules, &cost()), run(1, 0, Reason::Deadline));
        let tight = [Some(now + MS.mul_f64(1.03))];
        let waiting = Waiting { now, deadlines: &tight, oldest: now - MS };
        assert_eq!(cut(waiting, rules, &cost()), run(0, 1, Reason::Free));
    }

    #[test]
    fn a_row_that_would_make_the_others_late_is_dropped() {
        // Alone the first takes 1 ms of the 4.5 that the eight others have, and they need 4.
        let now = Instant::now();
        let deadlines = [2, 5, 5, 5, 5, 5, 5, 5, 5].map(|ms| Some(now + MS * ms - MS / 2));
        let waiting = Waiting { now, deadlines: &deadlines, oldest: now };
        let rules = Rules { rows_max: 8, wait_max: Duration::ZERO };
        assert_eq!(cut(waiting, rules, &cost()), run(1, 8, Reason::Full));
    }

    #[test]
    fn waits_only_if_asked_and_only_while_deadlines_allow() {
        assert!(matches!(decide(&[0, 0], 5 * MS), Cut::Wait(_)));
        assert_eq!(decide(&[0, 0], MS), run(0, 2, Reason::Waited));
        assert_eq!(decide(&[40, 0], 5 * MS), run(0, 2, Reason::Waited));
        assert_eq!(decide(&[0; 8], 5 * MS), run(0, 8, Reason::Full));
    }

    #[test]
    fn pads_to_powers_of_two_only_if_asked() {
        assert_eq!(padded(5, 64, false), 5);
        assert_eq!(padded(5, 64, true), 8);
        assert_eq!(padded(33, 48, true), 48);
        assert_eq!(padded(1, 1, true), 1);
    }

    #[test]
    fn rows_survive_the_way_through_a_batch() {
        let row = |from: i64| Tensor::from_i64(vec![2, 3], &[0, 1, 2, 3, 4, 5].map(|v| v + from));
        let rows = [row(0).unwrap(), row(10).unwrap(), row(20).unwrap()];
        let references: Vec<&Tensor> = rows.iter().collect();
        for batch_axis in 0..=2 {
            let batch = gather(&references, batch_axis, 4);
            assert_eq!(batch.shape[batch_axis], 4);
            assert_eq!(batch.data.len(), 4 * rows[0].data.len());
            assert_eq!(scatter(&batch, batch_axis, 3, 4).unwrap(), rows);
        }
        let middle = gather(&references, 1, 3);
        assert_eq!(middle.to_f64()[..6], [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]);
        assert!(scatter(&middle, 1, 3, 4).is_none());
        assert!(scatter(&middle, 3, 3, 3).is_none());
        let alone = gather(&references[..1], 0, 1);
        assert_eq!(alone.data.as_ptr(), rows[0].data.as_ptr(), "one row is not copied");
    }
}
