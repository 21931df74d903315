//! Nodes that die, and networks that drop what is sent.

use std::time::{Duration, Instant};

use statehouse_cluster::{Error, NodeId};

use crate::support::{
    Cluster, PATIENCE, SHARD, copy_files, eventually, get, node_ids, put, replica_of, until,
    until_caught_up,
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
async fn a_leader_without_a_quorum_refuses_what_waits() {
    let cluster = Cluster::of_three().await;
    let old = cluster.leader(SHARD).await;
    let group = cluster.node(old).group(SHARD);
    cluster.put(SHARD, "before", "value").await;
    for other in node_ids(3).into_iter().filter(|node| *node != old) {
        cluster.node(old).peers.cut(other);
    }
    // The first becomes an entry that no quorum will have; the others wait behind it.
    let writes: Vec<_> = (0..20)
        .map(|n| {
            let group = group.clone();
            tokio::spawn(async move { put(&group, &format!("key-{n}"), "lost").await })
        })
        .collect();
    let (mut unknown, mut refused) = (0, Vec::new());
    for (n, write) in writes.into_iter().enumerate() {
        let outcome = tokio::time::timeout(PATIENCE, write).await;
        match outcome.expect("it does not wait until the network is back").unwrap() {
            Err(Error::OutcomeUnknown { .. }) => unknown += 1,
            Err(Error::NotLeader { .. }) => refused.push(n),
            other => panic!("write {n}: {other:?}"),
        }
    }
    assert!(unknown >= 1, "what was proposed may yet be committed");
    assert!(!refused.is_empty(), "what waited behind it was not");
    // Whoever comes while the cut lasts does not wait for longer.
    let late = tokio::time::timeout(PATIENCE, put(&group, "late", "lost")).await;
    assert!(matches!(late, Ok(Err(Error::NotLeader { .. }))), "{late:?}");

    for other in node_ids(3).into_iter().filter(|node| *node != old) {
        cluster.node(old).peers.heal(other);
    }
    cluster.put(SHARD, "after", "value").await;
    let leader = cluster.leader(SHARD).await;
    let lead = cluster.node(leader).group(SHARD);
    until_caught_up(&group, &lead).await;
    for n in refused {
        assert_eq!(get(&lead, &format!("key-{n}")), None, "write {n} was said not to happen");
    }
    assert_eq!(get(&lead, "late"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_lost_what_it_acknowledged_is_noticed_and_not_counted() {
    let mut cluster = Cluster::steady_three().await;
    let leader = cluster.leader(SHARD).await;
    let others: Vec<NodeId> = node_ids(3).into_iter().filter(|node| *node != leader).collect();
    let (forgets, third) = (others[0], others[1]);
    cluster.put(SHARD, "key", "old").await;
    cluster.stop(forgets).await;
    let (data, copy) = (cluster.data(forgets), cluster.data(NodeId(99)));
    copy_files(&data, &copy);
    cluster.start(forgets).await;
    for n in 0..20 {
        cluster.put(SHARD, &format!("key-{n}"), "acknowledged").await;
    }
    let lead = cluster.node(leader).group(SHARD);
    let term = lead.status().term;
    let replica = replica_of(SHARD, forgets);
    until_caught_up(&cluster.node(forgets).group(SHARD), &lead).await;
    let last = lead.status().last_index;
    until(&lead, |status| status.matched.get(&replica).is_some_and(|it| it.index >= last)).await;

    // A disk that was put back from a copy: the log is shorter than what was acknowledged.
    cluster.stop(forgets).await;
    std::fs::remove_dir_all(&data).unwrap();
    copy_files(&copy, &data);
    cluster.start(forgets).await;
    eventually(|| lead.status().reverted.contains_key(&replica)).await;
    assert_eq!(lead.status().term, term, "the leader that knows better still leads");
    assert!(!lead.status().reverted.contains_key(&replica_of(SHARD, third)));

    // With the third away there is no quorum: what the follower has forgotten must not become one.
    cluster.stop(third).await;
    let outcome = tokio::time::timeout(PATIENCE, put(&lead, "key", "by two of three")).await;
    let error = outcome.expect("it is refused").expect_err("one of two has a false log");
    assert!(matches!(error, Error::OutcomeUnknown { .. } | Error::NotLeader { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_cut_off_disturbs_nobody_and_catches_up() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader(SHARD).await;
    let term = cluster.node(leader).group(SHARD).status().term;
    let apart = NodeId(leader.0 % 3 + 1);
    let others: Vec<NodeId> = node_ids(3).into_iter().filter(|node| *node != apart).collect();
    let group = cluster.node(apart).group(SHARD);
    eventually(|| group.lag().is_some()).await;
    for other in &others {
        cluster.node(apart).peers.cut(*other);
    }
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
