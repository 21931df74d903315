//! `State.Read`: a state's bytes as a stream of chunks, read as fast as they are taken.
//!
//! The next bytes are read while the last ones are on their way; no more. Who takes nothing for
//! too long is cut off, since a state under reading holds up the disk's compaction.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use crc32fast::Hasher;
use futures::{Stream, StreamExt as _};
use statehouse_client::lanes::Lanes;
use statehouse_client::retry::Effect;
use statehouse_cluster::raft::Group;
use statehouse_proto::v1;
use statehouse_proto::v1::read_stream_response::Part;
use statehouse_proto::v1::state_client::StateClient;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::caller::Caller;
use super::damaged::elsewhere;
use super::transfers::finished;
use super::{Calls, Transfers, convert, status};
use crate::failure::{Failure, Reason};
use crate::large::Subject;
use crate::metrics::{CallKind, Direction, OpenStream};
use crate::router::Place;
use crate::states::{Opened, Slice, StateKey};

/// Bytes that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// Chunks that wait to be taken.
const CHUNKS_WAITING_MAX: usize = 4;

/// The chunks of one read.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<v1::ReadStreamResponse, Status>> + Send>>;

/// Opens a state where it may be read, here or at another node.
pub async fn read(
    calls: &Calls,
    request: v1::GetRequest,
    caller: Caller<'static>,
) -> Result<Chunks, Failure> {
    let query = convert::get_query(request.clone())?;
    let router = calls.router();
    let shard = router.shard_of(&query.target.key);
    if caller.hop {
        let group = router.shards().group(shard);
        let group = group.filter(|group| query.freshness.may_be_served_by(group));
        let group = group.ok_or_else(|| router.refusal(shard))?;
        let opened = elsewhere(&group, calls.states().open(&group, &query).await).await?;
        // Counted where the caller asked.
        return Ok(chunks(calls, (&query.target, group), opened));
    }
    let open = calls.transfers().counted().open(Direction::Read);
    let mut route = router.route(shard, caller.deadline, Effect::None);
    loop {
        let outcome = match route.next(query.freshness) {
            Place::Here(group) => {
                let opened = calls.states().open(&group, &query).await;
                let opened = elsewhere(&group, opened).await;
                opened.map(|opened| chunks(calls, (&query.target, group), opened))
            }
            Place::There(_, lanes) => from_another(calls, &lanes, request.clone()).await,
            Place::Nowhere => Err(Failure::not_leader(shard, router.leader_of(shard))),
        };
        match outcome {
            Ok(chunks) => {
                route.served();
                return Ok(counted(chunks, open));
            }
            Err(failure) => tokio::time::sleep(route.failed(failure)?).await,
        }
    }
}

/// Passes on what another node reads.
async fn from_another(
    calls: &Calls,
    lanes: &Lanes,
    request: v1::GetRequest,
) -> Result<Chunks, Failure> {
    calls.router().counted().forwarded.inc();
    let mut client = StateClient::new(lanes.bulk_connection())
        .max_decoding_message_size(lanes.config().message_bytes_max);
    let refused = |status: Status| {
        let error = statehouse_client::Error::from_status(lanes.endpoint(), &status);
        status::failure(error, Effect::None)
    };
    Ok(client.read(request).await.map_err(refused)?.into_inner().boxed())
}

/// Counts what is taken, for as long as somebody takes it.
fn counted(chunks: Chunks, open: OpenStream) -> Chunks {
    let count = move |message| {
        if let Ok(v1::ReadStreamResponse { part: Some(Part::Chunk(chunk)) }) = &message {
            open.moved(chunk.data.len());
        }
        message
    };
    chunks.map(count).boxed()
}

/// The chunks of an opened state, read on a task of their own, on the threads for that.
fn chunks(calls: &Calls, (target, group): (&StateKey, Arc<Group>), opened: Opened) -> Chunks {
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
    let bytes = opened.slices.iter().map(|slice| slice.bytes).sum();
    let subject = Subject { collection: &target.collection, key: &target.key, items: 0 };
    let watched = calls.large().watch(CallKind::Read, subject, 0);
    let (transfers, calls) = (calls.transfers().clone(), calls.clone());
    transfers.spawn(async move {
        let to = Sender { chunks: &sender, transfers: calls.transfers() };
        let failed = feed(&calls, opened, &to).await;
        // What was sent is right; the rest is read anew, at another replica.
        let failed = match failed {
            Err(Some(failure)) => elsewhere(&group, Err(failure)).await.map_err(Some),
            ended => ended,
        };
        let outcome = match &failed {
            Ok(()) => "ok",
            Err(None) => "left by its reader",
            Err(Some(failure)) => failure.reason.name(),
        };
        calls.large().done(watched, bytes, outcome);
        if let Err(Some(failure)) = failed {
            calls.counted().failed(CallKind::Read, &failure);
            // Behind what waits already; nobody may be there to take it.
            let _ = sender.send(Err(status::status(failure))).await;
        }
    });
    told(ReceiverStream::new(receiver)).boxed()
}

