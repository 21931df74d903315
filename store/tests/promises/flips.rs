//! Damage at random, in every kind of file: it is seen, and what it changed is never served.
//!
//! `FLIPS` says how many places are damaged, `SEED` repeats a run. One store is built, once as a
//! crash leaves it and once as a stop does; each flip damages one file of a copy, which shares all
//! other files with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_store::{
    Body, Command, CommandBatch, Config, Entry, Error, Log, Reader, ReplicaId, Selection, Shard,
    Store,
};
use tempfile::TempDir;

use crate::support::{
    USERS, append, begin, noise, part, patch, pick, put, seed, wait, write_range,
};

pub const REPLICAS: [ReplicaId; 3] = [ReplicaId(1), ReplicaId(2), ReplicaId(5)];
const FLIPS: usize = 500;
const THREADS: usize = 2;
const PART: usize = 100_000;

/// How often an open store is copied at most.
const COPIES_MAX: usize = 100;

/// How long a file that a compaction has replaced may stay.
const REPLACED_FILE_WAIT_MAX: Duration = Duration::from_secs(20);

/// One replica, driven as a node drives it.
pub struct Driven {
    id: ReplicaId,
    log: Log,
    pub shard: Shard,
    pub reader: Reader,
}

impl Driven {
    pub fn open(store: &Store, id: ReplicaId) -> Driven {
        let (log, shard) = (store.log(id).unwrap(), store.shard(id).unwrap());
        Driven { id, log, shard, reader: store.reader(id).unwrap() }
    }

    pub fn run(&mut self, store: &Store, commands: Vec<Command>) {
        let index = self.log.last().map_or(0, |last| last.index) + 1;
        let body = Body::Commands(CommandBatch { time_ms: 1_000, commands });
        wait(|done| self.log.append(vec![Entry::new(index, 1, body)], done)).unwrap();
        self.catch_up(store).unwrap();
    }

    pub fn catch_up(&mut self, store: &Store) -> Result<(), Error> {
        let last = self.log.last().map_or(0, |last| last.index);
        while self.shard.applied().index < last {
            let next = self.shard.applied().index + 1;
            let mut batch = store.apply_batch();
            let entries = self.log.read(next..last + 1, 1 << 20)?;
            assert!(!entries.is_empty(), "entry {next} of {last} is missing, silently");
            for entry in entries {
                self.shard.apply(&mut batch, &entry)?;
            }
            batch.commit()?;
        }
        Ok(())
    }
}

/// What was acknowledged.
#[derive(Default)]
pub struct Model {
    pub states: BTreeMap<(ReplicaId, String), Bytes>,
    /// Bytes of the upload under way, vote, last entry, purged entry of each replica.
    others: BTreeMap<ReplicaId, (u64, Bytes, u64, u64)>,
}

pub fn config() -> Config {
    Config {
        read_threads: 1,
        stream_threads: 1,
        block_cache_bytes: 4 << 20,
        state_cache_bytes: 1 << 20,
        memtable_bytes_max: 16 << 20,
        ..Config::default()
    }
}

/// A store as a crash leaves it and as a stop does, and what both must say.
pub struct Base {
    _dirs: TempDir,
    crashed: PathBuf,
    pub stopped: PathBuf,
    pub model: Model,
}

impl Base {
    pub fn build(seed: u64) -> Base {
        let dirs = TempDir::new().unwrap();
        let (stopped, crashed) = (dirs.path().join("stopped"), dirs.path().join("crashed"));
        let store = Store::open(&stopped, config()).unwrap();
        let mut model = Model::default();
        for id in REPLICAS {
            store.create_replica(id).unwrap();
            fill(&store, id, seed ^ id.0, &mut model);
        }
        copy(&stopped, &crashed, |_| false);
        store.close().unwrap();
        drop(store);
        Base { _dirs: dirs, crashed, stopped, model }
    }
}

