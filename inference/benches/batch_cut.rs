//! What deciding costs: queueing, cutting and taking batches, without a device.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use statehouse_inference::batch::{Cut, Rules};
use statehouse_inference::cost::Cost;
use statehouse_inference::queue::{LaneKey, Queue, Row};
use std::time::{Duration, Instant};

fn cut(criterion: &mut Criterion) {
    let mut cost = Cost::default();
    (0..=6).for_each(|power| cost.record(1 << power, Duration::from_micros(20 << power)));
    let rules = Rules { rows_max: 64, wait_max: Duration::ZERO };
    let key = LaneKey { model: 1, free_axes: Vec::new() };
    let mut group = criterion.benchmark_group("queue_cut_take");
    for waiting in [64_u64, 1024] {
        group.throughput(Throughput::Elements(waiting));
        group.bench_function(BenchmarkId::from_parameter(waiting), |bencher| {
            bencher.iter(|| {
                let now = Instant::now();
                let mut queue = Queue::default();
                for at in 0..waiting {
                    // Deadlines out of order, as callers with different limits have them.
                    let deadline = Some(now + Duration::from_millis(50 + (at * 37) % 50));
                    let (inputs, states) = (Vec::new(), Vec::new());
                    let done = Box::new(|_| ());
                    let row = Row { inputs, states, deadline, arrived: now, done };
                    queue.push(key.clone(), row);
                }
                while !queue.is_empty() {
                    match queue.decide(&key, now, rules, &cost) {
                        Cut::Run { dropped, rows, reason } => {
                            queue.take(&key, dropped, rows, reason);
                        }
                        Cut::Wait(_) => unreachable!("no waiting was allowed"),
                    }
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, cut);
criterion_main!(benches);
