//! What comes in from peers: to the right replica, into openraft, and the answer back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{AppendEntriesResponse, StreamAppendError, TransferLeaderError, VoteResponse};
use parking_lot::Mutex;
use statehouse_proto::v1;
use statehouse_proto::v1::append_answer::Answer as AppendAnswer;
use statehouse_proto::v1::appended::Result as Appended;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask;
use statehouse_proto::v1::peer_refusal::Kind;
use statehouse_proto::v1::transfer_answer::Result as Transferred;
use statehouse_store::{ENTRY_FORMAT, EntryId, ReplicaId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::convert::{self, Malformed};
use super::group::Group;
use super::groups::{Absent, Groups};
use super::room::{Offered, taken};
use super::sound::{self, Append};
use super::types::{TypeConfig, entry_id_or_default};
use crate::{Error, NodeId, ShardId};

impl Groups {
    /// Answers a small message of a node.
    pub(crate) fn answer(
        self: Arc<Self>,
        from: NodeId,
        ask: v1::PeerAsk,
    ) -> BoxFuture<'static, v1::PeerAnswer> {
        async move {
            let answer = match (ask.ask, ask.route) {
                (Some(Ask::Ping(ping)), _) => {
                    let read = self.peers().clock().read();
                    let (wall_us, time_us) = (read.wall_us, read.time_us);
                    let (sent_us, entry_format) = (ping.sent_us, ENTRY_FORMAT.into());
                    Answer::Pong(v1::Ping { sent_us, wall_us, time_us, entry_format })
                }
                (Some(Ask::Confirm(ask)), _) => {
                    let confirmed = ask.claims.iter().map(|claim| self.confirms(claim)).collect();
                    Answer::Confirm(v1::ConfirmAnswer { confirmed })
                }
                (Some(Ask::Freshness(ask)), _) => Answer::Freshness(self.freshness(ask).await),
                (Some(kind), Some(route)) => match addressed(&self, &route) {
                    Ok(group) => match group.answer(kind, route.from_replica).await {
                        Ok(answer) => answer,
                        Err(refusal) => {
                            note_malformed(from, &route, &refusal);
                            Answer::Refusal(refusal)
                        }
                    },
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
        from: NodeId,
        route: v1::PeerRoute,
        requests: mpsc::UnboundedReceiver<v1::AppendRequest>,
        answer: impl Fn(AppendAnswer) -> BoxFuture<'static, bool> + Send + Sync + 'static,
    ) -> BoxFuture<'static, ()> {
        async move {
            match addressed(&self, &route) {
                Ok(group) => group.follow((from, route), requests, answer).await,
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

/// Says which peer sent what makes no sense.
fn note_malformed(from: NodeId, route: &v1::PeerRoute, refusal: &v1::PeerRefusal) {
    if refusal.kind() == Kind::Malformed {
        let v1::PeerRoute { shard, from_replica, .. } = *route;
        let error = &refusal.detail;
        let replica = from_replica;
        tracing::warn!(node = %from, shard, replica, error, "refused a peer's message");
    }
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
    async fn answer(self: &Arc<Self>, ask: Ask, from: u64) -> Result<Answer, v1::PeerRefusal> {
        match ask {
            Ask::Ping(_) | Ask::Confirm(_) | Ask::Freshness(_) => {
                Err(refusal(Kind::Malformed, "not for one replica"))
            }
            Ask::Heartbeat(beat) => self.heartbeat(beat, from).await.map(Answer::Heartbeat),
            Ask::Vote(ask) => {
                let request = sound::vote_request(&ask, from)?;
                let answer = self.raft.vote(request).await.map_err(stopped)?;
                Ok(Answer::Vote(vote_answer(&answer)))
            }
            Ask::PreVote(ask) => {
                let request = sound::vote_request(&ask, from)?;
                let answer = self.raft.pre_vote(request).await.map_err(stopped)?;
                Ok(Answer::Vote(vote_answer(&answer)))
            }
            Ask::Transfer(ask) => self.take_over(ask, from).await.map(Answer::Transfer),
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

    async fn heartbeat(
        &self,
        beat: v1::Heartbeat,
        from: u64,
    ) -> Result<v1::Appended, v1::PeerRefusal> {
        let request = sound::heartbeat(&beat, from)?;
        self.agrees(&request)?;
        let result = match self.raft.append_entries(request).await.map_err(stopped)? {
            AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_) => {
                self.note_leader();
                Appended::Matched(beat.previous.unwrap_or_default())
            }
            AppendEntriesResponse::Conflict => {
                self.note_leader();
                Appended::Conflict(beat.previous.unwrap_or_default())
            }
            AppendEntriesResponse::HigherVote(vote) => {
                Appended::Higher(convert::vote_to_proto(&vote))
            }
        };
        Ok(v1::Appended { result: Some(result) })
    }

    /// A leader that we follow was heard.
    fn note_leader(&self) {
        self.heard.lock().note(Instant::now());
    }

    async fn take_over(
        &self,
        ask: v1::TransferAsk,
        from: u64,
    ) -> Result<v1::TransferAnswer, v1::PeerRefusal> {
        let request = sound::transfer_request(&ask, from)?;
        let result = match self.raft.handle_transfer_leader(request).await.map_err(stopped)? {
            Ok(()) => Transferred::Accepted(v1::Ping::default()),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                Transferred::Changed(convert::vote_to_proto(&actual))
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                Transferred::Behind(convert::position(actual).unwrap_or_default())
            }
        };
        Ok(v1::TransferAnswer { result: Some(result) })
    }

    /// Holds a request against what is committed here: another entry in the place of one of those
    /// can only come from a peer, or a replica here, that has broken its promises.
    fn agrees(&self, request: &Append) -> Result<(), Malformed> {
        let committed = {
            let metrics = self.raft.data_metrics();
            entry_id_or_default(metrics.borrow_watched().local_committed)
        };
        let previous = entry_id_or_default(request.prev_log_id);
        let entries = request.entries.iter().map(|entry| entry.stored.id());
        let known = std::iter::once(previous).chain(entries);
        for id in known.take_while(|id| id.index <= committed.index) {
            // One that was purged, or can't be read, says nothing.
            let ours = if id.index == committed.index {
                Some(committed)
            } else {
                self.log.entry_id(id.index).ok().flatten()
            };
            if ours.is_some_and(|EntryId { term, .. }| term != id.term) {
                return Err(Malformed { what: "append: it contradicts what is committed here" });
            }
        }
        Ok(())
    }

    async fn follow(
        self: Arc<Self>,
        (from, route): (NodeId, v1::PeerRoute),
        requests: mpsc::UnboundedReceiver<v1::AppendRequest>,
        answer: impl Fn(AppendAnswer) -> BoxFuture<'static, bool> + Send + Sync,
    ) {
        let ended: Arc<Mutex<Option<Ended>>> = Arc::default();
        // Requests taken and not answered.
        let under_way = Arc::new(AtomicUsize::new(0));
        let requests = {
            let (group, ended, under_way) = (self.clone(), ended.clone(), under_way.clone());
            UnboundedReceiverStream::new(requests).scan((), move |(), request| {
                let needed = request.needed;
                let parsed = sound::append(request, route.from_replica)
                    .and_then(|request| group.agrees(&request).map(|()| request));
                let request = match parsed {
                    // What follows on this session is not listened to any more.
                    _ if ended.lock().is_some() => None,
                    Ok(mut request) => {
                        if group.leave_out(&mut request, needed) {
                            *ended.lock() = Some(Ended::NoRoom);
                        }
                        under_way.fetch_add(1, Ordering::Relaxed);
                        Some(request)
                    }
                    // The session ends where one makes no sense.
                    Err(error) => {
                        *ended.lock() = Some(Ended::Malformed(error));
                        None
                    }
                };
                async move { request }
            })
        };
        let mut results = Box::pin(self.raft.stream_append(requests));
        while let Some(result) = results.next().await {
            under_way.fetch_sub(1, Ordering::Relaxed);
            let (answered, ends) = match result {
                Ok(Ok(matched)) => {
                    self.note_leader();
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
            let all_answered = under_way.load(Ordering::Relaxed) == 0;
            if all_answered && matches!(*ended.lock(), Some(Ended::NoRoom)) {
                break;
            }
        }
        let ended = ended.lock().take();
        match ended {
            None => {}
            Some(Ended::NoRoom) => {
                let detail = "the disk has less free than its reserve";
                answer(AppendAnswer::Refusal(refusal(Kind::NoRoom, detail))).await;
            }
            Some(Ended::Malformed(error)) => {
                let refusal = v1::PeerRefusal::from(error);
                note_malformed(from, &route, &refusal);
                answer(AppendAnswer::Refusal(refusal)).await;
            }
        }
    }

    /// Leaves out of a request the entries that this replica has no room for, and answers whether
    /// there were any.
    fn leave_out(&self, request: &mut Append, needed: bool) -> bool {
        if request.entries.is_empty() {
            return false;
        }
        let offered = request
            .entries
            .iter()
            .map(|entry| Offered { frees: entry.stored.frees(), bytes: entry.stored.bytes() });
        let taken = taken(self.store.disk_level(), needed, offered);
        let left_out = taken < request.entries.len();
        request.entries.truncate(taken);
        self.note_room(left_out);
        left_out
    }
}

/// Why a session is not listened to any more.
enum Ended {
    Malformed(Malformed),
    /// Entries were left out of its last request.
    NoRoom,
}

fn vote_answer(answer: &VoteResponse<TypeConfig>) -> v1::VoteAnswer {
    v1::VoteAnswer {
        vote: Some(convert::vote_to_proto(&answer.vote)),
        granted: answer.vote_granted,
        last: convert::position(answer.last_log_id),
    }
}
