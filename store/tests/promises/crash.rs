//! Killed at any moment, a store has every acknowledged write, and a state that is exactly what
//! its entries make.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_store::{
    Command, Condition, Delete, Edit, Expiry, Field, Put, PutUpload, RequestTag, Sweep, Upload,
    UploadStep, UploadedField, When, Write, WriteLimits,
};
use tempfile::TempDir;

use crate::support::{
    Node, append, bytes_field as field, noise, patch, pick, put, seed, uploaded, write, write_range,
};

pub const DIRECTORY: &str = "STATEHOUSE_CRASH_DIR";
pub const SEED: &str = "STATEHOUSE_CRASH_SEED";
const KILLS: usize = 12;

/// Entry `index` of a history that its seed decides: small and large, refused and repeated.
pub fn commands(seed: u64, index: u64) -> (u64, Vec<Command>) {
    let mut random = StdRng::seed_from_u64(seed ^ index << 20);
    let time_ms = index * 400;
    let count = pick(&mut random, 1..6);
    let commands = (0..count).map(|_| command(&mut random, time_ms)).collect();
    (time_ms, commands)
}

fn command(random: &mut StdRng, time_ms: u64) -> Command {
    let key = format!("k{}", pick(random, 0..40));
    let len = if pick(random, 0..4) == 0 { 400_000 } else { 2_000 };
    let bytes = noise(random.random(), pick(random, 0..len));
    let limits = WriteLimits { state_bytes_max: 900_000, inline_bytes_max: 8 << 10 };
    let condition = match pick(random, 0..4) {
        0 => Condition::Absent,
        _ => Condition::Any,
    };
    let request = (pick(random, 0..2) == 0).then(|| RequestTag {
        id: [pick(random, 0..256) as u8; 16],
        fingerprint: pick(random, 0..2) as u64,
    });
    let expiry = match pick(random, 0..5) {
        0 => Expiry::At(time_ms + pick(random, 0..20_000) as u64),
        1 => Expiry::After(pick(random, 0..20_000) as u64),
        2 => Expiry::KeepOrAfter(pick(random, 0..20_000) as u64),
        3 => Expiry::Never,
        _ => Expiry::Keep,
    };
    let write = Write { condition, request, expiry, limits, ..write(&key) };
    match pick(random, 0..13) {
        10..13 => upload_command(random, write, time_ms),
        0 => Command::Delete(Delete { write }),
        1 => {
            let (limit, requests_max) = (10, (pick(random, 0..4) == 0).then_some(1));
            Command::Sweep(Sweep { now_ms: time_ms, limit, cursor: None, requests_max })
        }
        2..=4 => {
            let brief = Field { expires: soon(random, time_ms), ..field("g", bytes.clone()) };
            Command::Put(Put { write, fields: vec![field("f", bytes), brief] })
        }
        5 => {
            let brief = Field { expires: soon(random, time_ms), ..field("f", bytes) };
            patch(&key, vec![Edit::Set(brief)])
        }
        6 => patch(&key, vec![write_range(pick(random, 0..5_000) as u64, bytes)]),
        7 => {
            let (name, when) = (["f", "g"][pick(random, 0..2)].into(), soon(random, time_ms));
            patch(&key, vec![Edit::Expire { name, when }])
        }
        _ => patch(&key, vec![append(bytes, Some(400_000))]),
    }
}

/// When a field expires, if it does by itself.
fn soon(random: &mut StdRng, time_ms: u64) -> Option<When> {
    let ttl_ms = pick(random, 0..20_000) as u64;
    [None, None, Some(When::At(time_ms + ttl_ms)), Some(When::After(ttl_ms))][pick(random, 0..4)]
}

/// A step of one of a few uploads, some of which fit what came before.
fn upload_command(random: &mut StdRng, write: Write, time_ms: u64) -> Command {
    const PART: usize = 150_000;
    let (id, writer, idle_ms) = ([pick(random, 0..2) as u8; 16], 1, 30_000);
    let target = write.target.clone();
    let step = match pick(random, 0..12) {
        0..2 => UploadStep::Begin { writer, fingerprint: 0, request: write.request, idle_ms },
        2..8 => {
            let bytes = noise(random.random(), PART);
            let (offset, crc32) = ((pick(random, 0..3) * PART) as u64, crc32fast::hash(&bytes));
            UploadStep::Part { writer, offset, bytes, crc32, idle_ms }
        }
        8 => UploadStep::Abort,
        _ => {
            let bytes = (pick(random, 1..4) * PART) as u64;
            let brief = UploadedField { expires: soon(random, time_ms), ..uploaded("g", 10_000) };
            let fields = vec![uploaded("f", bytes - 10_000), brief];
            return Command::PutUpload(PutUpload { write, id, writer, fields, crc32: None });
        }
    };
    Command::Upload(Upload { target, id, step })
}

