//! Applying small commands: entries of many commands, several shards in one batch.

#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse_store::{
    Body, CollectionId, Command, CommandBatch, Condition, Config, Edit, Entry, Expiry, Field,
    Patch, Put, ReplicaId, RequestTag, Shard, Store, Target, Value, Write, WriteLimits,
};
use tempfile::TempDir;

const COMMANDS: u64 = 256;
const KEYS: u64 = 100_000;
const SHARDS: u64 = 4;
const RUN: Duration = Duration::from_secs(2);

/// Spreads numbers, the same way each time.
fn mix(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

fn write(number: u64, tagged: bool) -> Write {
    let key = Bytes::from(format!("user-{:08}", mix(number) % KEYS));
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mix(number + 1).to_le_bytes());
    id[8..].copy_from_slice(&number.to_le_bytes());
    Write {
        target: Target { collection: CollectionId(1), key },
        condition: Condition::Any,
        request: tagged.then_some(RequestTag { id, fingerprint: 1 }),
        expiry: Expiry::Never,
        writer: 0,
        model: None,
        limits: WriteLimits { state_bytes_max: 1 << 30, inline_bytes_max: 16 << 10 },
        answer: Bytes::new(),
    }
}

fn command(kind: &str, number: u64) -> Command {
    let field = |len| {
        let value = Value::Bytes(Bytes::from(vec![7; len]));
        Field::new("h", value)
    };
    match kind {
        "put 100 B" => Command::Put(Put { write: write(number, false), fields: vec![field(100)] }),
        "put 1 KiB" => {
            Command::Put(Put { write: write(number, false), fields: vec![field(1_024)] })
        }
        "put 100 B with request id" => {
            Command::Put(Put { write: write(number, true), fields: vec![field(100)] })
        }
        _ => Command::Patch(Patch {
            write: write(number, false),
            edits: vec![Edit::Set(field(100))],
        }),
    }
}

fn entry(kind: &str, index: u64) -> Entry {
    let commands = (0..COMMANDS).map(|n| command(kind, index * COMMANDS + n)).collect();
    let body = Body::Commands(CommandBatch { time_ms: index, commands });
    Entry::new(index, 1, body)
}

/// Nanoseconds that this thread has been on a CPU: what applying costs, whoever else runs.
fn on_cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

fn run(kind: &str) {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    let mut shards: Vec<Shard> = (1..=SHARDS)
        .map(|id| {
            store.create_replica(ReplicaId(id)).unwrap();
            store.shard(ReplicaId(id)).unwrap()
        })
        .collect();
    let (mut wall, mut cpu) = (Duration::ZERO, 0);
    let mut index = 0;
    while wall < RUN {
        index += 1;
        let entry = entry(kind, index);
        let (started, cpu_before) = (Instant::now(), on_cpu());
        let mut batch = store.apply_batch();
        for shard in &mut shards {
            shard.apply(&mut batch, &entry).unwrap();
        }
        batch.commit().unwrap();
        cpu += on_cpu() - cpu_before;
        wall += started.elapsed();
    }
    let commands = index * COMMANDS * SHARDS;
    println!(
        "{kind:<26} {:>8.0} commands/s, {:>5.2} us of CPU each",
        commands as f64 / wall.as_secs_f64(),
        cpu as f64 / 1_000.0 / commands as f64,
    );
    store.close().unwrap();
}

fn main() {
    for kind in ["put 100 B", "put 1 KiB", "put 100 B with request id", "patch 100 B"] {
        run(kind);
    }
}
