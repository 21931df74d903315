//! Where most disks of a shard are nearly full, what adds to it is refused and what frees space
//! goes through: nothing that waits for space keeps a delete from making some.

use bytes::Bytes;
use statehouse_client::{Client, WriteError, v1};

use crate::harness::cluster::{Cluster, await_some};
use crate::harness::{bytes_field, create, get, http_get, put, reason};

/// Every disk is short of that much.
fn short() -> Vec<(String, String)> {
    vec![("STATEHOUSE_DISK_RESERVE_BYTES".to_owned(), i64::MAX.to_string())]
}

fn small(key: &str) -> v1::PutRequest {
    put("c", key, vec![bytes_field("f", "few")])
}

async fn delete(client: &Client, key: &str) {
    let delete = || v1::DeleteRequest {
        collection: "c".into(),
        key: key.to_owned().into(),
        ..Default::default()
    };
    // Leads may be on their way to where there is room.
    await_some("a delete goes through", async || {
        client.delete(delete()).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

async fn until_refused(client: &Client, key: &str) {
    await_some("what adds is refused", async || match client.put(small(key)).await {
        Ok(_) => Err("it was written".to_owned()),
        Err(error) if error.reason() == Some("DISK_FULL") => Ok(()),
        Err(error) => Err(error.to_string()),
    })
    .await;
}

/// Bytes of fields that a node has applied.
fn applied(cluster: &Cluster, node: u64) -> usize {
    let (_, metrics) = http_get(cluster.http(node), "/metrics");
    let name = "statehouse_payload_applied_bytes_total ";
    let figure = metrics.lines().find_map(|line| line.strip_prefix(name));
    figure.expect("it is exported").parse().expect("a number")
}

/// An upload is refused as well before any of it is taken, though the node that leads has room
/// itself.
async fn upload_is_refused(cluster: &Cluster, client: &Client) {
    await_some("node 1 leads all", async || {
        let nodes = cluster.admin_json(&["nodes"]);
        let lead = |node: &serde_json::Value| node["id"] != 1 && node["leaders"] != 0;
        match nodes.as_array().unwrap().iter().any(lead) {
            false => Ok(()),
            true => Err(nodes.to_string()),
        }
    })
    .await;
    const BYTES: usize = 4 << 20;
    let header = v1::WriteHeader {
        collection: "c".into(),
        key: "large".into(),
        fields: vec![v1::FieldHeader {
            name: "f".into(),
            bytes: BYTES as u64,
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut source = Bytes::from(vec![1; BYTES]);
    let before = applied(cluster, 1);
    let refused = client.write(header, &mut source, |_| {}).await.unwrap_err();
    let WriteError::Refused(refused) = &refused else { panic!("{refused}") };
    assert_eq!(refused.reason(), Some("DISK_FULL"), "{refused}");
    let taken = applied(cluster, 1) - before;
    assert!(taken < BYTES / 4, "{taken} bytes of it were taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_most_disks_full_deletes_go_through_and_nothing_is_added() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client(1).await;
    create(&client, "c").await;
    for n in 0..8 {
        client.put(small(&format!("{n}"))).await.unwrap();
    }
    // Two of three: whoever leads has room perhaps, and no quorum with room.
    for node in [2, 3] {
        cluster.stop(node).await;
        cluster.set_env(node, short());
        cluster.start_node(node).await;
        cluster.whole().await;
    }
    until_refused(&client, "more").await;
    upload_is_refused(&cluster, &client).await;
    for n in 0..4 {
        delete(&client, &format!("{n}")).await;
        assert_eq!(reason(client.get(get("c", &format!("{n}"))).await), "STATE_NOT_FOUND");
    }
    // All three.
    cluster.stop(1).await;
    cluster.set_env(1, short());
    cluster.start_node(1).await;
    cluster.whole().await;
    let client = cluster.client(1).await;
    until_refused(&client, "more").await;
    for n in 4..6 {
        delete(&client, &format!("{n}")).await;
    }
    client.get(get("c", "6")).await.unwrap();
    let drop = v1::DropCollectionRequest { name: "c".into() };
    client.state().drop_collection(drop).await.unwrap();
    // With room in most places again, everything goes on.
    for node in [1, 2] {
        cluster.stop(node).await;
        cluster.set_env(node, Vec::new());
        cluster.start_node(node).await;
        cluster.whole().await;
    }
    let client = cluster.client(1).await;
    await_some("a collection is made", async || {
        let request = v1::CreateCollectionRequest { name: "c".into(), ..Default::default() };
        let made = client.state().create_collection(request).await;
        made.map(|_| ()).map_err(|status| status.to_string())
    })
    .await;
    await_some("writes are taken", async || {
        client.put(small("again")).await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    cluster.level().await;
    cluster.stop_all().await;
}
