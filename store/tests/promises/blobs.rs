//! Large payloads: written once, gone when nothing needs them, there as long as the log does.

use bytes::Bytes;
use statehouse_store::{
    Command, Condition, Delete, Edit, EntryId, Expiry, Put, Reply, Sweep, Write,
};

use crate::support::{
    Node, REPLICA, append, bytes_field, noise, patch, put, wait, write, write_range,
};

const MIB: usize = 1 << 20;

#[test]
fn a_large_payload_is_written_once() {
    let mut node = Node::new();
    node.run(vec![put("warm", &b"up"[..])]);
    let before = node.store.ticker("rocksdb.bytes.written").unwrap();
    node.run(vec![put("k", noise(1, 8 * MIB))]);
    let written = node.store.ticker("rocksdb.bytes.written").unwrap() - before;
    assert!(written < (8 * MIB + 64 * 1_024) as u64, "{written} bytes for 8 MiB");
    assert_eq!(node.field("k", "f"), noise(1, 8 * MIB));
}

#[test]
fn a_small_write_to_a_large_field_writes_little() {
    let mut node = Node::new();
    node.run(vec![put("k", noise(1, 8 * MIB))]);
    let before = node.store.ticker("rocksdb.bytes.written").unwrap();
    node.run(vec![patch("k", vec![write_range(5_000_000, noise(2, 64))])]);
    let written = node.store.ticker("rocksdb.bytes.written").unwrap() - before;
    assert!(written < 2_048, "{written} bytes for 64");
    let mut model = noise(1, 8 * MIB).to_vec();
    model[5_000_000..5_000_064].copy_from_slice(&noise(2, 64));
    assert!(node.field("k", "f") == model);
}

#[test]
fn what_a_replaced_state_held_goes_when_the_log_no_longer_needs_it() {
    let mut node = Node::new();
    node.run(vec![put("k", noise(1, MIB))]);
    node.run(vec![put("k", noise(2, MIB))]);
    let census = node.shard.census().unwrap();
    assert_eq!((census.chunks, census.garbage), (8, 1), "a lagging follower may need the first");
    let entries = node.log.read(1..3, 16 * MIB).unwrap();
    assert_eq!(entries[0].body, node.entry(1_000, vec![put("k", noise(1, MIB))]).body);
    node.purge_all();
    let census = node.shard.census().unwrap();
    assert_eq!((census.chunks, census.garbage), (4, 0));
    node.run(vec![put("k", &b"small now"[..])]);
    let census = node.shard.census().unwrap();
    assert_eq!((census.chunks, census.garbage), (0, 0), "purged entries' chunks go at once");
}

#[test]
fn refused_commands_leave_no_chunks() {
    let mut node = Node::new();
    let put_if_absent = |key: &str, seed| {
        let write = Write { condition: Condition::Absent, ..write(key) };
        Command::Put(Put { write, fields: vec![bytes_field("f", noise(seed, MIB))] })
    };
    let replies = node.run(vec![put_if_absent("k", 1), put_if_absent("k", 2)]);
    assert!(matches!(replies[1], Reply::Conflict { current: Some(65_536) }), "{replies:?}");
    let replies = node.run(vec![
        patch("missing", vec![append(noise(3, MIB), None)]),
        patch("k", vec![write_range(MIB as u64 - 5, noise(4, MIB))]),
    ]);
    assert_eq!(replies[0], Reply::NotFound);
    assert!(matches!(replies[1], Reply::RangePastEnd { .. }));
    node.purge_all();
    let census = node.shard.census().unwrap();
    assert_eq!((census.chunks, census.garbage), (4, 0));
    assert_eq!(node.field("k", "f"), noise(1, MIB));
}

