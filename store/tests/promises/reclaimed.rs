//! The space of what was deleted comes back by itself: nothing is written for it, and nothing
//! restarted.

use std::time::{Duration, Instant};

use statehouse_store::{Command, Config, Delete};

use crate::support::{Node, REPLICA, USERS, disk_bytes, noise, put, write};

const MIB: usize = 1 << 20;

/// How long it may take on a machine that has others to serve.
const PATIENCE: Duration = Duration::from_secs(60);

fn await_bytes(node: &Node, bytes_max: u64) {
    let started = Instant::now();
    loop {
        let found = disk_bytes(&node.dir);
        if found <= bytes_max {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{} MiB are still there", found / MIB as u64);
        std::thread::yield_now();
    }
}

/// A node with so many states of a MiB, all in files and none in the log.
fn filled(config: Config, states: u64) -> (Node, tempfile::TempDir) {
    let dir = tempfile::TempDir::new().unwrap();
    let mut node = Node::open_with(dir.path(), config);
    for n in 0..states {
        node.run(vec![put(&format!("{n}"), noise(n, MIB))]);
        if n % 16 == 15 {
            node.purge_all();
        }
    }
    node.purge_all();
    (node, dir)
}

#[test]
fn a_dropped_collection_gives_its_space_back() {
    let (mut node, _dir) = filled(Config::default(), 96);
    assert!(disk_bytes(&node.dir) > 96 * MIB as u64);
    node.run(vec![Command::DropCollection { collection: USERS }]);
    assert!(node.log.garbage_bytes() > 0, "its chunks wait for the log to be purged");
    node.purge_all();
    assert_eq!(node.log.garbage_bytes(), 0);
    // Purged and flushed, as the checkpoints of a node do; the rest is the store's.
    node.store.flush(&[REPLICA]).unwrap();
    await_bytes(&node, 8 * MIB as u64);
}

#[test]
fn short_of_space_what_was_deleted_comes_back_though_files_are_garbage_in_part_alone() {
    // Every disk is short of that much.
    let config = Config { disk_reserve_bytes: u64::MAX, ..Config::default() };
    let (mut node, _dir) = filled(config, 96);
    for n in 0..96 {
        if n % 2 == 0 {
            node.run(vec![Command::Delete(Delete { write: write(&format!("{n}")) })]);
        }
    }
    node.purge_all();
    node.store.flush(&[REPLICA]).unwrap();
    // Every second state of those that lie in one blob file.
    await_bytes(&node, 64 * MIB as u64);
    for n in (1..96).step_by(2) {
        assert_eq!(node.field(&format!("{n}"), "f"), noise(n, MIB), "{n}");
    }
}
