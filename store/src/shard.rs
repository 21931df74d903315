//! One replica's state machine: applies committed entries, in order, once each.
//!
//! The thin part around `apply.rs`: brings the rows that a decision needs, turns decisions into
//! row changes, keeps requests, the expiry index and garbage. There is one `Shard` per replica
//! and one owner of it.
//!
//! An entry is applied after it was appended to this replica's log: its large payloads are chunk
//! rows already, and here they are only referred to.

mod tamper;
mod uploads;
mod usage;

#[doc(hidden)]
pub use tamper::Tamper;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::apply::{self, Away, Change, Decision, Moment};
use crate::batch::{ApplyBatch, Part};
use crate::blob::{self, Loaded};
use crate::cache::Place;
use crate::command::{Body, Command, CommandBatch, Entry, RequestTag, Sweep, Write};
use crate::db::{Fetched, Mutation};
use crate::dedup;
use crate::disk::{Disk, Replica};
use crate::error::Error;
use crate::expiry::{self, Removed};
use crate::extent::Extent;
use crate::garbage::Garbage;
use crate::ids::{CollectionId, EntryId};
use crate::inspect::{Census, census, state_hash};
use crate::keys;
use crate::record::Record;
use crate::reply::Reply;
use crate::requests::REQUESTS_MIN;
use crate::sums;

/// One replica's state machine. Dropping it lets somebody else take the replica.
pub struct Shard {
    disk: Arc<Disk>,
    replica: Arc<Replica>,
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.replica.taken.store(false, Ordering::Release);
    }
}

impl Shard {
    /// The caller has marked the replica as taken.
    pub(crate) fn new(disk: Arc<Disk>, replica: Arc<Replica>) -> Self {
        Shard { disk, replica }
    }

    pub(crate) fn parts(&self) -> (&Arc<Disk>, &Arc<Replica>) {
        (&self.disk, &self.replica)
    }

    /// The last entry applied and written; index 0 before the first. The next to apply is
    /// behind it.
    pub fn applied(&self) -> EntryId {
        self.replica.applied.lock().id
    }

    /// The last membership applied, and the entry that carried it.
    pub fn membership(&self) -> Option<(EntryId, Bytes)> {
        self.replica.applied.lock().membership.clone()
    }

    /// The shard's time: the latest that an entry carried, in Unix milliseconds.
    pub fn time_ms(&self) -> u64 {
        self.replica.time_ms.load(Ordering::Acquire)
    }

    /// Adds an entry to a batch: one reply for each of its commands, in order. Nothing has
    /// happened before the batch is committed.
    ///
    /// An error is the disk's or a corrupt row's; the batch is committed without this replica.
    ///
    /// # Panics
    /// If the entry does not follow the last one applied.
    pub fn apply(&mut self, batch: &mut ApplyBatch, entry: &Entry) -> Result<Vec<Reply>, Error> {
        batch.check(self.replica.id)?;
        self.replica.check()?;
        let (disk, part) = batch.part(&self.replica);
        let applied = part.applied.id.index;
        assert_eq!(entry.index, applied + 1, "entries are applied in order, without gaps");
        let mut did = 0;
        let replies = match &entry.body {
            Body::Blank => Ok(Vec::new()),
            Body::Membership(membership) => {
                part.applied.membership = Some((entry.id(), membership.clone()));
                Ok(Vec::new())
            }
            Body::Commands(commands) => {
                // A new leader's clock may be behind the old one's.
                part.applied.time_ms = part.applied.time_ms.max(commands.time_ms);
                let mut applier = Applier { disk, part, discarded: 0, did };
                let replies = applier.commands(entry.index, commands);
                did = applier.did;
                replies
            }
        };
        match replies {
            Ok(replies) => {
                part.applied.id = entry.id();
                part.sums.add(entry.id(), did);
                part.bytes += entry.bytes() as u64;
                if let Body::Commands(batched) = &entry.body {
                    part.counted(&batched.commands);
                }
                Ok(replies)
            }
            Err(error) => {
                batch.fail(self.replica.id, &error);
                self.disk.seen(self.replica.id, Err(error))
            }
        }
    }

    /// How many rows of each kind the replica has. Reads everything.
    pub fn census(&self) -> Result<Census, Error> {
        census(&self.disk.db, &self.replica.generation().family)
    }

    /// A hash over every state: key, version, expiry, writer, model, fields and their bytes.
    /// Replicas that have applied the same entries have the same. Reads everything.
    pub fn state_hash(&self) -> Result<u64, Error> {
        state_hash(&self.disk.db, &self.replica.generation().family)
    }

