//! Entries to bytes and back: what every append and every replay pays.

#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use statehouse_store::{
    Body, CollectionId, Command, CommandBatch, Condition, DType, Entry, Expiry, Field, Put,
    RequestTag, Target, Value, Write, WriteLimits,
};

fn entry(commands: usize, len: usize) -> Entry {
    let write = Write {
        target: Target { collection: CollectionId(1), key: Bytes::from_static(b"user-00001234") },
        condition: Condition::Version(77 << 16),
        request: Some(RequestTag { id: [5; 16], fingerprint: 6 }),
        expiry: Expiry::At(1),
        writer: 8,
        model: None,
        limits: WriteLimits { state_bytes_max: 1 << 30, inline_bytes_max: 16 << 10 },
        answer: Bytes::new(),
    };
    let value = Value::Tensor {
        dtype: DType::F32,
        shape: vec![1, len as u64 / 4],
        data: Bytes::from(vec![7; len]),
    };
    let fields = vec![Field::new("h", value)];
    let put = Command::Put(Put { write, fields });
    let batch = CommandBatch { time_ms: 1, commands: vec![put; commands] };
    Entry::new(1, 1, Body::Commands(batch))
}

fn encodings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("entry");
    for (commands, len) in [(1, 1_024), (64, 1_024), (64, 100)] {
        let entry = entry(commands, len);
        let bytes = entry.encode();
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("encode {commands} x {len} B"), |bencher| {
            // Made anew each time: an entry remembers its bytes.
            let made = || Entry::new(entry.index, entry.term, entry.body.clone());
            bencher.iter_batched(made, |it| black_box(it.encode()), BatchSize::SmallInput);
        });
        group.bench_function(format!("decode {commands} x {len} B"), |bencher| {
            bencher.iter(|| black_box(Entry::decode(bytes.clone()).unwrap()));
        });
    }
    group.finish();
}

criterion_group!(benches, encodings);
criterion_main!(benches);
