//! Calls about collections and models go to another node when the one that answered last is away.

use statehouse_client::{Client, Config};

use crate::harness::cluster::Cluster;
use crate::harness::{bank_model, create, push};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_node_is_gone_asks_another_about_collections_and_models() {
    let mut cluster = Cluster::start(3).await;
    let first = cluster.endpoints().swap_remove(0);
    let client = Client::connect(Config::any_of(cluster.endpoints())).await.unwrap();
    create(&client, "users").await;
    let pushed = push(&client, &bank_model()).await.unwrap().model.unwrap();
    for node in cluster.nodes() {
        let known = cluster.client(node).await.describe_model(&pushed.name).await.unwrap();
        assert!(known.versions[0].loaded, "asking for it loads it at node {node}");
    }
    let node = cluster.nodes().into_iter().find(|node| cluster.endpoint(*node) == first).unwrap();
    // Nothing tells the client: its next call finds nobody.
    cluster.kill(node);
    let described = client.describe_model(&pushed.name).await.unwrap();
    assert_eq!(described.versions[0].digest, pushed.versions[0].digest);
    assert_eq!(client.list_models().await.unwrap().len(), 1);
    assert_eq!(client.list_collections().await.unwrap()[0].name, "users");
    assert_eq!(client.describe_collection("users").await.unwrap().name, "users");
}
