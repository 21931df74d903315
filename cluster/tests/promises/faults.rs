//! Nodes that die, and networks that drop what is sent.

use std::time::{Duration, Instant};

use statehouse_cluster::{Error, NodeId};

use crate::support::{
    Cluster, PATIENCE, SHARD, get, node_ids, put, replica_of, until, until_caught_up,
};

#[tokio::test(flavor = "multi_thread")]
async fn another_leads_when_the_leader_is_gone_and_nothing_is_lost() {
    let mut cluster = Cluster::of_three().await;
    for round in 0..3 {
        let leader = cluster.leader(SHARD).await;
        cluster.put(SHARD, "key", &format!("{round}")).await;
        cluster.stop(leader).await;
        let died = Instant::now();
        cluster.put(SHARD, "other", &format!("{round}")).await;
        let gap = died.elapsed();
        assert!(gap < Duration::from_secs(5), "writes stood still for {gap:?}");
        let next = cluster.leader(SHARD).await;
        assert_eq!(get(&cluster.node(next).group(SHARD), "key"), Some(format!("{round}")));
        cluster.start(leader).await;
        let back = cluster.node(leader).group(SHARD);
        until_caught_up(&back, &cluster.node(next).group(SHARD)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_cut_off_answers_no_reads_and_its_writes_come_to_nothing() {
    let cluster = Cluster::of_three().await;
    let old = cluster.leader(SHARD).await;
    cluster.put(SHARD, "key", "old").await;
    for other in node_ids(3).into_iter().filter(|node| *node != old) {
        cluster.node(old).peers.cut(other);
    }
    let group = cluster.node(old).group(SHARD);
    // Proposed while it still believes to lead: never committed there.
    let lost = tokio::spawn({
        let group = group.clone();
        async move { put(&group, "key", "lost").await }
    });
    let read = tokio::time::timeout(PATIENCE, group.linearizable()).await;
    assert!(read.expect("it gives up").is_err(), "a leader without a quorum served a read");

    let others = || cluster.nodes().filter(|node| node.id != old);
    let heirs = others().map(|node| node.group(SHARD)).collect::<Vec<_>>();
    let heir = &heirs[0];
    until(heir, |status| status.leader.is_some_and(|leader| leader.node != old)).await;
    let leader = heir.leader().unwrap().node;
    let leading = cluster.node(leader).group(SHARD);
    let written = tokio::time::timeout(PATIENCE, async {
        while put(&leading, "key", "new").await.is_err() {}
    });
    written.await.expect("the majority writes on");

    for other in node_ids(3).into_iter().filter(|node| *node != old) {
        cluster.node(old).peers.heal(other);
    }
    until(&group, |status| status.leader.is_some_and(|it| it.node == leader)).await;
    until_caught_up(&group, &leading).await;
    assert_eq!(get(&group, "key").as_deref(), Some("new"));
    let outcome = tokio::time::timeout(PATIENCE, lost).await.unwrap().unwrap();
    let error = outcome.expect_err("what no quorum had is not acknowledged");
    assert!(
        matches!(error, Error::OutcomeUnknown { .. } | Error::NotLeader { .. }),
        "neither acknowledged nor denied wrongly: {error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_cut_off_disturbs_nobody_and_catches_up() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader(SHARD).await;
    let term = cluster.node(leader).group(SHARD).status().term;
    let apart = NodeId(leader.0 % 3 + 1);
    let others: Vec<NodeId> = node_ids(3).into_iter().filter(|node| *node != apart).collect();
    for other in &others {
        cluster.node(apart).peers.cut(*other);
    }
    let group = cluster.node(apart).group(SHARD);
    // Longer than any election timeout: it asks for votes, and gets none.
    let lonely = Instant::now();
    while lonely.elapsed() < Duration::from_secs(2) {
        cluster.put(SHARD, "key", "written meanwhile").await;
    }
    assert!(group.lag().unwrap() > Duration::from_secs(1), "it knows that it is behind");
    for other in &others {
        cluster.node(apart).peers.heal(*other);
    }
    until_caught_up(&group, &cluster.node(leader).group(SHARD)).await;
    assert_eq!(get(&group, "key").as_deref(), Some("written meanwhile"));
    let status = cluster.node(leader).group(SHARD).status();
    assert_eq!((status.term, status.leader.unwrap().node), (term, leader), "nobody was unseated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_a_replica_that_was_destroyed_reaches_nobody() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader(SHARD).await;
    let gone = NodeId(leader.0 % 3 + 1);
    let groups = &cluster.node(gone).groups;
    groups.destroy(SHARD, replica_of(SHARD, gone)).await.unwrap();
    // The group does not know, and goes on with two.
    for n in 0..20 {
        cluster.put(SHARD, &format!("key-{n}"), "value").await;
    }
    assert!(groups.get(SHARD).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_ends_on_a_living_node_is_replaced() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader(SHARD).await;
    cluster.put(SHARD, "key", "value").await;
    // Its node still answers every ping: nobody suspects it.
    cluster.node(leader).groups.destroy(SHARD, replica_of(SHARD, leader)).await.unwrap();
    cluster.put(SHARD, "key", "goes on").await;
    let next = cluster.leader(SHARD).await;
    assert_ne!(next, leader);
    assert_eq!(get(&cluster.node(next).group(SHARD), "key").as_deref(), Some("goes on"));
}
