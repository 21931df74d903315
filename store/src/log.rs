//! One replica's log: entries, vote, truncation, purge.
//!
//! Nothing here waits for the disk: a call puts a job in the commit thread's queue and returns,
//! and its callback fires when the job is done. Entries can be read as soon as `append` has
//! returned; they are durable when the callback fires. All jobs of a log are done in the order
//! of the calls.
//!
//! What shortens a log is in `log/shorten.rs`. Opening a log replays nothing. Its owner reads
//! `Shard::applied` and applies what is behind.

mod shorten;

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::blob;
use crate::codec::Malformed;
use crate::command::{Body, Entry};
use crate::commit::{Callback, Job};
use crate::db::{Family, Look, Mutation, Walk};
use crate::disk::{Disk, Replica};
use crate::encoding::{PayloadRef, id_of_row};
use crate::error::Error;
use crate::extent::{BlobId, Extent};
use crate::ids::{CollectionId, EntryId};
use crate::keys;
use crate::payload::detached;
use crate::tail::LogState;

/// One replica's log. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    disk: Arc<Disk>,
    replica: Arc<Replica>,
}

/// Entries read off the disk.
pub(crate) struct Stored {
    pub entries: u64,
    pub bytes: u64,
}

impl Log {
    pub(crate) fn new(disk: Arc<Disk>, replica: Arc<Replica>) -> Self {
        Log { disk, replica }
    }

    /// Adds entries at the end. They can be read at once; `done` fires when they are synced.
    ///
    /// On an error nothing has changed and `done` is not called: `Overloaded` when the commit
    /// queue is full, `OutOfBounds` for an entry that the vocabulary does not allow.
    ///
    /// # Panics
    /// If the first entry does not follow the last one, or the entries have gaps.
    pub fn append<E: Into<Arc<Entry>>>(
        &self,
        entries: Vec<E>,
        done: Callback,
    ) -> Result<(), Error> {
        let entries: Vec<Arc<Entry>> = entries.into_iter().map(Into::into).collect();
        let generation = self.replica.generation();
        let mut mutations = Vec::with_capacity(entries.len());
        let mut sizes = Vec::with_capacity(entries.len());
        for entry in &entries {
            if let Body::Commands(batch) = &entry.body {
                batch.check()?;
            }
            let before = mutations.len();
            self.rows_of(entry, &generation.family, &mut mutations);
            sizes.push(mutations[before..].iter().map(|row| row.bytes() as u64).sum::<u64>());
        }
        let mut log = self.replica.log.lock();
        self.replica.check()?;
        if generation.number != self.replica.generation().number {
            // A view was installed meanwhile: the chunks belong into its family.
            drop(log);
            return self.append(entries, done);
        }
        for (next, entry) in (log.last.index + 1..).zip(&entries) {
            assert_eq!(entry.index, next, "entries are appended without gaps");
        }
        let last = entries.last().map_or(log.last.index, |entry| entry.index);
        let landed = {
            let (disk, replica) = (Arc::downgrade(&self.disk), self.replica.clone());
            let truncations = log.truncations;
            move |result: Result<(), Error>| {
                // A store that is gone has no memory to tidy up.
                if let (Ok(()), Some(disk)) = (&result, disk.upgrade()) {
                    disk.landed(&replica, last, truncations);
                }
                done(result);
            }
        };
        self.disk.commit.push(Job::synced(mutations, Box::new(landed)))?;
        let grown: u64 = entries.into_iter().zip(sizes).map(|(e, bytes)| log.push(e, bytes)).sum();
        self.disk.tail_bytes.fetch_add(grown, Ordering::Relaxed);
        Ok(())
    }

    /// The entries of a range of indexes, as many as fit into `bytes_max`, but at least one.
    ///
    /// Stops at a gap: answers none if the first is purged or not there yet.
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Arc<Entry>>, Error> {
        self.replica.check()?;
        let mut entries = Vec::new();
        let mut room = bytes_max as u64;
        let stored = {
            let log = self.replica.log.lock();
            if range.start <= log.purged.index || range.start > log.last.index {
                return Ok(entries);
            }
            if range.start >= log.tail_first() {
                log.read(range, &mut room, &mut entries);
                return Ok(entries);
            }
            range.start..range.end.min(log.tail_first())
        };
        let all = self.read_stored(stored.clone(), &mut room, &mut entries, Look::Disk);
        if self.disk.seen(self.replica.id, all)? {
            let log = self.replica.log.lock();
            log.read(stored.end..range.end, &mut room, &mut entries);
        }
        Ok(entries)
    }

