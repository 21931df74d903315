//! Small messages to one peer, of all groups together.
//!
//! Messages that are in no hurry (heartbeats) wait a moment for others; one that is in a hurry (a
//! vote, a heartbeat that readers wait for) takes along what is there. While one batch is being
//! sent the next one gathers. Each message is answered or fails: at once while there is no
//! connection, when the connection breaks, and when no answer comes in time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use statehouse_proto::v1;
use statehouse_proto::v1::peer_answer::Answer;
use statehouse_proto::v1::peer_ask::Ask as Kind;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Lost;
use super::link::Link;
use super::peers::{Hearing, Peers};
use crate::NodeId;
use crate::clock::{Reading, elapsed_us};

/// Messages in one batch.
const BATCH_MAX: usize = 1_024;

/// The id of pings: nobody waits for their answers.
const PING_ID: u64 = 0;

/// The way to one peer for small messages.
pub(crate) struct Talk {
    asks: mpsc::Sender<Ask>,
    answer_wait_max: Duration,
    task: JoinHandle<()>,
}

struct Ask {
    route: Option<v1::PeerRoute>,
    kind: Kind,
    hurry: bool,
    answer: oneshot::Sender<Result<Answer, Lost>>,
}

impl Talk {
    pub(super) fn start(peers: &Arc<Peers>, node: NodeId, hearing: Arc<Hearing>) -> Self {
        let (asks, receiver) = mpsc::channel(peers.config.asks_waiting_max);
        let talker = Talker { link: Link::new(peers, node), asks: receiver, hearing, next_id: 1 };
        let answer_wait_max = peers.config.ask_answer_timeout;
        Talk { asks, answer_wait_max, task: peers.runtime().spawn(talker.run()) }
    }

    pub(super) fn close(&self) {
        self.task.abort();
    }

    /// Sends a message, to a replica or to the node, and awaits its answer.
    pub async fn ask(
        &self,
        route: Option<v1::PeerRoute>,
        kind: Kind,
        hurry: bool,
    ) -> Result<Answer, Lost> {
        let (answer, receiver) = oneshot::channel();
        let ask = Ask { route, kind, hurry, answer };
        // Full is as good as down: whoever asks tries again anyway.
        self.asks.try_send(ask).map_err(|_| Lost::Unreachable)?;
        match tokio::time::timeout(self.answer_wait_max, receiver).await {
            Ok(answer) => answer.unwrap_or(Err(Lost::Broken)),
            Err(_) => Err(Lost::Silent),
        }
    }
}

struct Talker {
    link: Link,
    asks: mpsc::Receiver<Ask>,
    hearing: Arc<Hearing>,
    next_id: u64,
}

/// Who waits for which answer.
type Pending = HashMap<u64, oneshot::Sender<Result<Answer, Lost>>>;

impl Talker {
    async fn run(mut self) {
        while !self.link.is_closed() {
            if let Ok((batches, answers)) = self.open().await {
                self.hearing.lost.store(false, Ordering::Relaxed);
                self.link.stands();
                let mut pending = Pending::new();
                self.talk(batches, answers, &mut pending).await;
                for (_, waiter) in pending {
                    let _ = waiter.send(Err(Lost::Broken));
                }
            }
            self.hearing.lost.store(true, Ordering::Relaxed);
        }
    }

    /// Makes the stream; whoever asks meanwhile is refused.
    async fn open(
        &mut self,
    ) -> Result<(mpsc::Sender<v1::PeerAsks>, Streaming<v1::PeerAnswers>), Lost> {
        let (link, asks) = (&mut self.link, &mut self.asks);
        let open = async {
            let mut client = link.connect().await?;
            // One under way, so that the next one gathers.
            let (batches, outgoing) = mpsc::channel(1);
            let hello = v1::PeerAsks { hello: Some(link.hello()), asks: Vec::new() };
            batches.try_send(hello).expect("there is room for one");
            let call = client.talk(ReceiverStream::new(outgoing));
            let answers = tokio::time::timeout(link.config.idle_timeout, call).await;
            match answers {
                Ok(Ok(answers)) => Ok((batches, answers.into_inner())),
                Ok(Err(status)) => {
                    tracing::debug!(node = %link.node, %status, "talk refused");
                    Err(Lost::Unreachable)
                }
                Err(_) => Err(Lost::Unreachable),
            }
        };
        tokio::pin!(open);
        loop {
            tokio::select! {
                opened = &mut open => return opened,
                Some(ask) = asks.recv() => {
                    let _ = ask.answer.send(Err(Lost::Unreachable));
                }
            }
        }
    }

