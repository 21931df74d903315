//! Answers hold their room until whoever asked has taken them, but not for ever.
//!
//! HTTP/2 gets an answer by pieces, the next one once its stream has room in its window: what
//! waits, waits here, where it is counted. Who takes nothing of an answer for `stream_stall_s`
//! loses it, and with it all that its call, or the calls of its pipeline, hold; if they come back
//! they are told so. While others find no room, whoever has taken nothing for [`UNTAKEN_MAX`] loses
//! it too, the longest first.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::HttpBody;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::HeaderMap;

use super::path::Path;
use super::status::status;
use super::{Calls, Transfers};
use crate::admission::Charge;

/// Bytes that HTTP/2 gets at a time.
const PIECE_BYTES: usize = crate::node::FRAME_BYTES_MAX as usize;

/// For so long an answer may wait to be taken while others find no room.
const UNTAKEN_MAX: Duration = Duration::from_millis(500);

/// How long after a look for untaken answers that found none the next one may be.
const SEARCH_INTERVAL: Duration = Duration::from_millis(10);

/// How often it is looked whether answers are taken.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Watches answers that are on their way out. Cheap to clone.
#[derive(Clone)]
pub struct Leaving(Arc<Shared>);

struct Shared {
    transfers: Transfers,
    watched: Mutex<Vec<Weak<Mutex<Answer>>>>,
    /// When untaken answers were looked for and none was found.
    searched: Mutex<Option<Instant>>,
}

impl Leaving {
    /// Whoever takes nothing for as long as a transfer may stand still is cut off.
    pub fn new(calls: &Calls) -> Self {
        let transfers = calls.transfers().clone();
        let (watched, searched) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { transfers, watched, searched });
        let weak = Arc::downgrade(&shared);
        calls.admission().when_full(Box::new(move |enough| {
            if let Some(shared) = weak.upgrade() {
                shared.make_room(Instant::now(), enough);
            }
        }));
        tokio::spawn(look_again(Arc::downgrade(&shared)));
        Leaving(shared)
    }

    /// The body of an answer to a path, with what its call holds.
    pub fn body(&self, path: Path, inner: Body, charge: Arc<Charge>) -> Body {
        let owned = charge.owner().is_some();
        let going = Going::On(inner, charge);
        let answer = Answer { going, owned, rest: Bytes::new(), since: None };
        let watcher = (path != Path::Read).then(|| self.clone());
        let long = if path == Path::Pipeline { 0 } else { PIECE_BYTES };
        Body::new(Outgoing { answer: Arc::new(Mutex::new(answer)), watcher, long })
    }
}

async fn look_again(shared: Weak<Shared>) {
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        shared.look(Instant::now());
    }
}

impl Shared {
    /// Cuts off who has taken nothing for too long, and forgets who is done.
    fn look(&self, now: Instant) {
        let stall_after = self.transfers.stall_after();
        let stalled = self.untaken(now, stall_after);
        for (_, answer) in stalled {
            answer.lock().cut(now, stall_after, &self.transfers);
        }
    }

    /// Cuts off who takes nothing, the longest first, until there is room enough.
    fn make_room(&self, now: Instant, enough: &dyn Fn() -> bool) {
        {
            let mut searched = self.searched.lock();
            if searched.is_some_and(|at| now.duration_since(at) < SEARCH_INTERVAL) {
                return;
            }
            // Until some are found: others need not look meanwhile.
            *searched = Some(now);
        }
        let mut untaken = self.untaken(now, UNTAKEN_MAX);
        untaken.sort_unstable_by_key(|(since, _)| *since);
        let mut cut = false;
        for (_, answer) in untaken {
            if enough() {
                break;
            }
            // One that is locked is being taken, perhaps by whoever wants room.
            if let Some(mut answer) = answer.try_lock()
                && answer.owned
            {
                cut |= answer.cut(now, UNTAKEN_MAX, &self.transfers);
            }
        }
        if cut {
            *self.searched.lock() = None;
        }
    }

    /// The answers of which nothing was taken for so long, and since when. Forgets who is done.
    fn untaken(&self, now: Instant, at_least: Duration) -> Vec<(Instant, Arc<Mutex<Answer>>)> {
        let mut untaken = Vec::new();
        self.watched.lock().retain(|answer| {
            let Some(answer) = answer.upgrade() else { return false };
            let Some((since, on)) = answer.try_lock().map(|it| (it.since, it.is_on())) else {
                return true;
            };
            if let Some(since) = since
                && now.saturating_duration_since(since) >= at_least
            {
                untaken.push((since, answer));
            }
            on
        });
        untaken
    }
}

