//! `statehouse.v1.Pipeline`: many calls under way on one stream.
//!
//! The answers are a stream that is also what reads the requests: it takes a request, polls its
//! call once (which is all that a hot read needs), and keeps it if it must wait. When the client
//! does not read its answers, nothing polls, so nothing more is taken from it. Requests beyond
//! the limit under way stay unread in the same way. When the node stops, the stream ends once the
//! calls under way are answered; requests not taken by then had no effect. A message that can't be
//! taken ends the stream too: with that error, once the calls before it are answered.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use prost::Message as _;
use statehouse_proto::v1;
use statehouse_proto::v1::pipeline_request::Call;
use statehouse_proto::v1::pipeline_response::Result as Answer;
use statehouse_proto::v1::pipeline_server::Pipeline;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::caller::{Caller, is_hop};
use super::{Calls, status};
use crate::admission::{Charge, Owner};
use crate::failure::{Failure, Reason};
use crate::size::ByteSize;

/// Calls under way on one stream, unless configured.
pub const CALLS_IN_FLIGHT_MAX_DEFAULT: usize = 4_096;

/// Bytes of one request on a pipeline; parts of uploads are the largest. Both ends keep room for
/// the largest message as long as the stream is open: what is larger goes by itself.
pub const PIPELINE_REQUEST_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// Bytes of the answer of a read on a pipeline, for the same reason.
const READ_ANSWER_BYTES_MAX: usize = 256 << 10;

/// Serves pipelines.
pub struct PipelineService {
    calls: Calls,
    in_flight_max: usize,
    stopped: watch::Receiver<bool>,
}

impl PipelineService {
    /// Over the calls of a node, with at most `in_flight_max` under way on one stream; once
    /// `stopped` is true, streams take no more requests and end.
    pub fn new(calls: Calls, in_flight_max: usize, stopped: watch::Receiver<bool>) -> Self {
        PipelineService { calls, in_flight_max, stopped }
    }
}

#[tonic::async_trait]
impl Pipeline for PipelineService {
    type RunStream = Answers;

    async fn run(
        &self,
        request: Request<Streaming<v1::PipelineRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let owner = request.extensions().get::<Arc<Charge>>().and_then(|charge| charge.owner());
        Ok(Response::new(Answers {
            calls: self.calls.clone(),
            owner,
            hop: is_hop(request.metadata()),
            requests: Some(request.into_inner()),
            under_way: FuturesUnordered::new(),
            broken: None,
            sending: None,
            in_flight_max: self.in_flight_max,
            stopped: Box::pin(stopping(self.stopped.clone())),
        }))
    }
}

