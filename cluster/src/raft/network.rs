//! openraft's network over the transport: what one replica says to another.
//!
//! Appends of entries are pipelined: a session sends on while answers come back. Heartbeats and
//! votes are small messages, gathered with those of other groups.

use std::collections::VecDeque;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use statehouse_proto::v1;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use statehouse_proto::v1::transfer_answer::Result as Transferred;
use statehouse_store::ReplicaId;

use super::acknowledged::Acknowledged;
use super::convert::{self, Malformed};
use super::reads::Told;
use super::room::SharedRoom;
use super::session::{Follower, replicate};
use super::snapshot::Destination;
use super::sound::{self, Append};
use super::state_machine::{Snapshot, View};
use super::transfers::Transfers;
use super::types::{Member, TypeConfig, Vote};
use crate::transport::{Lost, Peers};
use crate::{NodeId, ShardId};

pub(super) type Rpc<T> = Result<T, RPCError<TypeConfig>>;
pub(super) type Appends<'s> = BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>;

/// Waits between two tries to reach a peer; the last one repeats.
const BACKOFF: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(50), Duration::from_millis(200)];

/// What a replica has said to its followers while it led, and they to it.
#[derive(Debug, Default)]
pub struct Exchanged {
    pub told: Told,
    pub acknowledged: Acknowledged,
    /// Whether a quorum can do without a follower that is short of space: said with entries.
    pub room: SharedRoom,
}

/// Makes the links of one replica to the others of its group.
pub struct Network {
    peers: Arc<Peers>,
    transfers: Arc<Transfers>,
    shard: ShardId,
    replica: ReplicaId,
    exchanged: Arc<Exchanged>,
}

impl Network {
    /// Notes what it exchanges with followers: `told` before anybody is told a commit index.
    pub fn new(
        (peers, transfers): (Arc<Peers>, Arc<Transfers>),
        shard: ShardId,
        replica: ReplicaId,
        exchanged: Arc<Exchanged>,
    ) -> Self {
        Network { peers, transfers, shard, replica, exchanged }
    }

    fn link(&self, target: u64, member: &Member, beats: bool) -> Link {
        let route = v1::PeerRoute {
            shard: u32::from(self.shard.0),
            from_replica: self.replica.0,
            to_replica: target,
        };
        let (peers, transfers) = (self.peers.clone(), self.transfers.clone());
        let exchanged = self.exchanged.clone();
        Link { peers, transfers, node: NodeId(member.node), route, exchanged, beats }
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
    exchanged: Arc<Exchanged>,
    /// Sends heartbeats and nothing else.
    beats: bool,
}

pub(super) fn lost(lost: Lost) -> RPCError<TypeConfig> {
    match lost {
        Lost::Unreachable => RPCError::Unreachable(Unreachable::new(&lost)),
        Lost::Broken | Lost::Silent => RPCError::Network(NetworkError::new(&lost)),
    }
}

pub(super) fn refused(refusal: &v1::PeerRefusal) -> RPCError<TypeConfig> {
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

impl Exchanged {
    /// The commit index that a request tells, noted first.
    pub(super) fn tell_committed(&self, request: &Append) -> Option<v1::LogPosition> {
        let committed = convert::position(request.leader_commit);
        self.told.raise(committed.map_or(0, |position| position.index));
        committed
    }
}

impl Link {
    fn follower(&self) -> Follower {
        Follower { node: self.node, route: self.route, exchanged: self.exchanged.clone() }
    }

    fn senseless(&self, error: Malformed) -> RPCError<TypeConfig> {
        self.follower().senseless(error)
    }

    async fn ask(&self, ask: Ask, hurry: bool) -> Rpc<Answer> {
        let peer = self.peers.peer(self.node);
        peer.talk.ask(Some(self.route), ask, hurry).await.map_err(lost)
    }

    async fn beat(&self, request: &Append) -> Rpc<StreamAppendResult<TypeConfig>> {
        let beat = v1::Heartbeat {
            vote: Some(convert::vote_to_proto(&request.vote)),
            previous: convert::position(request.prev_log_id),
            committed: self.exchanged.tell_committed(request),
        };
        let sent = self.follower().sent(request);
        let answer = self.ask(Ask::Heartbeat(beat), false).await?;
        let appended = expect(answer, |answer| match answer {
            Answer::Heartbeat(appended) => Some(appended),
            _ => None,
        })?;
        self.follower().answered(&sent, appended)
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
        sound::vote_response(&answer).map_err(|error| self.senseless(error))
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
                let Some(first) = input.next().await else {
                    // It ended while it waited. Such a stream must not be polled once more.
                    return Ok(futures::stream::empty().boxed());
                };
                let input = Box::pin(futures::stream::once(ready(first)).chain(input));
                let session = self.peers.peer(self.node).appends.session().map_err(lost)?;
                let patience = self.peers.append_answer_timeout();
                return Ok(replicate(input, session, self.follower(), patience));
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
                actual: sound::vote(Some(vote)).map_err(|error| self.senseless(error))?,
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::raft::Config;
    use crate::{ClusterId, transport};

    #[tokio::test]
    async fn a_session_that_ends_before_its_first_request_asks_nobody() {
        let peers = Peers::new(ClusterId([1; 16]), NodeId(1), transport::Config::default());
        let transfers = Transfers::new(&Config::default());
        let exchanged = Arc::<Exchanged>::default();
        let network = Network::new((peers, transfers), ShardId(1), ReplicaId(1), exchanged);
        let mut link = network.link(2, &Member { node: 2 }, false);
        // As openraft's streams are: polled again behind its end, it panics.
        let ended = Box::pin(futures::stream::unfold((), |()| ready(None::<(Append, ())>)));
        let option = RPCOption::new(Config::default().heartbeat_interval);
        let mut answers = link.stream_append(ended, option).await.unwrap();
        assert!(answers.next().await.is_none(), "nothing was asked, so nothing is answered");
    }
}
