//! One write for what many shards apply together.
//!
//! To memory alone: after a crash the logs bring back what was not flushed. Each shard's applied
//! row rides in the same family, so that a flush makes both durable together.
//!
//! Shards add entries; `commit` writes all of them, each shard's applied row included, and only
//! then do readers see them and may replies leave. A batch that is dropped has done nothing. A
//! shard whose entry fails drops out of the batch with all that it added; the others go on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use bytes::Bytes;

use crate::applied::Applied;
use crate::command::Command;
use crate::db::Batch;
use crate::disk::{Disk, Replica};
use crate::error::Error;
use crate::garbage;
use crate::ids::{EntryId, ReplicaId};
use crate::keys;
use crate::overlay::Overlay;
use crate::payload::payload_bytes;
use crate::sums::Sums;
use crate::usage;

/// Entries applied and not written yet, of any number of shards.
pub struct ApplyBatch {
    disk: Arc<Disk>,
    parts: HashMap<ReplicaId, Part>,
    /// Replicas with an entry that failed half done: nothing of theirs is written.
    failed: HashMap<ReplicaId, Error>,
}

/// One shard's part of a batch.
pub(crate) struct Part {
    pub replica: Arc<Replica>,
    /// What was applied before the batch.
    started: EntryId,
    pub applied: Applied,
    pub sums: Sums,
    pub overlay: Overlay,
    pub usage: usage::Changed,
    /// The least release index of its garbage rows, and the earliest time of its expiry rows.
    pub garbage_from: u64,
    pub expiries_from_ms: u64,
    /// Bytes of chunks that wait for the log to be purged, and of those deleted in ranges at once.
    pub garbage_bytes: u64,
    pub dropped_bytes: u64,
    /// Bytes of the entries.
    pub bytes: u64,
    commands: u64,
    /// Bytes of fields that the commands brought.
    payload: u64,
}

impl Part {
    pub(crate) fn counted(&mut self, commands: &[Command]) {
        self.commands += commands.len() as u64;
        self.payload += commands.iter().map(payload_bytes).sum::<u64>();
    }
}

impl Part {
    /// Notes what a compaction would give back.
    fn note_deleted(&self) {
        let mut deleted = self.replica.deleted.lock();
        for (start, end) in self.overlay.dropped() {
            match keys::is_record(start) {
                true => deleted.add(start, end, garbage::COLLECTION_BYTES),
                false if keys::is_request(start) => deleted.add_rows(1),
                false => deleted.add(start, end, 0),
            }
        }
        deleted.add_bytes(self.dropped_bytes);
        deleted.add_rows(self.overlay.rows().filter(|(_, value)| value.is_none()).count() as u64);
    }
}

impl ApplyBatch {
    pub(crate) fn new(disk: Arc<Disk>) -> Self {
        ApplyBatch { disk, parts: HashMap::new(), failed: HashMap::new() }
    }

    pub(crate) fn part(&mut self, replica: &Arc<Replica>) -> (&Arc<Disk>, &mut Part) {
        let part = self.parts.entry(replica.id).or_insert_with(|| {
            let applied = replica.applied.lock().clone();
            Part {
                replica: replica.clone(),
                started: applied.id,
                applied,
                sums: replica.sums.lock().clone(),
                overlay: Overlay::default(),
                usage: usage::Changed::default(),
                garbage_from: u64::MAX,
                expiries_from_ms: u64::MAX,
                garbage_bytes: 0,
                dropped_bytes: 0,
                bytes: 0,
                commands: 0,
                payload: 0,
            }
        });
        (&self.disk, part)
    }

    /// Refuses a replica that has failed in this batch.
    pub(crate) fn check(&self, replica: ReplicaId) -> Result<(), Error> {
        self.failed.get(&replica).map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Leaves a replica out: what it added is dropped, and it takes nothing more in this batch.
    pub fn fail(&mut self, replica: ReplicaId, error: &Error) {
        self.parts.remove(&replica);
        self.failed.insert(replica, error.clone());
    }

    /// About how many bytes of memory the batch takes: commit before it is too many.
    pub fn bytes(&self) -> usize {
        self.parts.values().map(|part| part.overlay.bytes()).sum()
    }

    /// Writes everything at once, to memory: after a crash the logs bring it back. Replicas that
    /// failed are left out.
    ///
    /// # Panics
    /// If a shard of the batch was applied through another batch meanwhile.
    pub fn commit(self) -> Result<(), Error> {
        self.disk.check()?;
        let mut batch = Batch::default();
        let mut places = Vec::new();
        let writing = self.disk.cache.writing();
        for part in self.parts.values() {
            let applied = part.replica.applied.lock().id;
            assert_eq!(applied, part.started, "a shard is applied through one batch at a time");
            let generation = part.replica.generation();
            part.overlay.write(&generation.family, &mut batch);
            part.usage.write(&generation.family, &mut batch);
            if part.started.index == 0 {
                usage::mark(&generation.family, &mut batch);
            }
            let row = Bytes::from(part.applied.encode());
            batch.put(&generation.family, keys::APPLIED, &row);
            batch.put(&generation.family, keys::SUMS, &Bytes::from(part.sums.encode()));
            for (row, value) in part.overlay.rows().filter(|(row, _)| keys::is_record(row)) {
                let place = self.disk.cache.place(generation.space, row);
                self.disk.cache.hold(&place);
                places.push((place, value));
            }
        }
        if !batch.is_empty() {
            self.disk.db.write_unlogged(batch).map_err(|error| self.disk.failure.raise(&error))?;
        }
        for (place, value) in places {
            self.disk.cache.release(place, value.as_ref())?;
        }
        drop(writing);
        for part in self.parts.values() {
            self.disk.cache.dropped(part.replica.generation().space, part.overlay.dropped());
            part.note_deleted();
        }
        let (mut commands, mut payload) = (0, 0);
        for part in self.parts.into_values() {
            (commands, payload) = (commands + part.commands, payload + part.payload);
            // After the write: whoever sees these sees the rows.
            part.replica.garbage_from.fetch_min(part.garbage_from, AcqRel);
            part.replica.expiries_from_ms.fetch_min(part.expiries_from_ms, AcqRel);
            part.replica.garbage_bytes.fetch_add(part.garbage_bytes, Relaxed);
            part.replica.unflushed.lock().grow(part.applied.id.index, part.bytes);
            *part.replica.sums.lock() = part.sums;
            part.replica.publish(part.applied);
        }
        self.disk.commands_applied.fetch_add(commands, Relaxed);
        self.disk.payload_applied_bytes.fetch_add(payload, Relaxed);
        Ok(())
    }
}
