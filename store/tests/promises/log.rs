//! A log keeps what it was given, in order, and says so only when it is synced.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use statehouse_store::{Body, Command, Config, Delete, Entry, EntryId, Error, ReplicaId, Store};
use tempfile::TempDir;

use crate::support::{Node, REPLICA, noise, put, wait, write};

fn blank(index: u64, term: u64) -> Entry {
    Entry::new(index, term, Body::Blank)
}

fn id(index: u64, term: u64) -> Option<EntryId> {
    Some(EntryId { index, term })
}

fn indexes(entries: &[Arc<Entry>]) -> Vec<u64> {
    entries.iter().map(|entry| entry.index).collect()
}

#[test]
fn entries_are_readable_at_once_and_durable_at_the_callback() {
    let node = Node::new();
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result| sender.send(result).unwrap());
    node.log.append(vec![blank(1, 1), blank(2, 1)], done).unwrap();
    assert_eq!(indexes(&node.log.read(1..3, 1 << 20).unwrap()), [1, 2]);
    receiver.recv().unwrap().unwrap();
    let node = node.reopen();
    assert_eq!(node.log.last(), id(2, 1));
}

#[test]
fn reading_stops_at_the_limit_and_at_the_ends() {
    let mut node = Node::new();
    for seed in 0..10 {
        node.run(vec![put("k", noise(seed, 1_000))]);
    }
    let read = |node: &Node, range, bytes_max| indexes(&node.log.read(range, bytes_max).unwrap());
    for node in [&node, &node] {
        assert_eq!(read(node, 3..6, 1 << 20), [3, 4, 5]);
        assert_eq!(read(node, 3..6, 0), [3], "at least one");
        assert_eq!(read(node, 9..20, 1 << 20), [9, 10]);
        assert_eq!(read(node, 11..20, 1 << 20), [] as [u64; 0]);
        assert_eq!(read(node, 0..20, 1 << 20), [] as [u64; 0], "there is no entry 0");
    }
    let node = node.reopen();
    assert_eq!(read(&node, 3..6, 1 << 20), [3, 4, 5]);
    assert_eq!(read(&node, 3..6, 2_500), [3, 4]);
    assert_eq!(read(&node, 3..6, 0), [3], "at least one");
}

#[test]
fn a_full_tail_gives_up_what_is_durable_and_reads_find_it_on_disk() {
    let dir = TempDir::new().unwrap();
    let config = Config { log_tail_bytes_max: 20_000, ..Config::default() };
    let mut node = Node::open_with(dir.path(), config);
    for seed in 0..100 {
        node.run(vec![put("k", noise(seed, 1_000))]);
    }
    assert!(node.store.stats().memory.log_tail_bytes <= 20_000);
    let entries = node.log.read(1..101, 1 << 20).unwrap();
    assert_eq!(indexes(&entries), (1..101).collect::<Vec<_>>());
    for (seed, entry) in (0..).zip(entries) {
        let expected = node.entry(1_000, vec![put("k", noise(seed, 1_000))]).body;
        assert_eq!(entry.body, expected);
    }
}

#[test]
fn truncated_entries_are_gone_and_others_take_their_place() {
    let node = Node::new();
    node.append((1..=5).map(|index| blank(index, 1)).collect());
    wait(|done| node.log.truncate_from(4, done)).unwrap();
    assert_eq!(node.log.last(), id(3, 1));
    node.append(vec![blank(4, 2)]);
    assert_eq!(node.log.entry_id(4).unwrap(), id(4, 2));
    assert_eq!(node.log.entry_id(5).unwrap(), None);
    wait(|done| node.log.truncate_from(9, done)).unwrap();
    let node = node.reopen();
    assert_eq!(node.log.last(), id(4, 2));
    assert_eq!(node.log.entry_id(3).unwrap(), id(3, 1));
}

#[test]
fn truncating_what_is_on_disk_alone_works_the_same() {
    let dir = TempDir::new().unwrap();
    let config = Config { log_tail_bytes_max: 0, ..Config::default() };
    let store = Store::open(dir.path(), config).unwrap();
    store.create_replica(REPLICA).unwrap();
    let (log, shard) = (store.log(REPLICA).unwrap(), store.shard(REPLICA).unwrap());
    for index in 1..=5 {
        let commands = vec![put("k", noise(index, 100_000))];
        let batch = statehouse_store::CommandBatch { time_ms: 1, commands };
        let entry = Entry::new(index, 1, Body::Commands(batch));
        wait(|done| log.append(vec![entry], done)).unwrap();
    }
    assert_eq!(store.stats().memory.log_tail_bytes, 0);
    wait(|done| log.truncate_from(2, done)).unwrap();
    assert_eq!(log.last(), id(1, 1));
    assert_eq!(shard.census().unwrap().chunks, 1);
}

