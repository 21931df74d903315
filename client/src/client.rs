//! The client: typed calls, each to the node that leads its key's shard.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use statehouse_proto::v1;
use statehouse_proto::v1::pipeline_request::Call;
use statehouse_proto::v1::pipeline_response::Result as Answer;

use crate::Error;
use crate::batch::Batch;
use crate::budget::Budget;
use crate::nodes::{Nodes, Target};
use crate::pipeline::Pending;
use crate::request_ids::identified;
use crate::retry::{Attempts, Effect, Fate};
use crate::scatter::Scatter;
use crate::trip::{Road, Trip};

/// How a client speaks to a cluster.
#[derive(Debug, Clone)]
pub struct Config {
    /// Nodes such as "http://127.0.0.1:7070": the first that answers names the others.
    pub endpoints: Vec<String>,
    /// Streams to each node, one connection each; calls are spread over them by key.
    pub pipelines: usize,
    /// When an answer is worthless; `None`: the node's own limits.
    pub timeout: Option<Duration>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// Bytes of one message.
    pub message_bytes_max: usize,
    /// Gives each write and step without a request id a random one, so that it may be sent again
    /// when its outcome is unknown. Costs the shard a small row for each, for a while.
    pub request_ids: bool,
}

impl Config {
    /// For the cluster of one node, everything else by default.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Config::any_of([endpoint.into()])
    }

    /// For a cluster, by the nodes to try first; everything else by default.
    pub fn any_of(endpoints: impl IntoIterator<Item = String>) -> Self {
        Config {
            endpoints: endpoints.into_iter().collect(),
            pipelines: 1,
            timeout: None,
            connect_timeout: Duration::from_secs(5),
            message_bytes_max: 64 << 20,
            request_ids: true,
        }
    }
}

/// Speaks to a cluster, or to a node that stands alone. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pub(crate) road: Arc<Road>,
}

/// A call that was sent.
enum Sent {
    /// To the only node there is.
    Alone(Arc<Road>, Box<Pending>),
    /// To the node that leads.
    One(Box<Trip>),
    /// To many.
    Many(Box<Scatter>),
}

impl Sent {
    async fn answer(self) -> Result<Answer, Error> {
        match self {
            Sent::Alone(road, mut pending) => {
                let answered = pending.answer().await?;
                if answered.forwarded_to != 0 {
                    // It isn't alone any more.
                    road.nodes.refresh(road.nodes.map().epoch()).await;
                }
                Ok(answered.answer)
            }
            Sent::One(trip) => Box::pin(trip.end()).await,
            Sent::Many(scatter) => Box::pin(scatter.end()).await,
        }
    }
}

