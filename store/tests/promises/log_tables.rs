//! The tables of the log, which all replicas of a store share: damage where nobody has a row costs
//! nobody one, and what is whole is not given up for it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use statehouse_store::{
    Body, CommandBatch, Config, Entry, Error, Log, Lost, LostRows, ReplicaId, Store, salvage_tables,
};
use tempfile::TempDir;

use crate::flips::{copy, files};
use crate::support::{Node, REPLICA, USERS, find, flip, noise, put, until, wait};

const ONE: ReplicaId = ReplicaId(1);
const OTHER: ReplicaId = ReplicaId(2);
const ENTRIES: u64 = 200;
/// An entry in the middle, and what it is found by in a file.
const MIDDLE: u64 = ENTRIES / 2;
const NEEDLE: usize = 32;

fn open(dir: &Path) -> Store {
    // Entries are read from files.
    let config = Config { log_tail_bytes_max: 0, ..Config::default() };
    Store::open(dir, config).unwrap()
}

fn seed_of(id: ReplicaId, index: u64) -> u64 {
    (id.0 << 32) | index
}

fn entry(id: ReplicaId, index: u64) -> Entry {
    let commands = vec![put("k", noise(seed_of(id, index), 1_000))];
    Entry::new(index, 1, Body::Commands(CommandBatch { time_ms: 1_000, commands }))
}

fn append(store: &Store, id: ReplicaId, count: u64) {
    let log = store.log(id).unwrap();
    let first = log.last().map_or(0, |last| last.index) + 1;
    let entries = (first..first + count).map(|index| entry(id, index)).collect();
    wait(|done| log.append(entries, done)).unwrap();
}

/// A store that was closed, with two replicas' entries in one table of the log, and that table.
fn closed() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    for id in [ONE, OTHER] {
        store.create_replica(id).unwrap();
        append(&store, id, ENTRIES);
    }
    store.close().unwrap();
    drop(store);
    let (table, _) = found(dir.path(), ONE, MIDDLE);
    assert_eq!(found(dir.path(), OTHER, MIDDLE).0, table, "they share it");
    (dir, table)
}

/// Where an entry lies.
fn found(dir: &Path, id: ReplicaId, index: u64) -> (PathBuf, u64) {
    let bytes = noise(seed_of(id, index), 1_000);
    find(dir, "sst", &bytes[..NEEDLE]).expect("it is in a table")
}

