//! A field that expires by itself is gone when its time comes, for every call, and its state stays.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use harness::{
    House, Node, PATIENCE, bank_model, bank_score, bytes_field, create, f32_field, field_bytes,
    get, push, put, reason,
};
use statehouse_client::v1::edit::{Edit, expire};
use statehouse_client::v1::field::Expiry;
use statehouse_client::v1::pipeline_request::Call;
use statehouse_client::v1::pipeline_response::Result as Answer;
use statehouse_client::v1::{self, ScoreMode, field_header, write_options};
use statehouse_client::{Client, Error};

const HOUR_MS: u64 = 3_600_000;

/// A time that has passed: what expires then is gone at once, as for whole states.
const PAST: Expiry = Expiry::ExpiresAtMs(1_000);

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

async fn house() -> (House, Node, Client) {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    (house, node, client)
}

fn until(field: v1::Field, expiry: Expiry) -> v1::Field {
    v1::Field { expiry: Some(expiry), ..field }
}

/// A state with a field that stays, and one that does not.
fn two(expiry: Expiry) -> Vec<v1::Field> {
    vec![bytes_field("stays", "s"), until(bytes_field("brief", "brief"), expiry)]
}

fn patch(key: &str, edits: Vec<Edit>) -> v1::PatchRequest {
    v1::PatchRequest {
        collection: "c".into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        edits: edits.into_iter().map(|edit| v1::Edit { edit: Some(edit) }).collect(),
        options: None,
    }
}

fn expire(field: &str, expiry: expire::Expiry) -> Edit {
    Edit::Expire(v1::edit::Expire { field: field.into(), expiry: Some(expiry) })
}

fn append(field: &str, data: &str) -> Edit {
    let (field, data) = (field.into(), Bytes::copy_from_slice(data.as_bytes()));
    Edit::Append(v1::edit::Append { field, data, max_bytes: None })
}

fn write_range(field: &str, offset: u64, data: &str) -> Edit {
    let (field, data) = (field.into(), Bytes::copy_from_slice(data.as_bytes()));
    Edit::WriteRange(v1::edit::WriteRange { field, offset, data })
}

fn names(state: &v1::StoredState) -> Vec<&str> {
    state.fields.iter().map(|field| &field.name[..]).collect()
}

/// When a field of an answer expires.
fn expiry(state: &v1::StoredState, name: &str) -> Option<u64> {
    match state.fields.iter().find(|field| field.name == name).unwrap().expiry {
        None => None,
        Some(Expiry::ExpiresAtMs(at_ms)) => Some(at_ms),
        Some(Expiry::TtlMs(_)) => panic!("an answer says when, not how long"),
    }
}

async fn state(client: &Client, key: &str) -> v1::StoredState {
    client.get(get("c", key)).await.unwrap()
}

