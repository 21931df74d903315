//! A state that one replica can't read is answered by another, whatever it is asked for in and
//! through whichever node; the replica is shown as stopped until it is replaced.

use statehouse_client::v1;
use statehouse_cluster::{ShardId, ShardMap};
use statehouse_proto::v1::score_client::ScoreClient;
use statehouse_proto::v1::state_client::StateClient;
use statehouse_store::{CollectionId, ReplicaId, Store, Tamper};
use tonic::transport::Endpoint;

use crate::harness::cluster::{Cluster, Shape, await_some};
use crate::harness::{bank_model, bank_score, create, f32_field, get, http_get, push, put, report};

/// Kind of call in which a state is asked for.
#[derive(Clone, Copy, Debug)]
enum Way {
    Get,
    Batch,
    Stream,
    Peek,
    PeekBatch,
}

const WAYS: [Way; 5] = [Way::Get, Way::Batch, Way::Stream, Way::Peek, Way::PeekBatch];

/// Nodes that are asked: the one that leads, and another.
const THROUGH: [u64; 2] = [ILL, 1];

/// The node whose replicas are damaged, and which leads.
const ILL: u64 = 3;

/// Each way and node has a shard of its own: once a replica is known to be damaged, nobody asks it.
const SHARDS: u32 = (WAYS.len() * THROUGH.len()) as u32;

/// A key of a shard.
fn key_of(shard: u32) -> String {
    let map = ShardMap::even((SHARDS as u16).try_into().unwrap());
    let mut keys = (0..).map(|n| format!("k{n}"));
    keys.find(|key| map.shard_of(key.as_bytes()) == ShardId(shard as u16)).unwrap()
}

/// A way to ask one node for the state of a shard.
#[derive(Debug)]
struct Case {
    shard: u32,
    way: Way,
    through: u64,
}

fn cases() -> impl Iterator<Item = Case> {
    let all = WAYS.into_iter().flat_map(|way| THROUGH.map(|through| (way, through)));
    (1..).zip(all).map(|(shard, (way, through))| Case { shard, way, through })
}

/// Asks one node for a state; it must be there. A client would go to whoever leads by itself.
async fn ask(cluster: &Cluster, case: &Case) {
    let key = &key_of(case.shard);
    let channel = Endpoint::from_shared(cluster.endpoint(case.through)).unwrap().connect_lazy();
    let (mut states, mut scores) = (StateClient::new(channel.clone()), ScoreClient::new(channel));
    let peek = || bank_score(key, 700.0, v1::ScoreMode::Peek);
    match case.way {
        Way::Get => {
            states.get(get("accounts", key)).await.unwrap();
        }
        Way::Batch => {
            use v1::batch_get_response::item::Result;
            let (collection, keys) = ("accounts".to_owned(), vec![key.to_owned().into()]);
            let request = v1::BatchGetRequest { collection, keys, ..Default::default() };
            let items = states.batch_get(request).await.unwrap().into_inner().items;
            assert!(matches!(items[0].result, Some(Result::State(_))), "{items:?}");
        }
        Way::Stream => {
            let mut stream = states.read(get("accounts", key)).await.unwrap().into_inner();
            while stream.message().await.unwrap().is_some() {}
        }
        Way::Peek => {
            let scored = scores.score(peek()).await.unwrap().into_inner();
            assert!(!scored.from_initial_state, "{scored:?}");
        }
        Way::PeekBatch => {
            use v1::score_batch_response::item::Result;
            let request = v1::ScoreBatchRequest { scores: vec![peek()] };
            let items = scores.score_batch(request).await.unwrap().into_inner().items;
            assert!(matches!(items[0].result, Some(Result::Scored(_))), "{items:?}");
        }
    }
}

async fn lead(cluster: &Cluster, shard: u32) {
    await_some(&format!("node {ILL} leads shard {shard}"), async || {
        if cluster.leader(shard).await == ILL {
            return Ok(());
        }
        let args = ["transfer-leader", &shard.to_string(), "--to", &ILL.to_string()];
        Err(String::from_utf8_lossy(&cluster.admin(&args).stderr).into_owned())
    })
    .await;
}

