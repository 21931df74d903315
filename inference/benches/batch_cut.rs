//! What a row costs beside the run: queueing, cutting and taking batches, and the whole way through
//! a worker whose device does nothing.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use safetensors::tensor::{Dtype, TensorView, serialize};
use statehouse_inference::batch::{Cut, Rules};
use statehouse_inference::cost::Cost;
use statehouse_inference::queue::{LaneKey, Queue, Row};
use statehouse_inference::{
    Config, DType, Device, DeviceKind, Error, Model, Program, Request, Runner, Tensor, Worker,
};
use std::collections::BTreeMap;
use std::sync::Arc;
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

/// A device that answers its first input.
struct Echo;

impl Device for Echo {
    fn name(&self) -> String {
        "echo".into()
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Cpu
    }

    fn load(&mut self, _: Arc<Program>) -> Result<Box<dyn Runner>, Error> {
        Ok(Box::new(Echo))
    }

    fn pads_batches(&self) -> bool {
        false
    }
}

impl Runner for Echo {
    fn run(&mut self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        Ok(inputs.into_iter().take(1).collect())
    }
}

/// Everything a row costs beside the run itself: submit, queue, gather, scatter, answer.
fn worker(criterion: &mut Criterion) {
    const ROWS: usize = 256;
    let handle = Worker::start(Box::new(Echo), Config::default()).expect("starts");
    let manifest = "name = \"echo\"\nformat = \"safetensors\"\n[architecture]\n\
                    kind = \"mlp\"\nsizes = [64, 64]\n";
    let weights = vec![0_u8; 64 * 64 * 4];
    let view = |shape: &[usize]| {
        let bytes = shape.iter().product::<usize>() * 4;
        TensorView::new(Dtype::F32, shape.to_vec(), &weights[..bytes]).expect("fits")
    };
    let file = serialize([("fc1.weight", view(&[64, 64])), ("fc1.bias", view(&[64]))], None);
    let files = BTreeMap::from([
        ("model.toml".to_string(), Bytes::from(manifest)),
        ("model.safetensors".to_string(), Bytes::from(file.expect("serializes"))),
    ]);
    let model = Model::from_files(&files).expect("a valid model");
    let model = handle.load(model).expect("loads");
    let row = Tensor::zeros(DType::F32, vec![64]).expect("fits");
    let mut group = criterion.benchmark_group("worker_round_trip");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function(BenchmarkId::from_parameter(ROWS), |bencher| {
        bencher.iter(|| {
            let (sender, answers) = std::sync::mpsc::sync_channel(ROWS);
            for _ in 0..ROWS {
                let sender = sender.clone();
                let request = Request {
                    model: model.clone(),
                    inputs: vec![row.clone()],
                    states: Vec::new(),
                    deadline: None,
                    done: Box::new(move |answer| drop(sender.send(answer))),
                };
                handle.submit(request).expect("there is room");
            }
            drop(sender);
            answers.iter().filter(Result::is_ok).count()
        });
    });
    group.finish();
    handle.shutdown();
}

criterion_group!(benches, cut, worker);
criterion_main!(benches);