/// An answer on its way out.
struct Answer {
    going: Going,
    /// It is a caller's own, not one of many that another node forwards.
    owned: bool,
    /// Of the frame that came last, what HTTP/2 did not get.
    rest: Bytes,
    /// Since when HTTP/2 has not asked for more than it got.
    since: Option<Instant>,
}

enum Going {
    /// What is left of it, and what it holds.
    On(Body, #[expect(dead_code, reason = "held")] Arc<Charge>),
    /// Nobody took it: how that is told.
    Cut(HeaderMap),
    Told,
}

impl Answer {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.since = None;
        let body = match &mut self.going {
            Going::On(body, _) => body,
            Going::Cut(told) => {
                let told = Frame::trailers(std::mem::take(told));
                self.going = Going::Told;
                return Poll::Ready(Some(Ok(told)));
            }
            Going::Told => return Poll::Ready(None),
        };
        if self.rest.is_empty() {
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        self.since = Some(Instant::now());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_on(&self) -> bool {
        matches!(self.going, Going::On(..))
    }

    /// Lets go of everything if nothing was taken for so long. Answers whether it has.
    fn cut(&mut self, now: Instant, at_least: Duration, transfers: &Transfers) -> bool {
        let stalled = |since| now.saturating_duration_since(since) >= at_least;
        let stalled = self.since.is_some_and(stalled);
        if stalled {
            let mut told = HeaderMap::new();
            // It has no names but our own, and values that were made for headers.
            let _ = status(transfers.stalled("taken", at_least)).add_header(&mut told);
            (self.going, self.rest, self.since) = (Going::Cut(told), Bytes::new(), None);
        }
        stalled
    }
}

/// The body of an answer.
struct Outgoing {
    answer: Arc<Mutex<Answer>>,
    /// Who is yet to watch it.
    watcher: Option<Leaving>,
    /// How much must be left of it to be watched: calls with short answers hold little.
    long: usize,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut answer = this.answer.lock();
        let polled = answer.poll(cx);
        let long = answer.since.is_some() && answer.rest.len() >= this.long;
        drop(answer);
        if long && let Some(Leaving(shared)) = this.watcher.take() {
            shared.watched.lock().push(Arc::downgrade(&this.answer));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let answer = self.answer.lock();
        match &answer.going {
            Going::On(body, _) => answer.rest.is_empty() && body.is_end_stream(),
            Going::Cut(_) => false,
            Going::Told => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let answer = self.answer.lock();
        match &answer.going {
            Going::On(body, _) if answer.rest.is_empty() => body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use crate::memory::{Chosen, Plan};
    use crate::size::ByteSize;

    fn shared() -> Shared {
        let (stall_after, threads) = (Duration::from_secs(30), tokio::runtime::Handle::current());
        let transfers = Transfers::new(1 << 20, stall_after, threads);
        Shared { transfers, watched: Mutex::default(), searched: Mutex::default() }
    }

    /// An answer of which nothing was taken for so many seconds.
    fn untaken(shared: &Shared, now: Instant, seconds: u64, owned: bool) -> Arc<Mutex<Answer>> {
        let plan = Plan::new(ByteSize::mib(512), &Chosen::default()).unwrap();
        let going = Going::On(Body::empty(), Admission::new(&plan).charge(None));
        let since = Some(now - Duration::from_secs(seconds));
        let answer = Arc::new(Mutex::new(Answer { going, owned, rest: Bytes::new(), since }));
        shared.watched.lock().push(Arc::downgrade(&answer));
        answer
    }

    #[tokio::test]
    async fn the_longest_untaken_give_way_and_no_more_than_make_room() {
        let (shared, now) = (shared(), Instant::now() + Duration::from_secs(60));
        let ages = [1, 9, 3, 8, 2, 0];
        let answers = ages.map(|seconds| untaken(&shared, now, seconds, true));
        // One that another node forwards is of many, who do take theirs.
        let forwarded = untaken(&shared, now, 20, false);
        let left = || answers.iter().filter(|answer| answer.lock().is_on()).count();
        shared.make_room(now, &|| left() <= 4);
        let on = answers.each_ref().map(|answer| answer.lock().is_on());
        assert_eq!(on, [true, false, true, false, true, true]);
        // However little room there is, what is being taken stays.
        shared.make_room(now, &|| false);
        let on = answers.each_ref().map(|answer| answer.lock().is_on());
        assert_eq!(on, [false, false, false, false, false, true]);
        assert!(forwarded.lock().is_on());
        // It may be as slow as anybody's.
        shared.look(now + Duration::from_secs(11));
        assert!(!forwarded.lock().is_on() && answers[5].lock().is_on());
    }
}
