//! The client: typed calls over a few pipelines to one node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use statehouse_proto::v1;
use statehouse_proto::v1::models_client::ModelsClient;
use statehouse_proto::v1::pipeline_request::Call;
use statehouse_proto::v1::pipeline_response::Result as Answer;
use statehouse_proto::v1::state_client::StateClient;
use tonic::transport::{Channel, Endpoint};

use crate::{Error, Pipeline};

/// Bytes of one part of a pushed model's file.
const PUSH_PART_BYTES: usize = 256 << 10;

/// HTTP/2 windows: large enough that one stream fills the link.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The largest HTTP/2 frame taken.
const FRAME_BYTES_MAX: u32 = 64 << 10;

/// How a client speaks to a node.
#[derive(Debug, Clone)]
pub struct Config {
    /// Such as "http://127.0.0.1:7070".
    pub endpoint: String,
    /// Streams, one connection each; calls are spread over them by key.
    pub pipelines: usize,
    /// When an answer is worthless; `None`: the node's own limits.
    pub timeout: Option<Duration>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// Bytes of one message.
    pub message_bytes_max: usize,
}

impl Config {
    /// For one node, everything else by default.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Config {
            endpoint: endpoint.into(),
            pipelines: 1,
            timeout: None,
            connect_timeout: Duration::from_secs(5),
            message_bytes_max: 64 << 20,
        }
    }
}

/// Speaks to a node. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    config: Arc<Config>,
    channel: Channel,
    lanes: Arc<Vec<Lane>>,
}

/// One pipeline, opened when first used and again when it broke.
struct Lane {
    channel: Channel,
    open: tokio::sync::Mutex<()>,
    pipeline: Mutex<Option<Pipeline>>,
}

