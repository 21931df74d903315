//! A node whose disk is nearly full refuses writes, so others lead what it led: the cluster goes on
//! taking every write, and the node leads again once there is space.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::harness::cluster::{Cluster, await_some};
use crate::harness::workload::{Load, Workload};
use crate::harness::{report, seed};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_short_of_disk_space_gives_its_leads_away() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3).await;
    let load = Workload::start(&cluster, Load::default(), random.random()).await;
    load.answers(100).await;
    // The node that leads shard 0 too, which must go on being written.
    let full = cluster.leader(0).await;
    cluster.stop(full).await;
    let reserve = ("STATEHOUSE_DISK_RESERVE_BYTES".to_owned(), i64::MAX.to_string());
    cluster.set_env(full, vec![reserve]);
    cluster.start_node(full).await;
    await_some("a lead is refused to it", async || {
        let lead_to_it = cluster.admin(&["transfer-leader", "1", "--to", &full.to_string()]);
        let said = String::from_utf8_lossy(&lead_to_it.stderr);
        // The controller may not have heard of its disk yet.
        if said.contains("short of disk space") { Ok(()) } else { Err(said.into_owned()) }
    })
    .await;
    until_it(&cluster, full, |node| node["disk_short"] == true && node["leaders"] == 0).await;
    let before = load.errors().get("DISK_FULL").copied().unwrap_or(0);
    load.answers(500).await;
    let after = load.errors().get("DISK_FULL").copied().unwrap_or(0);
    assert_eq!(before, after, "others lead, and have space");
    cluster.stop(full).await;
    let last_heard = format!("node {full} is silent, and was short of disk space");
    await_some("the others say how they heard it last", async || {
        let status = cluster.admin_json(&["status"]);
        match status["disk_ills"].to_string().contains(&last_heard) {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    })
    .await;
    cluster.set_env(full, Vec::new());
    cluster.start_node(full).await;
    until_it(&cluster, full, |node| node["leaders"].as_u64() > Some(0)).await;
    cluster.whole().await;
    let verdict = load.judge(&cluster.dir()).await;
    cluster.level().await;
    report("a full disk", &format!("seed {seed}, node {full}, {verdict}"));
}

/// Waits until a node is shown as it should be.
async fn until_it(cluster: &Cluster, node: u64, is: impl Fn(&serde_json::Value) -> bool) {
    await_some("the node is as it should be", async || {
        let nodes = cluster.admin_json(&["nodes"]);
        let shown = nodes.as_array().unwrap().iter().find(|it| it["id"] == node);
        match shown {
            Some(shown) if is(shown) => Ok(()),
            shown => Err(format!("{shown:?}")),
        }
    })
    .await;
}
