//! Much data, little memory: what a start costs does not grow with what is on disk.

use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse_store::{
    Body, Command, CommandBatch, Condition, Config, Entry, Expiry, Field, Put, ReplicaId, Store,
    Value, Write,
};
use tempfile::TempDir;

use crate::support::{USERS, noise, wait, write};

const REPLICAS: u64 = 16;
const STATE_BYTES: usize = 16 << 10;
const STATES_PER_ENTRY: u64 = 64;

/// Resident memory of this process, in MiB.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

fn entry(index: u64, noise: &Bytes) -> Entry {
    let put = |number: u64| {
        let at = (index * 131 + number * 17) as usize % (noise.len() - STATE_BYTES);
        let value = Value::Bytes(noise.slice(at..at + STATE_BYTES));
        let write = Write {
            condition: Condition::Any,
            expiry: Expiry::Never,
            ..write(&format!("user-{index}-{number}"))
        };
        Command::Put(Put { write, fields: vec![Field::new("h", value)] })
    };
    let commands = (0..STATES_PER_ENTRY).map(put).collect();
    Entry::new(index, 1, Body::Commands(CommandBatch { time_ms: 1, commands }))
}

/// Fills a store through the front door, all replicas in turn.
fn fill(store: &Store, bytes: u64) {
    let mut shards = Vec::new();
    for id in 1..=REPLICAS {
        store.create_replica(ReplicaId(id)).unwrap();
        shards.push((store.shard(ReplicaId(id)).unwrap(), store.log(ReplicaId(id)).unwrap()));
    }
    let noise = noise(1, 1 << 20);
    let rounds = bytes / (REPLICAS * STATES_PER_ENTRY * STATE_BYTES as u64);
    for index in 1..=rounds {
        let entry = entry(index, &noise);
        for (shard, log) in &mut shards {
            wait(|done| log.append(vec![entry.clone()], done)).unwrap();
            let mut batch = store.apply_batch();
            shard.apply(&mut batch, &entry).unwrap();
            batch.commit().unwrap();
            if index % 8 == 0 {
                let flushed = log.flushed().unwrap().index;
                wait(|done| log.purge_through(flushed.min(index - 1), done)).unwrap();
            }
        }
    }
}

/// Not a test of its own: fills a directory and dies without closing, or opens one, says what
/// that cost, and closes it.
#[test]
#[ignore = "started by the test below as a process of its own"]
fn child() {
    let Ok(dir) = std::env::var("STATEHOUSE_SIZE_DIR") else { return };
    let mib: u64 = std::env::var("MIB").unwrap().parse().unwrap();
    let (before, started) = (resident_mib(), Instant::now());
    let store = Store::open(dir, Config::default()).unwrap();
    let took = started.elapsed();
    if mib > 0 {
        fill(&store, mib << 20);
        let written = |what: &str| store.ticker(what).unwrap() >> 20;
        println!(
            "filled {mib} MiB; to the write-ahead log {} MiB, flushed {} MiB, compacted {} MiB; \
             resident {} MiB",
            written("rocksdb.wal.bytes"),
            written("rocksdb.flush.write.bytes"),
            written("rocksdb.compact.write.bytes"),
            resident_mib()
        );
        std::process::exit(0);
    }
    let grown = resident_mib() - before;
    println!("open took {took:?} and {grown} MiB of memory; {:?}", store.stats().memory);
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(grown < 150, "{grown} MiB");
    let reader = store.reader(ReplicaId(1)).unwrap();
    assert!(reader.get(USERS, b"user-1-1", 1).unwrap().is_some());
    store.close().unwrap();
}

#[test]
#[ignore = "writes MIB mebibytes (default 1,024) and takes minutes"]
fn a_start_with_much_data_is_quick_and_small() {
    let dir = TempDir::new().unwrap();
    let mib = std::env::var("MIB").unwrap_or("1024".into());
    for (what, mib) in [("fill", &mib[..]), ("after a crash", "0"), ("after a close", "0")] {
        println!("{what}:");
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "size::child", "--ignored", "--nocapture"])
            .env("STATEHOUSE_SIZE_DIR", dir.path())
            .env("MIB", mib)
            .status()
            .unwrap();
        assert!(child.success(), "{what}");
    }
}

#[test]
fn an_empty_store_of_16_replicas_is_small() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    for id in 1..=REPLICAS {
        store.create_replica(ReplicaId(id)).unwrap();
    }
    let held = store.stats().memory;
    println!("{held:?}, resident {} MiB with all tests beside it", resident_mib());
    assert!(held.memtable_bytes < 16 << 20, "{held:?}");
    store.close().unwrap();
}
