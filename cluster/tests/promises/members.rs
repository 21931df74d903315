//! Learners, changes of voters, hand-over of the lead.

use statehouse_cluster::{Error, MembersProblem, NodeId};
use statehouse_store::ReplicaId;

use crate::support::{
    Cluster, SHARD, get, node_ids, put, replica_of, steady, until, until_caught_up, until_leads,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_is_handed_over_and_writes_go_on() {
    let cluster = Cluster::steady_three().await;
    for round in 0..6 {
        let from = cluster.leader(SHARD).await;
        let to = NodeId(from.0 % 3 + 1);
        let group = cluster.node(from).group(SHARD);
        until(&group, |status| status.matched.contains_key(&replica_of(SHARD, to))).await;
        group.transfer_leader(replica_of(SHARD, to)).await.unwrap();
        until_leads(&cluster.node(to).group(SHARD)).await;
        cluster.put(SHARD, "key", &round.to_string()).await;
        assert_eq!(get(&cluster.node(to).group(SHARD), "key"), Some(round.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_goes_to_voters_of_the_group_alone() {
    let cluster = Cluster::steady_three().await;
    let leader = cluster.leader(SHARD).await;
    let stranger = ReplicaId(99);
    let error = cluster.node(leader).group(SHARD).transfer_leader(stranger).await.unwrap_err();
    let Error::Members { problem, .. } = error else { panic!("{error}") };
    assert_eq!(problem, MembersProblem::Unknown(stranger));
    let follower = cluster.nodes().find(|node| node.id != leader).unwrap();
    let own = replica_of(SHARD, follower.id);
    let error = follower.group(SHARD).transfer_leader(own).await.unwrap_err();
    assert!(matches!(error, Error::NotLeader { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_moves_to_another_node_under_writes() {
    let mut cluster = Cluster::of(4, steady()).await;
    let leader = cluster.form(SHARD, &node_ids(3)).await;
    for n in 0..50 {
        cluster.put(SHARD, &format!("key-{n}"), "before").await;
    }
    let (from, to) = (NodeId(leader.0 % 3 + 1), NodeId(4));
    let new = replica_of(SHARD, to);
    let group = cluster.node(leader).group(SHARD);
    let arriving = cluster.node(to).groups.create(SHARD, new).await.unwrap();
    group.add_learner(new, to).await.unwrap();
    group.add_learner(new, to).await.unwrap();
    cluster.put(SHARD, "key-0", "during").await;
    until_caught_up(&arriving, &group).await;
    let status = until(&group, |status| status.matched.contains_key(&new)).await;
    assert_eq!(status.learners.get(&new), Some(&to));
    assert!(!status.voters.contains_key(&new));

    let old = replica_of(SHARD, from);
    let stale = statehouse_store::EntryId { index: 1, ..status.membership_at };
    let late = group.change(vec![new], vec![old], stale).await.unwrap_err();
    assert!(
        matches!(late, Error::Members { problem: MembersProblem::Changed, .. }),
        "of two who change at once one learns that it is late: {late}"
    );
    group.change(vec![new], vec![old], status.membership_at).await.unwrap();
    let status = until(&group, |status| !status.joint && status.membership_committed).await;
    assert!(status.voters.contains_key(&new) && !status.voters.contains_key(&old));
    assert_eq!((status.voters.len(), status.learners.len()), (3, 0));

    cluster.node(from).groups.destroy(SHARD, old).await.unwrap();
    cluster.put(SHARD, "key-1", "after").await;
    until_caught_up(&arriving, &group).await;
    assert_eq!(get(&arriving, "key-0").as_deref(), Some("during"));
    assert_eq!(get(&arriving, "key-1").as_deref(), Some("after"));
    assert_eq!(get(&arriving, "key-49").as_deref(), Some("before"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_voted_out_steps_down() {
    let mut cluster = Cluster::of(4, steady()).await;
    let leader = cluster.form(SHARD, &node_ids(3)).await;
    let (new, to) = (replica_of(SHARD, NodeId(4)), NodeId(4));
    let group = cluster.node(leader).group(SHARD);
    let arriving = cluster.node(to).groups.create(SHARD, new).await.unwrap();
    group.add_learner(new, to).await.unwrap();
    until_caught_up(&arriving, &group).await;
    let expected = group.status().membership_at;
    group.change(vec![new], vec![replica_of(SHARD, leader)], expected).await.unwrap();
    until(&arriving, |status| {
        status.leader.is_some_and(|it| it.node != leader) && status.voters.contains_key(&new)
    })
    .await;
    cluster.node(leader).groups.destroy(SHARD, replica_of(SHARD, leader)).await.unwrap();
    cluster.put(SHARD, "key", "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_is_let_go_and_a_voter_is_not() {
    let mut cluster = Cluster::of(4, steady()).await;
    let leader = cluster.form(SHARD, &node_ids(3)).await;
    let new = replica_of(SHARD, NodeId(4));
    let group = cluster.node(leader).group(SHARD);
    cluster.node(NodeId(4)).groups.create(SHARD, new).await.unwrap();
    group.add_learner(new, NodeId(4)).await.unwrap();
    group.remove_learner(new).await.unwrap();
    group.remove_learner(new).await.unwrap();
    assert!(group.status().learners.is_empty());
    let voter = replica_of(SHARD, NodeId(leader.0 % 3 + 1));
    let refused = group.remove_learner(voter).await.unwrap_err();
    assert!(matches!(refused, Error::Members { problem: MembersProblem::Votes(_), .. }));
    let unknown = group.change(vec![new], vec![], group.status().membership_at).await.unwrap_err();
    assert!(matches!(unknown, Error::Members { problem: MembersProblem::Unknown(_), .. }));
    assert!(put(&group, "key", "value").await.is_ok());
}
