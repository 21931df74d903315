//! A compaction that meets damage: it is told, costs the replica whose rows they are and no other,
//! and stops no write. RocksDB alone would refuse every write from then on.

use statehouse_store::{Command, Config, Delete, Error, ReplicaId, Selection, Store};
use tempfile::TempDir;

use crate::flips::{self, Driven};
use crate::support::{Node, REPLICA, USERS, find, flip, noise, put, until, write};

const DAMAGED: ReplicaId = ReplicaId(1);
const OTHER: ReplicaId = ReplicaId(2);
const MIB: usize = 1 << 20;

/// Tables from which on RocksDB lets nobody write until some are compacted, and some more.
const TABLES: u64 = 36 + 12;

/// Bytes of a value by which it is found in a file.
const NEEDLE: usize = 32;

/// Nothing is read from memory that could be read from files.
fn config() -> Config {
    Config { state_cache_bytes: 0, log_tail_bytes_max: 0, ..flips::config() }
}

fn assert_writes_go_on(store: &Store, what: &str) {
    let stopped = store.property(None, "rocksdb.is-write-stopped");
    assert_eq!(stopped.as_deref(), Some("0"), "{what}: writes wait for a compaction");
    assert_eq!(store.failure().map(|error| error.to_string()), None, "{what}");
}

fn tables_of(store: &Store, id: ReplicaId) -> u64 {
    store.property(Some(id), "rocksdb.num-files-at-level0").unwrap().parse().unwrap()
}

/// Asserts that damage was told, of one replica alone. Answers the files that were named.
fn files_told(store: &Store, id: ReplicaId) -> Vec<std::path::PathBuf> {
    let damages = store.damages();
    assert!(damages.iter().all(|damage| damage.replica == Some(id)), "{damages:?}");
    assert_eq!(store.stats().damages, damages.len() as u64);
    damages.into_iter().filter_map(|damage| damage.file).collect()
}

fn created(store: &Store, id: ReplicaId) -> Driven {
    store.create_replica(id).unwrap();
    Driven::open(store, id)
}

fn new_key(number: u64) -> String {
    // Behind all old ones: nothing old is read for it.
    format!("x{number:03}")
}

/// Writes to both replicas, and has each make a table of it.
fn write_tables(store: &Store, replicas: &mut [Driven; 2], numbers: std::ops::Range<u64>) {
    for number in numbers {
        assert_writes_go_on(store, &format!("table {number}"));
        for replica in &mut *replicas {
            replica.run(store, vec![put(&new_key(number), noise(number, 1_000))]);
        }
        store.flush(&[DAMAGED, OTHER]).unwrap();
    }
}

/// Reads states. Answers how many are refused as corrupt; the others are as they were written.
fn corrupt(replica: &Driven, states: std::ops::Range<u64>, key: fn(u64) -> String) -> u64 {
    let mut refused = 0;
    for number in states {
        let key = key(number);
        let all = Selection::all();
        match replica.reader.get_whole(USERS, key.as_bytes(), &all, 1_000) {
            Ok(state) => {
                let state = state.unwrap_or_else(|| panic!("{key} is gone"));
                assert_eq!(*state.fields[0].bytes(), noise(number, 1_000), "{key}");
            }
            Err(Error::Corrupt { .. }) => refused += 1,
            Err(error) => panic!("{key}: {error}"),
        }
    }
    refused
}

