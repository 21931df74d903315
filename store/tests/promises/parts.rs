//! Each kind of file, harmed in each way while the store is open: the list of files, a replica's
//! table and blob file, a part of an upload, a file of a view that comes in. It is told, and what
//! was there is served or nothing is.

use std::fs::OpenOptions;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use statehouse_store::{Config, Error, Selection, Store};

use crate::support::{Node, REPLICA, USERS, begin, find, finish, flip, noise, part, put, uploaded};
use crate::transfer::{blocks, receive};

const MIB: usize = 1 << 20;
const NEEDLE: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Harm {
    Flip,
    Zero,
    Cut,
    Remove,
}

const HARMS: [Harm; 4] = [Harm::Flip, Harm::Zero, Harm::Cut, Harm::Remove];

impl Harm {
    fn harm(self, path: &Path, at: u64) {
        let open = || OpenOptions::new().write(true).open(path).unwrap();
        match self {
            Harm::Flip => flip(path, at),
            Harm::Zero => open().write_all_at(&[0; NEEDLE], at).unwrap(),
            Harm::Cut => open().set_len(at).unwrap(),
            Harm::Remove => std::fs::remove_file(path).unwrap(),
        }
    }
}

/// A node that serves nothing from memory.
fn node() -> (Node, tempfile::TempDir) {
    let dir = tempfile::TempDir::new().unwrap();
    let config = Config { state_cache_bytes: 0, ..Config::default() };
    (Node::open_with(dir.path(), config), dir)
}

fn scrub(store: &Store) {
    let scrubbed = store.scrub(&mut |_| ControlFlow::Continue(())).unwrap();
    assert!(scrubbed.finished, "{scrubbed:?}");
}

/// A state's bytes; `None` if it is refused as corrupt.
fn read(node: &Node, key: &str) -> Option<Bytes> {
    match node.reader.get_whole(USERS, key.as_bytes(), &Selection::all(), 1_000) {
        Ok(state) => Some(state.expect("it is there").fields[0].bytes().clone()),
        Err(Error::Corrupt { .. }) => None,
        Err(error) => panic!("{key}: {error}"),
    }
}

#[test]
fn a_live_table_or_blob_file_harmed_in_any_way_is_told_by_the_scrub_and_never_served() {
    for (extension, bytes) in [("sst", 1_000), ("blob", MIB)] {
        for harm in HARMS {
            let context = format!("{harm:?} of a {extension}");
            let (mut node, dir) = node();
            node.run(vec![put("a", noise(1, bytes)), put("b", noise(2, 1_000))]);
            node.purge_all();
            let needle = &noise(1, bytes)[bytes / 2..][..NEEDLE];
            let (file, at) = find(dir.path(), extension, needle).expect("it was flushed");
            harm.harm(&file, at);
            scrub(&node.store);
            let damages = node.store.damages();
            assert!(damages.iter().all(|it| it.replica == Some(REPLICA)), "{context}: {damages:?}");
            assert!(damages.iter().any(|it| it.file.as_ref() == Some(&file)), "{context}");
            // What is in memory, or removed and still open, can be read.
            assert!(read(&node, "a").is_none_or(|it| it == noise(1, bytes)), "{context}");
            assert!(read(&node, "b").is_none_or(|it| it == noise(2, 1_000)), "{context}");
            node.run(vec![put("c", "later")]);
            assert_eq!(read(&node, "c").unwrap(), "later", "{context}");
        }
    }
}

fn manifest(database: &Path) -> PathBuf {
    let name = std::fs::read_to_string(database.join("CURRENT")).unwrap();
    database.join(name.trim_end())
}

#[test]
fn a_list_of_files_that_is_harmed_while_it_is_in_force_is_told_by_the_scrub() {
    for harm in HARMS {
        for of_current in [true, false] {
            let (mut node, dir) = node();
            node.run(vec![put("a", "value")]);
            node.purge_all();
            let current = dir.path().join("db/CURRENT");
            let manifest = manifest(&dir.path().join("db"));
            let file = if of_current { &current } else { &manifest };
            // One that is cut in its middle looks like one whose end is being written.
            let at = if harm == Harm::Cut { 5 } else { 9 };
            harm.harm(file, at);
            scrub(&node.store);
            let damages = node.store.damages();
            let named = [Some(&current), Some(file)];
            let told = damages.iter().any(|damage| named.contains(&damage.file.as_ref()));
            assert!(told, "{harm:?} of {}: {damages:?}", file.display());
            assert!(damages.iter().all(|damage| damage.replica.is_none()), "{damages:?}");
            assert_eq!(read(&node, "a").unwrap(), "value");
        }
    }
}

