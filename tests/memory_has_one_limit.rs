//! A node stays within `memory_max` whatever is asked of it: what finds no room is refused with a
//! time after which to try again, and everything else is answered.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use harness::untaken::{get_untaken, narrow, refusal};
use harness::{House, Node, PATIENCE, bytes_field, create, field_bytes, get, put, reason, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use statehouse_client::v1::pipeline_client::PipelineClient;
use statehouse_client::{Client, Error, v1};
use tokio_stream::StreamExt as _;
use tonic_types::StatusExt as _;

const MIB: usize = 1 << 20;

/// Beyond its limit by so much at most: what the system tells comes late.
const EXCESS: f64 = 1.05;

fn house(env: &[(&str, &str)]) -> (House, Node) {
    let mut house = House::new();
    house.env.extend(env.iter().map(|(name, value)| ((*name).into(), (*value).into())));
    let node = house.start();
    (house, node)
}

fn noise(random: &mut StdRng, bytes: usize) -> Bytes {
    let mut data = vec![0; bytes];
    random.fill_bytes(&mut data);
    data.into()
}

/// Looks at a process's resident memory again and again until the other end is dropped; the most.
fn watch(pid: u32, stopped: mpsc::Receiver<()>) -> std::thread::JoinHandle<u64> {
    const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
    std::thread::spawn(move || {
        let mut most = 0;
        while stopped.recv_timeout(BETWEEN_LOOKS) == Err(mpsc::RecvTimeoutError::Timeout) {
            let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
            let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
            most = most.max(pages * rustix::param::page_size() as u64);
        }
        most
    })
}

/// A value of /metrics.
fn metric(node: &Node, name: &str) -> u64 {
    let (_, body) = node.http_get("/metrics");
    let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
}

/// Waits until a value of /metrics is so much.
async fn until(node: &Node, name: &str, value: u64) {
    let started = Instant::now();
    while metric(node, name) != value {
        assert!(started.elapsed() < PATIENCE, "{name} is {}, not {value}", metric(node, name));
        tokio::task::yield_now().await;
    }
}

async fn until_nothing_is_held(node: &Node) {
    until(node, "statehouse_memory_part_bytes{part=\"request\"}", 0).await;
}

/// Whether a call was refused for want of room, or its answer dropped since room was short and the
/// client slow to read, as it may be on a busy machine.
fn is_shed(error: &Error) -> bool {
    matches!(error.reason(), Some("OVERLOADED" | "STREAM_STALLED"))
}

/// How calls ended.
#[derive(Default)]
struct Ends {
    done: AtomicU64,
    refused: AtomicU64,
}

impl Ends {
    fn note<T>(&self, answer: Result<T, Error>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                Some(answer)
            }
            Err(error) if is_shed(&error) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                None
            }
            Err(error) => panic!("neither an answer nor back-pressure: {error}"),
        }
    }
}

