//! A lane: one connection, calls under way on it, answers as they come.

use std::pin::Pin;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use statehouse_client::v1::pipeline_client::PipelineClient;
use statehouse_client::v1::pipeline_request::Call as PipelineCall;
use statehouse_client::v1::pipeline_response::Result as Answer;
use statehouse_client::v1::score_client::ScoreClient;
use statehouse_client::v1::state_client::StateClient;
use statehouse_client::{Client, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::echo::{EchoLane, EchoStreamLane};
use super::etcd::EtcdLane;
use super::redis::RedisLane;
use super::setup::COLLECTION;
use super::workload::{Call, Kind, Payload};

/// What is measured, and how it's spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// A node, one gRPC call each.
    Unary,
    /// A node, calls multiplexed on a stream per connection.
    Pipelined,
    /// A cluster, by the Rust client, which sends each call to the node that leads its key's
    /// shard: a client per connection.
    Client,
    /// As `client`, and each write has a request id: one whose node dies is sent again.
    ClientIds,
    /// A bare tonic echo, one gRPC call each: what gRPC alone costs.
    Echo,
    /// A bare tonic echo on a stream per connection.
    EchoStream,
    /// A Redis server.
    Redis,
    /// A Redis server with replicas; a write waits until one has synced it. Calls of a connection
    /// wait for each other: as many connections as calls.
    RedisReplicated,
    /// A member of an etcd cluster.
    Etcd,
}

/// A call's answer: the id it was started under, the bytes it carried, or why it failed.
pub type Done = (u64, Result<u64, String>);

type CallUnderWay = Pin<Box<dyn Future<Output = Done> + Send>>;

/// HTTP/2 windows: large enough that one stream fills the link.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Bytes of one answer at most.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// One connection.
pub enum Lane {
    Unary(UnaryLane),
    Pipelined(PipelinedLane),
    Client(ClientLane),
    Echo(EchoLane),
    EchoStream(EchoStreamLane),
    Redis(RedisLane),
    Etcd(EtcdLane),
}

impl Lane {
    /// Connects, with room for `in_flight` calls.
    pub async fn connect(
        target: Target,
        endpoint: &str,
        in_flight: usize,
        payload: Payload,
    ) -> anyhow::Result<Self> {
        Ok(match target {
            Target::Unary => Lane::Unary(UnaryLane::new(channel(endpoint).await?, payload)),
            Target::Pipelined => Lane::Pipelined(
                PipelinedLane::new(channel(endpoint).await?, in_flight, payload).await?,
            ),
            Target::Client | Target::ClientIds => {
                let client = super::setup::client(endpoint, target == Target::ClientIds).await?;
                Lane::Client(ClientLane { client, payload, under_way: FuturesUnordered::new() })
            }
            Target::Echo => Lane::Echo(EchoLane::new(channel(endpoint).await?, payload.value)),
            Target::EchoStream => Lane::EchoStream(
                EchoStreamLane::new(channel(endpoint).await?, in_flight, payload.value).await?,
            ),
            Target::Redis | Target::RedisReplicated => {
                let replicated = target == Target::RedisReplicated;
                Lane::Redis(RedisLane::connect(endpoint, payload.value, replicated).await?)
            }
            Target::Etcd => Lane::Etcd(EtcdLane::new(channel(endpoint).await?, payload.value)),
        })
    }

    /// Starts a call.
    pub async fn start(&mut self, id: u64, call: Call) -> anyhow::Result<()> {
        match self {
            Lane::Unary(lane) => lane.start(id, call),
            Lane::Pipelined(lane) => lane.start(id, call).await?,
            Lane::Client(lane) => lane.start(id, call).await?,
            Lane::Echo(lane) => lane.start(id),
            Lane::EchoStream(lane) => lane.start(id).await?,
            Lane::Redis(lane) => lane.start(id, &call)?,
            Lane::Etcd(lane) => lane.start(id, call)?,
        }
        Ok(())
    }

    /// The next answer. Safe to drop and call again. Needs a call under way.
    pub async fn next(&mut self) -> anyhow::Result<Done> {
        match self {
            Lane::Unary(lane) => lane.under_way.next().await.ok_or_else(idle),
            Lane::Pipelined(lane) => lane.next().await,
            Lane::Client(lane) => lane.under_way.next().await.ok_or_else(idle),
            Lane::Echo(lane) => lane.under_way.next().await.ok_or_else(idle),
            Lane::EchoStream(lane) => lane.next().await,
            Lane::Redis(lane) => lane.next().await,
            Lane::Etcd(lane) => lane.under_way.next().await.ok_or_else(idle),
        }
    }
}

pub fn idle() -> anyhow::Error {
    anyhow::anyhow!("no call is under way")
}

pub async fn channel(endpoint: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(crate::node::FRAME_BYTES_MAX);
    Ok(endpoint.connect().await?)
}

/// A call each.
pub struct UnaryLane {
    state: StateClient<Channel>,
    score: ScoreClient<Channel>,
    payload: Payload,
    under_way: FuturesUnordered<CallUnderWay>,
}

impl UnaryLane {
    fn new(channel: Channel, payload: Payload) -> Self {
        UnaryLane {
            state: StateClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            score: ScoreClient::new(channel),
            payload,
            under_way: FuturesUnordered::new(),
        }
    }