    /// Whether [`crate::Reader::usage`] and [`crate::Reader::largest`] are what a count of all
    /// states and uploads comes to; else what differs first. Reads everything.
    pub fn audit_usage(&self) -> Result<Option<String>, Error> {
        crate::usage::audit(&self.disk.db, &self.replica.generation().family)
    }

    /// Makes the replica one of a version that counted nothing: the next start counts. For tests.
    #[doc(hidden)]
    pub fn forget_usage(&self) -> Result<(), Error> {
        crate::usage::forget(&self.disk.db, &self.replica.generation().family)
    }
}

/// Of so many records that apply takes from memory one is compared with the one on disk.
const KEPT_PER_CHECK: u64 = 1_024;

/// Applies the commands of one entry to one part of a batch.
struct Applier<'a> {
    disk: &'a Disk,
    part: &'a mut Part,
    /// Garbage rows of this entry so far: tells those of one command apart.
    discarded: u32,
    /// A hash of what this entry did to records so far: see `sums.rs`.
    did: u64,
}

impl Applier<'_> {
    fn commands(&mut self, index: u64, batch: &CommandBatch) -> Result<Vec<Reply>, Error> {
        let time_ms = self.part.applied.time_ms;
        let mut replies = Vec::with_capacity(batch.commands.len());
        for (command, position) in batch.commands.iter().zip(0u16..) {
            let moment = Moment { index, position, time_ms };
            replies.push(match command {
                Command::Put(put) => self.write(command, &put.write, moment)?,
                Command::Patch(patch) => self.write(command, &patch.write, moment)?,
                Command::Delete(delete) => self.write(command, &delete.write, moment)?,
                Command::DropCollection { collection } => self.drop_all(*collection, moment),
                Command::Sweep(sweep) => self.sweep(sweep, moment)?,
                Command::Upload(upload) => self.upload(command, upload, moment)?,
                Command::PutUpload(put) => self.write(command, &put.write, moment)?,
            });
        }
        Ok(replies)
    }

    fn write(&mut self, command: &Command, write: &Write, moment: Moment) -> Result<Reply, Error> {
        let collection = write.target.collection;
        let away = Away::of(command, moment);
        if let Some(reply) = self.remembered(write.request.as_ref(), moment)? {
            let decision = away.refused(reply);
            return Ok(self.carry_out(&write.target.key, collection, None, decision, moment));
        }
        let stored = self.record(collection, &write.target.key)?;
        let stored = stored.as_deref();
        let mut load = |extent: &Extent| self.load(collection, extent);
        let decision = match command {
            Command::Put(put) => apply::put(put, &away, stored, moment, &mut load)?,
            Command::Patch(patch) => apply::patch(patch, &away, stored, moment, &mut load)?,
            Command::Delete(delete) => apply::delete(delete, stored, moment),
            Command::PutUpload(put) => self.put_upload(put, stored, moment)?,
            Command::DropCollection { .. } | Command::Sweep(_) | Command::Upload(_) => {
                unreachable!("only commands with a write come here")
            }
        };
        if let Some(tag) = &write.request
            && let Some(value) = dedup::encode(tag, &decision.reply)
        {
            let bytes = (keys::REQUEST_BYTES + value.len()) as u64;
            let bucket = self.part.applied.requests.place(moment.time_ms, bytes);
            self.part.overlay.put(keys::request(bucket, &tag.id), value.into());
            if self.part.applied.requests.is_over() {
                self.retire_requests(moment);
            }
        }
        self.count(&write.target.key, collection, stored, &decision.change)?;
        let expiry = stored.and_then(Record::next_expiry_ms);
        Ok(self.carry_out(&write.target.key, collection, expiry, decision, moment))
    }

    /// What a request was answered before.
    fn remembered(&self, tag: Option<&RequestTag>, moment: Moment) -> Result<Option<Reply>, Error> {
        let Some(tag) = tag else { return Ok(None) };
        for bucket in self.part.applied.requests.live(moment.time_ms) {
            if let Some(row) = self.fetch(&keys::request(bucket, &tag.id))? {
                let reply = dedup::decode(row, tag);
                return reply.map(Some).map_err(|e| Error::corrupt("request row", e));
            }
        }
        Ok(None)
    }

    /// Turns a decision into row changes. `expiry` is where the stored record is in the index.
    fn carry_out(
        &mut self,
        key: &[u8],
        collection: CollectionId,
        expiry: Option<u64>,
        decision: Decision,
        moment: Moment,
    ) -> Reply {
        let overlay = &mut self.part.overlay;
        let next_expiry = match &decision.change {
            Change::Keep => expiry,
            Change::Erase => None,
            Change::Store(record) => record.next_expiry_ms(),
        };
        if next_expiry != expiry {
            if let Some(at_ms) = expiry {
                overlay.delete(keys::expiry(at_ms, collection, key));
            }
            if let Some(at_ms) = next_expiry {
                self.part.expiries_from_ms = self.part.expiries_from_ms.min(at_ms);
                overlay.put(keys::expiry(at_ms, collection, key), Bytes::new());
            }
        }
        match decision.change {
            Change::Keep => {}
            Change::Erase => {
                let row = keys::record(collection, key);
                self.did = sums::fold(self.did, &row, None);
                overlay.delete(row);
            }
            Change::Store(record) => {
                let (row, value) = (keys::record(collection, key), record.encode());
                self.did = sums::fold(self.did, &row, Some(&value));
                overlay.put(row, value.into());
            }
        }
        for (blob, bytes) in &decision.spills {
            blob::chunk_rows(collection, *blob, bytes, |key, value| overlay.put(key, value));
        }
        for span in decision.freed {
            self.discard(Garbage::Span(collection, span), moment);
        }
        decision.reply
    }

    /// Deletes chunks: now if no entry of the log needs them, else when the log is purged.
    fn discard(&mut self, garbage: Garbage, moment: Moment) {
        let overlay = &mut self.part.overlay;
        if garbage.release() > self.part.replica.purged.load(Ordering::Acquire) {
            let key = keys::garbage(garbage.release(), moment.version(), self.discarded);
            self.discarded += 1;
            self.part.garbage_from = self.part.garbage_from.min(garbage.release());
            self.part.garbage_bytes = self.part.garbage_bytes.saturating_add(garbage.bytes());
            return overlay.put(key, garbage.encode().into());
        }
        let mut deletions = Vec::new();
        garbage.delete(&self.part.replica.generation().family, &mut deletions);
        for deletion in deletions {
            match deletion {
                Mutation::Put { key, value, .. } => overlay.put(key, value),
                Mutation::Delete { key, .. } => overlay.delete(key),
                Mutation::DeleteRange { start, end, .. } => {
                    overlay.drop_range(start, end);
                    self.part.dropped_bytes += garbage.bytes();
                }
            }
        }
    }

    /// Drops a collection. Its rows in the expiry index go when their time comes, its chunks
    /// when the log no longer needs them.
    fn drop_all(&mut self, collection: CollectionId, moment: Moment) -> Reply {
        let large = keys::large_of(collection);
        for (start, end) in [keys::records(collection), keys::uploads(collection), large] {
            self.part.overlay.drop_range(start, end);
        }
        self.part.usage.drop_all(collection);
        self.did = sums::fold(self.did, &collection.0.to_be_bytes(), None);
        // Not the chunks of later entries: they are appended already and not applied.
        let garbage = Garbage::Collection(collection, moment.blob(0));
        self.discard(garbage, moment);
        Reply::Dropped
    }

    fn sweep(&mut self, sweep: &Sweep, moment: Moment) -> Result<Reply, Error> {
        let until_ms = sweep.now_ms.min(moment.time_ms);
        let range = keys::expiries(sweep.cursor.as_deref().unwrap_or_default(), until_ms);
        let (mut states, mut fields) = (0, 0);
        for row in self.keys(range, sweep.limit as usize)? {
            let Some((at_ms, collection, key)) = keys::parse_expiry(&row) else {
                return Err(Error::corrupt("expiry row", "its key is too short"));
            };
            let record = self.record(collection, key)?;
            // Another record, or none: a collection was dropped and this is what it left.
            let Some(record) = record.filter(|it| it.next_expiry_ms() == Some(at_ms)) else {
                self.part.overlay.delete(row);
                continue;
            };
            let (version, existed) = (moment.version(), true);
            let gone = Reply::Deleted { version, existed, repeated: false };
            let (removed, decision) = expiry::sweep(&record, until_ms, gone);
            match removed {
                Removed::State => states += 1,
                Removed::Fields(count) => fields += count,
            }
            self.count(key, collection, Some(&record), &decision.change)?;
            self.carry_out(key, collection, Some(at_ms), decision, moment);
        }
        let uploads = self.sweep_uploads(until_ms, sweep.limit as usize, moment)?;
        if let Some(max) = sweep.requests_max {
            self.part.applied.requests.max = max.max(REQUESTS_MIN);
        }
        let old = keys::requests_before(self.part.applied.requests.retirable(moment.time_ms));
        if !self.keys(old, 1)?.is_empty() {
            self.retire_requests(moment);
        }
        Ok(Reply::Swept { states, fields, uploads })
    }

    /// Forgets the requests that are too old, or too many.
    fn retire_requests(&mut self, moment: Moment) {
        let end = self.part.applied.requests.retire(moment.time_ms);
        let (start, end) = keys::requests_before(end);
        self.part.overlay.drop_range(start, end);
    }

    fn keys(&self, range: (Vec<u8>, Vec<u8>), limit: usize) -> Result<Vec<Vec<u8>>, Error> {
        self.part.overlay.keys(&self.disk.db, &self.part.replica.generation().family, range, limit)
    }

    /// A state's record: as this batch left it, else as it is kept in memory, else as stored.
    fn record(&self, collection: CollectionId, key: &[u8]) -> Result<Option<Arc<Record>>, Error> {
        let space = self.part.replica.generation().space;
        let place = self.disk.cache.place_of(space, collection, key);
        let row = match self.part.overlay.decided(place.row()) {
            Some(row) => row,
            None => match self.disk.cache.get(&place) {
                Some(record) => {
                    self.check_kept(&place, &record)?;
                    return Ok(Some(record));
                }
                None => self.disk.db.fetch(&self.part.replica.generation().family, place.row())?,
            },
        };
        let record = row.map(Record::decode).transpose();
        Ok(record.map_err(|error| Error::corrupt("state record", error))?.map(Arc::new))
    }

    /// Checks now and then that a record kept in memory is the one that the replica has: a command
    /// that is decided by another one makes replicas differ.
    fn check_kept(&self, place: &Place, kept: &Record) -> Result<(), Error> {
        let used = self.disk.kept_used.fetch_add(1, Ordering::Relaxed);
        if !used.is_multiple_of(KEPT_PER_CHECK) {
            return Ok(());
        }
        let family = &self.part.replica.generation().family;
        let stored = self.disk.db.fetch(family, place.row())?;
        let stored = stored.map(Record::decode).transpose();
        let stored = stored.map_err(|error| Error::corrupt("state record", error))?;
        match stored.as_ref() == Some(kept) {
            true => Ok(()),
            false => Err(Error::corrupt("state in memory", "it is not the one on disk")),
        }
    }

    fn load(&self, collection: CollectionId, extent: &Extent) -> Result<Bytes, Error> {
        let chunks = |number| self.look(&keys::chunk(collection, extent.blob, number));
        match blob::read_extent(extent, chunks)? {
            Loaded::Found(bytes) => Ok(bytes),
            Loaded::Gone | Loaded::NeedsDisk => {
                Err(Error::corrupt("state", "a chunk that its record refers to is missing"))
            }
        }
    }

    fn fetch(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        Ok(match self.look(key)? {
            Fetched::Found(pinned) => Some(pinned.into_bytes()),
            Fetched::Absent | Fetched::NeedsDisk => None,
        })
    }

    fn look(&self, key: &[u8]) -> Result<Fetched, Error> {
        self.part.overlay.fetch(&self.disk.db, &self.part.replica.generation().family, key)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::command::{Condition, Expiry, Put, Target, WriteLimits};
    use crate::config::Config;
    use crate::ids::ReplicaId;
    use crate::store::Store;
    use crate::value::{Field, Value};

    fn entry(index: u64, bytes: &'static [u8]) -> Entry {
        let write = Write {
            target: Target { collection: CollectionId(7), key: Bytes::from_static(b"k") },
            condition: Condition::Any,
            request: None,
            expiry: Expiry::Keep,
            writer: 0,
            model: None,
            limits: WriteLimits { state_bytes_max: 1 << 20, inline_bytes_max: 1 << 10 },
            answer: Bytes::new(),
        };
        let fields = vec![Field::new("f", Value::Bytes(Bytes::from_static(bytes)))];
        let commands = vec![Command::Put(Put { write, fields })];
        Entry::new(index, 1, Body::Commands(CommandBatch { time_ms: 1, commands }))
    }

    #[test]
    fn a_command_is_not_decided_by_a_record_in_memory_that_the_replica_does_not_have() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = Store::open(dir.path(), Config::default()).unwrap();
        store.create_replica(ReplicaId(1)).unwrap();
        let mut shard = store.shard(ReplicaId(1)).unwrap();
        for index in 1..=2 {
            let mut batch = store.apply_batch();
            shard.apply(&mut batch, &entry(index, b"new")).unwrap();
            batch.commit().unwrap();
        }
        let (disk, replica) = shard.parts();
        let space = replica.generation().space;
        let place = || disk.cache.place_of(space, CollectionId(7), b"k");
        let mut stale = Record::clone(&disk.cache.get(&place()).unwrap());
        stale.version -= 1;
        disk.cache.release(place(), Some(&stale.encode().into())).unwrap();
        disk.kept_used.store(0, Ordering::Relaxed);
        let mut batch = store.apply_batch();
        let refused = shard.apply(&mut batch, &entry(3, b"newer")).unwrap_err();
        assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
        batch.commit().unwrap();
        assert_eq!(shard.applied().index, 2, "nothing of it is written");
    }
}
