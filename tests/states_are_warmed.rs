//! States are brought into memory before they are read, pinned ones stay there, and a node says
//! what more memory would be good for.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::collections::BTreeMap;

use bytes::Bytes;
use harness::cluster::{Cluster, Shape, await_some};
use harness::{House, Node, PATIENCE, bytes_field, create, create_with, put, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1::pipeline_request::Call;
use statehouse_client::v1::pipeline_response::Result as Answer;
use statehouse_client::v1::prefetch_response::item::Result as Outcome;
use statehouse_client::v1::{self, Consistency, Warmth};
use statehouse_client::{Client, Pipeline};
use tonic::transport::Endpoint;

const MIB: usize = 1 << 20;

const STATES: usize = 200;

/// Bytes of a small state.
const STATE_BYTES: usize = 1_000;

fn key(n: usize) -> String {
    format!("key-{n}")
}

async fn fill(client: &Client, collection: &str, states: usize) {
    fill_with(client, collection, states, STATE_BYTES).await;
}

async fn fill_with(client: &Client, collection: &str, states: usize, bytes: usize) {
    for some in (0..states).collect::<Vec<_>>().chunks(500) {
        let field = || vec![bytes_field("v", vec![7; bytes])];
        let puts = some.iter().map(|n| put(collection, &key(*n), field())).collect();
        let written = client.batch_put(v1::BatchPutRequest { puts }).await.unwrap();
        for item in written.items {
            use v1::batch_put_response::item::Result;
            assert!(matches!(item.result, Some(Result::Written(_))), "{item:?}");
        }
    }
}

/// Reads states in batches; all of them are there.
async fn read(client: &Client, collection: &str, states: impl Iterator<Item = usize>) {
    for some in states.collect::<Vec<_>>().chunks(500) {
        let keys = some.iter().map(|n| key(*n).into()).collect();
        let collection = collection.to_owned();
        let request = v1::BatchGetRequest { collection, keys, ..Default::default() };
        for item in client.batch_get(request).await.unwrap().items {
            use v1::batch_get_response::item::Result;
            assert!(matches!(item.result, Some(Result::State(_))), "{item:?}");
        }
    }
}

fn prefetch(collection: &str, keys: impl IntoIterator<Item = String>) -> v1::PrefetchRequest {
    v1::PrefetchRequest {
        collection: collection.to_owned(),
        keys: keys.into_iter().map(Bytes::from).collect(),
        ..Default::default()
    }
}

/// How many keys each outcome had.
fn tally(answer: v1::PrefetchResponse) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for item in answer.items {
        let name = match item.result.unwrap() {
            Outcome::Warmth(warmth) => Warmth::try_from(warmth).unwrap().as_str_name().to_owned(),
            Outcome::Error(error) => error.reason,
        };
        *tally.entry(name).or_default() += 1;
    }
    tally
}

/// So many have a state, and had to be loaded: but for a few that lie beside a row which a node
/// reads when it starts.
#[track_caller]
fn assert_loaded(tally: &BTreeMap<String, usize>, states: usize) {
    let of = |name: &str| tally.get(name).copied().unwrap_or_default();
    assert_eq!(of("WARMTH_LOADED") + of("WARMTH_IN_MEMORY"), states, "{tally:?}");
    assert!(of("WARMTH_LOADED") > states / 4, "{tally:?}");
}