    fn start(&mut self, id: u64, call: Call) {
        let (mut state, mut score) = (self.state.clone(), self.score.clone());
        let request = request(&self.payload, call);
        self.under_way.push(Box::pin(async move {
            let answer = match request {
                PipelineCall::Get(get) => state.get(get).await.map(|a| Answer::Get(a.into_inner())),
                PipelineCall::Put(put) => {
                    state.put(put).await.map(|a| Answer::Write(a.into_inner()))
                }
                PipelineCall::BatchGet(get) => {
                    state.batch_get(get).await.map(|a| Answer::BatchGet(a.into_inner()))
                }
                PipelineCall::BatchPut(put) => {
                    state.batch_put(put).await.map(|a| Answer::BatchPut(a.into_inner()))
                }
                PipelineCall::Score(event) => {
                    score.score(event).await.map(|a| Answer::Score(a.into_inner()))
                }
                _ => Err(Status::internal("not a call of this load")),
            };
            (id, answer.map_err(|status| status.message().to_owned()).and_then(check))
        }));
    }
}

/// Many calls on one stream.
pub struct PipelinedLane {
    calls: mpsc::Sender<v1::PipelineRequest>,
    answers: Streaming<v1::PipelineResponse>,
    payload: Payload,
}

impl PipelinedLane {
    async fn new(channel: Channel, in_flight: usize, payload: Payload) -> anyhow::Result<Self> {
        let (calls, queue) = mpsc::channel(in_flight.max(1));
        let mut client = PipelineClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answers = client.run(ReceiverStream::new(queue)).await?.into_inner();
        Ok(PipelinedLane { calls, answers, payload })
    }

    async fn start(&mut self, id: u64, call: Call) -> anyhow::Result<()> {
        let call = Some(request(&self.payload, call));
        self.calls.send(v1::PipelineRequest { id, timeout_ms: 0, call }).await?;
        Ok(())
    }

    async fn next(&mut self) -> anyhow::Result<Done> {
        let response = self.answers.message().await?.ok_or_else(idle)?;
        let answer = response.result.ok_or_else(|| "an empty response".to_owned());
        Ok((response.id, answer.and_then(check)))
    }
}

/// Each call to the node that leads its key's shard.
pub struct ClientLane {
    client: Client,
    payload: Payload,
    under_way: FuturesUnordered<CallUnderWay>,
}

impl ClientLane {
    async fn start(&mut self, id: u64, call: Call) -> anyhow::Result<()> {
        let answer = self.client.send(request(&self.payload, call)).await?;
        self.under_way.push(Box::pin(async move {
            (id, answer.await.map_err(|error| error.to_string()).and_then(check))
        }));
        Ok(())
    }
}

fn request(payload: &Payload, call: Call) -> PipelineCall {
    let mut keys = call.keys.into_iter();
    let put = |key: Bytes| v1::PutRequest {
        collection: COLLECTION.to_owned(),
        key,
        fields: payload.fields.clone(),
        options: None,
    };
    let mut first = || keys.next().unwrap_or_default();
    match call.kind {
        Kind::Get => PipelineCall::Get(v1::GetRequest {
            collection: COLLECTION.to_owned(),
            key: first(),
            ..Default::default()
        }),
        Kind::Put => PipelineCall::Put(put(first())),
        Kind::BatchGet => PipelineCall::BatchGet(v1::BatchGetRequest {
            collection: COLLECTION.to_owned(),
            keys: keys.collect(),
            ..Default::default()
        }),
        Kind::BatchPut => {
            PipelineCall::BatchPut(v1::BatchPutRequest { puts: keys.map(put).collect() })
        }
        Kind::Peek | Kind::Step => PipelineCall::Score(v1::ScoreRequest {
            model: payload.model.clone(),
            collection: COLLECTION.to_owned(),
            key: first(),
            inputs: payload.inputs.clone(),
            mode: match call.kind {
                Kind::Step => v1::ScoreMode::Step,
                _ => v1::ScoreMode::Peek,
            } as i32,
            ..Default::default()
        }),
    }
}

/// The bytes of states in an answer; a failed part fails the whole.
fn check(answer: Answer) -> Result<u64, String> {
    use v1::{batch_get_response, batch_put_response};
    match answer {
        Answer::Error(error) => Err(format!("{}: {}", error.reason, error.message)),
        Answer::Get(get) => Ok(get.state.as_ref().map_or(0, state_bytes)),
        Answer::BatchGet(get) => get.items.into_iter().try_fold(0, |sum, item| match item.result {
            Some(batch_get_response::item::Result::State(state)) => Ok(sum + state_bytes(&state)),
            Some(batch_get_response::item::Result::Error(error)) => Err(error.message),
            None => Err("an empty item".to_owned()),
        }),
        Answer::BatchPut(put) => put.items.into_iter().try_fold(0, |sum, item| match item.result {
            Some(batch_put_response::item::Result::Written(_)) => Ok(sum),
            Some(batch_put_response::item::Result::Error(error)) => Err(error.message),
            None => Err("an empty item".to_owned()),
        }),
        Answer::Write(_)
        | Answer::Delete(_)
        | Answer::Score(_)
        | Answer::ScoreBatch(_)
        | Answer::Upload(_)
        | Answer::Prefetch(_) => Ok(0),
    }
}

fn state_bytes(state: &v1::StoredState) -> u64 {
    let field = |field: &v1::Field| match &field.value {
        Some(v1::field::Value::Tensor(tensor)) => tensor.data.len() as u64,
        Some(v1::field::Value::Bytes(bytes)) => bytes.len() as u64,
        None => 0,
    };
    state.fields.iter().map(field).sum()
}
