//! One `Pipeline` stream: calls go out in the order sent, answers come back in any order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use parking_lot::Mutex;
use statehouse_proto::v1;
use statehouse_proto::v1::pipeline_client::PipelineClient;
use statehouse_proto::v1::pipeline_request::Call;
use statehouse_proto::v1::pipeline_response::Result as Answer;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::Error;

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
    answers: HashMap<u64, oneshot::Sender<Result<Answer, Error>>>,
    /// Why the stream ended.
    broken: Option<Error>,
}

impl Pipeline {
    /// Opens a stream to a node. Messages are bounded by `message_bytes_max`.
    pub async fn open(
        channel: Channel,
        endpoint: &str,
        message_bytes_max: usize,
    ) -> Result<Self, Error> {
        let (calls, queue) = mpsc::channel(QUEUE_MAX);
        let waiting =
            Arc::new(Mutex::new(Waiting { next_id: 1, answers: HashMap::new(), broken: None }));
        let mut client = PipelineClient::new(channel)
            .max_decoding_message_size(message_bytes_max)
            .max_encoding_message_size(message_bytes_max);
        let answers = client
            .run(ReceiverStream::new(queue))
            .await
            .map_err(|status| Error::from_status(endpoint, &status))?;
        let endpoint: Arc<str> = endpoint.into();
        tokio::spawn(receive(answers.into_inner(), waiting.clone(), endpoint.clone()));
        Ok(Pipeline { endpoint, calls, waiting })
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
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut waiting = self.waiting.lock();
            if let Some(broken) = &waiting.broken {
                return Err(broken.clone());
            }
            let id = waiting.next_id;
            waiting.next_id += 1;
            waiting.answers.insert(id, sender);
            id
        };
        // At least one millisecond: 0 means none.
        let timeout_ms = timeout.map_or(0, |t| t.as_millis().clamp(1, u32::MAX.into()) as u32);
        let request = v1::PipelineRequest { id, timeout_ms, call: Some(call) };
        if self.calls.send(request).await.is_err() {
            let mut waiting = self.waiting.lock();
            waiting.answers.remove(&id);
            return Err(waiting.broken.clone().unwrap_or_else(|| closed(&self.endpoint)));
        }
        let endpoint = self.endpoint.clone();
        Ok(async move { receiver.await.unwrap_or_else(|_| Err(closed(&endpoint))) })
    }

    /// Sends a call and awaits its answer.
    pub async fn call(&self, call: Call, timeout: Option<Duration>) -> Result<Answer, Error> {
        self.send(call, timeout).await?.await
    }
}

async fn receive(
    mut answers: tonic::Streaming<v1::PipelineResponse>,
    waiting: Arc<Mutex<Waiting>>,
    endpoint: Arc<str>,
) {
    let broken = loop {
        match answers.next().await {
            Some(Ok(response)) => {
                let waiter = waiting.lock().answers.remove(&response.id);
                let answer = match response.result {
                    Some(Answer::Error(error)) => Err(error.into()),
                    Some(answer) => Ok(answer),
                    None => Err(Error::Unexpected("a response without a result")),
                };
                if let Some(waiter) = waiter {
                    // The caller may have given up meanwhile.
                    let _ = waiter.send(answer);
                }
            }
            Some(Err(status)) => break Error::from_status(&endpoint, &status),
            None => break closed(&endpoint),
        }
    };
    let mut waiting = waiting.lock();
    waiting.broken = Some(broken.clone());
    for (_, waiter) in waiting.answers.drain() {
        let _ = waiter.send(Err(broken.clone()));
    }
}

fn closed(endpoint: &str) -> Error {
    Error::Unreachable { endpoint: endpoint.to_owned(), message: "the stream ended".to_owned() }
}
