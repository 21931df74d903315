//! Shards move between nodes and nodes are drained while clients write, and while the node that
//! a replica leaves, the one that it comes to, or the one that carries the change out is killed:
//! every change ends, and no client is answered anything wrong.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1;

use crate::harness::cluster::{Cluster, Shape, await_some};
use crate::harness::condition::await_some_for;
use crate::harness::workload::{Load, Workload};
use crate::harness::{PATIENCE, report, scale, seed};

/// Moves of a short run; `MOVES` overrides it.
const MOVES: u64 = 4;

/// Steps of a change at which somebody is killed.
pub const STEPS: [&str; 6] = ["create", "learn", "catch_up", "join", "record", "destroy"];

#[derive(Debug, Clone, Copy)]
enum Victim {
    Nobody,
    Source,
    Target,
    Controller,
}

#[tokio::test(flavor = "multi_thread")]
async fn moves_end_whoever_is_killed_and_no_answer_is_wrong() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::of(Shape { nodes: 4, ..Shape::default() }).await;
    let load = Workload::start(&cluster, Load::default(), random.random()).await;
    let mut ends = Vec::new();
    let mut deaths = every_death();
    deaths.shuffle(&mut random);
    // A long run comes to every death at every step.
    for (victim, step) in deaths.into_iter().cycle().take(scale("MOVES", MOVES) as usize) {
        load.answers(100).await;
        let shard = random.random_range(1..=4);
        let (from, to) = way(&cluster, shard, &mut random).await;
        println!("shard {shard} from {from} to {to}; {victim:?} killed at {step}");
        let task = ask_to_move(&cluster, shard, from, to).await;
        let killed = match victim {
            Victim::Nobody => None,
            Victim::Source => Some(from),
            Victim::Target => Some(to),
            Victim::Controller => Some(controller(&cluster).await),
        };
        reach(&cluster, task, step).await;
        if let Some(node) = killed {
            cluster.kill(node);
        }
        load.answers(100).await;
        if let Some(node) = killed {
            cluster.start_node(node).await;
        }
        ends.push(end_of(&cluster, task).await);
        cluster.whole().await;
    }
    assert!(ends.iter().all(|end| *end == v1::TaskState::Done), "{ends:?}");
    let verdict = load.judge(&cluster.dir()).await;
    cluster.level().await;
    report("shards move", &format!("seed {seed}, {} moves, {verdict}", ends.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_and_filled_again_under_load() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::of(Shape { nodes: 4, ..Shape::default() }).await;
    let load = Workload::start(&cluster, Load::default(), random.random()).await;
    load.answers(100).await;
    let node = random.random_range(1..=4);
    let drain = cluster.admin_json(&["drain", &node.to_string()]);
    assert_eq!(drain["state"], "draining", "{drain}");
    // Whoever carries the drain out dies in the middle of it, unless it is the drained one.
    let controller = controller(&cluster).await;
    if controller != node {
        cluster.kill(controller);
        load.answers(100).await;
        cluster.start_node(controller).await;
    }
    await_some_for(2 * PATIENCE, "the node is empty", async || {
        let shards = cluster.shards().await?;
        let holds = |shard: &&v1::Shard| {
            let voter = |replica: &v1::Replica| {
                replica.node == node && replica.role != v1::ReplicaRole::Learner as i32
            };
            shard.replicas.iter().any(voter)
        };
        shards.iter().find(holds).map_or(Ok(()), |shard| Err(format!("{shard:?}")))
    })
    .await;
    load.answers(200).await;
    // Nothing is lost when an empty node goes.
    cluster.kill(node);
    load.answers(200).await;
    cluster.start_node(node).await;
    let back = cluster.admin_json(&["undrain", &node.to_string()]);
    assert_eq!(back["state"], "active", "{back}");
    load.judge(&cluster.dir()).await;
    cluster.whole().await;
    cluster.level().await;
}

/// Whoever takes part, at each step; and moves that nobody disturbs.
fn every_death() -> Vec<(Victim, &'static str)> {
    let at_each = |victim| STEPS.map(|step| (victim, step));
    let mut deaths: Vec<_> = [Victim::Source, Victim::Target, Victim::Controller]
        .into_iter()
        .flat_map(at_each)
        .collect();
    deaths.extend([(Victim::Nobody, "create"); 2]);
    deaths
}

/// A node that has a replica of a shard, and one that has none.
async fn way(cluster: &Cluster, shard: u32, random: &mut StdRng) -> (u64, u64) {
    let shards = cluster.shards().await.unwrap();
    let shard = shards.iter().find(|found| found.id == shard).unwrap();
    let on: BTreeSet<u64> = shard.replicas.iter().map(|replica| replica.node).collect();
    let sources: Vec<u64> = on.iter().copied().collect();
    let targets: Vec<u64> = cluster.nodes().into_iter().filter(|node| !on.contains(node)).collect();
    (*sources.choose(random).unwrap(), *targets.choose(random).unwrap())
}

pub async fn ask_to_move(cluster: &Cluster, shard: u32, from: u64, to: u64) -> u64 {
    let request = v1::MoveShardRequest { shard, from, to };
    await_some("the move is written down", async || {
        cluster
            .ask(async |admin| admin.move_shard(request).await.map(|task| task.into_inner().id))
            .await
    })
    .await
}

pub async fn controller(cluster: &Cluster) -> u64 {
    await_some("somebody leads shard 0", async || {
        let status =
            cluster.ask(async |admin| admin.get_cluster(v1::GetClusterRequest {}).await).await?;
        match status.get_ref().controller {
            0 => Err("nobody".to_owned()),
            node => Ok(node),
        }
    })
    .await
}

pub async fn fetch(cluster: &Cluster, id: u64) -> Result<v1::Task, String> {
    let request = v1::GetTaskRequest { id };
    cluster.ask(async |admin| admin.get_task(request).await.map(tonic::Response::into_inner)).await
}

/// Waits until a task has come to a step, or past it.
async fn reach(cluster: &Cluster, id: u64, step: &str) {
    await_some(&format!("task {id} reaches {step}"), async || {
        let task = fetch(cluster, id).await?;
        if is_at(&task, step) { Ok(()) } else { Err(format!("{task:?}")) }
    })
    .await;
}

/// Whether a task has come to a step, or past it.
pub fn is_at(task: &v1::Task, step: &str) -> bool {
    let place = |step: &str| STEPS.iter().position(|known| *known == step).unwrap_or(STEPS.len());
    place(&task.step) >= place(step)
}

pub async fn end_of(cluster: &Cluster, id: u64) -> v1::TaskState {
    await_some(&format!("task {id} is over"), async || {
        let task = fetch(cluster, id).await?;
        let state = v1::TaskState::try_from(task.state).unwrap();
        match state {
            v1::TaskState::Done | v1::TaskState::Canceled | v1::TaskState::Failed => Ok(state),
            v1::TaskState::Running | v1::TaskState::Undoing | v1::TaskState::Unspecified => {
                Err(format!("{task:?}"))
            }
        }
    })
    .await
}
