//! What a full commit queue refuses can be asked for again: making a replica, dropping one,
//! replacing one.

use std::sync::mpsc;

use bytes::Bytes;
use statehouse_store::{Config, Error, ReplicaId, ReplicaProblem, Store};
use tempfile::TempDir;

use crate::support::{Node, REPLICA, put, wait};

const OTHER: ReplicaId = ReplicaId(2);

/// A queue with room for one job.
fn tiny() -> Config {
    Config { commit_queue_entries_max: 1, ..Config::default() }
}

/// A store whose commit thread stands still and whose queue is full, until this is dropped.
struct Clog {
    release: Option<mpsc::Sender<()>>,
    queued: mpsc::Receiver<Result<(), Error>>,
}

impl Clog {
    fn of(store: &Store) -> Clog {
        let (begun, begins) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let stand_still = move |result: Result<(), Error>| {
            result.unwrap();
            begun.send(()).unwrap();
            // Until the other end is dropped.
            let _ = released.recv();
        };
        store.meta_put("first", Bytes::new(), Box::new(stand_still)).unwrap();
        begins.recv().unwrap();
        let (done, queued) = mpsc::channel();
        let done = Box::new(move |result| done.send(result).unwrap());
        store.meta_put("second", Bytes::new(), done).unwrap();
        Clog { release: Some(release), queued }
    }

    fn open(mut self) {
        self.release = None;
        self.queued.recv().unwrap().unwrap();
    }
}

fn assert_full(result: Result<(), Error>) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Overloaded { .. }), "{error}");
}

#[test]
fn a_replica_that_found_the_queue_full_can_be_made_afterwards() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), tiny()).unwrap();
    let clog = Clog::of(&store);
    for _ in 0..3 {
        assert_full(store.create_replica(OTHER));
        assert!(store.replicas().is_empty());
    }
    clog.open();
    store.create_replica(OTHER).unwrap();
    assert_eq!(store.replicas(), [OTHER]);
    assert!(store.log(OTHER).unwrap().last().is_none());
    store.close().unwrap();
    drop(store);
    let store = Store::open(dir.path(), tiny()).unwrap();
    assert_eq!(store.replicas(), [OTHER]);
}

#[test]
fn a_replica_that_could_not_be_dropped_goes_on_and_can_be_dropped_afterwards() {
    let dir = TempDir::new().unwrap();
    let mut node = Node::open_with(dir.path(), tiny());
    node.run(vec![put("k", "v")]);
    let clog = Clog::of(&node.store);
    for _ in 0..3 {
        assert_full(node.store.drop_replica(REPLICA));
        assert_eq!(node.store.replicas(), [REPLICA]);
    }
    clog.open();
    node.run(vec![put("later", "w")]);
    assert_eq!((node.field("k", "f"), node.field("later", "f")), ("v".into(), "w".into()));
    node.store.drop_replica(REPLICA).unwrap();
    assert!(node.store.replicas().is_empty());
    let again = node.store.drop_replica(REPLICA).unwrap_err();
    let missing = ReplicaProblem::Missing;
    assert!(matches!(again, Error::Replica { problem, .. } if problem == missing), "{again}");
    node.store.create_replica(REPLICA).unwrap();
    assert!(node.store.log(REPLICA).unwrap().last().is_none(), "it is a new one");
    assert!(wait(|done| node.log.append(vec![node.entry(1, Vec::new())], done)).is_err());
}

#[test]
fn a_view_that_finds_the_queue_full_is_installed_when_there_is_room() {
    let mut from = Node::new();
    for n in 0..20 {
        from.run(vec![put(&format!("{n}"), "v")]);
    }
    let dir = TempDir::new().unwrap();
    let mut to = Node::open_with(dir.path(), tiny());
    let mut export = from.store.export(REPLICA).unwrap();
    let mut incoming = to.store.receive(REPLICA).unwrap();
    while let Some(block) = export.next(1 << 20).unwrap() {
        incoming.add(block).unwrap();
    }
    let received = incoming.finish().unwrap();
    let clog = Clog::of(&to.store);
    std::thread::scope(|scope| {
        let shard = &mut to.shard;
        let installing = scope.spawn(move || shard.install(received));
        // Long enough for a call that gives up to have done so.
        let given_up = std::time::Instant::now() + std::time::Duration::from_millis(300);
        while std::time::Instant::now() < given_up {
            assert!(!installing.is_finished(), "it waits for room");
            std::thread::yield_now();
        }
        clog.open();
        installing.join().unwrap().unwrap();
    });
    assert_eq!(to.shard.state_hash().unwrap(), from.shard.state_hash().unwrap());
}