/// Not a test of its own: what the killed process does. Acknowledges on its standard output.
#[test]
#[ignore = "started by the crash tests as a process of its own"]
fn child() {
    let Ok(dir) = std::env::var(DIRECTORY) else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let mut node = Node::open(Path::new(&dir));
    loop {
        let (time_ms, commands) = commands(seed, node.next_index());
        let replies = node.run_at(time_ms, commands);
        if node.next_index().is_multiple_of(16) {
            node.purge_all();
        }
        let applied = node.shard.applied().index;
        // The parent closes its end when it has killed us.
        let line = format!("\nack {applied} {}\n", replies.len());
        if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

pub fn start(child: &str, dir: &Path, seed: u64) -> Child {
    Process::new(std::env::current_exe().unwrap())
        .args(["--exact", child, "--ignored", "--nocapture"])
        .env(DIRECTORY, dir)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The entry that a line of a child acknowledges.
pub fn index_of(line: &str) -> Option<u64> {
    line.strip_prefix("ack ")?.split(' ').next()?.parse().ok()
}

/// Lets a child run until it has acknowledged some entries, kills it, and answers the last
/// acknowledged index: what came through the pipe before it died counts as well.
pub fn run_and_kill(child: &str, dir: &Path, seed: u64, acknowledgements: usize) -> u64 {
    let mut child = start(child, dir, seed);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    while seen.len() < acknowledgements {
        let line = lines.next().expect("the child runs until it is killed").unwrap();
        seen.extend(index_of(&line));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // A last line may be cut short; its number then is too.
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    seen.extend(
        rest.iter().filter(|line| line.split(' ').count() == 3).filter_map(|l| index_of(l)),
    );
    *seen.last().unwrap()
}

/// What the history makes without any crash.
pub fn model_hash(seed: u64, last: u64) -> u64 {
    let mut node = Node::new();
    for index in 1..=last {
        let (time_ms, commands) = commands(seed, index);
        node.run_at(time_ms, commands);
    }
    node.shard.state_hash().unwrap()
}

#[test]
fn killed_at_any_moment_nothing_acknowledged_is_lost() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let dir = TempDir::new().unwrap();
    let mut acknowledged = 0;
    for kill in 0..KILLS {
        let last = run_and_kill("crash::child", dir.path(), seed, pick(&mut random, 1..60));
        assert!(last > acknowledged, "the child went on where it had stopped");
        acknowledged = last;
        let node = Node::open(dir.path());
        let applied = node.shard.applied().index;
        assert!(
            applied >= acknowledged,
            "kill {kill}: {acknowledged} acknowledged, {applied} there"
        );
        assert_eq!(node.log.last().unwrap().index, applied);
        if kill % 4 == 3 {
            assert_eq!(node.shard.state_hash().unwrap(), model_hash(seed, applied), "kill {kill}");
        }
        node.store.close().unwrap();
    }
    println!("{acknowledged} entries acknowledged over {KILLS} kills");
}

#[test]
fn a_crash_between_append_and_apply_is_made_good_by_the_log() {
    let dir = TempDir::new().unwrap();
    let seed = seed();
    let mut node = Node::open(dir.path());
    for index in 1..=30 {
        let (time_ms, commands) = commands(seed, index);
        let entry = node.entry(time_ms, commands);
        node.append(vec![entry]);
        // Only the first ones are applied before the end.
        if index <= 10 {
            node.catch_up();
        }
    }
    node.store.close().unwrap();
    drop(node);
    let node = Node::open(dir.path());
    assert_eq!(node.shard.applied().index, 30);
    assert_eq!(node.shard.state_hash().unwrap(), model_hash(seed, 30));
}

#[test]
fn how_entries_are_batched_makes_no_difference() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let one_by_one = model_hash(seed, 120);
    let mut node = Node::new();
    for index in 1..=120 {
        let (time_ms, commands) = commands(seed, index);
        node.append(vec![node.entry(time_ms, commands)]);
    }
    while node.shard.applied().index < 120 {
        let first = node.shard.applied().index + 1;
        let count = pick(&mut random, 1..30) as u64;
        let mut batch = node.store.apply_batch();
        for entry in node.log.read(first..first + count, 1 << 30).unwrap() {
            node.shard.apply(&mut batch, &entry).unwrap();
        }
        batch.commit().unwrap();
    }
    assert_eq!(node.shard.state_hash().unwrap(), one_by_one);
}

#[test]
fn a_batch_that_is_dropped_has_done_nothing() {
    let mut node = Node::new();
    node.run(vec![put("k", "old")]);
    node.append(vec![node.entry(1_000, vec![put("k", "new")])]);
    let entry = node.log.read(2..3, 1).unwrap().remove(0);
    let mut batch = node.store.apply_batch();
    node.shard.apply(&mut batch, &entry).unwrap();
    assert!(batch.bytes() > 0);
    drop(batch);
    assert_eq!(node.shard.applied().index, 1);
    assert_eq!(node.field("k", "f"), &b"old"[..]);
    node.catch_up();
    assert_eq!(node.field("k", "f"), &b"new"[..]);
}
