//! A batch whose items belong to many nodes: what this node leads runs here, the rest goes to
//! those who lead it, all at the same time, and the answers come together in order.
//!
//! Each item has its own fate: one that failed and may go again does, the others keep what they
//! were answered. A batch that was forwarded to this node is run here; items that it doesn't lead
//! are refused. Items of one key stay in their order: they go the same way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join, join_all};
use statehouse_client::batch::{Batch, Item};
use statehouse_client::lanes::Lanes;
use statehouse_client::retry::{Attempts, Effect};
use statehouse_cluster::raft::Group;
use statehouse_cluster::{NodeId, ShardId};
use statehouse_proto::v1;

use super::caller::Caller;
use super::damaged::elsewhere;
use super::routed::{Routed, not_its_answer};
use super::{Calls, convert, status};
use crate::admission::Charge;
use crate::failure::{Failure, Reason};
use crate::router::{Place, Route};
use crate::states::{Freshness, KeyHere};

/// An item that runs on this node's replica.
type ItemHere = (usize, Arc<Group>);

/// What goes to one node together, on the lane of its first item's shard.
struct Part {
    node: NodeId,
    lanes: Arc<Lanes>,
    lane: u64,
    shard: ShardId,
    items: Vec<usize>,
}

/// A round: where each item that is left goes.
#[derive(Default)]
struct Round {
    here: Vec<ItemHere>,
    parts: Vec<Part>,
    failed: Vec<(usize, Failure)>,
}

/// What came of a round, and how far behind the furthest replica was.
type Came = (Vec<(usize, Result<Item, Failure>)>, u64);

/// A batch, as far as it is answered.
struct Scatter<'a> {
    calls: &'a Calls,
    batch: &'a Batch,
    caller: Caller<'a>,
    /// How fresh a state must be that is read; of scores each says so itself.
    freshness: Option<Freshness>,
    routes: BTreeMap<ShardId, Route>,
    /// Failed attempts at each item, by its place in the batch.
    attempts: BTreeMap<usize, Attempts<Failure>>,
}

impl Calls {
    /// Runs a batch where its items' leaders are.
    pub(super) async fn scatter(
        &self,
        batch: Batch,
        caller: Caller<'_>,
    ) -> Result<(Vec<Item>, u64), Failure> {
        let freshness = match &batch {
            Batch::Get(get) => Some(convert::freshness(get.consistency, get.max_lag_ms)?),
            Batch::Prefetch(it) => Some(convert::freshness(it.consistency, it.max_lag_ms)?),
            Batch::Put(_) => Some(Freshness::Linearizable),
            Batch::Score(_) => None,
        };
        let (routes, attempts) = (BTreeMap::new(), BTreeMap::new());
        let mut scatter =
            Scatter { calls: self, batch: &batch, caller, freshness, routes, attempts };
        let mut items: Vec<Option<Item>> = vec![None; batch.items()];
        let mut left: Vec<usize> = (0..batch.items()).collect();
        let mut lag_ms = 0;
        while !left.is_empty() {
            let (came, lag) = scatter.round(std::mem::take(&mut left)).await;
            lag_ms = lag_ms.max(lag);
            let mut wait = Duration::ZERO;
            for (at, outcome) in came {
                match outcome.or_else(|failure| scatter.failed(at, failure, &mut wait)) {
                    Ok(item) => items[at] = Some(item),
                    Err(Again) => left.push(at),
                }
            }
            if !left.is_empty() {
                left.sort_unstable();
                tokio::time::sleep(wait).await;
            }
        }
        Ok((items.into_iter().flatten().collect(), lag_ms))
    }

