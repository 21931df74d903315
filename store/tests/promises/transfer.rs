//! A replica that received another one's view is its twin, and one that was interrupted while it
//! did is what it was before.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_store::{
    Body, Command, Config, Entry, EntryId, Error, Export, Received, ReplicaProblem, Selection,
    Store, TRANSFER_FORMAT, TransferProblem,
};
use tempfile::TempDir;

use crate::crash::{DIRECTORY, SEED, commands, run_and_kill};
use crate::support::{Node, REPLICA, USERS, noise, pick, put, seed, wait};

const MIB: usize = 1 << 20;
const KILLS: usize = 12;

fn run_through(node: &mut Node, seed: u64, last: u64) {
    for index in node.next_index()..=last {
        let (time_ms, commands) = commands(seed, index);
        node.run_at(time_ms, commands);
    }
}

pub fn blocks(export: &mut Export, bytes_max: usize) -> Vec<Bytes> {
    std::iter::from_fn(|| export.next(bytes_max).unwrap()).collect()
}

pub fn receive(store: &Store, blocks: &[Bytes]) -> Result<Received, Error> {
    let mut incoming = store.receive(REPLICA)?;
    for block in blocks {
        incoming.add(block.clone())?;
    }
    incoming.finish()
}

/// Sends the one replica's view and puts it in the place of the other.
fn transfer(from: &Node, to: &mut Node, bytes_max: usize) {
    let blocks = blocks(&mut from.store.export(REPLICA).unwrap(), bytes_max);
    let received = receive(&to.store, &blocks).unwrap();
    assert_eq!(received.applied(), from.shard.applied());
    assert_eq!(received.membership(), from.shard.membership());
    to.shard.install(received).unwrap();
}

fn assert_twins(one: &Node, other: &Node) {
    assert_eq!(one.shard.applied(), other.shard.applied());
    assert_eq!(one.shard.membership(), other.shard.membership());
    assert_eq!(one.shard.state_hash().unwrap(), other.shard.state_hash().unwrap());
}

fn assert_nothing_left(node: &Node) {
    let left = std::fs::read_dir(node.dir.join("incoming")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "files of a view are left");
}

#[test]
fn a_received_replica_is_the_senders_twin_from_then_on() {
    let seed = seed();
    for bytes_max in [1, 70_000, 4 * MIB] {
        let mut from = Node::new();
        run_through(&mut from, seed, 80);
        let membership = Body::Membership(Bytes::from_static(b"1,2,3"));
        from.append(vec![Entry::new(81, 1, membership)]);
        from.catch_up();
        let mut to = Node::new();
        transfer(&from, &mut to, bytes_max);
        assert_twins(&from, &to);
        assert_eq!((to.log.last(), to.log.purged()), (from.log.last(), from.log.last()));
        assert_eq!(to.log.flushed().unwrap(), from.shard.applied(), "what came is durable");
        assert_nothing_left(&to);
        from.purge_all();
        assert_eq!(to.shard.census().unwrap(), from.shard.census().unwrap());
        run_through(&mut from, seed, 120);
        run_through(&mut to, seed, 120);
        assert_twins(&from, &to);
        let to = to.reopen();
        assert_twins(&from, &to);
        from.purge_all();
        to.purge_all();
        assert_eq!(to.shard.census().unwrap(), from.shard.census().unwrap());
    }
}

#[test]
fn what_a_replica_had_is_replaced_and_its_vote_is_not() {
    let seed = seed();
    let (mut from, mut to) = (Node::new(), Node::new());
    run_through(&mut from, seed, 40);
    from.run(vec![put("only here", noise(1, MIB))]);
    run_through(&mut to, seed + 1, 20);
    to.run(vec![put("gone", noise(2, MIB))]);
    wait(|done| to.log.save_vote(Bytes::from_static(b"t5 n2"), done)).unwrap();
    // Read before, so kept in memory.
    assert!(to.whole("gone").is_some());
    let view = to.reader.view().unwrap();
    transfer(&from, &mut to, MIB);
    assert_twins(&from, &to);
    assert!(to.whole("gone").is_none());
    assert_eq!(to.field("only here", "f"), noise(1, MIB));
    let old = view.get_whole(USERS, b"gone", &Selection::all(), 1_000).unwrap();
    assert_eq!(*old.unwrap().fields[0].bytes(), noise(2, MIB), "a view keeps what it has seen");
    drop(view);
    // Again, over what was received.
    from.run(vec![put("only here", noise(3, MIB))]);
    transfer(&from, &mut to, MIB);
    assert_eq!(to.field("only here", "f"), noise(3, MIB));
    let mut to = to.reopen();
    assert_twins(&from, &to);
    assert_eq!(to.log.vote(), Some(Bytes::from_static(b"t5 n2")));
    to.run(vec![put("later", "v")]);
    assert_eq!(to.field("later", "f"), "v");
    to.store.drop_replica(REPLICA).unwrap();
    to.store.create_replica(REPLICA).unwrap();
    assert!(to.store.reader(REPLICA).unwrap().scan(USERS, None, 1).unwrap().is_empty());
}

