//! What plans promise, on pictures drawn by hand and at random.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

fn nodes(count: u64) -> Vec<NodeView> {
    (1..=count)
        .map(|id| NodeView { id: NodeId(id), alive: true, open: true, short: false })
        .collect()
}

fn shard(id: u16, on: &[u64], bytes: u64) -> ShardView {
    ShardView {
        id: ShardId(id),
        nodes: on.iter().copied().map(NodeId).collect(),
        stopped: BTreeSet::new(),
        leader: on.first().copied().map(NodeId),
        bytes,
        load: bytes,
        busy: false,
    }
}

fn view(nodes: Vec<NodeView>, shards: Vec<ShardView>) -> View {
    View { replicas: 3, nodes, shards }
}

/// Makes the plan again and again until it is empty; every move must be allowed when made.
fn settle(mut view: View, plan: impl Fn(&View) -> Vec<Move>) -> View {
    for _ in 0..10_000 {
        let Some(next) = plan(&view).first().copied() else { return view };
        assert_eq!(view.check(next), Ok(()), "{next:?}");
        view.make(next);
        for shard in &view.shards {
            assert!(shard.nodes.len() <= view.replicas + 1, "{shard:?}");
        }
    }
    panic!("the plan never ends: {view:?}");
}

fn spread(weights: &BTreeMap<NodeId, u64>) -> u64 {
    weights.values().max().unwrap() - weights.values().min().unwrap()
}

#[test]
fn a_cluster_that_grows_gets_its_replicas() {
    let alone = (0..=16).map(|id| shard(id, &[1], 100)).collect();
    let grown = settle(view(nodes(3), alone), View::mend);
    assert!(grown.shards.iter().all(|shard| shard.nodes.len() == 3), "{grown:?}");
}

#[test]
fn a_node_short_of_disk_keeps_its_replicas_and_gives_its_leads_away() {
    let mut members = nodes(4);
    members[0].short = true;
    let shards: Vec<_> = (1..=6).map(|id| shard(id, &[1, 2, 3], 100)).collect();
    let short = view(members, shards);
    assert_eq!(short.mend(), [], "it is no place to leave in haste");
    let led = settle(short.clone(), |view| view.balance(By::Leaders));
    assert!(led.shards.iter().all(|shard| shard.leader != Some(NodeId(1))), "{led:?}");
    let to = NodeId(1);
    let asked = led.check(Move::Lead { shard: ShardId(1), to });
    assert_eq!(asked, Err(Refusal::Closed(to)));
    let even = settle(short, |view| view.balance(By::Bytes));
    assert!(even.weights(By::Bytes)[&NodeId(1)] < 600, "it may give: {even:?}");
    let moved = even.shards.iter().filter(|shard| shard.nodes.contains(&NodeId(4))).count();
    assert!(moved >= 4, "{even:?}");
}

#[test]
fn one_node_is_as_many_as_there_are() {
    let alone = (0..=4).map(|id| shard(id, &[1], 100)).collect();
    assert_eq!(view(nodes(1), alone).mend(), []);
}

#[test]
fn replicas_of_a_dead_node_are_rebuilt_elsewhere() {
    let mut members = nodes(4);
    members[1].alive = false;
    let shards = (1..=8).map(|id| shard(id, &[1, 2, 3], 100)).collect();
    let mended = settle(view(members, shards), View::mend);
    for shard in &mended.shards {
        assert_eq!(shard.nodes, [1, 3, 4].map(NodeId).into(), "{shard:?}");
    }
}

#[test]
fn a_majority_that_is_gone_is_not_mended_by_a_guess() {
    let mut members = nodes(4);
    (members[1].alive, members[2].alive) = (false, false);
    let left = view(members, vec![shard(1, &[1, 2, 3], 100)]);
    assert_eq!(left.mend(), [Move::Replace { shard: ShardId(1), from: NodeId(2), to: NodeId(4) }]);
    let three = view(left.nodes[..3].to_vec(), left.shards.clone());
    assert_eq!(three.mend(), [], "there is nowhere to go");
}

#[test]
fn a_drained_node_is_empty_in_the_end() {
    let shards = (1..=9).map(|id| shard(id, &[1, 2, 3], 100 * u64::from(id))).collect();
    let mut view = view(nodes(5), shards);
    let plan = view.drain(NodeId(2)).unwrap();
    assert_eq!(plan.len(), 9);
    view = view.after(&plan);
    assert!(view.shards.iter().all(|shard| !shard.nodes.contains(&NodeId(2))));
    assert!(spread(&view.after(&[]).weights(By::Bytes)) <= 4_500);
    let three = View { nodes: nodes(3), ..view.clone() };
    let full = View { shards: vec![shard(1, &[1, 2, 3], 1)], ..three };
    assert_eq!(full.drain(NodeId(2)), Err(Refusal::NoRoom(ShardId(1))));
    assert_eq!(full.drain(NodeId(9)), Err(Refusal::UnknownNode(NodeId(9))));
}

