//! A call on one key, run where its shard's leader is: here, or forwarded there.
//!
//! A call of its own is tried again, elsewhere or later, while that is safe: when it had no effect
//! for certain, or a repeat does no harm. A call that was forwarded to this node is run here or
//! refused. On a node that stands alone nothing is kept for another attempt.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use statehouse_client::lanes::Lanes;
use statehouse_client::retry::Effect;
use statehouse_client::v1::pipeline_request::Call;
use statehouse_client::v1::pipeline_response::Result as Answer;
use statehouse_cluster::raft::Group;
use statehouse_proto::v1;

use prost::Message as _;

use super::caller::{Caller, late};
use super::damaged::elsewhere;
use super::{Calls, convert, status};
use crate::admission::Charge;
use crate::failure::{Failure, Reason};
use crate::router::{Place, Route};
use crate::states::Freshness;

/// How long an answer is waited for before a look at who leads by now.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A call on one key.
pub trait Routed: Clone + Send {
    /// What it is answered with.
    type Answer: Send;

    /// Whose state it is about.
    fn key(&self) -> &Bytes;

    /// How fresh the state must be that it reads. A write belongs to the leader.
    fn freshness(&self) -> Result<Freshness, Failure> {
        Ok(Freshness::Linearizable)
    }

    /// What a second run would change.
    fn effect(&self) -> Effect;

    /// Runs it on this node's replica.
    fn here(
        self,
        calls: &Calls,
        group: &Arc<Group>,
        caller: Caller<'_>,
    ) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;

    /// As it goes to another node.
    fn into_call(self) -> Call;

    /// Its answer from another node, if it is one.
    fn of(answer: Answer) -> Option<Self::Answer>;
}

impl Calls {
    /// Runs a call where its shard's leader is.
    pub(super) async fn routed<R: Routed>(
        &self,
        request: R,
        caller: Caller<'_>,
    ) -> Result<R::Answer, Failure> {
        let router = self.router();
        if router.is_alone()
            && let Some(group) = router.shards().group(router.shard_of(request.key()))
        {
            let done = request.here(self, &group, caller).await;
            return Box::pin(elsewhere(&group, done)).await;
        }
        // Boxed, so that a call on a node alone does not carry it.
        Box::pin(self.routed_among_many(request, caller)).await
    }

    async fn routed_among_many<R: Routed>(
        &self,
        request: R,
        caller: Caller<'_>,
    ) -> Result<R::Answer, Failure> {
        let router = self.router();
        let freshness = request.freshness()?;
        let shard = router.shard_of(request.key());
        if caller.hop {
            let group = router.shards().group(shard).filter(|g| freshness.may_be_served_by(g));
            let Some(group) = group else { return Err(router.refusal(shard)) };
            let done = request.here(self, &group, caller).await;
            return match elsewhere(&group, done).await {
                Err(failure) if failure.reason == Reason::NotLeader => Err(router.refusal(shard)),
                done => done,
            };
        }
        let mut route = router.route(shard, caller.deadline, request.effect());
        loop {
            let outcome = match route.next(freshness) {
                Place::Here(group) => {
                    let done = request.clone().here(self, &group, caller.clone()).await;
                    elsewhere(&group, done).await
                }
                Place::There(node, lanes) => {
                    let call = request.clone().into_call();
                    let answer = self.ask(&route, &lanes, call, &caller.charge).await;
                    caller.answered_by(node);
                    answer.and_then(|answer| R::of(answer).ok_or_else(not_its_answer))
                }
                Place::Nowhere => Err(Failure::not_leader(shard, router.leader_of(shard))),
            };
            match outcome {
                Ok(answer) => {
                    route.served();
                    return Ok(answer);
                }
                Err(failure) => tokio::time::sleep(route.failed(failure)?).await,
            }
        }
    }

    /// Sends a call to another node and waits for its answer, or until somebody else is known to
    /// lead and the call may be repeated there.
    pub(super) async fn ask(
        &self,
        route: &Route,
        lanes: &Lanes,
        call: Call,
        charge: &Charge,
    ) -> Result<Answer, Failure> {
        self.router().counted().forwarded.inc();
        let effect = route.effect();
        let sent = match call {
            Call::Upload(_) => lanes.send_bulk(call, Some(route.left())).await,
            // All calls of a shard on one stream: so a key's calls keep their order.
            _ => lanes.send(u64::from(route.shard().0), call, Some(route.left())).await,
        };
        let mut pending = sent.map_err(|error| status::failure(error, effect))?;
        loop {
            let wait = LOOK_INTERVAL.min(route.left());
            if let Ok(answer) = tokio::time::timeout(wait, pending.answer()).await {
                let answer = answer.map_err(|error| status::failure(error, effect))?.answer;
                charge.take(bytes_of(&answer))?;
                return Ok(answer);
            }
            if route.left().is_zero() {
                return Err(late());
            }
            if effect != Effect::Once && route.leads_elsewhere() {
                let reason = match effect {
                    Effect::None => Reason::Unavailable,
                    Effect::Repeatable | Effect::Once => Reason::OutcomeUnknown,
                };
                return Err(Failure::new(reason, "no answer, and another node leads by now"));
            }
        }
    }
}

