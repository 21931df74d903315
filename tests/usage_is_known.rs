//! How much there is, is known at once; what is large is noted; and a write that leaves a state
//! above its collection's warning size says so.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use bytes::Bytes;
use harness::{
    House, Node, PATIENCE, bank_model, bank_score, bytes_field, create, create_with, get, push,
    put, reason,
};
use serde_json::Value as Json;
use statehouse_client::{Client, StateStream, v1};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn opaque(name: &str, bytes: usize) -> v1::FieldHeader {
    v1::FieldHeader { name: name.into(), bytes: bytes as u64, ..Default::default() }
}

fn header(collection: &str, key: &str, bytes: usize) -> v1::WriteHeader {
    v1::WriteHeader {
        collection: collection.into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        fields: vec![opaque("v", bytes)],
        ..Default::default()
    }
}

fn blank(bytes: usize) -> Bytes {
    vec![7; bytes].into()
}

/// What a collection holds: states, their bytes, uploads, theirs.
fn holdings(usage: &Json, collection: &str) -> Option<[u64; 4]> {
    let all = usage["collections"].as_array().unwrap();
    let found = all.iter().find(|it| it["name"] == collection)?;
    Some(figures(&found["holdings"]))
}

fn figures(holdings: &Json) -> [u64; 4] {
    ["states", "state_bytes", "uploads", "upload_bytes"].map(|it| holdings[it].as_u64().unwrap())
}

fn sum(all: &Json) -> [u64; 4] {
    let mut sum = [0; 4];
    for it in all.as_array().unwrap() {
        for (sum, figure) in sum.iter_mut().zip(figures(&it["holdings"])) {
            *sum += figure;
        }
    }
    sum
}

fn keys(usage: &Json) -> Vec<&str> {
    usage["largest"].as_array().unwrap().iter().map(|it| it["key"].as_str().unwrap()).collect()
}

