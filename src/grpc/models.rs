//! `statehouse.v1.Models`: push, list, describe, activate, delete.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use statehouse_cluster::catalog::{ModelEntry, ModelFiles, ModelVersion};
use statehouse_inference::{DType, LoadedModel};
use statehouse_proto::v1;
use statehouse_proto::v1::models_server::Models as Service;
use tonic::{Request, Response, Status, Streaming};

use super::caller::to_its_end;
use super::status::status;
use crate::dtype;
use crate::failure::{Failure, Reason};
use crate::models::{MODEL_BYTES_MAX, MODEL_FILES_MAX, Models};

/// Serves models.
pub struct ModelsService {
    models: Arc<Models>,
}

impl ModelsService {
    /// Over the models of a node.
    pub fn new(models: Arc<Models>) -> Self {
        ModelsService { models }
    }

    fn describe(&self, entry: &ModelEntry) -> v1::Model {
        v1::Model {
            name: entry.name.clone(),
            active_version: entry.active.unwrap_or(0),
            versions: entry.versions.iter().map(|found| self.version(entry, found)).collect(),
        }
    }

    fn version(&self, entry: &ModelEntry, found: &ModelVersion) -> v1::ModelVersion {
        let mut version = v1::ModelVersion {
            version: found.version,
            pushed_at_ms: found.pushed_at_ms,
            bytes: found.bytes,
            digest: found.digest.clone(),
            ..Default::default()
        };
        match self.models.loaded(&entry.name, found.version) {
            Some(Ok(loaded)) => specify(&mut version, &loaded),
            Some(Err(failure)) => version.load_error = failure.to_string(),
            None => {}
        }
        version
    }
}

fn specify(version: &mut v1::ModelVersion, loaded: &LoadedModel) {
    version.loaded = true;
    version.batch_rows_max = loaded.limits().batch_rows_max as u32;
    version.inputs = loaded.inputs().iter().map(|i| spec(&i.name, i.dtype, &i.row_shape)).collect();
    version.outputs =
        loaded.outputs().iter().map(|o| spec(&o.name, o.dtype, &o.row_shape)).collect();
    version.states = loaded
        .states()
        .iter()
        .map(|state| v1::StateSpec {
            field: state.field.clone(),
            input: state.input.clone(),
            output: state.output.clone(),
            dtype: proto_dtype(state.dtype),
            shape: shape(&state.row_shape),
        })
        .collect();
}

fn spec(name: &str, dtype: DType, row_shape: &[Option<usize>]) -> v1::TensorSpec {
    v1::TensorSpec { name: name.to_owned(), dtype: proto_dtype(dtype), shape: shape(row_shape) }
}

fn proto_dtype(dtype: DType) -> i32 {
    dtype::to_proto(dtype::to_store(dtype)) as i32
}

fn shape(row_shape: &[Option<usize>]) -> Vec<i64> {
    row_shape.iter().map(|axis| axis.map_or(-1, |axis| axis as i64)).collect()
}

#[tonic::async_trait]
impl Service for ModelsService {
    async fn push(
        &self,
        request: Request<Streaming<v1::PushModelRequest>>,
    ) -> Result<Response<v1::PushModelResponse>, Status> {
        let (files, activate) = receive(request.into_inner()).await?;
        let models = self.models.clone();
        // What is loaded on the device by then is kept under its version, or unloaded.
        let push = async move { models.push(files, activate).await };
        let (entry, version) = to_its_end(push).await.map_err(status)?;
        let model = Some(self.describe(&entry));
        let warnings = match self.models.loaded(&entry.name, version) {
            Some(Ok(loaded)) => loaded.warnings().to_vec(),
            Some(Err(_)) | None => Vec::new(),
        };
        Ok(Response::new(v1::PushModelResponse { model, version, warnings }))
    }

    async fn list(
        &self,
        _: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let entries = self.models.catalog().models();
        let models = entries.values().map(|entry| self.describe(entry)).collect();
        Ok(Response::new(v1::ListModelsResponse { models }))
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeModelRequest>,
    ) -> Result<Response<v1::Model>, Status> {
        let name = request.into_inner().name;
        // Only a model that is loaded has inputs to describe. What keeps it from loading is in the
        // description too.
        drop(self.models.find(&name, 0).await);
        let entry = self.models.catalog().model(&name);
        let entry = entry.map_err(|error| status(error.into()))?;
        Ok(Response::new(self.describe(&entry)))
    }

    async fn activate(
        &self,
        request: Request<v1::ActivateModelRequest>,
    ) -> Result<Response<v1::Model>, Status> {
        let request = request.into_inner();
        let entry = self.models.activate(&request.name, request.version).await.map_err(status)?;
        Ok(Response::new(self.describe(&entry)))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteModelRequest>,
    ) -> Result<Response<v1::DeleteModelResponse>, Status> {
        let request = request.into_inner();
        let models = self.models.clone();
        let delete = async move { models.delete(&request.name, request.version).await };
        to_its_end(delete).await.map_err(status)?;
        Ok(Response::new(v1::DeleteModelResponse {}))
    }
}

/// Gathers a push: a header, then the parts of each file in order.
async fn receive(mut parts: Streaming<v1::PushModelRequest>) -> Result<(ModelFiles, bool), Status> {
    use v1::push_model_request::Part;
    let mut activate = None;
    let mut files: Vec<(String, BytesMut)> = Vec::new();
    let mut bytes = 0;
    while let Some(message) = parts.message().await? {
        match message.part {
            Some(Part::Header(header)) if activate.is_none() && files.is_empty() => {
                activate = Some(header.activate);
            }
            Some(Part::Header(_)) => return Err(invalid("a push has one header, and it is first")),
            Some(Part::File(_)) if activate.is_none() => {
                return Err(invalid("a push starts with its header"));
            }
            Some(Part::File(part)) => {
                bytes += part.data.len();
                take_part(&mut files, part, bytes)?;
            }
            None => return Err(invalid("a message of a push holds a header or a file's part")),
        }
    }
    let activate = activate.ok_or_else(|| invalid("a push starts with its header"))?;
    let files = files.into_iter().map(|(name, data)| (name, Bytes::from(data))).collect();
    Ok((files, activate))
}

fn take_part(
    files: &mut Vec<(String, BytesMut)>,
    part: v1::push_model_request::FilePart,
    bytes: usize,
) -> Result<(), Status> {
    if bytes > MODEL_BYTES_MAX {
        return Err(invalid(&format!("a model has at most {MODEL_BYTES_MAX} bytes")));
    }
    match files.last_mut() {
        Some((name, data)) if *name == part.file => data.extend_from_slice(&part.data),
        _ => {
            let plain = !part.file.is_empty() && !part.file.contains(['/', '\\']);
            if !plain {
                let message = format!("a model's files lie flat, got {:?}", part.file);
                return Err(invalid(&message));
            }
            if files.iter().any(|(name, _)| *name == part.file) {
                let message = format!("the parts of {:?} do not follow each other", part.file);
                return Err(invalid(&message));
            }
            if files.len() == MODEL_FILES_MAX {
                return Err(invalid(&format!("a model has at most {MODEL_FILES_MAX} files")));
            }
            files.push((part.file, BytesMut::from(&part.data[..])));
        }
    }
    Ok(())
}

fn invalid(message: &str) -> Status {
    status(Failure::new(Reason::InvalidRequest, message))
}