#[test]
fn a_compaction_that_meets_a_damaged_table_costs_its_replica_alone_and_stops_no_write() {
    const STATES: u64 = 100;
    let old_key = |number| format!("old{number:03}");
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), config()).unwrap();
    let mut replicas = [DAMAGED, OTHER].map(|id| created(&store, id));
    let states = (0..STATES).map(|number| put(&old_key(number), noise(number, 1_000)));
    replicas[0].run(&store, states.collect());
    store.flush(&[DAMAGED]).unwrap();
    let damaged = &noise(STATES / 2, 1_000)[..NEEDLE];
    let (file, at) = find(dir.path(), "sst", damaged).expect("it was flushed");
    flip(&file, at);

    write_tables(&store, &mut replicas, 0..4);
    until("a compaction meets it", || !store.damages().is_empty());
    assert_eq!(files_told(&store, DAMAGED), std::slice::from_ref(&file));
    write_tables(&store, &mut replicas, 4..TABLES);
    until("the other replica's tables are compacted", || tables_of(&store, OTHER) < 4);
    assert!(tables_of(&store, DAMAGED) > 36, "the damaged one's pile up");
    assert_eq!(
        files_told(&store, DAMAGED),
        std::slice::from_ref(&file),
        "it is not met again and again"
    );

    let refused = corrupt(&replicas[0], 0..STATES, old_key);
    assert!((1..=10).contains(&refused), "{refused} states lie in one block");
    assert_eq!(replicas.each_ref().map(|it| corrupt(it, 0..TABLES, new_key)), [0, 0]);
    assert!(files_told(&store, DAMAGED).iter().all(|told| *told == file));
    store.close().unwrap();
    drop((replicas, store));

    let store = Store::open(dir.path(), config()).unwrap();
    until("a compaction meets it again", || !store.damages().is_empty());
    assert_eq!(files_told(&store, DAMAGED), [file]);
    let mut replicas = [DAMAGED, OTHER].map(|id| Driven::open(&store, id));
    write_tables(&store, &mut replicas, TABLES..TABLES + 4);
    assert_eq!(corrupt(&replicas[0], 0..TABLES + 4, new_key), 0);
    store.close().unwrap();
}

#[test]
fn a_compaction_that_meets_a_damaged_blob_costs_its_replica_and_stops_no_write() {
    const STATES: u64 = 24;
    const LOST: u64 = 1;
    let dir = TempDir::new().unwrap();
    // Every disk is short of that much: live blobs are moved for every bit of garbage.
    let config = Config { disk_reserve_bytes: u64::MAX, ..config() };
    let mut node = Node::open_with(dir.path(), config);
    for number in 0..STATES {
        node.run(vec![put(&number.to_string(), noise(number, MIB))]);
    }
    node.purge_all();
    let damaged = &noise(LOST, MIB)[MIB / 2..][..NEEDLE];
    let (file, at) = find(dir.path(), "blob", damaged).expect("it was flushed");
    flip(&file, at);

    let gone = (0..STATES).filter(|number| number % 2 == 0);
    node.run(gone.map(|n| Command::Delete(Delete { write: write(&n.to_string()) })).collect());
    node.purge_all();
    let mut tables = 0;
    let mut write_table = |node: &mut Node| {
        assert_writes_go_on(&node.store, &format!("table {tables}"));
        node.run(vec![put(&new_key(tables), noise(tables, 1_000))]);
        node.store.flush(&[REPLICA]).unwrap();
        tables += 1;
    };
    until("a compaction meets it", || {
        write_table(&mut node);
        !node.store.damages().is_empty()
    });
    (0..TABLES).for_each(|_| write_table(&mut node));

    let damages = node.store.damages();
    assert!(damages.iter().all(|damage| damage.replica == Some(REPLICA)), "{damages:?}");
    for number in (1..STATES).step_by(2) {
        let key = number.to_string();
        let read = node.reader.get_whole(USERS, key.as_bytes(), &Selection::all(), 1_000);
        match (number, read) {
            (LOST, Err(Error::Corrupt { .. })) => {}
            (LOST, other) => panic!("{:?}", other.map(|state| state.is_some())),
            (_, state) => {
                assert_eq!(*state.unwrap().unwrap().fields[0].bytes(), noise(number, MIB));
            }
        }
    }
    for number in 0..tables {
        assert_eq!(node.field(&new_key(number), "f"), noise(number, 1_000));
    }
    node.store.close().unwrap();
}
