//! How much a replica holds is known without looking: whatever happened to it, the totals and the
//! list of large states are what a count of everything comes to, on every replica.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_store::{CollectionId, Command, Delete, LargeState, Put, Target, Totals, Write};
use tempfile::TempDir;

use crate::crash::{commands, run_and_kill};
use crate::support::{Node, REPLICA, USERS, bytes_field, noise, pick, put, seed, write};

/// The replica as another node would get it.
fn sent(from: &Node) -> Node {
    let mut to = Node::new();
    let mut export = from.store.export(REPLICA).unwrap();
    let mut incoming = to.store.receive(REPLICA).unwrap();
    while let Some(block) = export.next(64 << 10).unwrap() {
        incoming.add(block).unwrap();
    }
    to.shard.install(incoming.finish().unwrap()).unwrap();
    to
}

type Shown = (Vec<(u64, Totals)>, Vec<LargeState>);

/// What is answered, once it was held against a count of everything.
fn audited(node: &Node) -> Shown {
    assert_eq!(node.shard.audit_usage().unwrap(), None);
    let usage = node.reader.usage().unwrap().into_iter();
    (usage.map(|(id, it)| (id.0, it)).collect(), node.reader.largest(None, 1_000).unwrap())
}

/// One entry of a history, a drop of everything among the others now and then.
fn entry(random: &mut StdRng, seed: u64, index: u64) -> (u64, Vec<Command>) {
    let (time_ms, mut commands) = commands(seed, index);
    if pick(random, 0..40) == 0 {
        commands.insert(
            pick(random, 0..commands.len() + 1),
            Command::DropCollection { collection: USERS },
        );
    }
    (time_ms, commands)
}

#[test]
fn any_history_is_counted_as_it_is() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut node = Node::new();
    for index in 1..=400 {
        let (time_ms, commands) = entry(&mut random, seed, index);
        node.run_at(time_ms, commands);
        match pick(&mut random, 0..60) {
            0 => node = node.reopen(),
            1 => node.purge_all(),
            2 => assert_eq!(audited(&sent(&node)), audited(&node)),
            _ => {}
        }
        if index.is_multiple_of(20) {
            audited(&node);
        }
    }
    let (totals, large) = audited(&node);
    println!("{totals:?}, {} large", large.len());
    // The same entries in other batches, on another replica.
    let mut other = Node::new();
    let last = node.next_index();
    let mut random = StdRng::seed_from_u64(seed);
    for index in 1..last {
        let (time_ms, commands) = entry(&mut random, seed, index);
        other.append(vec![other.entry(time_ms, commands)]);
        // As the history above drew them.
        pick(&mut random, 0..60);
    }
    other.catch_up();
    assert_eq!(audited(&other), (totals, large));
}

#[test]
fn after_any_crash_what_is_counted_is_what_is_there() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let dir = TempDir::new().unwrap();
    for _ in 0..6 {
        run_and_kill("crash::child", dir.path(), seed, pick(&mut random, 1..60));
        let node = Node::open(dir.path());
        audited(&node);
        node.store.close().unwrap();
    }
}

fn large_put(collection: u64, key: &str, len: usize) -> Command {
    let target = Target {
        collection: CollectionId(collection),
        key: Bytes::copy_from_slice(key.as_bytes()),
    };
    let write = Write { target, ..write(key) };
    Command::Put(Put { write, fields: vec![bytes_field("f", noise(len as u64, len))] })
}

#[test]
fn the_largest_states_are_found_among_all_and_in_one_collection() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut node = Node::new();
    let mut sizes = Vec::new();
    for number in 0..300 {
        let len = 1usize << pick(&mut random, 10..20);
        let len = len + pick(&mut random, 0..len);
        let (collection, key) = (7 + random.random_range(0..3), format!("k{number}"));
        node.run(vec![large_put(collection, &key, len)]);
        if len > 16 << 10 {
            sizes.push((len as u64, collection));
        }
    }
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let check = |found: Vec<LargeState>, all: Vec<u64>| {
        assert_eq!(found.len(), 10.min(all.len()));
        assert!(found.is_sorted_by(|a, b| a.bytes >= b.bytes), "{found:?}");
        for (state, exact) in found.iter().zip(all) {
            let bytes = state.bytes;
            assert!(bytes * 17 >= exact * 16, "{bytes} stands where {exact} should");
        }
    };
    check(node.reader.largest(None, 10).unwrap(), sizes.iter().map(|it| it.0).collect());
    for collection in 7..10 {
        let own = sizes.iter().filter(|it| it.1 == collection).map(|it| it.0).collect();
        let collection = CollectionId(collection);
        check(node.reader.largest(Some(collection), 10).unwrap(), own);
    }
    assert!(node.reader.largest(None, 0).unwrap().is_empty());
}

#[test]
fn an_emptied_replica_has_no_rows_of_usage() {
    let mut node = Node::new();
    node.run(vec![put("a", noise(1, 50_000)), put("b", "small")]);
    let delete = |key| Command::Delete(Delete { write: write(key) });
    node.run(vec![delete("a"), delete("b")]);
    assert_eq!(audited(&node), (Vec::new(), Vec::new()));
}

#[test]
fn a_fresh_replica_can_be_sent_and_counts_from_its_first_entry() {
    let node = Node::new();
    assert_eq!(audited(&node), (Vec::new(), Vec::new()));
    let mut other = sent(&node);
    other.run(vec![put("a", noise(1, 50_000))]);
    let (totals, large) = audited(&other);
    assert_eq!((totals[0].1.states, totals[0].1.state_bytes), (1, 50_000));
    assert_eq!((&large[0].key[..], large[0].bytes), (&b"a"[..], 50_000));
}

#[test]
fn a_replica_without_counts_is_counted_when_it_is_opened_or_sent() {
    let seed = seed();
    let mut node = Node::new();
    for index in 1..=60 {
        let (time_ms, commands) = commands(seed, index);
        node.run_at(time_ms, commands);
    }
    node.run(vec![put("large", noise(1, 300_000))]);
    let before = audited(&node);
    node.shard.forget_usage().unwrap();
    assert!(node.shard.audit_usage().unwrap().is_some(), "nothing is counted");
    // As another node gets it that knows of no counts.
    let mut other = sent(&node);
    assert_eq!(audited(&other), before);
    other.run(vec![put("more", noise(2, 90_000))]);
    audited(&other);
    // As the next start finds it, twice: what was counted is there.
    for _ in 0..2 {
        node = node.reopen();
        assert_eq!(audited(&node), before);
    }
    node.run(vec![put("k", "v")]);
    audited(&node);
}
