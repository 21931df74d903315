//! What apply writes is in memory until it is flushed; the log brings it back after a crash, and
//! is purged of nothing that it must bring back.

use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_store::{
    Body, CollectionId, Command, CommandBatch, Config, Entry, EntryId, Log, ReplicaId, Store,
};
use tempfile::TempDir;

use crate::crash::{self, DIRECTORY, SEED, run_and_kill};
use crate::support::{Node, REPLICA, noise, pick, put, seed, wait};

const KILLS: usize = 15;

/// Entries between two drops of a collection; each drop is of the ones before it.
const ENTRIES_PER_COLLECTION: u64 = 40;

/// The term of entries that lose their place before they are committed.
const LOST_TERM: u64 = 9;

/// From so small that RocksDB flushes all the time to so large that it does seldom.
fn small(random: &mut StdRng) -> Config {
    let memtable_bytes_max = 1 << pick(random, 20..26);
    Config { memtable_bytes_max, log_tail_bytes_max: 1 << 20, ..Config::default() }
}

/// Entry `index` of a history that its seed decides. Collections come and go in it.
fn commands(seed: u64, index: u64) -> (u64, Vec<Command>) {
    let (time_ms, mut commands) = crash::commands(seed, index);
    let collection = CollectionId(100 + index / ENTRIES_PER_COLLECTION);
    let mut passing = put(&format!("p{}", index % 7), noise(seed ^ index, 30_000));
    let Command::Put(write) = &mut passing else { unreachable!("it is a put") };
    write.write.target.collection = collection;
    commands.push(passing);
    if index.is_multiple_of(ENTRIES_PER_COLLECTION) {
        commands.push(Command::DropCollection { collection: CollectionId(collection.0 - 1) });
    }
    (time_ms, commands)
}

/// What the history makes without any crash.
fn model(seed: u64, last: u64) -> Node {
    let mut node = Node::new();
    go_on(&mut node, seed, last);
    node
}

fn go_on(node: &mut Node, seed: u64, last: u64) {
    for index in node.next_index()..=last {
        let (time_ms, commands) = commands(seed, index);
        node.run_at(time_ms, commands);
    }
}

enum Chore {
    Flush,
    /// Purges through a share of what is flushed.
    Purge(f64),
}

fn chores(store: &Store, log: &Log, due: &Receiver<Chore>) {
    while let Ok(chore) = due.recv() {
        match chore {
            Chore::Flush => store.flush(&[REPLICA]).unwrap(),
            Chore::Purge(share) => {
                let flushed = log.flushed().unwrap().index as f64;
                wait(|done| log.purge_through((flushed * share) as u64, done)).unwrap();
            }
        }
    }
}

/// A chore now and then, on another thread: entries are applied meanwhile.
fn start_chores(node: &Node) -> SyncSender<Chore> {
    let (start, due) = sync_channel(1);
    let (store, log) = (node.store.clone(), node.log.clone());
    std::thread::spawn(move || chores(&store, &log, &due));
    start
}

/// Truncates another leader's entry, if one is left.
fn truncate_lost(node: &Node) {
    if let Some(lost) = node.log.last().filter(|last| last.term == LOST_TERM) {
        wait(|done| node.log.truncate_from(lost.index, done)).unwrap();
    }
}