#[test]
fn what_must_not_be_is_refused_with_its_reason() {
    let mut members = nodes(5);
    members[3].open = false;
    members[2].alive = false;
    let mut busy = shard(2, &[1, 2, 3], 1);
    busy.busy = true;
    let view = view(members, vec![shard(1, &[1, 2, 3], 1), busy]);
    let (one, two) = (ShardId(1), ShardId(2));
    let replace = |shard, from, to| {
        let wanted = Move::Replace { shard, from: NodeId(from), to: NodeId(to) };
        view.check(wanted).unwrap_err().to_string()
    };
    assert_eq!(replace(one, 1, 2), "node 2 has a replica of shard 1 already");
    assert_eq!(replace(one, 5, 4), "node 5 has no replica of shard 1");
    assert_eq!(replace(one, 1, 9), "node 9 is not a member of this cluster");
    assert_eq!(replace(one, 9, 5), "node 9 is not a member of this cluster");
    assert!(replace(one, 1, 4).starts_with("node 4 takes no replicas"));
    assert!(replace(two, 1, 5).starts_with("shard 2 is being changed"));
    assert_eq!(replace(ShardId(7), 1, 5), "shard 7 does not exist");
    let remove = view.check(Move::Remove { shard: one, from: NodeId(1) });
    assert_eq!(remove, Err(Refusal::LastGood { shard: one, alive: 1, left: 2 }));
    assert_eq!(view.check(Move::Remove { shard: one, from: NodeId(3) }), Ok(()));
    let lead = view.check(Move::Lead { shard: one, to: NodeId(3) });
    assert_eq!(lead, Err(Refusal::Closed(NodeId(3))));
}

#[test]
fn leaders_are_spread() {
    let shards = (1..=16).map(|id| shard(id, &[1, 2, 3], 100)).collect();
    let view = view(nodes(3), shards);
    let plan = view.balance(By::Leaders);
    assert!(plan.len() <= 11, "no more transfers than needed: {plan:?}");
    assert!(spread(&view.after(&plan).weights(By::Leaders)) <= 1);
    assert_eq!(view.after(&plan).balance(By::Leaders), []);
}

#[test]
fn others_are_handed_over_before_shard_0() {
    let led_by =
        |id, leader| ShardView { leader: Some(NodeId(leader)), ..shard(id, &[1, 2, 3], 1) };
    let shards = vec![led_by(0, 2), led_by(1, 3), led_by(2, 2), led_by(3, 3), led_by(4, 2)];
    let plan = view(nodes(3), shards).balance(By::Leaders);
    assert_eq!(plan, [Move::Lead { shard: ShardId(2), to: NodeId(1) }]);
    let last = view(nodes(3), vec![led_by(0, 2), led_by(1, 2)]).balance(By::Leaders);
    assert_eq!(last, [Move::Lead { shard: ShardId(1), to: NodeId(1) }]);
}

#[test]
fn any_cluster_is_balanced_without_a_forbidden_move() {
    let seed = match std::env::var("SEED") {
        Ok(seed) => seed.parse().expect("SEED is a number"),
        Err(_) => rand::rng().random(),
    };
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..200 {
        let count = random.random_range(3..8);
        let shards: Vec<ShardView> = (1..=random.random_range(1..40u16))
            .map(|id| {
                let first = random.random_range(0..count);
                let on: Vec<u64> = (0..3).map(|n| (first + n) % count + 1).collect();
                shard(id, &on, random.random_range(0..1_000))
            })
            .collect();
        let start = view(nodes(count), shards);
        for by in [By::Bytes, By::Load, By::Leaders] {
            let before = spread(&start.weights(by));
            let settled = settle(start.clone(), |view| view.balance(by));
            let after = spread(&settled.weights(by));
            assert!(after <= before, "{by:?}: {before} became {after}");
            for shard in &settled.shards {
                assert_eq!(shard.nodes.len(), 3, "{shard:?}");
            }
        }
    }
}

#[test]
fn a_replica_that_has_stopped_is_rebuilt_where_it_is() {
    let mut ill = shard(3, &[1, 2, 3], 100);
    ill.stopped = BTreeSet::from([NodeId(2)]);
    let rebuild = Move::Rebuild { shard: ShardId(3), at: NodeId(2) };
    let three = view(nodes(3), vec![ill.clone()]);
    assert_eq!(three.mend(), [rebuild]);
    // Also where another node has room: nothing has to be planned anew for it.
    assert_eq!(view(nodes(4), vec![ill.clone()]).mend(), [rebuild]);
    // A node that takes no replicas gets none.
    let mut short = nodes(4);
    short[1].short = true;
    let elsewhere = Move::Replace { shard: ShardId(3), from: NodeId(2), to: NodeId(4) };
    assert_eq!(view(short, vec![ill.clone()]).mend(), [elsewhere]);
    let lead = Move::Lead { shard: ShardId(3), to: NodeId(2) };
    assert_eq!(three.check(lead), Err(Refusal::Closed(NodeId(2))));
    let settled = settle(three, View::mend);
    assert!(settled.shards[0].stopped.is_empty());
}

#[test]
fn nothing_is_rebuilt_without_a_majority_that_takes_part() {
    let mut ill = shard(3, &[1, 2, 3], 100);
    ill.stopped = BTreeSet::from([NodeId(2)]);
    let mut two = nodes(3);
    two[0].alive = false;
    assert_eq!(view(two.clone(), vec![ill.clone()]).mend(), []);
    ill.stopped = BTreeSet::from([NodeId(2), NodeId(3)]);
    assert_eq!(view(nodes(3), vec![ill]).mend(), []);
    // Nor is a good replica taken away while another one does not count.
    let mut four = shard(4, &[1, 2, 3], 100);
    four.stopped = BTreeSet::from([NodeId(2)]);
    let remove = Move::Remove { shard: ShardId(4), from: NodeId(3) };
    let left = Refusal::LastGood { shard: ShardId(4), alive: 1, left: 2 };
    assert_eq!(view(nodes(3), vec![four]).check(remove), Err(left));
}
