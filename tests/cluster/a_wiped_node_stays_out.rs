//! A node that lost its disk is not who it was: started on an empty directory it is of no use to
//! its old cluster and does it no harm, and it comes back under a new id.

use std::time::Duration;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1::state_client::StateClient;
use statehouse_client::{Client, Config, Error};
use tonic::transport::Channel;

use crate::harness::cluster::{Cluster, await_some};
use crate::harness::workload::{Load, Workload};
use crate::harness::{bytes_field, create, field_bytes, get, put, reason, seed};

/// Keys of every shard.
const KEYS: usize = 32;

/// How long a call is tried that nobody can serve.
const TRIED_FOR: Duration = Duration::from_secs(2);

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

fn keys() -> impl Iterator<Item = String> {
    (0..KEYS).map(|number| format!("key-{number}"))
}

/// Puts and gets a key through a node that forwards the calls. Returns the errors.
async fn through(mut node: StateClient<Channel>, key: String, value: &str) -> [Option<Error>; 2] {
    let mut write = tonic::Request::new(put("c", &key, vec![bytes_field("v", value.to_owned())]));
    write.set_timeout(TRIED_FOR);
    let written = node.put(write).await;
    let mut read = tonic::Request::new(get("c", &key));
    read.set_timeout(TRIED_FOR);
    let read = node.get(read).await;
    let error = |status| Error::from_status("", &status);
    [written.err().map(error), read.err().map(error)]
}

/// Puts and gets a key by a client that sends calls to who leads. Returns the errors.
async fn by(client: &Client, key: String, value: &str) -> [Option<Error>; 2] {
    let written = client.put(put("c", &key, vec![bytes_field("v", value.to_owned())])).await;
    [written.err(), client.get(get("c", &key)).await.err()]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_founded_at_a_members_address_answers_nothing_that_is_meant_for_the_old_one() {
    let mut cluster = Cluster::start(3).await;
    create(&cluster.client(1).await, "c").await;
    let lost = cluster.leader(1).await;
    let others: Vec<u64> = (1..=3).filter(|node| *node != lost).collect();
    let node = StateClient::connect(cluster.endpoint(others[0])).await.unwrap();
    let endpoints = [lost, others[0]].map(|node| cluster.endpoint(node));
    let timeout = Some(TRIED_FOR);
    let client = Client::connect(Config { timeout, ..Config::any_of(endpoints) }).await.unwrap();
    for key in keys() {
        // Both know by then who leads.
        assert!(matches!(through(node.clone(), key.clone(), "old").await, [None, None]), "{key}");
        assert!(matches!(by(&client, key.clone(), "old").await, [None, None]), "{key}");
    }
    // Nobody is elected, so whoever led is asked on and on: a cluster of one, with all it takes to
    // answer.
    cluster.kill(others[1]);
    cluster.kill(lost);
    cluster.wipe(lost);
    cluster.start_node(lost).await;
    let foreign = cluster.client(lost).await;
    create(&foreign, "c").await;
    let forwarded = join_all(keys().map(|key| through(node.clone(), key, "new"))).await;
    let sent = join_all(keys().map(|key| by(&client, key, "new"))).await;
    for error in forwarded.into_iter().chain(sent).flatten() {
        let error = error.expect("the old cluster has no quorum");
        assert_ne!(error.reason(), Some("STATE_NOT_FOUND"), "{error}");
    }
    for key in keys() {
        assert_eq!(reason(foreign.get(get("c", &key)).await), "STATE_NOT_FOUND");
    }
    // With a quorum the client gets along, though the other cluster goes on.
    cluster.start_node(others[1]).await;
    for key in keys() {
        let state = await_some("the old cluster answers", async || {
            client.get(get("c", &key)).await.map_err(|error| error.to_string())
        });
        let value = field_bytes(&state.await, "v");
        assert!(value == "old" || value == "new", "{value:?}");
    }
}
