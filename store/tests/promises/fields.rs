//! Fields that expire by themselves: gone when their time comes, for every reader, and their
//! space with the next sweep.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_store::{
    Cached, Census, Command, Edit, Expiry, Field, FieldRange, Part, Patch, Put, Reply, Selection,
    Sweep, When, WholeState, Write,
};

use crate::support::{
    Node, USERS, bytes_field, disk_bytes, expiring, noise, patch, pick, seed, write,
};

const MIB: usize = 1 << 20;

fn put(key: &str, fields: Vec<Field>) -> Command {
    Command::Put(Put { write: write(key), fields })
}

fn names(state: &WholeState) -> Vec<&str> {
    state.fields.iter().map(|field| &field.name[..]).collect()
}

/// One sweep, if there is something to sweep.
fn sweep(node: &mut Node, now_ms: u64, limit: u32) -> Option<Reply> {
    let cursor = node.reader.sweep_start(now_ms).unwrap()?.cursor;
    let sweep = Sweep { now_ms, limit, cursor, requests_max: None };
    Some(node.run_at(now_ms, vec![Command::Sweep(sweep)]).remove(0))
}

fn swept(states: u64, fields: u64) -> Option<Reply> {
    Some(Reply::Swept { states, fields, uploads: 0 })
}

#[test]
fn every_way_to_read_loses_a_field_at_the_same_moment() {
    /// In a chunk, and read at once where it is in memory.
    const LARGE: usize = 200_000;
    let mut node = Node::new();
    let fields = vec![bytes_field("stays", "s"), expiring("brief", noise(1, LARGE), 5_000)];
    node.run(vec![put("k", fields)]);
    let view = Arc::new(node.reader.view().unwrap());
    let whole = |selection: &Selection, now_ms| {
        let found = node.reader.get_whole(USERS, b"k", selection, now_ms).unwrap().unwrap();
        let seen = view.get_whole(USERS, b"k", selection, now_ms).unwrap().unwrap();
        assert_eq!(found, seen);
        let cached = node.reader.try_get_whole(USERS, b"k", selection, now_ms).unwrap();
        assert!(matches!(cached, Cached::Ready(Some(cached)) if cached == found));
        found
    };
    let brief = |part| FieldRange { name: "brief".into(), part };
    let range = Selection::fields(vec![brief(Part::Bytes { offset: 9, len: Some(2) })]);
    let present = Selection::if_present(vec!["brief".into(), "stays".into()]);

    assert_eq!(names(&whole(&Selection::all(), 4_999)), ["stays", "brief"]);
    assert_eq!(names(&whole(&present, 4_999)), ["brief", "stays"]);
    let part = whole(&range, 4_999).fields.remove(0);
    assert_eq!(
        (part.bytes(), part.expires),
        (&noise(1, LARGE).slice(9..11), Some(When::At(5_000)))
    );

    assert_eq!(names(&whole(&Selection::all(), 5_000)), ["stays"]);
    assert_eq!(names(&whole(&present, 5_000)), ["stays"]);
    assert!(node.reader.get_whole(USERS, b"k", &range, 5_000).is_err());
    assert!(view.get_whole(USERS, b"k", &range, 5_000).is_err());
    for (now_ms, there) in [(4_999, true), (5_000, false)] {
        let found = node.reader.get(USERS, b"k", now_ms).unwrap().unwrap();
        assert_eq!(found.field("brief").is_some(), there);
        assert_eq!(found.select(&range).is_ok(), there);
        let seen = view.get(USERS, b"k", now_ms).unwrap().unwrap();
        assert_eq!(seen.field("brief").is_some(), there);
        let cached = node.reader.try_get(USERS, b"k", now_ms).unwrap();
        let Cached::Ready(Some(cached)) = cached else { panic!("it is in memory") };
        assert_eq!(cached.field("brief").is_some(), there);
    }
    // A stream that was opened before goes on to its end.
    let opened = view.get(USERS, b"k", 4_999).unwrap().unwrap();
    let mut stream = view.stream(opened.field("brief").unwrap(), 0..LARGE as u64).unwrap();
    node.run_at(6_000, vec![put("other", vec![])]);
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next_piece().unwrap() {
        bytes.extend_from_slice(&piece);
    }
    assert!(bytes == noise(1, LARGE));
    // The shard's time has come to 6,000: a reader whose clock is behind sees no ghost.
    let found = node.reader.get_whole(USERS, b"k", &Selection::all(), 4_999).unwrap().unwrap();
    assert_eq!(names(&found), ["stays"]);
}