/// Small and large states, old and new, flushed and not, one upload under way.
fn fill(store: &Store, id: ReplicaId, seed: u64, model: &mut Model) {
    let mut driven = Driven::open(store, id);
    let random = &mut StdRng::seed_from_u64(seed);
    for round in 0..4 {
        for _ in 0..12 {
            let key = format!("k{}", pick(random, 0..24));
            let large = random.random_bool(0.3);
            let bytes = noise(random.random(), if large { 200_000 } else { 300 });
            driven.run(store, vec![put(&key, bytes.clone())]);
            let change = noise(random.random(), 100);
            let edits = vec![write_range(50, change.clone()), append(change.clone(), None)];
            driven.run(store, vec![patch(&key, edits)]);
            let mut expected = bytes.to_vec();
            expected[50..150].copy_from_slice(&change);
            expected.extend_from_slice(&change);
            model.states.insert((id, key), expected.into());
        }
        if round < 3 {
            store.flush(&[id]).unwrap();
        }
        if round == 1 {
            let applied = driven.shard.applied().index;
            wait(|done| driven.log.purge_through(applied, done)).unwrap();
        }
        if round == 2 {
            driven.run(store, vec![begin("u", 9)]);
            driven.run(store, vec![part("u", 9, 0, noise(seed, PART))]);
        }
    }
    let vote = noise(seed, 16);
    wait(|done| driven.log.save_vote(vote.clone(), done)).unwrap();
    let last = driven.log.last().unwrap().index;
    let purged = driven.log.purged().unwrap().index;
    model.others.insert(id, (PART as u64, vote, last, purged));
}

/// Copies a store's directory: files are shared, but for those that `own` names, or that are locks.
/// Begins anew if a file goes meanwhile: an open store deletes what it does not need any more.
pub fn copy(from: &Path, to: &Path, own: impl Fn(&Path) -> bool + Copy) {
    for _ in 0..COPIES_MAX {
        match try_copy(from, to, own) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => panic!("copy {from:?}: {error}"),
        }
        fs::remove_dir_all(to).unwrap();
    }
    panic!("files of {from:?} go faster than they are copied");
}

fn try_copy(from: &Path, to: &Path, own: impl Fn(&Path) -> bool + Copy) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let name = path.file_name().unwrap();
        match path.is_dir() {
            true => try_copy(&path, &to.join(name), own)?,
            false if name == "LOCK" => {}
            false if own(&path) || is_log(&path) => drop(fs::copy(&path, to.join(name))?),
            false => fs::hard_link(&path, to.join(name))?,
        }
    }
    Ok(())
}

/// Files that are written to at their end.
fn is_log(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    let written = name == "synced" || name.starts_with("LOG") || name.starts_with("MANIFEST");
    written || name.ends_with(".log")
}

/// The files that may be damaged: all but locks and RocksDB's own diary.
pub fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        match path.is_dir() {
            true => files(&path, found),
            false if name.starts_with("LO") => {}
            false => found.push(path),
        }
    }
    found.sort();
}

#[derive(Clone, Copy, Debug)]
enum Harm {
    Bit,
    Zero,
    Cut,
    Remove,
}

/// Damages a file at random. Answers what was done, or `None` if it changes nothing.
pub fn harm(path: &Path, random: &mut StdRng) -> Option<String> {
    let length = fs::metadata(path).unwrap().len();
    let at = random.random_range(0..length.max(1));
    let harms = [Harm::Bit, Harm::Bit, Harm::Bit, Harm::Zero, Harm::Cut, Harm::Remove];
    let harm = harms[pick(random, 0..harms.len())];
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    match harm {
        Harm::Remove => fs::remove_file(path).unwrap(),
        Harm::Cut if length == 0 => return None,
        Harm::Cut => file.set_len(at).unwrap(),
        Harm::Bit | Harm::Zero => {
            file.read_exact_at(&mut byte, at).ok()?;
            let changed = match harm {
                Harm::Zero => 0,
                _ => byte[0] ^ (1 << random.random_range(0..8)),
            };
            if changed == byte[0] {
                return None;
            }
            file.write_all_at(&[changed], at).unwrap();
        }
    }
    let name = path.file_name().unwrap().to_str().unwrap();
    Some(format!("{harm:?} at {at} of {length} in {name}"))
}

pub fn holds_rows(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "sst" || extension == "blob")
}

/// What came of one flip.
#[derive(Default)]
struct Tally {
    refused: AtomicUsize,
    reported: AtomicUsize,
    harmless: AtomicUsize,
}

