//! A state that came in parts is seen whole or not at all, was written once, and leaves nothing.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use statehouse_store::{Census, Command, Delete, Reply, UPLOADS_MAX, UploadStep, View};

use crate::support::{
    Node, USERS, begin, disk_bytes, finish, noise, part, patch, pick, put, seed, upload, uploaded,
    write, write_range,
};

const MIB: usize = 1 << 20;
const CHUNKS_OF_A_MIB: u64 = 4;

fn upload_in_parts(node: &mut Node, key: &str, id: u8, bytes: &Bytes, part_bytes: usize) {
    node.run(vec![begin(key, id)]);
    for offset in (0..bytes.len()).step_by(part_bytes) {
        let piece = bytes.slice(offset..bytes.len().min(offset + part_bytes));
        let there = (offset + piece.len()) as u64;
        let replies = node.run(vec![part(key, id, offset as u64, piece)]);
        assert_eq!(replies, [Reply::Uploaded { bytes: there }]);
    }
}

fn streamed(view: &Arc<View>, key: &str, range: Range<u64>) -> Bytes {
    let state = view.get(USERS, key.as_bytes(), 0).unwrap().unwrap();
    let mut stream = view.stream(state.field("f").unwrap(), range).unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next_piece().unwrap() {
        assert!(piece.len() <= 256 << 10, "a piece is a chunk at most");
        bytes.extend_from_slice(&piece);
    }
    bytes.into()
}

#[test]
fn what_is_written_for_a_byte_is_counted_once_by_what_for() {
    let mut node = Node::new();
    let bytes = noise(1, 3 * MIB);
    upload_in_parts(&mut node, "k", 1, &bytes, MIB);
    node.run(vec![finish("k", 1, vec![uploaded("f", bytes.len() as u64)])]);
    node.run(vec![patch("k", vec![write_range(9, "abc")])]);
    let payload = bytes.len() as u64;
    assert_eq!(node.store.stats().payload_applied_bytes, payload + 3);
    node.purge_all();
    let written = node.store.stats().written;
    for (kind, bytes) in [("log", written.wal_bytes), ("flush", written.flush_bytes)] {
        assert!((payload..payload + payload / 8).contains(&bytes), "{kind}: {written:?}");
    }
    assert_eq!(written.garbage_collection_bytes, 0, "{written:?}");
    assert!(written.bytes() < payload * 5 / 2, "{written:?}");
}

#[test]
fn parts_become_a_state_at_once_and_no_byte_is_written_again() {
    let mut node = Node::new();
    let bytes = noise(1, 3 * MIB + 5);
    upload_in_parts(&mut node, "k", 1, &bytes, MIB);
    assert!(node.whole("k").is_none(), "nobody sees it before its end");
    let before = node.shard.census().unwrap();
    assert_eq!((before.uploads, before.chunks), (1, 3 * CHUNKS_OF_A_MIB + 1));
    let fields = vec![uploaded("f", 2 * MIB as u64 + 5), uploaded("g", MIB as u64)];
    node.run(vec![finish("k", 1, fields)]);
    let after = node.shard.census().unwrap();
    assert_eq!(after, Census { states: 1, uploads: 0, ..before });
    assert_eq!(node.field("k", "f"), bytes.slice(..2 * MIB + 5));
    assert_eq!(node.field("k", "g"), bytes.slice(2 * MIB + 5..));
    node.run(vec![put("k", "small")]);
    node.purge_all();
    assert_eq!(node.shard.census().unwrap(), Census { states: 1, ..Census::default() });
}

#[test]
fn an_upload_goes_on_after_a_restart() {
    let mut node = Node::new();
    let bytes = noise(2, 2 * MIB);
    node.run(vec![begin("k", 1), part("k", 1, 0, bytes.slice(..MIB))]);
    node.purge_all();
    let mut node = node.reopen();
    let progress = node.reader.upload(USERS, &[1; 16], 0).unwrap().unwrap();
    assert_eq!(progress.bytes, MIB as u64);
    node.run(vec![part("k", 1, MIB as u64, bytes.slice(MIB..))]);
    node.run(vec![finish("k", 1, vec![uploaded("f", 2 * MIB as u64)])]);
    assert_eq!(node.field("k", "f"), bytes);
    assert_eq!(node.reader.upload(USERS, &[1; 16], 0).unwrap(), None);
}

