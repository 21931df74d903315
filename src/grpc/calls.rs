//! Every call as one async function from message to message, shared by the unary services and
//! the pipeline.
//!
//! A call does what orders it (queueing a step, proposing a write, taking its place in the stream
//! to the node that leads) the first time it is polled, before it waits for anything: so calls
//! polled in order take effect in order. Before that it takes the bytes of its request from the
//! room for calls, or is refused.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use prost::Message;
use statehouse_client::batch::{Batch, Item};
use statehouse_cluster::raft::Group;
use statehouse_proto::v1;

use super::caller::Caller;
use super::routed::Routed;
use super::transfers::Transfers;
use super::{convert, status};
use crate::admission::Admission;
use crate::failure::{Failure, Reason};
use crate::large::LargeRequests;
use crate::metrics::{CallKind, CallMetrics};
use crate::router::Router;
use crate::score::Scorer;
use crate::states::{Freshness, KeyHere, States};

/// Keys, puts or scores in one batch.
pub const BATCH_ITEMS_MAX: usize = 4_096;

/// The data calls of a node.
#[derive(Clone)]
pub struct Calls {
    states: States,
    scorer: Scorer,
    router: Router,
    transfers: Transfers,
    admission: Admission,
    counted: CallMetrics,
    large: LargeRequests,
}

impl Calls {
    /// Over the use cases of a node; every call is counted.
    pub fn new(
        states: States,
        scorer: Scorer,
        router: Router,
        (transfers, admission): (Transfers, Admission),
        (counted, large): (CallMetrics, LargeRequests),
    ) -> Self {
        Calls { states, scorer, router, transfers, admission, counted, large }
    }

    pub(super) fn states(&self) -> &States {
        &self.states
    }

    pub(super) fn scorer(&self) -> &Scorer {
        &self.scorer
    }

    pub(super) fn router(&self) -> &Router {
        &self.router
    }

    /// What counts calls.
    pub(super) fn counted(&self) -> &CallMetrics {
        &self.counted
    }

    /// The room for calls.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// What notes large ones.
    pub(super) fn large(&self) -> &LargeRequests {
        &self.large
    }

    /// The room for large transfers.
    pub(super) fn transfers(&self) -> &Transfers {
        &self.transfers
    }

    pub(super) async fn get(
        &self,
        request: v1::GetRequest,
        caller: Caller<'_>,
    ) -> Result<v1::GetResponse, Failure> {
        let (hop, call) = (caller.hop, |request| self.admitted(request, caller));
        self.observed(CallKind::Get, (request, hop), call).await
    }

    pub(super) async fn put(
        &self,
        request: v1::PutRequest,
        caller: Caller<'_>,
    ) -> Result<v1::WriteResponse, Failure> {
        let (hop, call) = (caller.hop, |request| self.admitted(request, caller));
        self.observed(CallKind::Put, (request, hop), call).await
    }

    pub(super) async fn patch(
        &self,
        request: v1::PatchRequest,
        caller: Caller<'_>,
    ) -> Result<v1::WriteResponse, Failure> {
        let (hop, call) = (caller.hop, |request| self.admitted(request, caller));
        self.observed(CallKind::Patch, (request, hop), call).await
    }

    pub(super) async fn delete(
        &self,
        request: v1::DeleteRequest,
        caller: Caller<'_>,
    ) -> Result<v1::DeleteResponse, Failure> {
        let (hop, call) = (caller.hop, |request| self.admitted(request, caller));
        self.observed(CallKind::Delete, (request, hop), call).await
    }

    pub(super) async fn score(
        &self,
        request: v1::ScoreRequest,
        caller: Caller<'_>,
    ) -> Result<v1::ScoreResponse, Failure> {
        let (hop, call) = (caller.hop, |request| self.admitted(request, caller));
        self.observed(CallKind::Score, (request, hop), call).await
    }

    /// A call on one key, once there is room for it.
    async fn admitted<R: Routed + Message>(
        &self,
        request: R,
        caller: Caller<'_>,
    ) -> Result<R::Answer, Failure> {
        caller.charge.request(request.encoded_len())?;
        self.routed(request, caller).await
    }

    /// A step of an upload whose bytes a stream to this node holds.
    pub(super) async fn part(
        &self,
        request: v1::UploadRequest,
        caller: Caller<'_>,
    ) -> Result<v1::UploadResponse, Failure> {
        self.counted.count(CallKind::Upload, self.routed(request, caller)).await
    }

    /// One step of an upload.
    pub(super) async fn upload(
        &self,
        request: v1::UploadRequest,
        caller: Caller<'_>,
    ) -> Result<v1::UploadResponse, Failure> {
        self.counted.count(CallKind::Upload, self.admitted(request, caller)).await
    }

    pub(super) async fn batch_get(
        &self,
        request: v1::BatchGetRequest,
        caller: Caller<'_>,
    ) -> Result<v1::BatchGetResponse, Failure> {
        let hop = caller.hop;
        let call = |request| self.batch_get_uncounted(request, caller);
        self.observed(CallKind::BatchGet, (request, hop), call).await
    }

