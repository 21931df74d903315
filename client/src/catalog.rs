//! Calls about collections and models: unary, at any node, at another endpoint if one is away.

use bytes::Bytes;
use statehouse_proto::v1;
use statehouse_proto::v1::models_client::ModelsClient;
use statehouse_proto::v1::state_client::StateClient;

use crate::call_metadata::Connection;
use crate::retry::{Effect, Fate};
use crate::{Client, Error};

/// Bytes of one part of a pushed model's file.
const PUSH_PART_BYTES: usize = 256 << 10;

impl Client {
    /// The unary service of states and collections, at the endpoint that answered last.
    pub fn state(&self) -> StateClient<Connection> {
        let max = self.road.nodes.config.message_bytes_max;
        StateClient::new(self.road.nodes.home().connection())
            .max_decoding_message_size(max)
            .max_encoding_message_size(max)
    }

    /// The unary service of models, at the endpoint that answered last.
    pub fn models(&self) -> ModelsClient<Connection> {
        ModelsClient::new(self.road.nodes.home().connection())
            .max_encoding_message_size(self.road.nodes.config.message_bytes_max)
    }

    /// Turns a unary call's status into the same error that pipelined calls give. After a lost
    /// connection the next unary call goes to another endpoint, if there is one.
    pub fn error(&self, status: &tonic::Status) -> Error {
        let endpoint = self.road.nodes.home().endpoint();
        let error = Error::from_status(endpoint, status);
        if error.node_is_away() {
            self.road.nodes.leave(endpoint);
        }
        error
    }

    /// Makes a unary call, at each endpoint in turn as long as those before are away and the call
    /// may go again.
    async fn unary<T, F>(&self, effect: Effect, call: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut left = self.road.nodes.config.endpoints.len();
        loop {
            let error = match call().await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => self.error(&status),
            };
            left -= 1;
            let away = error.node_is_away();
            if left == 0 || !away || !Fate::of(&error).allows(effect) {
                return Err(error);
            }
        }
    }

    /// Creates a collection.
    pub async fn create_collection(
        &self,
        request: v1::CreateCollectionRequest,
    ) -> Result<v1::Collection, Error> {
        let create = || {
            let (mut state, request) = (self.state(), request.clone());
            async move { state.create_collection(request).await }
        };
        self.unary(Effect::Once, create).await
    }

    /// Changes some of a collection's settings.
    pub async fn update_collection(
        &self,
        request: v1::UpdateCollectionRequest,
    ) -> Result<v1::Collection, Error> {
        let update = || {
            let (mut state, request) = (self.state(), request.clone());
            async move { state.update_collection(request).await }
        };
        self.unary(Effect::Once, update).await
    }

    /// Lists all collections.
    pub async fn list_collections(&self) -> Result<Vec<v1::Collection>, Error> {
        let list = || {
            let (mut state, request) = (self.state(), v1::ListCollectionsRequest {});
            async move { state.list_collections(request).await }
        };
        Ok(self.unary(Effect::None, list).await?.collections)
    }

    /// Describes a collection.
    pub async fn describe_collection(&self, name: &str) -> Result<v1::Collection, Error> {
        let request = v1::DescribeCollectionRequest { name: name.to_owned() };
        let describe = || {
            let (mut state, request) = (self.state(), request.clone());
            async move { state.describe_collection(request).await }
        };
        self.unary(Effect::None, describe).await
    }

    /// Drops a collection with all its states.
    pub async fn drop_collection(&self, name: &str) -> Result<(), Error> {
        let request = v1::DropCollectionRequest { name: name.to_owned() };
        let drop = || {
            let (mut state, request) = (self.state(), request.clone());
            async move { state.drop_collection(request).await }
        };
        self.unary(Effect::Once, drop).await?;
        Ok(())
    }

    /// Pushes a model's files.
    pub async fn push_model(
        &self,
        files: Vec<(String, Bytes)>,
        activate: bool,
    ) -> Result<v1::PushModelResponse, Error> {
        use v1::push_model_request::{FilePart, Header, Part};
        let header = Part::Header(Header { activate });
        let mut parts = vec![v1::PushModelRequest { part: Some(header) }];
        for (file, mut data) in files {
            loop {
                let part = data.split_to(data.len().min(PUSH_PART_BYTES));
                let part = Part::File(FilePart { file: file.clone(), data: part });
                parts.push(v1::PushModelRequest { part: Some(part) });
                if data.is_empty() {
                    break;
                }
            }
        }
        let push = || {
            let (mut models, request) = (self.models(), tokio_stream::iter(parts.clone()));
            async move { models.push(request).await }
        };
        self.unary(Effect::Once, push).await
    }

    /// Lists all models.
    pub async fn list_models(&self) -> Result<Vec<v1::Model>, Error> {
        let list = || {
            let (mut models, request) = (self.models(), v1::ListModelsRequest {});
            async move { models.list(request).await }
        };
        Ok(self.unary(Effect::None, list).await?.models)
    }

    /// Describes a model, whose active version is loaded for that.
    pub async fn describe_model(&self, name: &str) -> Result<v1::Model, Error> {
        let request = v1::DescribeModelRequest { name: name.to_owned() };
        let describe = || {
            let (mut models, request) = (self.models(), request.clone());
            async move { models.describe(request).await }
        };
        self.unary(Effect::None, describe).await
    }

    /// Makes a version of a model the active one.
    pub async fn activate_model(&self, name: &str, version: u64) -> Result<v1::Model, Error> {
        let request = v1::ActivateModelRequest { name: name.to_owned(), version };
        let activate = || {
            let (mut models, request) = (self.models(), request.clone());
            async move { models.activate(request).await }
        };
        self.unary(Effect::Once, activate).await
    }

    /// Deletes a version of a model, or with version 0 the whole model.
    pub async fn delete_model(&self, name: &str, version: u64) -> Result<(), Error> {
        let request = v1::DeleteModelRequest { name: name.to_owned(), version };
        let delete = || {
            let (mut models, request) = (self.models(), request.clone());
            async move { models.delete(request).await }
        };
        self.unary(Effect::Once, delete).await?;
        Ok(())
    }
}