fn scrub(store: &Store) {
    let scrubbed = store.scrub(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(scrubbed.finished, "{scrubbed:?}");
}

fn assert_whole(log: &Log, id: ReplicaId, entries: u64) {
    let read = log.read(1..entries + 1, usize::MAX).unwrap();
    assert_eq!(read.len() as u64, entries, "replica {id}");
    for (index, read) in (1..).zip(read) {
        assert_eq!(read.body, entry(id, index).body, "entry {index} of replica {id}");
    }
}

#[test]
fn a_table_of_the_log_that_no_compaction_can_read_is_told_as_the_nodes_and_costs_no_replica() {
    let (dir, table) = closed();
    let store = open(dir.path());
    let (_, at) = found(dir.path(), ONE, MIDDLE);
    flip(&table, at);
    // As of one that was damaged, and that others have rebuilt.
    store.drop_replica(ONE).unwrap();
    scrub(&store);
    let told = || {
        let damages = store.damages();
        assert!(damages.iter().all(|damage| damage.replica.is_none()), "{damages:?}");
        damages.iter().any(|damage| damage.file.as_ref() == Some(&table))
    };
    assert!(told(), "{:?}", store.damages());
    assert!(table.exists(), "its other rows are needed");
    assert_whole(&store.log(OTHER).unwrap(), OTHER, ENTRIES);
    append(&store, OTHER, 1);
    until("a compaction has met it too", || store.stats().damages >= 2);
    assert!(told() && store.failure().is_none());
    append(&store, OTHER, 1);
    store.close().unwrap();
    drop(store);
    let store = open(dir.path());
    assert_whole(&store.log(OTHER).unwrap(), OTHER, ENTRIES + 2);
    store.close().unwrap();
}

/// Tables from which on RocksDB lets nobody write until some are compacted, and some more.
const TABLES: usize = 36 + 12;

/// How long a write may wait for flushes.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(60);

fn tables(dir: &Path) -> usize {
    let mut found = Vec::new();
    files(dir, &mut found);
    found.iter().filter(|path| path.extension().is_some_and(|it| it == "sst")).count()
}

#[test]
fn a_log_that_no_compaction_can_read_takes_every_write() {
    let (dir, table) = closed();
    let config = Config { log_tail_bytes_max: 0, memtable_bytes_max: 1 << 20, ..Config::default() };
    let store = Store::open(dir.path(), config).unwrap();
    let (_, at) = found(dir.path(), ONE, MIDDLE);
    flip(&table, at);
    store.drop_replica(ONE).unwrap();
    let log = store.log(OTHER).unwrap();
    let append_some = || {
        let first = log.last().unwrap().index + 1;
        let entries = (first..first + 1_000).map(|index| entry(OTHER, index)).collect();
        let (sender, receiver) = mpsc::channel();
        log.append(entries, Box::new(move |result| drop(sender.send(result)))).unwrap();
        let written = receiver.recv_timeout(WRITE_WAIT_MAX);
        written.expect("writes are not stopped").unwrap();
    };
    until("a compaction meets it", || {
        append_some();
        store.damages().iter().any(|damage| damage.file.as_ref() == Some(&table))
    });
    let before = tables(dir.path());
    while tables(dir.path()) < before + TABLES {
        append_some();
    }
    assert_eq!(store.failure().map(|error| error.to_string()), None);
    store.close().unwrap();
}

/// A store as a kill leaves it: a table has all entries but one, and the write-ahead log that one.
fn killed(fill: impl Fn(&mut Node)) -> TempDir {
    let (dir, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut node = Node::open(dir.path());
    (0..ENTRIES).for_each(|_| fill(&mut node));
    node.store.close().unwrap();
    drop(node);
    let mut node = Node::open_as_found(dir.path(), Config::default());
    fill(&mut node);
    copy(dir.path(), to.path(), |_| true);
    to
}

fn next_entry(node: &Node) -> Entry {
    entry(REPLICA, node.next_index())
}

#[test]
fn a_log_that_is_damaged_only_where_its_changes_are_in_files_is_purged_of_that_by_a_start() {
    // One state, written again and again: each version lies in the log alone.
    let dir = killed(|node| {
        node.append(vec![next_entry(node)]);
        node.catch_up();
    });
    let (table, at) = found(dir.path(), REPLICA, MIDDLE);
    flip(&table, at);
    let last = noise(seed_of(REPLICA, ENTRIES + 1), 1_000);
    for start in 0..3 {
        let node = Node::open(dir.path());
        assert_eq!(node.store.damages(), [], "start {start}");
        assert!(node.log.purged().is_some_and(|purged| purged.index >= MIDDLE), "start {start}");
        assert_eq!(node.log.last().unwrap().index, ENTRIES + 1, "start {start}");
        assert_eq!(node.field("k", "f"), last, "start {start}");
        node.store.close().unwrap();
    }
}

#[test]
fn a_log_that_is_damaged_where_its_changes_are_nowhere_else_is_missed_by_a_start() {
    let dir = killed(|node| node.append(vec![next_entry(node)]));
    let (table, at) = found(dir.path(), REPLICA, MIDDLE);
    flip(&table, at);
    let before = std::fs::read(&table).unwrap();
    let refused = Store::open(dir.path(), Config::default()).err().unwrap();
    let Error::Damaged { damages } = &refused else { panic!("{refused}") };
    let named = |damage: &statehouse_store::Damage| {
        damage.replica == Some(REPLICA) && damage.file.as_ref() == Some(&table)
    };
    assert!(damages.iter().any(named), "{refused}");
    assert_eq!(std::fs::read(&table).unwrap(), before);
    std::fs::write(dir.path().join("damage-policy"), "quarantine\n").unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    assert_eq!(store.quarantined(), [REPLICA]);
    store.close().unwrap();
}

/// A payload of many rows, in a blob file.
const LARGE: usize = 300 << 10;

fn large_entry(node: &Node) -> Entry {
    let index = node.next_index();
    let commands = vec![put("large", noise(seed_of(REPLICA, index), LARGE))];
    Entry::new(index, 1, Body::Commands(CommandBatch { time_ms: 1_000, commands }))
}

/// The index of the large entry of [`with_a_damaged_payload`].
const LARGE_INDEX: u64 = 1;

/// A store as a kill leaves it, with the payload of an applied entry damaged: the first one's.
fn with_a_damaged_payload() -> TempDir {
    let dir = killed(|node| {
        let is_large = node.next_index() == LARGE_INDEX;
        let next = if is_large { large_entry(node) } else { next_entry(node) };
        node.append(vec![next]);
        node.catch_up();
    });
    flip_payload(dir.path(), LARGE_INDEX);
    dir
}

/// Damages the payload of a large entry.
fn flip_payload(dir: &Path, index: u64) {
    let bytes = noise(seed_of(REPLICA, index), LARGE);
    let (file, at) = find(dir, "blob", &bytes[LARGE / 2..][..NEEDLE]).expect("it was flushed");
    flip(&file, at);
}

#[test]
fn a_payload_that_is_damaged_after_its_change_is_in_files_keeps_no_start_from_reading_the_log() {
    let dir = with_a_damaged_payload();
    for start in 0..3 {
        let node = Node::open(dir.path());
        assert_eq!(node.store.damages(), [], "start {start}");
        let purged = node.log.purged().map_or(0, |purged| purged.index);
        assert!(purged >= LARGE_INDEX, "start {start}");
        let last = node.log.last().unwrap().index;
        assert_eq!(last, ENTRIES + 1, "start {start}");
        node.log.read(purged + 1..last + 1, usize::MAX).unwrap();
        assert_eq!(node.field("k", "f"), noise(seed_of(REPLICA, last), 1_000), "start {start}");
        node.store.close().unwrap();
    }
}

#[test]
fn a_payload_that_is_damaged_before_it_is_applied_is_missed_by_a_start_and_cut_off_by_a_salvage() {
    let dir = killed(|node| {
        let next = if node.next_index() == MIDDLE { large_entry(node) } else { next_entry(node) };
        node.append(vec![next]);
    });
    flip_payload(dir.path(), MIDDLE);
    let refused = Store::open(dir.path(), Config::default()).err().unwrap();
    let Error::Damaged { damages } = &refused else { panic!("{refused}") };
    assert!(damages.iter().all(|damage| damage.replica == Some(REPLICA)), "{refused}");

    let lost = salvage_tables(dir.path()).unwrap();
    let expected = Lost { replica: REPLICA, rows: LostRows::EntriesFrom(MIDDLE) };
    assert_eq!(lost, [expected]);
    let node = Node::open(dir.path());
    assert_eq!(node.log.last().unwrap().index, MIDDLE - 1);
    assert_eq!(node.field("k", "f"), noise(seed_of(REPLICA, MIDDLE - 1), 1_000));
    node.store.close().unwrap();
}

#[test]
fn a_state_that_a_salvage_leaves_out_keeps_no_log_from_being_read() {
    let dir = with_a_damaged_payload();
    let lost = salvage_tables(dir.path()).unwrap();
    let state = LostRows::State(USERS, "large".into());
    assert_eq!(lost, [Lost { replica: REPLICA, rows: state }]);
    let node = Node::open(dir.path());
    let (purged, last) = (node.log.purged().unwrap().index, node.log.last().unwrap().index);
    node.log.read(purged + 1..last + 1, usize::MAX).unwrap();
    assert_eq!(node.field("k", "f"), noise(seed_of(REPLICA, last), 1_000));
    node.store.close().unwrap();
}

#[test]
fn a_log_that_no_replica_to_come_could_use_is_set_aside_where_others_hold_its_rows() {
    let (dir, _) = closed();
    let store = open(dir.path());
    wait(|done| store.meta_put("who", "node 1".into(), done)).unwrap();
    store.copy_facts().unwrap();
    // Into another table: of what the node itself has written, nothing is lost.
    append(&store, OTHER, 1);
    store.close().unwrap();
    drop(store);
    std::fs::write(dir.path().join("damage-policy"), "quarantine\n").unwrap();
    std::fs::remove_file(found(dir.path(), ONE, MIDDLE).0).unwrap();

    let store = open(dir.path());
    assert!(store.was_set_aside().unwrap());
    let told = store.damages();
    let whose: Vec<_> = told.iter().filter_map(|damage| damage.replica).collect();
    assert!(!whose.is_empty() && whose.iter().all(|id| [ONE, OTHER].contains(id)), "{told:?}");
    assert_eq!(store.replicas(), []);
    store.create_replica(ReplicaId(9)).unwrap();
    append(&store, ReplicaId(9), ENTRIES);
    store.close().unwrap();
}
