//! The part of a log that is in memory: all entries that are not durable yet, and as many of
//! the newest others as fit.
//!
//! Nearly every read of a log is of entries just appended, to apply them or to send them on.
//! The room is bounded in bytes for all logs of a node together; when it is full, the log with
//! the most gives up its oldest durable entries.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::command::Entry;
use crate::disk::{Disk, Replica};
use crate::ids::EntryId;

/// One log's state in memory.
pub(crate) struct LogState {
    /// Without gaps, up to `last`.
    tail: VecDeque<(Arc<Entry>, u64)>,
    tail_bytes: u64,
    /// The last entry, or the last purged one if there is none.
    pub last: EntryId,
    pub purged: EntryId,
    /// Index through which entries are synced.
    durable: u64,
    /// How often the log was truncated: tells entries of one index apart.
    pub truncations: u64,
    pub vote: Option<Bytes>,
}

impl LogState {
    pub fn open(last: EntryId, purged: EntryId, vote: Option<Bytes>) -> Self {
        LogState {
            tail: VecDeque::new(),
            tail_bytes: 0,
            last,
            purged,
            durable: last.index,
            truncations: 0,
            vote,
        }
    }

    /// Index of the first entry in memory; behind the last if there is none.
    pub fn tail_first(&self) -> u64 {
        self.tail.front().map_or(self.last.index + 1, |(entry, _)| entry.index)
    }

    /// The entry of an index, if it is in memory.
    pub fn get(&self, index: u64) -> Option<&(Arc<Entry>, u64)> {
        let position = index.checked_sub(self.tail_first())?;
        self.tail.get(usize::try_from(position).ok()?)
    }

    /// Adds the entries of a range that are in memory, as many as there is room for, but at
    /// least one if there is none yet.
    pub fn read(&self, range: Range<u64>, room: &mut u64, entries: &mut Vec<Arc<Entry>>) {
        for index in range {
            let Some((entry, bytes)) = self.get(index) else { return };
            if bytes > room && !entries.is_empty() {
                return;
            }
            *room = room.saturating_sub(*bytes);
            entries.push(entry.clone());
        }
    }

    /// Adds an entry. Answers the bytes by which the tail has grown.
    pub fn push(&mut self, entry: Arc<Entry>, bytes: u64) -> u64 {
        assert_eq!(entry.index, self.last.index + 1, "entries are appended without gaps");
        self.last = entry.id();
        self.tail.push_back((entry, bytes));
        self.tail_bytes += bytes;
        bytes
    }

    /// Forgets entries from an index on. Answers the bytes by which the tail has shrunk.
    pub fn truncate_from(&mut self, index: u64, last: EntryId) -> u64 {
        let before = self.tail_bytes;
        while let Some((_, bytes)) = self.tail.back().filter(|(entry, _)| entry.index >= index) {
            self.tail_bytes -= bytes;
            self.tail.pop_back();
        }
        self.last = last;
        self.truncations += 1;
        self.durable = self.durable.min(last.index);
        before - self.tail_bytes
    }

    /// Forgets everything: the log begins behind an entry. Answers the bytes by which the tail
    /// has shrunk.
    pub fn restart(&mut self, behind: EntryId) -> u64 {
        let gone = std::mem::take(&mut self.tail_bytes);
        self.tail.clear();
        (self.last, self.purged, self.durable) = (behind, behind, behind.index);
        self.truncations += 1;
        gone
    }

    /// Forgets entries up to an index. Answers the bytes by which the tail has shrunk.
    pub fn forget_through(&mut self, index: u64) -> u64 {
        let before = self.tail_bytes;
        while let Some((_, bytes)) = self.tail.front().filter(|(entry, _)| entry.index <= index) {
            self.tail_bytes -= bytes;
            self.tail.pop_front();
        }
        before - self.tail_bytes
    }

    /// Forgets the oldest durable entries, at least `bytes` of them if there are as many.
    /// Answers how many went.
    fn evict(&mut self, bytes: u64) -> u64 {
        let before = self.tail_bytes;
        while before - self.tail_bytes < bytes {
            match self.tail.front() {
                Some((entry, len)) if entry.index <= self.durable => self.tail_bytes -= len,
                Some(_) | None => break,
            }
            self.tail.pop_front();
        }
        before - self.tail_bytes
    }
}

impl Disk {
    /// Entries up to an index are synced: they may leave memory, and do if it is full.
    /// `truncations` is the log's at their append: other entries may have taken their place.
    pub fn landed(&self, replica: &Replica, index: u64, truncations: u64) {
        {
            let mut log = replica.log.lock();
            if log.truncations == truncations {
                log.durable = log.durable.max(index);
            }
        }
        if self.tail_bytes.load(Ordering::Relaxed) > self.tail_bytes_max {
            self.evict();
        }
    }

    fn evict(&self) {
        // Somewhat below the limit, so that this is not done for every append.
        let target = self.tail_bytes_max - self.tail_bytes_max / 8;
        let mut replicas: Vec<_> = self.replicas.read().values().cloned().collect();
        replicas.sort_by_cached_key(|replica| replica.log.lock().tail_bytes);
        while let Some(replica) = replicas.pop() {
            let excess = self.tail_bytes.load(Ordering::Relaxed).saturating_sub(target);
            if excess == 0 {
                return;
            }
            let gone = replica.log.lock().evict(excess);
            self.tail_bytes.fetch_sub(gone, Ordering::Relaxed);
        }
    }
}
