//! Who accepts connections and never answers keeps nobody waiting: each question, each change of
//! members and each wait for an entry ends in time, with an error that says what may have happened.

use std::time::Duration;

use statehouse_cluster::control::{Change, Control, Wanted};
use statehouse_cluster::raft::Config;
use statehouse_cluster::{Addresses, Error, NodeId};
use statehouse_proto::v1;
use statehouse_proto::v1::appended::Result as Appended;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use statehouse_store::{EntryId, ReplicaId};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::played::Played;
use crate::strangers::Stranger;
use crate::support::{
    Cluster, SHARD, eventually, node_ids, put_command, replica_of, until_caught_up,
};

/// Longer than the longest wait for an answer.
const IN_TIME: Duration = Duration::from_secs(15);

const SILENT: NodeId = NodeId(9);

async fn ends<T>(what: &str, asked: impl Future<Output = Result<T, Error>>) -> Error {
    let outcome = timeout(IN_TIME, asked).await;
    let outcome = outcome.unwrap_or_else(|_| panic!("{what}: no end within {IN_TIME:?}"));
    outcome.err().unwrap_or_else(|| panic!("{what}: nobody can have answered"))
}

async fn is_unreachable<T>(what: &str, asked: impl Future<Output = Result<T, Error>>) {
    let error = ends(what, asked).await;
    assert!(matches!(error, Error::Unreachable { node: SILENT, .. }), "{what}: {error}");
}

/// Takes every connection, and says nothing on it.
async fn silent_listener() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let taking = tokio::spawn(async move {
        let mut taken = Vec::new();
        while let Ok(connection) = listener.accept().await {
            taken.push(connection);
        }
    });
    (address, taking)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_asked_of_a_node_that_never_answers_ends_in_time() {
    let cluster = Cluster::of(1, Config::default()).await;
    let node = cluster.node(NodeId(1));
    let (address, taking) = silent_listener().await;
    node.peers.set_addresses([(SILENT, address)].into());
    let control = Control::new(node.groups.clone());
    let (replica, at) = (ReplicaId(77), EntryId::default());
    let here = Addresses { client: "127.0.0.1:1".into(), peer: "127.0.0.1:2".into() };
    let wanted = Wanted { collection: None, largest: 1 };
    let change = |change| control.change(SILENT, SHARD, change);
    let remove = Change::Voters { add: Vec::new(), remove: vec![replica] };
    let proposed = ends("propose", control.propose(SILENT, SHARD, put_command("key", "value")));
    let (proposed, ..) = tokio::join!(
        proposed,
        is_unreachable("create", control.create(SILENT, SHARD, replica)),
        is_unreachable("destroy", control.destroy(SILENT, SHARD, (replica, at))),
        is_unreachable("add", change(Change::AddLearner { replica, node: SILENT })),
        is_unreachable("let go", change(Change::RemoveLearner { replica })),
        is_unreachable("change", change(remove)),
        is_unreachable("lead", change(Change::Lead { replica })),
        is_unreachable("announce", control.announce(SILENT, &here)),
        is_unreachable("report", control.report(SILENT, true)),
        is_unreachable("sums", control.sums(SILENT)),
        is_unreachable("cache plan", control.cache_plan(SILENT)),
        is_unreachable("damage", control.report_damage(SILENT, replica, "a test")),
        is_unreachable("usage", control.usage(SILENT, wanted)),
    );
    // It may have got the command, and done it.
    assert!(matches!(proposed, Error::OutcomeUnknown { .. }), "{proposed}");
    taking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_leader_answers_no_question_says_so_in_time() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader(SHARD).await;
    for node in cluster.nodes() {
        until_caught_up(&node.group(SHARD), &cluster.node(leader).group(SHARD)).await;
    }
    let (one, other) = (NodeId(1), NodeId(2));
    let mut played = Vec::new();
    for node in [other, NodeId(3)] {
        cluster.stop(node).await;
        played.push(Played::in_place_of(node, &cluster).await);
    }
    let group = cluster.node(one).group(SHARD);
    let mut leads = Stranger::connect(&cluster, one, other).await;
    // A term that no election has come to yet.
    let term = group.status().term + 1_000;
    let vote = Some(v1::RaftVote { term, replica: replica_of(SHARD, other).0, committed: true });
    let beat = v1::Heartbeat { vote, previous: None, committed: None };
    let heard = leads.ask(Ask::Heartbeat(beat)).await;
    let Answer::Heartbeat(v1::Appended { result: Some(Appended::Matched(_)) }) = heard else {
        panic!("it follows: {heard:?}");
    };
    eventually(|| group.leader().is_some_and(|leader| leader.node == other)).await;
    let error = ends("catch up", group.catch_up()).await;
    assert!(matches!(error, Error::Unreachable { node, .. } if node == other), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_members_that_no_quorum_takes_ends_as_unknown() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader(SHARD).await;
    let node = cluster.node(leader);
    for other in node_ids(3).into_iter().filter(|other| *other != leader) {
        node.peers.cut(other);
    }
    let change = Change::AddLearner { replica: ReplicaId(77), node: NodeId(4) };
    let control = Control::new(node.groups.clone());
    let error = ends("add", control.change(leader, SHARD, change)).await;
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_an_entry_that_does_not_come_ends_in_time() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader(SHARD).await;
    let group = cluster.node(NodeId(leader.0 % 3 + 1)).group(SHARD);
    let never = group.status().applied.index + 1_000;
    let error = ends("wait", group.wait_applied(never)).await;
    assert!(matches!(error, Error::Closed { .. }), "another replica has to serve: {error}");
}