    /// Which entry has an index; `None` if it is purged (but for the last purged one) or not
    /// there yet.
    pub fn entry_id(&self, index: u64) -> Result<Option<EntryId>, Error> {
        let known = self.known_id(&self.replica.log.lock(), index);
        match known {
            Known::Id(id) => Ok(id),
            // Not under the lock: whoever appends must not wait for the disk.
            Known::Stored => self.id_stored(index),
        }
    }

    /// The last entry, or the last purged one if the log is empty.
    pub fn last(&self) -> Option<EntryId> {
        Some(self.replica.log.lock().last).filter(|last| last.index > 0)
    }

    /// From which index on a read is served from memory alone.
    pub fn buffered_from(&self) -> u64 {
        self.replica.log.lock().tail_first()
    }

    /// The last entry that was purged.
    pub fn purged(&self) -> Option<EntryId> {
        Some(self.replica.log.lock().purged).filter(|purged| purged.index > 0)
    }

    /// The last entry whose changes would survive a crash without the log: through it the log
    /// may be purged. Index 0 before the first. May wait for the disk.
    pub fn flushed(&self) -> Result<EntryId, Error> {
        self.replica.check()?;
        self.replica.flushed(&self.disk.db)
    }

    /// About how many bytes of entries are applied and not flushed, as far as the last call of
    /// [`Log::flushed`] knows. What a start replays, and what the log can't be purged of.
    pub fn unflushed_bytes(&self) -> u64 {
        self.replica.unflushed.lock().bytes()
    }

    /// About how many bytes of large fields purges have deleted since the last flush that is known
    /// of. RocksDB gives their space back after the next one.
    pub fn freed_bytes(&self) -> u64 {
        self.replica.freed_bytes.load(Ordering::Relaxed)
    }

    /// About how many bytes of large fields no state has any more, which stay on disk until the log
    /// is purged of the entries that they came with.
    pub fn garbage_bytes(&self) -> u64 {
        self.replica.garbage_bytes.load(Ordering::Relaxed)
    }

    /// Keeps a vote; `done` fires when it is synced.
    pub fn save_vote(&self, vote: Bytes, done: Callback) -> Result<(), Error> {
        let mut log = self.replica.log.lock();
        self.replica.check()?;
        let key = keys::vote(self.replica.id);
        let row = Mutation::Put { family: self.disk.meta.clone(), key, value: vote.clone() };
        self.disk.commit.push_urgent(Job::synced(vec![row], done))?;
        log.vote = Some(vote);
        Ok(())
    }

    /// The vote kept last, if there was one.
    pub fn vote(&self) -> Option<Bytes> {
        self.replica.log.lock().vote.clone()
    }

    /// The log row of an entry, and the chunk rows of its large payloads.
    pub(crate) fn rows_of(&self, entry: &Entry, family: &Family, out: &mut Vec<Mutation>) {
        let key = keys::entry(self.replica.id, entry.index);
        let value = entry.encode_row();
        out.push(Mutation::Put { family: self.disk.log.clone(), key, value });
        for (collection, blob, bytes) in payloads_of(entry) {
            blob::chunk_rows(collection, blob, &bytes, |key, value| {
                out.push(Mutation::Put { family: family.clone(), key, value });
            });
        }
    }

    pub(crate) fn id_at(&self, log: &LogState, index: u64) -> Result<Option<EntryId>, Error> {
        match self.known_id(log, index) {
            Known::Id(id) => Ok(id),
            Known::Stored => self.id_stored(index),
        }
    }

    fn known_id(&self, log: &LogState, index: u64) -> Known {
        if index == log.purged.index {
            return Known::Id(Some(log.purged).filter(|purged| purged.index > 0));
        }
        if index < log.purged.index || index > log.last.index {
            return Known::Id(None);
        }
        log.get(index).map_or(Known::Stored, |(entry, _)| Known::Id(Some(entry.id())))
    }

    fn id_stored(&self, index: u64) -> Result<Option<EntryId>, Error> {
        let row = self.disk.db.fetch(&self.disk.log, &keys::entry(self.replica.id, index))?;
        let id = row.map(|row| id_of_row(&row)).transpose();
        id.map_err(|error| Error::corrupt("log row", error))
    }

    /// Where the payloads of an entry lie that are in chunk rows.
    pub(crate) fn payloads_at(
        &self,
        log: &LogState,
        index: u64,
        key: &[u8],
    ) -> Result<Payloads, Error> {
        match payloads_in_memory(log, index) {
            Some(payloads) => Ok(payloads),
            None => self.payloads_stored(key),
        }
    }

