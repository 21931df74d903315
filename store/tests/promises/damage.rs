//! What was acknowledged is never lost silently: a damaged write-ahead log is seen at the opening.
//!
//! Each test damages a copy of a store's directory that was made while the store was open, with
//! everything acknowledged: what `kill -9` leaves.

use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_store::{
    Accepted, Body, CommandBatch, Config, Damage, DamagePolicy, Entry, Error, ReplicaId, Store,
    accept_loss, inspect_damage,
};
use tempfile::TempDir;

use crate::support::{Node, REPLICA, USERS, noise, pick, put, seed, wait};

const REPLICAS: u64 = 3;
const ENTRIES: u64 = 200;
const BLOCK_BYTES: usize = 32 << 10;

/// An open store of some replicas, each with as many acknowledged entries.
struct Written {
    store: Store,
    dir: TempDir,
}

impl Written {
    fn new() -> Written {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path(), Config::default()).unwrap();
        wait(|done| store.meta_put("who", "node 1".into(), done)).unwrap();
        for id in 1..=REPLICAS {
            store.create_replica(ReplicaId(id)).unwrap();
            wait(|done| store.log(ReplicaId(id)).unwrap().save_vote("term 1".into(), done))
                .unwrap();
        }
        let written = Written { store, dir };
        for index in 1..=ENTRIES {
            for id in 1..=REPLICAS {
                written.append(ReplicaId(id), index);
            }
        }
        written
    }

    fn append(&self, id: ReplicaId, index: u64) {
        let commands = vec![put(&format!("r{id}-{index}"), noise(index, 100))];
        let body = Body::Commands(CommandBatch { time_ms: 1_000, commands });
        let log = self.store.log(id).unwrap();
        wait(|done| log.append(vec![Entry::new(index, 1, body)], done)).unwrap();
    }

    /// What is left when the process is killed now.
    fn killed(&self) -> Copied {
        let dir = TempDir::new().unwrap();
        copy(self.dir.path(), dir.path());
        Copied { dir }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &to),
            // A file may go while it is looked at.
            false => drop(std::fs::copy(&path, &to)),
        }
    }
}

struct Copied {
    dir: TempDir,
}

impl Copied {
    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn open(&self) -> Result<Store, Error> {
        Store::open(self.path(), Config::default())
    }

    /// The log file that is written to.
    fn log_file(&self) -> PathBuf {
        let files = std::fs::read_dir(self.path().join("db")).unwrap();
        let logs = files.map(|file| file.unwrap().path());
        let mut logs: Vec<_> =
            logs.filter(|path| path.extension().is_some_and(|kind| kind == "log")).collect();
        logs.sort();
        logs.pop().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
        let path = self.log_file();
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn set_policy(&self, policy: &str) {
        std::fs::write(self.path().join("damage-policy"), policy).unwrap();
    }

    /// The damages for which the opening is refused.
    fn refusal(&self, what: &str) -> Vec<Damage> {
        let before = self.files();
        let damages = match self.open().err() {
            Some(Error::Damaged { damages }) => damages.to_vec(),
            Some(error) => panic!("{what}: {error}"),
            None => panic!("{what}: it is opened"),
        };
        assert_eq!(self.files(), before, "{what}: nothing is changed by the refusal");
        assert_eq!(inspect_damage(self.path()).unwrap(), damages, "{what}");
        damages
    }

    /// The files that hold data, with their bytes.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = std::fs::read_dir(self.path().join("db")).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        let holds_data = |path: &PathBuf| {
            path.extension().is_some_and(|kind| kind == "log" || kind == "sst" || kind == "blob")
                || path.file_name().is_some_and(|name| {
                    name == "CURRENT" || name.to_string_lossy().starts_with("MANIFEST")
                })
        };
        let mut found: Vec<_> =
            paths.filter(holds_data).map(|p| (p.clone(), std::fs::read(&p).unwrap())).collect();
        found.sort();
        found
    }
}