impl Client {
    /// Connects to the first endpoint that answers, so that a wrong address fails here.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        let nodes = Arc::new(Nodes::connect(config).await?);
        Ok(Client { road: Arc::new(Road { nodes, budget: Budget::default() }) })
    }

    /// Sends a call to the node that leads its key's shard; the future that comes back has the
    /// answer. Calls of one key take effect in the order in which their sends complete, as long
    /// as the leader stays. In a cluster, what fails is sent again while that is safe and the
    /// timeout allows; batches are split by node.
    pub async fn send(
        &self,
        call: Call,
    ) -> Result<impl Future<Output = Result<Answer, Error>> + use<>, Error> {
        let sent = self.start(call).await?;
        Ok(sent.answer())
    }

    async fn start(&self, call: Call) -> Result<Sent, Error> {
        let nodes = &self.road.nodes;
        let call = if nodes.config.request_ids { identified(call) } else { call };
        let key = key_of(&call);
        let lane = lane_of(key);
        if nodes.map().is_single() {
            let pending = nodes.home().send(lane, call, nodes.config.timeout).await?;
            return Ok(Sent::Alone(self.road.clone(), Box::new(pending)));
        }
        let road = self.road.clone();
        let key = key.clone();
        Ok(match Batch::of(call) {
            Ok(batch) => Sent::Many(Box::new(Scatter::begin(road, batch, lane).await)),
            Err(call) => Sent::One(Box::new(Trip::begin(road, call, &key, lane).await)),
        })
    }

    /// Sends a call and awaits its answer; to a node alone once more after a broken stream, if
    /// that is safe.
    pub async fn call(&self, call: Call) -> Result<Answer, Error> {
        let nodes = &self.road.nodes;
        let call = if nodes.config.request_ids { identified(call) } else { call };
        let effect = Effect::of(&call);
        let again = (nodes.map().is_single() && effect != Effect::Once).then(|| call.clone());
        let first = self.attempt(call).await;
        match (first, again) {
            (Err(error @ Error::Unreachable { .. }), Some(again))
                if Fate::of(&error).allows(effect) =>
            {
                nodes.leave(nodes.home().endpoint());
                let mut attempts = Attempts::default();
                attempts.failed(Fate::of(&error), effect, error);
                let last = self.attempt(again).await;
                last.map_err(|last| attempts.end(Fate::of(&last), last))
            }
            (first, _) => first,
        }
    }

    async fn attempt(&self, call: Call) -> Result<Answer, Error> {
        self.send(call).await?.await
    }

    /// Reads a state.
    pub async fn get(&self, request: v1::GetRequest) -> Result<v1::StoredState, Error> {
        let answer = self.read(request).await?;
        answer.state.ok_or(Error::Unexpected("a get without a state"))
    }

    /// Reads a state; answers also how far behind the replica was.
    pub async fn read(&self, request: v1::GetRequest) -> Result<v1::GetResponse, Error> {
        match self.call(Call::Get(request)).await? {
            Answer::Get(get) => Ok(get),
            _ => Err(Error::Unexpected("not the answer of a get")),
        }
    }

    /// Reads many states of one collection, each with its own outcome, in the order of the keys.
    pub async fn batch_get(
        &self,
        request: v1::BatchGetRequest,
    ) -> Result<v1::BatchGetResponse, Error> {
        match self.call(Call::BatchGet(request)).await? {
            Answer::BatchGet(got) => Ok(got),
            _ => Err(Error::Unexpected("not the answer of a batch of gets")),
        }
    }

    /// Brings states of one collection into the memory of the nodes that will serve them, each with
    /// its own outcome, in the order of the keys.
    pub async fn prefetch(
        &self,
        request: v1::PrefetchRequest,
    ) -> Result<v1::PrefetchResponse, Error> {
        match self.call(Call::Prefetch(request)).await? {
            Answer::Prefetch(prefetched) => Ok(prefetched),
            _ => Err(Error::Unexpected("not the answer of a prefetch")),
        }
    }

    /// Replaces many states, each with its own outcome, in the order of the puts.
    pub async fn batch_put(
        &self,
        request: v1::BatchPutRequest,
    ) -> Result<v1::BatchPutResponse, Error> {
        match self.call(Call::BatchPut(request)).await? {
            Answer::BatchPut(put) => Ok(put),
            _ => Err(Error::Unexpected("not the answer of a batch of puts")),
        }
    }

    /// Scores many events, each with its own outcome, in the order of the scores.
    pub async fn score_batch(
        &self,
        request: v1::ScoreBatchRequest,
    ) -> Result<v1::ScoreBatchResponse, Error> {
        match self.call(Call::ScoreBatch(request)).await? {
            Answer::ScoreBatch(scored) => Ok(scored),
            _ => Err(Error::Unexpected("not the answer of a batch of scores")),
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

    /// Who leads a key's shard, as far as is known.
    pub(crate) fn target(&self, key: &[u8]) -> Target {
        let nodes = &self.road.nodes;
        let map = nodes.map();
        match map.is_single() {
            true => Target { node: 0, lanes: nodes.home().clone() },
            false => nodes.target(&map, map.place(key), None),
        }
    }

    /// What an error tells of whom to ask next.
    pub(crate) async fn learn_from(&self, key: &[u8], error: &Error, at: &Target) {
        let nodes = &self.road.nodes;
        let map = nodes.map();
        match map.is_single() {
            true => nodes.leave(at.lanes.endpoint()),
            false => nodes.learn_from(&map, map.place(key), error, at).await,
        }
    }

    pub(crate) fn message_bytes_max(&self) -> usize {
        self.road.nodes.config.message_bytes_max
    }
}

/// Whose state a call is about; nobody's for a batch.
fn key_of(call: &Call) -> &Bytes {
    static NO_KEY: Bytes = Bytes::new();
    match call {
        Call::Get(get) => &get.key,
        Call::Put(put) => &put.key,
        Call::Patch(patch) => &patch.key,
        Call::Delete(delete) => &delete.key,
        Call::Score(score) => &score.key,
        Call::Upload(upload) => &upload.key,
        Call::BatchGet(_) | Call::Prefetch(_) | Call::BatchPut(_) | Call::ScoreBatch(_) => &NO_KEY,
    }
}

/// The same key always takes the same lane.
fn lane_of(key: &[u8]) -> u64 {
    // FNV-1a: only to spread, never stored.
    key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
