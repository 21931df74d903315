//! A replica that has applied the same entries as the others and holds something else is found, and
//! rebuilt.

use std::time::Duration;

use statehouse_client::v1;
use statehouse_store::{CollectionId, ReplicaId, Store, Tamper};

use crate::harness::cluster::{Cluster, Shape};
use crate::harness::condition::await_some_for;
use crate::harness::{bytes_field, create, field_bytes, get, put, report};

const FOUND_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_state_differs_is_quarantined_and_rebuilt() {
    let every = ("STATEHOUSE_HASH_CHECK_INTERVAL_S".to_owned(), "1".to_owned());
    let shape = Shape { shards: 1, env: vec![every], ..Shape::default() };
    let mut cluster = Cluster::of(shape).await;
    let client = cluster.client(1).await;
    let collection = CollectionId(create(&client, "c").await.id);
    client.put(put("c", "a", vec![bytes_field("f", "good")])).await.unwrap();
    cluster.level().await;
    let leader = cluster.leader(1).await;
    let ill = leader % 3 + 1;
    let old = replica_on(&cluster, ill).await.unwrap();
    cluster.stop(ill).await;
    let store = Store::open(cluster.data(ill), statehouse_store::Config::default()).unwrap();
    let shard = store.shard(ReplicaId(old)).unwrap();
    // With all checksums right, as by a bit of memory that turned while the row was made.
    shard.tamper(collection, b"a", Tamper::Replace("bad!".into())).unwrap();
    drop(shard);
    store.close().unwrap();
    drop(store);
    cluster.start_node(ill).await;
    cluster.whole().await;

    // What it holds goes on into what it writes.
    let append = v1::edit::Append { field: "f".to_owned(), data: "+".into(), max_bytes: None };
    let edit = v1::Edit { edit: Some(v1::edit::Edit::Append(append)) };
    let patch = v1::PatchRequest {
        collection: "c".to_owned(),
        key: "a".into(),
        edits: vec![edit],
        ..Default::default()
    };
    client.patch(patch).await.unwrap();
    await_some_for(FOUND_WITHIN, "the replica is another one", async || {
        match replica_on(&cluster, ill).await {
            Ok(replica) if replica != old => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
    cluster.whole().await;
    assert!(cluster.log_says(leader, "differs from the others"), "an audit line names it");
    cluster.level().await;
    cluster.admin_json(&["transfer-leader", "1", "--to", &ill.to_string()]);
    let state = client.get(get("c", "a")).await.unwrap();
    assert_eq!(field_bytes(&state, "f"), "good+");
    report("divergence", &format!("node {ill}: replica {old} was found and replaced"));
}

/// The replica of shard 1 on a node, if it votes and is the only one there.
async fn replica_on(cluster: &Cluster, node: u64) -> Result<u64, String> {
    let shards = cluster.shards().await?;
    let shard = shards.into_iter().find(|shard| shard.id == 1).ok_or("no shard 1")?;
    let here: Vec<&v1::Replica> = shard.replicas.iter().filter(|it| it.node == node).collect();
    match here[..] {
        [replica] if replica.role != v1::ReplicaRole::Learner as i32 => Ok(replica.id),
        _ => Err(format!("{shard:?}")),
    }
}
