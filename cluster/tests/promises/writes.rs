//! Writes and reads of one group while nothing fails, and over restarts.

use std::time::Instant;

use statehouse_cluster::raft::{Config, Groups, Role};
use statehouse_cluster::transport::{self, Peers};
use statehouse_cluster::{ClusterId, Error, NodeId, ShardId};
use statehouse_store::{ReplicaId, Reply, Store};
use tempfile::TempDir;

use crate::support::{
    CLUSTER, Cluster, SHARD, eventually, get, node_ids, put, replica_of, until_caught_up,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_write_at_the_leader_is_applied_on_every_replica() {
    let cluster = Cluster::steady_three().await;
    let leader = cluster.leader(SHARD).await;
    for n in 0..100 {
        let reply = cluster.put(SHARD, &format!("key-{n}"), &format!("value-{n}")).await;
        assert!(matches!(reply, Reply::Written { .. }), "{reply:?}");
    }
    let lead = cluster.node(leader).group(SHARD);
    for node in cluster.nodes() {
        let group = node.group(SHARD);
        until_caught_up(&group, &lead).await;
        assert_eq!(get(&group, "key-99").as_deref(), Some("value-99"));
        let role = if node.id == leader { Role::Leader } else { Role::Follower };
        assert_eq!(group.status().role, role);
        assert_eq!(group.leader().unwrap().node, leader);
    }
    let status = lead.status();
    assert_eq!(status.voters.len(), 3);
    assert!(!status.joint && status.learners.is_empty() && status.membership_committed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_refuses_writes_and_reads_and_says_who_leads() {
    let cluster = Cluster::steady_three().await;
    let leader = cluster.leader(SHARD).await;
    for node in cluster.nodes().filter(|node| node.id != leader) {
        let group = node.group(SHARD);
        let errors = [
            put(&group, "key", "value").await.unwrap_err(),
            group.linearizable().await.unwrap_err(),
        ];
        for error in errors {
            let Error::NotLeader { leader: Some(hint), .. } = error else { panic!("{error}") };
            assert_eq!(hint.node, leader);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_serves_linearizable_reads_behind_the_leaders_read_index() {
    let cluster = Cluster::steady_three().await;
    let leader = cluster.leader(SHARD).await;
    for round in 0..50 {
        let value = format!("value-{round}");
        cluster.put(SHARD, "key", &value).await;
        let index = cluster.node(leader).group(SHARD).read_index().await.unwrap();
        for node in cluster.nodes() {
            let group = node.group(SHARD);
            group.wait_applied(index.index).await.unwrap();
            assert_eq!(get(&group, "key"), Some(value.clone()), "at node {}", node.id);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writes_at_once_ride_in_few_entries_and_keep_their_order() {
    let cluster = Cluster::steady_three().await;
    let leader = cluster.leader(SHARD).await;
    let group = cluster.node(leader).group(SHARD);
    let before = group.status().last_index;
    let writes: Vec<_> = (0..2_000)
        .map(|n| {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let command = crate::support::put_command("one key", &n.to_string());
            group.propose(
                command,
                Box::new(move |reply| {
                    let _ = sender.send(reply);
                }),
            );
            receiver
        })
        .collect();
    let mut versions = Vec::new();
    for write in writes {
        let Reply::Written { version, .. } = write.await.unwrap().unwrap() else { panic!() };
        versions.push(version);
    }
    assert!(versions.is_sorted(), "versions grow in the order of the proposals");
    assert_eq!(get(&group, "one key").as_deref(), Some("1999"));
    let entries = group.status().last_index - before;
    assert!(entries < 1_000, "2,000 commands took {entries} entries");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_stopped_goes_on_where_it_was() {
    let mut cluster = Cluster::of_three().await;
    for n in 0..20 {
        cluster.put(SHARD, &format!("key-{n}"), "before").await;
    }
    cluster.stop_all().await;
    for node in node_ids(3) {
        cluster.start(node).await;
    }
    cluster.put(SHARD, "key-0", "after").await;
    let leader = cluster.leader(SHARD).await;
    let lead = cluster.node(leader).group(SHARD);
    for node in cluster.nodes() {
        let group = node.group(SHARD);
        until_caught_up(&group, &lead).await;
        assert_eq!(get(&group, "key-0").as_deref(), Some("after"));
        assert_eq!(get(&group, "key-19").as_deref(), Some("before"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_away_catches_up() {
    let mut cluster = Cluster::steady_three().await;
    let leader = cluster.leader(SHARD).await;
    let away = *node_ids(3).iter().find(|node| **node != leader).unwrap();
    cluster.stop(away).await;
    for n in 0..200 {
        cluster.put(SHARD, &format!("key-{n}"), "while away").await;
    }
    cluster.start(away).await;
    let leader = cluster.leader(SHARD).await;
    let back = cluster.node(away).group(SHARD);
    until_caught_up(&back, &cluster.node(leader).group(SHARD)).await;
    assert_eq!(get(&back, "key-199").as_deref(), Some("while away"));
    eventually(|| back.lag().is_some_and(|lag| lag.as_millis() < 1_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_knows_how_old_its_state_is() {
    let cluster = Cluster::steady_three().await;
    let leader = cluster.leader(SHARD).await;
    cluster.put(SHARD, "key", "value").await;
    // A leader counts from when its voters last confirmed it, as for this read.
    let lead = cluster.node(leader).group(SHARD);
    let before = Instant::now();
    lead.linearizable().await.unwrap();
    assert!(lead.lag().unwrap() <= before.elapsed());
    let follower = cluster.nodes().find(|node| node.id != leader).unwrap();
    let group = follower.group(SHARD);
    until_caught_up(&group, &cluster.node(leader).group(SHARD)).await;
    // It asks again after it was applied, in a moment.
    eventually(|| group.lag().is_some_and(|lag| lag.as_millis() < 1_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_one_node_are_independent() {
    let mut cluster = Cluster::of(3, Config::default()).await;
    let shards: Vec<ShardId> = (1..=8).map(ShardId).collect();
    for shard in &shards {
        cluster.form(*shard, &node_ids(3)).await;
    }
    for shard in &shards {
        cluster.put(*shard, "key", &shard.to_string()).await;
    }
    for shard in &shards {
        let leader = cluster.leader(*shard).await;
        assert_eq!(get(&cluster.node(leader).group(*shard), "key"), Some(shard.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_opens_only_for_its_own_node_and_cluster() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), statehouse_store::Config::default()).unwrap();
    let open = async |cluster, node| {
        let peers = Peers::new(cluster, NodeId(node), transport::Config::default());
        Groups::open(store.clone(), peers, Config::default()).await
    };
    open(CLUSTER, 1).await.unwrap().shutdown().await;
    assert!(matches!(open(CLUSTER, 2).await, Err(Error::Invalid(_))));
    assert!(matches!(open(ClusterId([8; 16]), 1).await, Err(Error::Invalid(_))));
    open(CLUSTER, 1).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_replica_never_comes_back() {
    let mut cluster = Cluster::of(1, Config::default()).await;
    let node = NodeId(1);
    cluster.form(SHARD, &[node]).await;
    cluster.put(SHARD, "key", "value").await;
    let replica = replica_of(SHARD, node);
    let groups = &cluster.node(node).groups;
    groups.destroy(SHARD, replica).await.unwrap();
    assert!(groups.get(SHARD).is_none());
    assert!(matches!(groups.create(SHARD, replica).await, Err(Error::Invalid(_))));
    groups.destroy(SHARD, ReplicaId(77)).await.unwrap();
    cluster.stop(node).await;
    cluster.start(node).await;
    let groups = &cluster.node(node).groups;
    assert!(groups.get(SHARD).is_none());
    for used in [replica, ReplicaId(77)] {
        assert!(matches!(groups.create(SHARD, used).await, Err(Error::Invalid(_))));
    }
    groups.create(SHARD, ReplicaId(78)).await.unwrap();
    assert!(groups.get(SHARD).is_some());
}