#[test]
fn chunks_that_the_senders_log_alone_needs_do_not_travel() {
    let mut from = Node::new();
    from.run(vec![put("k", noise(1, MIB)), put("dropped", noise(2, 10))]);
    from.run(vec![put("k", noise(3, 2 * MIB))]);
    // Appended and not applied.
    from.append(vec![from.entry(1_000, vec![put("k", noise(4, MIB))])]);
    let census = from.shard.census().unwrap();
    assert_eq!((census.chunks, census.garbage), (4 + 8 + 4, 1));
    let mut to = Node::new();
    transfer(&from, &mut to, MIB);
    let census = to.shard.census().unwrap();
    assert_eq!((census.chunks, census.garbage), (8, 0));
    assert_twins(&from, &to);
    from.catch_up();
    from.run(vec![Command::DropCollection { collection: USERS }]);
    transfer(&from, &mut to, MIB);
    assert_eq!(to.shard.census().unwrap(), Default::default());
}

#[test]
fn a_replica_that_never_applied_anything_travels_too() {
    let (from, mut to) = (Node::new(), Node::new());
    let export = &mut from.store.export(REPLICA).unwrap();
    let blocks = blocks(export, MIB);
    assert_eq!((export.applied(), blocks.len()), (EntryId::default(), 1));
    to.shard.install(receive(&to.store, &blocks).unwrap()).unwrap();
    assert_eq!(to.log.last(), None);
    to.run(vec![put("k", "v")]);
    assert_eq!(to.reopen().field("k", "f"), "v");
}

#[test]
fn a_large_view_comes_in_files_of_bounded_size() {
    let (mut from, mut to) = (Node::new(), Node::new());
    for number in 0..80 {
        from.run(vec![put(&format!("k{number}"), noise(number, MIB))]);
    }
    transfer(&from, &mut to, MIB);
    assert_twins(&from, &to);
    let files = to.store.property(Some(REPLICA), "rocksdb.num-files-at-level6");
    assert_eq!(files.as_deref(), Some("2"), "80 MiB in files of 64");
}

#[test]
fn entries_go_on_while_a_view_is_sent() {
    let seed = seed();
    let mut from = Node::new();
    run_through(&mut from, seed, 60);
    let (sent, store) = (AtomicBool::new(false), from.store.clone());
    let (blocks, applied) = std::thread::scope(|scope| {
        let mut export = store.export(REPLICA).unwrap();
        let applied = export.applied().index;
        let writes = scope.spawn(|| {
            while !sent.load(Ordering::Acquire) || from.next_index() < 100 {
                let next = from.next_index();
                run_through(&mut from, seed, next);
                from.purge_all();
            }
        });
        let blocks = blocks(&mut export, 10_000);
        sent.store(true, Ordering::Release);
        writes.join().unwrap();
        (blocks, applied)
    });
    assert_eq!(applied, 60);
    let mut to = Node::new();
    to.shard.install(receive(&to.store, &blocks).unwrap()).unwrap();
    let mut twin = Node::new();
    run_through(&mut twin, seed, 60);
    assert_twins(&twin, &to);
    twin.purge_all();
    assert_eq!(to.shard.census().unwrap(), twin.shard.census().unwrap());
}

fn problem(result: Result<Received, Error>) -> TransferProblem {
    match result {
        Err(Error::Transfer { problem }) => problem,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was taken"),
    }
}

