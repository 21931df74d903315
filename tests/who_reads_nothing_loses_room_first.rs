//! The room for calls is shared fairly: whoever does not take their answers loses it before anybody
//! else is refused.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use harness::{House, Node, bytes_field, create, f32_tensor, get, put};
use statehouse_client::v1::pipeline_client::PipelineClient;
use statehouse_client::v1::{NamedTensor, ScoreMode};
use statehouse_client::{Client, v1};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Pipelines that are never read, and how many of them share a connection.
const PIPELINES: usize = 120;
const PER_CONNECTION: usize = 8;

/// Gets on each of them, of a state of [`LARGE_BYTES`].
const GETS: u64 = 50;
const LARGE_BYTES: usize = 200 << 10;

/// How long the callers call, and from when on refusals count.
const CALLING: Duration = Duration::from_secs(8);
const SETTLING: Duration = Duration::from_secs(3);

/// A connection whose streams take 64 KiB before they must be read.
async fn narrow(node: &Node) -> Channel {
    let endpoint = Endpoint::from_shared(node.endpoint()).unwrap();
    endpoint
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(16 << 20)
        .connect()
        .await
        .unwrap()
}

/// Answers that stay where they are.
type Untaken = Streaming<v1::PipelineResponse>;

/// Opens pipelines that ask much and take nothing.
async fn ask_and_take_nothing(node: &Node) -> Vec<Untaken> {
    let mut untaken = Vec::new();
    while untaken.len() < PIPELINES {
        let channel = narrow(node).await;
        for _ in 0..PER_CONNECTION {
            let gets = (1..=GETS).map(|id| {
                let call = Some(v1::pipeline_request::Call::Get(get("c", "large")));
                v1::PipelineRequest { id, timeout_ms: 0, call }
            });
            let requests = futures::stream::iter(gets).chain(futures::stream::pending());
            let mut pipeline = PipelineClient::new(channel.clone());
            untaken.push(pipeline.run(requests).await.unwrap().into_inner());
        }
    }
    untaken
}

/// What calls came to.
#[derive(Debug, Default)]
struct Ends {
    done: u64,
    refused: u64,
    refused_late: u64,
    micros: Vec<u128>,
}

/// Reads a state again and again, one call at a time, at the pace of a caller who has other work.
async fn read(client: Client, key: &'static str) -> Ends {
    let (started, mut ends) = (Instant::now(), Ends::default());
    let mut pace = tokio::time::interval(Duration::from_millis(2));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while started.elapsed() < CALLING {
        pace.tick().await;
        let asked = Instant::now();
        match client.get(get("c", key)).await {
            Ok(_) => {
                ends.done += 1;
                ends.micros.push(asked.elapsed().as_micros());
            }
            Err(error) => {
                assert_eq!(error.reason(), Some("OVERLOADED"), "{error}");
                ends.refused += 1;
                ends.refused_late += u64::from(started.elapsed() > SETTLING);
            }
        }
    }
    ends.micros.sort_unstable();
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_that_are_never_read_keep_nobody_from_being_served() {
    let mut house = House::new();
    for (name, value) in
        [("STATEHOUSE_MEMORY_MAX", "256MiB"), ("STATEHOUSE_REQUEST_BYTES_MAX", "10MiB")]
    {
        house.env.push((name.into(), value.into()));
    }
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    let large = Bytes::from(vec![7; LARGE_BYTES]);
    client.put(put("c", "large", vec![bytes_field("f", large)])).await.unwrap();
    client.put(put("c", "small", vec![bytes_field("f", &b"few"[..])])).await.unwrap();
    let untaken = ask_and_take_nothing(&node).await;
    let (small, large) = tokio::join!(
        tokio::spawn(read(node.client().await, "small")),
        tokio::spawn(read(node.client().await, "large")),
    );
    let (small, large) = (small.unwrap(), large.unwrap());
    for (name, ends) in [("small", &small), ("large", &large)] {
        let p99 = ends.micros.get(ends.micros.len() * 99 / 100).copied().unwrap_or(0);
        let Ends { done, refused, refused_late, .. } = ends;
        println!("{name}: {done} done, {refused} refused, {refused_late} late, p99 {p99} us");
    }
    assert_eq!(small.refused, 0, "there is a part for small calls");
    assert!(large.done > 100, "{} of {}", large.done, large.refused);
    let calls = large.done + large.refused;
    assert!(large.refused_late * 50 <= calls, "{} of {calls} calls", large.refused_late);
    // Slow, perhaps, on a machine that has others to serve; not as if it waited for room.
    let p99 = small.micros[small.micros.len() * 99 / 100];
    assert!(p99 < 500_000, "{p99} us");
    drop(untaken);
}

/// The room that calls have, and how much of it one score takes: four times its state.
const ROOM: &str = "256MiB";

/// Scores that wait for company: more than the room holds.
const SCORES: usize = 20;

/// A score of a model with a state of 4 MiB, which holds its room until the batch is run.
fn score(key: usize) -> v1::ScoreRequest {
    let x = NamedTensor { name: "x".into(), tensor: Some(f32_tensor(&[1], &[1.0])) };
    v1::ScoreRequest {
        model: "m".into(),
        collection: "c".into(),
        key: format!("k{key}").into(),
        inputs: vec![x],
        mode: ScoreMode::Peek as i32,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_for_much_leaves_room_for_others() {
    let mut house = House::new();
    for (name, value) in [
        ("STATEHOUSE_MEMORY_MAX", "4GiB"),
        ("STATEHOUSE_REQUEST_BYTES_MAX", ROOM),
        ("STATEHOUSE_BATCH_BYTES_MAX", "512MiB"),
    ] {
        house.env.push((name.into(), value.into()));
    }
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    // Its rows wait for others, as long as they may, and are too few for a batch.
    let manifest = "name = \"m\"\nformat = \"onnx\"\n\
         [batch]\nrows_max = 32\nwait_max_us = 1000000\n\
         [[state]]\nfield = \"h\"\ninput = \"h\"\noutput = \"h_out\"\n";
    let onnx = std::fs::read("inference/testdata/rows/state_of_4_mib.onnx").unwrap();
    let files = vec![("model.toml".into(), manifest.into()), ("model.onnx".into(), onnx.into())];
    client.push_model(files, true).await.unwrap();
    let other = node.client().await;
    let mut asked: FuturesUnordered<_> = (0..SCORES).map(|key| client.score(score(key))).collect();
    let refused = asked.next().await.unwrap().expect_err("there is not room for all");
    assert_eq!(refused.reason(), Some("OVERLOADED"), "{refused}");
    other.score(score(SCORES)).await.expect("a part of the room is free");
    let answered = asked.filter(|answer| futures::future::ready(answer.is_ok())).count().await;
    assert!(answered > SCORES / 2, "a connection alone gets most of it: {answered}");
}
