//! A controller that was out of touch for a while harms nothing when it is back: orders that come
//! late destroy no member, learners that nobody brings up are let go, and what
//! others have changed meanwhile stays as they left it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1;
use statehouse_client::v1::members_ask::Change;
use statehouse_client::v1::peer_refusal::Kind;
use statehouse_proto::v1::admin_client::AdminClient;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tonic::transport::Endpoint;

use crate::harness::cluster::{Cluster, Shape, await_some};
use crate::harness::condition::await_some_for;
use crate::harness::orders::Orders;
use crate::harness::workload::{Load, Workload};
use crate::harness::{PATIENCE, bytes_field, create, put, report, scale, seed};
use crate::shards_move_under_load::{STEPS, ask_to_move, controller, end_of, fetch, is_at};

/// Pauses of a short run; `CONTROLLER_PAUSES` overrides it.
const CONTROLLER_PAUSES: u64 = 6;

/// The node that replicas come to and leave again.
const SPARE: u64 = 4;

/// How long whatever nodes say is on its way, until the controller stands still.
const SLOW: Duration = Duration::from_millis(25);

/// The controller stands still within this time after a step was begun.
const WITHIN_STEP_MS: u64 = 120;

/// An id that no replica gets by itself.
const UNHEARD_OF: u64 = 1_000_000;

/// Voters of each shard: replica and node.
type Voters = BTreeMap<u32, BTreeMap<u64, u64>>;

/// Four nodes, the last one without a vote.
async fn with_a_spare(shape: Shape) -> Cluster {
    let cluster = Cluster::of(Shape { nodes: 4, ..shape }).await;
    let spare = SPARE.to_string();
    cluster.admin_json(&["drain", &spare]);
    emptied(&cluster).await;
    cluster.admin_json(&["undrain", &spare]);
    cluster.whole().await;
    cluster
}

async fn emptied(cluster: &Cluster) {
    await_some_for(2 * PATIENCE, "the spare node has no vote", async || {
        let voters = voters(cluster).await?;
        let there = voters.iter().find(|(_, voters)| voters.values().any(|node| *node == SPARE));
        there.map_or(Ok(()), |found| Err(format!("{found:?}")))
    })
    .await;
    cluster.whole().await;
}

async fn voters(cluster: &Cluster) -> Result<Voters, String> {
    let votes = [v1::ReplicaRole::Leader as i32, v1::ReplicaRole::Follower as i32];
    let shards = cluster.shards().await?.into_iter().map(|shard| {
        let voters = shard.replicas.into_iter().filter(|replica| votes.contains(&replica.role));
        (shard.id, voters.map(|replica| (replica.id, replica.node)).collect())
    });
    Ok(shards.collect())
}