fn assert_whole(store: &Store, id: u64) {
    let log = store.log(ReplicaId(id)).unwrap();
    assert_eq!(log.last().unwrap().index, ENTRIES, "replica {id}");
    assert_eq!(log.read(1..ENTRIES + 1, 1 << 30).unwrap().len() as u64, ENTRIES, "replica {id}");
    assert_eq!(log.vote().unwrap(), "term 1");
}

#[test]
fn what_a_kill_leaves_is_opened_with_everything_that_was_acknowledged() {
    let written = Written::new();
    let store = written.killed().open().unwrap();
    (1..=REPLICAS).for_each(|id| assert_whole(&store, id));
    assert_eq!(store.damages(), []);
    store.close().unwrap();
    written.store.close().unwrap();
    let closed = written.killed();
    drop(written);
    let store = closed.open().unwrap();
    (1..=REPLICAS).for_each(|id| assert_whole(&store, id));
}

#[test]
fn a_flipped_bit_or_a_zeroed_byte_anywhere_in_the_log_is_seen_and_nothing_is_changed() {
    let written = Written::new();
    let mut random = StdRng::seed_from_u64(seed());
    let len = std::fs::metadata(written.killed().log_file()).unwrap().len() as usize;
    for part in 0..12 {
        // Not the few bytes that fill up a block: they hold nothing.
        let at = part * len / 12 + pick(&mut random, 0..len / 12);
        let at = if at % BLOCK_BYTES >= BLOCK_BYTES - 7 { at - 7 } else { at };
        let copy = written.killed();
        let bit = 1 << random.random_range(0..8);
        let file = copy.change(|bytes| match bytes[at] {
            0 => bytes[at] = bit,
            _ if part % 3 == 2 => bytes[at] = 0,
            _ => bytes[at] ^= bit,
        });
        let damages = copy.refusal(&format!("byte {at} of {len}"));
        let damage = &damages[0];
        assert_eq!(damage.file.as_ref(), Some(&file));
        assert!(damage.offset.unwrap() <= at as u64, "byte {at}: {damage}");
    }
}

#[test]
fn a_log_that_is_cut_short_is_seen_wherever_the_cut_is() {
    let written = Written::new();
    let mut random = StdRng::seed_from_u64(seed());
    let len = std::fs::metadata(written.killed().log_file()).unwrap().len() as usize;
    for part in 0..8 {
        let end = part * len / 8 + pick(&mut random, 0..len / 8);
        let copy = written.killed();
        copy.change(|bytes| bytes.truncate(end));
        copy.refusal(&format!("cut at {end} of {len}"));
    }
    let copy = written.killed();
    std::fs::remove_file(copy.log_file()).unwrap();
    copy.refusal("without its log file");
}

#[test]
fn a_record_that_was_never_acknowledged_may_be_torn() {
    let written = Written::new();
    let copy = written.killed();
    // As much of another record as a kill has let through, or a power loss.
    for tail in [&[1, 2, 3][..], &[7; 40], &[0; 70_000]] {
        let copy = written.killed();
        copy.change(|bytes| bytes.extend_from_slice(tail));
        let store = copy.open().unwrap();
        (1..=REPLICAS).for_each(|id| assert_whole(&store, id));
        assert_eq!(store.damages(), []);
    }
    drop(copy);
    // One more commit whose claim was lost: its record, torn, is no damage.
    let before = std::fs::read(written.dir.path().join("synced")).unwrap();
    written.append(REPLICA, ENTRIES + 1);
    let copy = written.killed();
    std::fs::write(copy.path().join("synced"), before).unwrap();
    copy.change(|bytes| {
        let end = bytes.len() - 5;
        bytes.truncate(end);
    });
    let store = copy.open().unwrap();
    (1..=REPLICAS).for_each(|id| assert_whole(&store, id));
}

