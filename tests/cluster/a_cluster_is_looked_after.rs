//! `statehouse admin` shows a cluster as it is, refuses what must not be, and moves things.

use crate::harness::cluster::{Cluster, Shape};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_shown_and_changed_from_the_command_line() {
    let mut cluster = Cluster::start(3).await;
    let status = cluster.admin_json(&["status", "--wait=60s"]);
    assert_eq!(status["healthy"], true, "{status}");
    assert_eq!((status["nodes_alive"].as_u64(), status["shards"].as_u64()), (Some(3), Some(4)));
    let nodes = cluster.admin_json(&["nodes"]);
    assert_eq!(nodes.as_array().unwrap().len(), 3);
    let shards = cluster.admin_json(&["shards"]);
    assert_eq!(shards.as_array().unwrap().len(), 5, "shard 0 too");
    let text = String::from_utf8(cluster.admin(&["shards", "1", "2"]).stdout).unwrap();
    assert!(text.lines().count() > 4 && text.contains('*'), "{text}");

    // The lead goes where it is told.
    let leader = shards[2]["leader"].as_u64().unwrap();
    let other = (1..=3).find(|node| *node != leader).unwrap();
    let to = other.to_string();
    let moved = cluster.admin_json(&["transfer-leader", "2", "--to", &to]);
    assert_eq!(moved["leader"], other);

    // A fourth node gets a replica by a task that is waited for.
    let fourth = cluster.add().await.to_string();
    let from = leader.to_string();
    let task =
        cluster.admin_json(&["move-shard", "2", "--from", &from, "--to", &fourth, "--wait=60s"]);
    assert_eq!((task["state"].as_str(), task["shard"].as_u64()), (Some("done"), Some(2)));
    let shard = cluster.admin_json(&["shards", "2"]);
    let on: Vec<u64> = shard[0]["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|replica| replica["node"].as_u64().unwrap())
        .collect();
    assert!(on.contains(&4) && !on.contains(&leader), "{shard}");
    let id = task["id"].to_string();
    assert_eq!(cluster.admin_json(&["task", &id])["state"], "done");
    assert!(cluster.admin_json(&["tasks", "--all"]).to_string().contains(&format!("\"id\":{id}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_is_refused_and_says_why() {
    let mut cluster = Cluster::of(Shape { shards: 2, ..Shape::default() }).await;
    for (args, code) in [
        (&["move-shard", "1", "--from", "1", "--to", "1"][..], 5),
        (&["move-shard", "1", "--from", "1", "--to", "2"], 5),
        (&["move-shard", "77", "--from", "1", "--to", "2"], 4),
        (&["remove-node", "1"], 5),
        (&["drain", "77"], 4),
        (&["task", "77"], 4),
        (&["cancel", "77"], 4),
        (&["transfer-leader", "1", "--to", "77"], 4),
        (&["move-shard", "1"], 2),
        (&["status", "--watch", "--wait"], 2),
    ] {
        let out = cluster.admin(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains("error: "), "{args:?}: {said}");
    }
    // Paused, nothing is planned; and a dead node is shown as one.
    assert_eq!(cluster.admin_json(&["pause"])["paused"], true);
    assert_eq!(cluster.admin_json(&["resume"])["paused"], false);
    cluster.kill(1);
    let nodes = cluster.admin_anywhere(&["nodes", "--json"]);
    assert!(nodes.status.success(), "the first of three does not answer, the second does");
    let waited = cluster.admin(&["status", "--wait=3s"]);
    let said = String::from_utf8_lossy(&waited.stderr);
    assert_eq!(waited.status.code(), Some(6), "{said}");
    assert!(said.contains("1 node silent"), "{said}");
}
