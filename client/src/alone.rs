//! Calls that go by themselves instead of on a pipeline: those whose request or answer is large.
//!
//! On a stream that calls share, what is large keeps what is small waiting, and both ends keep
//! room for the largest message that there was for as long as the stream is open. So such a call is
//! a unary one, on the connection for what is large. It keeps no order with calls on pipelines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use statehouse_proto::v1;
use statehouse_proto::v1::pipeline_request::Call;
use statehouse_proto::v1::pipeline_response::Result as Answer;
use statehouse_proto::v1::score_client::ScoreClient;
use statehouse_proto::v1::state_client::StateClient;
use tokio::sync::{Semaphore, oneshot};
use tonic::{Code, Request, Status};

use crate::Error;
use crate::call_metadata::Connection;
use crate::pipeline::{Answered, Pending};

/// Calls with larger requests go by themselves.
const REQUEST_BYTES_MAX: usize = 256 << 10;

/// Such calls to one node at a time; further ones wait here.
const UNDER_WAY_MAX: usize = 16;

/// The reason with which a node refuses an answer that is too large for a pipeline.
const ANSWER_TOO_LARGE: &str = "ANSWER_TOO_LARGE";

/// The way for calls that go by themselves. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Alone {
    connection: Connection,
    endpoint: Arc<str>,
    message_bytes_max: usize,
    places: Arc<Semaphore>,
}

/// A call that goes again by itself, should its answer turn out to be too large for a pipeline.
pub(crate) struct Again {
    alone: Alone,
    call: Call,
    deadline: Option<Instant>,
}

/// Whether a call's request is too large for a pipeline.
pub(crate) fn is_large(call: &Call) -> bool {
    let bytes = match call {
        Call::Get(_) | Call::Delete(_) | Call::Upload(_) => return false,
        Call::BatchGet(get) => get.encoded_len(),
        Call::Prefetch(prefetch) => prefetch.encoded_len(),
        Call::Put(put) => put.encoded_len(),
        Call::BatchPut(puts) => puts.encoded_len(),
        Call::Patch(patch) => patch.encoded_len(),
        Call::Score(score) => score.encoded_len(),
        Call::ScoreBatch(scores) => scores.encoded_len(),
    };
    bytes > REQUEST_BYTES_MAX
}

impl Again {
    /// For a call whose answer may be large and that may go twice.
    pub fn of(alone: &Alone, call: &Call, timeout: Option<Duration>) -> Option<Again> {
        if !matches!(call, Call::Get(_) | Call::BatchGet(_)) {
            return None;
        }
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        Some(Again { alone: alone.clone(), call: call.clone(), deadline })
    }

    /// Whether it helps after this error.
    pub fn helps(error: &Error) -> bool {
        error.reason() == Some(ANSWER_TOO_LARGE)
    }

    pub fn send(self) -> Pending {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        self.alone.send(self.call, self.deadline.map(left))
    }
}

impl Alone {
    /// Over the connection for what is large.
    pub fn new(connection: Connection, endpoint: &str, message_bytes_max: usize) -> Self {
        Alone {
            connection,
            endpoint: endpoint.into(),
            message_bytes_max,
            places: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
        }
    }

    /// Sends a call. It is given up when nobody waits for its answer any more.
    pub fn send(&self, call: Call, timeout: Option<Duration>) -> Pending {
        let (mut sender, receiver) = oneshot::channel();
        let alone = self.clone();
        tokio::spawn(async move {
            let started = Instant::now();
            let answer = tokio::select! {
                answer = alone.in_time(call, timeout) => answer,
                () = sender.closed() => return,
            };
            let answer = answer.map(|answer| Answered { answer, forwarded_to: 0 });
            let late = |timeout| started.elapsed() >= timeout;
            let answer = answer.map_err(|status| match status.code() {
                // This end's own clock may be the first to tell.
                Code::Cancelled | Code::DeadlineExceeded if timeout.is_some_and(late) => {
                    deadline_exceeded()
                }
                _ => Error::from_status(&alone.endpoint, &status),
            });
            // The caller may have given up meanwhile.
            let _ = sender.send(answer);
        });
        Pending::alone(self.endpoint.clone(), receiver)
    }

    /// Runs a call once there is a place for it.
    async fn in_time(&self, call: Call, timeout: Option<Duration>) -> Result<Answer, Status> {
        let run = async {
            let _place = self.places.acquire().await;
            self.run(call, timeout).await
        };
        let Some(timeout) = timeout else { return run.await };
        let late = |_| Err(Status::deadline_exceeded("no answer in time"));
        tokio::time::timeout(timeout, run).await.unwrap_or_else(late)
    }

    async fn run(&self, call: Call, timeout: Option<Duration>) -> Result<Answer, Status> {
        let max = self.message_bytes_max;
        let mut state = StateClient::new(self.connection.clone())
            .max_decoding_message_size(max)
            .max_encoding_message_size(max);
        let mut score = ScoreClient::new(self.connection.clone())
            .max_decoding_message_size(max)
            .max_encoding_message_size(max);
        Ok(match call {
            Call::Get(get) => Answer::Get(state.get(timed(get, timeout)).await?.into_inner()),
            Call::BatchGet(get) => {
                Answer::BatchGet(state.batch_get(timed(get, timeout)).await?.into_inner())
            }
            Call::Prefetch(keys) => {
                Answer::Prefetch(state.prefetch(timed(keys, timeout)).await?.into_inner())
            }
            Call::Put(put) => Answer::Write(state.put(timed(put, timeout)).await?.into_inner()),
            Call::BatchPut(puts) => {
                Answer::BatchPut(state.batch_put(timed(puts, timeout)).await?.into_inner())
            }
            Call::Patch(patch) => {
                Answer::Write(state.patch(timed(patch, timeout)).await?.into_inner())
            }
            Call::Delete(delete) => {
                Answer::Delete(state.delete(timed(delete, timeout)).await?.into_inner())
            }
            Call::Score(one) => Answer::Score(score.score(timed(one, timeout)).await?.into_inner()),
            Call::ScoreBatch(many) => {
                Answer::ScoreBatch(score.score_batch(timed(many, timeout)).await?.into_inner())
            }
            Call::Upload(_) => return Err(Status::internal("a part of an upload is not large")),
        })
    }
}

/// Makes a request that has to be answered in time.
fn timed<T>(message: T, timeout: Option<Duration>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    request
}

fn deadline_exceeded() -> Error {
    Error::from(v1::Error {
        code: Code::DeadlineExceeded as i32,
        reason: "DEADLINE_EXCEEDED".to_owned(),
        message: "no answer before the deadline".to_owned(),
        ..v1::Error::default()
    })
}