#[test]
fn damage_in_any_file_is_seen_and_never_served() {
    let seed = seed();
    let flips = std::env::var("FLIPS").map_or(FLIPS, |flips| flips.parse().expect("a number"));
    let base = Base::build(seed);
    let (next, tally) = (AtomicUsize::new(0), Tally::default());
    let faults: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut faults = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= flips || faults.len() > 5 {
                    return faults;
                }
                let fault = flip(&base, seed.wrapping_add(number as u64), &tally);
                faults.extend(fault.map(|fault| format!("SEED={seed}, flip {number}: {fault}")));
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    println!(
        "{flips} flips: {} refused at the start, {} reported, {} without effect",
        tally.refused.load(Ordering::Relaxed),
        tally.reported.load(Ordering::Relaxed),
        tally.harmless.load(Ordering::Relaxed),
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Damages one file of a copy, and opens, reads and scrubs it. Answers what was wrong.
fn flip(base: &Base, seed: u64, tally: &Tally) -> Option<String> {
    let random = &mut StdRng::seed_from_u64(seed);
    let from = if random.random_bool(0.5) { &base.crashed } else { &base.stopped };
    let mut candidates = Vec::new();
    files(from, &mut candidates);
    // By kind first: a few large files must not take all.
    let kinds: Vec<&str> = vec!["sst", "blob", "log", "MANIFEST", ""];
    let kind = kinds[pick(random, 0..kinds.len())];
    candidates.retain(|path| match kind {
        "sst" | "blob" | "log" => path.extension().is_some_and(|extension| extension == kind),
        "" => !holds_rows(path),
        name => path.file_name().unwrap().to_str().unwrap().starts_with(name),
    });
    let chosen = candidates[pick(random, 0..candidates.len())].clone();
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("s");
    copy(from, &to, |path| path == chosen);
    let victim = to.join(chosen.strip_prefix(from).unwrap());
    let done = harm(&victim, random)?;
    let mut wrong = String::new();
    match Store::open(&to, config()) {
        Ok(store) => {
            let reported = read_all(&store, &base.model, &mut wrong);
            let counted = match reported || !store.damages().is_empty() {
                true => &tally.reported,
                false => &tally.harmless,
            };
            counted.fetch_add(1, Ordering::Relaxed);
            let seen = || !store.damages().is_empty();
            if holds_rows(&victim) && !is_seen_or_goes(seen, &victim) {
                wrong.push_str("; the scrub does not see it");
            }
            if reported && store.damages().is_empty() {
                wrong.push_str("; a read was refused and nothing is reported");
            }
            let _ = store.close();
        }
        Err(Error::Damaged { .. } | Error::Corrupt { .. } | Error::NewerFormat { .. }) => {
            tally.refused.fetch_add(1, Ordering::Relaxed);
        }
        Err(Error::NotOurs { .. }) if victim.ends_with("STATEHOUSE") => {
            tally.refused.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => wrong = format!("; the start ends in: {error}"),
    }
    let place = if *from == base.crashed { "crashed" } else { "stopped" };
    (!wrong.is_empty()).then(|| format!("{place}, {done}{wrong}"))
}

/// Whether damage is reported, or the damaged file goes: a compaction that did not need what is
/// damaged may have replaced it, and its file is deleted a moment later.
fn is_seen_or_goes(seen: impl Fn() -> bool, victim: &Path) -> bool {
    let started = Instant::now();
    while !seen() && victim.exists() {
        if started.elapsed() > REPLACED_FILE_WAIT_MAX {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// Reads everything, and scrubs. Answers whether a read was refused as corrupt.
fn read_all(store: &Store, model: &Model, wrong: &mut String) -> bool {
    let mut reported = false;
    if store.replicas() != REPLICAS {
        write!(wrong, "; replicas {:?}", store.replicas()).unwrap();
        return false;
    }
    for id in REPLICAS {
        let mut driven = Driven::open(store, id);
        match driven.catch_up(store) {
            Ok(()) => {}
            // What it has not applied is told by an error; what it has is read below all the same.
            Err(Error::Corrupt { .. }) => {
                reported = true;
                continue;
            }
            Err(error) => write!(wrong, "; replica {id} can't be applied: {error}").unwrap(),
        }
        reported |= read_replica(&driven, model, wrong);
    }
    let scrubbed = store.scrub(&mut |_| std::ops::ControlFlow::Continue(()));
    match scrubbed {
        Ok(scrubbed) if scrubbed.finished => {}
        other => write!(wrong, "; the scrub ends in {other:?}").unwrap(),
    }
    reported
}

fn read_replica(driven: &Driven, model: &Model, wrong: &mut String) -> bool {
    let (id, mut reported) = (driven.id, false);
    for ((_, key), expected) in model.states.iter().filter(|((of, _), _)| *of == id) {
        let read = driven.reader.get_whole(USERS, key.as_bytes(), &Selection::all(), 1_000);
        match read {
            Ok(Some(state)) if state.fields.len() == 1 && state.fields[0].bytes() == expected => {}
            Ok(Some(_)) => write!(wrong, "; {key} of replica {id} is wrong").unwrap(),
            Ok(None) => write!(wrong, "; {key} of replica {id} is gone").unwrap(),
            Err(Error::Corrupt { .. }) => reported = true,
            Err(error) => write!(wrong, "; {key} of replica {id}: {error}").unwrap(),
        }
    }
    let (upload, vote, last, purged) = &model.others[&id];
    match driven.reader.upload(USERS, &[9; 16], 1_000) {
        Ok(Some(progress)) if progress.bytes == *upload => {}
        Err(Error::Corrupt { .. }) => reported = true,
        other => write!(wrong, "; the upload of replica {id} is {other:?}").unwrap(),
    }
    if driven.log.vote().as_ref() != Some(vote) {
        write!(wrong, "; replica {id} has forgotten its vote").unwrap();
    }
    let end = driven.log.last().map(|last| last.index);
    // A start purges a log of what it can't read and does not need.
    let begin = driven.log.purged().map_or(0, |purged| purged.index);
    if end != Some(*last) || begin < *purged || begin > driven.shard.applied().index {
        write!(wrong, "; the log of replica {id} is {begin} to {end:?}").unwrap();
    }
    match driven.log.read(begin + 1..*last + 1, usize::MAX) {
        Ok(entries) if entries.len() as u64 == last - begin => {}
        Ok(entries) => write!(wrong, "; {} entries of replica {id}", entries.len()).unwrap(),
        Err(Error::Corrupt { .. }) => reported = true,
        Err(error) => write!(wrong, "; the log of replica {id}: {error}").unwrap(),
    }
    reported
}

#[test]
fn damage_to_files_of_an_open_store_is_found_by_the_scrub() {
    let seed = seed();
    let base = Base::build(seed);
    let random = &mut StdRng::seed_from_u64(seed);
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("s");
    copy(&base.stopped, &to, |_| true);
    let store = Store::open(&to, config()).unwrap();
    let clean = store.scrub(&mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert!(clean.finished, "{clean:?}");
    assert_eq!(store.damages(), [], "a store that is whole");
    for kind in ["sst", "blob"] {
        while !live_flip_is_seen(&store, &to.join("db"), kind, random) {}
    }
}

/// Damages a live file and scrubs. Answers whether the file was still live by then: a compaction
/// may have taken its rows over before they were damaged.
fn live_flip_is_seen(store: &Store, database: &Path, kind: &str, random: &mut StdRng) -> bool {
    let mut candidates = Vec::new();
    files(database, &mut candidates);
    candidates.retain(|path| path.extension().is_some_and(|found| found == kind));
    let victim = &candidates[pick(random, 0..candidates.len())];
    let Ok(file) = fs::OpenOptions::new().read(true).write(true).open(victim) else { return false };
    let (at, mut byte) = (random.random_range(0..file.metadata().unwrap().len()), [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    file.sync_all().unwrap();
    let scrubbed = store.scrub(&mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    let seen = || store.damages().iter().any(|damage| damage.file.as_ref() == Some(victim));
    let explained = is_seen_or_goes(seen, victim);
    let damages = store.damages();
    assert!(explained, "{victim:?} at {at} is not seen: {scrubbed:?}, {damages:?}");
    seen()
}
