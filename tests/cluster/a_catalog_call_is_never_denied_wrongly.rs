//! A change of the catalog whose answer got lost is not answered as one that did not happen: what
//! is said not to have happened never does.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1;
use statehouse_client::{Client, Config, Error};

use crate::harness::cluster::{Cluster, Shape, await_some};
use crate::harness::{PATIENCE, scale, seed};

/// Times that most of the cluster stands still in a short run; `CATALOG_PAUSES` overrides it.
const CATALOG_PAUSES: u64 = 2;

/// Calls made before, one after the other, so that one of them is under way at the pause.
const CALLS: std::ops::Range<u64> = 3..20;

fn request(name: &str, if_not_exists: bool) -> v1::CreateCollectionRequest {
    v1::CreateCollectionRequest { name: name.to_owned(), settings: None, if_not_exists }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_catalog_call_says_did_not_happen_never_does() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::of(Shape { shards: 1, ..Shape::default() }).await;
    let mut denied = Vec::new();
    let mut unknown = Vec::new();
    for pause in 0..scale("CATALOG_PAUSES", CATALOG_PAUSES) {
        let leader = cluster.leader(0).await;
        let through = leader % 3 + 1;
        let config = Config { timeout: Some(PATIENCE), ..Config::new(cluster.endpoint(through)) };
        let client = Client::connect(config).await.unwrap();
        let calls = random.random_range(CALLS);
        let caller = tokio::spawn(async move {
            let mut outcomes = Vec::new();
            for call in 0..u64::MAX {
                let name = format!("pause-{pause}-call-{call}");
                let outcome = client.create_collection(request(&name, false)).await;
                let failed = outcome.is_err();
                outcomes.push((name, outcome.map(drop)));
                if failed {
                    break;
                }
            }
            outcomes
        });
        await_some("calls go through", async || {
            let names = collections(&cluster.client(leader).await).await?;
            let prefix = format!("pause-{pause}-");
            let made = names.iter().filter(|name| name.starts_with(&prefix)).count() as u64;
            if made >= calls { Ok(()) } else { Err(format!("{made} of {calls}")) }
        })
        .await;
        let still: Vec<u64> = (1..=3).filter(|node| *node != through).collect();
        for node in &still {
            cluster.pause(*node);
        }
        // The call under way, or the next, ends when its node has lost patience.
        let outcomes = caller.await.unwrap();
        for node in &still {
            cluster.resume(*node);
        }
        let (name, last) = outcomes.into_iter().last().unwrap();
        let error = last.expect_err("the loop ends with a failure");
        match error.reason() {
            Some("OUTCOME_UNKNOWN") => unknown.push(name),
            Some("UNAVAILABLE" | "NOT_LEADER") => denied.push(name),
            // The call's own time was up: nothing is said of what became of it.
            _ if matches!(error, Error::Unreachable { .. }) => unknown.push(name),
            _ => panic!("{name}: {error}"),
        }
        cluster.whole().await;
    }
    println!("{} denied, {} of unknown outcome", denied.len(), unknown.len());
    // Whatever may still have been on its way is there once this is.
    let client = cluster.client(1).await;
    for name in &unknown {
        await_some("a repeat settles it", async || {
            let repeat = client.create_collection(request(name, true)).await;
            repeat.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
    let there = collections(&client).await.unwrap();
    for name in &denied {
        assert!(!there.contains(name), "{name} was said not to have been created");
    }
}

/// The names of all collections.
async fn collections(client: &Client) -> Result<Vec<String>, String> {
    let listed = client.state().list_collections(v1::ListCollectionsRequest {}).await;
    let listed = listed.map_err(|status| status.to_string())?.into_inner();
    Ok(listed.collections.into_iter().map(|it| it.name).collect())
}
