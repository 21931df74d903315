//! Appends to one peer: one stream for all groups, cut into sessions.
//!
//! A session is one leader's replication to one follower. Its requests are answered in order; it
//! ends with the connection. While one message is being sent, the requests of all sessions gather
//! for the next. Bytes sent and not answered are bounded per peer, so that a slow follower fills
//! nobody's memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use statehouse_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Lost;
use super::link::Link;
use super::peers::{Hearing, Peers};
use crate::NodeId;

/// Requests that wait to be written to the connection.
const REQUESTS_WAITING_MAX: usize = 256;

/// Bytes of entries in one message, unless one request alone has more.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The way to one peer for appends.
pub(crate) struct Appends {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    requests: mpsc::Sender<v1::AppendRequest>,
    sessions: Mutex<HashMap<u64, mpsc::UnboundedSender<v1::append_answer::Answer>>>,
    connected: AtomicBool,
    next_session: AtomicU64,
    credits: Arc<Semaphore>,
    credits_max: usize,
}

/// One leader's replication to one follower.
pub(crate) struct Session {
    pub requests: Requests,
    /// Ends with the connection.
    pub answers: mpsc::UnboundedReceiver<v1::append_answer::Answer>,
}

/// The sending half of a session. Dropped, the session ends at the other side too.
pub(crate) struct Requests {
    id: u64,
    shared: Arc<Shared>,
}

impl Appends {
    pub(super) fn start(peers: &Arc<Peers>, node: NodeId, hearing: Arc<Hearing>) -> Self {
        let (requests, outgoing) = mpsc::channel(REQUESTS_WAITING_MAX);
        let credits_max = peers.config.append_bytes_in_flight_max;
        let shared = Arc::new(Shared {
            requests,
            sessions: Mutex::default(),
            connected: AtomicBool::new(false),
            next_session: AtomicU64::new(1),
            credits: Arc::new(Semaphore::new(credits_max)),
            credits_max,
        });
        let sender =
            Sender { link: Link::new(peers, node), outgoing, shared: shared.clone(), hearing };
        Appends { shared, task: peers.runtime().spawn(sender.run()) }
    }

    pub(super) fn close(&self) {
        self.task.abort();
        self.shared.sessions.lock().clear();
    }

    /// Begins a session, if there is a connection.
    pub fn session(&self) -> Result<Session, Lost> {
        let shared = &self.shared;
        let (sender, answers) = mpsc::unbounded_channel();
        let id = shared.next_session.fetch_add(1, Ordering::Relaxed);
        let mut sessions = shared.sessions.lock();
        // Asked under the lock: a connection that breaks takes every session with it.
        if !shared.connected.load(Ordering::Acquire) {
            return Err(Lost::Unreachable);
        }
        sessions.insert(id, sender);
        Ok(Session { requests: Requests { id, shared: shared.clone() }, answers })
    }
}

impl Requests {
    /// Room for a request of some bytes; given back when it is dropped, after the answer.
    pub async fn credit(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Lost> {
        let bytes = bytes.clamp(1, self.shared.credits_max) as u32;
        self.shared.credits.clone().acquire_many_owned(bytes).await.map_err(|_| Lost::Broken)
    }

    /// Sends the next request of the session.
    pub async fn send(&self, mut request: v1::AppendRequest) -> Result<(), Lost> {
        request.session = self.id;
        if !self.shared.sessions.lock().contains_key(&self.id) {
            return Err(Lost::Broken);
        }
        self.shared.requests.send(request).await.map_err(|_| Lost::Broken)
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        if self.shared.sessions.lock().remove(&self.id).is_some() {
            let end = v1::AppendRequest { session: self.id, end: true, ..Default::default() };
            // Full: the other side forgets the session with the connection.
            let _ = self.shared.requests.try_send(end);
        }
    }
}

struct Sender {
    link: Link,
    outgoing: mpsc::Receiver<v1::AppendRequest>,
    shared: Arc<Shared>,
    hearing: Arc<Hearing>,
}

impl Sender {
    async fn run(mut self) {
        while !self.link.is_closed() {
            // The pings find out when the peer is back.
            if self.hearing.lost.load(Ordering::Relaxed) {
                tokio::time::sleep(self.link.config.reconnect_wait_min).await;
                continue;
            }
            let Ok((requests, answers)) = self.open().await else { continue };
            self.link.stands();
            self.shared.connected.store(true, Ordering::Release);
            self.send(requests, answers).await;
            let mut sessions = self.shared.sessions.lock();
            self.shared.connected.store(false, Ordering::Release);
            sessions.clear();
            drop(sessions);
            // Requests of sessions that are gone.
            while self.outgoing.try_recv().is_ok() {}
        }
    }

    async fn open(
        &mut self,
    ) -> Result<(mpsc::Sender<v1::AppendRequests>, Streaming<v1::AppendAnswers>), Lost> {
        let mut client = self.link.connect().await?;
        // One under way, so that the next one gathers.
        let (requests, outgoing) = mpsc::channel(1);
        let hello = v1::AppendRequests { hello: Some(self.link.hello()), requests: Vec::new() };
        requests.try_send(hello).expect("there is room for one");
        let call = client.append(ReceiverStream::new(outgoing));
        let answers = tokio::time::timeout(self.link.config.idle_timeout, call).await;
        let answers = answers.map_err(|_| Lost::Unreachable)?;
        Ok((requests, answers.map_err(|_| Lost::Unreachable)?.into_inner()))
    }

    async fn send(
        &mut self,
        messages: mpsc::Sender<v1::AppendRequests>,
        mut answers: Streaming<v1::AppendAnswers>,
    ) {
        let mut silence = tokio::time::interval(self.link.config.idle_timeout / 4);
        silence.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut waiting = Vec::new();
        loop {
            tokio::select! {
                received = answers.message() => {
                    let Ok(Some(message)) = received else { return };
                    if self.link.is_cut() {
                        return;
                    }
                    self.hearing.note();
                    self.answered(message);
                }
                Some(request) = self.outgoing.recv(), if waiting.is_empty() => {
                    waiting.push(request);
                }
                permit = messages.reserve(), if !waiting.is_empty() => {
                    let Ok(permit) = permit else { return };
                    if self.link.is_cut() {
                        return;
                    }
                    let mut requests = std::mem::take(&mut waiting);
                    self.gather(&mut requests);
                    permit.send(v1::AppendRequests { hello: None, requests });
                }
                // A peer that answers no ping is gone, though its connection may not say so.
                _ = silence.tick() => {
                    if self.hearing.lost.load(Ordering::Relaxed) || self.link.is_cut() {
                        return;
                    }
                }
            }
        }
    }

    /// Adds what else waits, as much as one message may have.
    fn gather(&mut self, requests: &mut Vec<v1::AppendRequest>) {
        let bytes_of =
            |request: &v1::AppendRequest| request.entries.iter().map(Bytes::len).sum::<usize>();
        let mut bytes: usize = requests.iter().map(bytes_of).sum();
        while bytes < MESSAGE_BYTES_MAX
            && let Ok(request) = self.outgoing.try_recv()
        {
            bytes += bytes_of(&request);
            requests.push(request);
        }
    }

    fn answered(&self, message: v1::AppendAnswers) {
        let sessions = self.shared.sessions.lock();
        for v1::AppendAnswer { session, answer } in message.answers {
            if let (Some(session), Some(answer)) = (sessions.get(&session), answer) {
                // A session that was dropped does not mind.
                let _ = session.send(answer);
            }
        }
    }
}
