//! Any node of a cluster may be killed with -9 at any time: every write that was acknowledged
//! stays, every answer fits one order of all operations, and the replicas are the same in the
//! end.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1;

use crate::harness::cluster::{Cluster, await_some};
use crate::harness::workload::{COLLECTION, Load, Workload};
use crate::harness::{report, scale, seed};

/// Kills of a short run; `KILLS` overrides it.
const KILLS: u64 = 8;

/// Answers between two events.
const ANSWERS: std::ops::Range<u64> = 100..700;

#[tokio::test(flavor = "multi_thread")]
async fn killed_nodes_lose_nothing_and_the_history_is_linearizable() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3).await;
    let load = Workload::start(&cluster, Load::default(), random.random()).await;
    let kills = scale("KILLS", KILLS);
    for _ in 0..kills {
        load.answers(random.random_range(ANSWERS)).await;
        let victim = random.random_range(1..=3);
        cluster.kill(victim);
        // Two of three go on.
        load.answers(random.random_range(ANSWERS)).await;
        cluster.start_node(victim).await;
    }
    load.answers(500).await;
    let verdict = load.judge(&cluster.dir()).await;
    assert!(verdict.acknowledged > kills as usize * 50, "there was something to lose");
    cluster.whole().await;
    cluster.level().await;
    same_everywhere(&cluster).await;
    report("no acknowledged write is lost", &format!("seed {seed}, {kills} kills, {verdict}"));
}

/// Reads every key from each node's own replica.
async fn same_everywhere(cluster: &Cluster) {
    await_some("every node has the same states", async || {
        let mut first: Option<BTreeMap<String, Option<v1::StoredState>>> = None;
        for node in cluster.running() {
            let client = cluster.client(node).await;
            let mut states = BTreeMap::new();
            for key in 0..Load::default().keys {
                let key = format!("key-{key}");
                let request = v1::GetRequest {
                    collection: COLLECTION.to_owned(),
                    key: key.clone().into(),
                    consistency: v1::Consistency::Bounded as i32,
                    max_lag_ms: 60_000,
                    ..Default::default()
                };
                let found = client.state().get(request).await;
                let state = match found {
                    Ok(found) => found.into_inner().state,
                    Err(status) if status.code() == tonic::Code::NotFound => None,
                    Err(status) => return Err(format!("node {node}: {status}")),
                };
                states.insert(key, state);
            }
            match &first {
                None => first = Some(states),
                Some(first) if *first == states => {}
                Some(_) => return Err(format!("node {node} has other states")),
            }
        }
        Ok(())
    })
    .await;
}
