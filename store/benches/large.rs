//! States of 64 MiB written in parts and read in chunks: how fast, and how many bytes are written
//! for each, by RocksDB's own counters. `MIB` and `ROUNDS` change the sizes.

#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use statehouse_store::{
    Body, CollectionId, Command, CommandBatch, Condition, Config, Entry, Expiry, FieldType, Log,
    PutUpload, ReplicaId, Shard, Store, Target, Upload, UploadStep, UploadedField, Write,
    WriteLimits,
};
use tempfile::TempDir;

const REPLICA: ReplicaId = ReplicaId(1);
const COLLECTION: CollectionId = CollectionId(1);
const PART_BYTES: usize = 1 << 20;
/// Keys that the states are written to, again and again.
const KEYS: usize = 6;
/// Entries that are appended and not synced.
const IN_FLIGHT_MAX: usize = 8;
const IDLE_MS: u64 = 60_000;

/// What RocksDB counts of bytes written: the log, flushes, compactions; chunks in blob files are
/// part of the latter two.
const WRITTEN: [&str; 3] =
    ["rocksdb.wal.bytes", "rocksdb.flush.write.bytes", "rocksdb.compact.write.bytes"];

struct Writer {
    store: Store,
    log: Log,
    shard: Shard,
    next: u64,
    landed: (mpsc::Sender<()>, mpsc::Receiver<()>),
    in_flight: usize,
}

impl Writer {
    fn append(&mut self, command: Command) {
        while self.in_flight >= IN_FLIGHT_MAX {
            self.landed.1.recv().unwrap();
            self.in_flight -= 1;
        }
        let body = Body::Commands(CommandBatch { time_ms: self.next, commands: vec![command] });
        let landed = self.landed.0.clone();
        let done = Box::new(move |result: Result<(), _>| {
            result.unwrap();
            landed.send(()).unwrap();
        });
        self.log.append(vec![Entry::new(self.next, 1, body)], done).unwrap();
        self.next += 1;
        self.in_flight += 1;
    }

    /// Applies and purges what was appended.
    fn settle(&mut self) {
        for _ in 0..std::mem::take(&mut self.in_flight) {
            self.landed.1.recv().unwrap();
        }
        while self.shard.applied().index + 1 < self.next {
            let first = self.shard.applied().index + 1;
            let mut batch = self.store.apply_batch();
            for entry in self.log.read(first..self.next, 32 << 20).unwrap() {
                self.shard.apply(&mut batch, &entry).unwrap();
            }
            batch.commit().unwrap();
        }
        let flushed = self.log.flushed().unwrap().index;
        self.log.purge_through(flushed, Box::new(|result| result.unwrap())).unwrap();
    }

    fn write(&mut self, number: usize, bytes: &Bytes) {
        let key = Bytes::from(format!("k{}", number % KEYS));
        let target = Target { collection: COLLECTION, key };
        let (id, writer) = ([number as u8; 16], 1);
        let upload = |step| Command::Upload(Upload { target: target.clone(), id, step });
        let idle_ms = IDLE_MS;
        self.append(upload(UploadStep::Begin { writer, fingerprint: 0, request: None, idle_ms }));
        for offset in (0..bytes.len()).step_by(PART_BYTES) {
            let part = bytes.slice(offset..bytes.len().min(offset + PART_BYTES));
            let (crc32, offset) = (0, offset as u64);
            self.append(upload(UploadStep::Part { writer, offset, bytes: part, crc32, idle_ms }));
        }
        let write = Write {
            target,
            condition: Condition::Any,
            request: None,
            expiry: Expiry::Never,
            writer: 0,
            model: None,
            limits: WriteLimits { state_bytes_max: 1 << 30, inline_bytes_max: 16 << 10 },
            answer: Bytes::new(),
        };
        let (name, field_type) = ("f".to_owned(), FieldType::Bytes);
        let fields =
            vec![UploadedField { name, field_type, bytes: bytes.len() as u64, expires: None }];
        self.append(Command::PutUpload(PutUpload { write, id, writer, fields, crc32: None }));
        self.settle();
    }
}

/// Bytes of all files but RocksDB's write-ahead log, which is bounded by itself.
fn disk_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => disk_bytes(&entry.path()),
        Ok(found) if entry.path().extension().is_none_or(|name| name != "log") => found.len(),
        Ok(_) | Err(_) => 0,
    };
    entries.map(bytes).sum()
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn rate(what: &str, bytes: u64, took: Duration) {
    println!("{what:>10} {:>7.0} MB/s", bytes as f64 / took.as_secs_f64() / 1e6);
}

fn main() {
    let (mib, rounds) = (number("MIB", 64), number("ROUNDS", 24));
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    store.create_replica(REPLICA).unwrap();
    let (log, shard) = (store.log(REPLICA).unwrap(), store.shard(REPLICA).unwrap());
    let landed = mpsc::channel();
    let mut writer = Writer { store: store.clone(), log, shard, next: 1, landed, in_flight: 0 };
    let mut noise = vec![0; mib << 20];
    StdRng::seed_from_u64(1).fill_bytes(&mut noise);
    let bytes = Bytes::from(noise);
    let total = (rounds * bytes.len()) as u64;
    let started = Instant::now();
    for round in 0..rounds {
        writer.write(round, &bytes);
    }
    rate("written", total, started.elapsed());
    store.flush(&[REPLICA]).unwrap();
    let counted: Vec<u64> =
        WRITTEN.iter().map(|name| store.ticker(name).unwrap_or_default()).collect();
    for (name, count) in WRITTEN.iter().zip(&counted) {
        println!("{:>10.2} bytes per byte: {name}", *count as f64 / total as f64);
    }
    let all: u64 = counted.iter().sum();
    println!("{:>10.2} bytes per byte in all", all as f64 / total as f64);
    let live = (KEYS.min(rounds) * bytes.len()) as f64;
    println!("{:>10.2} bytes on disk per live byte", disk_bytes(dir.path()) as f64 / live);
    let reader = store.reader(REPLICA).unwrap();
    let view = Arc::new(reader.view().unwrap());
    let (started, mut read) = (Instant::now(), 0);
    for key in 0..KEYS.min(rounds) {
        let state = view.get(COLLECTION, format!("k{key}").as_bytes(), 0).unwrap().unwrap();
        let field = state.field("f").unwrap();
        let mut stream = view.stream(field, 0..field.bytes_len).unwrap();
        while let Some(piece) = stream.next_piece().unwrap() {
            read += piece.len() as u64;
        }
    }
    rate("read", read, started.elapsed());
}