#[test]
fn the_space_of_an_expired_field_comes_back_with_a_sweep() {
    let mut node = Node::new();
    let fields =
        vec![bytes_field("stays", noise(1, MIB)), expiring("brief", noise(2, 8 * MIB), 5_000)];
    node.run(vec![put("k", fields)]);
    node.purge_all();
    let census = node.shard.census().unwrap();
    assert_eq!((census.chunk_bytes, census.expiries), (9 * MIB as u64, 1));
    assert_eq!(sweep(&mut node, 4_999, 10), None, "nothing has expired yet");
    node.run_at(5_000, vec![put("other", vec![])]);
    assert_eq!(node.shard.census().unwrap().chunk_bytes, 9 * MIB as u64, "until it is swept");
    let before = node.whole("k");
    assert_eq!(sweep(&mut node, 5_000, 10), swept(0, 1));
    assert_eq!(node.whole("k"), before, "nobody can tell that a sweep has been");
    let census = node.shard.census().unwrap();
    assert_eq!((census.chunk_bytes, census.expiries), (MIB as u64, 0));
    assert_eq!(sweep(&mut node, 9_000, 10), None);
    let node = node.reopen();
    assert_eq!(node.whole("k"), before);
    assert_eq!(node.field("k", "stays"), noise(1, MIB));
}

#[test]
fn the_files_of_expired_fields_shrink_though_nobody_writes() {
    let mut node = Node::new();
    for number in 0..30 {
        let brief = expiring("brief", noise(number, 4 * MIB), 5_000);
        node.run(vec![put(&format!("k{number}"), vec![bytes_field("stays", "s"), brief])]);
    }
    node.purge_all();
    let full = disk_bytes(&node.dir);
    assert!(full > 120 << 20, "{full}");
    assert_eq!(sweep(&mut node, 5_000, 100), swept(0, 30));
    node.purge_all();
    let started = Instant::now();
    while disk_bytes(&node.dir) > 20 << 20 {
        let left = disk_bytes(&node.dir) >> 20;
        assert!(started.elapsed() < Duration::from_secs(60), "{left} MiB of {full} are left");
        std::thread::yield_now();
    }
    println!("given back after {:?}", started.elapsed());
    assert_eq!(node.field("k29", "stays"), "s");
}

#[test]
fn sweeps_of_fields_find_their_work_again_after_a_restart() {
    let mut node = Node::new();
    for key in ["a", "b", "c"] {
        let fields =
            vec![expiring("f", "x", 3_000), expiring("g", "y", 6_000), bytes_field("h", "z")];
        node.run(vec![put(key, fields)]);
    }
    assert_eq!(sweep(&mut node, 3_500, 2), swept(0, 2), "no more at a time than asked for");
    assert_eq!(sweep(&mut node, 3_500, 2), swept(0, 1));
    assert_eq!(sweep(&mut node, 3_500, 2), None);
    let mut node = node.reopen();
    assert_eq!(sweep(&mut node, 5_999, 2), None);
    assert_eq!(sweep(&mut node, 6_000, 9), swept(0, 3));
    assert_eq!(sweep(&mut node, 9_000, 2), None);
    let left = Census { states: 3, ..Census::default() };
    assert_eq!(node.shard.census().unwrap(), left);
}

/// A state as it should be: its expiry, and its fields with theirs, in order.
#[derive(Clone, Default)]
struct Model {
    expires_at_ms: Option<u64>,
    fields: Vec<(String, Bytes, Option<u64>)>,
}

impl Model {
    /// What of it is there at a time.
    fn at(&self, now_ms: u64) -> Option<Model> {
        let there = |at_ms: Option<u64>| at_ms.is_none_or(|at_ms| at_ms > now_ms);
        let mut left = self.clone();
        left.fields.retain(|(_, _, at_ms)| there(*at_ms));
        there(self.expires_at_ms).then_some(left)
    }

