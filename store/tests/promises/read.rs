//! Reads see what is applied, whole, wherever it lies.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use statehouse_store::{
    Cached, Command, Config, DType, Error, Expiry, Field, FieldRange, Part, Put, ReadPool, Reply,
    RequestTag, Selection, Value, Write,
};
use tempfile::TempDir;

use crate::support::{Node, USERS, bytes_field, noise, put, write};

fn range(name: &str, range: Option<(u64, Option<u64>)>) -> Selection {
    let part = range.map_or(Part::Whole, |(offset, len)| Part::Bytes { offset, len });
    Selection::fields(vec![FieldRange { name: name.into(), part }])
}

#[test]
fn what_is_in_memory_is_ready_and_what_is_not_needs_the_disk() {
    const SMALL: usize = 1_000;
    let dir = TempDir::new().unwrap();
    let mut node = Node::open(dir.path());
    // Opening reads rows of the store's own, and with them the blocks that they are in: these fill
    // the rest of them, in front and behind.
    node.run(vec![put("first", noise(3, 12_000)), put("zlast", noise(4, 12_000))]);
    node.run(vec![put("small", noise(1, SMALL)), put("large", noise(2, 200_000))]);
    let ready = |node: &Node, key: &str| {
        let all = Selection::all();
        match node.reader.try_get_whole(USERS, key.as_bytes(), &all, 0).unwrap() {
            Cached::Ready(state) => state.map(|state| state.fields[0].bytes().clone()),
            Cached::NeedsDisk => None,
        }
    };
    assert_eq!(ready(&node, "small"), Some(noise(1, SMALL)));
    assert_eq!(ready(&node, "large"), Some(noise(2, 200_000)));
    node.store.close().unwrap();
    drop(node);
    let node = Node::open(dir.path());
    let cold = node.reader.try_get(USERS, b"small", 0).unwrap();
    assert!(matches!(cold, Cached::NeedsDisk));
    assert_eq!(node.field("small", "f"), noise(1, SMALL));
    assert_eq!(node.field("large", "f"), noise(2, 200_000));
    assert_eq!(ready(&node, "small"), Some(noise(1, SMALL)), "a read leaves it in memory");
    assert_eq!(ready(&node, "large"), Some(noise(2, 200_000)), "a read leaves it in memory");
    let absent = node.reader.try_get(USERS, b"absent", 0).unwrap();
    assert!(matches!(absent, Cached::Ready(None)));
}

#[test]
fn what_is_long_is_put_together_where_waiting_is_allowed() {
    let mut node = Node::new();
    node.run(vec![put("k", noise(1, 600_000))]);
    let looked = |selection: &Selection| {
        let found = node.reader.try_get_whole(USERS, b"k", selection, 0).unwrap();
        matches!(found, Cached::Ready(Some(_)))
    };
    assert!(!looked(&Selection::all()), "it is in memory, but too long to copy at once");
    assert!(looked(&range("f", Some((300_000, Some(4_096))))));
    assert_eq!(node.field("k", "f"), noise(1, 600_000));
}

