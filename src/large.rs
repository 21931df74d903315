//! The log of large requests: calls whose request or answer is large, and writes that left a
//! state above its collection's warning size.
//!
//! Kept in memory, a bounded number of them, and told as log lines of target `large_requests`, a
//! bounded number each second. A message is noted by the node that its caller spoke to, a read in
//! chunks by the node that reads it, a state by the node that leads its shard. What is small costs
//! two clocks and two sums.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::clock::unix_now_ms;
use crate::metrics::{CallKind, LargeMetrics};

/// Requests that are kept; older ones go.
const KEPT_MAX: usize = 1_024;

/// Characters of a key that are kept.
const KEY_CHARS_MAX: usize = 80;

/// Log lines of one second; what is beyond is counted and told with the next line.
const LINES_PER_SECOND_MAX: u32 = 10;

/// What was noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LargeRequest {
    /// Unix milliseconds, of its end.
    pub at_ms: u64,
    /// Which call.
    pub kind: CallKind,
    /// Of a batch: of its first item.
    pub collection: String,
    /// As text, shortened. Of a batch: of its first item.
    pub key: String,
    /// Of the request; of a stream, of all fields that it was to bring.
    pub request_bytes: u64,
    /// Of the answer.
    pub answer_bytes: u64,
    /// From the request to the answer.
    pub took: Duration,
    /// "ok", or why there was no answer.
    pub outcome: &'static str,
    /// Bytes of the state, if that is what is large.
    pub state_bytes: Option<u64>,
    /// Of a batch; 0: it is none.
    pub items: usize,
}

/// A call under way that may turn out large.
#[derive(Debug)]
pub struct Watched {
    kind: CallKind,
    collection: String,
    key: Bytes,
    request_bytes: u64,
    items: usize,
    started: Instant,
}

/// Whose state a call is about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Of a batch: of its first item.
    pub collection: &'a str,
    /// Of a batch: of its first item.
    pub key: &'a Bytes,
    /// Of a batch; 0: it is none.
    pub items: usize,
}

/// Notes large requests. Cheap to clone.
#[derive(Clone)]
pub struct LargeRequests {
    /// Above this a message is large; 0: none is.
    bytes: u64,
    noted: Arc<Mutex<Noted>>,
    counted: LargeMetrics,
}

/// The last ones, and how many there were.
#[derive(Default)]
struct Noted {
    kept: VecDeque<LargeRequest>,
    count: u64,
    lines: Lines,
}

impl LargeRequests {
    /// Messages above so many bytes are large; 0: none is.
    pub fn new(bytes: u64) -> Self {
        LargeRequests { bytes, noted: Arc::default(), counted: LargeMetrics::default() }
    }

    /// Above how many bytes a message is large; 0: none is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What counts them.
    pub fn counted(&self) -> &LargeMetrics {
        &self.counted
    }

    /// A call begins. `None`: nobody wants to know.
    pub fn watch(
        &self,
        kind: CallKind,
        subject: Subject<'_>,
        request_bytes: u64,
    ) -> Option<Watched> {
        let Subject { collection, key, items } = subject;
        (self.bytes > 0).then(|| Watched {
            kind,
            collection: collection.to_owned(),
            key: key.clone(),
            request_bytes,
            items,
            started: Instant::now(),
        })
    }

    /// It ended: noted if it was large.
    pub fn done(&self, watched: Option<Watched>, answer_bytes: u64, outcome: &'static str) {
        let large = |it: &Watched| it.request_bytes.max(answer_bytes) > self.bytes;
        let Some(watched) = watched.filter(large) else { return };
        let Watched { kind, collection, key, request_bytes, items, started } = watched;
        self.counted.message(kind);
        self.note(LargeRequest {
            at_ms: unix_now_ms(),
            kind,
            collection,
            key: shown(&key),
            request_bytes,
            answer_bytes,
            took: started.elapsed(),
            outcome,
            state_bytes: None,
            items,
        });
    }

    /// A write left a state above what its collection warns of.
    pub fn state(
        &self,
        kind: CallKind,
        (collection, key): (&str, &[u8]),
        (request_bytes, state_bytes): (u64, u64),
        took: Duration,
    ) {
        self.counted.state(collection);
        self.note(LargeRequest {
            at_ms: unix_now_ms(),
            kind,
            collection: collection.to_owned(),
            key: shown(key),
            request_bytes,
            answer_bytes: 0,
            took,
            outcome: "ok",
            state_bytes: Some(state_bytes),
            items: 0,
        });
    }

