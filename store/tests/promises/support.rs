//! A node of one replica for tests, and short ways to say commands.

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_store::{
    Body, Callback, CollectionId, Command, CommandBatch, Condition, Config, Edit, Entry, Error,
    Expiry, Field, FieldType, Log, Patch, Put, PutUpload, Reader, ReplicaId, Reply, Selection,
    Shard, Store, Target, Upload, UploadStep, UploadedField, Value, When, WholeState, Write,
    WriteLimits,
};
use tempfile::TempDir;

pub const REPLICA: ReplicaId = ReplicaId(1);
pub const USERS: CollectionId = CollectionId(7);
pub const LIMITS: WriteLimits =
    WriteLimits { state_bytes_max: 1 << 30, inline_bytes_max: 16 << 10 };

/// A store with one replica, driven as a node drives it: append, wait, apply.
pub struct Node {
    pub store: Store,
    pub log: Log,
    pub shard: Shard,
    pub reader: Reader,
    pub dir: PathBuf,
    /// Removes the directory when the last node in it is gone.
    keep: Option<TempDir>,
}

impl Node {
    pub fn new() -> Node {
        let dir = TempDir::new().unwrap();
        let path = dir.path().to_owned();
        let mut node = Node::open(&path);
        node.keep = Some(dir);
        node
    }

    /// Opens a store that may have been there before, and applies what its log is ahead.
    pub fn open(dir: &Path) -> Node {
        Node::open_with(dir, Config::default())
    }

    pub fn open_with(dir: &Path, config: Config) -> Node {
        let mut node = Node::open_as_found(dir, config);
        node.catch_up();
        node
    }

    /// Opens a store and applies nothing.
    pub fn open_as_found(dir: &Path, config: Config) -> Node {
        let store = Store::open(dir, config).unwrap();
        if store.replicas().is_empty() {
            store.create_replica(REPLICA).unwrap();
        }
        Node {
            log: store.log(REPLICA).unwrap(),
            shard: store.shard(REPLICA).unwrap(),
            reader: store.reader(REPLICA).unwrap(),
            store,
            dir: dir.to_owned(),
            keep: None,
        }
    }

    /// Applies what the log is ahead of the shard.
    pub fn catch_up(&mut self) -> Vec<Reply> {
        let last = self.log.last().map_or(0, |last| last.index);
        let mut replies = Vec::new();
        while self.shard.applied().index < last {
            let next = self.shard.applied().index + 1;
            let mut batch = self.store.apply_batch();
            for entry in self.log.read(next..last + 1, 1 << 20).unwrap() {
                replies.extend(self.shard.apply(&mut batch, &entry).unwrap());
            }
            batch.commit().unwrap();
        }
        replies
    }

    /// Closes, and opens the same directory again.
    pub fn reopen(mut self) -> Node {
        let keep = self.keep.take();
        let dir = self.dir.clone();
        self.store.close().unwrap();
        drop(self);
        let mut node = Node::open(&dir);
        node.keep = keep;
        node
    }

    pub fn next_index(&self) -> u64 {
        self.log.last().map_or(0, |last| last.index) + 1
    }

    pub fn entry(&self, time_ms: u64, commands: Vec<Command>) -> Entry {
        let body = Body::Commands(CommandBatch { time_ms, commands });
        Entry::new(self.next_index(), 1, body)
    }

    /// Appends one entry, waits for the disk, applies it.
    pub fn run_at(&mut self, time_ms: u64, commands: Vec<Command>) -> Vec<Reply> {
        self.append(vec![self.entry(time_ms, commands)]);
        self.catch_up()
    }

    pub fn run(&mut self, commands: Vec<Command>) -> Vec<Reply> {
        self.run_at(1_000, commands)
    }

    pub fn append(&self, entries: Vec<Entry>) {
        wait(|done| self.log.append(entries, done)).unwrap();
    }

    /// Purges the log of everything applied.
    pub fn purge_all(&self) {
        self.store.flush(&[REPLICA]).unwrap();
        wait(|done| self.log.purge_through(self.shard.applied().index, done)).unwrap();
    }

    pub fn whole(&self, key: &str) -> Option<WholeState> {
        self.reader.get_whole(USERS, key.as_bytes(), &Selection::all(), 1_000).unwrap()
    }

    /// The bytes of a field.
    pub fn field(&self, key: &str, field: &str) -> Bytes {
        let state = self.whole(key).expect("the state is there");
        let found = state.fields.iter().find(|found| found.name == field);
        found.expect("the field is there").bytes().clone()
    }
}