#[test]
fn a_shard_holds_so_many_uploads_and_no_more() {
    let mut node = Node::new();
    let begin_many = |from: usize, to: usize| -> Vec<Command> {
        (from..to).map(|number| begin(&format!("k{number}"), number as u8)).collect()
    };
    let replies = node.run(begin_many(0, UPLOADS_MAX));
    assert!(replies.iter().all(|reply| *reply == Reply::Uploaded { bytes: 0 }));
    let step = UploadStep::Begin { writer: 1, fingerprint: 0, request: None, idle_ms: 60_000 };
    let other = upload("one-more", 0, step);
    let Command::Upload(mut other) = other else { unreachable!("it is an upload") };
    other.id[15] = 9;
    let replies = node.run(vec![Command::Upload(other)]);
    assert_eq!(replies, [Reply::TooManyUploads { max: UPLOADS_MAX }]);
    assert_eq!(node.run(begin_many(0, 1)), [Reply::Uploaded { bytes: 0 }], "known ones go on");
}

#[test]
fn a_patch_of_a_large_state_writes_its_own_bytes_alone() {
    let mut node = Node::new();
    let bytes = noise(3, 64 * MIB);
    upload_in_parts(&mut node, "k", 1, &bytes, MIB);
    node.run(vec![finish("k", 1, vec![uploaded("f", bytes.len() as u64)])]);
    let before = node.shard.census().unwrap();
    let mut expected = bytes.to_vec();
    for number in 0..100 {
        let (offset, fresh) = (number * 655_361, noise(number as u64, 4_096));
        expected[offset..offset + 4_096].copy_from_slice(&fresh);
        node.run(vec![patch("k", vec![write_range(offset as u64, fresh)])]);
    }
    let grown = node.shard.census().unwrap().chunk_bytes - before.chunk_bytes;
    assert_eq!(grown, 100 * 4_096, "nothing but the changes was written");
    assert_eq!(node.field("k", "f"), expected);
}

#[test]
fn the_space_of_states_that_are_gone_comes_back_though_nobody_writes() {
    let mut node = Node::new();
    let bytes = noise(6, 4 * MIB);
    for number in 0..30 {
        let key = format!("k{number}");
        upload_in_parts(&mut node, &key, number, &bytes, MIB);
        node.run(vec![finish(&key, number, vec![uploaded("f", bytes.len() as u64)])]);
    }
    node.purge_all();
    let full = disk_bytes(&node.dir);
    assert!(full > 120 << 20, "{full}");
    let delete = |number| Command::Delete(Delete { write: write(&format!("k{number}")) });
    node.run((0..28).map(delete).collect());
    node.purge_all();
    // The chunks went with the purge; their deletions are in memory until the next flush.
    node.purge_all();
    let started = Instant::now();
    while disk_bytes(&node.dir) > 40 << 20 {
        let left = disk_bytes(&node.dir) >> 20;
        assert!(started.elapsed() < Duration::from_secs(60), "{left} MiB of {full} are left");
        std::thread::yield_now();
    }
    println!("given back after {:?}", started.elapsed());
    assert_eq!(node.field("k29", "f"), bytes);
}

#[test]
fn a_stream_reads_what_was_there_when_it_began_whatever_becomes_of_the_state() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut node = Node::new();
    let bytes = noise(4, 5 * MIB + 77);
    upload_in_parts(&mut node, "k", 1, &bytes, 700_000);
    node.run(vec![finish("k", 1, vec![uploaded("f", bytes.len() as u64)])]);
    node.run(vec![patch("k", vec![write_range(1_000_000, noise(5, 300))])]);
    let whole = node.field("k", "f");
    let view = Arc::new(node.reader.view().unwrap());
    let state = view.get(USERS, b"k", 0).unwrap().unwrap();
    let mut begun = view.stream(state.field("f").unwrap(), 0..whole.len() as u64).unwrap();
    let first = begun.next_piece().unwrap().unwrap();
    node.run(vec![put("k", "replaced")]);
    node.purge_all();
    let mut rest = first.to_vec();
    while let Some(piece) = begun.next_piece().unwrap() {
        rest.extend_from_slice(&piece);
    }
    assert_eq!(rest, whole);
    for _ in 0..20 {
        let (one, other) = (pick(&mut random, 0..whole.len()), pick(&mut random, 0..whole.len()));
        let range = one.min(other)..one.max(other);
        let found = streamed(&view, "k", range.start as u64..range.end as u64);
        assert_eq!(found, whole.slice(range));
    }
    assert!(view.stream(state.field("f").unwrap(), 0..whole.len() as u64 + 1).is_err());
}
