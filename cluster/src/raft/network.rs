//! openraft's network over the transport: what one replica says to another.
//!
//! Appends of entries are pipelined: a session sends on while answers come back. Heartbeats and
//! votes are small messages, gathered with those of other groups.

use std::collections::VecDeque;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use statehouse_proto::v1;
use statehouse_proto::v1::append_answer::Answer as AppendAnswer;
use statehouse_proto::v1::appended::Result as Appended;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use statehouse_proto::v1::transfer_answer::Result as Transferred;
use statehouse_store::ReplicaId;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::JoinHandle;

use super::convert;
use super::reads::Told;
use super::room::SharedRoom;
use super::snapshot::Destination;
use super::state_machine::{Snapshot, View};
use super::transfers::Transfers;
use super::types::{LogId, Member, TypeConfig, Vote};
use crate::transport::append::{Requests, Session};
use crate::transport::{Lost, Peers};
use crate::{NodeId, ShardId};

type Rpc<T> = Result<T, RPCError<TypeConfig>>;
type Append = AppendEntriesRequest<TypeConfig>;
type Appends<'s> = BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>;

/// Waits between two tries to reach a peer; the last one repeats.
const BACKOFF: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(50), Duration::from_millis(200)];

/// Appends of one session that are sent and not answered.
const REQUESTS_IN_FLIGHT_MAX: usize = 64;

/// Makes the links of one replica to the others of its group.
pub struct Network {
    peers: Arc<Peers>,
    transfers: Arc<Transfers>,
    shard: ShardId,
    replica: ReplicaId,
    told: Arc<Told>,
    room: SharedRoom,
}

impl Network {
    /// Raises `told` before it tells anybody a commit index. Says with entries whether `room` has
    /// it that a quorum can't do without anybody.
    pub fn new(
        (peers, transfers): (Arc<Peers>, Arc<Transfers>),
        shard: ShardId,
        replica: ReplicaId,
        (told, room): (Arc<Told>, SharedRoom),
    ) -> Self {
        Network { peers, transfers, shard, replica, told, room }
    }

    fn link(&self, target: u64, member: &Member, beats: bool) -> Link {
        let route = v1::PeerRoute {
            shard: u32::from(self.shard.0),
            from_replica: self.replica.0,
            to_replica: target,
        };
        let (peers, transfers) = (self.peers.clone(), self.transfers.clone());
        let (told, room) = (self.told.clone(), self.room.clone());
        Link { peers, transfers, node: NodeId(member.node), route, told, room, beats }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Member) -> Link {
        self.link(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Link {
        self.link(target, node, true)
    }
}

/// From one replica to another.
pub struct Link {
    peers: Arc<Peers>,
    transfers: Arc<Transfers>,
    node: NodeId,
    route: v1::PeerRoute,
    told: Arc<Told>,
    room: SharedRoom,
    /// Sends heartbeats and nothing else.
    beats: bool,
}

fn lost(lost: Lost) -> RPCError<TypeConfig> {
    match lost {
        Lost::Unreachable => RPCError::Unreachable(Unreachable::new(&lost)),
        Lost::Broken => RPCError::Network(NetworkError::new(&lost)),
    }
}

fn refused(refusal: &v1::PeerRefusal) -> RPCError<TypeConfig> {
    let kind = refusal.kind().as_str_name();
    RPCError::Unreachable(Unreachable::from_string(format!("{kind}: {}", refusal.detail)))
}

fn senseless() -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string("the peer's answer makes no sense"))
}

/// The answer of a kind that the message asks for.
fn expect<T>(answer: Answer, pick: impl FnOnce(Answer) -> Option<T>) -> Rpc<T> {
    match answer {
        Answer::Refusal(refusal) => Err(refused(&refusal)),
        other => pick(other).ok_or_else(senseless),
    }
}

impl Link {
    async fn ask(&self, ask: Ask, hurry: bool) -> Rpc<Answer> {
        let peer = self.peers.peer(self.node);
        peer.talk.ask(Some(self.route), ask, hurry).await.map_err(lost)
    }