    /// The last ones, the newest first, and how many there were in all.
    pub fn list(&self, limit: usize) -> (Vec<LargeRequest>, u64) {
        let noted = self.noted.lock();
        (noted.kept.iter().rev().take(limit).cloned().collect(), noted.count)
    }

    fn note(&self, request: LargeRequest) {
        let suppressed = {
            let mut noted = self.noted.lock();
            noted.count += 1;
            if noted.kept.len() == KEPT_MAX {
                noted.kept.pop_front();
            }
            noted.kept.push_back(request.clone());
            noted.lines.take(Instant::now())
        };
        let Some(suppressed) = suppressed else { return };
        let message = match request.state_bytes {
            Some(_) => "a state is above its collection's warning size",
            None => "a large request",
        };
        tracing::info!(
            target: "large_requests",
            kind = request.kind.name(),
            collection = request.collection,
            key = request.key,
            request_bytes = request.request_bytes,
            answer_bytes = request.answer_bytes,
            state_bytes = request.state_bytes,
            items = request.items,
            took = ?request.took,
            outcome = request.outcome,
            suppressed,
            "{message}"
        );
    }
}

/// A key as text, shortened.
fn shown(key: &[u8]) -> String {
    let text = String::from_utf8_lossy(key);
    match text.char_indices().nth(KEY_CHARS_MAX) {
        None => text.into_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// So many lines in a second, and how many were left out.
#[derive(Debug, Default)]
struct Lines {
    since: Option<Instant>,
    told: u32,
    suppressed: u64,
}

impl Lines {
    /// Whether a line may be written, and how many were left out before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            self.since = Some(now);
            self.told = 0;
        }
        if self.told == LINES_PER_SECOND_MAX {
            self.suppressed += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(large: &LargeRequests, bytes: u64) -> Option<Watched> {
        let key = Bytes::from_static(b"key");
        large.watch(CallKind::Put, Subject { collection: "c", key: &key, items: 0 }, bytes)
    }

    #[test]
    fn what_is_large_is_kept_the_newest_first_and_no_more_than_so_many() {
        let large = LargeRequests::new(100);
        large.done(watched(&large, 100), 100, "ok");
        assert_eq!(large.list(10), (Vec::new(), 0));
        for bytes in 101..=101 + KEPT_MAX as u64 {
            large.done(watched(&large, bytes), 0, "ok");
        }
        large.done(watched(&large, 1), 5_000, "STATE_NOT_FOUND");
        let (kept, noted) = large.list(usize::MAX);
        assert_eq!((kept.len(), noted), (KEPT_MAX, KEPT_MAX as u64 + 2));
        assert_eq!((kept[0].answer_bytes, kept[0].outcome), (5_000, "STATE_NOT_FOUND"));
        assert_eq!(kept[1].request_bytes, 101 + KEPT_MAX as u64);
    }

    #[test]
    fn switched_off_it_notes_states_alone() {
        let large = LargeRequests::new(0);
        assert!(watched(&large, u64::MAX).is_none());
        large.state(CallKind::Patch, ("c", b"k"), (5, 50), Duration::ZERO);
        assert_eq!(large.list(10).0[0].state_bytes, Some(50));
    }

    #[test]
    fn lines_of_a_second_are_bounded_and_those_left_out_are_counted() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let later = start + Duration::from_millis(999);
        for _ in 0..LINES_PER_SECOND_MAX {
            assert_eq!(lines.take(start), Some(0));
        }
        assert_eq!((lines.take(start), lines.take(later)), (None, None));
        assert_eq!(lines.take(start + Duration::from_secs(1)), Some(2));
        assert_eq!(lines.take(start + Duration::from_secs(1)), Some(0));
    }

    #[test]
    fn keys_are_shown_as_text_and_shortened() {
        assert_eq!(shown(b"ada"), "ada");
        assert_eq!(shown(&[0xff, b'a']), "\u{fffd}a");
        let long = shown("é".repeat(100).as_bytes());
        assert_eq!(long.chars().count(), KEY_CHARS_MAX + 1);
    }
}
