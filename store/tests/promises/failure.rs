//! A disk that fails stops the store: nothing is acknowledged that is not there.

use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use statehouse_store::{Config, Error};

use crate::support::{Node, USERS, noise, put, wait};

/// A disk of a few MiB in memory; unmounted when dropped. `None` where we may not mount.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(mib: u32) -> Option<SmallDisk> {
        let dir = tempfile::TempDir::new().unwrap().keep();
        let size = format!("size={mib}m");
        let mounted = Process::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "statehouse-test"])
            .arg(&dir)
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            std::fs::remove_dir(&dir).unwrap();
            return None;
        }
        Some(SmallDisk(dir))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Process::new("umount").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_failed_write_stops_the_store_for_good_and_loses_nothing_acknowledged() {
    let Some(disk) = SmallDisk::mount(256) else {
        println!("skipped: this user may not mount a tmpfs");
        return;
    };
    let config = Config { disk_reserve_bytes: 128 << 20, ..Config::default() };
    let mut node = Node::open_with(disk.path(), config);
    // Applied and not flushed: closing would flush it.
    node.run(vec![put("applied", "before")]);
    let fired = Arc::new(AtomicUsize::new(0));
    let count = fired.clone();
    node.store.on_failure(Box::new(move |error| {
        assert!(matches!(error, Error::DiskFailed { .. }));
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let mut acknowledged = 0;
    let mut warned = false;
    let failed = loop {
        warned |= matches!(node.store.check_space(), Err(Error::DiskFull { .. }));
        let entry = node.entry(1, vec![put(&acknowledged.to_string(), noise(acknowledged, MIB))]);
        match wait(|done| node.log.append(vec![entry], done)) {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    println!("{acknowledged} MiB acknowledged, then: {failed}");
    assert!(warned, "the space check refuses before the disk does");
    assert!(matches!(failed, Error::DiskFailed { .. }), "{failed}");
    assert_eq!(fired.load(Ordering::SeqCst), 1, "the hook fires once");
    assert_eq!(node.store.failure().unwrap().to_string(), failed.to_string());

    // Every later call is told the same.
    let entry = node.entry(1, vec![put("later", "v")]);
    let later = wait(|done| node.log.append(vec![entry], done)).unwrap_err();
    assert_eq!(later.to_string(), failed.to_string());
    let later = wait(|done| node.store.meta_put("m", "v".into(), done)).unwrap_err();
    assert_eq!(later.to_string(), failed.to_string());
    let later = node.store.apply_batch().commit().unwrap_err();
    assert_eq!(later.to_string(), failed.to_string());
    let fired_late = Arc::new(AtomicUsize::new(0));
    let count = fired_late.clone();
    node.store.on_failure(Box::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    assert_eq!(fired_late.load(Ordering::SeqCst), 1, "whoever comes late is told at once");
    assert_eq!(node.reader.get(USERS, b"0", 0).unwrap().map(|state| state.version), None);

    // A copy on a disk with room has every entry that was acknowledged.
    assert!(node.store.close().is_err());
    drop(node);
    let (node, _copy) = open_copy(&disk);
    assert_eq!(node.field("applied", "f"), "before");
    assert_acknowledged(&node, acknowledged);
}

#[test]
fn a_write_that_waits_for_a_flush_ends_when_the_flush_finds_the_disk_full() {
    let Some(disk) = SmallDisk::mount(256) else {
        println!("skipped: this user may not mount a tmpfs");
        return;
    };
    let config = Config {
        // So slow that writes soon wait for a flush that has long to go.
        background_bytes_per_second: 4 * MIB,
        memtable_bytes_max: 512 * MIB,
        ..Config::default()
    };
    let node = Node::open_with(disk.path(), config);
    let stalled = || node.store.property(None, "rocksdb.is-write-stopped").unwrap() == "1";
    let (acknowledged, failed) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| append_until_it_fails(&node));
        while !stalled() {
            assert!(!writer.is_finished(), "the writer comes to wait for a flush");
            std::thread::yield_now();
        }
        let filled = std::fs::write(disk.path().join("ballast"), vec![1; 256 * MIB]);
        assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        writer.join().unwrap()
    });
    println!("{acknowledged} MiB acknowledged, then: {failed}");
    assert!(matches!(failed, Error::DiskFailed { .. }), "{failed}");
    assert_eq!(node.store.failure().unwrap().to_string(), failed.to_string());

    assert!(node.store.close().is_err());
    drop(node);
    let (node, _copy) = open_copy(&disk);
    assert_acknowledged(&node, acknowledged);
}

/// Appends a MiB at a time. Answers how many were acknowledged, and what ended it.
fn append_until_it_fails(node: &Node) -> (u64, Error) {
    let mut acknowledged = 0;
    loop {
        let entry = node.entry(1, vec![put(&acknowledged.to_string(), noise(acknowledged, MIB))]);
        match wait(|done| node.log.append(vec![entry], done)) {
            Ok(()) => acknowledged += 1,
            Err(error) => return (acknowledged, error),
        }
    }
}

/// What the disk holds, opened where there is room.
fn open_copy(disk: &SmallDisk) -> (Node, tempfile::TempDir) {
    let copy = tempfile::TempDir::new().unwrap();
    let to = copy.path().join("s");
    let copied = Process::new("cp").arg("-a").arg(disk.path()).arg(&to).status().unwrap();
    assert!(copied.success());
    let _ = std::fs::remove_file(to.join("ballast"));
    (Node::open(&to), copy)
}

fn assert_acknowledged(node: &Node, count: u64) {
    for number in 0..count {
        assert_eq!(node.field(&number.to_string(), "f"), noise(number, MIB), "state {number}");
    }
}

const MIB: usize = 1 << 20;