/// Calls something that takes a callback, and waits for it.
pub fn wait(start: impl FnOnce(Callback) -> Result<(), Error>) -> Result<(), Error> {
    let (sender, receiver) = mpsc::channel();
    start(Box::new(move |result| sender.send(result).unwrap()))?;
    receiver.recv().expect("the callback is called")
}

pub fn write(key: &str) -> Write {
    Write {
        target: Target { collection: USERS, key: Bytes::copy_from_slice(key.as_bytes()) },
        condition: Condition::Any,
        request: None,
        expiry: Expiry::Keep,
        writer: 0,
        model: None,
        limits: LIMITS,
        answer: Bytes::new(),
    }
}

pub fn bytes_field(name: &str, bytes: impl Into<Bytes>) -> Field {
    Field::new(name, Value::Bytes(bytes.into()))
}

/// A field that expires by itself.
pub fn expiring(name: &str, bytes: impl Into<Bytes>, at_ms: u64) -> Field {
    Field { expires: Some(When::At(at_ms)), ..bytes_field(name, bytes) }
}

pub fn put(key: &str, bytes: impl Into<Bytes>) -> Command {
    Command::Put(Put { write: write(key), fields: vec![bytes_field("f", bytes)] })
}

pub fn patch(key: &str, edits: Vec<Edit>) -> Command {
    Command::Patch(Patch { write: write(key), edits })
}

pub fn write_range(offset: u64, bytes: impl Into<Bytes>) -> Edit {
    Edit::WriteRange { name: "f".into(), offset, bytes: bytes.into() }
}

pub fn append(bytes: impl Into<Bytes>, max_bytes: Option<u64>) -> Edit {
    Edit::Append { name: "f".into(), bytes: bytes.into(), max_bytes }
}

pub fn uploaded(name: &str, bytes: u64) -> UploadedField {
    let field_type = FieldType::Bytes;
    UploadedField { name: name.into(), field_type, bytes, expires: None }
}

/// A step of the upload `id` for a state of `key`.
pub fn upload(key: &str, id: u8, step: UploadStep) -> Command {
    Command::Upload(Upload { target: write(key).target, id: [id; 16], step })
}

pub fn begin(key: &str, id: u8) -> Command {
    let (writer, fingerprint, idle_ms) = (1, 0, 60_000);
    upload(key, id, UploadStep::Begin { writer, fingerprint, request: None, idle_ms })
}

pub fn part(key: &str, id: u8, offset: u64, bytes: Bytes) -> Command {
    let (writer, crc32, idle_ms) = (1, crc32fast::hash(&bytes), 60_000);
    upload(key, id, UploadStep::Part { writer, offset, bytes, crc32, idle_ms })
}

pub fn finish(key: &str, id: u8, fields: Vec<UploadedField>) -> Command {
    let (write, id, writer, crc32) = (write(key), [id; 16], 1, None);
    Command::PutUpload(PutUpload { write, id, writer, fields, crc32 })
}

/// Bytes that differ from place to place and from seed to seed.
pub fn noise(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes.into()
}

/// Bytes of the files in a directory and below, RocksDB's write-ahead log apart: that one is
/// bounded by itself.
pub fn disk_bytes(dir: &Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        // A file may go while it is looked at.
        let Ok(found) = entry.metadata() else { continue };
        let path = entry.path();
        bytes += match found.is_dir() {
            true => disk_bytes(&path),
            false if path.extension().is_some_and(|extension| extension == "log") => 0,
            false => found.len(),
        };
    }
    bytes
}

/// Waits until something holds, on a machine that has others to serve.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

/// The file of a store's database with such an extension that has these bytes, and where in it.
pub fn find(dir: &Path, extension: &str, bytes: &[u8]) -> Option<(PathBuf, u64)> {
    let files = std::fs::read_dir(dir.join("db")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|found| found == extension)).find_map(|path| {
        // A file may go while it is looked at.
        let found = std::fs::read(&path).unwrap_or_default();
        let at = found.windows(bytes.len()).position(|window| window == bytes)?;
        Some((path, at as u64))
    })
}

/// Flips a bit of a file.
pub fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 16], at).unwrap();
    file.sync_all().unwrap();
}

/// The seed of a random test: printed, and taken from `SEED` if that is set.
pub fn seed() -> u64 {
    let seed = match std::env::var("SEED") {
        Ok(seed) => seed.parse().expect("SEED is a number"),
        Err(_) => rand::rng().random(),
    };
    println!("SEED={seed}");
    seed
}

pub fn pick(random: &mut StdRng, range: Range<usize>) -> usize {
    random.random_range(range)
}