    async fn beat(&self, request: &Append) -> Rpc<StreamAppendResult<TypeConfig>> {
        let beat = v1::Heartbeat {
            vote: Some(convert::vote_to_proto(&request.vote)),
            previous: convert::position(request.prev_log_id),
            committed: committed(request, &self.told),
        };
        let answer = self.ask(Ask::Heartbeat(beat), false).await?;
        let appended = expect(answer, |answer| match answer {
            Answer::Heartbeat(appended) => Some(appended),
            _ => None,
        })?;
        stream_result(appended)
    }

    async fn request_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        kind: fn(v1::VoteAsk) -> Ask,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let ask = v1::VoteAsk {
            vote: Some(convert::vote_to_proto(&request.vote)),
            last: convert::position(request.last_log_id),
            transfer: request.leadership_transfer,
        };
        let answer = self.ask(kind(ask), true).await?;
        let answer = expect(answer, |answer| match answer {
            Answer::Vote(answer) => Some(answer),
            _ => None,
        })?;
        let vote = convert::required_vote(answer.vote).map_err(|_| senseless())?;
        Ok(VoteResponse::new(vote, convert::log_id(answer.last), answer.granted))
    }

    fn session<S>(&self, input: S) -> Rpc<Appends<'static>>
    where
        S: Stream<Item = Append> + Send + Unpin + 'static,
    {
        let peer = self.peers.peer(self.node);
        let Session { requests, answers } = peer.appends.session().map_err(lost)?;
        let under_way = Arc::new(UnderWay::default());
        let known = (self.told.clone(), self.room.clone());
        let pump = tokio::spawn(pump(input, requests, (self.route, known), under_way.clone()));
        let patience = self.peers.append_answer_timeout();
        let session = Answers { answers, under_way, patience, _pump: Pump(pump) };
        let answers = futures::stream::unfold(Some(session), |session| async move {
            let mut session = session?;
            let answer = session.next().await?;
            let goes_on = matches!(answer, Ok(Ok(_)));
            Some((answer, goes_on.then_some(session)))
        });
        // Whoever polls may do so once more behind the end.
        Ok(Box::pin(answers.fuse()))
    }
}

/// The commit index that a request tells, noted first.
fn committed(request: &Append, told: &Told) -> Option<v1::LogPosition> {
    let committed = convert::position(request.leader_commit);
    told.raise(committed.map_or(0, |position| position.index));
    committed
}

fn stream_result(appended: v1::Appended) -> Rpc<StreamAppendResult<TypeConfig>> {
    Ok(match appended.result.ok_or_else(senseless)? {
        Appended::Matched(at) => Ok(convert::log_id(Some(at))),
        Appended::Conflict(at) => {
            let at: Option<LogId> = convert::log_id(Some(at));
            Err(StreamAppendError::Conflict(at.ok_or_else(senseless)?))
        }
        Appended::Higher(vote) => Err(StreamAppendError::HigherVote(convert::vote_of_proto(vote))),
    })
}

/// Requests of a session that are sent and not answered.
#[derive(Default)]
struct UnderWay {
    credits: Mutex<VecDeque<OwnedSemaphorePermit>>,
    /// Told when a request is answered, and when the last one is sent.
    changed: Notify,
    ended: Mutex<bool>,
}

/// Sends a session's requests as they come, until they end or nobody wants the answers.
async fn pump(
    mut input: impl Stream<Item = Append> + Unpin,
    requests: Requests,
    (route, (told, room)): (v1::PeerRoute, (Arc<Told>, SharedRoom)),
    under_way: Arc<UnderWay>,
) {
    while let Some(request) = input.next().await {
        let entries = request.entries.iter().map(|entry| entry.stored.encode());
        let entries: Vec<Bytes> = entries.collect();
        let bytes = entries.iter().map(Bytes::len).sum();
        let Ok(credit) = requests.credit(bytes).await else { break };
        while under_way.credits.lock().len() >= REQUESTS_IN_FLIGHT_MAX {
            under_way.changed.notified().await;
        }
        under_way.credits.lock().push_back(credit);
        let request = v1::AppendRequest {
            route: Some(route),
            vote: Some(convert::vote_to_proto(&request.vote)),
            previous: convert::position(request.prev_log_id),
            committed: committed(&request, &told),
            entries,
            needed: room.quorum_is_short(),
            ..Default::default()
        };
        if requests.send(request).await.is_err() {
            break;
        }
    }
    *under_way.ended.lock() = true;
    under_way.changed.notify_waiters();
    under_way.changed.notify_one();
    // The session ends with its last answer, not with its last request.
    while !under_way.credits.lock().is_empty() {
        under_way.changed.notified().await;
    }
}