async fn batch_get(client: &Client, request: v1::BatchGetRequest) -> Vec<String> {
    use v1::batch_get_response::item::Result as Item;
    let answer = client.call(Call::BatchGet(request)).await.unwrap();
    let Answer::BatchGet(gets) = answer else { panic!("{answer:?}") };
    let shown = |item: v1::batch_get_response::Item| match item.result.unwrap() {
        Item::State(state) => names(&state).join(","),
        Item::Error(error) => error.reason,
    };
    gets.items.into_iter().map(shown).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_is_gone_when_its_time_comes_and_its_state_stays() {
    let (_house, _node, client) = house().await;
    let before = now_ms();
    let version = client.put(put("c", "k", two(Expiry::TtlMs(1_500)))).await.unwrap().version;
    let found = state(&client, "k").await;
    let at_ms = expiry(&found, "brief").unwrap();
    assert!((before + 1_500..=now_ms() + 1_500).contains(&at_ms), "{at_ms}");
    assert_eq!((expiry(&found, "stays"), found.expires_at_ms), (None, None));
    // Awaited, not slept for: it is there until it has expired.
    let gone = async {
        while names(&state(&client, "k").await).contains(&"brief") {
            assert!(now_ms() <= at_ms + 1_000, "nothing lasts a second longer than it may");
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert!(now_ms() >= at_ms, "nothing goes before its time");
    let found = state(&client, "k").await;
    assert_eq!((found.version, names(&found)), (version, vec!["stays"]));

    // It is not there for anybody.
    let whole = v1::FieldSelector { name: "brief".into(), ..Default::default() };
    let part = v1::FieldSelector { offset: Some(1), length: Some(2), ..whole.clone() };
    for selector in [whole.clone(), part] {
        let fields = vec![selector];
        let request = v1::GetRequest { fields: fields.clone(), ..get("c", "k") };
        assert_eq!(reason(client.get(request.clone()).await), "FIELD_NOT_FOUND");
        assert_eq!(reason(client.open(request).await.map(|_| ())), "FIELD_NOT_FOUND");
        let keys = vec!["k".into(), "none".into()];
        let request =
            v1::BatchGetRequest { collection: "c".into(), keys, fields, ..Default::default() };
        assert_eq!(batch_get(&client, request).await, ["FIELD_NOT_FOUND", "STATE_NOT_FOUND"]);
    }
    let keys = vec!["k".into()];
    let request = v1::BatchGetRequest { collection: "c".into(), keys, ..Default::default() };
    assert_eq!(batch_get(&client, request).await, ["stays"]);
    let never = expire("brief", expire::Expiry::NeverExpires(true));
    let remove = Edit::Remove("brief".into());
    for edit in [append("brief", "x"), write_range("brief", 0, "x"), remove, never] {
        assert_eq!(reason(client.patch(patch("k", vec![edit])).await), "FIELD_NOT_FOUND");
    }
    // The state has its version: who read it may write it.
    let condition = Some(write_options::Condition::IfVersion(version));
    let options = Some(v1::WriteOptions { condition, ..Default::default() });
    let edits = vec![Edit::Set(bytes_field("brief", "again"))];
    client.patch(v1::PatchRequest { options, ..patch("k", edits) }).await.unwrap();
    let found = state(&client, "k").await;
    assert_eq!((names(&found), expiry(&found, "brief")), (vec!["stays", "brief"], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_stays_though_all_its_fields_have_expired() {
    let (_house, _node, client) = house().await;
    let only = vec![until(bytes_field("f", "x"), PAST)];
    let puts = vec![put("c", "k", only), put("c", "other", two(Expiry::TtlMs(HOUR_MS)))];
    let answer = client.call(Call::BatchPut(v1::BatchPutRequest { puts })).await.unwrap();
    assert!(matches!(answer, Answer::BatchPut(_)), "{answer:?}");
    let found = state(&client, "k").await;
    assert!(found.fields.is_empty() && found.version > 0, "{found:?}");
    assert!(expiry(&state(&client, "other").await, "brief").unwrap() > now_ms());
    let absent = Some(write_options::Condition::IfAbsent(true));
    let options = Some(v1::WriteOptions { condition: absent, ..Default::default() });
    let again = v1::PutRequest { options, ..put("c", "k", vec![]) };
    assert_eq!(reason(client.put(again).await), "VERSION_CONFLICT");
    // Its own expiry ends it.
    let expiry = Some(write_options::Expiry::ExpiresAtMs(1_000));
    let options = Some(v1::WriteOptions { expiry, ..Default::default() });
    let fields = two(Expiry::TtlMs(HOUR_MS));
    client.put(v1::PutRequest { options, ..put("c", "k", fields) }).await.unwrap();
    assert_eq!(reason(client.get(get("c", "k")).await), "STATE_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_changes_with_set_and_expire_and_with_nothing_else() {
    use expire::Expiry::{ExpiresAtMs, NeverExpires, TtlMs};
    let (house, node, client) = house().await;
    let at_ms = now_ms() + HOUR_MS;
    client.put(put("c", "k", two(Expiry::ExpiresAtMs(at_ms)))).await.unwrap();
    let edits = vec![append("brief", "!"), write_range("brief", 0, "B")];
    client.patch(patch("k", edits)).await.unwrap();
    let found = state(&client, "k").await;
    assert_eq!(
        (field_bytes(&found, "brief"), expiry(&found, "brief")),
        ("Brief!".into(), Some(at_ms))
    );

    let version = found.version;
    let later = expire("brief", ExpiresAtMs(at_ms + 5));
    assert!(client.patch(patch("k", vec![later])).await.unwrap().version > version);
    let stays = expire("stays", TtlMs(HOUR_MS));
    client.patch(patch("k", vec![stays])).await.unwrap();
    // What a node acknowledged it knows after a crash.
    node.kill();
    let node = house.start();
    let client = node.client().await;
    let found = state(&client, "k").await;
    assert_eq!(expiry(&found, "brief"), Some(at_ms + 5));
    assert!(expiry(&found, "stays").unwrap() >= at_ms);
    assert_eq!(field_bytes(&found, "brief"), "Brief!");

    let never = expire("brief", NeverExpires(true));
    let set = Edit::Set(bytes_field("stays", "s"));
    client.patch(patch("k", vec![never, set])).await.unwrap();
    let found = state(&client, "k").await;
    assert_eq!((expiry(&found, "brief"), expiry(&found, "stays")), (None, None));

    // Sent again, milliseconds from now are no other request.
    let options = Some(v1::WriteOptions { request_id: "r".into(), ..Default::default() });
    let request = v1::PatchRequest {
        options,
        ..patch("k", vec![expire("brief", TtlMs(HOUR_MS)), append("brief", "?")])
    };
    let first = client.patch(request.clone()).await.unwrap();
    let again = client.patch(request).await.unwrap();
    assert_eq!((again.version, again.repeated_request), (first.version, true));

    client.patch(patch("k", vec![expire("brief", ExpiresAtMs(1))])).await.unwrap();
    assert_eq!(names(&state(&client, "k").await), ["stays"]);
    let missing = || expire("none", TtlMs(5));
    assert_eq!(reason(client.patch(patch("k", vec![missing()])).await), "FIELD_NOT_FOUND");
    assert_eq!(reason(client.patch(patch("none", vec![missing()])).await), "STATE_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_expiry_is_refused_by_name() {
    let (_house, _node, client) = house().await;
    client.put(put("c", "k", two(Expiry::TtlMs(HOUR_MS)))).await.unwrap();
    let named = |answer: Result<v1::WriteResponse, Error>| {
        let error = answer.unwrap_err();
        assert_eq!(error.reason(), Some("INVALID_REQUEST"), "{error}");
        assert!(error.to_string().contains("\"brief\""), "{error}");
    };
    named(client.put(put("c", "k", two(Expiry::TtlMs(0)))).await);
    let set = Edit::Set(until(bytes_field("brief", "x"), Expiry::TtlMs(0)));
    let nothing = Edit::Expire(v1::edit::Expire { field: "brief".into(), expiry: None });
    for edit in [
        set,
        nothing,
        expire("brief", expire::Expiry::TtlMs(0)),
        expire("brief", expire::Expiry::NeverExpires(false)),
    ] {
        named(client.patch(patch("k", vec![edit])).await);
    }
    let nameless = expire("", expire::Expiry::TtlMs(5));
    assert_eq!(reason(client.patch(patch("k", vec![nameless])).await), "INVALID_REQUEST");
    // Longer than there are milliseconds is for ever, as for whole states.
    client.put(put("c", "k", two(Expiry::TtlMs(u64::MAX)))).await.unwrap();
    assert_eq!(expiry(&state(&client, "k").await, "brief"), Some(u64::MAX));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_bring_expiries_and_show_them() {
    let (_house, _node, client) = house().await;
    let headers = |bytes: usize, expiry| {
        let stays = v1::FieldHeader { name: "stays".into(), bytes: 3, ..Default::default() };
        let (name, bytes) = ("brief".into(), bytes as u64);
        let brief = v1::FieldHeader { name, bytes, expiry: Some(expiry), ..Default::default() };
        vec![brief, stays]
    };
    let write = async |key: &str, bytes: usize, expiry| {
        let header = v1::WriteHeader {
            collection: "c".into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            fields: headers(bytes, expiry),
            ..Default::default()
        };
        client.write(header, &mut Bytes::from(vec![7; bytes + 3]), |_| {}).await
    };
    use field_header::Expiry::{ExpiresAtMs, TtlMs};
    // One goes by a put, the other one is an upload.
    for (key, bytes) in [("small", 100), ("large", 3 << 20)] {
        let before = now_ms();
        write(key, bytes, TtlMs(HOUR_MS)).await.unwrap();
        let stream = client.open(get("c", key)).await.unwrap();
        let shown: Vec<_> = stream.header().fields.iter().map(|field| field.expiry).collect();
        let [Some(ExpiresAtMs(at_ms)), None] = shown[..] else { panic!("{key}: {shown:?}") };
        assert!((before + HOUR_MS..=now_ms() + HOUR_MS).contains(&at_ms), "{key}: {at_ms}");
        drop(stream);

        write(key, bytes, ExpiresAtMs(1_000)).await.unwrap();
        let mut stream = client.open(get("c", key)).await.unwrap();
        let shown: Vec<_> = stream.header().fields.iter().map(|field| &field.name[..]).collect();
        assert_eq!(shown, ["stays"], "{key}");
        let chunk = stream.next_chunk().await.unwrap().unwrap();
        assert_eq!((chunk.field, &chunk.data[..]), (0, &[7; 3][..]));
        assert!(stream.next_chunk().await.unwrap().is_none());

        let refused = write(key, bytes, TtlMs(0)).await.unwrap_err().to_string();
        assert!(refused.contains("INVALID_REQUEST"), "{key}: {refused}");
    }
}

fn number(scored: &v1::ScoreResponse) -> f32 {
    let tensor = scored.outputs.iter().find(|output| output.name == "score").unwrap();
    f32::from_le_bytes(tensor.tensor.as_ref().unwrap().data[..4].try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_starts_anew_from_an_expired_field_and_leaves_every_expiry_alone() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "accounts").await;
    push(&client, &bank_model()).await.unwrap();
    let h = |expiry| vec![until(f32_field("h", &[64], &[0.9; 64]), expiry)];
    let peek = |key| bank_score(key, 700.0, ScoreMode::Peek);
    let initial = number(&client.score(peek("nobody")).await.unwrap());

    client.put(put("accounts", "alive", h(Expiry::TtlMs(HOUR_MS)))).await.unwrap();
    client.put(put("accounts", "gone", h(PAST))).await.unwrap();
    let alive = client.score(peek("alive")).await.unwrap();
    assert!((number(&alive) - initial).abs() > 1e-3, "the stored field is read");
    let gone = client.score(peek("gone")).await.unwrap();
    assert!((number(&gone) - initial).abs() < 1e-4, "an expired field is not");
    assert!(gone.state_version > 0 && !gone.from_initial_state, "though there is a state");

    // A step changes the field: it expires when it would have, and what begins anew lasts.
    let alive = client.get(get("accounts", "alive")).await.unwrap();
    for (key, until) in [("alive", expiry(&alive, "h")), ("gone", None)] {
        let expected = number(&client.score(peek(key)).await.unwrap());
        let step = client.score(bank_score(key, 700.0, ScoreMode::Step)).await.unwrap();
        assert!((number(&step) - expected).abs() < 1e-4, "{key}");
        let found = client.get(get("accounts", key)).await.unwrap();
        assert_eq!((found.version, expiry(&found, "h")), (step.state_version, until), "{key}");
        client.score(bank_score(key, 700.0, ScoreMode::Step)).await.unwrap();
    }
    // Steps that run one behind the other do not build on a field whose time has come.
    let written = Instant::now();
    client.put(put("accounts", "brief", h(Expiry::TtlMs(700)))).await.unwrap();
    let gives_up = written + PATIENCE;
    loop {
        let steps = (0..8).map(|_| client.score(bank_score("brief", 700.0, ScoreMode::Step)));
        futures::future::try_join_all(steps).await.unwrap();
        let found = client.get(get("accounts", "brief")).await.unwrap();
        if found.fields.iter().all(|field| field.name != "h") || expiry(&found, "h").is_none() {
            break;
        }
        assert!(Instant::now() < gives_up, "the field should have expired");
    }
    assert!(written.elapsed() >= Duration::from_millis(660), "each of them keeps its expiry");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_a_state_leaves_its_expiry_alone_and_what_replaces_it_does_not() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    let day = v1::CollectionSettings { default_ttl_ms: 24 * HOUR_MS, ..Default::default() };
    create(&client, "c").await;
    harness::create_with(&client, "accounts", day).await;
    push(&client, &bank_model()).await.unwrap();
    let hour = Some(v1::WriteOptions {
        expiry: Some(write_options::Expiry::TtlMs(HOUR_MS)),
        ..Default::default()
    });
    let fields = || vec![bytes_field("v", "x"), f32_field("h", &[64], &[0.9; 64])];
    let until =
        async |collection: &str| client.get(get(collection, "k")).await.unwrap().expires_at_ms;
    let change = async |collection: &str, edits: Vec<Edit>, options: Option<v1::WriteOptions>| {
        let collection = collection.to_owned();
        client.patch(v1::PatchRequest { collection, options, ..patch("k", edits) }).await.unwrap();
    };
    for (collection, default) in [("c", None), ("accounts", Some(24 * HOUR_MS))] {
        // One that is created by a change has the default.
        change(collection, vec![Edit::Set(bytes_field("v", "x"))], None).await;
        let created = until(collection).await;
        let expected = default.map(|ttl_ms| now_ms() + ttl_ms);
        assert_eq!(created.is_some(), default.is_some());
        assert!(created.unwrap_or(0).abs_diff(expected.unwrap_or(0)) < 120_000, "{created:?}");
        let put_it = v1::PutRequest { options: hour.clone(), ..put(collection, "k", fields()) };
        client.put(put_it).await.unwrap();
        let expires = until(collection).await.unwrap();
        assert!(expires.abs_diff(now_ms() + HOUR_MS) < 120_000, "{expires}");
        for edit in [
            Edit::Set(bytes_field("v", "y")),
            append("v", "+"),
            write_range("v", 0, "z"),
            expire("v", expire::Expiry::TtlMs(HOUR_MS)),
            Edit::Remove("v".into()),
        ] {
            change(collection, vec![edit], None).await;
            assert_eq!(until(collection).await, Some(expires), "{collection}");
        }
        let step = v1::ScoreRequest {
            collection: collection.into(),
            ..bank_score("k", 700.0, ScoreMode::Step)
        };
        client.score(step).await.unwrap();
        assert_eq!(until(collection).await, Some(expires), "a step in {collection}");
        // Unless they say otherwise; and a put says it again.
        let never = Some(v1::WriteOptions {
            expiry: Some(write_options::Expiry::NeverExpires(true)),
            ..Default::default()
        });
        change(collection, vec![Edit::Set(bytes_field("v", "y"))], never).await;
        assert_eq!(until(collection).await, None);
        client.put(put(collection, "k", fields())).await.unwrap();
        assert_eq!(until(collection).await.is_some(), default.is_some());
    }
}

#[test]
fn the_command_line_has_fields_expire_and_says_when() {
    let house = House::new();
    let node = house.start();
    node.ok(&["collection", "create", "c"]);
    node.ok(&["put", "c", "k", "a=1", "b=text:x", "--field-ttl", "b=1h"]);
    let field = |name: &str| node.json(&["get", "c", "k"])["fields"][name].clone();
    assert!(field("b")["expires_at_ms"].as_u64().unwrap() > now_ms());
    assert!(field("a").get("expires_at_ms").is_none());
    let shown = node.ok(&["get", "c", "k"]);
    let line = shown.lines().find(|line| line.trim_start().starts_with("b ")).unwrap();
    assert!(line.contains("\"x\", expires at "), "{shown}");

    node.ok(&["patch", "c", "k", "--set", "d=1", "--field-ttl", "d=30s", "--field-ttl", "b=never"]);
    assert!(field("d")["expires_at_ms"].as_u64().unwrap() < now_ms() + 30_001);
    assert!(field("b").get("expires_at_ms").is_none());
    node.ok(&["patch", "c", "k", "--field-ttl", "a=1h"]);
    assert!(field("a")["expires_at_ms"].is_u64());
    node.ok(&["write", "c", "k", "a=1", "--field-ttl", "a=2h"]);
    assert!(field("a")["expires_at_ms"].as_u64().unwrap() > now_ms() + HOUR_MS);
    let until = || node.json(&["get", "c", "k"])["expires_at_ms"].as_u64();
    for (args, expires) in
        [(&["--ttl", "1h"][..], true), (&[], true), (&["--never-expires"], false)]
    {
        node.ok(&[&["patch", "c", "k", "--set", "d=2"], args].concat());
        assert_eq!(until().is_some(), expires, "{args:?}");
    }
    for (args, said) in [
        (&["put", "c", "k", "a=1", "--field-ttl", "z=1h"][..], "none of the fields"),
        (&["put", "c", "k", "a=1", "--field-ttl", "a"], "NAME=30s"),
        (&["put", "c", "k", "a=1", "--field-ttl", "a=soon"], "duration"),
        (&["patch", "c", "k", "--field-ttl", "z=1h"], "FIELD_NOT_FOUND"),
    ] {
        let out = node.run(args);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && error.contains(said), "{args:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_has_expired_goes_without_waiting_for_the_next_sweep() {
    const STATES: u64 = 20_000;
    const SWEEP_INTERVAL_S: u64 = 2;
    // Of a shard, one command removes 1,024.
    const LONGEST: Duration = Duration::from_secs(SWEEP_INTERVAL_S * STATES / 1_024 / 2);
    let mut house = House::new();
    house.flags = vec!["--shards".into(), "1".into()];
    house.env.push(("STATEHOUSE_SWEEP_INTERVAL_S".into(), SWEEP_INTERVAL_S.to_string()));
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    let in_ms = now_ms() + 5_000;
    let expires = write_options::Expiry::ExpiresAtMs(in_ms);
    let options = v1::WriteOptions { expiry: Some(expires), ..Default::default() };
    for first in (0..STATES).step_by(1_000) {
        let puts = (first..first + 1_000).map(|n| v1::PutRequest {
            options: Some(options.clone()),
            ..put("c", &format!("k{n}"), vec![bytes_field("v", "brief")])
        });
        client.batch_put(v1::BatchPutRequest { puts: puts.collect() }).await.unwrap();
    }
    let expired = Instant::now() + Duration::from_millis(in_ms.saturating_sub(now_ms()));
    let left = || {
        let usage = node.json(&["admin", "usage"]);
        let all = usage["collections"].as_array().unwrap();
        let found = all.iter().find(|it| it["name"] == "c");
        found.map_or(0, |it| it["holdings"]["states"].as_u64().unwrap())
    };
    while left() > 0 {
        assert!(expired + LONGEST > Instant::now(), "{} states are left", left());
        tokio::task::yield_now().await;
    }
}
