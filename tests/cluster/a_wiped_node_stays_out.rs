//! A node that lost its disk is not who it was: started on an empty directory it is of no use to
//! its old cluster and does it no harm, and it comes back under a new id.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::harness::cluster::Cluster;
use crate::harness::seed;
use crate::harness::workload::{Load, Workload};

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_does_not_vote_and_a_new_member_takes_over() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3).await;
    let before = cluster.admin_json(&["status"]);
    let lost = random.random_range(1..=3);
    let others: Vec<u64> = (1..=3).filter(|node| *node != lost).collect();
    let load = Workload::through(&cluster, &others, Load::default(), random.random()).await;
    load.answers(300).await;
    cluster.kill(lost);
    cluster.wipe(lost);
    load.answers(100).await;
    // On the empty directory, with the same addresses as before: another cluster.
    cluster.start_node(lost).await;
    let there = cluster.admin_of(lost, &["status"]);
    assert_ne!(there["cluster_id"], before["cluster_id"], "it does not pass for who it was");
    cluster.kill(lost);
    cluster.wipe(lost);
    cluster.forget(lost);
    load.answers(100).await;

    let fresh = cluster.add().await;
    assert_eq!(fresh, 4, "an id is never used again");
    let (gone, with) = (lost.to_string(), fresh.to_string());
    cluster.admin_json(&["replace-node", &gone, "--with", &with, "--wait=60s"]);
    cluster.admin_json(&["remove-node", &gone]);
    load.answers(200).await;
    load.judge(&cluster.dir()).await;
    cluster.whole().await;
    cluster.level().await;
    let nodes = cluster.admin_json(&["nodes"]);
    let ids: Vec<u64> =
        nodes.as_array().unwrap().iter().map(|node| node["id"].as_u64().unwrap()).collect();
    assert!(ids.contains(&4) && !ids.contains(&lost), "{ids:?}");
}
