//! How old a state is said to be at a new leader: what it has applied of former terms proves
//! nothing, and neither does that they were committed. It may lack what was acknowledged last.

use futures::future::join_all;
use statehouse_cluster::NodeId;
use statehouse_cluster::raft::{Config, Role};
use statehouse_proto::v1;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use tokio::time::timeout;

use crate::played::Played;
use crate::strangers::Stranger;
use crate::support::{
    Cluster, PATIENCE, SHARD, copy_files, get, node_ids, put, until_caught_up, until_leads,
};

/// Entries that a node replays at its start.
const REPLAYED: usize = 4_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_applied_nothing_of_its_term_proves_nothing() {
    let mut cluster = Cluster::of_three().await;
    cluster.put(SHARD, "key", "value").await;
    let leader = cluster.leader(SHARD).await;
    for node in cluster.nodes() {
        until_caught_up(&node.group(SHARD), &cluster.node(leader).group(SHARD)).await;
    }
    cluster.stop_all().await;
    // It is elected, and all that it sends is heard but for its entries.
    let (one, other) = (NodeId(1), NodeId(2));
    let mut played = Vec::new();
    for node in [other, NodeId(3)] {
        played.push(Played::in_place_of(node, &cluster).await);
    }
    cluster.start(one).await;
    let group = cluster.node(one).group(SHARD);
    until_leads(&group).await;
    let mut follower = Stranger::connect(&cluster, one, other).await;
    let asked = async {
        loop {
            let before = group.status();
            let claim = v1::Claim { route: Some(follower.route), term: before.term };
            let ask = Ask::Freshness(v1::FreshnessAsk { claims: vec![claim] });
            let answer = follower.ask(ask).await;
            // Every voter confirms that it leads; that alone proves nothing of what it has.
            let read = group.linearizable().await;
            let after = group.status();
            let leads = [&before, &after].map(|status| status.role == Role::Leader);
            if leads == [true; 2] && before.term == after.term {
                return (answer, read, after);
            }
        }
    };
    let (answer, read, status) = timeout(PATIENCE, asked).await.expect("it leads for a while");
    assert!(status.applied.index > 0 && status.applied.term < status.term, "{status:?}");
    assert_eq!(answer, Answer::Freshness(v1::FreshnessAnswer { indexes: vec![0] }));
    assert!(read.is_err(), "it reads nothing either");
    assert_eq!(group.lag(), None, "nor does it say so of itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_alone_that_replays_its_log_does_not_call_itself_fresh() {
    let mut cluster = Cluster::of(1, Config::default()).await;
    let one = cluster.form(SHARD, &node_ids(1)).await;
    let group = cluster.node(one).group(SHARD);
    let keys: Vec<String> = (0..REPLAYED).map(|n| format!("key-{n}")).collect();
    let written = join_all(keys.iter().map(|key| put(&group, key, "value"))).await;
    assert!(written.iter().all(Result::is_ok));
    put(&group, "last", "value").await.unwrap();
    drop(group);
    // As its disk would be had it died now: what it has applied is in its log alone.
    let (data, copy) = (cluster.data(one), cluster.data(NodeId(99)));
    copy_files(&data, &copy);
    cluster.stop(one).await;
    std::fs::remove_dir_all(&data).unwrap();
    copy_files(&copy, &data);
    cluster.start(one).await;
    let group = cluster.node(one).group(SHARD);
    let mut asked = 0;
    let fresh = async {
        loop {
            let lag = group.lag();
            let last = get(&group, "last");
            if lag.is_some() {
                return (lag, last);
            }
            asked += 1;
            tokio::task::yield_now().await;
        }
    };
    let (lag, last) = timeout(PATIENCE, fresh).await.expect("it replays all in the end");
    assert_eq!(last.as_deref(), Some("value"), "it says that it lags by {lag:?}");
    println!("asked {asked} times before it knew");
}