    async fn batch_get_uncounted(
        &self,
        request: v1::BatchGetRequest,
        caller: Caller<'_>,
    ) -> Result<v1::BatchGetResponse, Failure> {
        use v1::batch_get_response::{Item as Got, item};
        caller.charge.request(request.encoded_len())?;
        check_batch("keys", request.keys.len())?;
        let freshness = convert::freshness(request.consistency, request.max_lag_ms)?;
        let collection = self.states.collection(&request.collection).await?;
        if let Some(groups) = self.all_reached(&request.keys, freshness).await {
            let keys: Vec<KeyHere<'_>> =
                request.keys.iter().zip(&groups).map(|(key, group)| (key, &**group)).collect();
            let selection = convert::selection(request.fields)?;
            let got = |found| Got {
                result: Some(match found {
                    Ok(state) => item::Result::State(convert::state(state)),
                    Err(failure) => item::Result::Error(status::error(failure)),
                }),
            };
            let charge = &caller.charge;
            let found = self.states.get_many(&collection, &keys, &selection, charge).await;
            let items = found.into_iter().map(got).collect();
            return Ok(v1::BatchGetResponse { items, lag_ms: 0 });
        }
        let (items, lag_ms) = Box::pin(self.scatter(Batch::Get(request), caller)).await?;
        let got = |item| Got {
            result: match item {
                Item::State(state) => Some(item::Result::State(state)),
                Item::Error(error) => Some(item::Result::Error(error)),
                Item::Written(_) | Item::Scored(_) | Item::Warmth(_) => None,
            },
        };
        Ok(v1::BatchGetResponse { items: items.into_iter().map(got).collect(), lag_ms })
    }

    /// On a node alone: its replicas for all keys, once each of them may serve the read. `None`
    /// if there are other nodes, or a replica may not.
    async fn all_reached(&self, keys: &[Bytes], freshness: Freshness) -> Option<Vec<Arc<Group>>> {
        if !self.router.is_alone() {
            return None;
        }
        let shards = self.router.shards();
        let mut reached = vec![false; usize::from(shards.map().shards().get()) + 1];
        let mut groups = Vec::with_capacity(keys.len());
        for key in keys {
            let shard = self.router.shard_of(key);
            let group = shards.group(shard)?;
            if !std::mem::replace(&mut reached[usize::from(shard.0)], true) {
                freshness.reached_by(&group).await.ok()?;
            }
            groups.push(group);
        }
        Some(groups)
    }

    pub(super) async fn batch_put(
        &self,
        request: v1::BatchPutRequest,
        caller: Caller<'_>,
    ) -> Result<v1::BatchPutResponse, Failure> {
        let hop = caller.hop;
        let call = |request| self.batch_put_uncounted(request, caller);
        self.observed(CallKind::BatchPut, (request, hop), call).await
    }

    async fn batch_put_uncounted(
        &self,
        request: v1::BatchPutRequest,
        caller: Caller<'_>,
    ) -> Result<v1::BatchPutResponse, Failure> {
        use v1::batch_put_response::{Item as Put, item};
        caller.charge.request(request.encoded_len())?;
        check_batch("puts", request.puts.len())?;
        if self.router.is_alone() {
            let puts = request.puts.into_iter().map(|put| self.routed(put, caller.clone()));
            let put = |written| Put {
                result: Some(match written {
                    Ok(written) => item::Result::Written(written),
                    Err(failure) => item::Result::Error(status::error(failure)),
                }),
            };
            let items = join_all(puts).await.into_iter().map(put).collect();
            return Ok(v1::BatchPutResponse { items });
        }
        let (items, _) = Box::pin(self.scatter(Batch::Put(request.puts), caller)).await?;
        let put = |item| Put {
            result: match item {
                Item::Written(written) => Some(item::Result::Written(written)),
                Item::Error(error) => Some(item::Result::Error(error)),
                Item::State(_) | Item::Scored(_) | Item::Warmth(_) => None,
            },
        };
        Ok(v1::BatchPutResponse { items: items.into_iter().map(put).collect() })
    }

    pub(super) async fn score_batch(
        &self,
        request: v1::ScoreBatchRequest,
        caller: Caller<'_>,
    ) -> Result<v1::ScoreBatchResponse, Failure> {
        let hop = caller.hop;
        let call = |request| self.score_batch_uncounted(request, caller);
        self.observed(CallKind::ScoreBatch, (request, hop), call).await
    }

    async fn score_batch_uncounted(
        &self,
        request: v1::ScoreBatchRequest,
        caller: Caller<'_>,
    ) -> Result<v1::ScoreBatchResponse, Failure> {
        use v1::score_batch_response::{Item as Score, item};
        caller.charge.request(request.encoded_len())?;
        check_batch("scores", request.scores.len())?;
        if self.router.is_alone() {
            let scores = request.scores.into_iter().map(|score| self.routed(score, caller.clone()));
            let score = |scored| Score {
                result: Some(match scored {
                    Ok(scored) => item::Result::Scored(scored),
                    Err(failure) => item::Result::Error(status::error(failure)),
                }),
            };
            let items = join_all(scores).await.into_iter().map(score).collect();
            return Ok(v1::ScoreBatchResponse { items });
        }
        let (items, _) = Box::pin(self.scatter(Batch::Score(request.scores), caller)).await?;
        let score = |item| Score {
            result: match item {
                Item::Scored(scored) => Some(item::Result::Scored(scored)),
                Item::Error(error) => Some(item::Result::Error(error)),
                Item::State(_) | Item::Written(_) | Item::Warmth(_) => None,
            },
        };
        Ok(v1::ScoreBatchResponse { items: items.into_iter().map(score).collect() })
    }
}

pub(super) fn check_batch(what: &str, items: usize) -> Result<(), Failure> {
    if items <= BATCH_ITEMS_MAX {
        return Ok(());
    }
    let message = format!("a batch has at most {BATCH_ITEMS_MAX} {what}, got {items}");
    Err(Failure::new(Reason::InvalidRequest, message))
}
