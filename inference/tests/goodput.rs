//! Overload in simulated time: twice the work that the device can do arrives, each row with a
//! deadline. Most of the device's capacity must still come out as answers in time.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_inference::batch::{Cut, Rules};
use statehouse_inference::cost::Cost;
use statehouse_inference::queue::{LaneKey, Queue, Row};
use std::time::{Duration, Instant};

const ROWS: usize = 20_000;
const ROWS_MAX: usize = 64;
/// The share of the device's capacity that must be answered in time.
const GOODPUT_MIN: f64 = 0.85;

/// A batch costs 200 us and 20 us per row: at 64 rows about 43,000 rows per second.
fn cost_of(rows: usize) -> Duration {
    Duration::from_micros(200 + 20 * rows as u64)
}

/// Rows arrive at `load` times the device's capacity; returns the answers in time per capacity.
fn goodput(load: f64, seed: u64) -> (f64, usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let per_row = cost_of(ROWS_MAX).as_secs_f64() / ROWS_MAX as f64;
    let start = Instant::now();
    let mut cost = Cost::default();
    (0..=6).for_each(|power| cost.record(1 << power, cost_of(1 << power)));
    let rules = Rules { rows_max: ROWS_MAX, wait_max: Duration::ZERO };
    let key = LaneKey { model: 1, free_axes: Vec::new() };
    let mut queue = Queue::default();
    let (mut now, mut next_arrival) = (start, start);
    let (mut arrived, mut in_time, mut late) = (0, 0_usize, 0_usize);
    while arrived < ROWS || !queue.is_empty() {
        while arrived < ROWS && next_arrival <= now {
            let deadline =
                Some(next_arrival + Duration::from_micros(random.random_range(2_000..20_000)));
            let done = Box::new(|_| ());
            let row = Row { inputs: vec![], states: vec![], deadline, arrived: next_arrival, done };
            queue.push(key.clone(), row);
            arrived += 1;
            let gap = -per_row / load * (1.0 - random.random::<f64>()).ln();
            next_arrival += Duration::from_secs_f64(gap);
        }
        if queue.is_empty() {
            now = now.max(next_arrival);
            continue;
        }
        let Cut::Run { dropped, rows, reason } = queue.decide(&key, now, rules, &cost) else {
            unreachable!("no waiting was allowed");
        };
        let taken = queue.take(&key, dropped, rows, reason);
        if taken.rows.is_empty() {
            continue;
        }
        // A run varies by a tenth.
        let took = cost_of(taken.rows.len()).mul_f64(random.random_range(0.95..1.05));
        now += took;
        cost.record(taken.rows.len(), took);
        for row in taken.rows {
            if row.deadline.is_none_or(|deadline| now <= deadline) {
                in_time += 1;
            } else {
                late += 1;
            }
        }
    }
    let capacity = now.duration_since(start).as_secs_f64() / per_row;
    (in_time as f64 / capacity, late)
}

#[test]
fn overload_does_not_waste_the_device() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(42);
    println!("SEED={seed}");
    for load in [1.2, 2.0, 4.0] {
        let (goodput, late) = goodput(load, seed);
        println!("load {load}: {:.0} % of capacity in time, {late} late", goodput * 100.0);
        assert!(goodput >= GOODPUT_MIN, "load {load}: {goodput:.2}");
        assert!(late <= ROWS / 100, "load {load}: {late} rows ran and came late");
    }
}

#[test]
fn below_saturation_everything_is_in_time() {
    let (goodput, late) = goodput(0.5, 1);
    println!("load 0.5: {:.0} % of capacity in time, {late} late", goodput * 100.0);
    assert_eq!(late, 0);
    assert!(goodput > 0.49, "{goodput:.2}");
}