/// Damages a state of each shard on a node that does not run.
fn damage(cluster: &Cluster, collection: u64, replicas: &[(u32, u64)]) {
    let store = Store::open(cluster.data(ILL), statehouse_store::Config::default()).unwrap();
    for (shard, replica) in replicas {
        let shard_of = store.shard(ReplicaId(*replica)).unwrap();
        let key = key_of(*shard);
        shard_of.tamper(CollectionId(collection), key.as_bytes(), Tamper::Cut).unwrap();
    }
    store.close().unwrap();
}

/// While nothing is moved, what is stopped stays so, and is told everywhere.
async fn is_told(cluster: &Cluster) {
    let stopped = SHARDS as usize;
    await_some("all are shown as stopped", async || {
        let status = cluster.admin_json(&["status"]);
        let shown = status["stopped"].as_array().unwrap().len() == stopped
            && status["shards_under_replicated"] == stopped
            && status["healthy"] == false;
        if shown { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    let shards = cluster.admin_json(&["shards"]);
    for shard in shards.as_array().unwrap().iter().filter(|it| it["id"] != 0) {
        let replicas = shard["replicas"].as_array().unwrap();
        let ill = replicas.iter().find(|it| it["node"] == ILL).unwrap();
        assert_eq!(ill["role"], "stopped", "{shard}");
        assert!(ill["reason"].as_str().unwrap().contains("state"), "{shard}");
    }
    let (code, body) = http_get(cluster.http(ILL), "/readyz");
    assert_eq!(code, 200, "others serve what it can't: {body}");
    assert_eq!(body.matches("not ready for shard ").count(), stopped, "{body}");
    assert_eq!(body.matches("others rebuild it").count(), stopped, "{body}");
    let (_, metrics) = http_get(cluster.http(ILL), "/metrics");
    assert!(metrics.contains(&format!("statehouse_replicas_stopped {stopped}\n")), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_a_leader_can_not_read_is_answered_by_another_in_every_way() {
    // A scrub would find it before anybody asks.
    let env = vec![("STATEHOUSE_SCRUB_INTERVAL_S".to_owned(), "0".to_owned())];
    let mut cluster = Cluster::of(Shape { shards: SHARDS, env, ..Shape::default() }).await;
    let client = cluster.client(1).await;
    let collection = create(&client, "accounts").await.id;
    push(&client, &bank_model()).await.unwrap();
    for Case { shard, .. } in cases() {
        let fields = vec![f32_field("h", &[64], &[0.5; 64])];
        client.put(put("accounts", &key_of(shard), fields)).await.unwrap();
    }
    cluster.level().await;
    let shards = cluster.shards().await.unwrap();
    let of_ill = |shard: &v1::Shard| {
        let found = shard.replicas.iter().find(|replica| replica.node == ILL).unwrap();
        (shard.id, found.id)
    };
    let replicas: Vec<_> = shards.iter().filter(|shard| shard.id != 0).map(of_ill).collect();
    cluster.stop(ILL).await;
    damage(&cluster, collection, &replicas);
    cluster.start_node(ILL).await;
    cluster.whole().await;
    for Case { shard, .. } in cases() {
        lead(&cluster, shard).await;
    }
    cluster.admin_json(&["pause"]);
    for case in cases() {
        lead(&cluster, case.shard).await;
        println!("{case:?}");
        ask(&cluster, &case).await;
    }
    is_told(&cluster).await;
    cluster.admin_json(&["resume"]);
    cluster.whole().await;
    let (_, metrics) = http_get(cluster.http(ILL), "/metrics");
    assert!(metrics.contains("statehouse_replicas_stopped 0\n"), "{metrics}");
    for case in cases() {
        ask(&cluster, &case).await;
    }
    report("damaged states are answered elsewhere", &format!("{SHARDS} shards"));
}
