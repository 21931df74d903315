//! Logs that are purged, and replicas that come back by snapshot.

use std::time::Duration;

use statehouse_cluster::raft::{Config, Direction};
use statehouse_cluster::{CheckpointLimits, NodeId};

use crate::support::{
    Cluster, SHARD, eventually, get, node_ids, put, replica_of, steady, until, until_caught_up,
};

/// Purges whatever it may, soon.
fn forgetful() -> Config {
    Config {
        checkpoints: CheckpointLimits {
            age_max: Duration::from_millis(1),
            ..CheckpointLimits::default()
        },
        purge_interval: Duration::from_millis(50),
        log_entries_kept: 4,
        follower_away_max: Duration::from_millis(300),
        ..steady()
    }
}

fn large(n: usize) -> String {
    format!("{n}:").repeat(20_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_the_purge_point_comes_back_by_snapshot() {
    let mut cluster = Cluster::of(3, forgetful()).await;
    let leader = cluster.form(SHARD, &node_ids(3)).await;
    cluster.put(SHARD, "before", "it left").await;
    let away = NodeId(leader.0 % 3 + 1);
    let had = cluster.node(away).group(SHARD).status().last_index;
    cluster.stop(away).await;
    for n in 0..60 {
        cluster.put(SHARD, &format!("key-{n}"), &large(n)).await;
    }
    let lead = cluster.leader(SHARD).await;
    let group = cluster.node(lead).group(SHARD);
    until(&group, |status| status.purged.index > had + 20).await;
    cluster.start(away).await;
    let back = cluster.node(away).group(SHARD);
    cluster.put(SHARD, "after", "it came back").await;
    let lead = cluster.leader(SHARD).await;
    until_caught_up(&back, &cluster.node(lead).group(SHARD)).await;
    // Its log begins behind what it had: a snapshot.
    until(&back, |status| status.purged.index > had).await;
    assert_eq!(get(&back, "before").as_deref(), Some("it left"));
    assert_eq!(get(&back, "key-59"), Some(large(59)));
    assert_eq!(get(&back, "after").as_deref(), Some("it came back"));
    assert_eq!(back.status().voters, cluster.node(lead).group(SHARD).status().voters);
    // What it got outlives it.
    drop(back);
    cluster.stop(away).await;
    cluster.start(away).await;
    let back = cluster.node(away).group(SHARD);
    until_caught_up(&back, &cluster.node(lead).group(SHARD)).await;
    assert_eq!(get(&back, "key-59"), Some(large(59)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_breaks_off_begins_anew_under_writes() {
    let slow = Config { transfer_bytes_per_second: 2 << 20, ..forgetful() };
    let mut cluster = Cluster::of(4, slow).await;
    let leader = cluster.form(SHARD, &node_ids(3)).await;
    for n in 0..80 {
        cluster.put(SHARD, &format!("key-{n}"), &large(n)).await;
    }
    let group = cluster.node(leader).group(SHARD);
    until(&group, |status| status.purged.index > 20).await;
    let (new, to) = (replica_of(SHARD, NodeId(4)), NodeId(4));
    let arriving = cluster.node(to).groups.create(SHARD, new).await.unwrap();
    group.add_learner(new, to).await.unwrap();
    let coming = || {
        let transfers = cluster.node(to).groups.transfers_under_way();
        transfers.iter().any(|it| it.direction == Direction::In && it.bytes > 0)
    };
    eventually(coming).await;
    cluster.node(to).peers.cut(leader);
    eventually(|| !coming()).await;
    assert_eq!(arriving.status().applied.index, 0, "half a snapshot is none");
    cluster.node(to).peers.heal(leader);
    let mut written = 0;
    let target = group.status().applied;
    while arriving.status().applied < target {
        put(&group, "written", &written.to_string()).await.unwrap();
        written += 1;
    }
    until_caught_up(&arriving, &group).await;
    assert_eq!(get(&arriving, "key-0"), Some(large(0)));
    assert_eq!(get(&arriving, "key-79"), Some(large(79)));
    assert_eq!(get(&arriving, "written"), Some((written - 1).to_string()));
    eventually(|| cluster.nodes().all(|it| it.groups.transfers_under_way().is_empty())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_pauses_while_callers_wait_too_long() {
    let limit = Duration::from_millis(1);
    let config = Config { foreground_p99_max: limit, ..forgetful() };
    let mut cluster = Cluster::of(4, config).await;
    let leader = cluster.form(SHARD, &node_ids(3)).await;
    for n in 0..40 {
        cluster.put(SHARD, &format!("key-{n}"), &large(n)).await;
    }
    let group = cluster.node(leader).group(SHARD);
    until(&group, |status| status.purged.index > 20).await;
    let foreground = cluster.node(leader).groups.foreground().clone();
    let slow = |calls: u32| (0..calls).for_each(|_| foreground.note(2 * limit));
    let (new, to) = (replica_of(SHARD, NodeId(4)), NodeId(4));
    let arriving = cluster.node(to).groups.create(SHARD, new).await.unwrap();
    slow(100);
    eventually(|| foreground.is_slow()).await;
    group.add_learner(new, to).await.unwrap();
    let paused = || {
        let transfers = cluster.node(leader).groups.transfers_under_way();
        transfers.iter().any(|it| it.direction == Direction::Out && it.paused)
    };
    eventually(|| {
        slow(100);
        paused()
    })
    .await;
    assert_eq!(arriving.status().applied.index, 0);
    // Nobody calls any more.
    until_caught_up(&arriving, &group).await;
    assert_eq!(get(&arriving, "key-39"), Some(large(39)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_kept_for_a_follower_that_is_alive_and_not_for_ever() {
    let mut cluster = Cluster::of(3, forgetful()).await;
    let leader = cluster.form(SHARD, &node_ids(3)).await;
    for n in 0..40 {
        cluster.put(SHARD, &format!("key-{n}"), "value").await;
    }
    let group = cluster.node(leader).group(SHARD);
    // Everyone has everything: nearly all of it goes, on every node.
    for node in cluster.nodes() {
        let replica = node.group(SHARD);
        until_caught_up(&replica, &group).await;
        until(&replica, |status| status.purged.index > 20).await;
    }
}
