//! `statehouse.v1.State`: calls on states, and the collections they lie in.

use statehouse_proto::v1;
use statehouse_proto::v1::state_server::State;
use statehouse_proto::v1::upload_request::{Abort, Look, Step};
use tonic::{Request, Response, Status, Streaming};

use super::caller::{to_its_end, unary};
use super::{Calls, convert, read, status::status, write};
use crate::failure::Failure;
use crate::metrics::CallKind;
use crate::states::check_collection_name;

/// Serves states.
pub struct StateService {
    calls: Calls,
}

impl StateService {
    /// Over the calls of a node.
    pub fn new(calls: Calls) -> Self {
        StateService { calls }
    }
}

#[tonic::async_trait]
impl State for StateService {
    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        unary(&self.calls, request, |request, caller| self.calls.get(request, caller)).await
    }

    async fn batch_get(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        unary(&self.calls, request, |request, caller| self.calls.batch_get(request, caller)).await
    }

    async fn prefetch(
        &self,
        request: Request<v1::PrefetchRequest>,
    ) -> Result<Response<v1::PrefetchResponse>, Status> {
        unary(&self.calls, request, |request, caller| self.calls.prefetch(request, caller)).await
    }

    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        unary(&self.calls, request, |request, caller| self.calls.put(request, caller)).await
    }

    async fn batch_put(
        &self,
        request: Request<v1::BatchPutRequest>,
    ) -> Result<Response<v1::BatchPutResponse>, Status> {
        unary(&self.calls, request, |request, caller| self.calls.batch_put(request, caller)).await
    }

    async fn patch(
        &self,
        request: Request<v1::PatchRequest>,
    ) -> Result<Response<v1::WriteResponse>, Status> {
        unary(&self.calls, request, |request, caller| self.calls.patch(request, caller)).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        unary(&self.calls, request, |request, caller| self.calls.delete(request, caller)).await
    }

    async fn write(
        &self,
        request: Request<Streaming<v1::WriteStreamRequest>>,
    ) -> Result<Response<v1::WriteStreamResponse>, Status> {
        let write = |chunks, caller| {
            let written = write::write(&self.calls, chunks, caller);
            self.calls.counted().count(CallKind::Write, written)
        };
        unary(&self.calls, request, write).await
    }

    async fn get_upload(
        &self,
        request: Request<v1::GetUploadRequest>,
    ) -> Result<Response<v1::Upload>, Status> {
        let look = |request: v1::GetUploadRequest, caller| async move {
            let v1::GetUploadRequest { collection, key, upload_id } = request;
            let step = Some(Step::Look(Look {}));
            let request = v1::UploadRequest { collection, key, upload_id, step };
            let v1::UploadResponse { received_bytes, expires_at_ms, .. } =
                self.calls.upload(request, caller).await?;
            Ok(v1::Upload { received_bytes, expires_at_ms })
        };
        unary(&self.calls, request, look).await
    }

    async fn abort_upload(
        &self,
        request: Request<v1::AbortUploadRequest>,
    ) -> Result<Response<v1::AbortUploadResponse>, Status> {
        let abort = |request: v1::AbortUploadRequest, caller| async move {
            let v1::AbortUploadRequest { collection, key, upload_id } = request;
            let step = Some(Step::Abort(Abort {}));
            let request = v1::UploadRequest { collection, key, upload_id, step };
            self.calls.upload(request, caller).await?;
            self.calls.transfers().counted().uploads().aborted();
            Ok(v1::AbortUploadResponse {})
        };
        unary(&self.calls, request, abort).await
    }

    type ReadStream = read::Chunks;

    async fn read(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<read::Chunks>, Status> {
        let read = |request, caller| {
            self.calls.counted().count(CallKind::Read, read::read(&self.calls, request, caller))
        };
        unary(&self.calls, request, read).await
    }

    async fn create_collection(
        &self,
        request: Request<v1::CreateCollectionRequest>,
    ) -> Result<Response<v1::Collection>, Status> {
        let request = request.into_inner();
        let create = async {
            check_collection_name(&request.name)?;
            let settings = convert::settings(request.settings)?;
            self.calls.states().shards().store().check_space()?;
            let catalog = self.calls.states().catalog();
            let created =
                catalog.create_collection(&request.name, settings, request.if_not_exists).await?;
            Ok::<_, Failure>(convert::collection(&created))
        };
        create.await.map(Response::new).map_err(status)
    }

    async fn list_collections(
        &self,
        _: Request<v1::ListCollectionsRequest>,
    ) -> Result<Response<v1::ListCollectionsResponse>, Status> {
        let collections = self.calls.states().catalog().collections();
        let collections = collections.values().map(|found| convert::collection(found)).collect();
        Ok(Response::new(v1::ListCollectionsResponse { collections }))
    }

    async fn describe_collection(
        &self,
        request: Request<v1::DescribeCollectionRequest>,
    ) -> Result<Response<v1::Collection>, Status> {
        let name = request.into_inner().name;
        let found = self.calls.states().collection(&name).await.map_err(status)?;
        Ok(Response::new(convert::collection(&found)))
    }

    async fn update_collection(
        &self,
        request: Request<v1::UpdateCollectionRequest>,
    ) -> Result<Response<v1::Collection>, Status> {
        let request = request.into_inner();
        let update = async {
            let change = convert::settings_change(&request)?;
            // Smaller limits and shorter expiries are a way out of a full disk.
            self.calls.states().shards().store().check_space_to_free()?;
            let catalog = self.calls.states().catalog();
            let updated = catalog.update_collection(&request.name, change).await?;
            Ok::<_, Failure>(convert::collection(&updated))
        };
        update.await.map(Response::new).map_err(status)
    }

    async fn drop_collection(
        &self,
        request: Request<v1::DropCollectionRequest>,
    ) -> Result<Response<v1::DropCollectionResponse>, Status> {
        let name = request.into_inner().name;
        let states = self.calls.states();
        states.shards().store().check_space_to_free().map_err(|full| status(full.into()))?;
        let catalog = states.catalog().clone();
        // What is marked as dropped is gone: its space comes back even if nobody waits for that.
        let drop = async move { Ok(catalog.drop_collection(&name).await?) };
        to_its_end(drop).await.map_err(status)?;
        Ok(Response::new(v1::DropCollectionResponse {}))
    }
}
