//! What goes wrong in one replica stays in it.

use std::ops::ControlFlow;

use bytes::Bytes;
use statehouse_store::{Entry, Error, ReplicaId, Tamper};

use crate::support::{Node, REPLICA, USERS, append, patch, put, wait};

const OTHER: ReplicaId = ReplicaId(2);

#[test]
fn an_unreadable_row_spoils_its_own_replicas_part_of_a_batch_and_no_other() {
    let mut node = Node::new();
    node.run(vec![put("key", "value")]);
    node.shard.tamper(USERS, b"key", Tamper::Cut).unwrap();
    node.store.create_replica(OTHER).unwrap();
    let (log, mut other) = (node.store.log(OTHER).unwrap(), node.store.shard(OTHER).unwrap());
    let fine = Entry::new(1, 1, node.entry(1_000, vec![put("b", "2")]).body);
    let bad = node.entry(1_000, vec![put("a", "1"), patch("key", vec![append("more", None)])]);
    node.append(vec![bad.clone()]);
    wait(|done| log.append(vec![fine.clone()], done)).unwrap();

    let mut batch = node.store.apply_batch();
    let error = node.shard.apply(&mut batch, &bad).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert_eq!(other.apply(&mut batch, &fine).unwrap().len(), 1);
    let again = node.shard.apply(&mut batch, &bad).unwrap_err();
    assert!(matches!(again, Error::Corrupt { .. }), "{again}");
    let alone_fine = Entry::new(2, 1, node.entry(1_000, vec![put("c", "3")]).body);
    let still = node.shard.apply(&mut batch, &alone_fine).unwrap_err();
    assert!(matches!(still, Error::Corrupt { .. }), "it takes no part in this batch: {still}");
    batch.commit().unwrap();
    assert_eq!(other.applied().index, 1, "the other one goes on");
    assert_eq!(node.shard.applied().index, 1, "nothing of the entry was kept");
    assert!(node.whole("a").is_none(), "nothing of the entry was written");
    assert_eq!(node.store.stats().commands_applied, 2, "what failed does not count");
}

#[test]
fn a_row_that_makes_no_sense_is_found_by_the_scrub_though_every_checksum_is_right() {
    let mut node = Node::new();
    node.run(vec![put("key", "value"), put("other", "value")]);
    node.store.flush(&[REPLICA]).unwrap();
    let scrub = || node.store.scrub(&mut |_| ControlFlow::Continue(())).unwrap();
    let (rows, damages) = (scrub().rows, scrub().damages);
    assert!(rows > 2, "records and entries are read: {rows}");
    assert_eq!(damages, 0);
    node.shard.tamper(USERS, b"key", Tamper::Cut).unwrap();
    node.store.flush(&[REPLICA]).unwrap();
    assert_eq!(scrub().damages, 1);
    let found = node.store.damages();
    assert_eq!(found[0].replica, Some(REPLICA), "{found:?}");
    assert!(found[0].detail.contains("state record"), "{found:?}");
}

#[test]
fn a_tampered_row_reads_as_it_was_made() {
    let mut node = Node::new();
    node.run(vec![put("key", "value")]);
    let other = Bytes::from_static(b"other");
    node.shard.tamper(USERS, b"key", Tamper::Replace(other.clone())).unwrap();
    assert_eq!(node.whole("key").unwrap().fields[0].bytes(), &other);
}
