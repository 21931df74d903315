//! One step of an upload, run where its shard's leader is.

use std::sync::Arc;

use bytes::Bytes;
use statehouse_client::retry::Effect;
use statehouse_client::v1::pipeline_request::Call;
use statehouse_client::v1::pipeline_response::Result as Answer;
use statehouse_cluster::raft::Group;
use statehouse_proto::v1;
use statehouse_proto::v1::upload_request::Step;

use super::caller::Caller;
use super::routed::Routed;
use super::{Calls, convert};
use crate::failure::Failure;

impl Routed for v1::UploadRequest {
    type Answer = v1::UploadResponse;

    fn key(&self) -> &Bytes {
        &self.key
    }

    fn effect(&self) -> Effect {
        match self.step {
            Some(Step::Look(_)) => Effect::None,
            _ => Effect::Repeatable,
        }
    }

    async fn here(
        self,
        calls: &Calls,
        group: &Arc<Group>,
        caller: Caller<'_>,
    ) -> Result<v1::UploadResponse, Failure> {
        let step = convert::upload(self)?;
        Ok(convert::uploaded(calls.states().upload(group, step, &caller.charge).await?))
    }

    fn into_call(self) -> Call {
        Call::Upload(self)
    }

    fn of(answer: Answer) -> Option<v1::UploadResponse> {
        if let Answer::Upload(uploaded) = answer { Some(uploaded) } else { None }
    }
}
