//! What comes in from peers: to the right replica, into openraft, and the answer back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, TransferLeaderError,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use statehouse_proto::v1;
use statehouse_proto::v1::append_answer::Answer as AppendAnswer;
use statehouse_proto::v1::appended::Result as Appended;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use statehouse_proto::v1::peer_refusal::Kind;
use statehouse_proto::v1::transfer_answer::Result as Transferred;
use statehouse_store::{Body, ReplicaId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::convert::{self, Malformed};
use super::group::Group;
use super::groups::{Absent, Groups};
use super::types::{Entry, LogId, TypeConfig};
use crate::{Error, ShardId};

type Append = AppendEntriesRequest<TypeConfig>;

impl Groups {
    /// Answers a small message.
    pub(crate) fn answer(self: Arc<Self>, ask: v1::PeerAsk) -> BoxFuture<'static, v1::PeerAnswer> {
        async move {
            let answer = match (ask.ask, ask.route) {
                (Some(Ask::Ping(_)), _) => Answer::Pong(v1::Ping {}),
                (Some(Ask::Confirm(ask)), _) => {
                    let confirmed = ask.claims.iter().map(|claim| self.confirms(claim)).collect();
                    Answer::Confirm(v1::ConfirmAnswer { confirmed })
                }
                (Some(kind), Some(route)) => match addressed(&self, &route) {
                    Ok(group) => group.answer(kind).await.unwrap_or_else(Answer::Refusal),
                    Err(refusal) => Answer::Refusal(refusal),
                },
                _ => Answer::Refusal(refusal(Kind::Malformed, "neither a ping nor for a replica")),
            };
            v1::PeerAnswer { id: ask.id, answer: Some(answer) }
        }
        .boxed()
    }

    /// Follows one leader's session until it ends, answering each request in order.
    pub(crate) fn follow(
        self: Arc<Self>,
        route: v1::PeerRoute,
        requests: mpsc::UnboundedReceiver<v1::AppendRequest>,
        answer: impl Fn(AppendAnswer) -> BoxFuture<'static, bool> + Send + Sync + 'static,
    ) -> BoxFuture<'static, ()> {
        async move {
            match addressed(&self, &route) {
                Ok(group) => group.follow(requests, answer).await,
                Err(refusal) => {
                    answer(AppendAnswer::Refusal(refusal)).await;
                }
            }
        }
        .boxed()
    }
}

/// The replica that a message is for, if it is here.
pub(super) fn addressed(
    groups: &Groups,
    route: &v1::PeerRoute,
) -> Result<Arc<Group>, v1::PeerRefusal> {
    let shard = u16::try_from(route.shard).map(ShardId);
    match (groups.replica(ReplicaId(route.to_replica)), shard) {
        (Ok(group), Ok(shard)) if group.shard() == shard => Ok(group),
        (Ok(group), _) => {
            let detail = format!("the replica is of shard {}", group.shard());
            Err(refusal(Kind::Mismatch, detail))
        }
        (Err(Absent::Destroyed), _) => Err(refusal(Kind::Gone, "the replica was destroyed")),
        (Err(Absent::Quarantined), _) => {
            Err(refusal(Kind::Stopped, "the replica is damaged and takes no part"))
        }
        (Err(Absent::Unknown), _) => Err(refusal(Kind::Unknown, "there is no such replica")),
    }
}

pub(super) fn refusal(kind: Kind, detail: impl Into<String>) -> v1::PeerRefusal {
    v1::PeerRefusal { kind: kind.into(), detail: detail.into(), leader: None }
}

impl From<Malformed> for v1::PeerRefusal {
    fn from(malformed: Malformed) -> Self {
        refusal(Kind::Malformed, malformed.to_string())
    }
}

fn stopped(error: impl std::fmt::Display) -> v1::PeerRefusal {
    refusal(Kind::Stopped, error.to_string())
}

impl Group {
    async fn answer(self: &Arc<Self>, ask: Ask) -> Result<Answer, v1::PeerRefusal> {
        match ask {
            Ask::Ping(_) | Ask::Confirm(_) => Err(refusal(Kind::Malformed, "not for one replica")),
            Ask::Heartbeat(beat) => self.heartbeat(beat).await.map(Answer::Heartbeat),
            Ask::Vote(ask) => {
                let answer = self.raft.vote(vote_request(ask)?).await.map_err(stopped)?;
                Ok(Answer::Vote(vote_answer(&answer)))
            }
            Ask::PreVote(ask) => {
                let answer = self.raft.pre_vote(vote_request(ask)?).await.map_err(stopped)?;
                Ok(Answer::Vote(vote_answer(&answer)))
            }
            Ask::Transfer(ask) => self.take_over(ask).await.map(Answer::Transfer),
            Ask::ReadIndex(_) => match self.read_index().await {
                Ok(id) => Ok(Answer::ReadIndex(v1::LogPosition { term: id.term, index: id.index })),
                Err(Error::NotLeader { leader, .. }) => {
                    let leader =
                        leader.map(|it| v1::RaftMember { replica: it.replica.0, node: it.node.0 });
                    Err(v1::PeerRefusal { leader, ..refusal(Kind::NotLeader, "does not lead") })
                }
                Err(error) => Err(stopped(error)),
            },
        }
    }