    fn field(&mut self, name: &str) -> Option<&mut (String, Bytes, Option<u64>)> {
        self.fields.iter_mut().find(|(known, ..)| known == name)
    }

    fn set(&mut self, field: &Field, now_ms: u64) {
        let expires_at_ms = field.expires.map(|when| when.at_ms(now_ms));
        let new = (field.name.clone(), field.bytes().clone(), expires_at_ms);
        match self.field(&field.name) {
            Some(old) => *old = new,
            None => self.fields.push(new),
        }
    }

    /// Does an edit; `false` if it must be refused.
    fn edit(&mut self, edit: &Edit, now_ms: u64) -> bool {
        match edit {
            Edit::Set(field) => self.set(field, now_ms),
            Edit::Remove { name } => {
                let before = self.fields.len();
                self.fields.retain(|(known, ..)| known != name);
                return self.fields.len() < before;
            }
            Edit::Append { name, bytes, .. } => {
                let Some((_, there, _)) = self.field(name) else { return false };
                *there = [&there[..], bytes].concat().into();
            }
            Edit::Expire { name, when } => {
                let Some((.., until)) = self.field(name) else { return false };
                *until = when.map(|when| when.at_ms(now_ms));
            }
            Edit::WriteRange { .. } => unreachable!("none is made here"),
        }
        true
    }
}

fn soon(random: &mut StdRng, now_ms: u64) -> Option<When> {
    let ttl_ms = pick(random, 0..400) as u64;
    match pick(random, 0..3) {
        0 => None,
        // Sometimes past already.
        1 => Some(When::At((now_ms + ttl_ms).saturating_sub(40))),
        _ => Some(When::After(ttl_ms)),
    }
}

fn some_field(random: &mut StdRng, now_ms: u64) -> Field {
    let len = if pick(random, 0..3) == 0 { 20_000 } else { 20 };
    let name = ["a", "b", "c"][pick(random, 0..3)];
    Field { expires: soon(random, now_ms), ..bytes_field(name, noise(random.random(), len)) }
}

fn some_edit(random: &mut StdRng, now_ms: u64) -> Edit {
    let field = some_field(random, now_ms);
    match pick(random, 0..6) {
        0..2 => Edit::Set(field),
        2 => Edit::Remove { name: field.name },
        3 => {
            let bytes = noise(random.random(), 9_000);
            Edit::Append { name: field.name, bytes, max_bytes: None }
        }
        _ => Edit::Expire { name: field.name, when: field.expires },
    }
}

fn check_reads(node: &Node, models: &BTreeMap<String, Model>, now_ms: u64) {
    for (key, model) in models {
        let found = node.reader.get_whole(USERS, key.as_bytes(), &Selection::all(), now_ms);
        let found = found.unwrap().map(|state| {
            let field = |field: Field| {
                let expires_at_ms = field.expires.map(|when| when.at_ms(0));
                (field.name.clone(), field.bytes().clone(), expires_at_ms)
            };
            (state.expires_at_ms, state.fields.into_iter().map(field).collect::<Vec<_>>())
        });
        let expected = model.at(now_ms).map(|model| (model.expires_at_ms, model.fields));
        assert!(found == expected, "{key} at {now_ms}");
    }
}