impl Client {
    /// Connects, so that a wrong address fails here.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        let unreachable = |error: tonic::transport::Error| Error::Unreachable {
            endpoint: config.endpoint.clone(),
            message: innermost(&error),
        };
        let endpoint = Endpoint::from_shared(config.endpoint.clone())
            .map_err(unreachable)?
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX);
        let channel = endpoint.connect().await.map_err(unreachable)?;
        let lanes = (0..config.pipelines.max(1))
            .map(|lane| Lane {
                channel: if lane == 0 { channel.clone() } else { endpoint.connect_lazy() },
                open: tokio::sync::Mutex::new(()),
                pipeline: Mutex::new(None),
            })
            .collect();
        Ok(Client { config: Arc::new(config), channel, lanes: Arc::new(lanes) })
    }

    /// Sends a call on the pipeline of its key; the future that comes back has the answer. Calls
    /// of one key take effect in the order in which their sends complete.
    pub async fn send(
        &self,
        call: Call,
    ) -> Result<impl Future<Output = Result<Answer, Error>> + use<>, Error> {
        let lane = &self.lanes[lane_of(&call, self.lanes.len())];
        self.pipeline(lane).await?.send(call, self.config.timeout).await
    }

    /// Sends a call and awaits its answer, once more after a broken stream if that is safe.
    pub async fn call(&self, call: Call) -> Result<Answer, Error> {
        let again = is_repeatable(&call).then(|| call.clone());
        let first = self.attempt(call).await;
        match (first, again) {
            (Err(Error::Unreachable { .. }), Some(again)) => self.attempt(again).await,
            (first, _) => first,
        }
    }

    async fn attempt(&self, call: Call) -> Result<Answer, Error> {
        self.send(call).await?.await
    }

    async fn pipeline(&self, lane: &Lane) -> Result<Pipeline, Error> {
        let live = |lane: &Lane| lane.pipeline.lock().clone().filter(|p| !p.is_broken());
        if let Some(pipeline) = live(lane) {
            return Ok(pipeline);
        }
        let _one_at_a_time = lane.open.lock().await;
        if let Some(pipeline) = live(lane) {
            return Ok(pipeline);
        }
        let (endpoint, max) = (&self.config.endpoint, self.config.message_bytes_max);
        let pipeline = Pipeline::open(lane.channel.clone(), endpoint, max).await?;
        *lane.pipeline.lock() = Some(pipeline.clone());
        Ok(pipeline)
    }

    /// Reads a state.
    pub async fn get(&self, request: v1::GetRequest) -> Result<v1::StoredState, Error> {
        match self.call(Call::Get(request)).await? {
            Answer::Get(get) => get.state.ok_or(Error::Unexpected("a get without a state")),
            _ => Err(Error::Unexpected("not the answer of a get")),
        }
    }

    /// Replaces a state.
    pub async fn put(&self, request: v1::PutRequest) -> Result<v1::WriteResponse, Error> {
        match self.call(Call::Put(request)).await? {
            Answer::Write(written) => Ok(written),
            _ => Err(Error::Unexpected("not the answer of a put")),
        }
    }

    /// Changes parts of a state.
    pub async fn patch(&self, request: v1::PatchRequest) -> Result<v1::WriteResponse, Error> {
        match self.call(Call::Patch(request)).await? {
            Answer::Write(written) => Ok(written),
            _ => Err(Error::Unexpected("not the answer of a patch")),
        }
    }

    /// Deletes a state.
    pub async fn delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Error> {
        match self.call(Call::Delete(request)).await? {
            Answer::Delete(deleted) => Ok(deleted),
            _ => Err(Error::Unexpected("not the answer of a delete")),
        }
    }

    /// Scores an event.
    pub async fn score(&self, request: v1::ScoreRequest) -> Result<v1::ScoreResponse, Error> {
        match self.call(Call::Score(request)).await? {
            Answer::Score(scored) => Ok(scored),
            _ => Err(Error::Unexpected("not the answer of a score")),
        }
    }

    /// The unary service of states and collections.
    pub fn state(&self) -> StateClient<Channel> {
        StateClient::new(self.channel.clone())
            .max_decoding_message_size(self.config.message_bytes_max)
            .max_encoding_message_size(self.config.message_bytes_max)
    }

    /// The unary service of models.
    pub fn models(&self) -> ModelsClient<Channel> {
        ModelsClient::new(self.channel.clone())
            .max_encoding_message_size(self.config.message_bytes_max)
    }

    /// Turns a unary call's status into the same error that pipelined calls give.
    pub fn error(&self, status: &tonic::Status) -> Error {
        Error::from_status(&self.config.endpoint, status)
    }

    /// Creates a collection.
    pub async fn create_collection(
        &self,
        request: v1::CreateCollectionRequest,
    ) -> Result<v1::Collection, Error> {
        let created = self.state().create_collection(request).await;
        created.map(tonic::Response::into_inner).map_err(|status| self.error(&status))
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
        let pushed = self.models().push(tokio_stream::iter(parts)).await;
        pushed.map(tonic::Response::into_inner).map_err(|status| self.error(&status))
    }
}

/// Reads are; writes are when they carry a request id.
fn is_repeatable(call: &Call) -> bool {
    let has_id = |options: &Option<v1::WriteOptions>| {
        options.as_ref().is_some_and(|options| !options.request_id.is_empty())
    };
    let peeks = |score: &v1::ScoreRequest| {
        score.mode != v1::ScoreMode::Step as i32 || !score.request_id.is_empty()
    };
    match call {
        Call::Get(_) | Call::BatchGet(_) => true,
        Call::Put(put) => has_id(&put.options),
        Call::BatchPut(batch) => batch.puts.iter().all(|put| has_id(&put.options)),
        Call::Patch(patch) => has_id(&patch.options),
        Call::Delete(delete) => has_id(&delete.options),
        Call::Score(score) => peeks(score),
        Call::ScoreBatch(batch) => batch.scores.iter().all(peeks),
    }
}

/// The same key always takes the same lane.
fn lane_of(call: &Call, lanes: usize) -> usize {
    let key: &[u8] = match call {
        Call::Get(get) => &get.key,
        Call::Put(put) => &put.key,
        Call::Patch(patch) => &patch.key,
        Call::Delete(delete) => &delete.key,
        Call::Score(score) => &score.key,
        Call::BatchGet(_) | Call::BatchPut(_) | Call::ScoreBatch(_) => &[],
    };
    // FNV-1a: only to spread, never stored.
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash % lanes as u64) as usize
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