    /// Reads keys on this node's replicas, each replica made sure of once.
    async fn get_here(
        &self,
        get: &v1::BatchGetRequest,
        freshness: Freshness,
        here: &[ItemHere],
        charge: &Arc<Charge>,
    ) -> Came {
        let asked = async {
            let selection = convert::selection(get.fields.clone())?;
            Ok::<_, Failure>((self.states().collection(&get.collection).await?, selection))
        };
        let (collection, selection) = match asked.await {
            Ok(asked) => asked,
            Err(failure) => {
                return (here.iter().map(|(at, _)| (*at, Err(failure.clone()))).collect(), 0);
            }
        };
        let mut groups: Vec<&Arc<Group>> = Vec::new();
        for (_, group) in here {
            if !groups.iter().any(|known| Arc::ptr_eq(known, group)) {
                groups.push(group);
            }
        }
        let reached = join_all(groups.iter().map(|group| freshness.reached_by(group))).await;
        let of = |group: &Arc<Group>| {
            let at = groups.iter().position(|known| Arc::ptr_eq(known, group));
            &reached[at.expect("every item's group is among them")]
        };
        let lag = reached.iter().flatten().max().copied().unwrap_or_default();
        let mut came = Vec::with_capacity(here.len());
        let mut ready: Vec<usize> = Vec::with_capacity(here.len());
        let mut keys: Vec<KeyHere<'_>> = Vec::with_capacity(here.len());
        for (at, group) in here {
            match of(group) {
                Ok(_) => {
                    ready.push(*at);
                    keys.push((&get.keys[*at], group));
                }
                Err(failure) => came.push((*at, Err(failure.clone()))),
            }
        }
        let found = self.states().get_many(&collection, &keys, &selection, charge).await;
        let found = keys.iter().zip(found).map(|((_, group), found)| elsewhere(group, found));
        let found = join_all(found).await.into_iter();
        let item =
            |found: Result<_, Failure>| found.map(|state| Item::State(convert::state(state)));
        came.extend(ready.into_iter().zip(found.map(item)));
        (came, convert::lag_ms(lag))
    }
}

/// The item goes again.
struct Again;