async fn stopping(mut stopped: watch::Receiver<bool>) {
    // An error means that the node is gone, which is a stop too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// An answer, and what its call holds until it is sent.
type Answered = (v1::PipelineResponse, Arc<Charge>);

type UnderWay = Pin<Box<dyn Future<Output = Answered> + Send>>;

/// The answers of one stream, in the order they are ready.
pub struct Answers {
    calls: Calls,
    /// Whose they are.
    owner: Option<Owner>,
    /// Another node forwarded them.
    hop: bool,
    /// `None` once the client has sent its last.
    requests: Option<Streaming<v1::PipelineRequest>>,
    under_way: FuturesUnordered<UnderWay>,
    /// Why no more requests are taken: what the stream ends with.
    broken: Option<Status>,
    /// Of the answer that was given last: the next one is asked for once that is on its way.
    sending: Option<Arc<Charge>>,
    in_flight_max: usize,
    /// Ready once the node stops.
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Stream for Answers {
    type Item = Result<v1::PipelineResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.requests.is_some() && this.stopped.as_mut().poll(cx).is_ready() {
            this.requests = None;
        }
        this.sending = None;
        if let Poll::Ready(Some(answered)) = this.under_way.poll_next_unpin(cx) {
            return this.send(answered);
        }
        while this.under_way.len() < this.in_flight_max {
            let Some(requests) = &mut this.requests else { break };
            match requests.poll_next_unpin(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(request))) => {
                    let whose = (this.owner.clone(), this.hop);
                    let mut call: UnderWay = Box::pin(run(this.calls.clone(), request, whose));
                    match call.as_mut().poll(cx) {
                        Poll::Ready(answered) => return this.send(answered),
                        // Pushed woken: the set registers its own waker at the next poll.
                        Poll::Pending => this.under_way.push(call),
                    }
                }
                Poll::Ready(Some(Err(broken))) => {
                    (this.requests, this.broken) = (None, Some(broken));
                }
                Poll::Ready(None) => this.requests = None,
            }
        }
        match this.under_way.poll_next_unpin(cx) {
            Poll::Ready(Some(answered)) => this.send(answered),
            Poll::Ready(None) if this.requests.is_none() => {
                Poll::Ready(this.broken.take().map(Err))
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Answers {
    fn send(
        &mut self,
        (answer, charge): Answered,
    ) -> Poll<Option<Result<v1::PipelineResponse, Status>>> {
        self.sending = Some(charge);
        Poll::Ready(Some(Ok(answer)))
    }
}

async fn run(
    calls: Calls,
    request: v1::PipelineRequest,
    (owner, hop): (Option<Owner>, bool),
) -> Answered {
    let charge = calls.admission().charge_up_to(READ_ANSWER_BYTES_MAX as u64, owner);
    let id = request.id;
    let deadline = match request.timeout_ms {
        0 => None,
        timeout_ms => Some(Instant::now() + Duration::from_millis(u64::from(timeout_ms))),
    };
    let forwarded_to = AtomicU64::new(0);
    let caller =
        Caller { deadline, hop, forwarded_to: Some(&forwarded_to), charge: charge.clone() };
    let answer = match deadline {
        None => call(&calls, request.call, caller).await,
        Some(at) => {
            let call = call(&calls, request.call, caller);
            tokio::time::timeout_at(at.into(), call).await.unwrap_or_else(|_| {
                let message = format!("no answer within {} ms", request.timeout_ms);
                Err(Failure::new(Reason::DeadlineExceeded, message))
            })
        }
    };
    let answer = answer.and_then(fitting);
    let result = answer.unwrap_or_else(|failure| Answer::Error(status::error(failure)));
    let forwarded_to = forwarded_to.into_inner();
    (v1::PipelineResponse { id, result: Some(result), forwarded_to }, charge)
}

/// Refuses the answer of a read that is too large for a pipeline, as a whole: a batch of which
/// states were left out is read again by itself.
fn fitting(answer: Answer) -> Result<Answer, Failure> {
    let bytes = match &answer {
        Answer::Get(got) => got.encoded_len(),
        Answer::BatchGet(got) if got.items.iter().any(is_left_out) => usize::MAX,
        Answer::BatchGet(got) => got.encoded_len(),
        _ => 0,
    };
    if bytes <= READ_ANSWER_BYTES_MAX {
        return Ok(answer);
    }
    let max = ByteSize(READ_ANSWER_BYTES_MAX as u64);
    let message = format!("on a pipeline a read answers up to {max}: ask by itself");
    Err(Failure::new(Reason::AnswerTooLarge, message))
}

fn is_left_out(item: &v1::batch_get_response::Item) -> bool {
    use v1::batch_get_response::item;
    let Some(item::Result::Error(error)) = &item.result else { return false };
    error.reason == Reason::AnswerTooLarge.name()
}

async fn call(calls: &Calls, call: Option<Call>, caller: Caller<'_>) -> Result<Answer, Failure> {
    match call {
        Some(Call::Get(get)) => calls.get(get, caller).await.map(Answer::Get),
        Some(Call::BatchGet(get)) => calls.batch_get(get, caller).await.map(Answer::BatchGet),
        Some(Call::Put(put)) => calls.put(put, caller).await.map(Answer::Write),
        Some(Call::BatchPut(puts)) => calls.batch_put(puts, caller).await.map(Answer::BatchPut),
        Some(Call::Patch(patch)) => calls.patch(patch, caller).await.map(Answer::Write),
        Some(Call::Delete(delete)) => calls.delete(delete, caller).await.map(Answer::Delete),
        Some(Call::Score(score)) => calls.score(score, caller).await.map(Answer::Score),
        Some(Call::ScoreBatch(scores)) => {
            calls.score_batch(scores, caller).await.map(Answer::ScoreBatch)
        }
        Some(Call::Prefetch(prefetch)) => {
            calls.prefetch(prefetch, caller).await.map(Answer::Prefetch)
        }
        Some(Call::Upload(upload)) => calls.upload(upload, caller).await.map(Answer::Upload),
        None => Err(Failure::new(
            Reason::InvalidRequest,
            "a pipeline request holds a call; this one holds none that this node knows",
        )),
    }
}