#[test]
fn a_purged_log_starts_behind_and_knows_where() {
    let mut node = Node::new();
    for seed in 0..5 {
        node.run(vec![put("k", noise(seed, 10))]);
    }
    node.store.flush(&[REPLICA]).unwrap();
    wait(|done| node.log.purge_through(3, done)).unwrap();
    wait(|done| node.log.purge_through(2, done)).unwrap();
    {
        let node = node.reopen();
        assert_eq!(node.log.purged(), id(3, 1));
        assert_eq!(node.log.last(), id(5, 1));
        assert_eq!(node.log.entry_id(3).unwrap(), id(3, 1));
        assert_eq!(node.log.entry_id(2).unwrap(), None);
        assert!(node.log.read(3..5, 1 << 20).unwrap().is_empty());
        assert_eq!(indexes(&node.log.read(4..9, 1 << 20).unwrap()), [4, 5]);
        node.purge_all();
        assert_eq!((node.log.purged(), node.log.last()), (id(5, 1), id(5, 1)));
        let node = node.reopen();
        assert_eq!((node.log.purged(), node.log.last()), (id(5, 1), id(5, 1)));
        node.append(vec![blank(6, 1)]);
    }
}

#[test]
#[should_panic(expected = "it can't be purged")]
fn what_is_not_applied_can_not_be_purged() {
    let node = Node::new();
    node.append(vec![blank(1, 1)]);
    let _ = node.log.purge_through(1, Box::new(|_| ()));
}

#[test]
#[should_panic(expected = "it stays")]
fn what_is_applied_can_not_be_truncated() {
    let mut node = Node::new();
    node.run(vec![put("k", &b"v"[..])]);
    let _ = node.log.truncate_from(1, Box::new(|_| ()));
}

#[test]
#[should_panic(expected = "without gaps")]
fn gaps_are_a_bug_of_the_caller() {
    let node = Node::new();
    let _ = node.log.append(vec![blank(2, 1)], Box::new(|_| ()));
}

#[test]
fn entries_out_of_bounds_are_refused_and_nothing_changes() {
    let node = Node::new();
    let commands = vec![Command::Delete(Delete { write: write("") })];
    let refused = node.log.append(vec![node.entry(1, commands)], Box::new(|_| ())).unwrap_err();
    assert_eq!(refused.to_string(), "expected 1..=512 bytes of a key, found 0");
    assert_eq!(node.log.last(), None);
}

#[test]
fn a_vote_is_kept() {
    let node = Node::new();
    assert_eq!(node.log.vote(), None);
    wait(|done| node.log.save_vote(Bytes::from_static(b"t5 n2"), done)).unwrap();
    let node = node.reopen();
    assert_eq!(node.log.vote(), Some(Bytes::from_static(b"t5 n2")));
}

#[test]
fn memberships_are_kept_with_the_entry_that_brought_them() {
    let mut node = Node::new();
    let membership = Bytes::from_static(b"1,2,3");
    node.append(vec![
        blank(1, 1),
        Entry::new(2, 1, Body::Membership(membership.clone())),
        blank(3, 1),
    ]);
    node.catch_up();
    let node = node.reopen();
    assert_eq!(node.shard.applied(), EntryId { index: 3, term: 1 });
    assert_eq!(node.shard.membership(), Some((EntryId { index: 2, term: 1 }, membership)));
}

#[test]
fn a_full_commit_queue_refuses_and_nothing_changes() {
    let dir = TempDir::new().unwrap();
    let config = Config { commit_queue_entries_max: 4, ..Config::default() };
    let node = Node::open_with(dir.path(), config);
    // The commit thread is held in a callback, so that what comes now must wait.
    let (entered, is_held) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    let hold = Box::new(move |_| {
        entered.send(()).unwrap();
        held.recv().unwrap();
    });
    node.log.append(vec![blank(1, 1)], hold).unwrap();
    is_held.recv().unwrap();
    for index in 2..=4 {
        node.log.append(vec![blank(index, 1)], Box::new(|_| ())).unwrap();
    }
    let (sender, receiver) = mpsc::channel();
    node.log.append(vec![blank(5, 1)], Box::new(move |_| sender.send(()).unwrap())).unwrap();
    let refused = node.log.append(vec![blank(6, 1)], Box::new(|_| panic!("not called")));
    assert!(matches!(refused, Err(Error::Overloaded { max: 4, .. })), "{refused:?}");
    assert_eq!(node.log.last(), id(5, 1));
    release.send(()).unwrap();
    receiver.recv().unwrap();
    // What was refused may come again, and lands in its place.
    node.append(vec![blank(6, 1)]);
}

#[test]
fn appends_of_many_replicas_share_their_syncs() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    let replicas: Vec<_> = (1..=8).map(ReplicaId).collect();
    replicas.iter().for_each(|id| store.create_replica(*id).unwrap());
    let before = store.stats().commit;
    let (sender, receiver) = mpsc::channel();
    let under_way = Arc::new(AtomicUsize::new(0));
    for index in 1..=100 {
        for id in &replicas {
            let (sender, under_way) = (sender.clone(), under_way.clone());
            under_way.fetch_add(1, Ordering::Relaxed);
            let done = Box::new(move |result: Result<(), Error>| {
                under_way.fetch_sub(1, Ordering::Relaxed);
                sender.send(result).unwrap();
            });
            store.log(*id).unwrap().append(vec![blank(index, 1)], done).unwrap();
        }
    }
    for _ in 0..800 {
        receiver.recv().unwrap().unwrap();
    }
    let after = store.stats().commit;
    assert_eq!(after.jobs - before.jobs, 800);
    let syncs = after.syncs - before.syncs;
    println!("{syncs} syncs for 800 appends");
    assert!(syncs <= 400, "{syncs} syncs for 800 appends");
    assert_eq!(under_way.load(Ordering::Relaxed), 0);
}