#[test]
fn blocks_that_are_not_what_was_sent_are_refused_and_nothing_changes() {
    let mut from = Node::new();
    from.run((0..20).map(|number| put(&format!("k{number}"), noise(number, 9_000))).collect());
    let mut to = Node::new();
    to.run(vec![put("k", "mine")]);
    let blocks = blocks(&mut from.store.export(REPLICA).unwrap(), 10_000);
    assert!(blocks.len() > 10, "{}", blocks.len());
    // 20 states, what is applied, and two rows of usage.
    let (rows, last) = (23, blocks.len() - 1);
    let with = |change: &dyn Fn(&mut Vec<Bytes>)| {
        let mut blocks = blocks.clone();
        change(&mut blocks);
        problem(receive(&to.store, &blocks))
    };
    let flip = |block: &Bytes, at: usize| {
        let mut bytes = block.to_vec();
        bytes[at] ^= 1;
        Bytes::from(bytes)
    };
    assert_eq!(with(&|b| b[3] = flip(&b[3], 5_000)), TransferProblem::Checksum);
    assert_eq!(with(&|b| b[3] = b[3].slice(..5_000)), TransferProblem::Checksum);
    assert_eq!(with(&|b| b.swap(3, 4)), TransferProblem::Disorder);
    assert_eq!(with(&|b| b.insert(3, b[3].clone())), TransferProblem::Disorder);
    assert_eq!(with(&|b| b.push(b[last].clone())), TransferProblem::AfterLast);
    let cut = with(&|b| b.truncate(last));
    assert_eq!(cut, TransferProblem::Incomplete { expected: None, found: rows });
    let without = with(&|b| drop(b.remove(3)));
    assert!(
        matches!(without, TransferProblem::Incomplete { expected: Some(23), found } if found < 23),
        "{without:?}"
    );
    let newer = with(&|b| {
        let mut bytes = b[0].to_vec();
        bytes[0] = 9;
        b[0] = bytes.into();
    });
    assert_eq!(newer, TransferProblem::Format { found: 9, supported: TRANSFER_FORMAT });
    assert!(matches!(with(&|b| b[0] = Bytes::new()), TransferProblem::Malformed(_)));

    // A refused transfer stays refused, whatever else comes.
    let mut incoming = to.store.receive(REPLICA).unwrap();
    incoming.add(flip(&blocks[0], 9)).unwrap_err();
    assert!(matches!(incoming.add(blocks[0].clone()), Err(Error::Transfer { .. })));
    assert!(matches!(problem(incoming.finish()), TransferProblem::Checksum));
    // One that is given up halfway, and one that is never installed.
    let mut incoming = to.store.receive(REPLICA).unwrap();
    incoming.add(blocks[0].clone()).unwrap();
    drop(incoming);
    drop(receive(&to.store, &blocks).unwrap());
    assert_nothing_left(&to);
    assert_eq!(to.field("k", "f"), "mine");
}

#[test]
fn a_view_that_is_behind_its_replica_is_refused() {
    let (mut from, mut to) = (Node::new(), Node::new());
    from.run(vec![put("k", "theirs")]);
    let blocks = blocks(&mut from.store.export(REPLICA).unwrap(), MIB);
    to.run(vec![put("k", "mine")]);
    to.run(vec![put("k", "mine, later")]);
    let refused = to.shard.install(receive(&to.store, &blocks).unwrap()).unwrap_err();
    assert!(matches!(refused, Error::Replica { problem: ReplicaProblem::Ahead, .. }), "{refused}");
    assert_eq!(to.field("k", "f"), "mine, later");
    assert_nothing_left(&to);
}

/// A follower with entries 1..=6 of a term, two applied, and a leader's view as of entry 4.
fn follower_with_a_tail(term: u64, config: Config, dir: &Path) -> (Node, Node) {
    let entry = |index: u64, term| {
        let mut entry = Node::new().entry(1_000, vec![put("k", noise(index, MIB))]);
        (entry.index, entry.term) = (index, term);
        entry
    };
    let mut from = Node::new();
    from.append((1..=4).map(|index| entry(index, 7)).collect());
    from.catch_up();
    let mut to = Node::open_as_found(dir, config);
    to.append((1..=6).map(|index| entry(index, term)).collect());
    let mut batch = to.store.apply_batch();
    for entry in to.log.read(1..3, usize::MAX).unwrap() {
        to.shard.apply(&mut batch, &entry).unwrap();
    }
    batch.commit().unwrap();
    transfer(&from, &mut to, MIB);
    (from, to)
}