struct Pump(JoinHandle<()>);

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The receiving half of a session.
struct Answers {
    answers: tokio::sync::mpsc::UnboundedReceiver<AppendAnswer>,
    under_way: Arc<UnderWay>,
    patience: Duration,
    _pump: Pump,
}

impl Answers {
    /// The next answer; `None` when every request has one and no more will come.
    async fn next(&mut self) -> Option<Rpc<StreamAppendResult<TypeConfig>>> {
        loop {
            let idle = self.under_way.credits.lock().is_empty();
            if idle && *self.under_way.ended.lock() {
                return None;
            }
            tokio::select! {
                answer = self.answers.recv() => {
                    let Some(answer) = answer else { return Some(Err(lost(Lost::Broken))) };
                    drop(self.under_way.credits.lock().pop_front());
                    self.under_way.changed.notify_one();
                    return Some(match answer {
                        AppendAnswer::Appended(appended) => stream_result(appended),
                        AppendAnswer::Refusal(refusal) => Err(refused(&refusal)),
                    });
                }
                () = self.under_way.changed.notified(), if idle => {}
                () = tokio::time::sleep(self.patience), if !idle => {
                    return Some(Err(lost(Lost::Broken)));
                }
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = View;

    async fn append_entries(
        &mut self,
        request: Append,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let once = futures::stream::once(ready(request));
        let mut answers = RaftNetworkV2::stream_append(self, Box::pin(once), option).await?;
        let answer = answers.next().await.unwrap_or_else(|| Err(lost(Lost::Broken)))?;
        Ok(AppendEntriesResponse::from(answer))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _: RPCOption,
    ) -> BoxFuture<'s, Rpc<Appends<'s>>>
    where
        S: Stream<Item = Append> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            if !self.beats {
                // Where openraft waits after an error is in here: a session refused before the
                // first request was asked for would be tried again at once, for ever.
                let first = input.next().await;
                return self.session(Box::pin(futures::stream::iter(first).chain(input)));
            }
            let mut answers = VecDeque::new();
            while let Some(beat) = input.next().await {
                answers.push_back(self.beat(&beat).await);
            }
            let answers: Appends<'s> = Box::pin(futures::stream::iter(answers));
            Ok(answers)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.request_vote(request, Ask::Vote).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.request_vote(request, Ask::PreVote).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let destination = Destination {
            peers: self.peers.clone(),
            transfers: self.transfers.clone(),
            node: self.node,
            route: self.route,
        };
        let sent = destination.send(vote, snapshot, cancel);
        // It waits for sockets, which the thread of the groups does not.
        let sent = self.peers.runtime().clone().spawn(sent).await;
        sent.unwrap_or_else(|_| Err(StreamingError::Unreachable(Unreachable::new(&Lost::Broken))))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let ask = v1::TransferAsk {
            from_leader: Some(convert::vote_to_proto(request.from_leader())),
            to_replica: *request.to_node_id(),
            last: convert::position(request.last_log_id().copied()),
        };
        let answer = self.ask(Ask::Transfer(ask), true).await?;
        let answer = expect(answer, |answer| match answer {
            Answer::Transfer(answer) => Some(answer),
            _ => None,
        })?;
        Ok(match answer.result.ok_or_else(senseless)? {
            Transferred::Accepted(_) => Ok(()),
            Transferred::Changed(vote) => Err(TransferLeaderError::VoteChanged {
                expected: *request.from_leader(),
                actual: convert::vote_of_proto(vote),
            }),
            Transferred::Behind(at) => Err(TransferLeaderError::LogNotFlushed {
                expected: request.last_log_id().copied(),
                actual: convert::log_id(Some(at)),
            }),
        })
    }

    fn backoff(&self) -> Option<Backoff> {
        let last = BACKOFF[BACKOFF.len() - 1];
        Some(Backoff::new(BACKOFF.into_iter().chain(std::iter::repeat(last))))
    }
}
