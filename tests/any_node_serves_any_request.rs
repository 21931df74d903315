//! Every node of a cluster takes every call, whoever leads; bounded reads stay where they are;
//! a leader that goes costs a client nothing but time.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use harness::cluster::{Cluster, Shape, await_some};
use harness::{PATIENCE, bank_model, bank_score, bytes_field, create, field_bytes, get, push, put};
use statehouse_client::v1::pipeline_request::Call;
use statehouse_client::v1::pipeline_response::Result as Answer;
use statehouse_client::v1::{self, Consistency, ScoreMode, edit};
use statehouse_client::{Client, Config, Error, HOP, Pipeline};
use statehouse_proto::v1::cluster_client::ClusterClient;
use statehouse_proto::v1::state_client::StateClient;
use tonic::transport::{Channel, Endpoint};

const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Keys enough for every shard to have some.
const KEYS: usize = 24;

/// Calls of one key under way at a time.
const IN_A_ROW: u32 = 200;

/// Clients that append to a key of their own.
const WRITERS: u64 = 8;

/// Appends that must go through after each change to be sure that all goes on.
const APPENDS_AFTER: u64 = 200;

fn channel(cluster: &Cluster, node: u64) -> Channel {
    Endpoint::from_shared(cluster.endpoint(node)).unwrap().connect_lazy()
}

/// A stream to one node, that knows of no other.
fn pipeline(cluster: &Cluster, node: u64) -> Pipeline {
    Pipeline::open(channel(cluster, node), &cluster.endpoint(node), MESSAGE_BYTES_MAX)
}

async fn ask(pipeline: &Pipeline, call: Call) -> Result<Answer, Error> {
    pipeline.call(call, Some(PATIENCE)).await
}

fn key(n: usize) -> String {
    format!("key-{n}")
}

fn append(key: &str, data: Bytes) -> v1::PatchRequest {
    let append = edit::Append { field: "trail".to_owned(), data, max_bytes: None };
    v1::PatchRequest {
        collection: "users".to_owned(),
        key: key.to_owned().into(),
        edits: vec![v1::Edit { edit: Some(edit::Edit::Append(append)) }],
        options: None,
    }
}

fn bounded(max_lag: Duration, key: &str) -> v1::GetRequest {
    let max_lag_ms = max_lag.as_millis() as u64;
    let consistency = Consistency::Bounded as i32;
    v1::GetRequest { consistency, max_lag_ms, ..get("users", key) }
}