/// Begins an upload and leaves it.
async fn leave_half(client: &Client, key: &str, bytes: usize) {
    use v1::write_stream_request::Part;
    let whole = v1::WriteHeader { upload_id: "half".into(), ..header("small", key, 8 * MIB) };
    let chunk = v1::WriteChunk { data: blank(bytes), crc32: None };
    let parts = [Part::Header(whole), Part::Chunk(chunk)];
    let messages = parts.map(|part| v1::WriteStreamRequest { part: Some(part) });
    client.state().write(tokio_stream::iter(messages)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_each_collection_shard_and_node_holds() {
    let mut house = House::new();
    house.env.push(("STATEHOUSE_SWEEP_INTERVAL_S".into(), "1".into()));
    let node = house.start();
    let client = node.client().await;
    create(&client, "small").await;
    create(&client, "large").await;
    for n in 0..100 {
        client
            .put(put("small", &format!("k{n}"), vec![bytes_field("v", blank(10))]))
            .await
            .unwrap();
    }
    for n in 1..=5 {
        let key = format!("L{n}");
        client.put(put("large", &key, vec![bytes_field("v", blank(n * 100 * KIB))])).await.unwrap();
    }
    leave_half(&client, "half", 2 * MIB).await;
    let usage = node.json(&["admin", "usage", "--largest", "3"]);
    assert_eq!(holdings(&usage, "small"), Some([100, 1_000, 1, 2 * MIB as u64]));
    assert_eq!(holdings(&usage, "large"), Some([5, 1_500 * KIB as u64, 0, 0]));
    assert_eq!(keys(&usage), ["L5", "L4", "L3"]);
    assert_eq!(usage["largest"][0]["bytes"], 500 * KIB as u64);
    let total = figures(&usage["total"]);
    assert_eq!(sum(&usage["collections"]), total);
    assert_eq!(sum(&usage["shards"]), total);
    assert_eq!(sum(&usage["nodes"]), total, "one node has one replica of each");
    assert!(usage["nodes"][0]["disk_bytes"].as_u64().unwrap() > 1_500 * KIB as u64);

    let one = node.json(&["admin", "usage", "--collection", "large", "--largest", "0"]);
    assert_eq!(figures(&one["total"]), [5, 1_500 * KIB as u64, 0, 0]);
    assert_eq!(keys(&one), Vec::<&str>::new());
    let text = node.ok(&["admin", "usage"]);
    for part in ["small", "large", "(the catalog)", "1.5 MiB", "L5", "500.0 KiB"] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    assert!(node.ok(&["admin", "usage", "--by", "node"]).contains("replicas"));
    assert!(node.ok(&["admin", "usage", "--by", "shard"]).contains("counted by"));
    let unknown = node.run(&["admin", "usage", "--collection", "none"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("COLLECTION_NOT_FOUND"));

    // Deleted, expired and swept, restarted, dropped.
    let delete =
        v1::DeleteRequest { collection: "large".into(), key: "L5".into(), ..Default::default() };
    client.delete(delete).await.unwrap();
    let brief = v1::WriteOptions {
        expiry: Some(v1::write_options::Expiry::TtlMs(1)),
        ..Default::default()
    };
    let brief = v1::PutRequest {
        options: Some(brief),
        ..put("large", "L4", vec![bytes_field("v", blank(MIB))])
    };
    client.put(brief).await.unwrap();
    let left = Some([3, 600 * KIB as u64, 0, 0]);
    until("the sweep", || holdings(&node.json(&["admin", "usage"]), "large") == left).await;
    node.kill();
    let node = house.start();
    let usage = node.json(&["admin", "usage"]);
    assert_eq!(holdings(&usage, "large"), left);
    assert_eq!(keys(&usage), ["L3", "L2", "L1"]);
    node.ok(&["collection", "drop", "large"]);
    let usage = node.json(&["admin", "usage"]);
    assert_eq!((holdings(&usage, "large"), keys(&usage).len()), (None, 0));
    assert!(node.ok(&["admin", "usage"]).contains("no state is larger than one row"));
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no end of {what}"));
}

/// What was noted, the oldest first: kind, key, request and answer bytes, outcome.
fn noted(node: &Node) -> Vec<(String, String, u64, u64, String)> {
    let all = node.json(&["admin", "large-requests", "--limit", "0"]);
    let words = |it: &Json, name: &str| it[name].as_str().unwrap().to_owned();
    let one = |it: &Json| {
        let bytes = |name: &str| it[name].as_u64().unwrap();
        let (kind, key, outcome) = (words(it, "kind"), words(it, "key"), words(it, "outcome"));
        (kind, key, bytes("request_bytes"), bytes("answer_bytes"), outcome)
    };
    all.as_array().unwrap().iter().rev().map(one).collect()
}

async fn drain(mut stream: StateStream) {
    while stream.next_chunk().await.unwrap().is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn large_requests_and_answers_are_noted_and_small_ones_are_not() {
    let mut house = House::new();
    house.env.push(("STATEHOUSE_LARGE_REQUEST_BYTES".into(), (MIB / 2).to_string()));
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    client.put(put("c", "a", vec![bytes_field("v", blank(MIB / 2 - 100))])).await.unwrap();
    client.get(get("c", "a")).await.unwrap();
    assert_eq!(noted(&node), []);
    assert_eq!(node.ok(&["admin", "large-requests"]), "no request was large\n");

    let large = blank(MIB / 2 + 1);
    client.put(put("c", "b", vec![bytes_field("v", large.clone())])).await.unwrap();
    // By itself: refused on a pipeline for its size, it would go twice.
    client.state().get(get("c", "b")).await.unwrap();
    let append = v1::edit::Append { field: "none".into(), data: large.clone(), max_bytes: None };
    let patch = v1::PatchRequest {
        collection: "c".into(),
        key: "b".into(),
        edits: vec![v1::Edit { edit: Some(v1::edit::Edit::Append(append)) }],
        options: None,
    };
    assert_eq!(reason(client.patch(patch).await), "FIELD_NOT_FOUND");
    let keys = vec!["a".into(), "b".into(), "missing".into()];
    let batch = v1::BatchGetRequest { collection: "c".into(), keys, ..Default::default() };
    client.state().batch_get(batch).await.unwrap();
    client.write(header("c", "w", 3 * MIB), &mut blank(3 * MIB), |_| {}).await.unwrap();
    drain(client.open(get("c", "w")).await.unwrap()).await;
    until("the read", || noted(&node).len() == 6).await;
    let found = noted(&node);
    let half = MIB as u64 / 2;
    let shown: Vec<(&str, &str, bool, bool, &str)> = found
        .iter()
        .map(|(kind, key, asked, answered, outcome)| {
            (&kind[..], &key[..], *asked > half, *answered > half, &outcome[..])
        })
        .collect();
    let expected = [
        ("put", "b", true, false, "ok"),
        ("get", "b", false, true, "ok"),
        ("patch", "b", true, false, "FIELD_NOT_FOUND"),
        ("batch_get", "a", false, true, "ok"),
        ("write", "w", true, false, "ok"),
        ("read", "w", false, true, "ok"),
    ];
    assert_eq!(shown, expected);
    assert_eq!((found[4].2, found[5].3), (3 * MIB as u64, 3 * MIB as u64));
    let text = node.ok(&["admin", "large-requests", "--limit", "3"]);
    assert!(text.contains("a and others, 3 in all"), "{text}");
    assert_eq!(text.lines().count(), 4, "{text}");
    let (_, metrics) = node.http_get("/metrics");
    assert!(metrics.contains("statehouse_large_requests_total{call=\"put\"} 1"), "{metrics}");
    let (_, log) = node.stop();
    let lines: Vec<Json> = log.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let told = lines.iter().filter(|line| line["target"] == "large_requests");
    assert_eq!(told.count(), 6, "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_limit_no_message_is_large() {
    let mut house = House::new();
    house.env.push(("STATEHOUSE_LARGE_REQUEST_BYTES".into(), "0".into()));
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    client.write(header("c", "w", 12 * MIB), &mut blank(12 * MIB), |_| {}).await.unwrap();
    client.get(get("c", "w")).await.unwrap();
    assert_eq!(noted(&node), []);
}

fn warning(state_bytes: usize, state_bytes_warn: u64) -> Option<v1::SizeWarning> {
    Some(v1::SizeWarning { state_bytes: state_bytes as u64, state_bytes_warn })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_leaves_a_state_above_the_warning_size_says_so() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    let warn = 100 * KIB as u64;
    let settings = v1::CollectionSettings { state_bytes_warn: warn, ..Default::default() };
    create_with(&client, "c", settings).await;
    create(&client, "calm").await;
    let fields = |bytes| vec![bytes_field("v", blank(bytes))];
    let at = client.put(put("c", "k", fields(100 * KIB))).await.unwrap();
    assert_eq!(at.size_warning, None, "it is not above");
    let append = v1::edit::Append { field: "v".into(), data: blank(5), max_bytes: None };
    let options = v1::WriteOptions { request_id: "once".into(), ..Default::default() };
    let patch = v1::PatchRequest {
        collection: "c".into(),
        key: "k".into(),
        edits: vec![v1::Edit { edit: Some(v1::edit::Edit::Append(append)) }],
        options: Some(options),
    };
    let grown = client.patch(patch.clone()).await.unwrap();
    assert_eq!(grown.size_warning, warning(100 * KIB + 5, warn));
    let again = client.patch(patch).await.unwrap();
    assert!(again.repeated_request && again.size_warning.is_none(), "{again:?}");
    // In one part, and in several.
    for bytes in [200 * KIB, 3 * MIB] {
        let written = client.write(header("c", "w", bytes), &mut blank(bytes), |_| {}).await;
        assert_eq!(written.unwrap().size_warning, warning(bytes, warn));
    }
    let puts = vec![put("c", "small", fields(1)), put("c", "b", fields(MIB))];
    let batch = client.state().batch_put(v1::BatchPutRequest { puts }).await.unwrap().into_inner();
    let warnings = batch.items.iter().map(|item| match &item.result {
        Some(v1::batch_put_response::item::Result::Written(written)) => written.size_warning,
        other => panic!("{other:?}"),
    });
    assert_eq!(warnings.collect::<Vec<_>>(), [None, warning(MIB, warn)]);
    let calm = client.put(put("calm", "k", fields(MIB))).await.unwrap();
    assert_eq!(calm.size_warning, None);

    let (_, metrics) = node.http_get("/metrics");
    let counted = "statehouse_writes_above_warn_total{collection=\"c\"} 4";
    assert!(metrics.contains(counted) && !metrics.contains("collection=\"calm\""), "{metrics}");
    let noted = node.json(&["admin", "large-requests"]);
    let kinds: Vec<_> = noted.as_array().unwrap().iter().map(|it| &it["kind"]).collect();
    assert_eq!(kinds, ["put", "write", "put", "patch"], "one part goes as a put");
    assert_eq!(noted[0]["reason"], "above the collection's warning size");
    assert_eq!(noted[0]["state_bytes"], MIB as u64);

    // A collection that is not warned of keeps what it was, also across a restart.
    node.kill();
    let node = house.start();
    assert!(node.ok(&["collection", "describe", "c"]).contains("a warning above 100.0 KiB"));
    assert_eq!(node.json(&["collection", "describe", "c"])["state_bytes_warn"], warn);
    assert!(!node.ok(&["collection", "describe", "calm"]).contains("warning"));
    node.ok(&["collection", "create", "tiny", "--warn-bytes", "10"]);
    for args in [
        &["put", "tiny", "k", "v=text:more than ten"][..],
        &["patch", "tiny", "k", "--append", "v=text:!"],
        &["write", "tiny", "k", "v=text:more than ten"],
    ] {
        let out = node.run(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && said.contains("its collection warns above 10 B"), "{said}");
    }
    node.ok(&["collection", "update", "tiny", "--warn-bytes", "0"]);
    let out = node.run(&["put", "tiny", "k", "v=text:more than ten"]);
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    let over = node.run(&["collection", "create", "x", "--state-max", "5", "--warn-bytes", "6"]);
    assert!(String::from_utf8_lossy(&over.stderr).contains("INVALID_REQUEST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_leaves_a_state_above_the_warning_size_says_so() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    let settings = v1::CollectionSettings { state_bytes_warn: 1, ..Default::default() };
    create_with(&client, "accounts", settings).await;
    push(&client, &bank_model()).await.unwrap();
    let peek = client.score(bank_score("a", 700.0, v1::ScoreMode::Peek)).await.unwrap();
    assert_eq!(peek.size_warning, None);
    let step = client.score(bank_score("a", 700.0, v1::ScoreMode::Step)).await.unwrap();
    let warned = step.size_warning.unwrap();
    assert!(warned.state_bytes > 1 && warned.state_bytes_warn == 1, "{warned:?}");
    let usage = node.json(&["admin", "usage", "--collection", "accounts"]);
    assert_eq!(figures(&usage["total"])[..2], [1, warned.state_bytes]);
}
