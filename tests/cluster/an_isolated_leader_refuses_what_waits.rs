//! A leader that is cut off from all others answers those who wait: what it has not proposed did
//! not happen, and of what it has nobody knows. It does not let them wait for as long as the
//! network is cut, and neither do calls that come later.

use std::time::Duration;

use futures::future::join_all;
use statehouse_client::v1::{self, state_client::StateClient};
use statehouse_client::{Error, HOP};
use tokio::time::{Instant, timeout};
use tonic::transport::Endpoint;

use crate::harness::cluster::{Cluster, Shape, await_some};
use crate::harness::{bytes_field, create, get, put};

/// Within about a second it knows, and answers; the rest is for a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// Writes at a time: the first becomes an entry, the others wait behind it.
const WRITES: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn writes_at_an_isolated_leader_are_refused_and_do_not_wait_for_the_network() {
    let shape = Shape { shards: 1, proxied: true, ..Shape::default() };
    let cluster = Cluster::of(shape).await;
    let client = cluster.client(1).await;
    create(&client, "ledger").await;
    let leader = cluster.leader(1).await;
    let channel = Endpoint::from_shared(cluster.endpoint(leader)).unwrap().connect().await.unwrap();
    let state = StateClient::new(channel);
    // What is not forwarded, since there is nobody to forward to.
    let write = async |key: String| {
        let mut request =
            tonic::Request::new(put("ledger", &key, vec![bytes_field("v", key.clone())]));
        request.metadata_mut().insert(HOP, "1".parse().unwrap());
        let answer = timeout(ANSWER_MAX, state.clone().put(request)).await;
        let answer = answer.unwrap_or_else(|_| panic!("{key} waits for the network"));
        answer.map_err(|status| Error::from_status("", &status))
    };
    write("before".to_owned()).await.unwrap();

    for other in (1..=3).filter(|node| *node != leader) {
        cluster.proxies().cut(leader, other);
    }
    let cut = Instant::now();
    let outcomes = join_all((0..WRITES).map(|n| write(format!("key-{n}")))).await;
    let mut refused = Vec::new();
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let error = outcome.expect_err("no quorum can have it");
        match error.reason() {
            Some("NOT_LEADER") => refused.push(format!("key-{n}")),
            Some("OUTCOME_UNKNOWN") => {}
            _ => panic!("key-{n}: {error}"),
        }
    }
    println!("{} of {WRITES} refused, all answered in {:?}", refused.len(), cut.elapsed());
    assert!(!refused.is_empty() && refused.len() < WRITES, "{refused:?}");
    let late = write("late".to_owned()).await.expect_err("it leads nothing");
    assert_eq!(late.reason(), Some("NOT_LEADER"), "{late}");
    refused.push("late".to_owned());
    cluster.proxies().heal();

    cluster.whole().await;
    await_some("writes go on", async || {
        let request = put("ledger", "after", vec![bytes_field("v", "after")]);
        client.put(request).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    for key in refused {
        let found = client.get(v1::GetRequest { ..get("ledger", &key) }).await;
        let error = found.expect_err("it was said not to have happened");
        assert_eq!(error.reason(), Some("STATE_NOT_FOUND"), "{key}: {error}");
    }
}