#[test]
fn a_selection_reads_what_it_names() {
    let mut node = Node::new();
    let shape = vec![10, 25_000];
    let tensor = Value::Tensor { dtype: DType::F32, shape, data: noise(1, 1_000_000) };
    let fields = vec![Field::new("t", tensor), bytes_field("b", &b"hello world"[..])];
    node.run(vec![Command::Put(Put { write: write("k"), fields })]);
    let read = |selection: &Selection| node.reader.get_whole(USERS, b"k", selection, 0);
    let bytes = |selection| read(&selection).unwrap().unwrap().fields[0].bytes().clone();
    assert_eq!(bytes(range("b", None)), &b"hello world"[..]);
    assert_eq!(bytes(range("b", Some((6, None)))), &b"world"[..]);
    assert_eq!(bytes(range("b", Some((0, Some(5))))), &b"hello"[..]);
    assert_eq!(bytes(range("b", Some((11, None)))), &b""[..]);
    assert_eq!(
        bytes(range("t", Some((262_140, Some(10))))),
        noise(1, 1_000_000).slice(262_140..262_150)
    );
    let unknown = read(&range("x", None)).unwrap_err();
    assert!(matches!(&unknown, Error::UnknownField { name } if name == "x"), "{unknown}");
    let past = read(&range("b", Some((6, Some(6))))).unwrap_err();
    assert!(matches!(past, Error::RangePastEnd { bytes: 11, end: 12, .. }), "{past}");
    let past = read(&range("t", Some((1_000_001, None)))).unwrap_err();
    assert!(matches!(past, Error::RangePastEnd { end: 1_000_001, .. }), "{past}");
    let past = read(&range("b", Some((u64::MAX, Some(9))))).unwrap_err();
    assert!(matches!(past, Error::RangePastEnd { end: u64::MAX, .. }), "{past}");
    let state = read(&range("t", Some((0, Some(4))))).unwrap().unwrap();
    assert!(matches!(state.fields[0].value, Value::Bytes(_)), "bytes of a tensor are bytes");
}

#[test]
fn rows_of_a_tensor_are_a_tensor() {
    let mut node = Node::new();
    let field = |name: &str, dtype, shape: Vec<u64>, data| {
        Field::new(name, Value::Tensor { dtype, shape, data })
    };
    let data = noise(1, 1_000_000);
    let fields = vec![
        field("t", DType::F32, vec![10, 25_000], data.clone()),
        field("one", DType::U8, vec![], noise(2, 1)),
        field("none", DType::F32, vec![0, 4], noise(3, 0)),
        bytes_field("b", "bytes"),
    ];
    node.run(vec![Command::Put(Put { write: write("k"), fields })]);
    let rows = |name: &str, first, count| {
        let part = Part::Rows { first, count };
        let wanted = Selection::fields(vec![FieldRange { name: name.into(), part }]);
        let state = node.reader.get_whole(USERS, b"k", &wanted, 0)?;
        Ok::<_, Error>(state.unwrap().fields.remove(0).value)
    };
    let tensor =
        |shape: &[u64], data| Value::Tensor { dtype: DType::F32, shape: shape.to_vec(), data };
    let (two, last) = (data.slice(300_000..500_000), data.slice(900_000..));
    assert_eq!(rows("t", 3, Some(2)).unwrap(), tensor(&[2, 25_000], two));
    assert_eq!(rows("t", 9, None).unwrap(), tensor(&[1, 25_000], last));
    assert_eq!(rows("t", 10, None).unwrap(), tensor(&[0, 25_000], noise(0, 0)));
    assert_eq!(rows("none", 0, None).unwrap(), tensor(&[0, 4], noise(0, 0)));
    for (name, first, count) in [("t", 11, None), ("t", 9, Some(2)), ("t", 1, Some(u64::MAX))] {
        let past = rows(name, first, count).unwrap_err();
        assert!(matches!(past, Error::RangePastEnd { .. }), "{past}");
    }
    for name in ["one", "b"] {
        let refused = rows(name, 0, None).unwrap_err();
        assert!(matches!(refused, Error::NoRows { .. }), "{refused}");
    }
}

#[test]
fn a_state_expires_when_its_time_comes() {
    let mut node = Node::new();
    let expiring = Write { expiry: Expiry::At(5_000), ..write("k") };
    node.run(vec![Command::Put(Put { write: expiring, fields: vec![bytes_field("f", "v")] })]);
    let there = |now_ms| node.reader.get(USERS, b"k", now_ms).unwrap().is_some();
    assert!(there(4_999));
    assert!(!there(5_000));
    // The shard's time has come to 6,000: a reader whose clock is behind sees no ghost.
    node.run_at(6_000, vec![put("other", "v")]);
    assert!(node.reader.get(USERS, b"k", 4_999).unwrap().is_none());
}