/// Bytes of an answer that another node gave, if they may be many.
fn bytes_of(answer: &Answer) -> u64 {
    match answer {
        Answer::Get(got) => got.encoded_len() as u64,
        Answer::BatchGet(got) => got.encoded_len() as u64,
        _ => 0,
    }
}

pub(super) fn not_its_answer() -> Failure {
    Failure::new(Reason::Internal, "another node answered with something else than was asked")
}

impl Routed for v1::GetRequest {
    type Answer = v1::GetResponse;

    fn key(&self) -> &Bytes {
        &self.key
    }

    fn freshness(&self) -> Result<Freshness, Failure> {
        convert::freshness(self.consistency, self.max_lag_ms)
    }

    fn effect(&self) -> Effect {
        Effect::None
    }

    async fn here(
        self,
        calls: &Calls,
        group: &Arc<Group>,
        caller: Caller<'_>,
    ) -> Result<v1::GetResponse, Failure> {
        let query = convert::get_query(self)?;
        let (found, lag) = calls.states().get(group, &query, &caller.charge).await?;
        let (state, lag_ms) = (Some(convert::state(found)), convert::lag_ms(lag));
        Ok(v1::GetResponse { state, lag_ms })
    }

    fn into_call(self) -> Call {
        Call::Get(self)
    }

    fn of(answer: Answer) -> Option<v1::GetResponse> {
        if let Answer::Get(got) = answer { Some(got) } else { None }
    }
}

impl Routed for v1::PutRequest {
    type Answer = v1::WriteResponse;

    fn key(&self) -> &Bytes {
        &self.key
    }

    fn effect(&self) -> Effect {
        Effect::of_write(self.options.as_ref())
    }

    async fn here(
        self,
        calls: &Calls,
        group: &Arc<Group>,
        caller: Caller<'_>,
    ) -> Result<v1::WriteResponse, Failure> {
        let written = calls.states().put(group, convert::put(self)?, &caller.charge).await?;
        Ok(convert::written(written))
    }

    fn into_call(self) -> Call {
        Call::Put(self)
    }

    fn of(answer: Answer) -> Option<v1::WriteResponse> {
        if let Answer::Write(written) = answer { Some(written) } else { None }
    }
}

impl Routed for v1::PatchRequest {
    type Answer = v1::WriteResponse;

    fn key(&self) -> &Bytes {
        &self.key
    }

    fn effect(&self) -> Effect {
        Effect::of_write(self.options.as_ref())
    }

    async fn here(
        self,
        calls: &Calls,
        group: &Arc<Group>,
        caller: Caller<'_>,
    ) -> Result<v1::WriteResponse, Failure> {
        let patch = convert::patch(self)?;
        let written = calls.states().patch(group, patch, &caller.charge).await?;
        Ok(convert::written(written))
    }

    fn into_call(self) -> Call {
        Call::Patch(self)
    }

    fn of(answer: Answer) -> Option<v1::WriteResponse> {
        if let Answer::Write(written) = answer { Some(written) } else { None }
    }
}

impl Routed for v1::DeleteRequest {
    type Answer = v1::DeleteResponse;

    fn key(&self) -> &Bytes {
        &self.key
    }

    fn effect(&self) -> Effect {
        Effect::of_write(self.options.as_ref())
    }

    async fn here(
        self,
        calls: &Calls,
        group: &Arc<Group>,
        caller: Caller<'_>,
    ) -> Result<v1::DeleteResponse, Failure> {
        let delete = convert::delete(self)?;
        let (existed, repeated) = calls.states().delete(group, delete, &caller.charge).await?;
        Ok(v1::DeleteResponse { existed, repeated_request: repeated })
    }

    fn into_call(self) -> Call {
        Call::Delete(self)
    }

    fn of(answer: Answer) -> Option<v1::DeleteResponse> {
        if let Answer::Delete(deleted) = answer { Some(deleted) } else { None }
    }
}

impl Routed for v1::ScoreRequest {
    type Answer = v1::ScoreResponse;

    fn key(&self) -> &Bytes {
        &self.key
    }

    fn freshness(&self) -> Result<Freshness, Failure> {
        convert::freshness(self.consistency, self.max_lag_ms)
    }

    fn effect(&self) -> Effect {
        Effect::of_score(self)
    }

    async fn here(
        self,
        calls: &Calls,
        group: &Arc<Group>,
        caller: Caller<'_>,
    ) -> Result<v1::ScoreResponse, Failure> {
        let query = convert::score_query(self, caller.deadline)?;
        Ok(convert::scored(calls.scorer().score(group, query, &caller.charge).await?))
    }

    fn into_call(self) -> Call {
        Call::Score(self)
    }

    fn of(answer: Answer) -> Option<v1::ScoreResponse> {
        if let Answer::Score(scored) = answer { Some(scored) } else { None }
    }
}
