//! A call's way to the node that leads its shard: sent, waited for, sent elsewhere if need be.
//!
//! A call that is waited for long is not given up on because of time alone: only when another node
//! leads its shard by now. Attempts end with the caller's timeout, or [`RETRY_FOR_DEFAULT`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use statehouse_proto::v1::pipeline_request::Call;
use statehouse_proto::v1::pipeline_response::Result as Answer;

use crate::Error;
use crate::budget::Budget;
use crate::lanes::Lanes;
use crate::map::Map;
use crate::nodes::{Nodes, Target};
use crate::pipeline::{Answered, Pending};
use crate::retry::{Attempts, Backoff, Effect, Fate};

/// How long retries go on for a caller that names no timeout.
const RETRY_FOR_DEFAULT: Duration = Duration::from_secs(10);

/// How long an answer is waited for before somebody is asked who leads by now.
const PATIENCE: Duration = Duration::from_millis(500);

/// What every trip of a client shares.
pub struct Road {
    pub nodes: Arc<Nodes>,
    pub budget: Budget,
}

/// When a call must be answered, and by when it may be sent again.
#[derive(Clone, Copy)]
pub struct Until {
    deadline: Option<Instant>,
    retries: Instant,
}

impl Until {
    pub fn of(timeout: Option<Duration>) -> Until {
        let now = Instant::now();
        let retries = now + timeout.unwrap_or(RETRY_FOR_DEFAULT);
        Until { deadline: timeout.map(|timeout| now + timeout), retries }
    }

    /// What is left for one attempt.
    pub fn left(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether something may be tried again.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.retries
    }
}

/// One call under way.
pub struct Trip {
    road: Arc<Road>,
    /// To be sent again.
    call: Call,
    effect: Effect,
    map: Arc<Map>,
    place: usize,
    lane: u64,
    until: Until,
    target: Target,
    attempt: Result<Pending, Error>,
}

impl Trip {
    /// Sends a call to the node that leads the shard of its key, as far as is known.
    pub async fn begin(road: Arc<Road>, call: Call, key: &[u8], lane: u64) -> Trip {
        let map = road.nodes.map();
        let place = map.place(key);
        let until = Until::of(road.nodes.config.timeout);
        let target = road.nodes.target(&map, place, None);
        let effect = Effect::of(&call);
        let attempt = target.lanes.send(lane, call.clone(), until.left()).await;
        Trip { road, call, effect, map, place, lane, until, target, attempt }
    }

    /// Waits for the answer, and sends the call again while that is safe and may help.
    pub async fn end(mut self) -> Result<Answer, Error> {
        let (mut backoff, mut attempts) = (Backoff::default(), Attempts::default());
        loop {
            let outcome = match &mut self.attempt {
                Ok(pending) => {
                    let at = (&*self.map, self.place, &self.target);
                    wait(&self.road.nodes, pending, at, self.effect).await
                }
                Err(error) => Err(error.clone()),
            };
            let error = match outcome {
                Ok(answered) => {
                    if answered.forwarded_to != 0 {
                        let (nodes, leader) = (&self.road.nodes, answered.forwarded_to);
                        nodes.learn(&self.map, self.place, leader).await;
                    }
                    self.road.budget.earn();
                    return Ok(answered.answer);
                }
                Err(error) => error,
            };
            let fate = Fate::of(&error);
            if !fate.allows(self.effect) || self.until.is_over() {
                return Err(attempts.end(fate, error));
            }
            let nodes = &self.road.nodes;
            nodes.learn_from(&self.map, self.place, &error, &self.target).await;
            attempts.failed(fate, self.effect, error);
            pause(&self.road.budget, &mut backoff, self.until).await;
            self.map = nodes.map();
            self.target = nodes.target(&self.map, self.place, Some(self.target.node));
            let call = self.call.clone();
            self.attempt = self.target.lanes.send(self.lane, call, self.until.left()).await;
        }
    }
}

/// Waits between two attempts, not past the last moment for one.
pub async fn pause(budget: &Budget, backoff: &mut Backoff, until: Until) {
    let random = rand::random::<f64>();
    let wait = backoff.next(random);
    let wait = if budget.spend() { wait } else { Backoff::longest(random) };
    let left = until.retries.saturating_duration_since(Instant::now());
    tokio::time::sleep(wait.min(left)).await;
}

/// Waits for an answer, or until another node leads and the call may be sent there.
pub async fn wait(
    nodes: &Arc<Nodes>,
    pending: &mut Pending,
    (map, place, target): (&Map, usize, &Target),
    effect: Effect,
) -> Result<Answered, Error> {
    loop {
        if let Ok(answer) = tokio::time::timeout(PATIENCE, pending.answer()).await {
            return answer;
        }
        nodes.refresh_from_others(map.epoch(), target).await;
        let leader = nodes.map().leader(place);
        let elsewhere = leader != 0 && leader != target.node && leader != map.leader(place);
        if elsewhere && effect != Effect::Once {
            return Err(given_up(&target.lanes));
        }
    }
}

fn given_up(lanes: &Lanes) -> Error {
    Error::Unreachable {
        endpoint: lanes.endpoint().to_owned(),
        message: "no answer, and another node leads by now".to_owned(),
        reached: true,
    }
}
