//! Runs lanes, closed-loop or open-loop, and gathers what they measured.
//!
//! Open loop: calls are due at fixed times whatever the answers do, and a latency counts from when
//! the call was due, so that a stall is not hidden by the calls it kept from being made.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use hdrhistogram::Histogram;
use tokio::sync::mpsc;

use super::lane::{Done, Lane};
use super::report::Figures;
use super::workload::Workload;

/// Latencies above this are counted as this, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;

/// How long answers under way may take once the time is up.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// When calls are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As soon as one is answered.
    Closed,
    /// This many per second, over all lanes.
    Open(f64),
}

/// How long, and how much at a time.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// When calls are made.
    pub pace: Pace,
    /// Calls under way on each lane at most.
    pub in_flight: usize,
    /// Not counted.
    pub warmup: Duration,
    /// Counted.
    pub duration: Duration,
}

struct Meter {
    from: Instant,
    until: Instant,
    latency: Histogram<u64>,
    answers: u64,
    bytes: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Meter {
    fn record(&mut self, due: Instant, answer: Result<u64, String>) {
        let now = Instant::now();
        if now < self.from || now > self.until {
            return;
        }
        match answer {
            Ok(bytes) => {
                let us = now.duration_since(due).as_micros() as u64;
                self.latency.saturating_record(us.clamp(1, LATENCY_US_MAX));
                self.answers += 1;
                self.bytes += bytes;
            }
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert(error);
            }
        }
    }
}

/// Runs all lanes to the end of the plan.
pub async fn drive(lanes: Vec<(Lane, Workload)>, plan: Plan) -> anyhow::Result<Figures> {
    let count = lanes.len().max(1) as f64;
    let from = Instant::now() + plan.warmup;
    let until = from + plan.duration;
    let tasks = lanes.into_iter().enumerate().map(|(at, (lane, workload))| {
        let meter = Meter {
            from,
            until,
            latency: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("fixed bounds"),
            answers: 0,
            bytes: 0,
            errors: 0,
            first_error: None,
        };
        tokio::spawn(async move {
            match plan.pace {
                Pace::Closed => closed(lane, workload, plan.in_flight, meter).await,
                Pace::Open(rate) => {
                    let period = Duration::from_secs_f64(count / rate);
                    let phase = period.mul_f64(at as f64 / count);
                    open(lane, workload, plan.in_flight, (period, phase), meter).await
                }
            }
        })
    });
    let mut figures = Figures::empty(plan.duration, LATENCY_US_MAX);
    for meter in try_join_all(tasks).await? {
        let meter = meter?;
        figures.latency.add(&meter.latency)?;
        figures.answers += meter.answers;
        figures.bytes += meter.bytes;
        figures.errors += meter.errors;
        figures.first_error = figures.first_error.or(meter.first_error);
    }
    Ok(figures)
}

async fn closed(
    mut lane: Lane,
    mut workload: Workload,
    in_flight: usize,
    mut meter: Meter,
) -> anyhow::Result<Meter> {
    let mut due = HashMap::with_capacity(in_flight);
    let mut next_id = 0;
    for _ in 0..in_flight {
        start(&mut lane, &mut workload, &mut next_id, Instant::now(), &mut due).await?;
    }
    while !due.is_empty() {
        finish(lane.next().await?, &mut due, &mut meter);
        if Instant::now() < meter.until {
            start(&mut lane, &mut workload, &mut next_id, Instant::now(), &mut due).await?;
        }
    }
    Ok(meter)
}

async fn open(
    mut lane: Lane,
    mut workload: Workload,
    in_flight: usize,
    (period, phase): (Duration, Duration),
    mut meter: Meter,
) -> anyhow::Result<Meter> {
    let mut under_way = HashMap::with_capacity(in_flight);
    let mut next_id = 0;
    let mut due = due_times(Instant::now() + phase, period, meter.until)?;
    let mut over = false;
    while !over {
        if under_way.len() >= in_flight {
            finish(lane.next().await?, &mut under_way, &mut meter);
            continue;
        }
        tokio::select! {
            due = due.recv() => match due {
                Some(due) => {
                    start(&mut lane, &mut workload, &mut next_id, due, &mut under_way).await?;
                }
                None => over = true,
            },
            done = lane.next(), if !under_way.is_empty() => {
                finish(done?, &mut under_way, &mut meter);
            }
        }
    }
    let drain = async {
        while !under_way.is_empty() {
            finish(lane.next().await?, &mut under_way, &mut meter);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DRAIN_MAX, drain).await??;
    Ok(meter)
}

/// Tells each time when it has come. A thread of its own sleeps until then: an async timer is up
/// to two milliseconds late, more than many a call takes.
fn due_times(
    first: Instant,
    period: Duration,
    until: Instant,
) -> std::io::Result<mpsc::UnboundedReceiver<Instant>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let tell = move || {
        let mut due = first;
        while due < until {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.send(due).is_err() {
                return;
            }
            due += period;
        }
    };
    std::thread::Builder::new().name("pace".into()).spawn(tell)?;
    Ok(receiver)
}

async fn start(
    lane: &mut Lane,
    workload: &mut Workload,
    next_id: &mut u64,
    due: Instant,
    under_way: &mut HashMap<u64, Instant>,
) -> anyhow::Result<()> {
    under_way.insert(*next_id, due);
    lane.start(*next_id, workload.draw()).await?;
    *next_id += 1;
    Ok(())
}

fn finish((id, answer): Done, under_way: &mut HashMap<u64, Instant>, meter: &mut Meter) {
    if let Some(due) = under_way.remove(&id) {
        meter.record(due, answer);
    }
}
