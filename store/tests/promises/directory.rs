//! Whose directory it is, that nobody else has it, and what a start finds in it.

use std::time::Instant;

use bytes::Bytes;
use statehouse_store::{Config, Error, ReplicaId, ReplicaProblem, STORE_FORMAT, Store};
use tempfile::TempDir;

use crate::support::{Node, REPLICA, put, wait};

fn open(dir: &TempDir) -> Result<Store, Error> {
    Store::open(dir.path(), Config::default())
}

#[test]
fn a_directory_is_opened_by_one_store_at_a_time() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).unwrap();
    let refused = open(&dir).err().unwrap();
    assert!(matches!(&refused, Error::InUse { dir: named } if named == dir.path()), "{refused}");
    store.close().unwrap();
    drop(store);
    open(&dir).unwrap().close().unwrap();
}

#[test]
fn a_lock_that_outlives_its_store_for_a_moment_is_waited_for() {
    let dir = TempDir::new().unwrap();
    open(&dir).unwrap().close().unwrap();
    let lock = std::fs::File::open(dir.path().join("LOCK")).unwrap();
    // Now and then the opening comes too late to find it locked.
    for _ in 0..20 {
        lock.lock().unwrap();
        let (opening, opened) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                opening.send(()).unwrap();
                open(&dir).unwrap().close().unwrap();
            });
            opened.recv().unwrap();
            lock.unlock().unwrap();
        });
    }
}

#[test]
fn a_directory_of_somebody_else_is_left_alone() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "all of it").unwrap();
    assert!(matches!(open(&dir).err().unwrap(), Error::NotOurs { .. }));
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "nothing was added");
}

#[test]
fn a_store_of_a_newer_format_is_refused() {
    let dir = TempDir::new().unwrap();
    open(&dir).unwrap().close().unwrap();
    let marker = dir.path().join("STATEHOUSE");
    let text = std::fs::read_to_string(&marker).unwrap();
    let ours = format!("format {STORE_FORMAT}");
    std::fs::write(&marker, text.replace(&ours, "format 9")).unwrap();
    let refused = open(&dir).err().unwrap();
    let supported = u32::from(STORE_FORMAT);
    assert!(
        matches!(refused, Error::NewerFormat { found: 9, supported: s } if s == supported),
        "{refused}"
    );
}

#[test]
fn a_marker_that_is_cut_short_is_corrupt() {
    let dir = TempDir::new().unwrap();
    open(&dir).unwrap().close().unwrap();
    std::fs::write(dir.path().join("STATEHOUSE"), "statehouse store\nformat 1\n").unwrap();
    let refused = open(&dir).err().unwrap();
    assert_eq!(refused.to_string(), "corrupt marker: it has no line \"id\"");
}

#[test]
fn a_database_of_another_store_is_refused() {
    let (ours, theirs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    open(&ours).unwrap().close().unwrap();
    open(&theirs).unwrap().close().unwrap();
    std::fs::remove_dir_all(ours.path().join("db")).unwrap();
    std::fs::rename(theirs.path().join("db"), ours.path().join("db")).unwrap();
    let refused = open(&ours).err().unwrap();
    assert!(matches!(refused, Error::Damaged { .. }), "{refused}");
    let reason = "its database belongs to another directory";
    assert!(refused.to_string().contains(reason), "{refused}");
}

#[test]
fn an_interrupted_first_start_is_finished_by_the_next() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("LOCK"), "").unwrap();
    std::fs::write(dir.path().join("STATEHOUSE.new"), "stateho").unwrap();
    open(&dir).unwrap().close().unwrap();
}

#[test]
fn a_store_keeps_its_id_and_its_facts() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).unwrap();
    let id = store.id();
    assert_ne!(id, [0; 16]);
    assert_eq!(store.meta_get("name").unwrap(), None);
    wait(|done| store.meta_put("name", Bytes::from_static(b"n1"), done)).unwrap();
    store.close().unwrap();
    drop(store);
    let store = open(&dir).unwrap();
    assert_eq!(store.id(), id);
    assert_eq!(store.meta_get("name").unwrap(), Some(Bytes::from_static(b"n1")));
}

#[test]
fn replicas_are_made_and_dropped_for_good() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir).unwrap();
    let started = Instant::now();
    for id in 1..=16 {
        store.create_replica(ReplicaId(id)).unwrap();
    }
    println!("16 replicas made in {:?}", started.elapsed());
    let exists = store.create_replica(ReplicaId(3)).unwrap_err();
    assert!(matches!(exists, Error::Replica { problem: ReplicaProblem::Exists, .. }));
    let (log, reader) = (store.log(ReplicaId(3)).unwrap(), store.reader(ReplicaId(3)).unwrap());
    store.drop_replica(ReplicaId(3)).unwrap();
    let missing = [
        log.read(1..2, 1).err().unwrap(),
        reader.scan(crate::support::USERS, None, 1).err().unwrap(),
        store.shard(ReplicaId(3)).err().unwrap(),
        store.drop_replica(ReplicaId(3)).err().unwrap(),
    ];
    for error in missing {
        assert_eq!(error.to_string(), "replica 3 does not exist");
    }
    drop((log, reader));
    store.close().unwrap();
    drop(store);
    let store = open(&dir).unwrap();
    let expected: Vec<_> = (1..=16).filter(|id| *id != 3).map(ReplicaId).collect();
    assert_eq!(store.replicas(), expected);
    store.create_replica(ReplicaId(3)).unwrap();
    assert_eq!(store.log(ReplicaId(3)).unwrap().last(), None, "nothing of the old one is left");
}

#[test]
fn a_shard_has_one_owner() {
    let node = Node::new();
    let taken = node.store.shard(REPLICA).err().unwrap();
    assert_eq!(taken.to_string(), "replica 1 is applied by somebody else");
    drop(node.shard);
    node.store.shard(REPLICA).unwrap();
}

#[test]
fn writes_are_refused_below_the_reserve_and_reads_go_on() {
    let dir = TempDir::new().unwrap();
    let config = Config { disk_reserve_bytes: u64::MAX, ..Config::default() };
    let mut node = Node::open_with(dir.path(), config);
    let full = node.store.check_space().unwrap_err();
    assert!(matches!(full, Error::DiskFull { reserve: u64::MAX, .. }), "{full}");
    // The caller asks before it admits: an entry that is under way is never refused.
    node.run(vec![put("k", &b"v"[..])]);
    assert_eq!(node.field("k", "f"), &b"v"[..]);
    let node = Node::new();
    node.store.check_space().unwrap();
}
