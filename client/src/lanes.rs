//! A few streams to one node: opened when first needed, and again when they broke.
//!
//! A call goes out on the lane that its caller names, always the same one for the same key, so
//! that calls of a key keep their order. Nothing is waited for before a call has its place in a
//! lane's queue. What is large has a lane of its own, so that nothing small waits behind it; single
//! calls that are large go by themselves (`alone.rs`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use statehouse_proto::v1::pipeline_request::Call;
use tonic::transport::Endpoint;

use crate::alone::{Again, Alone, is_large};
use crate::call_metadata::{CallMetadata, Connection};
use crate::pipeline::Pending;
use crate::{Error, Pipeline};

/// HTTP/2 windows: one stream fills the link, and some that nobody reads do not stop the others.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// The largest HTTP/2 frame taken.
const FRAME_BYTES_MAX: u32 = 64 << 10;

/// How long a node that could not be reached is passed over while others are there.
const DOWN_FOR: Duration = Duration::from_millis(500);

/// How a node is spoken to.
#[derive(Debug, Clone)]
pub struct Config {
    /// Streams, one connection each.
    pub streams: usize,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How often a connection under way is asked whether it lives, and how long it may take.
    pub keepalive: Duration,
    /// Bytes of one message.
    pub message_bytes_max: usize,
    /// Metadata that goes with each request.
    pub metadata: CallMetadata,
}

/// Streams to one node.
pub struct Lanes {
    endpoint: String,
    config: Config,
    lanes: Vec<Lane>,
    bulk: Lane,
    alone: Alone,
    made: Instant,
    /// Milliseconds from `made`: until then it is passed over.
    down_until: AtomicU64,
}

struct Lane {
    connection: Connection,
    pipeline: Mutex<Option<Pipeline>>,
}

impl Lanes {
    /// To the node at an endpoint such as "http://127.0.0.1:7070". Nothing is connected yet; on a
    /// tokio runtime.
    pub fn new(endpoint: &str, config: Config) -> Result<Self, Error> {
        let made = Endpoint::from_shared(endpoint.to_owned())
            .map_err(|error| unreachable(endpoint, &error))?
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_keep_alive_interval(config.keepalive)
            .keep_alive_timeout(config.keepalive);
        let connection = || Connection::new(made.connect_lazy(), config.metadata.clone());
        let lane = |_| Lane { connection: connection(), pipeline: Mutex::new(None) };
        let lanes = (0..config.streams.max(1)).map(lane).collect();
        let (endpoint, bulk) = (endpoint.to_owned(), lane(0));
        let alone = Alone::new(bulk.connection.clone(), &endpoint, config.message_bytes_max);
        let (made, down_until) = (Instant::now(), AtomicU64::new(0));
        Ok(Lanes { endpoint, config, lanes, bulk, alone, made, down_until })
    }

    /// Where the node is.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// How it is spoken to.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The connection of the first lane, for unary calls.
    pub fn connection(&self) -> Connection {
        self.lanes[0].connection.clone()
    }

    /// The connection for what is large.
    pub fn bulk_connection(&self) -> Connection {
        self.bulk.connection.clone()
    }

    /// How many streams there are at most, that for what is large apart.
    pub fn streams(&self) -> usize {
        self.lanes.len()
    }

    /// Sends a call on a lane, `lane` modulo their number. Takes its place in the queue when first
    /// polled, and waits only if the queue is full. The timeout travels with the call. One that is
    /// large goes by itself.
    pub async fn send(
        &self,
        lane: u64,
        call: Call,
        timeout: Option<Duration>,
    ) -> Result<Pending, Error> {
        if is_large(&call) {
            return Ok(self.alone.send(call, timeout));
        }
        let lane = &self.lanes[(lane % self.lanes.len() as u64) as usize];
        let again = Again::of(&self.alone, &call, timeout);
        Ok(self.pipeline(lane).start(call, timeout).await?.or_again(again))
    }

    /// As [`Lanes::send`], on the lane for what is large.
    pub async fn send_bulk(&self, call: Call, timeout: Option<Duration>) -> Result<Pending, Error> {
        self.pipeline(&self.bulk).start(call, timeout).await
    }

    fn pipeline(&self, lane: &Lane) -> Pipeline {
        let mut pipeline = lane.pipeline.lock();
        match &*pipeline {
            Some(open) if !open.is_broken() => open.clone(),
            _ => {
                let max = self.config.message_bytes_max;
                let connection = lane.connection.clone();
                pipeline.insert(Pipeline::begin(connection, &self.endpoint, max)).clone()
            }
        }
    }

    /// It did not answer: for a while others are asked first.
    pub fn mark_down(&self) {
        let until = self.made.elapsed() + DOWN_FOR;
        self.down_until.store(until.as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether it did not answer lately.
    pub fn is_down(&self) -> bool {
        let until = self.down_until.load(Ordering::Relaxed);
        until != 0 && (self.made.elapsed().as_millis() as u64) < until
    }
}

fn unreachable(endpoint: &str, error: &tonic::transport::Error) -> Error {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    Error::Unreachable { endpoint: endpoint.to_owned(), message: cause.to_string(), reached: false }
}
