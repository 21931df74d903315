//! Replicas that fail: who stops, who goes on, who may be destroyed.

use std::time::Duration;

use statehouse_cluster::raft::{Config, Role};
use statehouse_cluster::{Error, MembersProblem, NodeId};
use statehouse_store::{ReplicaId, Tamper};
use tokio::time::timeout;

use crate::support::{
    Cluster, PATIENCE, SHARD, USERS, eventually, get, node_ids, put, replica_of, steady, until,
    until_caught_up,
};

/// Waits until a node has a replica in quarantine; answers it.
async fn stopped(cluster: &Cluster, node: NodeId) -> statehouse_cluster::raft::Stopped {
    let groups = &cluster.node(node).groups;
    eventually(|| groups.stopped().iter().any(|it| it.quarantined)).await;
    assert!(groups.get(SHARD).is_none(), "it is out of service");
    groups.stopped().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_leader_hands_over_and_never_takes_part_again_under_its_id() {
    let mut cluster = Cluster::of_three().await;
    cluster.put(SHARD, "key", "before").await;
    let leader = cluster.leader(SHARD).await;
    let group = cluster.node(leader).group(SHARD);
    group.report_damage("corrupt block").await;
    assert!(group.has_failed() && !group.leads() && group.lag().is_none());
    assert!(group.linearizable().await.is_err(), "it serves nothing");
    let out = stopped(&cluster, leader).await;
    assert_eq!((out.shard, out.replica), (SHARD, replica_of(SHARD, leader)));
    assert!(out.reason.contains("corrupt block"), "{}", out.reason);
    cluster.put(SHARD, "key", "after").await;
    drop(group);

    cluster.stop(leader).await;
    cluster.start(leader).await;
    assert!(cluster.node(leader).groups.get(SHARD).is_none(), "a restart changes nothing");
    let again = stopped(&cluster, leader).await;
    assert_eq!((again.replica, again.reason), (out.replica, out.reason));
    let refused = cluster.node(leader).groups.create(SHARD, out.replica).await;
    assert!(refused.err().unwrap().to_string().contains("used already"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_database_is_lost_is_never_made_again_under_its_id() {
    let mut cluster = Cluster::of_three().await;
    cluster.put(SHARD, "key", "value").await;
    let ill = NodeId(cluster.leader(SHARD).await.0 % 3 + 1);
    let node = cluster.take(ill);
    let dir = node.dir.clone();
    node.stop().await;
    std::fs::write(dir.join("damage-policy"), "quarantine\n").unwrap();
    for file in std::fs::read_dir(dir.join("db")).unwrap() {
        let file = file.unwrap();
        if file.file_name().to_str().unwrap().starts_with("MANIFEST") {
            std::fs::write(file.path(), b"not a list of files").unwrap();
        }
    }
    cluster.start(ill).await;
    let lost = replica_of(SHARD, ill);
    assert_eq!(stopped(&cluster, ill).await.replica, lost);
    // An order to make it that is under way since before would be the same.
    let refused = cluster.node(ill).groups.create(SHARD, lost).await;
    assert!(refused.err().unwrap().to_string().contains("used already"));
    cluster.node(ill).groups.create(SHARD, ReplicaId(77)).await.unwrap();
    cluster.put(SHARD, "key", "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_replica_makes_room_for_a_new_one_on_its_node() {
    let cluster = Cluster::steady_three().await;
    cluster.put(SHARD, "key", "before").await;
    let leader = cluster.leader(SHARD).await;
    let ill = NodeId(leader.0 % 3 + 1);
    cluster.node(ill).group(SHARD).report_damage("corrupt block").await;
    let old = stopped(&cluster, ill).await.replica;
    let new = ReplicaId(77);
    let arriving = cluster.node(ill).groups.create(SHARD, new).await.unwrap();
    let group = cluster.node(leader).group(SHARD);
    group.add_learner(new, ill).await.unwrap();
    cluster.put(SHARD, "key", "during").await;
    until_caught_up(&arriving, &group).await;
    group.change(vec![new], vec![old], group.status().membership_at).await.unwrap();
    let status = until(&arriving, |status| status.voters.contains_key(&new)).await;
    assert!(!status.voters.contains_key(&old));
    let groups = &cluster.node(ill).groups;
    groups.destroy_left(SHARD, old, Some(group.status().membership_at)).await.unwrap();
    assert!(groups.stopped().is_empty());
    assert_eq!(get(&arriving, "key").as_deref(), Some("during"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_replica_that_the_others_need_goes_on() {
    let mut alone = Cluster::of(1, Config::default()).await;
    let one = alone.form(SHARD, &node_ids(1)).await;
    let group = alone.node(one).group(SHARD);
    group.report_damage("corrupt block").await;
    assert!(!group.has_failed() && group.leads(), "nobody else has what is whole in it");
    assert!(put(&group, "key", "value").await.is_ok());

    // Two of three are damaged: one of them goes, and the other stays.
    let cluster = Cluster::of_three().await;
    let (first, second) = (NodeId(1), NodeId(2));
    cluster.node(first).group(SHARD).report_damage("corrupt block").await;
    stopped(&cluster, first).await;
    let group = cluster.node(second).group(SHARD);
    group.report_damage("corrupt block").await;
    assert!(!group.has_failed());
    cluster.put(SHARD, "key", "value").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_that_are_damaged_at_once_one_goes_on() {
    let cluster = Cluster::of_three().await;
    cluster.put(SHARD, "key", "before").await;
    let [first, second] = [NodeId(1), NodeId(2)].map(|node| cluster.node(node).group(SHARD));
    tokio::join!(first.report_damage("corrupt block"), second.report_damage("corrupt block"));
    assert!(!(first.has_failed() && second.has_failed()), "the third alone is no quorum");
    cluster.put(SHARD, "key", "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_of_a_damaged_replica_is_taken_over_without_an_election_timeout() {
    let lease = Duration::from_secs(8);
    let config = Config {
        election_timeout_min: lease,
        election_timeout_max: lease + Duration::from_secs(1),
        ..Config::default()
    };
    let mut cluster = Cluster::of(3, config).await;
    let leader = cluster.form(SHARD, &node_ids(3)).await;
    cluster.node(leader).group(SHARD).report_damage("corrupt block").await;
    let others = node_ids(3).into_iter().filter(|node| *node != leader);
    let others: Vec<_> = others.map(|node| cluster.node(node).group(SHARD)).collect();
    let led = eventually(|| others.iter().any(|group| group.leads()));
    timeout(lease / 2, led).await.expect("nobody had to wait for the lease to run out");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_can_not_be_applied_stops_one_replica_alone() {
    let mut cluster = Cluster::of_three().await;
    cluster.put(SHARD, "key", "value").await;
    let leader = cluster.leader(SHARD).await;
    let ill = NodeId(leader.0 % 3 + 1);
    until_caught_up(&cluster.node(ill).group(SHARD), &cluster.node(leader).group(SHARD)).await;
    let node = cluster.take(ill);
    let dir = node.dir.clone();
    node.stop().await;
    tokio::task::spawn_blocking(move || {
        let store =
            statehouse_store::Store::open(dir, statehouse_store::Config::default()).unwrap();
        let shard = store.shard(replica_of(SHARD, ill)).unwrap();
        shard.tamper(USERS, b"key", Tamper::Cut).unwrap();
        drop(shard);
        store.close().unwrap();
    })
    .await
    .unwrap();
    cluster.start(ill).await;
    cluster.put(SHARD, "key", "again").await;
    let out = stopped(&cluster, ill).await;
    // Told by the apply thread or by whoever heard of the damage, who is first.
    assert!(out.reason.contains("corrupt state record"), "{}", out.reason);
    assert!(cluster.node(ill).store.failure().is_none(), "the node goes on");
    let roles = cluster.nodes().filter_map(|node| node.groups.get(SHARD));
    assert!(roles.map(|group| group.status().role).all(|role| role != Role::Stopped));
    cluster.put(SHARD, "key", "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_order_to_destroy_is_refused_by_a_member() {
    let mut cluster = Cluster::of(4, steady()).await;
    let leader = cluster.form(SHARD, &node_ids(3)).await;
    let group = cluster.node(leader).group(SHARD);
    // What a controller knew that was paused then: the new replica is no member.
    let known = group.status().membership_at;
    let (new, to) = (replica_of(SHARD, NodeId(4)), NodeId(4));
    let groups = &cluster.node(to).groups;
    let arriving = groups.create(SHARD, new).await.unwrap();
    group.add_learner(new, to).await.unwrap();
    until(&arriving, |status| status.learners.contains_key(&new)).await;
    let belongs = |outcome: Result<(), Error>| {
        let refused = outcome.unwrap_err();
        let problem = MembersProblem::Belongs(new);
        assert!(matches!(refused, Error::Members { problem: it, .. } if it == problem));
    };
    belongs(groups.destroy_left(SHARD, new, Some(known)).await);
    let old = replica_of(SHARD, NodeId(leader.0 % 3 + 1));
    until_caught_up(&arriving, &group).await;
    group.change(vec![new], vec![old], group.status().membership_at).await.unwrap();
    until(&arriving, |status| status.voters.contains_key(&new)).await;
    belongs(groups.destroy_left(SHARD, new, Some(known)).await);
    belongs(groups.destroy_left(SHARD, new, None).await);
    // Who has left does not know it: the order says so.
    let node = cluster.nodes().find(|node| replica_of(SHARD, node.id) == old).unwrap();
    let left_at = group.status().membership_at;
    timeout(PATIENCE, node.groups.destroy_left(SHARD, old, Some(left_at))).await.unwrap().unwrap();
    assert!(cluster.node(to).groups.get(SHARD).is_some());
    cluster.put(SHARD, "key", "after").await;
}
