//! Whatever links between nodes are cut, one way or both: the side that can goes on, the other
//! one answers nothing wrong, and when the links are back so is everybody.

use std::ops::RangeInclusive;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::harness::cluster::{Cluster, Shape};
use crate::harness::workload::{Load, Workload};
use crate::harness::{report, scale, seed};

/// Rounds through every kind of cut in a short run; `ROUNDS` overrides it.
const ROUNDS: u64 = 1;

/// Answers while links are cut.
const ANSWERS: RangeInclusive<u64> = 50..=150;

/// How far a shard's term may go up in one round of cuts: a node that can't be heard must not
/// have the others elect again and again.
const TERMS_MAX: u64 = 25;

/// What is cut, seen from the leader of a shard.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// The leader hears nobody, and nobody hears it.
    Isolated,
    /// The leader is not heard.
    Mute,
    /// The leader does not hear.
    Deaf,
    /// The leader and one follower do not hear each other; both hear the third.
    Bridge,
    /// A follower is cut off.
    Follower,
}

const CUTS: [Cut; 5] = [Cut::Isolated, Cut::Mute, Cut::Deaf, Cut::Bridge, Cut::Follower];

#[tokio::test(flavor = "multi_thread")]
async fn the_side_that_can_goes_on_and_the_other_answers_nothing_wrong() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::of(Shape { proxied: true, ..Shape::default() }).await;
    let load = Workload::start(&cluster, Load::default(), random.random()).await;
    let rounds = scale("ROUNDS", ROUNDS);
    for _ in 0..rounds {
        let before = terms(&cluster).await;
        for cut in CUTS {
            load.answers(100).await;
            let leader = cluster.leader(random.random_range(1..=4)).await;
            let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
            println!("{cut:?} of node {leader}");
            for other in &others {
                match cut {
                    Cut::Isolated => cluster.proxies().cut(leader, *other),
                    Cut::Mute => cluster.proxies().cut_one_way(leader, *other),
                    Cut::Deaf => cluster.proxies().cut_one_way(*other, leader),
                    Cut::Bridge | Cut::Follower => {}
                }
            }
            match cut {
                Cut::Bridge => cluster.proxies().cut(leader, others[0]),
                Cut::Follower => {
                    cluster.proxies().cut(others[0], leader);
                    cluster.proxies().cut(others[0], others[1]);
                }
                Cut::Isolated | Cut::Mute | Cut::Deaf => {}
            }
            load.answers(random.random_range(ANSWERS)).await;
            cluster.proxies().heal();
        }
        cluster.whole().await;
        let after = terms(&cluster).await;
        for (shard, (before, after)) in before.iter().zip(&after).enumerate() {
            let grown = after - before;
            assert!(grown <= TERMS_MAX, "shard {shard}: {grown} elections in a round of cuts");
        }
    }
    let verdict = load.judge(&cluster.dir()).await;
    assert!(verdict.acknowledged > 300);
    cluster.level().await;
    let cuts = rounds * CUTS.len() as u64;
    report("a partition", &format!("seed {seed}, {cuts} cuts, {verdict}"));
}

async fn terms(cluster: &Cluster) -> Vec<u64> {
    cluster.shards().await.unwrap().iter().map(|shard| shard.term).collect()
}
