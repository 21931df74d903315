//! openraft's log over the store's: entries, vote, truncation, purge.
//!
//! Appends return when they are in the commit thread's queue, and report when they are synced;
//! votes go through the same queue, so that the order of both on disk is that of the calls (a
//! vote overtaken by a later append could elect two leaders).
//!
//! `save_committed` is left out: a replica that starts serves nothing before a leader has told it
//! a commit index that it has applied ([`super::group::Group::lag`]), so that to know the old one
//! earlier would buy nothing for a write per commit.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::stream;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use statehouse_store as store;
use statehouse_store::{Body, EntryId, Log};
use tokio::sync::{oneshot, watch};

use super::confirm::Promise;
use super::convert;
use super::landed::Landed;
use super::retained::Retained;
use super::types::{self, Entry, LogId, TypeConfig, Vote};

/// Bytes of entries read at a time, to send or to apply; one entry may be larger.
pub const READ_BYTES_MAX: usize = 4 << 20;

/// How long a group waits before it tries a full commit queue again.
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(1);

/// One replica's log.
#[derive(Clone)]
pub struct LogStorage {
    log: Log,
    /// The last entry applied.
    applied: watch::Receiver<EntryId>,
    retained: Arc<Mutex<Retained>>,
    landed: Arc<Landed>,
    promise: Arc<Promise>,
}

impl LogStorage {
    pub fn new(
        log: Log,
        applied: watch::Receiver<EntryId>,
        retained: Arc<Mutex<Retained>>,
        landed: Arc<Landed>,
        promise: Arc<Promise>,
    ) -> Self {
        LogStorage { log, applied, retained, landed, promise }
    }

    /// Entries of a range of the store's indexes, of about [`READ_BYTES_MAX`] bytes. Off the
    /// async threads if they are not in memory.
    async fn read(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let entries = if from >= self.log.buffered_from() {
            self.log.read(from..to, READ_BYTES_MAX)
        } else {
            let log = self.log.clone();
            blocking(move || log.read(from..to, READ_BYTES_MAX)).await?
        };
        Ok(entries.map_err(io::Error::other)?.into_iter().map(Entry::from).collect())
    }

    /// Puts a job in the commit queue, again and again while that is full.
    async fn enqueue(
        &self,
        mut job: impl FnMut() -> Result<(), store::Error>,
    ) -> Result<(), io::Error> {
        loop {
            match job() {
                Err(store::Error::Overloaded { .. }) => tokio::time::sleep(QUEUE_FULL_WAIT).await,
                result => return result.map_err(io::Error::other),
            }
        }
    }
}

/// Runs something that may wait for the disk.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// The store's indexes for a range of openraft's.
fn indexes(range: &impl RangeBounds<u64>, last: u64) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from + 1,
        Bound::Excluded(from) => *from + 2,
        Bound::Unbounded => 1,
    };
    let to = match range.end_bound() {
        Bound::Included(to) => to.saturating_add(2),
        Bound::Excluded(to) => to.saturating_add(1),
        Bound::Unbounded => u64::MAX,
    };
    (from, to.min(last + 1))
}