/// Not a test of its own: what the killed process does.
#[test]
#[ignore = "started by the test below as a process of its own"]
fn child() {
    let Ok(dir) = std::env::var(DIRECTORY) else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let mut random = StdRng::from_os_rng();
    let mut node = Node::open_as_found(Path::new(&dir), small(&mut random));
    truncate_lost(&node);
    node.catch_up();
    let chores = start_chores(&node);
    loop {
        if pick(&mut random, 0..8) == 0 {
            // Another leader's entry, which loses its place before it is committed.
            let (time_ms, lost) = commands(seed + 1, node.next_index());
            node.append(vec![Entry::new(
                node.next_index(),
                LOST_TERM,
                node.entry(time_ms, lost).body,
            )]);
            truncate_lost(&node);
        }
        let (time_ms, commands) = commands(seed, node.next_index());
        node.run_at(time_ms, commands);
        let chore = match pick(&mut random, 0..12) {
            0 => Some(Chore::Flush),
            1..=4 => Some(Chore::Purge(random.random_range(0.9..=1.0))),
            _ => None,
        };
        // Refused when one is under way and one waits.
        chore.into_iter().for_each(|chore| drop(chores.try_send(chore)));
        let line = format!("\nack {} .\n", node.shard.applied().index);
        if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn killed_between_flushes_and_purges_a_replica_comes_back_as_its_twin() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let dir = TempDir::new().unwrap();
    let (mut acknowledged, mut kept, mut replayed) = (0, 0, 0);
    for kill in 1..=KILLS {
        let last = run_and_kill("flush::child", dir.path(), seed, pick(&mut random, 1..60));
        assert!(last > acknowledged, "the child went on where it had stopped");
        acknowledged = last;
        // Others are killed again, without our look and its close, which flushes.
        if kill % 3 != 0 {
            continue;
        }
        let mut node = Node::open_as_found(dir.path(), small(&mut random));
        let found = node.shard.applied().index;
        let mut twin = model(seed, found);
        // As found, before the replay mends what it can.
        assert_eq!(hash(&node), hash(&twin), "kill {kill}: entry {found}");
        truncate_lost(&node);
        node.catch_up();
        let applied = node.shard.applied().index;
        assert!(applied >= acknowledged, "kill {kill}: {acknowledged} acknowledged, {applied}");
        (kept, replayed) = (kept + found, replayed + applied - found);
        go_on(&mut twin, seed, applied);
        assert_eq!(hash(&node), hash(&twin), "kill {kill}: entry {applied}");
        if kill % 2 == 0 || kill == KILLS {
            node.purge_all();
            twin.purge_all();
            let census = node.shard.census().unwrap();
            assert_eq!(census, twin.shard.census().unwrap(), "kill {kill}");
            assert_eq!(census.garbage, 0);
        }
        node.store.close().unwrap();
    }
    println!("{acknowledged} entries acknowledged; starts found {kept}, replayed {replayed}");
    assert!(replayed > 0, "no start had anything to replay");
    assert!(kept > 0, "no start found anything flushed");
}

fn hash(node: &Node) -> u64 {
    node.shard.state_hash().unwrap()
}

fn index(id: EntryId) -> u64 {
    id.index
}

#[test]
fn the_flushed_entry_is_the_applied_one_as_of_the_last_flush() {
    let mut node = Node::new();
    assert_eq!(node.log.flushed().unwrap(), EntryId::default());
    node.run(vec![put("k", noise(1, 400_000))]);
    assert_eq!(index(node.log.flushed().unwrap()), 0, "memory is not the disk");
    let bytes = node.log.unflushed_bytes();
    assert!((400_000..401_000).contains(&bytes), "{bytes}");
    node.store.flush(&[REPLICA, ReplicaId(99)]).unwrap();
    assert_eq!(node.log.flushed().unwrap(), EntryId { index: 1, term: 1 });
    assert_eq!(node.log.unflushed_bytes(), 0);
    node.run(vec![put("k", &b"v"[..])]);
    assert_eq!(index(node.log.flushed().unwrap()), 1);
    let mut node = node.reopen();
    assert_eq!(node.log.unflushed_bytes(), 0, "a close flushes");
    assert_eq!(index(node.log.flushed().unwrap()), 2);
    // Also before the first write of a run, and behind those of other replicas.
    let other = ReplicaId(2);
    node.store.create_replica(other).unwrap();
    node.run(vec![put("k", &b"w"[..])]);
    assert_eq!(index(node.store.log(other).unwrap().flushed().unwrap()), 0);
    assert_eq!(index(node.log.flushed().unwrap()), 2);
}

#[test]
fn one_replica_is_flushed_and_the_others_are_left() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    let ids = [ReplicaId(1), ReplicaId(2)];
    for id in ids {
        store.create_replica(id).unwrap();
        let batch = CommandBatch { time_ms: 1, commands: vec![put("k", &b"v"[..])] };
        let entry = Entry::new(1, 1, Body::Commands(batch));
        wait(|done| store.log(id).unwrap().append(vec![entry.clone()], done)).unwrap();
        let mut batch = store.apply_batch();
        store.shard(id).unwrap().apply(&mut batch, &entry).unwrap();
        batch.commit().unwrap();
    }
    store.flush(&[ReplicaId(2)]).unwrap();
    let flushed = ids.map(|id| index(store.log(id).unwrap().flushed().unwrap()));
    assert_eq!(flushed, [0, 1]);
    store.close().unwrap();
}

#[test]
fn garbage_of_entries_that_are_not_flushed_outlives_a_purge_through_them() {
    let mut node = Node::new();
    node.run(vec![put("k", noise(1, 400_000))]);
    node.run(vec![put("other", noise(2, 10))]);
    node.store.flush(&[REPLICA]).unwrap();
    // Frees the chunks of entry 1, in memory alone: a crash would bring their record back.
    node.run(vec![put("k", &b"v"[..])]);
    wait(|done| node.log.purge_through(2, done)).unwrap();
    let census = node.shard.census().unwrap();
    assert_eq!((census.chunks, census.garbage), (2, 1));
    node.store.flush(&[REPLICA]).unwrap();
    wait(|done| node.log.purge_through(2, done)).unwrap();
    let census = node.shard.census().unwrap();
    assert_eq!((census.chunks, census.garbage), (0, 0));
}

#[test]
#[should_panic(expected = "entry 1 is not flushed: it can't be purged")]
fn what_is_not_flushed_can_not_be_purged() {
    let mut node = Node::new();
    node.run(vec![put("k", &b"v"[..])]);
    let _ = node.log.purge_through(1, Box::new(|_| ()));
}
