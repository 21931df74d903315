//! One `Pipeline` stream: calls go out in the order sent, answers come back in any order.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use statehouse_proto::v1;
use statehouse_proto::v1::pipeline_client::PipelineClient;
use statehouse_proto::v1::pipeline_request::Call;
use statehouse_proto::v1::pipeline_response::Result as Answer;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Channel;

use crate::Error;
use crate::alone::Again;
use crate::call_metadata::{CallMetadata, Connection};

/// Calls that may lie between the caller and the connection.
const QUEUE_MAX: usize = 1_024;

/// A stream of calls to one node. Cheap to clone; closed when the last clone is dropped.
#[derive(Clone)]
pub struct Pipeline {
    endpoint: Arc<str>,
    calls: mpsc::Sender<v1::PipelineRequest>,
    waiting: Arc<Mutex<Waiting>>,
}

struct Waiting {
    next_id: u64,
    answers: HashMap<u64, oneshot::Sender<Result<Answered, Error>>>,
    /// Why the stream ended.
    broken: Option<Error>,
}

/// An answer and who gave it.
#[derive(Debug)]
pub struct Answered {
    /// What was answered.
    pub answer: Answer,
    /// The node that answered, if the one asked forwarded the call; 0: it did not.
    pub forwarded_to: u64,
}

/// A call that is under way.
pub struct Pending {
    endpoint: Arc<str>,
    receiver: oneshot::Receiver<Result<Answered, Error>>,
    again: Option<Again>,
}

impl Pending {
    /// Waits for the answer. Safe to drop and call again.
    pub async fn answer(&mut self) -> Result<Answered, Error> {
        loop {
            let answer = match (&mut self.receiver).await {
                Ok(answer) => answer,
                Err(_) => Err(ended(&self.endpoint, true)),
            };
            match answer {
                Err(error) if Again::helps(&error) => match self.again.take() {
                    Some(again) => *self = again.send(),
                    None => return Err(error),
                },
                answer => return answer,
            }
        }
    }

    /// Of a call that went by itself.
    pub(crate) fn alone(
        endpoint: Arc<str>,
        receiver: oneshot::Receiver<Result<Answered, Error>>,
    ) -> Pending {
        Pending { endpoint, receiver, again: None }
    }

    /// Goes again by itself if its answer is too large for a pipeline.
    pub(crate) fn or_again(self, again: Option<Again>) -> Pending {
        Pending { again, ..self }
    }
}

impl Pipeline {
    /// A stream to a node, opened at once. Messages are bounded by `message_bytes_max`.
    ///
    /// Calls may be sent right away; if the node can't be reached, they learn so.
    pub fn open(channel: Channel, endpoint: &str, message_bytes_max: usize) -> Self {
        let connection = Connection::new(channel, CallMetadata::default());
        Pipeline::begin(connection, endpoint, message_bytes_max)
    }

    pub(crate) fn begin(connection: Connection, endpoint: &str, message_bytes_max: usize) -> Self {
        let (calls, queue) = mpsc::channel(QUEUE_MAX);
        let waiting = Waiting { next_id: 1, answers: HashMap::new(), broken: None };
        let waiting = Arc::new(Mutex::new(waiting));
        let client = PipelineClient::new(connection)
            .max_decoding_message_size(message_bytes_max)
            .max_encoding_message_size(message_bytes_max);
        let endpoint: Arc<str> = endpoint.into();
        let taken = Arc::new(AtomicU64::new(0));
        let request = tonic::Request::new(Queue { queue, taken: taken.clone() });
        tokio::spawn(run(client, request, waiting.clone(), endpoint.clone(), taken));
        Pipeline { endpoint, calls, waiting }
    }

    /// Whether the stream has ended.
    pub fn is_broken(&self) -> bool {
        self.waiting.lock().broken.is_some()
    }

    /// Sends a call; the future that comes back resolves with its answer. Calls on one stream
    /// take effect in the order in which their sends complete.
    pub async fn send(
        &self,
        call: Call,
        timeout: Option<Duration>,
    ) -> Result<impl Future<Output = Result<Answer, Error>> + use<>, Error> {
        let mut pending = self.start(call, timeout).await?;
        Ok(async move { pending.answer().await.map(|answered| answered.answer) })
    }