impl Scatter<'_> {
    async fn round(&mut self, left: Vec<usize>) -> Came {
        let Round { here, parts, failed } = self.place(left);
        let this = &*self;
        let forwarded = join_all(parts.iter().map(|part| this.forward(part)));
        let ((mut came, mut lag_ms), forwarded) = join(this.run_here(here), forwarded).await;
        for (part, outcomes) in parts.iter().zip(forwarded) {
            self.caller.answered_by(part.node);
            let (outcomes, lag) = outcomes;
            lag_ms = lag_ms.max(lag);
            came.extend(outcomes);
        }
        came.extend(failed.into_iter().map(|(at, failure)| (at, Err(failure))));
        (came, lag_ms)
    }

    /// Where each item goes; those of one shard go together.
    fn place(&mut self, left: Vec<usize>) -> Round {
        let router = self.calls.router();
        let mut round = Round::default();
        let mut places: BTreeMap<(ShardId, Freshness), Place> = BTreeMap::new();
        for at in left {
            let shard = router.shard_of(self.batch.key(at));
            let freshness = match self.freshness_of(at) {
                Ok(freshness) => freshness,
                Err(failure) => {
                    round.failed.push((at, failure));
                    continue;
                }
            };
            let deadline = self.caller.deadline;
            let route = self.routes.entry(shard);
            // What an item may do again is asked of each; the route is its shard's.
            let route = route.or_insert_with(|| router.route(shard, deadline, Effect::None));
            let place = places.entry((shard, freshness)).or_insert_with(|| route.next(freshness));
            match place {
                Place::Here(group) => round.here.push((at, group.clone())),
                // The refusal is made where it is answered.
                _ if self.caller.hop => {
                    round.failed.push((at, Failure::not_leader(shard, None)));
                }
                Place::There(node, lanes) => round.forward(*node, lanes, shard, at),
                Place::Nowhere => {
                    round.failed.push((at, Failure::not_leader(shard, router.leader_of(shard))));
                }
            }
        }
        round
    }

    fn freshness_of(&self, at: usize) -> Result<Freshness, Failure> {
        match (self.freshness, self.batch) {
            (Some(freshness), _) => Ok(freshness),
            (None, Batch::Score(scores)) => scores[at].freshness(),
            (None, Batch::Get(_) | Batch::Prefetch(_) | Batch::Put(_)) => {
                Ok(Freshness::Linearizable)
            }
        }
    }

    /// Runs items on this node's replicas.
    async fn run_here(&self, here: Vec<ItemHere>) -> Came {
        let (calls, caller) = (self.calls, &self.caller);
        match self.batch {
            Batch::Get(_) if here.is_empty() => (Vec::new(), 0),
            Batch::Get(get) => {
                let freshness = self.freshness.unwrap_or(Freshness::Linearizable);
                calls.get_here(get, freshness, &here, &caller.charge).await
            }
            Batch::Prefetch(_) if here.is_empty() => (Vec::new(), 0),
            Batch::Prefetch(prefetch) => (calls.prefetch_here(prefetch, &here).await, 0),
            Batch::Put(puts) => {
                let put = |(at, group): ItemHere| async move {
                    let written = puts[at].clone().here(calls, &group, caller.clone()).await;
                    (at, elsewhere(&group, written).await.map(Item::Written))
                };
                (join_all(here.into_iter().map(put)).await, 0)
            }
            Batch::Score(scores) => {
                let score = |(at, group): ItemHere| async move {
                    let scored = scores[at].clone().here(calls, &group, caller.clone()).await;
                    (at, elsewhere(&group, scored).await.map(Item::Scored))
                };
                (join_all(here.into_iter().map(score)).await, 0)
            }
        }
    }

    /// Sends a part to its node; what comes back is each item's outcome.
    async fn forward(&self, part: &Part) -> Came {
        let worst = part.items.iter().any(|at| self.batch.effect(*at) == Effect::Once);
        let effect = if worst { Effect::Once } else { Effect::Repeatable };
        let route = self.calls.router().route(part.shard, self.caller.deadline, effect);
        let route = route.to(part.node);
        let call = self.batch.pick(&part.items);
        let charge = &self.caller.charge;
        let answer = self.calls.ask(&route, &part.lanes, call, charge).await.and_then(|answer| {
            self.batch.taken_apart(answer, part.items.len()).ok_or_else(not_its_answer)
        });
        let at = part.items.iter().copied();
        match answer {
            Ok((items, lag_ms)) => {
                let outcome = |item| match item {
                    Item::Error(error) => Err(status::failed(error)),
                    done => Ok(done),
                };
                (at.zip(items.into_iter().map(outcome)).collect(), lag_ms)
            }
            Err(failure) => (at.map(|at| (at, Err(failure.clone()))).collect(), 0),
        }
    }

    /// What a failed item comes to: its error, or another attempt after a wait.
    fn failed(&mut self, at: usize, failure: Failure, wait: &mut Duration) -> Result<Item, Again> {
        let error = |failure| Ok(Item::Error(status::error(failure)));
        let shard = self.calls.router().shard_of(self.batch.key(at));
        if self.caller.hop {
            let refused = failure.reason == Reason::NotLeader;
            return error(if refused { self.calls.router().refusal(shard) } else { failure });
        }
        let Some(route) = self.routes.get_mut(&shard) else { return error(failure) };
        let attempts = self.attempts.entry(at).or_default();
        match route.failed_with(failure, self.batch.effect(at), attempts) {
            Ok(again) => {
                *wait = (*wait).max(again);
                Err(Again)
            }
            Err(failure) => error(failure),
        }
    }
}

impl Round {
    /// One part for each node and lane: so a shard's items and calls keep their order.
    fn forward(&mut self, node: NodeId, lanes: &Arc<Lanes>, shard: ShardId, at: usize) {
        let lane = u64::from(shard.0) % lanes.streams() as u64;
        let part = self.parts.iter_mut().find(|part| part.node == node && part.lane == lane);
        if let Some(part) = part {
            return part.items.push(at);
        }
        let lanes = lanes.clone();
        self.parts.push(Part { node, lanes, lane, shard, items: vec![at] });
    }
}
