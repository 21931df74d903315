//! One leader's replication to one follower: requests are sent on while answers come back.
//!
//! The session ends with its last answer, with one that is no success, or with the connection. An
//! answer may speak of what was sent and nothing else (`sound.rs`), and a follower that no longer
//! has what it acknowledged is written down (`acknowledged.rs`) and counted no more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::errors::{RPCError, Unreachable};
use openraft::raft::StreamAppendResult;
use parking_lot::Mutex;
use statehouse_proto::v1;
use statehouse_proto::v1::append_answer::Answer as AppendAnswer;
use statehouse_proto::v1::appended::Result as Appended;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::JoinHandle;

use super::convert::{self, Malformed};
use super::network::{Appends, Exchanged, Rpc, lost, refused};
use super::sound::{Append, Sent};
use super::types::TypeConfig;
use crate::NodeId;
use crate::transport::Lost;
use crate::transport::append::{Requests, Session};

/// Appends of one session that are sent and not answered.
const REQUESTS_IN_FLIGHT_MAX: usize = 64;

/// A replica that follows, and what was exchanged with it.
#[derive(Clone)]
pub(super) struct Follower {
    pub node: NodeId,
    pub route: v1::PeerRoute,
    pub exchanged: Arc<Exchanged>,
}

/// A request that was sent.
pub(super) struct Outstanding {
    sent: Sent,
    /// Through which entry the follower had acknowledged before.
    acknowledged: u64,
}

impl Follower {
    /// To be noted before a request is sent.
    pub fn sent(&self, request: &Append) -> Outstanding {
        let sent = Sent::of(request);
        let follower = self.route.to_replica;
        let acknowledged = self.exchanged.acknowledged.through(follower, sent.term);
        Outstanding { sent, acknowledged }
    }

    /// Its answer, as openraft takes it.
    pub fn answered(
        &self,
        request: &Outstanding,
        answer: v1::Appended,
    ) -> Rpc<StreamAppendResult<TypeConfig>> {
        let Outstanding { sent, acknowledged } = request;
        let said = answer.result;
        let result = sent.answered(answer).map_err(|error| self.senseless(error))?;
        match said {
            Some(Appended::Matched(at)) => {
                self.exchanged.acknowledged.note(self.route.to_replica, sent.term, at.index);
            }
            Some(Appended::Conflict(_)) if sent.previous.index <= *acknowledged => {
                return Err(self.reverted(sent));
            }
            Some(Appended::Conflict(_) | Appended::Higher(_)) | None => {}
        }
        Ok(result)
    }

    /// It has lost what it acknowledged: openraft is not told, and goes on without it.
    fn reverted(&self, sent: &Sent) -> RPCError<TypeConfig> {
        let v1::PeerRoute { shard, to_replica, .. } = self.route;
        if self.exchanged.acknowledged.revert(to_replica, sent.previous) {
            tracing::error!(
                shard,
                replica = to_replica,
                node = %self.node,
                index = sent.previous.index,
                "a follower has lost an entry that it acknowledged: it must be replaced"
            );
        }
        let reason = format!("replica {to_replica} has lost what it acknowledged");
        RPCError::Unreachable(Unreachable::from_string(reason))
    }

    pub fn senseless(&self, error: Malformed) -> RPCError<TypeConfig> {
        let v1::PeerRoute { shard, to_replica, .. } = self.route;
        let node = self.node;
        let replica = to_replica;
        tracing::warn!(shard, replica, %node, %error, "a peer's answer makes no sense");
        RPCError::Unreachable(Unreachable::from_string("the peer's answer makes no sense"))
    }
}

/// Sends requests as they come; answers are those of the follower, in order.
pub(super) fn replicate<S>(
    input: S,
    session: Session,
    follower: Follower,
    patience: Duration,
) -> Appends<'static>
where
    S: Stream<Item = Append> + Send + Unpin + 'static,
{
    let Session { requests, answers } = session;
    let under_way = Arc::new(UnderWay::default());
    let pump = tokio::spawn(pump(input, requests, follower.clone(), under_way.clone()));
    let session = Answers { answers, follower, under_way, patience, _pump: Pump(pump) };
    let answers = futures::stream::unfold(Some(session), |session| async move {
        let mut session = session?;
        let answer = session.next().await?;
        let goes_on = matches!(answer, Ok(Ok(_)));
        Some((answer, goes_on.then_some(session)))
    });
    // Whoever polls may do so once more behind the end.
    Box::pin(answers.fuse())
}

/// Requests of a session that are sent and not answered.
#[derive(Default)]
struct UnderWay {
    requests: Mutex<VecDeque<(Outstanding, OwnedSemaphorePermit)>>,
    /// Told when a request is answered, and when the last one is sent.
    changed: Notify,
    ended: Mutex<bool>,
}

/// Sends a session's requests as they come, until they end or nobody wants the answers.
async fn pump(
    mut input: impl Stream<Item = Append> + Unpin,
    requests: Requests,
    follower: Follower,
    under_way: Arc<UnderWay>,
) {
    while let Some(request) = input.next().await {
        let entries = request.entries.iter().map(|entry| entry.stored.encode());
        let entries: Vec<Bytes> = entries.collect();
        let bytes = entries.iter().map(Bytes::len).sum();
        let Ok(credit) = requests.credit(bytes).await else { break };
        while under_way.requests.lock().len() >= REQUESTS_IN_FLIGHT_MAX {
            under_way.changed.notified().await;
        }
        under_way.requests.lock().push_back((follower.sent(&request), credit));
        let request = v1::AppendRequest {
            route: Some(follower.route),
            vote: Some(convert::vote_to_proto(&request.vote)),
            previous: convert::position(request.prev_log_id),
            committed: follower.exchanged.tell_committed(&request),
            entries,
            needed: follower.exchanged.room.quorum_is_short(),
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
    while !under_way.requests.lock().is_empty() {
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
    follower: Follower,
    under_way: Arc<UnderWay>,
    patience: Duration,
    _pump: Pump,
}

impl Answers {
    /// The next answer; `None` when every request has one and no more will come.
    async fn next(&mut self) -> Option<Rpc<StreamAppendResult<TypeConfig>>> {
        loop {
            let idle = self.under_way.requests.lock().is_empty();
            if idle && *self.under_way.ended.lock() {
                return None;
            }
            tokio::select! {
                answer = self.answers.recv() => {
                    let Some(answer) = answer else { return Some(Err(lost(Lost::Broken))) };
                    let request = self.under_way.requests.lock().pop_front();
                    self.under_way.changed.notify_one();
                    return Some(match (answer, request) {
                        (AppendAnswer::Appended(appended), Some((request, _credit))) => {
                            self.follower.answered(&request, appended)
                        }
                        (AppendAnswer::Appended(_), None) => {
                            let what = "answer to an append: nothing was asked";
                            Err(self.follower.senseless(Malformed { what }))
                        }
                        (AppendAnswer::Refusal(refusal), _) => Err(refused(&refusal)),
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