    /// Talks until the connection breaks, falls silent, or the peer moves.
    async fn talk(
        &mut self,
        batches: mpsc::Sender<v1::PeerAsks>,
        mut answers: Streaming<v1::PeerAnswers>,
        pending: &mut Pending,
    ) {
        let mut batch = Batch::default();
        let mut pings = interval(self.link.config.ping_interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let moved = {
            let (book, node) = (self.link.peers.clone(), self.link.node);
            let link = book.upgrade().map(|peers| Link::new(&peers, node));
            async move {
                match link {
                    Some(link) => link.moved().await,
                    None => std::future::pending().await,
                }
            }
        };
        tokio::pin!(moved);
        loop {
            let due = batch.due;
            tokio::select! {
                received = answers.message() => {
                    let Ok(Some(message)) = received else { return };
                    if self.link.is_cut() {
                        continue;
                    }
                    heard = Instant::now();
                    self.hearing.note();
                    self.hearing.note_disk(message.disk_short, &message.disk_failed);
                    self.note_pongs(&message);
                    answered(message, pending);
                }
                Some(ask) = self.asks.recv(), if batch.asks.len() < BATCH_MAX => {
                    self.add(ask, &mut batch, pending);
                    while batch.asks.len() < BATCH_MAX && let Ok(ask) = self.asks.try_recv() {
                        self.add(ask, &mut batch, pending);
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    batch.due = None;
                    batch.ready = true;
                }
                permit = batches.reserve(), if batch.ready => {
                    let Ok(permit) = permit else { return };
                    let asks = batch.take();
                    if !self.link.is_cut() {
                        permit.send(v1::PeerAsks { hello: None, asks });
                    }
                }
                _ = pings.tick() => {
                    if heard.elapsed() > self.link.config.idle_timeout {
                        tracing::debug!(node = %self.link.node, "peer fell silent");
                        return;
                    }
                    // Those who gave up waiting.
                    pending.retain(|_, waiter| !waiter.is_closed());
                    let sent = v1::Ping { sent_us: elapsed_us(), ..Default::default() };
                    let ping = Some(Kind::Ping(sent));
                    batch.asks.push(v1::PeerAsk { id: PING_ID, route: None, ask: ping });
                    batch.within(Duration::ZERO);
                }
                () = &mut moved => return,
            }
        }
    }

    /// Notes what answers to pings say of the peer: its clocks, and what it reads.
    fn note_pongs(&self, message: &v1::PeerAnswers) {
        for answer in &message.answers {
            let Some(Answer::Pong(pong)) = &answer.answer else { continue };
            let Some(peers) = self.link.peers.upgrade() else { return };
            // A node of an older version says nothing of its clocks.
            let read = Reading { wall_us: pong.wall_us, time_us: pong.time_us };
            let read = Some(read).filter(|read| read.wall_us > 0 && pong.sent_us > 0);
            peers.clock().note(self.link.node, pong.sent_us, read);
            peers.note_format(self.link.node, pong.entry_format);
        }
    }

    fn add(&mut self, ask: Ask, batch: &mut Batch, pending: &mut Pending) {
        let id = self.next_id;
        self.next_id += 1;
        pending.insert(id, ask.answer);
        batch.asks.push(v1::PeerAsk { id, route: ask.route, ask: Some(ask.kind) });
        batch.within(if ask.hurry { Duration::ZERO } else { self.link.config.gather_max });
    }
}

/// Messages that leave together.
#[derive(Default)]
struct Batch {
    asks: Vec<v1::PeerAsk>,
    due: Option<Instant>,
    ready: bool,
}

impl Batch {
    fn within(&mut self, wait: Duration) {
        if wait.is_zero() {
            self.ready = true;
            self.due = None;
        } else if !self.ready && self.due.is_none() {
            self.due = Some(Instant::now() + wait);
        }
    }

    fn take(&mut self) -> Vec<v1::PeerAsk> {
        self.ready = false;
        self.due = None;
        std::mem::take(&mut self.asks)
    }
}

fn answered(message: v1::PeerAnswers, pending: &mut Pending) {
    for answer in message.answers {
        let Some(waiter) = pending.remove(&answer.id) else { continue };
        let outcome = answer.answer.ok_or(Lost::Broken);
        // Who gave up waiting does not mind.
        let _ = waiter.send(outcome);
    }
}