/// Ends with an error what ends without an end or an error: the task that read it was given up, as
/// the node stopped. Else it would look like a state that is shorter.
fn told(
    mut chunks: impl Stream<Item = Result<v1::ReadStreamResponse, Status>> + Unpin,
) -> impl Stream<Item = Result<v1::ReadStreamResponse, Status>> {
    let mut told = false;
    futures::stream::poll_fn(move |cx| {
        let next = ready!(chunks.poll_next_unpin(cx));
        match &next {
            Some(Ok(v1::ReadStreamResponse { part: Some(Part::End(_)) }) | Err(_)) => told = true,
            Some(Ok(_)) => {}
            None if told => {}
            None => {
                told = true;
                let gone = Failure::new(Reason::Unavailable, "the node is stopping");
                return Poll::Ready(Some(Err(status::status(gone))));
            }
        }
        Poll::Ready(next)
    })
}

/// Why a read ended early; `None`: whoever read it has left.
type Cut = Option<Failure>;

struct Sender<'a> {
    chunks: &'a mpsc::Sender<Result<v1::ReadStreamResponse, Status>>,
    transfers: &'a Transfers,
}

impl Sender<'_> {
    async fn send(&self, part: Part) -> Result<(), Cut> {
        let message = v1::ReadStreamResponse { part: Some(part) };
        let sent = self.chunks.send_timeout(Ok(message), self.transfers.stall_after()).await;
        sent.map_err(|error| match error {
            mpsc::error::SendTimeoutError::Closed(_) => None,
            mpsc::error::SendTimeoutError::Timeout(_) => {
                Some(self.transfers.stalled("taken", self.transfers.stall_after()))
            }
        })
    }
}

async fn feed(calls: &Calls, opened: Opened, sender: &Sender<'_>) -> Result<(), Cut> {
    sender.send(Part::Header(convert::read_header(&opened))).await?;
    let mut crc = Hasher::new();
    for (field, slice) in (0u32..).zip(opened.slices) {
        let mut reading = tokio::spawn(read_on(calls.clone(), slice));
        loop {
            let (slice, pieces, _held) = finished(reading).await.map_err(Some)?;
            if pieces.is_empty() {
                break;
            }
            reading = tokio::spawn(read_on(calls.clone(), slice));
            for data in pieces {
                crc.update(&data);
                sender.send(Part::Chunk(v1::ReadChunk { field, data })).await?;
            }
        }
    }
    sender.send(Part::End(v1::ReadEnd { crc32: crc.finalize() })).await
}

/// Reads on once there is room for it, which is given back with the last of the answer.
async fn read_on(
    calls: Calls,
    slice: Slice,
) -> Result<(Slice, Vec<Bytes>, OwnedSemaphorePermit), Failure> {
    let held = calls.transfers().hold(READ_BYTES).await?;
    let (slice, pieces) = calls.states().read_on(slice, READ_BYTES).await?;
    Ok((slice, pieces, held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_that_is_given_up_ends_with_an_error_and_a_whole_one_does_not() {
        let part = |part| Ok(v1::ReadStreamResponse { part: Some(part) });
        let chunk = || part(Part::Chunk(v1::ReadChunk::default()));
        let end = || part(Part::End(v1::ReadEnd::default()));
        let count = async |messages| {
            let all: Vec<_> = told(futures::stream::iter(messages)).collect().await;
            (all.len(), all.last().unwrap().as_ref().err().map(Status::code))
        };
        assert_eq!(count(vec![chunk(), end()]).await, (2, None));
        assert_eq!(count(vec![chunk()]).await, (2, Some(tonic::Code::Unavailable)));
        let failed = Err(Status::data_loss("on purpose"));
        assert_eq!(count(vec![chunk(), failed]).await, (2, Some(tonic::Code::DataLoss)));
    }
}
