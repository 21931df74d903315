//! A database that can't be opened at all is set aside where other nodes hold the same rows: the
//! node is still who it was, has no replica, and nothing is deleted before somebody says so.

use std::path::{Path, PathBuf};

use statehouse_store::{Config, Error, ReplicaId, Store};
use tempfile::TempDir;

use crate::support::wait;

const REPLICAS: [ReplicaId; 2] = [ReplicaId(3), ReplicaId(5)];
const DATABASE: &str = "damaged/db-1";

/// Damage done to a store's directory.
type Harm = fn(&Path);

/// A store that is closed, with facts, a copy of them, and replicas.
fn closed(policy: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    wait(|done| store.meta_put("who", "node 1".into(), done)).unwrap();
    for id in REPLICAS {
        let name = format!("replica/{id}");
        wait(|done| store.meta_put(&name, "live".into(), done)).unwrap();
        store.create_replica(id).unwrap();
    }
    store.copy_facts().unwrap();
    store.close().unwrap();
    std::fs::write(dir.path().join("damage-policy"), policy).unwrap();
    dir
}

fn open(dir: &Path) -> Result<Store, Error> {
    Store::open(dir, Config::default())
}

fn manifest(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir.join("db")).unwrap().map(|file| file.unwrap().path());
    let is_manifest = |path: &PathBuf| path.to_str().unwrap().contains("/MANIFEST-");
    files.filter(is_manifest).max().unwrap()
}

fn flip_middle(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// Asserts that a store begins anew, with its facts and without its replicas, also when it is
/// opened again.
fn assert_begun_anew(dir: &Path) {
    let id = {
        let store = open(dir).unwrap();
        assert_eq!(store.meta_get("who").unwrap().unwrap(), "node 1");
        assert_eq!(store.meta_names("replica/").unwrap(), ["replica/3", "replica/5"]);
        assert!(store.was_set_aside().unwrap());
        assert_eq!(store.replicas(), []);
        store.create_replica(ReplicaId(9)).unwrap();
        store.close().unwrap();
        store.id()
    };
    let store = open(dir).unwrap();
    assert_eq!(store.id(), id);
    assert!(store.was_set_aside().unwrap(), "for ever: old ids stay void");
    assert_eq!((store.replicas(), store.damages()), (vec![ReplicaId(9)], vec![]));
    store.close().unwrap();
}

#[test]
fn a_store_without_a_whole_manifest_begins_anew_where_others_hold_its_rows() {
    let harms: [(&str, Harm); 4] = [
        ("a flipped bit", |dir| flip_middle(&manifest(dir))),
        ("cut", |dir| std::fs::write(manifest(dir), b"short").unwrap()),
        ("removed", |dir| std::fs::remove_file(manifest(dir)).unwrap()),
        ("all of it removed", |dir| std::fs::remove_dir_all(dir.join("db")).unwrap()),
    ];
    for (what, harm) in harms {
        println!("{what}");
        let dir = closed("quarantine\n");
        harm(dir.path());
        {
            let store = open(dir.path()).unwrap();
            assert!(!store.damages().is_empty(), "{what}: it is told");
            store.close().unwrap();
        }
        assert_begun_anew(dir.path());
    }
}

#[test]
fn what_was_set_aside_is_kept_until_it_is_removed() {
    let dir = closed("quarantine\n");
    flip_middle(&manifest(dir.path()));
    let (damaged, name) = {
        let path = manifest(dir.path());
        (std::fs::read(&path).unwrap(), path.file_name().unwrap().to_owned())
    };
    let store = open(dir.path()).unwrap();
    assert_eq!(std::fs::read(dir.path().join(DATABASE).join(name)).unwrap(), damaged);
    assert_eq!(store.remove_set_aside().unwrap(), 1);
    assert!(!dir.path().join(DATABASE).exists());
    assert_eq!(store.remove_set_aside().unwrap(), 0);
    store.close().unwrap();
}

#[test]
fn a_crash_while_a_database_is_set_aside_is_made_good() {
    let dir = closed("quarantine\n");
    flip_middle(&manifest(dir.path()));
    std::fs::create_dir(dir.path().join("damaged")).unwrap();
    std::fs::rename(dir.path().join("synced"), dir.path().join("damaged/synced-1")).unwrap();
    assert_begun_anew(dir.path());

    let dir = closed("quarantine\n");
    std::fs::create_dir(dir.path().join("damaged")).unwrap();
    std::fs::rename(dir.path().join("synced"), dir.path().join("damaged/synced-1")).unwrap();
    std::fs::rename(dir.path().join("db"), dir.path().join(DATABASE)).unwrap();
    assert_begun_anew(dir.path());
}

#[test]
fn without_others_or_without_its_facts_a_store_is_refused_and_left_as_it_is() {
    let alone = closed("refuse\n");
    let unnamed = closed("quarantine\n");
    flip_middle(&unnamed.path().join("facts"));
    let unknown = closed("quarantine\n");
    std::fs::remove_file(unknown.path().join("facts")).unwrap();
    for dir in [alone, unnamed, unknown] {
        flip_middle(&manifest(dir.path()));
        let before = std::fs::read(manifest(dir.path())).unwrap();
        assert!(matches!(open(dir.path()).err(), Some(Error::Damaged { .. })));
        assert_eq!(std::fs::read(manifest(dir.path())).unwrap(), before);
        assert!(!dir.path().join(DATABASE).exists());
    }
}

#[test]
fn a_store_that_has_lost_its_database_and_its_facts_is_not_taken_for_a_fresh_one() {
    for harm in [flip_middle, |file: &Path| std::fs::remove_file(file).unwrap()] {
        let dir = closed("quarantine\n");
        std::fs::remove_file(dir.path().join("synced")).unwrap();
        std::fs::remove_dir_all(dir.path().join("db")).unwrap();
        harm(&dir.path().join("facts"));
        for _ in 0..2 {
            let refused = open(dir.path()).err().unwrap();
            assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
        }
    }
}

#[test]
fn a_damaged_copy_of_the_facts_is_written_again_by_the_next_start() {
    let dir = closed("quarantine\n");
    let file = dir.path().join("facts");
    let before = std::fs::read(&file).unwrap();
    flip_middle(&file);
    open(dir.path()).unwrap().close().unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), before);
}