    async fn heartbeat(&self, beat: v1::Heartbeat) -> Result<v1::Appended, v1::PeerRefusal> {
        let at = Instant::now();
        let committed = beat.committed.map_or(0, |position| position.index);
        let request = Append {
            vote: convert::required_vote(beat.vote)?,
            prev_log_id: convert::log_id(beat.previous),
            entries: Vec::new(),
            leader_commit: convert::log_id(beat.committed),
        };
        let result = match self.raft.append_entries(request).await.map_err(stopped)? {
            AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_) => {
                self.note_leader(at, committed);
                Appended::Matched(beat.previous.unwrap_or_default())
            }
            AppendEntriesResponse::Conflict => {
                self.note_leader(at, u64::MAX);
                Appended::Conflict(beat.previous.unwrap_or_default())
            }
            AppendEntriesResponse::HigherVote(vote) => {
                Appended::Higher(convert::vote_to_proto(&vote))
            }
        };
        Ok(v1::Appended { result: Some(result) })
    }

    /// A leader that we follow was heard, with its commit index.
    fn note_leader(&self, at: Instant, committed: u64) {
        self.heard.lock().note(at, committed, self.applied.borrow().index);
    }

    async fn take_over(&self, ask: v1::TransferAsk) -> Result<v1::TransferAnswer, v1::PeerRefusal> {
        let request = TransferLeaderRequest::new(
            convert::required_vote(ask.from_leader)?,
            ask.to_replica,
            convert::log_id(ask.last),
        );
        let result = match self.raft.handle_transfer_leader(request).await.map_err(stopped)? {
            Ok(()) => Transferred::Accepted(v1::Ping {}),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                Transferred::Changed(convert::vote_to_proto(&actual))
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                Transferred::Behind(convert::position(actual).unwrap_or_default())
            }
        };
        Ok(v1::TransferAnswer { result: Some(result) })
    }

    async fn follow(
        self: Arc<Self>,
        requests: mpsc::UnboundedReceiver<v1::AppendRequest>,
        answer: impl Fn(AppendAnswer) -> BoxFuture<'static, bool> + Send + Sync,
    ) {
        // When each request under way came, and with which commit index.
        let came: Arc<Mutex<VecDeque<(Instant, u64)>>> = Arc::default();
        let malformed: Arc<Mutex<Option<Malformed>>> = Arc::default();
        let requests = {
            let (came, malformed) = (came.clone(), malformed.clone());
            UnboundedReceiverStream::new(requests).map(append_request).scan(
                (),
                move |(), parsed| {
                    let request = match parsed {
                        Ok((request, committed)) => {
                            came.lock().push_back((Instant::now(), committed));
                            Some(request)
                        }
                        // The session ends here.
                        Err(error) => {
                            *malformed.lock() = Some(error);
                            None
                        }
                    };
                    async move { request }
                },
            )
        };
        let mut results = Box::pin(self.raft.stream_append(requests));
        while let Some(result) = results.next().await {
            let (at, committed) = came.lock().pop_front().expect("an answer follows its request");
            let (answered, ends) = match result {
                Ok(Ok(matched)) => {
                    self.note_leader(at, committed);
                    (Appended::Matched(convert::position(matched).unwrap_or_default()), false)
                }
                Ok(Err(StreamAppendError::Conflict(at))) => {
                    (Appended::Conflict(convert::position(Some(at)).unwrap_or_default()), true)
                }
                Ok(Err(StreamAppendError::HigherVote(vote))) => {
                    (Appended::Higher(convert::vote_to_proto(&vote)), true)
                }
                Err(fatal) => {
                    answer(AppendAnswer::Refusal(stopped(fatal))).await;
                    return;
                }
            };
            let answered = v1::Appended { result: Some(answered) };
            if !answer(AppendAnswer::Appended(answered)).await || ends {
                return;
            }
        }
        let malformed = malformed.lock().take();
        if let Some(error) = malformed {
            tracing::warn!(shard = %self.shard, %error, "a peer's append makes no sense");
            answer(AppendAnswer::Refusal(error.into())).await;
        }
    }
}

fn vote_request(ask: v1::VoteAsk) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let last_log_id: Option<LogId> = convert::log_id(ask.last);
    let mut request = VoteRequest::new(convert::required_vote(ask.vote)?, last_log_id);
    request.leadership_transfer = ask.transfer;
    Ok(request)
}

fn vote_answer(answer: &VoteResponse<TypeConfig>) -> v1::VoteAnswer {
    v1::VoteAnswer {
        vote: Some(convert::vote_to_proto(&answer.vote)),
        granted: answer.vote_granted,
        last: convert::position(answer.last_log_id),
    }
}

/// openraft's request, and the store's commit index that it carries.
fn append_request(request: v1::AppendRequest) -> Result<(Append, u64), Malformed> {
    let committed = request.committed.map_or(0, |position| position.index);
    let entries: Result<Vec<Entry>, Malformed> = request.entries.into_iter().map(entry).collect();
    let append = Append {
        vote: convert::required_vote(request.vote)?,
        prev_log_id: convert::log_id(request.previous),
        entries: entries?,
        leader_commit: convert::log_id(request.committed),
    };
    Ok((append, committed))
}

fn entry(bytes: Bytes) -> Result<Entry, Malformed> {
    let stored = statehouse_store::Entry::decode(bytes).map_err(|_| Malformed { what: "entry" })?;
    if let Body::Membership(membership) = &stored.body {
        convert::membership_of_bytes(membership)?;
    }
    if stored.index == 0 {
        return Err(Malformed { what: "entry: its index is 0" });
    }
    Ok(Entry::from(Arc::new(stored)))
}
