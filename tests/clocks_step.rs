//! A wall clock that steps, while the node runs or between its runs, changes nothing that anybody
//! sees: what expires does so when it said, and a request id is recognised.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use harness::condition::await_some;
use harness::wall_clock::WallClock;
use harness::{
    House, Node, PATIENCE, bank_model, bank_score, bytes_field, create, create_with, f32_field,
    field_bytes, get, push, put, reason,
};
use statehouse_client::Client;
use statehouse_client::v1::{self, edit, write_options::Expiry, write_stream_request::Part};

const QUARTER_MS: i64 = 16 * 60_000;
const HOUR_MS: i64 = 3_600_000;

/// A node whose wall clock a test steps.
struct Stepped {
    house: House,
    clock: WallClock,
}

impl Stepped {
    fn new() -> Stepped {
        let mut house = House::new();
        let clock = WallClock::new(&house.path(""), "wall");
        house.env = clock.env();
        house.env.push(("STATEHOUSE_SWEEP_INTERVAL_S".into(), "1".into()));
        Stepped { house, clock }
    }

    async fn start(&self) -> (Node, Client) {
        let node = self.house.start();
        let client = node.client().await;
        (node, client)
    }

    async fn founded() -> (Stepped, Node, Client) {
        let stepped = Stepped::new();
        let (node, client) = stepped.start().await;
        create(&client, "c").await;
        (stepped, node, client)
    }
}

fn after(key: &str, ttl_ms: u64) -> v1::PutRequest {
    let options = v1::WriteOptions { expiry: Some(Expiry::TtlMs(ttl_ms)), ..Default::default() };
    v1::PutRequest { options: Some(options), ..put("c", key, vec![bytes_field("v", "x")]) }
}

fn patch(collection: &str, key: &str, edit: edit::Edit) -> v1::PatchRequest {
    v1::PatchRequest {
        collection: collection.to_owned(),
        key: key.to_owned().into(),
        edits: vec![v1::Edit { edit: Some(edit) }],
        options: None,
    }
}

/// Adds one byte to a field, once for each request id.
fn append(key: &str, request_id: &str) -> v1::PatchRequest {
    let append = edit::Append { field: "v".into(), data: Bytes::from("+"), max_bytes: None };
    let options = v1::WriteOptions {
        request_id: Bytes::copy_from_slice(request_id.as_bytes()),
        ..Default::default()
    };
    v1::PatchRequest { options: Some(options), ..patch("c", key, edit::Edit::Append(append)) }
}

/// Waits until a state has expired; answers how long it was there since it was written.
async fn lasted(client: &Client, key: &str, written: Instant) -> Duration {
    loop {
        let answer = client.get(get("c", key)).await;
        let lasted = written.elapsed();
        match answer {
            Ok(_) => assert!(lasted < PATIENCE, "{key} is there after {lasted:?}"),
            Err(_) => {
                assert_eq!(reason(answer), "STATE_NOT_FOUND");
                return lasted;
            }
        }
    }
}

/// How many states the collection has, by `admin usage`.
fn states_of(usage: &serde_json::Value) -> u64 {
    let all = usage["collections"].as_array().unwrap();
    let found = all.iter().find(|it| it["name"] == "c");
    found.map_or(0, |it| it["holdings"]["states"].as_u64().unwrap())
}

/// Waits until a sweep has been that began after this was called.
async fn swept(client: &Client, node: &Node, number: u32) {
    let states = || states_of(&node.json(&["admin", "usage"]));
    let before = states();
    // Keys of every shard, since each is swept by itself.
    for key in 0..64 {
        client.put(after(&format!("swept-{number}-{key}"), 1)).await.unwrap();
    }
    let give_up = Instant::now() + PATIENCE;
    while states() != before {
        assert!(Instant::now() < give_up, "{} states, {before} before", states());
    }
}