#[test]
fn entries_behind_the_view_stay_if_they_follow_it() {
    // Entries in memory, and on disk alone.
    for log_tail_bytes_max in [32 * MIB, 0] {
        let dir = TempDir::new().unwrap();
        let config = Config { log_tail_bytes_max, ..Config::default() };
        let (from, to) = follower_with_a_tail(7, config, dir.path());
        assert_eq!(to.log.purged(), Some(EntryId { index: 4, term: 7 }));
        assert_eq!(to.log.last(), Some(EntryId { index: 6, term: 7 }));
        assert_twins(&from, &to);
        assert_eq!(to.shard.census().unwrap().chunks, 4 + 2 * 4);
        to.store.close().unwrap();
        drop(to);
        let to = Node::open(dir.path());
        assert_eq!(to.shard.applied().index, 6);
        assert_eq!(to.field("k", "f"), noise(6, MIB));
        to.purge_all();
        assert_eq!(to.shard.census().unwrap().chunks, 4);
    }
}

#[test]
fn entries_that_do_not_lead_to_the_view_go() {
    let dir = TempDir::new().unwrap();
    let (from, to) = follower_with_a_tail(6, Config::default(), dir.path());
    let end = Some(EntryId { index: 4, term: 7 });
    assert_eq!((to.log.purged(), to.log.last()), (end, end));
    assert!(to.log.read(1..7, usize::MAX).unwrap().is_empty());
    to.store.close().unwrap();
    drop(to);
    let mut to = Node::open(dir.path());
    assert_twins(&from, &to);
    assert_eq!(to.log.last(), end);
    to.run(vec![put("k", "v")]);
    assert_eq!(to.field("k", "f"), "v");
}

/// Not a test of its own: installs view after view until it is killed.
#[test]
#[ignore = "started by the test below as a process of its own"]
fn child() {
    let Ok(dir) = std::env::var(DIRECTORY) else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let mut random = StdRng::from_os_rng();
    let mut to = Node::open_as_found(Path::new(&dir), Config::default());
    let mut from = Node::new();
    run_through(&mut from, seed, to.shard.applied().index);
    loop {
        let next = from.next_index() + pick(&mut random, 0..3) as u64;
        run_through(&mut from, seed, next);
        let blocks = blocks(&mut from.store.export(REPLICA).unwrap(), random.random_range(1..MIB));
        // Acknowledged in the middle, for it is then that the parent kills.
        let acknowledged = pick(&mut random, 0..blocks.len() + 1);
        let before = to.shard.applied().index;
        let mut incoming = to.store.receive(REPLICA).unwrap();
        for (number, block) in blocks.into_iter().enumerate() {
            if number == acknowledged {
                acknowledge(before);
            }
            incoming.add(block).unwrap();
        }
        let received = incoming.finish().unwrap();
        acknowledge(before);
        to.shard.install(received).unwrap();
        acknowledge(to.shard.applied().index);
        // The next view takes the place of what is applied and of what is not.
        for behind in 0..pick(&mut random, 0..3) as u64 {
            let (time_ms, commands) = commands(seed, to.next_index());
            to.append(vec![to.entry(time_ms, commands)]);
            if behind == 0 {
                to.catch_up();
            }
        }
        run_through(&mut from, seed, to.log.last().unwrap().index);
    }
}

/// Ends the process when the parent is gone.
fn acknowledge(index: u64) {
    let line = format!("\nack {index} .\n");
    if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
        std::process::exit(0);
    }
}

#[test]
fn killed_while_it_receives_a_replica_is_the_old_one_or_the_new_one() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let dir = TempDir::new().unwrap();
    let (mut acknowledged, mut halfway) = (0, 0);
    for kill in 0..KILLS {
        let last = run_and_kill("transfer::child", dir.path(), seed, pick(&mut random, 1..16));
        assert!(last >= acknowledged, "kill {kill}: {last} after {acknowledged}");
        acknowledged = last;
        let parts = std::fs::read_dir(dir.path().join("incoming")).map_or(0, Iterator::count);
        halfway += usize::from(parts > 0);
        let mut node = Node::open_as_found(dir.path(), Config::default());
        assert_nothing_left(&node);
        let found = node.shard.applied().index;
        let mut twin = Node::new();
        run_through(&mut twin, seed, found);
        assert_twins(&twin, &node);
        node.catch_up();
        let applied = node.shard.applied().index;
        assert!(applied >= acknowledged, "kill {kill}: {applied}, expected {acknowledged}");
        run_through(&mut twin, seed, applied);
        assert_twins(&twin, &node);
        twin.purge_all();
        node.purge_all();
        assert_eq!(node.shard.census().unwrap(), twin.shard.census().unwrap(), "kill {kill}");
        node.store.close().unwrap();
    }
    println!("{acknowledged} entries came in views; {halfway} of {KILLS} kills left a part of one");
    assert!(halfway > 0, "no kill hit a transfer");
}
