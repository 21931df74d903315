//! The other end of the peers' streams: checks who calls, hands messages to the groups.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered};
use futures::{FutureExt, StreamExt};
use statehouse_proto::v1;
use statehouse_proto::v1::control_server::ControlServer;
use statehouse_proto::v1::peer_server::{Peer, PeerServer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::link::{CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, STREAM_WINDOW_BYTES};
use crate::raft::Groups;
use crate::{NodeId, Shards, control};

/// Small messages of one peer that are being answered.
const ASKS_IN_FLIGHT_MAX: usize = 4_096;

/// How long a snapshot's sender may say nothing; its reads from disk and its throttle are far
/// quicker.
const PART_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a node that stops because its disk has failed tries to tell a peer so.
const LAST_WORD_WAIT_MAX: Duration = Duration::from_millis(200);

/// Answers to appends that wait to be written to a connection.
const ANSWERS_WAITING_MAX: usize = 1_024;

/// Serves the peers of a node until told to stop, then ends their streams. Without shards it can't
/// note where a node is.
pub async fn serve(
    listener: TcpListener,
    groups: Arc<Groups>,
    shards: Weak<Shards>,
    stopped: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let (stop, stopping) = watch::channel(false);
    let message_bytes_max = groups.peers().config.message_bytes_max;
    let control = ControlServer::new(control::Service::new(groups.clone(), shards));
    let service = PeerServer::new(Service { groups, stopping })
        .max_decoding_message_size(message_bytes_max)
        .max_encoding_message_size(usize::MAX);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .add_service(service)
        .add_service(control)
        .serve_with_incoming_shutdown(incoming, async move {
            stopped.await;
            stop.send_replace(true);
        })
        .await
}

struct Service {
    groups: Arc<Groups>,
    stopping: watch::Receiver<bool>,
}

type Answers<T> = Result<Response<ReceiverStream<Result<T, Status>>>, Status>;

#[tonic::async_trait]
impl Peer for Service {
    type TalkStream = ReceiverStream<Result<v1::PeerAnswers, Status>>;
    type AppendStream = BoxStream<'static, Result<v1::AppendAnswers, Status>>;

    async fn talk(&self, request: Request<Streaming<v1::PeerAsks>>) -> Answers<v1::PeerAnswers> {
        let mut asks = request.into_inner();
        let first = asks.message().await?.unwrap_or_default();
        let from = self.groups.peers().greeted(first.hello)?;
        // One under way, so that answers gather meanwhile.
        let (answers, outgoing) = mpsc::channel(1);
        let (groups, stopping) = (self.groups.clone(), self.stopping.clone());
        tokio::spawn(talk(groups, from, asks, answers, stopping));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn append(
        &self,
        request: Request<Streaming<v1::AppendRequests>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap_or_default();
        let from = self.groups.peers().greeted(first.hello)?;
        let (answers, outgoing) = mpsc::channel(ANSWERS_WAITING_MAX);
        let (groups, stopping) = (self.groups.clone(), self.stopping.clone());
        tokio::spawn(append(groups, from, requests, answers, stopping));
        Ok(Response::new(gathered(outgoing)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Result<Response<v1::SnapshotAnswer>, Status> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.unwrap_or_default();
        let from = self.groups.peers().greeted(first.hello)?;
        let header = first.header.unwrap_or_default();
        let (groups, mut stopping) = (self.groups.clone(), self.stopping.clone());
        let peers = groups.peers().clone();
        let next_block = async move || {
            let part = tokio::select! {
                () = told(&mut stopping) => return Err(Status::unavailable("the node stops")),
                () = tokio::time::sleep(PART_WAIT_MAX) => {
                    return Err(Status::deadline_exceeded("nothing more came"));
                }
                part = parts.message() => part?,
            };
            if peers.is_cut(from) {
                return Err(Status::unavailable("cut off"));
            }
            peers.note(from);
            match part {
                Some(part) if part.complete => Ok(None),
                Some(part) => Ok(Some(part.block)),
                None => Err(Status::aborted("the snapshot ended early")),
            }
        };
        Ok(Response::new(groups.take_snapshot(header, next_block).await))
    }
}

/// Resolves when the streams shall end.
async fn told(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is an end too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Answers small messages, each when it is done, all that are done together.
async fn talk(
    groups: Arc<Groups>,
    from: NodeId,
    mut asks: Streaming<v1::PeerAsks>,
    answers: mpsc::Sender<Result<v1::PeerAnswers, Status>>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut working: FuturesUnordered<BoxFuture<'static, v1::PeerAnswer>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = told(&mut stopping) => {
                let last = message_of(&groups, Vec::new());
                if !last.disk_failed.is_empty() && !groups.peers().is_cut(from) {
                    // Nobody could tell the others later why this node is silent. Who reads nothing
                    // is not waited for.
                    let _ = answers.send_timeout(Ok(last), LAST_WORD_WAIT_MAX).await;
                }
                return;
            }
            received = asks.message(), if working.len() < ASKS_IN_FLIGHT_MAX => {
                let Ok(Some(message)) = received else { return };
                if groups.peers().is_cut(from) {
                    continue;
                }
                groups.peers().note(from);
                let asks = message.asks.into_iter();
                working.extend(asks.map(|ask| groups.clone().answer(from, ask)));
            }
            Some(answer) = working.next(), if !working.is_empty() => {
                let mut done = vec![answer];
                while let Some(Some(answer)) = working.next().now_or_never() {
                    done.push(answer);
                }
                if groups.peers().is_cut(from) {
                    continue;
                }
                if answers.send(Ok(message_of(&groups, done))).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Returns a message of answers, with what there is to say of this node's disk.
fn message_of(groups: &Groups, answers: Vec<v1::PeerAnswer>) -> v1::PeerAnswers {
    let failed = groups.store().failure();
    v1::PeerAnswers {
        answers,
        disk_short: groups.store().check_space().is_err(),
        disk_failed: failed.map_or(String::new(), |failed| failed.to_string()),
    }
}

/// All answers that wait, as one message each time the connection takes one.
fn gathered(
    mut answers: mpsc::Receiver<v1::AppendAnswer>,
) -> BoxStream<'static, Result<v1::AppendAnswers, Status>> {
    stream::poll_fn(move |context| {
        let mut waiting = Vec::new();
        answers.poll_recv_many(context, &mut waiting, ANSWERS_WAITING_MAX).map(
            |count| match count {
                // Nobody answers any more.
                0 => None,
                _ => Some(Ok(v1::AppendAnswers { answers: waiting })),
            },
        )
    })
    .boxed()
}

/// Hands each session's requests to its group, in order.
async fn append(
    groups: Arc<Groups>,
    from: NodeId,
    mut incoming: Streaming<v1::AppendRequests>,
    answers: mpsc::Sender<v1::AppendAnswer>,
    mut stopping: watch::Receiver<bool>,
) {
    // Unbounded, since the sender bounds what it has under way in bytes.
    let mut sessions: HashMap<u64, mpsc::UnboundedSender<v1::AppendRequest>> = HashMap::new();
    loop {
        let received = tokio::select! {
            () = told(&mut stopping) => return,
            received = incoming.message() => received,
        };
        let Ok(Some(message)) = received else { return };
        if groups.peers().is_cut(from) {
            return;
        }
        groups.peers().note(from);
        for request in message.requests {
            let session = request.session;
            if request.end {
                sessions.remove(&session);
                continue;
            }
            let requests = sessions.entry(session).or_insert_with(|| {
                let (sender, receiver) = mpsc::unbounded_channel();
                let answers = answers.clone();
                let answer = move |answer| {
                    let answers = answers.clone();
                    let answer = v1::AppendAnswer { session, answer: Some(answer) };
                    async move { answers.send(answer).await.is_ok() }.boxed()
                };
                let route = request.route.unwrap_or_default();
                tokio::spawn(groups.clone().follow(from, route, receiver, answer));
                sender
            });
            // A session that has ended for us has said so; what follows on it goes nowhere.
            let _ = requests.send(request);
        }
    }
}
