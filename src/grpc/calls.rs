//! Every call as one async function from message to message, shared by the unary services and
//! the pipeline.
//!
//! A call does what orders it (queueing a step, proposing a write) the first time it is polled,
//! before it waits for anything: so calls polled in order take effect in order.

use std::time::Instant;

use futures::future::join_all;
use statehouse_proto::v1;

use super::{convert, status};
use crate::failure::{Failure, Reason};
use crate::metrics::{CallKind, CallMetrics};
use crate::score::Scorer;
use crate::states::States;

/// Keys, puts or scores in one batch.
pub const BATCH_ITEMS_MAX: usize = 4_096;

/// The data calls of a node.
#[derive(Clone)]
pub struct Calls {
    states: States,
    scorer: Scorer,
    counted: CallMetrics,
}

impl Calls {
    /// Over the use cases of a node; every call is counted.
    pub fn new(states: States, scorer: Scorer, counted: CallMetrics) -> Self {
        Calls { states, scorer, counted }
    }

    pub(super) fn states(&self) -> &States {
        &self.states
    }

    pub(super) async fn get(&self, request: v1::GetRequest) -> Result<v1::GetResponse, Failure> {
        self.counted.count(CallKind::Get, self.get_uncounted(request)).await
    }

    async fn get_uncounted(&self, request: v1::GetRequest) -> Result<v1::GetResponse, Failure> {
        let found = self.states.get(&convert::get_query(request)).await?;
        Ok(v1::GetResponse { state: Some(convert::state(found)), lag_ms: 0 })
    }

    pub(super) async fn batch_get(
        &self,
        request: v1::BatchGetRequest,
    ) -> Result<v1::BatchGetResponse, Failure> {
        self.counted.count(CallKind::BatchGet, self.batch_get_uncounted(request)).await
    }

    async fn batch_get_uncounted(
        &self,
        request: v1::BatchGetRequest,
    ) -> Result<v1::BatchGetResponse, Failure> {
        use v1::batch_get_response::{Item, item};
        check_batch("keys", request.keys.len())?;
        let collection = self.states.collection(&request.collection)?;
        let fields = convert::selectors(request.fields);
        let items = self.states.get_many(&collection, &request.keys, &fields).await;
        let item = |found| Item {
            result: Some(match found {
                Ok(state) => item::Result::State(convert::state(state)),
                Err(failure) => item::Result::Error(status::error(failure)),
            }),
        };
        Ok(v1::BatchGetResponse { items: items.into_iter().map(item).collect() })
    }

    pub(super) async fn put(&self, request: v1::PutRequest) -> Result<v1::WriteResponse, Failure> {
        self.counted.count(CallKind::Put, self.put_uncounted(request)).await
    }

    async fn put_uncounted(&self, request: v1::PutRequest) -> Result<v1::WriteResponse, Failure> {
        let written = self.states.put(convert::put(request)?).await?;
        Ok(v1::WriteResponse { version: written.version, repeated_request: written.repeated })
    }

    pub(super) async fn batch_put(
        &self,
        request: v1::BatchPutRequest,
    ) -> Result<v1::BatchPutResponse, Failure> {
        self.counted.count(CallKind::BatchPut, self.batch_put_uncounted(request)).await
    }

    async fn batch_put_uncounted(
        &self,
        request: v1::BatchPutRequest,
    ) -> Result<v1::BatchPutResponse, Failure> {
        use v1::batch_put_response::{Item, item};
        check_batch("puts", request.puts.len())?;
        let items = join_all(request.puts.into_iter().map(|put| self.put_uncounted(put))).await;
        let item = |written| Item {
            result: Some(match written {
                Ok(written) => item::Result::Written(written),
                Err(failure) => item::Result::Error(status::error(failure)),
            }),
        };
        Ok(v1::BatchPutResponse { items: items.into_iter().map(item).collect() })
    }

    pub(super) async fn patch(
        &self,
        request: v1::PatchRequest,
    ) -> Result<v1::WriteResponse, Failure> {
        self.counted.count(CallKind::Patch, self.patch_uncounted(request)).await
    }

    async fn patch_uncounted(
        &self,
        request: v1::PatchRequest,
    ) -> Result<v1::WriteResponse, Failure> {
        let written = self.states.patch(convert::patch(request)?).await?;
        Ok(v1::WriteResponse { version: written.version, repeated_request: written.repeated })
    }

    pub(super) async fn delete(
        &self,
        request: v1::DeleteRequest,
    ) -> Result<v1::DeleteResponse, Failure> {
        self.counted.count(CallKind::Delete, self.delete_uncounted(request)).await
    }

    async fn delete_uncounted(
        &self,
        request: v1::DeleteRequest,
    ) -> Result<v1::DeleteResponse, Failure> {
        let (existed, repeated) = self.states.delete(convert::delete(request)?).await?;
        Ok(v1::DeleteResponse { existed, repeated_request: repeated })
    }

    pub(super) async fn score(
        &self,
        request: v1::ScoreRequest,
        deadline: Option<Instant>,
    ) -> Result<v1::ScoreResponse, Failure> {
        self.counted.count(CallKind::Score, self.score_uncounted(request, deadline)).await
    }

    async fn score_uncounted(
        &self,
        request: v1::ScoreRequest,
        deadline: Option<Instant>,
    ) -> Result<v1::ScoreResponse, Failure> {
        let scored = self.scorer.score(convert::score_query(request, deadline)?).await?;
        Ok(convert::scored(scored))
    }

    pub(super) async fn score_batch(
        &self,
        request: v1::ScoreBatchRequest,
        deadline: Option<Instant>,
    ) -> Result<v1::ScoreBatchResponse, Failure> {
        self.counted
            .count(CallKind::ScoreBatch, self.score_batch_uncounted(request, deadline))
            .await
    }

    async fn score_batch_uncounted(
        &self,
        request: v1::ScoreBatchRequest,
        deadline: Option<Instant>,
    ) -> Result<v1::ScoreBatchResponse, Failure> {
        use v1::score_batch_response::{Item, item};
        check_batch("scores", request.scores.len())?;
        let scores = request.scores.into_iter().map(|score| self.score_uncounted(score, deadline));
        let items = join_all(scores).await;
        let item = |scored| Item {
            result: Some(match scored {
                Ok(scored) => item::Result::Scored(scored),
                Err(failure) => item::Result::Error(status::error(failure)),
            }),
        };
        Ok(v1::ScoreBatchResponse { items: items.into_iter().map(item).collect() })
    }
}

fn check_batch(what: &str, items: usize) -> Result<(), Failure> {
    if items <= BATCH_ITEMS_MAX {
        return Ok(());
    }
    let message = format!("a batch has at most {BATCH_ITEMS_MAX} {what}, got {items}");
    Err(Failure::new(Reason::InvalidRequest, message))
}