#[test]
fn a_part_of_an_upload_that_rots_before_the_upload_ends_is_told_and_never_served() {
    for harm in [Harm::Flip, Harm::Zero, Harm::Cut] {
        let (mut node, dir) = node();
        let bytes = noise(3, 2 * MIB);
        node.run(vec![put("other", noise(4, 1_000)), begin("k", 1)]);
        node.run(vec![part("k", 1, 0, bytes.slice(..MIB))]);
        node.purge_all();
        let (file, at) = find(dir.path(), "blob", &bytes[MIB / 2..][..NEEDLE]).expect("flushed");
        harm.harm(&file, at);
        node.run(vec![part("k", 1, MIB as u64, bytes.slice(MIB..))]);
        node.run(vec![finish("k", 1, vec![uploaded("f", bytes.len() as u64)])]);
        assert_eq!(read(&node, "k"), None, "{harm:?}");
        assert_eq!(read(&node, "other").unwrap(), noise(4, 1_000), "{harm:?}");
        scrub(&node.store);
        let damages = node.store.damages();
        assert!(damages.iter().any(|it| it.file.as_ref() == Some(&file)), "{harm:?}: {damages:?}");
        assert!(damages.iter().all(|it| it.replica == Some(REPLICA)), "{harm:?}: {damages:?}");
    }
}

#[test]
fn a_file_of_a_view_that_rots_before_it_is_installed_is_refused_or_told_and_never_served() {
    const STATES: u64 = 40;
    let (mut from, _dir) = node();
    let states = (0..STATES).map(|number| put(&format!("k{number}"), noise(number, 9_000)));
    from.run(states.collect());
    from.run(vec![put("last", "value")]);
    let sent = blocks(&mut from.store.export(REPLICA).unwrap(), MIB);
    for harm in HARMS {
        let (mut to, dir) = node();
        to.run(vec![put("k", "mine")]);
        let received = receive(&to.store, &sent).unwrap();
        let (file, at) = find_incoming(dir.path(), &noise(STATES / 2, 9_000)[..NEEDLE]);
        harm.harm(&file, at);
        if let Err(refused) = to.shard.install(received) {
            assert!(matches!(refused, Error::Corrupt { .. } | Error::Io { .. }), "{refused}");
            assert_eq!(read(&to, "k").unwrap(), "mine", "{harm:?}");
            assert!(to.store.failure().is_none(), "{harm:?}");
            to.run(vec![put("k", "later")]);
            assert_eq!(read(&to, "k").unwrap(), "later", "{harm:?}");
            continue;
        }
        let read = |number| read(&to, &format!("k{number}"));
        let lost = (0..STATES).filter(|number| match read(*number) {
            Some(found) => {
                assert_eq!(found, noise(*number, 9_000), "{harm:?}");
                false
            }
            None => true,
        });
        assert!(lost.count() > 0, "{harm:?}");
        scrub(&to.store);
        let damages = to.store.damages();
        assert!(damages.iter().any(|it| it.replica == Some(REPLICA)), "{harm:?}: {damages:?}");
    }
}

/// Where some bytes lie in the files of a view that comes in.
fn find_incoming(dir: &Path, bytes: &[u8]) -> (PathBuf, u64) {
    let views = std::fs::read_dir(dir.join("incoming")).unwrap().map(|view| view.unwrap().path());
    let mut files = views.flat_map(|view| std::fs::read_dir(view).unwrap());
    let found = files.find_map(|file| {
        let path = file.unwrap().path();
        let found = std::fs::read(&path).unwrap();
        let at = found.windows(bytes.len()).position(|window| window == bytes)?;
        Some((path, at as u64))
    });
    found.expect("it was received")
}
