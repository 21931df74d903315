//! Reads in process: hot from the block cache and from the memtable, small and large.

#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use statehouse_store::{
    Body, CollectionId, Command, CommandBatch, Condition, Config, Entry, Expiry, Field, Put,
    ReplicaId, Selection, Store, Target, Value, Write, WriteLimits,
};
use tempfile::TempDir;

const REPLICA: ReplicaId = ReplicaId(1);
const USERS: CollectionId = CollectionId(1);
const KEYS: u64 = 2_000;

fn put(key: String, len: usize) -> Command {
    let write = Write {
        target: Target { collection: USERS, key: Bytes::from(key) },
        condition: Condition::Any,
        request: None,
        expiry: Expiry::Never,
        writer: 0,
        model: None,
        limits: WriteLimits { state_bytes_max: 1 << 30, inline_bytes_max: 16 << 10 },
        answer: Bytes::new(),
    };
    let value = Value::Bytes(Bytes::from(vec![7; len]));
    Command::Put(Put { write, fields: vec![Field::new("h", value)] })
}

/// A store with states of several sizes; flushed to files if asked.
fn filled(dir: &TempDir, flushed: bool) -> Store {
    let open = || Store::open(dir.path(), Config::default()).unwrap();
    let store = open();
    store.create_replica(REPLICA).unwrap();
    let mut shard = store.shard(REPLICA).unwrap();
    let log = store.log(REPLICA).unwrap();
    let sizes = [("100", 100), ("1k", 1 << 10), ("4k", 4 << 10), ("16k", 16 << 10)];
    let mut entries: Vec<Vec<Command>> = sizes
        .iter()
        .map(|(name, len)| (0..KEYS).map(|key| put(format!("{name}-{key}"), *len)).collect())
        .collect();
    entries.push(vec![put("1m".into(), 1 << 20), put("8m".into(), 8 << 20)]);
    for (index, commands) in (1..).zip(entries) {
        let body = Body::Commands(CommandBatch { time_ms: 1, commands });
        let entry = Entry::new(index, 1, body);
        let (sender, receiver) = std::sync::mpsc::channel();
        let done = Box::new(move |result| sender.send(result).unwrap());
        log.append(vec![entry.clone()], done).unwrap();
        receiver.recv().unwrap().unwrap();
        let mut batch = store.apply_batch();
        shard.apply(&mut batch, &entry).unwrap();
        batch.commit().unwrap();
    }
    if !flushed {
        return store;
    }
    store.close().unwrap();
    drop((shard, log, store));
    open()
}

fn reads(criterion: &mut Criterion) {
    for (place, flushed) in [("memtable", false), ("cache", true)] {
        let dir = TempDir::new().unwrap();
        let store = filled(&dir, flushed);
        let reader = store.reader(REPLICA).unwrap();
        let mut group = criterion.benchmark_group(format!("read-{place}"));
        for size in ["100", "1k", "4k", "16k"] {
            // A few hundred keys stay cached whatever their size.
            let keys: Vec<String> = (0..500).map(|key| format!("{size}-{key}")).collect();
            for key in &keys {
                reader.get(USERS, key.as_bytes(), 1).unwrap().unwrap();
            }
            let mut turn = keys.iter().cycle();
            group.bench_function(format!("try_get {size}"), |bencher| {
                bencher.iter(|| {
                    let key = turn.next().expect("the keys go round").as_bytes();
                    black_box(reader.try_get(USERS, key, 1).unwrap())
                });
            });
        }
        for (size, len) in [("1m", 1 << 20), ("8m", 8 << 20)] {
            group.throughput(criterion::Throughput::Bytes(len));
            group.bench_function(format!("get_whole {size}"), |bencher| {
                let all = Selection::all();
                bencher
                    .iter(|| black_box(reader.get_whole(USERS, size.as_bytes(), &all, 1).unwrap()));
            });
        }
        group.finish();
        store.close().unwrap();
    }
}

criterion_group!(benches, reads);
criterion_main!(benches);
