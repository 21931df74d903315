//! Linearizable reads by voters' promises, while the voters change, restart, and lose each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use statehouse_cluster::NodeId;
use statehouse_cluster::raft::{Config, Group, Role};
use statehouse_store::ReplicaId;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{
    Cluster, PATIENCE, SHARD, eventually, get, node_ids, put, replica_of, until, until_caught_up,
    until_leads,
};

const KEY: &str = "counter";

/// Reads and writes of one key at every replica, all the time.
struct Watch {
    stop: Arc<AtomicBool>,
    read: Arc<AtomicU64>,
    /// The newest value that was acknowledged.
    acknowledged: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Watch {
    fn over(groups: Vec<Arc<Group>>, acknowledged: &Arc<AtomicU64>) -> Watch {
        let mut watch = Watch {
            stop: Arc::default(),
            read: Arc::default(),
            acknowledged: acknowledged.clone(),
            tasks: Vec::new(),
        };
        for group in &groups {
            let (group, stop) = (group.clone(), watch.stop.clone());
            let (read, acknowledged) = (watch.read.clone(), acknowledged.clone());
            watch.tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let owed = acknowledged.load(Ordering::SeqCst);
                    if group.linearizable().await.is_err() {
                        tokio::task::yield_now().await;
                        continue;
                    }
                    let seen = get(&group, KEY).map_or(0, |value| value.parse().unwrap());
                    assert!(seen >= owed, "a read at {:?} saw {seen}, owed {owed}", group.status());
                    read.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        let (stop, acknowledged) = (watch.stop.clone(), acknowledged.clone());
        watch.tasks.push(tokio::spawn(async move {
            let mut value = acknowledged.load(Ordering::SeqCst);
            while !stop.load(Ordering::Relaxed) {
                value += 1;
                for group in groups.iter().filter(|group| group.leads()) {
                    if put(group, KEY, &value.to_string()).await.is_ok() {
                        acknowledged.store(value, Ordering::SeqCst);
                    }
                }
                tokio::task::yield_now().await;
            }
        }));
        watch
    }

    /// Waits until reads and writes went through since now.
    async fn goes_on(&self) {
        let read = self.read.load(Ordering::Relaxed) + 20;
        let written = self.acknowledged.load(Ordering::SeqCst) + 5;
        eventually(|| {
            self.read.load(Ordering::Relaxed) >= read
                && self.acknowledged.load(Ordering::SeqCst) >= written
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            timeout(PATIENCE, task).await.expect("it ends").unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_miss_nothing_while_voters_come_and_go() {
    let mut cluster = Cluster::of(4, Config::default()).await;
    cluster.form(SHARD, &node_ids(3)).await;
    let mut replicas: BTreeMap<NodeId, ReplicaId> =
        node_ids(3).into_iter().map(|node| (node, replica_of(SHARD, node))).collect();
    let acknowledged: Arc<AtomicU64> = Arc::default();
    for round in 0..6u64 {
        let leader = cluster.leader(SHARD).await;
        let lead = cluster.node(leader).group(SHARD);
        let spare = node_ids(4).into_iter().find(|node| !replicas.contains_key(node)).unwrap();
        let (new, to) = (ReplicaId(50_000 + round), spare);
        let arriving = cluster.node(to).groups.create(SHARD, new).await.unwrap();
        let groups = cluster.nodes().filter_map(|node| node.groups.get(SHARD)).collect();
        let watch = Watch::over(groups, &acknowledged);
        lead.add_learner(new, to).await.unwrap();
        until_caught_up(&arriving, &lead).await;
        watch.goes_on().await;
        // Every other time it is the leader that leaves: it hands over by itself.
        let leaves = match round % 2 {
            0 => leader,
            _ => *replicas.keys().find(|node| **node != leader).unwrap(),
        };
        let status = until(&lead, |status| status.matched.contains_key(&new)).await;
        let expected = status.membership_at;
        lead.change(vec![new], vec![replicas[&leaves]], expected).await.unwrap();
        until(&arriving, |status| status.voters.contains_key(&new) && status.leader.is_some())
            .await;
        // Both, the replica that left and the one that came, are asked all the time.
        watch.goes_on().await;
        watch.end().await;
        cluster.node(leaves).groups.destroy(SHARD, replicas[&leaves]).await.unwrap();
        replicas.remove(&leaves);
        replicas.insert(to, new);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_that_restart_remember_what_they_promised() {
    let mut cluster = Cluster::of_three().await;
    for round in 0..3 {
        let old = cluster.leader(SHARD).await;
        let others: Vec<NodeId> = node_ids(3).into_iter().filter(|node| *node != old).collect();
        let (before, after) = (format!("before-{round}"), format!("after-{round}"));
        cluster.put(SHARD, KEY, &before).await;
        let group = cluster.node(old).group(SHARD);
        for other in &others {
            cluster.node(old).peers.cut(*other);
        }
        let heir = cluster.node(others[0]).group(SHARD);
        until(&heir, |status| status.leader.is_some_and(|leader| leader.node != old)).await;
        let leader = heir.leader().unwrap().node;
        let leading = cluster.node(leader).group(SHARD);
        let written =
            timeout(PATIENCE, async { while put(&leading, KEY, &after).await.is_err() {} });
        written.await.expect("the majority writes on");
        drop((heir, leading));
        // What they promised is on their disks alone from here on.
        for other in &others {
            cluster.stop(*other).await;
        }
        assert_eq!(group.status().role, Role::Leader, "it does not know better");
        for other in &others {
            cluster.start(*other).await;
            cluster.node(old).peers.heal(*other);
        }
        // The old leader is asked until it follows; none of its answers may be from the past.
        let asked = timeout(PATIENCE, async {
            while group.leads() {
                if group.linearizable().await.is_ok() {
                    assert_eq!(get(&group, KEY).as_deref(), Some(&after[..]));
                }
                tokio::task::yield_now().await;
            }
        });
        asked.await.expect("it learns that it leads no more");
        cluster.put(SHARD, KEY, &after).await;
        let leader = cluster.leader(SHARD).await;
        until_caught_up(&group, &cluster.node(leader).group(SHARD)).await;
        assert_eq!(get(&group, KEY).as_deref(), Some(&after[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_that_is_handed_to_and_fro_reads_nothing_from_the_past() {
    let cluster = Cluster::of_three().await;
    let acknowledged: Arc<AtomicU64> = Arc::default();
    let watch = Watch::over(cluster.nodes().map(|node| node.group(SHARD)).collect(), &acknowledged);
    for _ in 0..8 {
        let from = cluster.leader(SHARD).await;
        let to = NodeId(from.0 % 3 + 1);
        let group = cluster.node(from).group(SHARD);
        until(&group, |status| status.matched.contains_key(&replica_of(SHARD, to))).await;
        // Refused while the other is behind: the next round tries again.
        if group.transfer_leader(replica_of(SHARD, to)).await.is_ok() {
            until_leads(&cluster.node(to).group(SHARD)).await;
        }
        watch.goes_on().await;
    }
    watch.end().await;
}