/// Waits until each node has the replicas that belong to their shards, and no other.
async fn nothing_lies_about(cluster: &Cluster) {
    await_some("nodes have members of their shards alone", async || {
        let shards = cluster.shards().await?;
        let members: BTreeSet<(u64, u64)> = shards
            .iter()
            .flat_map(|shard| &shard.replicas)
            .map(|replica| (replica.node, replica.id))
            .collect();
        let votes = voters(cluster).await?;
        let mut there = BTreeSet::new();
        for node in cluster.running() {
            let report = Orders::to(cluster, node, 1).await.report().await;
            there.extend(report.groups.iter().map(|group| (node, group.replica)));
            there.extend(report.stopped.iter().map(|stopped| (node, stopped.replica)));
            // Of shard 0 every node has a replica.
            let learns = |group: &&v1::GroupReport| {
                group.shard > 0 && !votes[&group.shard].contains_key(&group.replica)
            };
            if let Some(group) = report.groups.iter().find(learns) {
                return Err(format!("node {node}: {group:?} has no vote"));
            }
        }
        if there == members { Ok(()) } else { Err(format!("{there:?}, expected {members:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn learners_that_no_task_brings_up_are_let_go_on_every_shard() {
    let cluster = with_a_spare(Shape { shards: 2, ..Shape::default() }).await;
    let from = controller(&cluster).await;
    // As by a controller that was out of touch while others undid its task.
    for shard in 0..=2 {
        let replica = UNHEARD_OF + u64::from(shard);
        let mut leader = Orders::to(&cluster, cluster.leader(shard).await, from).await;
        if shard > 0 {
            let mut spare = Orders::to(&cluster, SPARE, from).await;
            spare.create(shard, replica).await.unwrap();
        }
        let member = v1::RaftMember { replica, node: SPARE };
        leader.change(shard, Change::AddLearner(member)).await.unwrap();
        let learners = leader.group(shard).await.unwrap().learners;
        println!("shard {shard}: {learners:?}");
    }
    nothing_lies_about(&cluster).await;
    await_some("the learners are gone", async || {
        let shards = cluster.shards().await?;
        let left = shards.iter().flat_map(|shard| &shard.replicas).find(|it| it.id >= UNHEARD_OF);
        left.map_or(Ok(()), |replica| Err(format!("{replica:?}")))
    })
    .await;
    cluster.whole().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_rests_on_an_older_membership_destroys_nothing() {
    let mut cluster = with_a_spare(Shape { shards: 1, ..Shape::default() }).await;
    let client = cluster.client(1).await;
    create(&client, "c").await;
    let (leader, from) = (cluster.leader(1).await, controller(&cluster).await);
    let known = Orders::to(&cluster, leader, from).await.group(1).await.unwrap();
    let before = known.membership_at.unwrap();
    let leaves = (1..=3).find(|node| *node != leader).unwrap();
    let task = ask_to_move(&cluster, 1, leaves, SPARE).await;
    assert_eq!(end_of(&cluster, task).await, v1::TaskState::Done);
    let mut spare = Orders::to(&cluster, SPARE, from).await;
    let new = spare.group(1).await.unwrap().replica;
    for membership_at in [Some(before), None] {
        let refusal = spare.destroy(1, new, membership_at).await.unwrap_err();
        assert_eq!(refusal.kind(), Kind::Busy, "{refusal:?}");
        assert!(refusal.detail.contains("belongs to its group"), "{refusal:?}");
    }
    // Of three voters two are there: the one that was to be destroyed is needed.
    let other = (1..=3).find(|node| ![leader, leaves].contains(node)).unwrap();
    cluster.kill(other);
    let client = cluster.client(leader).await;
    await_some("writes go on", async || {
        let written = client.put(put("c", "k", vec![bytes_field("f", "1")])).await;
        written.map_err(|error| error.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_stood_still_in_the_middle_of_a_move_undoes_nothing() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let shape = Shape { shards: 2, proxied: true, ..Shape::default() };
    let mut cluster = with_a_spare(shape).await;
    let load = Load { clients: 6, ..Load::default() };
    let load = Workload::start(&cluster, load, random.random()).await;
    let mut steps = STEPS;
    steps.shuffle(&mut random);
    let mut ends = BTreeMap::new();
    let pauses = scale("CONTROLLER_PAUSES", CONTROLLER_PAUSES);
    // A long run comes to every step often.
    for step in steps.into_iter().cycle().take(pauses as usize) {
        load.answers(50).await;
        ends.extend(round(&mut cluster, step, &mut random).await);
        load.answers(50).await;
        cluster.whole().await;
    }
    nothing_lies_about(&cluster).await;
    for (task, end) in &ends {
        let now = fetch(&cluster, *task).await.unwrap();
        assert_eq!(now.state(), *end, "what was over stays as it was: {now:?}");
    }
    let canceled = ends.values().filter(|end| **end == v1::TaskState::Canceled).count();
    // No shard is held by a task that is over.
    for shard in 1..=2 {
        let from = *voters(&cluster).await.unwrap()[&shard].values().next().unwrap();
        let task = ask_to_move(&cluster, shard, from, SPARE).await;
        assert_eq!(end_of(&cluster, task).await, v1::TaskState::Done);
    }
    let verdict = load.judge(&cluster.dir()).await;
    cluster.level().await;
    // Nothing is written down of replicas on the spare node once they have left.
    let spare = SPARE.to_string();
    cluster.admin_json(&["drain", &spare]);
    emptied(&cluster).await;
    cluster.admin_json(&["remove-node", &spare]);
    let figures = format!("seed {seed}, {pauses} pauses, {canceled} moves undone, {verdict}");
    report("a paused controller", &figures);
}

/// A replica is on its way to the spare node; its controller stands still at a step. Another one
/// ends the move or undoes it, and has the replica leave again. Then the first one goes on. Answers
/// how the moves ended.
async fn round(
    cluster: &mut Cluster,
    step: &str,
    random: &mut StdRng,
) -> Vec<(u64, v1::TaskState)> {
    let old = controller(cluster).await;
    let shard = random.random_range(1..=2);
    let sources: Vec<u64> = (1..=3).filter(|node| *node != old).collect();
    let from = *sources.choose(random).unwrap();
    let still_ms = random.random_range(0..WITHIN_STEP_MS);
    let cancels = random.random_bool(0.5);
    println!("shard {shard} from {from}; {old} stands still {still_ms} ms into {step}");
    cluster.proxies().slow(SLOW);
    let task = ask_to_move(cluster, shard, from, SPARE).await;
    seen_at(cluster, old, task, step).await;
    // A moment that is drawn: there is nothing to wait for.
    sleep_until(Instant::now() + Duration::from_millis(still_ms)).await;
    cluster.pause(old);
    cluster.proxies().slow(Duration::ZERO);
    assert_ne!(cluster.leader(0).await, old);
    if cancels {
        let said = cluster.admin(&["cancel", &task.to_string()]);
        println!("canceled: {}", said.status.success());
    }
    let mut ends = vec![(task, end_of(cluster, task).await)];
    let done = ends[0].1 == v1::TaskState::Done;
    assert!(done || ends[0].1 == v1::TaskState::Canceled, "{ends:?}");
    if done {
        let back = ask_to_move(cluster, shard, SPARE, from).await;
        ends.push((back, end_of(cluster, back).await));
        assert_eq!(ends[1].1, v1::TaskState::Done);
    }
    cluster.resume(old);
    ends
}

/// Waits until a node that controls the cluster has a task at a step, or past it; looks often.
async fn seen_at(cluster: &Cluster, node: u64, id: u64, step: &str) {
    let endpoint = Endpoint::from_shared(cluster.endpoint(node)).unwrap();
    let mut admin = AdminClient::new(endpoint.connect().await.unwrap());
    let mut ticks = interval(Duration::from_millis(2));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let looked = async {
        loop {
            ticks.tick().await;
            let found = admin.get_task(v1::GetTaskRequest { id }).await;
            if found.is_ok_and(|task| is_at(task.get_ref(), step)) {
                return;
            }
        }
    };
    timeout(PATIENCE, looked).await.unwrap_or_else(|_| panic!("task {id} never comes to {step}"));
}
