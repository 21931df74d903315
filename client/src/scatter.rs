//! A batch on its way to many nodes: taken apart by who leads, answered together, in order.
//!
//! Each item has its own fate: those that may go again do, the others keep their error.

use std::sync::Arc;

use futures::future::join_all;
use statehouse_proto::v1;
use statehouse_proto::v1::pipeline_response::Result as Answer;

use crate::Error;
use crate::batch::{Batch, Item};
use crate::map::Map;
use crate::nodes::Target;
use crate::pipeline::Pending;
use crate::retry::{Attempts, Backoff, Effect, Fate};
use crate::trip::{Road, Until, pause, wait};

/// A batch under way.
pub struct Scatter {
    road: Arc<Road>,
    batch: Batch,
    lane: u64,
    until: Until,
    map: Arc<Map>,
    parts: Vec<Part>,
    items: Vec<Tried>,
    lag_ms: u64,
    /// Failed attempts at whole parts.
    attempts: Attempts<Error>,
    /// Why a whole part was refused, if any was.
    refused: Option<Error>,
    answered: bool,
}

/// An item, as far as it is answered.
#[derive(Default)]
struct Tried {
    item: Option<Item>,
    attempts: Attempts<v1::Error>,
}

/// What goes to one node together.
struct Part {
    at: Vec<usize>,
    place: usize,
    target: Target,
    attempt: Result<Pending, Error>,
}

impl Scatter {
    /// Sends every item to the node that leads its key's shard, as far as is known.
    pub async fn begin(road: Arc<Road>, batch: Batch, lane: u64) -> Scatter {
        let until = Until::of(road.nodes.config.timeout);
        let map = road.nodes.map();
        let items = (0..batch.items()).map(|_| Tried::default()).collect();
        let mut scatter = Scatter {
            road,
            lane,
            until,
            map,
            parts: Vec::new(),
            items,
            lag_ms: 0,
            attempts: Attempts::default(),
            refused: None,
            answered: false,
            batch,
        };
        let all = (0..scatter.batch.items()).map(|at| (at, None)).collect();
        scatter.send(all).await;
        scatter
    }

    /// Sends items, each with the node to avoid.
    async fn send(&mut self, items: Vec<(usize, Option<u64>)>) {
        let mut parts: Vec<(Vec<usize>, usize, Target)> = Vec::new();
        for (at, avoid) in items {
            let place = self.map.place(self.batch.key(at));
            let target = self.road.nodes.target(&self.map, place, avoid);
            match parts.iter_mut().find(|part| Arc::ptr_eq(&part.2.lanes, &target.lanes)) {
                Some(part) => part.0.push(at),
                None => parts.push((vec![at], place, target)),
            }
        }
        for (at, place, target) in parts {
            let call = self.batch.pick(&at);
            let attempt = target.lanes.send(self.lane, call, self.until.left()).await;
            self.parts.push(Part { at, place, target, attempt });
        }
    }

    /// Waits for all answers, and sends items again while that is safe and may help.
    pub async fn end(mut self) -> Result<Answer, Error> {
        let mut backoff = Backoff::default();
        loop {
            let again = self.gather().await;
            if again.is_empty() {
                break;
            }
            pause(&self.road.budget, &mut backoff, self.until).await;
            self.map = self.road.nodes.map();
            self.send(again).await;
        }
        if let (Some(error), false) = (self.refused, self.answered) {
            return Err(self.attempts.end(Fate::of(&error), error));
        }
        let items = self.items.into_iter().filter_map(|tried| tried.item).collect();
        Ok(self.batch.put_together((items, self.lag_ms)))
    }

    /// Takes the answers of all parts; answers which items to send again, and whom to avoid.
    async fn gather(&mut self) -> Vec<(usize, Option<u64>)> {
        let (nodes, map, batch) = (&self.road.nodes, &self.map, &self.batch);
        let answers = join_all(self.parts.drain(..).map(|mut part| async move {
            let worst = part.at.iter().map(|at| batch.effect(*at)).find(|e| *e == Effect::Once);
            let effect = worst.unwrap_or(Effect::Repeatable);
            let answer = match &mut part.attempt {
                Ok(pending) => wait(nodes, pending, (map, part.place, &part.target), effect).await,
                Err(error) => Err(error.clone()),
            };
            (part, answer)
        }))
        .await;
        let over = self.until.is_over();
        let mut again = Vec::new();
        for (part, answer) in answers {
            let node = part.target.node;
            let answer = match answer {
                Ok(answered) => {
                    if answered.forwarded_to != 0 {
                        // Which of the shards moved is not said: the map says.
                        nodes.refresh(map.epoch()).await;
                    }
                    let apart = batch.taken_apart(answered.answer, part.at.len());
                    apart.ok_or(Error::Unexpected("not the answer of such a batch"))
                }
                Err(error) => Err(error),
            };
            match answer {
                Ok((items, lag_ms)) => {
                    self.road.budget.earn();
                    self.answered = true;
                    self.lag_ms = self.lag_ms.max(lag_ms);
                    for (at, item) in part.at.into_iter().zip(items) {
                        if self.items[at].answered(item, batch.effect(at), over) {
                            again.push((at, Some(node)));
                        }
                    }
                }
                Err(error) => {
                    nodes.learn_from(map, part.place, &error, &part.target).await;
                    let fate = Fate::of(&error);
                    let writes = part.at.iter().any(|at| batch.effect(*at) != Effect::None);
                    for at in part.at {
                        let item = Item::Error(error.clone().into());
                        if self.items[at].answered(item, batch.effect(at), over) {
                            again.push((at, Some(node)));
                        }
                    }
                    if matches!(fate, Fate::Refused | Fate::Settled) || over {
                        self.refused.get_or_insert(error);
                    } else if writes {
                        self.attempts.failed(fate, Effect::Repeatable, error);
                    }
                }
            }
        }
        again.sort_unstable();
        again
    }
}

impl Tried {
    /// Takes the outcome of an attempt. Returns whether the item goes again.
    fn answered(&mut self, item: Item, effect: Effect, over: bool) -> bool {
        let Item::Error(error) = item else {
            self.item = Some(item);
            return false;
        };
        let fate = Fate::of_reason(&error.reason);
        let again = fate.allows(effect) && !over;
        match again {
            true => self.attempts.failed(fate, effect, error),
            false => {
                let error = std::mem::take(&mut self.attempts).end(fate, error);
                self.item = Some(Item::Error(error));
            }
        }
        again
    }
}
