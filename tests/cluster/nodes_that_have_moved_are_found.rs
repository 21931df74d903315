//! A node finds the others though none of them is where it was when this node was made: it writes
//! down where they are, and needs no replica of shard 0 to read it.

use crate::a_failed_replica_is_replaced::{quarantine, replaced, voters};
use crate::harness::cluster::{Cluster, Shape, await_some};
use crate::harness::{bytes_field, create, field_bytes, get, put, report};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_knows_old_addresses_alone_finds_those_that_have_moved() {
    let mut cluster = Cluster::of(Shape { shards: 1, ..Shape::default() }).await;
    let client = cluster.client(3).await;
    create(&client, "c").await;
    client.put(put("c", "a", vec![bytes_field("f", "1")])).await.unwrap();
    // All that node 3 was told when it was made is of the past then.
    for node in [1, 2] {
        cluster.stop(node).await;
        cluster.relocate(node);
        cluster.start_node(node).await;
        cluster.whole().await;
    }
    let wanted = [1, 2].map(|node| cluster.peer(node).to_string());
    await_some("node 3 has written down where the others are", async || {
        let facts = std::fs::read(cluster.data(3).join("facts")).unwrap();
        let facts = String::from_utf8_lossy(&facts).into_owned();
        let known = wanted.iter().all(|address| facts.contains(address));
        if known { Ok(()) } else { Err(facts) }
    })
    .await;
    // Nobody knows where it is next, and it has no replica to learn from.
    cluster.level().await;
    let old = voters(&cluster, 0).await[&3];
    cluster.stop(3).await;
    quarantine(&cluster.data(3), old);
    cluster.relocate(3);
    cluster.start_node(3).await;
    let new = replaced(&cluster, (0, 3), old).await;
    cluster.kill(1);
    let client = cluster.client(3).await;
    let state = client.get(get("c", "a")).await.unwrap();
    assert_eq!(field_bytes(&state, "f"), "1", "it serves with the other one");
    report("nodes that have moved", &format!("found, and replica {old} replaced by {new}"));
}