#[test]
fn listings_come_in_order_and_go_on_where_they_stopped() {
    let mut node = Node::new();
    let keys = ["a", "aa", "b", "ba", "c"];
    node.run(keys.iter().rev().map(|key| put(key, "v")).collect());
    let list = |after: Option<&str>, limit| {
        node.reader.scan(USERS, after.map(str::as_bytes), limit).unwrap()
    };
    assert_eq!(list(None, 10), keys);
    assert_eq!(list(None, 2), ["a", "aa"]);
    assert_eq!(list(Some("aa"), 2), ["b", "ba"]);
    assert_eq!(list(Some("c"), 2), [] as [&str; 0]);
    assert_eq!(list(None, 0), [] as [&str; 0]);
}

#[test]
fn a_repeat_is_answered_without_proposing_it() {
    let mut node = Node::new();
    let tag = RequestTag { id: [1; 16], fingerprint: 5 };
    let write = Write { request: Some(tag), answer: Bytes::from_static(b"a"), ..write("k") };
    let minute = 60_000;
    node.run_at(minute, vec![Command::Put(Put { write, fields: vec![] })]);
    let reply = Reply::Written {
        version: 65_536,
        answer: Bytes::from_static(b"a"),
        bytes: 0,
        repeated: true,
    };
    assert_eq!(node.reader.answer(&tag, minute).unwrap(), Some(reply.clone()));
    assert_eq!(node.reader.answer(&tag, 14 * minute).unwrap(), Some(reply.clone()));
    assert_eq!(node.reader.answer(&tag, 0).unwrap(), Some(reply), "a clock that is behind");
    assert_eq!(node.reader.answer(&tag, 16 * minute).unwrap(), None, "too long ago");
    let other = RequestTag { fingerprint: 6, ..tag };
    assert_eq!(node.reader.answer(&other, minute).unwrap(), Some(Reply::RequestIdReused));
    let unknown = RequestTag { id: [2; 16], ..tag };
    assert_eq!(node.reader.answer(&unknown, minute).unwrap(), None);
}

#[test]
fn whole_reads_are_of_one_version_while_the_state_is_replaced() {
    let mut node = Node::new();
    let states: Vec<Bytes> = (0..2).map(|seed| noise(seed, 700_000)).collect();
    node.run(vec![put("k", states[0].clone())]);
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, stop, states) = (node.reader.clone(), stop.clone(), states.clone());
            std::thread::spawn(move || {
                let mut reads = 0;
                while !stop.load(Ordering::Relaxed) || reads == 0 {
                    let state = reader.get_whole(USERS, b"k", &Selection::all(), 0).unwrap();
                    let bytes = state.expect("it is never absent").fields[0].bytes().clone();
                    assert!(states.contains(&bytes), "a mixture of two versions");
                    reads += 1;
                }
            })
        })
        .collect();
    for round in 1..60 {
        node.run(vec![put("k", states[round % 2].clone())]);
        node.purge_all();
    }
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

#[test]
fn a_handle_to_a_replaced_state_says_so_and_a_view_still_reads_it() {
    let mut node = Node::new();
    node.run(vec![put("k", noise(1, 700_000))]);
    let view = node.reader.view().unwrap();
    let old = node.reader.get(USERS, b"k", 0).unwrap().unwrap();
    node.run(vec![put("k", noise(2, 700_000))]);
    node.purge_all();
    let gone = node.reader.load(&old.fields[0], 0..700_000).unwrap_err();
    assert!(matches!(gone, Error::Replaced), "{gone}");
    let seen = view.get(USERS, b"k", 0).unwrap().unwrap();
    assert_eq!(view.load(&seen.fields[0], 5..700_000).unwrap(), noise(1, 700_000).slice(5..));
    assert_eq!(view.applied_index(), 1);
    assert_eq!(node.field("k", "f"), noise(2, 700_000));
}

#[test]
fn bytes_outlive_the_state_and_the_store() {
    let dir = TempDir::new().unwrap();
    let mut node = Node::open(dir.path());
    node.run(vec![put("k", noise(1, 8_000))]);
    node.store.close().unwrap();
    drop(node);
    let mut node = Node::open(dir.path());
    let held = node.field("k", "f");
    node.run(vec![put("k", noise(2, 8_000))]);
    drop(node);
    assert_eq!(held, noise(1, 8_000));
}