    fn payloads_stored(&self, key: &[u8]) -> Result<Payloads, Error> {
        let mut found = Vec::new();
        let Some(row) = self.disk.db.fetch(&self.disk.log, key)? else { return Ok(found) };
        Entry::decode_row(row, |payload: PayloadRef| {
            found.push((payload.collection, payload.extent()));
            Ok::<_, Malformed>(Bytes::new())
        })
        .map_err(|error| Error::corrupt("log row", error))?;
        Ok(found)
    }

    /// Reads entries off the disk from an index on, with their payloads, and keeps nothing of them
    /// in memory.
    pub(crate) fn check_stored(&self, from: u64, bytes_max: u64) -> Result<Stored, Error> {
        let last = self.replica.log.lock().last.index;
        let (mut entries, mut room) = (Vec::new(), bytes_max);
        if from <= last {
            let view = self.disk.db.view();
            let look = Look::Passing(&view);
            self.read_stored(from..last + 1, &mut room, &mut entries, look)?;
        }
        let bytes = entries.iter().map(|entry| entry.bytes() as u64).sum();
        Ok(Stored { entries: entries.len() as u64, bytes })
    }

    /// Reads entries off the disk. Answers whether the whole range was there and had room.
    fn read_stored(
        &self,
        range: Range<u64>,
        room: &mut u64,
        entries: &mut Vec<Arc<Entry>>,
        look: Look<'_>,
    ) -> Result<bool, Error> {
        let id = self.replica.id;
        let walk = match look {
            Look::Passing(_) => Walk::Ahead { keep: false },
            Look::Cached | Look::Disk | Look::View(_) => Walk::Few,
        };
        let rows = (keys::entry(id, range.start), keys::entry(id, range.end));
        let mut next = range.start;
        self.disk.db.walk_at(look, &self.disk.log, rows, walk, &mut |key, value| {
            if keys::index_of_entry(key) != Some(next) {
                return Ok(ControlFlow::Break(()));
            }
            let mut bytes = (key.len() + value.len()) as u64;
            let entry = Entry::decode_row(Bytes::copy_from_slice(value), |payload| {
                bytes += payload.len;
                self.payload(&payload, look)
            });
            let entry = match entry {
                Ok(entry) => entry,
                // Purged while it was read: the payload is gone, and so is the entry.
                Err(_) if self.replica.purged.load(Ordering::Acquire) >= next => {
                    return Ok(ControlFlow::Break(()));
                }
                Err(error) => return Err(error),
            };
            if bytes > *room && !entries.is_empty() {
                return Ok(ControlFlow::Break(()));
            }
            *room = room.saturating_sub(bytes);
            entries.push(Arc::new(entry));
            next += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(next == range.end)
    }

    fn payload(&self, payload: &PayloadRef, look: Look<'_>) -> Result<Bytes, Error> {
        let chunks = |number| {
            let key = keys::chunk(payload.collection, payload.extent().blob, number);
            self.disk.db.get(&self.replica.generation().family, &key, look)
        };
        blob::read_extent(&payload.extent(), chunks)?
            .into_option()
            .ok_or_else(|| Error::corrupt("log", "an entry's payload is missing"))
    }
}

/// Where payloads of an entry lie.
type Payloads = Vec<(CollectionId, Extent)>;

/// What the part of a log in memory says of an entry's id.
enum Known {
    /// This, or that there is none.
    Id(Option<EntryId>),
    /// Nothing: its row does.
    Stored,
}

/// Where the payloads of an entry lie that is in memory.
fn payloads_in_memory(log: &LogState, index: u64) -> Option<Payloads> {
    let (entry, _) = log.get(index)?;
    let payload = |(collection, blob, bytes): (CollectionId, BlobId, Bytes)| {
        (collection, Extent { blob, offset: 0, len: bytes.len() as u64 })
    };
    Some(payloads_of(entry).into_iter().map(payload).collect())
}

/// The payloads of an entry that lie in chunk rows.
fn payloads_of(entry: &Entry) -> Vec<(CollectionId, BlobId, Bytes)> {
    let Body::Commands(batch) = &entry.body else { return Vec::new() };
    let mut found = Vec::new();
    for (command, position) in batch.commands.iter().zip(0u16..) {
        for payload in detached(command) {
            let blob = BlobId { index: entry.index, position, number: payload.slot };
            found.push((payload.collection, blob, payload.bytes.clone()));
        }
    }
    found
}

impl PayloadRef {
    /// Where the payload lies.
    pub(crate) fn extent(&self) -> Extent {
        let blob = BlobId { index: self.index, position: self.position, number: self.slot };
        Extent { blob, offset: 0, len: self.len }
    }
}
