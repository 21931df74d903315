//! Any node says how much the cluster holds, whoever leads and whoever is down; what its nodes
//! have noted comes together.

use serde_json::Value as Json;

use crate::harness::cluster::{Cluster, Shape};
use crate::harness::{bytes_field, create, put};

const STATES: u64 = 60;
const BYTES: u64 = 50_000;

fn figures(holdings: &Json) -> (u64, u64) {
    (holdings["states"].as_u64().unwrap(), holdings["state_bytes"].as_u64().unwrap())
}

fn numbers<'a>(usage: &'a Json, all: &str, name: &'a str) -> Vec<&'a Json> {
    usage[all].as_array().unwrap().iter().map(|it| &it[name]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_tells_the_same_and_one_that_is_down_is_named() {
    let limit = ("STATEHOUSE_LARGE_REQUEST_BYTES".to_owned(), "40000".to_owned());
    let mut cluster = Cluster::of(Shape { env: vec![limit], ..Shape::default() }).await;
    create(&cluster.client(1).await, "c").await;
    for n in 0..STATES {
        // Through all nodes: most are forwarded, and noted once all the same.
        let client = cluster.client(n % 3 + 1).await;
        let fields = vec![bytes_field("v", vec![n as u8; (BYTES + n) as usize])];
        client.state().put(put("c", &format!("k{n}"), fields)).await.unwrap();
    }
    cluster.level().await;
    let expected = (STATES, STATES * BYTES + STATES * (STATES - 1) / 2);
    let usage = ["usage", "--collection", "c", "--largest", "100"];
    for node in 1..=3 {
        let said = cluster.admin_of(node, &usage);
        assert_eq!(figures(&said["total"]), expected, "node {node}");
        assert_eq!(said["largest"].as_array().unwrap().len() as u64, STATES);
        for holdings in numbers(&said, "nodes", "holdings") {
            assert_eq!(figures(holdings), expected, "each node has a replica of each shard");
        }
        let leads = numbers(&said, "shards", "leads");
        assert!(leads.iter().all(|leads| **leads == true), "{leads:?}");
    }
    let noted = cluster.admin_json(&["large-requests", "--limit", "0"]);
    let noted = noted.as_array().unwrap();
    assert_eq!(noted.len() as u64, STATES);
    for node in 1..=3 {
        let here = noted.iter().filter(|it| it["node"] == node).count() as u64;
        assert_eq!(here, STATES / 3, "by the node that its caller spoke to");
    }

    cluster.kill(2);
    for shard in 0..=4 {
        cluster.leader(shard).await;
    }
    let said = cluster.admin_of(3, &usage);
    assert_eq!(figures(&said["total"]), expected);
    let answers: Vec<bool> =
        numbers(&said, "nodes", "answers").iter().map(|it| it.as_bool().unwrap()).collect();
    assert_eq!(answers, [true, false, true]);
    cluster.start_node(2).await;
    cluster.whole().await;
    cluster.level().await;
    let said = cluster.admin_of(2, &usage);
    assert_eq!(figures(&said["nodes"][1]["holdings"]), expected, "after a crash as before");
}