#[test]
fn a_read_pool_refuses_what_it_can_not_queue_and_survives_panics() {
    let pool = ReadPool::new("read", 1, 2);
    let (entered, is_held) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    pool.submit(Box::new(move || {
        entered.send(()).unwrap();
        held.recv().unwrap();
        panic!("a read that fails");
    }))
    .unwrap();
    is_held.recv().unwrap();
    let (sender, receiver) = mpsc::channel();
    for number in 0..2 {
        let sender = sender.clone();
        pool.submit(Box::new(move || sender.send(number).unwrap())).unwrap();
    }
    let refused = pool.submit(Box::new(|| ())).unwrap_err();
    assert!(matches!(refused, Error::Overloaded { max: 2, .. }), "{refused}");
    release.send(()).unwrap();
    assert_eq!([receiver.recv().unwrap(), receiver.recv().unwrap()], [0, 1]);
    pool.close();
    assert!(pool.submit(Box::new(|| ())).is_err());
}

#[test]
fn memory_is_accounted_for() {
    let dir = TempDir::new().unwrap();
    let config = Config { block_cache_bytes: 8 << 20, ..Config::default() };
    let mut node = Node::open_with(dir.path(), config);
    node.run(vec![put("k", noise(1, 3 << 20))]);
    let memory = node.store.stats().memory;
    assert!(memory.memtable_bytes >= 3 << 20, "{memory:?}");
    assert!(memory.log_tail_bytes >= 3 << 20, "{memory:?}");
    assert!(memory.block_cache_bytes >= memory.memtable_bytes, "{memory:?}");
    assert_eq!(node.store.stats().commands_applied, 1);
    assert!(node.store.property(None, "rocksdb.estimate-num-keys").is_some());
    assert!(node.store.ticker("rocksdb.block.cache.hit").is_some());
    assert!(node.store.ticker("rocksdb.no.such.ticker").is_none());
}

#[test]
fn reads_never_go_back_in_time_whichever_way_they_look() {
    let dir = TempDir::new().unwrap();
    // So small that states are evicted and found again all the time.
    let config = Config { state_cache_bytes: 64 << 10, ..Config::default() };
    let mut node = Node::open_with(dir.path(), config);
    node.run(vec![put("k", noise(0, 500))]);
    let (stop, newest) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for manner in 0..4 {
            let (reader, stop, newest) = (node.reader.clone(), &stop, &newest);
            scope.spawn(move || {
                let all = Selection::all();
                while !stop.load(Ordering::Relaxed) {
                    let seen = newest.load(Ordering::SeqCst);
                    let found = match manner {
                        0 => reader.view().unwrap().get_whole(USERS, b"k", &all, 0).unwrap(),
                        1 => match reader.try_get_whole(USERS, b"k", &all, 0).unwrap() {
                            Cached::Ready(found) => found,
                            Cached::NeedsDisk => continue,
                        },
                        _ => reader.get_whole(USERS, b"k", &all, 0).unwrap(),
                    };
                    let version = found.unwrap().version;
                    assert!(version >= seen, "{version} after {seen}, manner {manner}");
                    newest.fetch_max(version, Ordering::SeqCst);
                }
            });
        }
        // Meanwhile the collection moves within the cache, again and again.
        let (store, stop_pinning) = (node.store.clone(), &stop);
        scope.spawn(move || {
            let both = [HashSet::from([USERS]), HashSet::new()];
            for pinned in both.iter().cycle() {
                if stop_pinning.load(Ordering::Relaxed) {
                    return;
                }
                store.pin(pinned);
                std::thread::yield_now();
            }
        });
        for round in 0..300 {
            let others = (0..40).map(|n| put(&format!("{round}-{n}"), noise(n, 2_000)));
            node.run(std::iter::once(put("k", noise(round, 500))).chain(others).collect());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(newest.load(Ordering::SeqCst) > 100 << 16, "the readers saw the writes go by");
}
