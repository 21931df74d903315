//! What a run costs on the CPU: GRU steps of two sizes at three batch sizes, and the whole way of a
//! batch through the worker's pure parts.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use safetensors::tensor::{Dtype, TensorView, serialize};
use statehouse_inference::batch::{gather, scatter};
use statehouse_inference::{DType, Model, Tensor, flex};
use std::collections::BTreeMap;
use std::hint::black_box;

const INPUTS: usize = 64;
const HEAD: usize = 128;

/// A GRU cell and a two-layer head.
fn scorer(hidden: usize) -> Model {
    let shapes = [
        ("gru.weight_ih", vec![3 * hidden, INPUTS]),
        ("gru.weight_hh", vec![3 * hidden, hidden]),
        ("gru.bias_ih", vec![3 * hidden]),
        ("gru.bias_hh", vec![3 * hidden]),
        ("fc1.weight", vec![HEAD, hidden]),
        ("fc1.bias", vec![HEAD]),
        ("fc2.weight", vec![1, HEAD]),
        ("fc2.bias", vec![1]),
    ];
    let raw: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(_, shape)| {
            let count: usize = shape.iter().product();
            (0..count).flat_map(|at| ((at % 13) as f32 * 0.01 - 0.06).to_le_bytes()).collect()
        })
        .collect();
    let views = shapes.iter().zip(&raw).map(|((name, shape), raw)| {
        (name.to_string(), TensorView::new(Dtype::F32, shape.clone(), raw).expect("fits"))
    });
    let manifest = format!(
        "name = \"m\"\nformat = \"safetensors\"\n[architecture]\nkind = \"gru\"\n\
         inputs = {INPUTS}\n\
         hidden = {hidden}\nhead = [{HEAD}, 1]\noutput_activation = \"sigmoid\"\n\
         [[state]]\nfield = \"h\"\ninput = \"h_in\"\noutput = \"h_out\"\n"
    );
    let files = BTreeMap::from([
        ("model.toml".to_string(), Bytes::from(manifest)),
        ("model.safetensors".to_string(), Bytes::from(serialize(views, None).expect("serializes"))),
    ]);
    Model::from_files(&files).expect("a valid model")
}

fn gru(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gru_scorer");
    for hidden in [64, 128] {
        let model = scorer(hidden);
        for rows in [1, 8, 64] {
            let mut runner = flex().expect("a CPU").load(model.program().clone()).expect("loads");
            let values = |width: usize| vec![0.25_f32; rows * width];
            let x = Tensor::from_f32(vec![rows, INPUTS], &values(INPUTS)).expect("fits");
            let h = Tensor::from_f32(vec![rows, hidden], &values(hidden)).expect("fits");
            group.throughput(Throughput::Elements(rows as u64));
            group.bench_function(BenchmarkId::new(format!("h{hidden}"), rows), |bencher| {
                bencher.iter(|| runner.run(vec![x.clone(), h.clone()]).expect("runs"));
            });
        }
    }
    group.finish();
}

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gather_scatter");
    let rows: Vec<Tensor> =
        (0..64).map(|_| Tensor::zeros(DType::F32, vec![64]).expect("fits")).collect();
    let references: Vec<&Tensor> = rows.iter().collect();
    group.throughput(Throughput::Elements(64));
    group.bench_function("64_rows_of_256_bytes", |bencher| {
        bencher.iter(|| {
            let batch = gather(black_box(&references), 0, 64);
            scatter(&batch, 0, 64, 64).expect("a batch axis")
        });
    });
    group.finish();
}

criterion_group!(benches, gru, rows);
criterion_main!(benches);