#[test]
fn where_other_nodes_hold_the_rows_only_the_replicas_that_lost_some_are_put_in_quarantine() {
    let written = Written::new();
    let copy = written.killed();
    copy.set_policy("quarantine\n");
    let len = std::fs::metadata(copy.log_file()).unwrap().len() as usize;
    copy.change(|bytes| bytes[len / 2] ^= 1);
    let store = copy.open().unwrap();
    let quarantined = store.quarantined();
    assert_eq!(quarantined.len(), 1, "{:?}", store.damages());
    assert!(store.damages().iter().any(|damage| damage.replica == Some(quarantined[0])));
    for id in (1..=REPLICAS).filter(|id| !quarantined.contains(&ReplicaId(*id))) {
        assert_whole(&store, id);
    }
    let closed = store.log(quarantined[0]).err().unwrap();
    assert_eq!(
        closed.to_string(),
        format!("replica {} is quarantined: it has lost acknowledged rows", quarantined[0])
    );
    store.close().unwrap();
    drop(store);
    // Also at the next start, until it is dropped.
    let store = copy.open().unwrap();
    assert_eq!(store.quarantined(), quarantined);
    store.drop_replica(quarantined[0]).unwrap();
    store.close().unwrap();
    drop(store);
    let store = copy.open().unwrap();
    assert_eq!(store.quarantined(), quarantined[1..]);
    assert_eq!(store.damages(), []);
}

#[test]
fn a_lost_vote_is_seen() {
    let written = Written::new();
    let before = written.killed();
    wait(|done| written.store.log(ReplicaId(2)).unwrap().save_vote("term 2".into(), done)).unwrap();
    let copy = written.killed();
    // The log as it was before the vote, at a boundary of records.
    std::fs::copy(before.log_file(), copy.log_file()).unwrap();
    let damages = copy.refusal("a lost vote");
    let lost = "its vote is not the one that was synced last";
    let votes: Vec<_> = damages.iter().filter(|damage| damage.detail == lost).collect();
    assert_eq!(votes.len(), 1, "{damages:?}");
    assert_eq!(votes[0].replica, Some(ReplicaId(2)));
    copy.set_policy("quarantine\n");
    for start in 1..=2 {
        let store = copy.open().unwrap();
        assert_eq!(store.quarantined(), [ReplicaId(2)], "start {start}");
        store.close().unwrap();
    }
}

#[test]
fn a_damaged_current_of_which_there_is_no_doubt_is_written_again() {
    let written = Written::new();
    let harms: [(&str, Option<&[u8]>); 4] = [
        ("removed", None),
        ("emptied", Some(b"")),
        ("another name", Some(b"MANIFEST-999999\n")),
        ("no name", Some(b"\x00\x01\x02")),
    ];
    for (what, bytes) in harms {
        let copy = written.killed();
        let current = copy.path().join("db/CURRENT");
        let before = std::fs::read(&current).unwrap();
        match bytes {
            None => std::fs::remove_file(&current).unwrap(),
            Some(bytes) => std::fs::write(&current, bytes).unwrap(),
        }
        assert_eq!(inspect_damage(copy.path()).unwrap(), [], "{what}");
        assert_eq!(std::fs::read(&current).unwrap(), before, "{what}");
        let store = copy.open().unwrap();
        (1..=REPLICAS).for_each(|id| assert_whole(&store, id));
        store.close().unwrap();
    }
}

#[test]
fn a_blob_file_that_is_missing_or_short_is_named_by_the_start() {
    for cut in [None, Some(1_000)] {
        let dir = TempDir::new().unwrap();
        let mut node = Node::open(dir.path());
        node.run(vec![put("large", noise(1, 300 << 10))]);
        node.purge_all();
        node.store.close().unwrap();
        drop(node);
        let files = std::fs::read_dir(dir.path().join("db")).unwrap();
        let mut files = files.map(|file| file.unwrap().path());
        let blob = files.find(|path| path.extension().is_some_and(|kind| kind == "blob")).unwrap();
        match cut {
            None => std::fs::remove_file(&blob).unwrap(),
            Some(bytes) => {
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(&blob)
                    .unwrap()
                    .set_len(bytes)
                    .unwrap();
            }
        }
        let refused = Store::open(dir.path(), Config::default()).err().unwrap();
        let Error::Damaged { damages } = &refused else { panic!("{refused}") };
        assert_eq!(damages[0].file.as_ref(), Some(&blob), "{refused}");
        assert_eq!(damages[0].replica, Some(REPLICA), "{refused}");
    }
}

