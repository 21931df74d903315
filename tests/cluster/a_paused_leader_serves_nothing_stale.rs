//! A leader that stands still for a while, and is replaced meanwhile, does not answer from the
//! past when it goes on: not to requests that it got before, while it stood, or after.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::harness::cluster::{Cluster, await_some};
use crate::harness::workload::{Load, Workload};
use crate::harness::{report, scale, seed};

/// Pauses of a short run; `PAUSES` overrides it.
const PAUSES: u64 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stood_still_is_not_believed() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3).await;
    // Few keys, read all the time: a stale answer would be seen.
    let load = Load { keys: 8, ..Load::default() };
    let load = Workload::start(&cluster, load, random.random()).await;
    let mut replaced = 0;
    for _ in 0..scale("PAUSES", PAUSES) {
        load.answers(random.random_range(50..300)).await;
        let shard = random.random_range(1..=4);
        let leader = cluster.leader(shard).await;
        cluster.pause(leader);
        // Until somebody else leads, and writes were acknowledged that the old leader missed.
        // Requests that it holds are still waited for by their clients then.
        let new_leader = cluster.leader(shard).await;
        assert_ne!(new_leader, leader);
        replaced += 1;
        load.answers(random.random_range(5..40)).await;
        cluster.resume(leader);
        load.answers(random.random_range(50..300)).await;
        await_some("the one that stood still is back", async || {
            let shards = cluster.shards().await?;
            let missing = shards.iter().flat_map(|shard| &shard.replicas).any(|replica| {
                replica.node == leader
                    && replica.role == statehouse_client::v1::ReplicaRole::Missing as i32
            });
            if missing { Err(format!("node {leader} is missing")) } else { Ok(()) }
        })
        .await;
    }
    assert!(replaced > 0);
    let verdict = load.judge(&cluster.dir()).await;
    assert!(verdict.looks > 500, "it was read meanwhile");
    cluster.whole().await;
    report("a paused leader", &format!("seed {seed}, {replaced} pauses, {verdict}"));
}