/// Waits until every node knows the collections and the model.
async fn known_everywhere(cluster: &Cluster) {
    for node in cluster.nodes() {
        let pipeline = &pipeline(cluster, node);
        await_some(&format!("node {node} knows the catalog"), async || {
            let peek = bank_score("nobody", 1.0, ScoreMode::Peek);
            match ask(pipeline, Call::Get(get("users", "nobody"))).await {
                Err(error) if error.reason() == Some("STATE_NOT_FOUND") => {}
                other => return Err(format!("{other:?}")),
            }
            ask(pipeline, Call::Score(peek)).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
}

async fn four_nodes() -> (Cluster, Client) {
    let cluster = Cluster::of(Shape { nodes: 4, ..Shape::default() }).await;
    let config = Config { timeout: Some(PATIENCE), ..Config::any_of(cluster.endpoints()) };
    let client = Client::connect(config).await.unwrap();
    create(&client, "users").await;
    create(&client, "accounts").await;
    push(&client, &bank_model()).await.unwrap();
    known_everywhere(&cluster).await;
    (cluster, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_takes_every_call() {
    let (cluster, client) = four_nodes().await;
    // The order of a key's calls is kept as long as its shard keeps its leader.
    cluster.admin_json(&["pause"]);
    for node in cluster.nodes() {
        one_by_one(&cluster, node).await;
        batches(&cluster, node, &client).await;
        scores(&cluster, node).await;
        in_order(&cluster, node).await;
        large(&cluster, node).await;
    }
    maps_agree(&cluster).await;
    refusals_name_the_leader(&cluster).await;
    bounded_reads_stay(&cluster).await;
}

/// What is written through one node is read through all others.
async fn one_by_one(cluster: &Cluster, node: u64) {
    let writer = pipeline(cluster, node);
    let readers: Vec<Pipeline> = cluster.nodes().iter().map(|n| pipeline(cluster, *n)).collect();
    for n in 0..KEYS {
        let (key, value) = (key(n), format!("{n} of node {node}"));
        let fields = vec![bytes_field("v", value.clone())];
        let Answer::Write(written) =
            ask(&writer, Call::Put(put("users", &key, fields))).await.unwrap()
        else {
            panic!("not the answer of a put");
        };
        for reader in &readers {
            let Answer::Get(got) = ask(reader, Call::Get(get("users", &key))).await.unwrap() else {
                panic!("not the answer of a get");
            };
            let state = got.state.unwrap();
            assert_eq!((state.version, got.lag_ms), (written.version, 0));
            assert_eq!(field_bytes(&state, "v"), value);
        }
        if n % 2 == 0 {
            let delete = v1::DeleteRequest {
                collection: "users".to_owned(),
                key: key.into(),
                options: None,
            };
            let deleted = ask(&writer, Call::Delete(delete)).await.unwrap();
            assert!(matches!(deleted, Answer::Delete(deleted) if deleted.existed));
        }
    }
}

/// Batches with keys of every shard, each item with its own fate.
async fn batches(cluster: &Cluster, node: u64, client: &Client) {
    let pipeline = pipeline(cluster, node);
    let value = |n: usize| format!("batch {n} of node {node}");
    let mut puts: Vec<v1::PutRequest> =
        (0..KEYS).map(|n| put("users", &key(n), vec![bytes_field("v", value(n))])).collect();
    puts.push(put("users", "", vec![]));
    let batch = Call::BatchPut(v1::BatchPutRequest { puts });
    let Answer::BatchPut(written) = ask(&pipeline, batch).await.unwrap() else {
        panic!("not the answer of a batch of puts");
    };
    let fates: Vec<String> = written.items.iter().map(fate).collect();
    assert!(fates[..KEYS].iter().all(|fate| fate == "written"), "{fates:?}");
    assert_eq!(fates[KEYS], "INVALID_KEY");

    let mut keys: Vec<Bytes> = (0..KEYS).rev().map(|n| key(n).into()).collect();
    keys.insert(3, "nobody".into());
    let request =
        v1::BatchGetRequest { collection: "users".to_owned(), keys, ..Default::default() };
    let Answer::BatchGet(through_node) =
        ask(&pipeline, Call::BatchGet(request.clone())).await.unwrap()
    else {
        panic!("not the answer of a batch of gets");
    };
    for got in [through_node, client.batch_get(request).await.unwrap()] {
        use v1::batch_get_response::item::Result;
        let mut wanted = (0..KEYS).rev();
        for (at, item) in got.items.into_iter().enumerate() {
            match item.result.unwrap() {
                Result::State(state) => {
                    assert_eq!(field_bytes(&state, "v"), value(wanted.next().unwrap()));
                }
                Result::Error(error) => {
                    assert_eq!((at, error.reason.as_str()), (3, "STATE_NOT_FOUND"));
                }
            }
        }
        assert_eq!(wanted.next(), None);
    }
}

fn fate(item: &v1::batch_put_response::Item) -> String {
    use v1::batch_put_response::item::Result;
    match item.result.as_ref().unwrap() {
        Result::Written(_) => "written".to_owned(),
        Result::Error(error) => error.reason.clone(),
    }
}

/// Steps and peeks, alone and in batches.
async fn scores(cluster: &Cluster, node: u64) {
    let pipeline = pipeline(cluster, node);
    for n in 0..KEYS / 4 {
        let account = format!("account-{node}-{n}");
        let step = bank_score(&account, 700.0, ScoreMode::Step);
        let Answer::Score(stepped) = ask(&pipeline, Call::Score(step)).await.unwrap() else {
            panic!("not the answer of a step");
        };
        assert!(stepped.from_initial_state);
        let peek = bank_score(&account, 700.0, ScoreMode::Peek);
        let Answer::Score(peeked) = ask(&pipeline, Call::Score(peek)).await.unwrap() else {
            panic!("not the answer of a peek");
        };
        assert_eq!(peeked.state_version, stepped.state_version);
    }
    let steps = (0..KEYS).map(|n| {
        let account = format!("batch-{node}-{}", n % (KEYS / 2));
        bank_score(&account, n as f32, ScoreMode::Step)
    });
    let batch = Call::ScoreBatch(v1::ScoreBatchRequest { scores: steps.collect() });
    let Answer::ScoreBatch(stepped) = ask(&pipeline, batch).await.unwrap() else {
        panic!("not the answer of a batch of steps");
    };
    use v1::score_batch_response::item::Result;
    let scored = |item: v1::score_batch_response::Item| match item.result.unwrap() {
        Result::Scored(scored) => scored,
        Result::Error(error) => panic!("{error:?}"),
    };
    let stepped: Vec<v1::ScoreResponse> = stepped.items.into_iter().map(scored).collect();
    let (first, second) = stepped.split_at(KEYS / 2);
    for (first, second) in first.iter().zip(second) {
        assert!(first.from_initial_state && !second.from_initial_state);
        assert!(first.state_version < second.state_version, "steps keep the batch's order");
    }
}

/// Calls of one key sent without waiting take effect in the order sent, here or forwarded.
async fn in_order(cluster: &Cluster, node: u64) {
    let pipeline = pipeline(cluster, node);
    let keys: Vec<String> = (0..KEYS / 4).map(|n| format!("row-{node}-{n}")).collect();
    for key in &keys {
        ask(&pipeline, Call::Put(put("users", key, vec![bytes_field("trail", "")]))).await.unwrap();
    }
    let mut answers = Vec::new();
    for n in 0..IN_A_ROW {
        for key in &keys {
            let call = Call::Patch(append(key, Bytes::copy_from_slice(&n.to_le_bytes())));
            answers.push(pipeline.send(call, Some(PATIENCE)).await.unwrap());
        }
    }
    for answer in join_all(answers).await {
        answer.unwrap();
    }
    let expected: Vec<u8> = (0..IN_A_ROW).flat_map(u32::to_le_bytes).collect();
    for key in &keys {
        let Answer::Get(got) = ask(&pipeline, Call::Get(get("users", key))).await.unwrap() else {
            panic!("not the answer of a get");
        };
        assert_eq!(field_bytes(&got.state.unwrap(), "trail"), expected, "{key}");
    }
}

/// All nodes give the same map, and know who leads what they have a replica of.
/// What is too large for a pipeline, as one call and in batches, whoever leads the keys.
async fn large(cluster: &Cluster, node: u64) {
    const BYTES: usize = 3 << 20;
    let mut state = StateClient::new(channel(cluster, node)).max_decoding_message_size(16 << 20);
    let data = |n: usize| Bytes::from(vec![n as u8 ^ node as u8; BYTES]);
    for n in 0..4 {
        let request = put("users", &format!("large-{n}"), vec![bytes_field("f", data(n))]);
        state.put(request).await.unwrap();
    }
    let keys = (0..4).map(|n| Bytes::from(format!("large-{n}"))).collect();
    let request = v1::BatchGetRequest { collection: "users".into(), keys, ..Default::default() };
    let items = state.batch_get(request).await.unwrap().into_inner().items;
    for (n, item) in items.into_iter().enumerate() {
        let Some(v1::batch_get_response::item::Result::State(found)) = item.result else {
            panic!("key {n}: {item:?}");
        };
        assert_eq!(field_bytes(&found, "f"), data(n));
        let got = state.get(get("users", &format!("large-{n}"))).await.unwrap().into_inner();
        assert_eq!(field_bytes(&got.state.unwrap(), "f"), data(n));
        // A pipeline does not carry it, and goes on.
        let pipeline = pipeline(cluster, node);
        let refused = ask(&pipeline, Call::Get(get("users", &format!("large-{n}")))).await;
        assert_eq!(refused.unwrap_err().reason(), Some("ANSWER_TOO_LARGE"));
        let absent = ask(&pipeline, Call::Get(get("users", "nobody"))).await;
        assert_eq!(absent.unwrap_err().reason(), Some("STATE_NOT_FOUND"));
    }
}

async fn maps_agree(cluster: &Cluster) {
    let mut shards = BTreeSet::new();
    for node in cluster.nodes() {
        let mut asked = ClusterClient::new(channel(cluster, node));
        let map = asked.get_map(v1::GetMapRequest {}).await.unwrap().into_inner();
        assert_eq!((map.answered_by, map.slots, map.nodes.len()), (node, 16_384, 4));
        for shard in &map.shards {
            assert_eq!(shard.nodes.len(), 3, "{shard:?}");
            assert!(!shard.nodes.contains(&node) || shard.leader != 0, "{shard:?}");
        }
        let place =
            |shard: &v1::MappedShard| (shard.shard, shard.slots.clone(), shard.nodes.clone());
        shards.insert(format!("{:?}", map.shards.iter().map(place).collect::<Vec<_>>()));
        for member in &map.nodes {
            assert_eq!(format!("http://{}", member.address), cluster.endpoint(member.node));
        }
    }
    assert_eq!(shards.len(), 1, "{shards:?}");
}

/// A call that was forwarded already is run by the node that leads, and refused by all others,
/// who say where it belongs.
async fn refusals_name_the_leader(cluster: &Cluster) {
    for n in 0..KEYS {
        let mut served = Vec::new();
        let mut named = BTreeMap::new();
        for node in cluster.nodes() {
            let mut request = tonic::Request::new(put("users", &key(n), vec![]));
            request.metadata_mut().insert(HOP, "1".parse().unwrap());
            match StateClient::new(channel(cluster, node)).put(request).await {
                Ok(_) => served.push(node),
                Err(status) => {
                    let error = Error::from_status("", &status);
                    assert_eq!(error.reason(), Some("NOT_LEADER"), "{error}");
                    let Error::Refused { metadata, retry_after, .. } = error else { panic!() };
                    assert!(retry_after.is_some() && metadata.contains_key("shard"));
                    named.insert(metadata.get("leader_node").cloned(), metadata);
                }
            }
        }
        let [leader] = served[..] else { panic!("{} is served by {served:?}", key(n)) };
        for (node, metadata) in named {
            // A node without a replica knows whom it forwarded to last.
            let Some(node) = node else { continue };
            assert_eq!(node, leader.to_string());
            assert_eq!(format!("http://{}", metadata["leader_address"]), cluster.endpoint(leader));
        }
    }
}

/// Bounded reads are served by any replica that is fresh enough: even where nothing is forwarded.
async fn bounded_reads_stay(cluster: &Cluster) {
    let mut replicas = 0;
    for n in 0..KEYS {
        let mut served = 0;
        for node in cluster.nodes() {
            let mut state = StateClient::new(channel(cluster, node));
            let mut request = tonic::Request::new(bounded(PATIENCE, &key(n)));
            request.metadata_mut().insert(HOP, "1".parse().unwrap());
            match state.get(request).await {
                Ok(got) => {
                    let got = got.into_inner();
                    assert!(got.lag_ms <= PATIENCE.as_millis() as u64);
                    assert!(got.state.is_some());
                    served += 1;
                }
                Err(status) => {
                    let error = Error::from_status("", &status);
                    assert_eq!(error.reason(), Some("NOT_LEADER"), "{error}");
                }
            }
            // No follower is as fresh as that: the leader answers, through any node.
            let got = state.get(bounded(Duration::ZERO, &key(n))).await.unwrap().into_inner();
            assert_eq!(got.lag_ms, 0);
        }
        assert_eq!(served, 3, "{} is read from each of its replicas", key(n));
        replicas += served;
    }
    assert_eq!(replicas, 3 * KEYS);
}

/// Appends to keys of their own, one after the other, until told to stop.
struct Writers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<u32>>,
}

impl Writers {
    fn start(client: &Client) -> Writers {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..WRITERS).map(|writer| {
            let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
            tokio::spawn(async move {
                let key = format!("writer-{writer}");
                let fields = vec![bytes_field("trail", "")];
                client.put(put("users", &key, fields)).await.unwrap();
                let mut next = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    let data = Bytes::copy_from_slice(&next.to_le_bytes());
                    let patched = client.patch(append(&key, data)).await;
                    patched.unwrap_or_else(|error| panic!("{key}, append {next}: {error}"));
                    next += 1;
                    let keys = (0..WRITERS).map(|n| format!("writer-{n}").into()).collect();
                    let collection = "users".to_owned();
                    let all = v1::BatchGetRequest { collection, keys, ..Default::default() };
                    let got = client.batch_get(all).await.unwrap();
                    let own = got.items[writer as usize].result.clone().unwrap();
                    let v1::batch_get_response::item::Result::State(state) = own else {
                        panic!("{key}, after append {next}: {own:?}");
                    };
                    assert_eq!(field_bytes(&state, "trail").len(), next as usize * 4, "{key}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
                next
            })
        });
        let tasks = tasks.collect();
        Writers { stop, done, tasks }
    }

    /// Waits until so many more appends went through.
    async fn go_on(&self, what: &str) {
        let until = self.done.load(Ordering::Relaxed) + APPENDS_AFTER;
        await_some(&format!("writers go on {what}"), async || {
            let failed = self.tasks.iter().filter(|task| task.is_finished()).count();
            assert_eq!(failed, 0, "a writer has failed {what}");
            let done = self.done.load(Ordering::Relaxed);
            if done >= until { Ok(()) } else { Err(format!("{done} of {until}")) }
        })
        .await;
    }

    /// Every append happened once, in order.
    async fn judge(self, client: &Client) {
        self.stop.store(true, Ordering::Relaxed);
        for (writer, task) in self.tasks.into_iter().enumerate() {
            let appends = task.await.unwrap();
            let key = format!("writer-{writer}");
            let state = client.get(get("users", &key)).await.unwrap();
            let expected: Vec<u8> = (0..appends).flat_map(u32::to_le_bytes).collect();
            assert_eq!(field_bytes(&state, "trail"), expected, "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_goes_costs_a_client_no_call() {
    let mut cluster = Cluster::start(3).await;
    let config = Config { timeout: Some(PATIENCE), ..Config::any_of(cluster.endpoints()) };
    let client = Client::connect(config).await.unwrap();
    create(&client, "users").await;
    let writers = Writers::start(&client);
    writers.go_on("at first").await;

    let leader = cluster.leader(1).await;
    cluster.kill(leader);
    writers.go_on("after a leader was killed").await;
    cluster.start_node(leader).await;
    cluster.whole().await;

    let leader = cluster.leader(2).await;
    cluster.stop(leader).await;
    writers.go_on("after a leader was stopped").await;
    cluster.start_node(leader).await;
    cluster.whole().await;

    let leader = cluster.leader(3).await;
    cluster.pause(leader);
    writers.go_on("while a leader stands still").await;
    cluster.resume(leader);
    cluster.whole().await;
    writers.go_on("in the end").await;
    writers.judge(&client).await;
}