#[test]
fn deleted_and_expired_states_leave_nothing() {
    let mut node = Node::new();
    let expiring = Write { expiry: Expiry::At(5_000), ..write("e") };
    node.run(vec![
        put("k", noise(1, MIB)),
        Command::Put(Put { write: expiring, fields: vec![bytes_field("f", noise(2, MIB))] }),
        Command::Delete(Delete { write: write("k") }),
    ]);
    let start = node.reader.sweep_start(4_999).unwrap();
    assert_eq!(start, None, "nothing has expired yet");
    let start = node.reader.sweep_start(6_000).unwrap().expect("something has expired");
    let sweep = Sweep { now_ms: 6_000, limit: 100, cursor: start.cursor, requests_max: None };
    assert_eq!(
        node.run_at(6_000, vec![Command::Sweep(sweep)]),
        [Reply::Swept { states: 1, fields: 0, uploads: 0 }]
    );
    assert_eq!(node.reader.sweep_start(6_000).unwrap(), None);
    node.purge_all();
    assert_eq!(node.shard.census().unwrap(), Default::default());
}

#[test]
fn a_dropped_collection_leaves_no_rows_and_later_entries_keep_theirs() {
    let mut node = Node::new();
    for number in 0..20 {
        node.run(vec![put(&format!("k{number}"), noise(number, 100_000))]);
    }
    let drop_users = Command::DropCollection { collection: crate::support::USERS };
    // The put is appended, chunks and all, before the drop is applied.
    let index = node.next_index();
    let mut entries = vec![node.entry(1_000, vec![drop_users])];
    entries.push(node.entry(1_000, vec![put("after", noise(99, 100_000))]));
    entries[1].index = index + 1;
    node.append(entries);
    let replies = node.catch_up();
    assert_eq!(replies[0], Reply::Dropped);
    node.purge_all();
    let census = node.shard.census().unwrap();
    assert_eq!((census.states, census.chunks, census.garbage), (1, 1, 0));
    assert_eq!(node.field("after", "f"), noise(99, 100_000));
}

#[test]
fn truncated_entries_take_their_chunks_along() {
    let mut node = Node::new();
    node.run(vec![put("k", noise(1, MIB))]);
    let mut entries: Vec<_> =
        (0..3).map(|number| node.entry(1_000, vec![put("k", noise(number + 2, MIB))])).collect();
    for (number, entry) in (2..).zip(&mut entries) {
        entry.index = number;
    }
    node.append(entries);
    assert_eq!(node.shard.census().unwrap().chunks, 16);
    wait(|done| node.log.truncate_from(3, done)).unwrap();
    assert_eq!(node.shard.census().unwrap().chunks, 8);
    assert_eq!(node.log.last(), Some(EntryId { index: 2, term: 1 }));
    // Another leader's entry takes the place, with fewer chunks under the same blob.
    let mut entry = node.entry(1_000, vec![put("k", noise(9, 300_000))]);
    entry.term = 2;
    node.append(vec![entry]);
    node.catch_up();
    assert_eq!(node.field("k", "f"), noise(9, 300_000));
    node.purge_all();
    assert_eq!(node.shard.census().unwrap().chunks, 2);
}

#[test]
fn entries_off_the_disk_are_what_was_appended() {
    let mut node = Node::new();
    let edits = vec![
        Edit::Set(bytes_field("g", noise(4, 20_000))),
        write_range(3, noise(5, 17_000)),
        append(noise(6, 600_000), Some(100)),
    ];
    let commands = vec![put("k", noise(1, MIB)), put("s", &b"v"[..]), patch("k", edits)];
    let entry = node.entry(1_000, commands.clone());
    node.run(commands);
    assert_eq!(*node.log.read(1..2, 1).unwrap()[0], entry, "from memory");
    let node = node.reopen();
    assert_eq!(*node.log.read(1..2, 1).unwrap()[0], entry, "from disk");
    assert_eq!(node.store.replicas(), [REPLICA]);
}

