//! `statehouse.v1.Score`: unary scores.

use statehouse_proto::v1;
use statehouse_proto::v1::score_server::Score;
use tonic::{Request, Response, Status};

use super::Calls;
use super::caller::unary;

/// Serves scores.
pub struct ScoreService {
    calls: Calls,
}

impl ScoreService {
    /// Over the calls of a node.
    pub fn new(calls: Calls) -> Self {
        ScoreService { calls }
    }
}

#[tonic::async_trait]
impl Score for ScoreService {
    async fn score(
        &self,
        request: Request<v1::ScoreRequest>,
    ) -> Result<Response<v1::ScoreResponse>, Status> {
        unary(&self.calls, request, |score, caller| self.calls.score(score, caller)).await
    }

    async fn score_batch(
        &self,
        request: Request<v1::ScoreBatchRequest>,
    ) -> Result<Response<v1::ScoreBatchResponse>, Status> {
        unary(&self.calls, request, |scores, caller| self.calls.score_batch(scores, caller)).await
    }
}
