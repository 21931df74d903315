//! Appends through the commit thread: 64 appenders of 1 KiB over 16 replicas, each waiting for
//! its sync, beside a bare loop of `fdatasync` on the same disk.
//!
//! Rates are the disk's and those of whoever else uses the machine; the processor time and the
//! bytes of an append and of a sync are the store's.

#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::fs::File;
use std::io::Write as _;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use statehouse_store::{
    Body, CollectionId, Command, CommandBatch, Condition, Config, Entry, Expiry, Field, Log, Put,
    ReplicaId, Store, Target, Value, Write, WriteLimits,
};
use tempfile::TempDir;

const APPENDERS: u64 = 64;
const RUN: Duration = Duration::from_secs(3);

fn entry(index: u64, commands: u64) -> Entry {
    let put = |number| {
        let write = Write {
            target: Target {
                collection: CollectionId(1),
                key: Bytes::from(format!("user-{index}-{number}")),
            },
            condition: Condition::Any,
            request: None,
            expiry: Expiry::Never,
            writer: 0,
            model: None,
            limits: WriteLimits { state_bytes_max: 1 << 30, inline_bytes_max: 16 << 10 },
            answer: Bytes::new(),
        };
        let value = Value::Bytes(Bytes::from(vec![7; 1_024]));
        Command::Put(Put { write, fields: vec![Field::new("h", value)] })
    };
    let commands = (0..commands).map(put).collect();
    Entry::new(index, 1, Body::Commands(CommandBatch { time_ms: 1, commands }))
}

/// One log, and its entries that are under way: appended again as soon as they have landed.
fn append(log: &Log, index: u64, commands: u64, landed: &mpsc::Sender<u64>) {
    let (replica, landed) = (index, landed.clone());
    let done = Box::new(move |result: Result<(), _>| {
        result.unwrap();
        let _ = landed.send(replica);
    });
    log.append(vec![entry(index, commands)], done).unwrap();
}

/// User and system time of this process and all its threads, in microseconds.
fn cpu_micros() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 * 1e6 + spent.tv_nsec as f64 / 1e3
}

fn run(replicas: u64, commands: u64) {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    let logs: Vec<Log> = (1..=replicas)
        .map(|id| {
            store.create_replica(ReplicaId(id)).unwrap();
            store.log(ReplicaId(id)).unwrap()
        })
        .collect();
    let (before, written_before) = (store.stats().commit, store.stats().written.wal_bytes);
    let (started, cpu_before) = (Instant::now(), cpu_micros());
    let mut next = vec![1; logs.len()];
    let (sender, receiver) = mpsc::channel();
    let mut landed = 0u64;
    let mut turn = (0..logs.len()).cycle();
    let mut push = |next: &mut Vec<u64>| {
        let at = turn.next().expect("the logs go round");
        append(&logs[at], next[at], commands, &sender);
        next[at] += 1;
    };
    (0..APPENDERS).for_each(|_| push(&mut next));
    while started.elapsed() < RUN {
        receiver.recv().unwrap();
        landed += 1;
        push(&mut next);
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = cpu_micros() - cpu_before;
    let (after, written) = (store.stats().commit, store.stats().written.wal_bytes);
    let syncs = after.syncs - before.syncs;
    println!(
        "{replicas:>2} replicas, {commands:>2} x 1 KiB an entry: {:>6.0} appends/s, \
         {:>7.0} commands/s, \
         {:>5.0} syncs/s, {:>4.1} jobs a sync, sync p50 < {} us, p99 < {} us",
        landed as f64 / seconds,
        (landed * commands) as f64 / seconds,
        syncs as f64 / seconds,
        (after.jobs - before.jobs) as f64 / syncs as f64,
        after.sync_micros.quantile(0.5),
        after.sync_micros.quantile(0.99),
    );
    println!(
        "             an append: {:>6.1} us of processor, {:>6.0} bytes of log; a sync: {:>6.0} us",
        cpu / landed as f64,
        (written - written_before) as f64 / landed as f64,
        cpu / syncs as f64,
    );
    store.close().unwrap();
}

fn bare_syncs() {
    let dir = TempDir::new().unwrap();
    let mut file = File::create(dir.path().join("log")).unwrap();
    let started = Instant::now();
    let mut syncs = 0;
    while started.elapsed() < RUN {
        file.write_all(&[7; 64 << 10]).unwrap();
        file.sync_data().unwrap();
        syncs += 1;
    }
    let rate = f64::from(syncs) / started.elapsed().as_secs_f64();
    println!("bare loop of 64 KiB append and fdatasync: {rate:.0}/s");
}

fn main() {
    bare_syncs();
    for (replicas, commands) in [(1, 1), (16, 1), (16, 16)] {
        run(replicas, commands);
    }
    bare_syncs();
}