impl RaftLogReader<TypeConfig> for LogStorage {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        let (mut from, to) = indexes(&range, self.log.last().map_or(0, |last| last.index));
        // What is purged is left out.
        from = from.max(self.log.purged().map_or(0, |purged| purged.index) + 1);
        let mut found = Vec::new();
        while from < to {
            let entries = self.read(from, to).await?;
            let Some(last) = entries.last() else { break };
            from = last.stored.index + 1;
            found.extend(entries);
        }
        Ok(found)
    }

    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (from, to) = indexes(&range, self.log.last().map_or(0, |last| last.index));
        let begin = (self.clone(), from, Vec::new().into_iter());
        stream::try_unfold(
            begin,
            move |(log, next, mut read): (Self, _, std::vec::IntoIter<_>)| async move {
                if read.len() == 0 {
                    read = log.read(next, to).await?.into_iter();
                }
                let Some(entry) = read.next() else { return Ok(None) };
                Ok(Some((entry, (log, next + 1, read))))
            },
        )
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let vote = self.log.vote();
        vote.map(|bytes| convert::vote_of_bytes(&bytes)).transpose().map_err(io::Error::other)
    }

    /// Finds the last entry of each term, by heads alone: a start needs no payload of them, and one
    /// that is damaged, though its changes are applied, must not keep it from starting.
    async fn get_key_log_ids(
        &mut self,
        range: RangeInclusive<LogId>,
    ) -> Result<Vec<LogId>, io::Error> {
        let (first, last) = (types::entry_id(*range.start()), types::entry_id(*range.end()));
        let log = self.log.clone();
        let entry_id = move |index| log.entry_id(index).map_err(io::Error::other);
        let ids = blocking(move || last_of_terms(first, last, entry_id)).await??;
        Ok(ids.into_iter().filter_map(types::log_id).collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start + 1, end + 1).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStorage {
    type LogReader = LogStorage;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        Ok(LogState {
            last_purged_log_id: self.log.purged().and_then(types::log_id),
            last_log_id: self.log.last().and_then(types::log_id),
        })
    }

    async fn get_log_reader(&mut self) -> LogStorage {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        // Before anybody can learn of it.
        self.promise.raise(vote.leader_id.term);
        let bytes = convert::vote_to_bytes(vote);
        let (sender, synced) = oneshot::channel();
        let sender = Arc::new(Mutex::new(Some(sender)));
        self.enqueue(|| {
            let sender = sender.clone();
            let done = move |result| {
                if let Some(sender) = sender.lock().take() {
                    // A core that stopped waiting has stopped for good.
                    let _ = sender.send(result);
                }
            };
            self.log.save_vote(bytes.clone(), Box::new(done))
        })
        .await?;
        let gone = io::Error::other("the commit thread is gone");
        synced.await.map_err(|_| gone)?.map_err(io::Error::other)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<_> = entries.into_iter().map(|entry| entry.stored).collect();
        if let Some(last) = entries.last() {
            let bytes = entries.iter().map(|entry| bytes_of(entry)).sum();
            self.retained.lock().note(last.index, bytes);
        }
        let last = entries.last().map_or(0, |entry| entry.index);
        let (landed, ticket) = (self.landed.clone(), self.landed.ticket());
        let callback = Arc::new(Mutex::new(Some(callback)));
        self.enqueue(|| {
            let (callback, landed) = (callback.clone(), landed.clone());
            let done = move |result: Result<(), store::Error>| {
                match &result {
                    Ok(()) => landed.note(last, ticket),
                    Err(_) => landed.fail(),
                }
                if let Some(callback) = callback.lock().take() {
                    callback.io_completed(result.map_err(io::Error::other));
                }
            };
            self.log.append(entries.clone(), Box::new(done))
        })
        .await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(1, |last| types::entry_id(last).index + 1);
        self.landed.cut(from - 1);
        loop {
            let log = self.log.clone();
            // Looks for payloads of what it removes on the disk.
            let truncate = move || log.truncate_from(from, Box::new(reported("truncated")));
            match blocking(truncate).await? {
                Err(store::Error::Overloaded { .. }) => tokio::time::sleep(QUEUE_FULL_WAIT).await,
                result => return result.map_err(io::Error::other),
            }
        }
    }

    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        let through = types::entry_id(through).index;
        // Behind a snapshot that is being installed this comes first, and so would appends for
        // which the log is not cut back yet: openraft does nothing else until it is.
        let stopped = |_| io::Error::other("the state machine has stopped");
        self.applied.wait_for(|applied| applied.index >= through).await.map_err(stopped)?;
        let log = self.log.clone();
        loop {
            let log = log.clone();
            let purge = move || log.purge_through(through, Box::new(reported("purged")));
            match blocking(purge).await? {
                Err(store::Error::Overloaded { .. }) => tokio::time::sleep(QUEUE_FULL_WAIT).await,
                result => return result.map_err(io::Error::other),
            }
        }
    }
}

/// Returns the last entry of each term from a first entry to a last one, which is the last of its
/// own. Terms never decrease along a log, so that each end is found by bisection.
fn last_of_terms(
    first: EntryId,
    last: EntryId,
    entry_id: impl Fn(u64) -> io::Result<Option<EntryId>>,
) -> io::Result<Vec<EntryId>> {
    let (mut found, mut begin) = (Vec::new(), first);
    while begin.term < last.term {
        // The last one known of this term, and the first one known of a later term.
        let (mut of_term, mut later) = (begin, last);
        while of_term.index + 1 < later.index {
            let middle = (of_term.index + later.index) / 2;
            let missing = || io::Error::other(format!("entry {middle} of the log is missing"));
            let id = entry_id(middle)?.ok_or_else(missing)?;
            if id.term == begin.term { of_term = id } else { later = id }
        }
        found.push(of_term);
        begin = later;
    }
    found.push(last);
    Ok(found)
}

/// About how many bytes an entry takes.
fn bytes_of(entry: &store::Entry) -> u64 {
    match &entry.body {
        Body::Blank => 0,
        Body::Membership(bytes) => bytes.len() as u64,
        Body::Commands(batch) => batch.commands.iter().map(|it| it.bytes() as u64).sum(),
    }
}

/// Says so if it failed; nobody waits: the store takes nothing more after a failed write, and the
/// next append learns it.
fn reported(what: &'static str) -> impl FnOnce(Result<(), store::Error>) + Send {
    move |result| {
        if let Err(error) = result {
            tracing::warn!(%error, "log not {what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_entry_of_each_term_is_found() {
        for terms in [vec![1], vec![1, 1, 1], vec![1, 2], vec![1, 2, 3, 7], vec![2, 2, 5, 5, 5, 9]]
        {
            let log: Vec<_> = (11..).zip(&terms).map(|(index, term)| id(index, *term)).collect();
            let last_of = |pair: &[EntryId]| (pair[0].term != pair[1].term).then_some(pair[0]);
            let mut expected: Vec<_> = log.windows(2).filter_map(last_of).collect();
            expected.extend(log.last());
            let at = |index: u64| Ok(log.get(index as usize - 11).copied());
            let found = last_of_terms(log[0], log[log.len() - 1], at).unwrap();
            assert_eq!(found, expected, "{terms:?}");
        }
    }

    fn id(index: u64, term: u64) -> EntryId {
        EntryId { index, term }
    }
}