fn counts<const N: usize>(counts: [(&str, usize); N]) -> BTreeMap<String, usize> {
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

fn metric(node: &Node, name: &str) -> u64 {
    let (_, text) = node.http_get("/metrics");
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no metric {name} in {text}"));
    line.split(' ').next_back().unwrap().parse().unwrap()
}

const HITS: &str = "statehouse_state_cache_hits_total";
const MISSES: &str = "statehouse_state_cache_misses_total";
const PINNED_HITS: &str = "statehouse_state_cache_pinned_hits_total";
const PINNED_MISSES: &str = "statehouse_state_cache_pinned_misses_total";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_prefetched_is_read_from_memory() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    fill(&client, "c", STATES).await;
    drop(client);
    assert_eq!(node.stop().0, Some(0));

    let node = house.start();
    let client = node.client().await;
    let keys = (0..STATES / 2).map(key).chain(["nobody".to_owned(), String::new()]);
    let answer = tally(client.prefetch(prefetch("c", keys)).await.unwrap());
    let half = STATES / 2;
    assert_eq!((answer["WARMTH_NO_STATE"], answer["INVALID_KEY"]), (1, 1));
    assert_loaded(&answer, half);

    let answer = client.prefetch(prefetch("c", (0..half).map(key))).await.unwrap();
    assert_eq!(tally(answer), counts([("WARMTH_IN_MEMORY", half)]));
    let lookups = || (metric(&node, HITS), metric(&node, MISSES));
    let (hits, misses) = lookups();
    read(&client, "c", 0..half).await;
    assert_eq!(lookups(), (hits + half as u64, misses), "they were in memory");
    read(&client, "c", half..STATES).await;
    assert_eq!(lookups(), (hits + half as u64, misses + half as u64), "the others were not");

    let said = node.ok(&["prefetch", "c", "key-0", "key-1", "nobody"]);
    assert_eq!(said, "0 loaded, 2 found in memory, 1 without a state\n");
    let said = node.json(&["prefetch", "c", "key-0", "--field", "v@0+10", "--field", "none"]);
    assert_eq!((&said["in_memory"], &said["loaded"]), (&1.into(), &0.into()), "{said}");
    let out = node.run(&["prefetch", "nowhere", "key-0"]);
    assert_eq!(out.status.code(), Some(4), "{out:?}");
    let too_many = prefetch("c", (0..4_097).map(key));
    assert_eq!(harness::reason(client.prefetch(too_many).await), "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_fields_are_brought_in_as_far_as_there_is_room() {
    let mut house = House::new();
    // 16 MiB of blocks, and what the memtables do not take of their 8.
    house.env.push(("STATEHOUSE_BLOCK_CACHE_BYTES".into(), (16 * MIB).to_string()));
    house.env.push(("STATEHOUSE_MEMTABLE_BYTES_MAX".into(), (8 * MIB).to_string()));
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    let field = |mib: usize| vec![bytes_field("v", vec![7; mib * MIB])];
    let many: Vec<String> = (0..24).map(|n| format!("many-{n}")).collect();
    let mut sizes = vec![("fits", 1), ("huge", 6)];
    sizes.extend(many.iter().map(|key| (key.as_str(), 2)));
    for (key, mib) in sizes {
        client.put(put("c", key, field(mib))).await.unwrap();
    }
    drop(client);
    assert_eq!(node.stop().0, Some(0));

    let node = house.start();
    let client = node.client().await;
    // Two of 16 MiB are what a state may take, eight what a call may bring in. A node that starts
    // has read some of its log, so some states may be in memory: at most twelve.
    let tally = tally(client.prefetch(prefetch("c", many)).await.unwrap());
    let of = |name: &str| tally.get(name).copied().unwrap_or_default();
    assert_eq!(of("WARMTH_LOADED") + of("WARMTH_IN_MEMORY") + of("WARMTH_PARTLY"), 24);
    assert!((1..=4).contains(&of("WARMTH_LOADED")), "{tally:?}");
    assert!(of("WARMTH_PARTLY") >= 8, "{tally:?}");

    let one = async |request| {
        let answer = client.prefetch(request).await.unwrap();
        match &answer.items[0].result {
            Some(Outcome::Warmth(warmth)) => Warmth::try_from(*warmth).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    let whole = |key: &str| prefetch("c", [key.to_owned()]);
    one(whole("fits")).await;
    assert_eq!(one(whole("fits")).await, Warmth::InMemory);
    assert_eq!(one(whole("huge")).await, Warmth::Partly);
    let (offset, length) = (Some(3 * MIB as u64), Some(10));
    let part = v1::FieldSelector { name: "v".into(), offset, length, ..Default::default() };
    let part = || v1::PrefetchRequest { fields: vec![part.clone()], ..whole("huge") };
    one(part()).await;
    assert_eq!(one(part()).await, Warmth::InMemory, "a part of it fits");
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_states_stay_whatever_is_done_with_others() {
    let mut house = House::new();
    house.env.push(("STATEHOUSE_STATE_CACHE_BYTES".into(), MIB.to_string()));
    let node = house.start();
    let client = node.client().await;
    let settings = v1::CollectionSettings { pinned: true, ..Default::default() };
    create_with(&client, "quiet", settings).await;
    create(&client, "loud").await;
    // More than the cache holds, and all of it hot.
    let make_noise = async || {
        for _ in 0..5 {
            read(&client, "loud", 0..2_000).await;
        }
    };
    fill(&client, "loud", 2_000).await;
    make_noise().await;
    fill(&client, "quiet", STATES / 2).await;
    make_noise().await;
    let before = (metric(&node, PINNED_HITS), metric(&node, PINNED_MISSES));
    read(&client, "quiet", 0..STATES / 2).await;
    let after = (metric(&node, PINNED_HITS), metric(&node, PINNED_MISSES));
    assert_eq!(after, (before.0 + STATES as u64 / 2, before.1));
    let bytes = metric(&node, "statehouse_state_cache_pinned_bytes");
    assert!(bytes >= (STATES / 2 * STATE_BYTES) as u64, "{bytes} bytes are pinned");
    let parts = node.json(&["admin", "cache-plan"])[0]["parts"].clone();
    assert_eq!((&parts[0]["part"], &parts[1]["part"]), (&"shared".into(), &"pinned".into()));
    let used = [0, 1].map(|at: usize| parts[at]["used_bytes"].as_u64().unwrap());
    assert!(used[0] + used[1] <= MIB as u64 + 64, "{used:?}");
    drop(client);
    assert_eq!(node.stop().0, Some(0));

    // It is remembered, and may be changed.
    let node = house.start();
    let client = node.client().await;
    assert_eq!(node.json(&["collection", "describe", "quiet"])["pinned"], true);
    assert!(node.ok(&["collection", "list"]).contains("pinned"));
    read(&client, "quiet", 0..STATES / 2).await;
    assert!(metric(&node, "statehouse_state_cache_pinned_bytes") > 0);
    let id = &node.json(&["collection", "describe", "quiet"])["id"];
    let change = ["collection", "update", "quiet", "--pinned", "false", "--ttl", "7d"];
    let changed = node.json(&change);
    assert_eq!(&changed["id"], id, "it is the same collection");
    assert_eq!(changed["pinned"], false);
    assert_eq!(changed["default_ttl_ms"], 7 * 24 * 3_600_000);
    assert_eq!(changed["state_bytes_max"], 1 << 30, "what is not named stays");
    assert_eq!(metric(&node, "statehouse_state_cache_pinned_bytes"), 0);
    let hits = metric(&node, PINNED_HITS);
    read(&client, "quiet", 0..STATES / 2).await;
    assert_eq!(metric(&node, PINNED_HITS), hits, "it is one of many now");
    let never = node.json(&["collection", "update", "quiet", "--ttl", "never", "--pinned", "true"]);
    assert_eq!((&never["default_ttl_ms"], &never["pinned"]), (&0.into(), &true.into()));
    read(&client, "quiet", 0..STATES / 2).await;
    let out = node.run(&["collection", "update", "nowhere", "--pinned", "true"]);
    assert_eq!(out.status.code(), Some(4), "{out:?}");
    let out = node.run(&["collection", "update", "quiet", "--inline-max", "1GiB"]);
    assert_eq!(out.status.code(), Some(1), "{out:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_plan_shows_what_more_memory_would_do() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut house = House::new();
    house.env.push(("STATEHOUSE_STATE_CACHE_BYTES".into(), (2 * MIB).to_string()));
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    // As many small ones as it takes for one in 32 to be some.
    let states = 30_000;
    fill_with(&client, "c", states, 200).await;
    // Some states are read far more than others.
    let mut pick = || (states as f64 * random.random::<f64>().powi(4)) as usize;
    let picked: Vec<usize> = (0..100_000).map(|_| pick()).collect();
    read(&client, "c", picked.into_iter()).await;

    let plan = node.json(&["admin", "cache-plan"]);
    let part = &plan[0]["parts"][0];
    let number = |name: &str| part[name].as_f64().unwrap_or_else(|| panic!("{name} in {part}"));
    assert!((number("capacity_bytes") - 2.0 * MIB as f64).abs() < 64.0);
    let real = number("hits") / (number("hits") + number("misses"));
    let guess = number("estimated_now");
    assert!((real - guess).abs() < 0.2, "{real} hits, estimated {guess}");
    let points = part["points"].as_array().unwrap();
    let rate = |at: usize| points[at]["hit_rate"].as_f64().unwrap();
    let rates: Vec<f64> = (0..points.len()).map(rate).collect();
    assert!(rates.is_sorted(), "{rates:?}");
    let most = rates.last().unwrap();
    assert!(*most > guess + 0.05, "more memory would help: {rates:?}");
    let largest = points.last().unwrap()["bytes"].as_u64().unwrap() as usize;
    let all = states * 200;
    assert!((all..20 * all).contains(&largest), "it ends where all states fit: {rates:?}");
    let shown = node.ok(&["admin", "cache-plan"]);
    assert!(shown.contains("<- today") && shown.contains("hits so far"), "{shown}");
}

/// A stream to one node, that knows of no other.
async fn through(
    cluster: &Cluster,
    node: u64,
    request: v1::PrefetchRequest,
) -> Result<BTreeMap<String, usize>, String> {
    let endpoint = cluster.endpoint(node);
    let channel = Endpoint::from_shared(endpoint.clone()).unwrap().connect_lazy();
    let pipeline = Pipeline::open(channel, &endpoint, 4 * MIB);
    match pipeline.call(Call::Prefetch(request), Some(PATIENCE)).await {
        Ok(Answer::Prefetch(answer)) => Ok(tally(answer)),
        other => Err(format!("{other:?}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_warms_states_where_they_will_be_read() {
    let mut cluster = Cluster::of(Shape::default()).await;
    let client = cluster.client(1).await;
    create(&client, "c").await;
    fill(&client, "c", STATES).await;
    drop(client);
    // Written states are in memory wherever there is a replica: begin without.
    cluster.stop_all().await;
    for node in cluster.nodes() {
        cluster.launch(node).await;
    }
    for node in cluster.nodes() {
        cluster.ready(node).await;
    }
    cluster.whole().await;
    // Leads stay where they are from here on.
    cluster.admin_json(&["pause"]);
    let request = || prefetch("c", (0..STATES).map(key));
    assert_loaded(&through(&cluster, 1, request()).await.unwrap(), STATES);
    for node in cluster.nodes() {
        let again = through(&cluster, node, request()).await.unwrap();
        assert_eq!(again, counts([("WARMTH_IN_MEMORY", STATES)]), "by way of node {node}");
    }
    // Reads that may lag go to the replicas of the node that is asked.
    let consistency = Consistency::Bounded as i32;
    let lagging = || v1::PrefetchRequest { consistency, max_lag_ms: 10_000, ..request() };
    let (mut loaded, mut found) = (0, 0);
    for node in cluster.nodes() {
        let answer = through(&cluster, node, lagging()).await.unwrap();
        loaded += answer.get("WARMTH_LOADED").copied().unwrap_or_default();
        found += answer.get("WARMTH_IN_MEMORY").copied().unwrap_or_default();
    }
    assert_eq!(loaded + found, 3 * STATES);
    // Each state is led by one of three.
    assert!(found >= STATES && loaded > STATES / 2, "{loaded} loaded, {found} found");

    let client = cluster.client(2).await;
    let pinned = v1::CollectionSettings { pinned: true, ..Default::default() };
    create_with(&client, "pinned", pinned).await;
    await_some("every node pins the collection", async || {
        fill(&client, "pinned", 40).await;
        let plan = cluster.admin_json(&["cache-plan"]);
        let plans = plan.as_array().unwrap();
        let pins = plans.iter().filter(|node| node["parts"][1]["used_bytes"].as_u64() > Some(0));
        match pins.count() {
            3 => Ok(()),
            _ => Err(plan.to_string()),
        }
    })
    .await;
}