/// Puts, gets, batches and streams of states of all sizes, until the time is over.
async fn work(client: Client, mut random: StdRng, ends: Arc<Ends>, until: Instant) {
    const KEYS: usize = 150;
    while Instant::now() < until {
        let key = format!("k{}", random.random_range(0..KEYS));
        let size = [1 << 10, 100 << 10, MIB, 4 * MIB, 8 * MIB][random.random_range(0..5)];
        match random.random_range(0..10) {
            0..4 => {
                let data = noise(&mut random, size);
                let _ = ends.note(client.put(put("c", &key, vec![bytes_field("f", data)])).await);
            }
            4..8 => {
                if let Some(got) = ends.note(client.get(get("c", &key)).await) {
                    assert!(got.fields.len() <= 1);
                }
            }
            8 => {
                let keys =
                    (0..16).map(|_| Bytes::from(format!("k{}", random.random_range(0..KEYS))));
                let request = v1::BatchGetRequest {
                    collection: "c".into(),
                    keys: keys.collect(),
                    ..Default::default()
                };
                let Some(got) = ends.note(client.batch_get(request).await) else { continue };
                for item in got.items {
                    if let Some(v1::batch_get_response::item::Result::Error(error)) = item.result {
                        let expected = ["OVERLOADED", "ANSWER_TOO_LARGE"];
                        assert!(expected.contains(&error.reason.as_str()), "{error:?}");
                    }
                }
            }
            _ => {
                let Some(mut stream) = ends.note(client.open(get("c", &key)).await) else {
                    continue;
                };
                while stream.next_chunk().await.unwrap().is_some() {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_stays_within_its_memory() {
    let seed = seed();
    let (_house, node) = house(&[("STATEHOUSE_MEMORY_MAX", "256MiB")]);
    let client = node.client().await;
    let settings =
        v1::CollectionSettings { missing: v1::MissingState::Empty as i32, ..Default::default() };
    harness::create_with(&client, "c", settings).await;
    let (stop, stopped) = mpsc::channel();
    let watching = watch(node.pid(), stopped);
    let ends = Arc::new(Ends::default());
    let until = Instant::now() + Duration::from_secs(harness::scale("MEMORY_SECONDS", 10));
    let mut workers = Vec::new();
    for worker in 0..24 {
        let client = node.client().await;
        let random = StdRng::seed_from_u64(seed ^ worker);
        workers.push(tokio::spawn(work(client, random, ends.clone(), until)));
    }
    for worker in workers {
        worker.await.unwrap();
    }
    drop(stop);
    let most = watching.join().unwrap();
    let (done, refused) = (ends.done.load(Ordering::Relaxed), ends.refused.load(Ordering::Relaxed));
    let (resident_mib, taken) =
        (most as f64 / MIB as f64, metric(&node, "statehouse_block_cache_taken_bytes"));
    println!("{done} done, {refused} refused, {resident_mib:.0} MiB at most, {taken} taken");
    assert!(resident_mib <= 256.0 * EXCESS, "{resident_mib} MiB of 256 MiB");
    assert!(done > 100, "{done} calls were answered, {refused} refused");
    until_nothing_is_held(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_is_refused_with_a_time_to_try_again() {
    let mut random = StdRng::seed_from_u64(seed());
    let (_house, node) =
        house(&[("STATEHOUSE_MEMORY_MAX", "256MiB"), ("STATEHOUSE_REQUEST_BYTES_MAX", "20MiB")]);
    let client = node.client().await;
    create(&client, "c").await;
    let data = noise(&mut random, 6 * MIB);
    client.put(put("c", "large", vec![bytes_field("f", data.clone())])).await.unwrap();
    client.put(put("c", "small", vec![bytes_field("f", &b"few"[..])])).await.unwrap();
    // Each on a stream of its own, all at once: one answer fits into the room.
    let calls = (0..16).map(|_| {
        let mut state = client.state();
        async move { state.get(get("c", "large")).await }
    });
    let (mut done, mut refused) = (0, 0);
    for answer in futures::future::join_all(calls).await {
        match answer {
            Ok(got) => {
                assert_eq!(field_bytes(&got.into_inner().state.unwrap(), "f"), data);
                done += 1;
            }
            Err(status) => {
                let error = client.error(&status);
                assert!(is_shed(&error), "{error}");
                let overloaded = error.reason() == Some("OVERLOADED");
                assert!(!overloaded || status.get_details_retry_info().is_some(), "{error}");
                refused += usize::from(overloaded);
            }
        }
    }
    assert!(done > 0 && refused > 0, "{done} done, {refused} refused");
    until_nothing_is_held(&node).await;
    // And all is well again.
    client.get(get("c", "large")).await.unwrap();
    client.get(get("c", "small")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_of_many_calls_wait_for_room_and_all_get_through() {
    let mut random = StdRng::seed_from_u64(seed());
    let (_house, node) =
        house(&[("STATEHOUSE_MEMORY_MAX", "256MiB"), ("STATEHOUSE_REQUEST_BYTES_MAX", "20MiB")]);
    let client = node.client_with(4).await;
    create(&client, "c").await;
    let values: Vec<Bytes> = (0..24).map(|_| noise(&mut random, 3 * MIB)).collect();
    let puts = values.iter().enumerate().map(|(n, data)| {
        let (client, data) = (client.clone(), data.clone());
        async move {
            let started = Instant::now();
            loop {
                let request = put("c", &format!("k{n}"), vec![bytes_field("f", data.clone())]);
                match client.put(request).await {
                    Ok(_) => return,
                    Err(error) => assert_eq!(error.reason(), Some("OVERLOADED"), "{error}"),
                }
                assert!(started.elapsed() < PATIENCE, "a put finds no room");
                tokio::task::yield_now().await;
            }
        }
    });
    futures::future::join_all(puts).await;
    for (n, data) in values.iter().enumerate() {
        let got = client.get(get("c", &format!("k{n}"))).await.unwrap();
        assert_eq!(field_bytes(&got, "f"), *data);
    }
    until_nothing_is_held(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_no_message_holds_is_refused_by_name_and_can_be_read() {
    let mut random = StdRng::seed_from_u64(seed());
    let (_house, node) =
        house(&[("STATEHOUSE_MEMORY_MAX", "256MiB"), ("STATEHOUSE_MESSAGE_BYTES_MAX", "4MiB")]);
    let client = node.client().await;
    create(&client, "c").await;
    let data = noise(&mut random, 5 * MIB);
    let header = v1::WriteHeader {
        collection: "c".into(),
        key: Bytes::from_static(b"k"),
        fields: vec![v1::FieldHeader {
            name: "f".into(),
            bytes: data.len() as u64,
            ..Default::default()
        }],
        ..Default::default()
    };
    client.write(header, &mut data.clone(), |_| {}).await.unwrap();
    assert_eq!(reason(client.get(get("c", "k")).await), "ANSWER_TOO_LARGE");
    let mut stream = client.open(get("c", "k")).await.unwrap();
    let mut read = Vec::new();
    while let Some(chunk) = stream.next_chunk().await.unwrap() {
        read.extend_from_slice(&chunk.data);
    }
    assert_eq!(read, data);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes_give_their_room_back() {
    const CUT: &str = "statehouse_streams_cut_total";
    let mut random = StdRng::seed_from_u64(seed());
    let (_house, node) = house(&[
        ("STATEHOUSE_MEMORY_MAX", "256MiB"),
        ("STATEHOUSE_REQUEST_BYTES_MAX", "20MiB"),
        ("STATEHOUSE_STREAM_STALL_S", "1"),
    ]);
    let client = node.client().await;
    create(&client, "c").await;
    for (key, bytes) in [("small", 200 << 10), ("large", 6 * MIB)] {
        let data = noise(&mut random, bytes);
        client.put(put("c", key, vec![bytes_field("f", data)])).await.unwrap();
    }
    // Of a pipeline.
    let gets = (1..=40).map(|id| {
        let call = Some(v1::pipeline_request::Call::Get(get("c", "small")));
        v1::PipelineRequest { id, timeout_ms: 0, call }
    });
    let requests = tokio_stream::iter(gets).chain(tokio_stream::pending());
    let mut pipeline = PipelineClient::new(narrow(node.endpoint()).await);
    let mut answers = pipeline.run(requests).await.unwrap().into_inner();
    until(&node, CUT, 1).await;
    until_nothing_is_held(&node).await;
    assert_eq!(refusal(&client, &mut answers).await.reason(), Some("STREAM_STALLED"));
    // Of one call.
    let mut answer = get_untaken(narrow(node.endpoint()).await, get("c", "large")).await;
    until(&node, CUT, 2).await;
    until_nothing_is_held(&node).await;
    assert_eq!(refusal(&client, &mut answer).await.reason(), Some("STREAM_STALLED"));
    // And all is well for others.
    client.get(get("c", "large")).await.unwrap();
}

#[test]
fn memory_that_does_not_add_up_stops_the_start_and_says_why() {
    for (env, said) in [
        (vec![("STATEHOUSE_MEMORY_MAX", "64MiB")], "a node needs 128 MiB at least"),
        (vec![("STATEHOUSE_BLOCK_CACHE_BYTES", "1GiB")], "block_cache_bytes 1 GiB"),
        (vec![("STATEHOUSE_MEMORY_MAX", "lots")], "expected a size such as"),
    ] {
        let mut house = House::new();
        house.env.extend(env.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        let Err(log) = house.try_start() else { panic!("it started with {env:?}") };
        assert!(log.contains(said), "{env:?}: {log}");
    }
}