#[test]
fn the_file_that_proves_what_was_synced_is_missed_and_no_copy_of_it_is_trusted_that_is_not_whole() {
    let written = Written::new();
    let copy = written.killed();
    std::fs::remove_file(copy.path().join("synced")).unwrap();
    let damages = copy.refusal("without the file");
    assert!(damages[0].file.as_ref().unwrap().ends_with("synced"));
    let copy = written.killed();
    let len = std::fs::metadata(copy.path().join("synced")).unwrap().len() as usize;
    std::fs::write(copy.path().join("synced"), vec![7; len]).unwrap();
    let damages = copy.refusal("with a file that is not whole");
    assert_eq!(damages[0].detail, "no copy of what was synced is whole");
    assert_eq!(accept_loss(copy.path()).unwrap(), Accepted::default());
    let store = copy.open().unwrap();
    (1..=REPLICAS).for_each(|id| assert_whole(&store, id));
}

#[test]
fn a_database_that_is_gone_is_not_replaced_by_an_empty_one() {
    let written = Written::new();
    let copy = written.killed();
    std::fs::remove_dir_all(copy.path().join("db")).unwrap();
    assert!(matches!(copy.open().err(), Some(Error::Damaged { .. })));
    assert!(!copy.path().join("db").exists(), "RocksDB has made none");
}

#[test]
fn a_loss_that_is_accepted_is_named_and_everything_else_is_kept() {
    let dir = TempDir::new().unwrap();
    let mut node = Node::open(dir.path());
    for number in 1..=ENTRIES {
        node.run(vec![put(&format!("k{number:03}"), noise(number, 100))]);
    }
    let copy = Copied { dir: TempDir::new().unwrap() };
    self::copy(dir.path(), copy.path());
    let len = std::fs::metadata(copy.log_file()).unwrap().len() as usize;
    copy.change(|bytes| bytes[len / 2] ^= 1);
    copy.refusal("one flipped bit");
    let Accepted { entries: losses, rows } = accept_loss(copy.path()).unwrap();
    assert_eq!(rows, [], "the tables are whole");
    println!("{losses:?}");
    assert_eq!(inspect_damage(copy.path()).unwrap(), []);
    let lost: Vec<u64> = losses.iter().flat_map(|loss| loss.first..=loss.last).collect();
    assert_eq!(lost.len(), 1, "the record with the flipped bit: {losses:?}");
    let key = format!("k{:03}", lost[0]).into_bytes();
    assert_eq!(losses[0].keys, [(USERS, key.into())]);
    let found = Node::open(copy.path());
    assert_eq!(found.log.last().unwrap().index, ENTRIES);
    for number in 1..=ENTRIES {
        let state = found.reader.get(USERS, format!("k{number:03}").as_bytes(), 1_000).unwrap();
        assert_eq!(state.is_none(), lost.contains(&number), "state {number}, lost {lost:?}");
    }
    assert!(losses.iter().all(|loss| loss.replica == REPLICA));
}

#[test]
fn the_policy_for_damage_is_kept_in_the_directory() {
    let written = Written::new();
    written.store.close().unwrap();
    let copy = written.killed();
    let store = copy.open().unwrap();
    assert_eq!(store.meta_get("who").unwrap().unwrap(), "node 1");
    store.set_damage_policy(DamagePolicy::Quarantine).unwrap();
    let kept = std::fs::read_to_string(copy.path().join("damage-policy")).unwrap();
    assert_eq!(kept, "quarantine\n");
}
