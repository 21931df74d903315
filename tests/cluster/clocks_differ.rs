//! One node of three whose wall clock is an hour off, leading or not: nothing expires early or
//! late by it, request ids are recognised, and it is shown.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::Client;
use statehouse_client::v1::{self, Consistency, edit, write_options::Expiry};

use crate::harness::cluster::{Cluster, Shape, await_some};
use crate::harness::wall_clock::WallClock;
use crate::harness::{PATIENCE, bytes_field, create, get, put, report, scale, seed};

const HOUR_MS: i64 = 3_600_000;

/// Random steps of its clock in a short run; `CLOCK_STEPS` overrides it.
const CLOCK_STEPS: u64 = 1;

/// The node whose clock is off.
const ODD: u64 = 3;

fn after(key: &str, ttl_ms: u64) -> v1::PutRequest {
    let options = v1::WriteOptions { expiry: Some(Expiry::TtlMs(ttl_ms)), ..Default::default() };
    v1::PutRequest { options: Some(options), ..put("c", key, vec![bytes_field("v", "x")]) }
}

fn append(request_id: &str) -> v1::PatchRequest {
    let append = edit::Append { field: "v".into(), data: Bytes::from("+"), max_bytes: None };
    v1::PatchRequest {
        collection: "c".into(),
        key: "counted".into(),
        edits: vec![v1::Edit { edit: Some(edit::Edit::Append(append)) }],
        options: Some(v1::WriteOptions {
            request_id: Bytes::copy_from_slice(request_id.as_bytes()),
            ..Default::default()
        }),
    }
}

async fn lead(cluster: &Cluster, node: u64) {
    await_some(&format!("node {node} leads shard 1"), async || {
        if cluster.leader(1).await == node {
            return Ok(());
        }
        let to = node.to_string();
        let out = cluster.admin(&["transfer-leader", "1", "--to", &to]);
        Err(String::from_utf8_lossy(&out.stderr).into_owned())
    })
    .await;
}

/// Waits until the leader has swept what expired after this was called.
async fn swept(client: &Client, cluster: &Cluster) {
    client.put(after("brief", 1)).await.unwrap();
    let states = || {
        let usage = cluster.admin_json(&["usage"]);
        let all = usage["collections"].as_array().unwrap();
        let found = all.iter().find(|it| it["name"] == "c");
        found.map_or(0, |it| it["holdings"]["states"].as_u64().unwrap())
    };
    let give_up = Instant::now() + PATIENCE;
    while states() != 3 {
        assert!(Instant::now() < give_up, "{} states", states());
    }
}

async fn check(cluster: &Cluster, client: &Client, leader: u64) {
    lead(cluster, leader).await;
    swept(client, cluster).await;
    for key in ["half an hour", "until"] {
        client.get(get("c", key)).await.unwrap_or_else(|e| panic!("{key} at {leader}: {e}"));
    }
    assert!(client.patch(append("once")).await.unwrap().repeated_request, "{leader} leads");
    // Every node answers a bounded read with what is there.
    for node in cluster.running() {
        let client = cluster.client(node).await;
        let bounded = v1::GetRequest {
            consistency: Consistency::Bounded as i32,
            max_lag_ms: 5_000,
            ..get("c", "half an hour")
        };
        client.get(bounded).await.unwrap_or_else(|e| panic!("at node {node}: {e}"));
    }
    // A second is a second, whoever leads.
    let written = Instant::now();
    client.put(after("second", 1_000)).await.unwrap();
    client.get(get("c", "second")).await.unwrap();
    while client.get(get("c", "second")).await.is_ok() {
        assert!(written.elapsed() < PATIENCE, "it should have expired");
    }
    assert!(written.elapsed() >= Duration::from_millis(950), "{:?}", written.elapsed());
}

async fn an_hour_off(ahead_ms: i64) {
    let mut env = vec![("STATEHOUSE_SWEEP_INTERVAL_S".to_owned(), "1".to_owned())];
    env.push(("STATEHOUSE_DEAD_AFTER_S".into(), "3600".into()));
    let shape = Shape { nodes: 3, shards: 1, env, ..Shape::default() };
    let mut cluster = Cluster::of(shape).await;
    let clock = WallClock::new(&cluster.dir(), "wall");
    let client = cluster.client(1).await;
    create(&client, "c").await;
    client.put(after("half an hour", 1_800_000)).await.unwrap();
    client.put(after("until", 1_800_000)).await.unwrap();
    client.put(put("c", "counted", vec![bytes_field("v", "x")])).await.unwrap();
    client.patch(append("once")).await.unwrap();

    // It starts with another clock, and as on a machine that has restarted.
    cluster.stop(ODD).await;
    std::fs::remove_file(cluster.data(ODD).join("clock")).unwrap();
    cluster.set_env(ODD, clock.env());
    clock.step_to(ahead_ms);
    cluster.start_node(ODD).await;
    cluster.whole().await;
    let off = ODD.to_string();
    await_some("the clock that is off is shown", async || {
        let shown = cluster.admin_json(&["status"])["clocks_off_ms"].clone();
        let ms = shown[&off].as_i64().unwrap_or(0);
        let right = (ms - ahead_ms).abs() < 60_000 && shown.as_object().unwrap().len() == 1;
        if right { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
    for leader in [ODD, 1, ODD, 2] {
        check(&cluster, &client, leader).await;
    }
    // It steps while it leads.
    lead(&cluster, ODD).await;
    clock.step_to(-ahead_ms);
    check(&cluster, &client, ODD).await;
    check(&cluster, &client, 1).await;
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let steps = scale("CLOCK_STEPS", CLOCK_STEPS);
    for _ in 0..steps {
        clock.step_to(random.random_range(-2 * HOUR_MS..=2 * HOUR_MS));
        check(&cluster, &client, random.random_range(1..=3)).await;
    }
    let figures = format!("seed {seed}, {steps} random steps within two hours");
    report(&format!("a clock {ahead_ms} ms ahead expires nothing early or late"), &figures);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_an_hour_ahead_expires_nothing_early() {
    an_hour_off(HOUR_MS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_an_hour_behind_hides_nothing_and_keeps_nothing_longer() {
    an_hour_off(-HOUR_MS).await;
}
