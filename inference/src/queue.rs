//! Rows that wait for the device: per model, earliest deadline first, bounded over all. Pure but
//! for the callbacks it carries; the time is passed in.
//!
//! Only rows of equal shapes can share a batch, so a model whose axes are free has a lane per
//! shape.

use crate::batch::{Cut, Rules, Waiting, cut};
use crate::cost::Cost;
use crate::error::Error;
use crate::tensor::Tensor;
use crate::worker::Done;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// A loaded model's number, never reused by a worker.
pub type ModelId = u64;

/// Rows without a deadline are ordered as if they had this long.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How many full batches ahead a decision looks.
const WINDOW_BATCHES: usize = 8;

/// One request.
pub struct Row {
    /// In declared order.
    pub inputs: Vec<Tensor>,
    /// In declared order.
    pub states: Vec<Tensor>,
    /// When the answer is worthless.
    pub deadline: Option<Instant>,
    /// When it was queued.
    pub arrived: Instant,
    /// Who waits for it.
    pub done: Done,
}

/// Rows that can share a batch: one model, and the lengths of its free axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// Whose rows.
    pub model: ModelId,
    /// Empty if the model's shapes are fixed.
    pub free_axes: Vec<usize>,
}

/// Earliest deadline first, then first come first served.
type Order = (Instant, u64);

/// All waiting rows.
#[derive(Default)]
pub struct Queue {
    lanes: HashMap<LaneKey, BTreeMap<Order, Row>>,
    rows: usize,
    arrivals: u64,
}

/// Rows taken out of the queue.
pub struct Taken {
    /// Too late to run.
    pub dropped: Vec<Row>,
    /// To run together; may be empty.
    pub rows: Vec<Row>,
    /// Why so many.
    pub reason: crate::batch::Reason,
}

impl Queue {
    /// How many rows wait.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// How many rows of a model wait.
    pub fn rows_of(&self, model: ModelId) -> usize {
        self.lanes.iter().filter(|(key, _)| key.model == model).map(|(_, lane)| lane.len()).sum()
    }

    /// Adds a row. The caller has checked the bound.
    pub fn push(&mut self, key: LaneKey, row: Row) {
        self.arrivals += 1;
        let order = (row.deadline.unwrap_or(row.arrived + PATIENCE), self.arrivals);
        self.lanes.entry(key).or_default().insert(order, row);
        self.rows += 1;
    }

    /// How many rows would run before a new one with this deadline, over all lanes.
    pub fn ahead_of(&self, deadline: Instant) -> usize {
        let before = (deadline, u64::MAX);
        self.lanes
            .values()
            .map(|lane| match lane.last_key_value() {
                // The usual case of equal time limits, without a walk.
                Some((last, _)) if *last <= before => lane.len(),
                Some(_) => lane.range(..=before).count(),
                None => 0,
            })
            .sum()
    }

    /// The lane whose first row is the most urgent of all that satisfy `wanted`.
    pub fn most_urgent(&self, wanted: impl Fn(&LaneKey) -> bool) -> Option<&LaneKey> {
        self.lanes
            .iter()
            .filter(|(key, _)| wanted(key))
            .filter_map(|(key, lane)| lane.first_key_value().map(|(order, _)| (order, key)))
            .min_by_key(|(order, _)| **order)
            .map(|(_, key)| key)
    }

    /// Bytes of a row of a lane: all have the same shapes.
    pub fn row_bytes(&self, key: &LaneKey) -> usize {
        let first = self.lanes[key].first_key_value();
        let tensors = first.map(|(_, row)| row.inputs.iter().chain(&row.states));
        tensors.into_iter().flatten().map(|tensor| tensor.data.len()).sum()
    }

    /// What to run of a lane.
    pub fn decide(&self, key: &LaneKey, now: Instant, rules: Rules, cost: &Cost) -> Cut {
        let lane = &self.lanes[key];
        let window = lane.iter().take(WINDOW_BATCHES * rules.rows_max);
        let deadlines: Vec<Option<Instant>> = window.map(|(_, row)| row.deadline).collect();
        let oldest = if rules.wait_max == Duration::ZERO {
            now
        } else {
            lane.values().map(|row| row.arrived).min().unwrap_or(now)
        };
        cut(Waiting { now, deadlines: &deadlines, oldest }, rules, cost)
    }

    /// Takes the rows that a decision names.
    pub fn take(
        &mut self,
        key: &LaneKey,
        dropped: usize,
        rows: usize,
        reason: crate::batch::Reason,
    ) -> Taken {
        let lane = self.lanes.get_mut(key).expect("the decision was made about this lane");
        let mut first = |count: usize| -> Vec<Row> {
            (0..count).map_while(|_| lane.pop_first()).map(|(_, row)| row).collect()
        };
        let taken = Taken { dropped: first(dropped), rows: first(rows), reason };
        self.rows -= taken.dropped.len() + taken.rows.len();
        if lane.is_empty() {
            self.lanes.remove(key);
        }
        taken
    }

    /// Takes every row of a model.
    pub fn clear(&mut self, model: ModelId) -> Vec<Row> {
        let keys: Vec<LaneKey> =
            self.lanes.keys().filter(|key| key.model == model).cloned().collect();
        let lanes = keys.iter().filter_map(|key| self.lanes.remove(key));
        let rows: Vec<Row> = lanes.flat_map(BTreeMap::into_values).collect();
        self.rows -= rows.len();
        rows
    }

    /// Takes every row.
    pub fn clear_all(&mut self) -> Vec<Row> {
        self.rows = 0;
        self.lanes.drain().flat_map(|(_, lane)| lane.into_values()).collect()
    }
}

impl Row {
    /// Answers a row that was not run.
    pub fn refuse(self, error: Error) {
        (self.done)(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Reason;

    fn key(model: ModelId, free_axes: &[usize]) -> LaneKey {
        LaneKey { model, free_axes: free_axes.to_vec() }
    }

    fn row(now: Instant, deadline_ms: Option<u64>) -> Row {
        let deadline = deadline_ms.map(|ms| now + Duration::from_millis(ms));
        Row { inputs: vec![], states: vec![], deadline, arrived: now, done: Box::new(|_| ()) }
    }

    #[test]
    fn lanes_keep_models_and_shapes_apart() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (model, axes, ms) in [(1, &[][..], 30), (2, &[4], 20), (2, &[5], 10), (2, &[4], 40)] {
            queue.push(key(model, axes), row(now, Some(ms)));
        }
        assert_eq!((queue.len(), queue.rows_of(2)), (4, 3));
        assert_eq!(queue.most_urgent(|_| true), Some(&key(2, &[5])));
        assert_eq!(queue.most_urgent(|key| key.model == 1), Some(&key(1, &[])));
        let taken = queue.take(&key(2, &[4]), 0, 9, Reason::Free);
        assert_eq!((taken.dropped.len(), taken.rows.len(), queue.len()), (0, 2, 2));
        assert_eq!(queue.clear(2).len(), 1);
        assert_eq!(queue.clear_all().len(), 1);
        assert!(queue.is_empty());
    }

    #[test]
    fn only_what_is_more_urgent_is_ahead() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for ms in [10, 20, 30] {
            queue.push(key(1, &[]), row(now, Some(ms)));
        }
        queue.push(key(1, &[]), row(now, None));
        let at = |ms| now + Duration::from_millis(ms);
        assert_eq!(queue.ahead_of(at(5)), 0);
        assert_eq!(queue.ahead_of(at(20)), 2, "an equal deadline that came first is ahead");
        assert_eq!(queue.ahead_of(at(3_600_000)), 4, "no deadline is ten seconds");
    }
}