#[test]
fn the_largest_fields_leave_the_record_until_the_rest_fits() {
    let mut node = Node::new();
    let sizes = [("a", 9_000), ("b", 6_000), ("c", 7_000), ("d", 0)];
    let fields =
        sizes.iter().map(|(name, len)| bytes_field(name, noise(*len as u64, *len))).collect();
    node.run(vec![Command::Put(Put { write: write("k"), fields })]);
    let state = node.reader.get(crate::support::USERS, b"k", 0).unwrap().unwrap();
    let inline = |field: &statehouse_store::StateField| {
        matches!(field.payload, statehouse_store::Payload::Inline(_))
    };
    let placed: Vec<_> =
        state.fields.iter().map(|field| (&field.name[..], inline(field))).collect();
    assert_eq!(placed, [("a", false), ("b", true), ("c", true), ("d", true)]);
    for (name, len) in sizes {
        assert_eq!(node.field("k", name), noise(len as u64, len));
    }
    // A patch that outgrows the record sends what was inline to blobs as well.
    node.run(vec![patch("k", vec![Edit::Set(bytes_field("e", Bytes::from(vec![7; 10_000])))])]);
    let state = node.reader.get(crate::support::USERS, b"k", 0).unwrap().unwrap();
    let placed: Vec<_> =
        state.fields.iter().map(|field| (&field.name[..], inline(field))).collect();
    assert_eq!(placed, [("a", false), ("b", true), ("c", true), ("d", true), ("e", false)]);
    assert_eq!(node.field("k", "c"), noise(7_000, 7_000));
}

#[test]
fn sweeps_and_purges_find_their_work_again_after_a_restart() {
    let mut node = Node::new();
    for (number, at_ms) in [9_000, 3_000, 6_000].into_iter().enumerate() {
        let expiring = Write { expiry: Expiry::At(at_ms), ..write(&format!("k{number}")) };
        let fields = vec![bytes_field("f", noise(at_ms, 300_000))];
        node.run(vec![Command::Put(Put { write: expiring, fields })]);
        assert_eq!(node.reader.sweep_start(2_000).unwrap(), None);
    }
    let sweep = |node: &mut Node, now_ms| {
        let cursor = node.reader.sweep_start(now_ms).unwrap()?.cursor;
        let sweep = Sweep { now_ms, limit: 1, cursor, requests_max: None };
        Some(node.run_at(now_ms, vec![Command::Sweep(sweep)]).remove(0))
    };
    assert_eq!(sweep(&mut node, 3_500), Some(Reply::Swept { states: 1, fields: 0, uploads: 0 }));
    assert_eq!(sweep(&mut node, 3_500), None);
    let mut node = node.reopen();
    assert_eq!(sweep(&mut node, 20_000), Some(Reply::Swept { states: 1, fields: 0, uploads: 0 }));
    // One that expires before all the others comes late.
    let expiring = Write { expiry: Expiry::At(4_000), ..write("late") };
    node.run_at(20_000, vec![Command::Put(Put { write: expiring, fields: vec![] })]);
    assert_eq!(sweep(&mut node, 20_000), Some(Reply::Swept { states: 1, fields: 0, uploads: 0 }));
    assert_eq!(sweep(&mut node, 20_000), Some(Reply::Swept { states: 1, fields: 0, uploads: 0 }));
    assert_eq!(sweep(&mut node, 20_000), None);
    assert_eq!(node.shard.census().unwrap().garbage, 3);
    let node = node.reopen();
    node.purge_all();
    assert_eq!(node.shard.census().unwrap(), Default::default());
}

#[test]
fn a_closed_store_takes_nothing_more() {
    let mut node = Node::new();
    node.run(vec![put("k", &b"v"[..])]);
    node.store.close().unwrap();
    let append = wait(|done| node.log.append(vec![node.entry(1, vec![])], done)).unwrap_err();
    assert_eq!(append.to_string(), "commit failed: the store is closed");
    let commit = node.store.apply_batch().commit().unwrap_err();
    assert_eq!(commit.to_string(), "write failed: the store is closed");
    assert!(node.store.read_pool().submit(Box::new(|| ())).is_err());
    assert_eq!(node.field("k", "f"), &b"v"[..], "what is held open can still be read");
    node.store.close().unwrap();
}