#[test]
fn states_and_fields_expire_as_a_model_of_them_does() {
    let mut random = StdRng::seed_from_u64(seed());
    let (mut node, mut models) = (Node::new(), BTreeMap::<String, Model>::new());
    let mut now_ms = 1_000;
    for _ in 0..1_500 {
        now_ms += pick(&mut random, 0..30) as u64;
        let key = format!("k{}", pick(&mut random, 0..6));
        let expiry = [
            Expiry::Keep,
            Expiry::KeepOrAfter(200),
            Expiry::Never,
            Expiry::At(now_ms + 300),
            Expiry::After(300),
        ];
        let expiry = expiry[pick(&mut random, 0..5)];
        let write = Write { expiry, ..write(&key) };
        let before = models.get(&key).and_then(|model| model.at(now_ms));
        let kept = before.as_ref().and_then(|model| model.expires_at_ms);
        let expires_at_ms = match expiry {
            Expiry::Keep => kept,
            Expiry::KeepOrAfter(ttl_ms) if before.is_none() => Some(now_ms + ttl_ms),
            Expiry::KeepOrAfter(_) => kept,
            Expiry::Never => None,
            Expiry::At(at_ms) => Some(at_ms),
            Expiry::After(ttl_ms) => Some(now_ms + ttl_ms),
        };
        if pick(&mut random, 0..6) == 0 {
            let fields = ["a", "b", "c"]
                .map(|name| Field { name: name.into(), ..some_field(&mut random, now_ms) });
            let mut model = Model { expires_at_ms, ..Model::default() };
            fields.iter().for_each(|field| model.set(field, now_ms));
            node.run_at(now_ms, vec![Command::Put(Put { write, fields: fields.into() })]);
            models.insert(key, model);
        } else {
            let edits: Vec<Edit> =
                (0..pick(&mut random, 1..4)).map(|_| some_edit(&mut random, now_ms)).collect();
            let creates = edits.iter().all(|edit| matches!(edit, Edit::Set(_)));
            let mut model = before.clone().unwrap_or_default();
            let done =
                (before.is_some() || creates) && edits.iter().all(|edit| model.edit(edit, now_ms));
            let patch = Command::Patch(Patch { write, edits });
            let reply = node.run_at(now_ms, vec![patch]).remove(0);
            assert_eq!(matches!(reply, Reply::Written { .. }), done, "{reply:?}");
            if done {
                models.insert(key, Model { expires_at_ms, ..model });
            }
        }
        if pick(&mut random, 0..4) == 0 {
            sweep(&mut node, now_ms, 1 + pick(&mut random, 0..3) as u32);
        }
        if pick(&mut random, 0..40) == 0 {
            node.purge_all();
        }
        check_reads(&node, &models, now_ms + pick(&mut random, 0..100) as u64);
    }
    // In the end what never expires is left, and no chunk more than that.
    let end_ms = now_ms + 10_000;
    while sweep(&mut node, end_ms, 100).is_some() {}
    node.purge_all();
    check_reads(&node, &models, end_ms);
    let left: Vec<Model> = models.values().filter_map(|model| model.at(end_ms)).collect();
    let census = node.shard.census().unwrap();
    assert_eq!((census.states, census.expiries, census.garbage), (left.len() as u64, 0, 0));
    let bytes: usize = left.iter().flat_map(|model| &model.fields).map(|it| it.1.len()).sum();
    assert!(census.chunk_bytes <= 2 * bytes as u64 + 300_000, "{census:?} for {bytes} bytes");
    let hash = node.shard.state_hash().unwrap();
    assert_eq!(node.reopen().shard.state_hash().unwrap(), hash);
}

#[test]
fn replicas_that_apply_the_same_are_the_same_whenever_they_are_read() {
    let mut nodes = [Node::new(), Node::new()];
    let commands = |time_ms: u64| {
        let set = Edit::Set(expiring("b", noise(time_ms, 30_000), time_ms + 150));
        let (now_ms, limit, cursor) = (time_ms, 10, None);
        let sweep = Command::Sweep(Sweep { now_ms, limit, cursor, requests_max: None });
        let fields = vec![expiring("a", "x", time_ms + 250), bytes_field("c", "y")];
        vec![put(&format!("p{time_ms}"), fields), patch("k", vec![set]), sweep]
    };
    for time_ms in (1_000..3_000).step_by(100) {
        for (number, node) in nodes.iter_mut().enumerate() {
            // Clocks of readers differ, and change nothing.
            let _ = node.reader.get_whole(USERS, b"k", &Selection::all(), number as u64 * 9_999);
            node.run_at(time_ms, commands(time_ms));
        }
    }
    let [one, two] = nodes;
    assert_eq!(one.shard.state_hash().unwrap(), two.shard.state_hash().unwrap());
    assert_eq!(one.shard.census().unwrap(), two.shard.census().unwrap());
}
