//! A large field after any edits is what plain bytes would be after the same edits.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_store::{Command, Edit, Patch, Reply, WriteLimits};

use crate::support::{Node, append, noise, patch, pick, put, seed, write, write_range};

/// Sizes around the inline limit, the chunk size, and crumbs.
fn size(random: &mut StdRng) -> usize {
    match pick(random, 0..6) {
        0 => pick(random, 0..4),
        1 | 2 => pick(random, 1..300),
        3 => pick(random, 16_000..17_000),
        4 => pick(random, 1..70_000),
        _ => 262_144 + pick(random, 0..5) - 2,
    }
}

fn edit(random: &mut StdRng, model: &mut Vec<u8>) -> Edit {
    let bytes = noise(random.random(), size(random));
    match pick(random, 0..10) {
        0 => {
            *model = bytes.to_vec();
            Edit::Set(crate::support::bytes_field("f", bytes))
        }
        1..=5 => {
            let bytes = bytes.slice(..bytes.len().min(model.len()));
            let offset = pick(random, 0..model.len() - bytes.len() + 1);
            model[offset..offset + bytes.len()].copy_from_slice(&bytes);
            write_range(offset as u64, bytes)
        }
        choice => {
            let max_bytes = (choice == 9).then(|| random.random_range(0..1_500_000));
            model.extend_from_slice(&bytes);
            let kept = max_bytes.map_or(model.len(), |max| model.len().min(max as usize));
            model.drain(..model.len() - kept);
            append(bytes, max_bytes)
        }
    }
}

#[test]
fn edits_of_a_large_field_equal_edits_of_plain_bytes() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut node = Node::new();
    let mut model = noise(1, 300_000).to_vec();
    node.run(vec![put("k", model.clone())]);
    for round in 0..400 {
        let edits = (0..pick(&mut random, 1..4)).map(|_| edit(&mut random, &mut model)).collect();
        let mut write = write("k");
        write.limits = WriteLimits {
            // Settings of a collection change.
            inline_bytes_max: [0, 4 << 10, 16 << 10][pick(&mut random, 0..3)],
            ..write.limits
        };
        let command = Command::Patch(Patch { write, edits });
        let replies = node.run(vec![command]);
        assert!(matches!(replies[0], Reply::Written { .. }), "round {round}: {replies:?}");
        let found = node.field("k", "f");
        assert!(found == model, "round {round}: {} bytes, not {}", found.len(), model.len());
        if pick(&mut random, 0..8) == 0 && !model.is_empty() {
            check_range(&node, &model, &mut random);
        }
        if pick(&mut random, 0..16) == 0 {
            node.purge_all();
        }
    }
    node.purge_all();
    check_no_garbage(&node, model.len());
    let node = node.reopen();
    assert_eq!(node.field("k", "f"), model);
}

fn check_range(node: &Node, model: &[u8], random: &mut StdRng) {
    let start = pick(random, 0..model.len());
    let end = pick(random, start..model.len() + 1);
    let state = node.reader.get(crate::support::USERS, b"k", 0).unwrap().unwrap();
    let found = node.reader.load(&state.fields[0], start as u64..end as u64).unwrap();
    assert!(found == model[start..end], "bytes {start}..{end} of {}", model.len());
}

/// With the log purged, chunks hold little more than the field: its edges and no more.
fn check_no_garbage(node: &Node, bytes: usize) {
    let census = node.shard.census().unwrap();
    assert_eq!(census.garbage, 0);
    let edges = 2 * 262_144 * 16;
    let found = census.chunk_bytes;
    assert!(found <= (bytes + edges) as u64, "{found} bytes of chunks for a field of {bytes}");
}

#[test]
fn a_window_that_slides_stays_small_on_disk() {
    let mut node = Node::new();
    let window = 64_000;
    node.run(vec![put("k", noise(0, window))]);
    let mut model = noise(0, window).to_vec();
    let before = node.store.ticker("rocksdb.bytes.written").unwrap();
    for round in 0..2_000u64 {
        let event = noise(round, 100);
        model.extend_from_slice(&event);
        model.drain(..100);
        node.run(vec![patch("k", vec![append(event, Some(window as u64))])]);
    }
    assert_eq!(node.field("k", "f"), model);
    let written = node.store.ticker("rocksdb.bytes.written").unwrap() - before;
    println!("{} bytes written for an event of 100", written / 2_000);
    node.purge_all();
    let census = node.shard.census().unwrap();
    assert!(census.chunks <= 17, "{census:?}");
    assert!(census.chunk_bytes <= 3 * window as u64, "{census:?}");
}

#[test]
fn a_large_edit_of_a_small_field_lands_in_blobs() {
    let mut node = Node::new();
    let roomy = WriteLimits { inline_bytes_max: 64 << 10, state_bytes_max: 1 << 30 };
    let mut first = write("k");
    first.limits = roomy;
    let fields = vec![crate::support::bytes_field("f", noise(1, 40_000))];
    node.run(vec![Command::Put(statehouse_store::Put { write: first, fields })]);
    let mut model = noise(1, 40_000).to_vec();
    model[5_000..25_000].copy_from_slice(&noise(2, 20_000));
    node.run(vec![patch("k", vec![write_range(5_000, noise(2, 20_000))])]);
    assert_eq!(node.field("k", "f"), Bytes::from(model));
}