    /// Sends a call: it has its place in the queue once this is polled, unless the queue is full.
    pub(crate) async fn start(
        &self,
        call: Call,
        timeout: Option<Duration>,
    ) -> Result<Pending, Error> {
        // Not on tokio's budget: many calls that one task sends would be put off once it is spent,
        // and taken up again in another order.
        let place = tokio::task::unconstrained(self.calls.reserve()).await;
        let (sender, receiver) = oneshot::channel();
        // Under one lock, so that ids have the order of the queue.
        let mut waiting = self.waiting.lock();
        let place = match (place, &waiting.broken) {
            (Ok(place), None) => place,
            (_, Some(broken)) => return Err(unsent(broken)),
            (Err(_), None) => return Err(ended(&self.endpoint, false)),
        };
        let id = waiting.next_id;
        waiting.next_id += 1;
        waiting.answers.insert(id, sender);
        // At least one millisecond: 0 means none.
        let timeout_ms = timeout.map_or(0, |t| t.as_millis().clamp(1, u32::MAX.into()) as u32);
        place.send(v1::PipelineRequest { id, timeout_ms, call: Some(call) });
        drop(waiting);
        Ok(Pending { endpoint: self.endpoint.clone(), receiver, again: None })
    }

    /// Sends a call and awaits its answer.
    pub async fn call(&self, call: Call, timeout: Option<Duration>) -> Result<Answer, Error> {
        self.send(call, timeout).await?.await
    }
}

/// The calls on their way to the connection, and the id of the last one that it took.
struct Queue {
    queue: mpsc::Receiver<v1::PipelineRequest>,
    taken: Arc<AtomicU64>,
}

impl Stream for Queue {
    type Item = v1::PipelineRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.queue.poll_recv(cx);
        if let Poll::Ready(Some(request)) = &next {
            self.taken.store(request.id, Ordering::Release);
        }
        next
    }
}

/// Opens the stream and hands out its answers until it ends.
async fn run(
    mut client: PipelineClient<Connection>,
    request: tonic::Request<Queue>,
    waiting: Arc<Mutex<Waiting>>,
    endpoint: Arc<str>,
    taken: Arc<AtomicU64>,
) {
    let broken = match client.run(request).await {
        Ok(answers) => receive(answers.into_inner(), &waiting, &endpoint).await,
        Err(status) => Error::from_status(&endpoint, &status),
    };
    // What the connection never took has not happened.
    let taken = taken.load(Ordering::Acquire);
    let mut waiting = waiting.lock();
    for (id, waiter) in waiting.answers.drain() {
        let error = if id > taken { unsent(&broken) } else { broken.clone() };
        let _ = waiter.send(Err(error));
    }
    waiting.broken = Some(broken);
}

async fn receive(
    mut answers: tonic::Streaming<v1::PipelineResponse>,
    waiting: &Mutex<Waiting>,
    endpoint: &str,
) -> Error {
    loop {
        match answers.next().await {
            Some(Ok(response)) => {
                let waiter = waiting.lock().answers.remove(&response.id);
                let forwarded_to = response.forwarded_to;
                let answer = match response.result {
                    Some(Answer::Error(error)) => Err(error.into()),
                    Some(answer) => Ok(Answered { answer, forwarded_to }),
                    None => Err(Error::Unexpected("a response without a result")),
                };
                if let Some(waiter) = waiter {
                    // The caller may have given up meanwhile.
                    let _ = waiter.send(answer);
                }
            }
            Some(Err(status)) => return Error::from_status(endpoint, &status),
            // A node that stops ends the stream once all calls that it took are answered.
            None => return ended(endpoint, false),
        }
    }
}

/// The same for a call that did not leave.
fn unsent(broken: &Error) -> Error {
    match broken.clone() {
        Error::Unreachable { endpoint, message, .. } => {
            Error::Unreachable { endpoint, message, reached: false }
        }
        other => other,
    }
}

fn ended(endpoint: &str, reached: bool) -> Error {
    let message = "the stream ended".to_owned();
    Error::Unreachable { endpoint: endpoint.to_owned(), message, reached }
}