fn metric(node: &Node, name: &str) -> i64 {
    let (_, text) = node.http_get("/metrics");
    let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_to_live_is_real_time_whatever_the_wall_clock_does() {
    const TTL: Duration = Duration::from_secs(3);
    let (stepped, mut node, mut client) = Stepped::founded().await;
    let check = async |client: &Client, key: &str| {
        let written = Instant::now();
        client.put(after(key, TTL.as_millis() as u64)).await.unwrap();
        client.get(get("c", key)).await.unwrap();
        // 5 % early at most, and late by no more than a loaded machine makes it.
        let lasted = lasted(client, key, written).await;
        assert!(lasted >= TTL * 95 / 100, "{key} lasted {lasted:?}");
    };
    for ahead_ms in [-QUARTER_MS, QUARTER_MS, -HOUR_MS, 0] {
        stepped.clock.step_to(ahead_ms);
        check(&client, &format!("running {ahead_ms}")).await;
        node.kill();
        stepped.clock.step_to(-ahead_ms);
        (node, client) = stepped.start().await;
        check(&client, &format!("restarted {ahead_ms}")).await;
        std::fs::remove_file(stepped.house.data().join("clock")).unwrap();
        node.kill();
        // As on a machine that has restarted meanwhile: nothing but the wall clock is known, and a
        // shard that is ahead of it does not stand still.
        stepped.clock.step_to(ahead_ms.min(0));
        (node, client) = stepped.start().await;
        check(&client, &format!("unknown {ahead_ms}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_and_collections_count_their_time_as_states_do() {
    const TTL: Duration = Duration::from_secs(3);
    let ttl_ms = TTL.as_millis() as u64;
    let (stepped, _node, client) = Stepped::founded().await;
    let settings = v1::CollectionSettings { default_ttl_ms: ttl_ms, ..Default::default() };
    create_with(&client, "brief", settings).await;
    for ahead_ms in [-QUARTER_MS, QUARTER_MS] {
        stepped.clock.step_to(ahead_ms);
        let written = Instant::now();
        let expiry = Some(v1::field::Expiry::TtlMs(ttl_ms));
        let field = v1::Field { expiry, ..bytes_field("v", "x") };
        client.put(put("c", "put", vec![field])).await.unwrap();
        client.put(put("c", "changed", vec![bytes_field("v", "x")])).await.unwrap();
        let expiry = Some(edit::expire::Expiry::TtlMs(ttl_ms));
        let expire = edit::Edit::Expire(edit::Expire { field: "v".into(), expiry });
        client.patch(patch("c", "changed", expire)).await.unwrap();
        client.put(put("brief", "put", vec![bytes_field("v", "x")])).await.unwrap();
        let set = edit::Edit::Set(bytes_field("v", "x"));
        client.patch(patch("brief", "patched", set)).await.unwrap();
        let all = [("c", "put"), ("c", "changed"), ("brief", "put"), ("brief", "patched")];
        let last = all.map(|(collection, key)| {
            let client = &client;
            async move {
                let there = async || match client.get(get(collection, key)).await {
                    Ok(state) => !state.fields.is_empty(),
                    refused => {
                        assert_eq!(reason(refused), "STATE_NOT_FOUND");
                        false
                    }
                };
                while there().await {
                    assert!(written.elapsed() < PATIENCE, "{key} of {collection} stays");
                }
                (collection, key, written.elapsed())
            }
        });
        for (collection, key, lasted) in futures::future::join_all(last).await {
            let early = format!("{ahead_ms}: {key} of {collection} lasted {lasted:?}");
            assert!(lasted >= TTL * 95 / 100, "{early}");
        }
    }
}

/// Begins an upload, and leaves it.
async fn begin_upload(client: &Client) {
    let header = v1::WriteHeader {
        collection: "c".into(),
        key: "uploaded".into(),
        upload_id: "u".into(),
        fields: vec![v1::FieldHeader { name: "v".into(), bytes: 3 << 20, ..Default::default() }],
        ..Default::default()
    };
    let chunk = v1::WriteChunk { data: vec![7; 2 << 20].into(), crc32: None };
    let parts = [Part::Header(header), Part::Chunk(chunk)];
    let parts = parts.map(|part| v1::WriteStreamRequest { part: Some(part) });
    client.state().write(tokio_stream::iter(parts)).await.unwrap();
}

/// Reads in every way what is there; each has a state that no other way has brought into memory.
async fn read_in_every_way(client: &Client) {
    client.get(get("c", "k0")).await.unwrap();
    let keys = vec!["k1".into()];
    let batch = v1::BatchGetRequest { collection: "c".into(), keys, ..Default::default() };
    let items = client.batch_get(batch).await.unwrap().items;
    use v1::batch_get_response::item::Result as Got;
    assert!(matches!(items[0].result, Some(Got::State(_))), "{items:?}");
    client.open(get("c", "k2")).await.unwrap();
    let keys = vec!["k3".into()];
    let prefetch = v1::PrefetchRequest { collection: "c".into(), keys, ..Default::default() };
    let items = client.prefetch(prefetch).await.unwrap().items;
    use v1::prefetch_response::item::Result as Warmed;
    let none = Some(Warmed::Warmth(v1::Warmth::NoState as i32));
    assert!(items[0].result.is_some() && items[0].result != none, "{items:?}");
    let peek = client.score(bank_score("scored", 1.0, v1::ScoreMode::Peek)).await.unwrap();
    assert!(!peek.from_initial_state, "{peek:?}");
    let (collection, key) = ("c".to_owned(), "uploaded".into());
    let look = v1::GetUploadRequest { collection, key, upload_id: "u".into() };
    let found = client.state().get_upload(look).await.unwrap().into_inner();
    assert_eq!(found.received_bytes, 2 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_reading_goes_by_the_same_time() {
    let (stepped, mut node, mut client) = Stepped::founded().await;
    create(&client, "accounts").await;
    push(&client, &bank_model()).await.unwrap();
    for number in 0..4 {
        client.put(after(&format!("k{number}"), 1_800_000)).await.unwrap();
    }
    let fields = vec![f32_field("h", &[64], &[0.5; 64])];
    let options = after("k", 1_800_000).options;
    client.put(v1::PutRequest { options, ..put("accounts", "scored", fields) }).await.unwrap();
    begin_upload(&client).await;
    for ahead_ms in [HOUR_MS, 24 * HOUR_MS] {
        stepped.clock.step_to(ahead_ms);
        read_in_every_way(&client).await;
        // From disk as well.
        node.stop();
        (node, client) = stepped.start().await;
        read_in_every_way(&client).await;
    }
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_is_a_little_off_is_followed() {
    let (stepped, node, _client) = Stepped::founded().await;
    let off = || metric(&node, "statehouse_clock_skew_ms");
    stepped.clock.step_to(800);
    assert!(off() > 400, "{}", off());
    // By 5 % of real time.
    await_some("the node's time has come nearer", async || match off() {
        ms if ms.abs() < 100 => Ok(()),
        ms => Err(format!("{ms} ms off")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_forward_expires_nothing_early() {
    let (stepped, mut node, mut client) = Stepped::founded().await;
    client.put(after("half an hour", 1_800_000)).await.unwrap();
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let until = Expiry::ExpiresAtMs(at_ms + 1_800_000);
    let options = v1::WriteOptions { expiry: Some(until), ..Default::default() };
    let until = v1::PutRequest { options: Some(options), ..after("at a time", 1) };
    client.put(until).await.unwrap();
    for (number, ahead_ms) in [(0, HOUR_MS), (1, 0), (2, 24 * HOUR_MS)] {
        stepped.clock.step_to(ahead_ms);
        swept(&client, &node, 2 * number).await;
        node.kill();
        (node, client) = stepped.start().await;
        swept(&client, &node, 2 * number + 1).await;
        for key in ["half an hour", "at a time"] {
            client.get(get("c", key)).await.unwrap();
        }
    }
    let off = metric(&node, "statehouse_clock_skew_ms");
    assert!((23 * HOUR_MS..=24 * HOUR_MS).contains(&off), "{off}");
    let status = node.json(&["admin", "status"]);
    assert!(status["clocks_off_ms"]["1"].as_i64().unwrap() > 23 * HOUR_MS, "{status}");
    assert!(node.ok(&["admin", "status"]).contains("node 1's is 86"));
    let said = node.said.clone();
    let (_, log) = node.stop();
    let warning = "the wall clock is ahead of the node's time";
    assert!(said.contains(warning) || log.iter().any(|line| line.contains(warning)), "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_recognised_after_a_step() {
    let (stepped, mut node, mut client) = Stepped::founded().await;
    client.put(put("c", "k", vec![bytes_field("v", "x")])).await.unwrap();
    let first = client.patch(append("k", "once")).await.unwrap();
    for (number, ahead_ms) in [(0, QUARTER_MS), (1, -QUARTER_MS), (2, 24 * HOUR_MS)] {
        stepped.clock.step_to(ahead_ms);
        swept(&client, &node, 2 * number).await;
        let again = client.patch(append("k", "once")).await.unwrap();
        assert_eq!((again.version, again.repeated_request), (first.version, true), "{ahead_ms}");
        node.kill();
        (node, client) = stepped.start().await;
        swept(&client, &node, 2 * number + 1).await;
        let again = client.patch(append("k", "once")).await.unwrap();
        assert_eq!((again.version, again.repeated_request), (first.version, true), "{ahead_ms}");
    }
    let found = client.get(get("c", "k")).await.unwrap();
    assert_eq!(field_bytes(&found, "v"), "x+");
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_are_bounded_in_number_and_shown() {
    let mut house = House::new();
    house.flags = vec!["--shards".into(), "1".into()];
    house.env.push(("STATEHOUSE_SWEEP_INTERVAL_S".into(), "1".into()));
    house.env.push(("STATEHOUSE_REQUEST_IDS_MAX".into(), "1024".into()));
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    client.put(put("c", "k", vec![bytes_field("v", "x")])).await.unwrap();
    let remembered = || {
        let (_, text) = node.http_get("/metrics");
        let of = |name: &str| {
            let start = format!("statehouse_{name}{{shard=\"1\"}} ");
            let line = text.lines().find(|line| line.starts_with(&start)).unwrap();
            line[start.len()..].parse::<u64>().unwrap()
        };
        (of("request_ids"), of("request_ids_bytes"))
    };
    let give_up = Instant::now() + PATIENCE;
    let mut number = 0;
    // The limit is taken up by a sweep; then it holds.
    loop {
        for _ in 0..300 {
            client.patch(append("k", &format!("r{number}"))).await.unwrap();
            number += 1;
        }
        let (ids, bytes) = remembered();
        assert!(ids > 0 && bytes > 21 * ids, "{ids} of {bytes} bytes");
        if number > 3_000 && ids <= 1_024 {
            break;
        }
        assert!(Instant::now() < give_up, "{ids} of {number} are remembered");
    }
    // The newest are recognised, the oldest forgotten.
    let newest = append("k", &format!("r{}", number - 1));
    assert!(client.patch(newest).await.unwrap().repeated_request);
    assert!(!client.patch(append("k", "r0")).await.unwrap().repeated_request);
}
