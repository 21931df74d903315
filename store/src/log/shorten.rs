//! What shortens a log: truncation of its tail, purges of its head.
//!
//! Both look at the disk: for the payloads of entries that are not in memory, for garbage that a
//! purge releases. They do so before they take the log's lock, for whoever appends, on the thread
//! of all groups, takes it too.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{Log, Payloads, payloads_in_memory};
use crate::apply::Moment;
use crate::commit::{Callback, Job};
use crate::db::{Mutation, Walk};
use crate::disk::encode_purged;
use crate::error::Error;
use crate::extent::chunks_of;
use crate::garbage::Garbage;
use crate::ids::EntryId;
use crate::keys;
use crate::released::Released;
use crate::tail::LogState;

/// Beyond this many entries a range deletion is cheaper than one deletion for each; below, it
/// would slow every later read down.
const ENTRIES_PURGED_SINGLY_MAX: u64 = 4_096;

impl Log {
    /// Removes the entries from an index on, with their payloads. May wait for the disk, though not
    /// while others wait for the log.
    ///
    /// # Panics
    /// If one of them is applied: what a quorum has committed never goes.
    pub fn truncate_from(&self, index: u64, done: Callback) -> Result<(), Error> {
        let applied = self.replica.applied_index.load(Ordering::Acquire);
        assert!(index > applied, "entry {index} is applied (as is {applied}): it stays");
        loop {
            // Entries in files alone are looked at without the lock: they stay as they are.
            let (last, tail_first, truncations) = {
                let log = self.replica.log.lock();
                (log.last.index, log.tail_first(), log.truncations)
            };
            let mut stored = Vec::new();
            for index in index..tail_first.min(last + 1) {
                stored.push(self.payloads_stored(&keys::entry(self.replica.id, index))?);
            }
            let before = match index.checked_sub(1) {
                Some(before) => self.entry_id(before)?.unwrap_or_default(),
                None => EntryId::default(),
            };
            let mut log = self.replica.log.lock();
            self.replica.check()?;
            if (log.last.index, log.tail_first(), log.truncations)
                == (last, tail_first, truncations)
            {
                return self.truncate_with(&mut log, index, (before, stored), done);
            }
        }
    }

    /// Truncates: `before` is the entry in front, `stored` has the payloads of the entries that are
    /// not in memory.
    fn truncate_with(
        &self,
        log: &mut LogState,
        index: u64,
        (before, stored): (EntryId, Vec<Payloads>),
        done: Callback,
    ) -> Result<(), Error> {
        let mut mutations = Vec::new();
        let mut stored = stored.into_iter();
        for index in index..=log.last.index {
            let (family, key) = (self.disk.log.clone(), keys::entry(self.replica.id, index));
            let payloads = match payloads_in_memory(log, index) {
                Some(payloads) => payloads,
                None => stored.next().expect("entries before the tail were looked at"),
            };
            for (collection, extent) in payloads {
                let garbage = Garbage::Span(collection, chunks_of(&extent));
                garbage.delete(&self.replica.generation().family, &mut mutations);
            }
            mutations.push(Mutation::Delete { family, key });
        }
        let truncated = index <= log.last.index;
        let log_end = truncated.then_some((self.replica.id, before));
        self.disk.commit.push(Job { log_end, ..Job::synced(mutations, done) })?;
        if truncated {
            let gone = log.truncate_from(index, before);
            self.disk.tail_bytes.fetch_sub(gone, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes the entries up to an index, and the payloads that were kept for them alone.
    ///
    /// # Panics
    /// If one of them is not applied or not flushed ([`Log::flushed`]): it would be lost.
    pub fn purge_through(&self, index: u64, done: Callback) -> Result<(), Error> {
        let applied = self.replica.applied.lock().id;
        assert!(index <= applied.index, "entry {index} is not applied: it can't be purged");
        let flushed = self.flushed()?.index;
        assert!(index <= flushed, "entry {index} is not flushed: it can't be purged");
        let (mut mutations, mut released) = (Vec::new(), Released::default());
        let from = self.replica.garbage_from.swap(u64::MAX, Ordering::AcqRel);
        let out = (&mut mutations, &mut released);
        let purged = self.collect_garbage(from, index, flushed, out).and_then(|next| {
            let replica = self.replica.clone();
            let written = move |result: Result<(), Error>| {
                if result.is_ok() {
                    released.settle(&replica);
                }
                done(result);
            };
            self.purge_with(mutations, index, applied, Box::new(written))?;
            Ok(next)
        });
        let next = purged.as_ref().map_or(from, |next| *next);
        self.replica.garbage_from.fetch_min(next, Ordering::AcqRel);
        purged.map(|_| ())
    }

    /// Purges the entries, together with other deletions.
    fn purge_with(
        &self,
        mut mutations: Vec<Mutation>,
        index: u64,
        applied: EntryId,
        done: Callback,
    ) -> Result<(), Error> {
        // Before the lock is taken: this may read the disk. What is applied stays as it is.
        let found = match index == applied.index {
            true => Some(applied),
            false => self.entry_id(index)?,
        };
        let mut log = self.replica.log.lock();
        self.replica.check()?;
        if index <= log.purged.index {
            return self.disk.commit.push(Job { sync: false, ..Job::synced(mutations, done) });
        }
        let purged = found.ok_or_else(|| {
            Error::corrupt("log", format!("entry {index} is applied but missing"))
        })?;
        self.delete_entries(log.purged.index + 1..=index.min(log.last.index), &mut mutations);
        mutations.push(Mutation::Put {
            family: self.disk.meta.clone(),
            key: keys::purged(self.replica.id),
            value: encode_purged(purged),
        });
        let written = {
            let replica = self.replica.clone();
            move |result: Result<(), Error>| {
                if result.is_ok() {
                    replica.purged.fetch_max(index, Ordering::AcqRel);
                }
                done(result);
            }
        };
        let job = Job::synced(mutations, Box::new(written));
        self.disk.commit.push(Job { sync: false, ..job })?;
        let gone = log.forget_through(index);
        log.purged = purged;
        if log.last.index < index {
            log.last = purged;
        }
        self.disk.tail_bytes.fetch_sub(gone, Ordering::Relaxed);
        Ok(())
    }

    /// Deletes the chunks that are kept for some entries alone. Answers the release index from
    /// which garbage may be left.
    ///
    /// Garbage of entries that are not flushed stays: after a crash their states are as before
    /// them, and need those chunks.
    fn collect_garbage(
        &self,
        from: u64,
        through: u64,
        flushed: u64,
        (out, released): (&mut Vec<Mutation>, &mut Released),
    ) -> Result<u64, Error> {
        let mut next = from.max(through + 1);
        if from > through {
            return Ok(next);
        }
        let generation = self.replica.generation();
        let family = &generation.family;
        let range = keys::garbage_between(from, through);
        self.disk.db.walk(family, range, Walk::Few, &mut |key, value| {
            let (release, version) = keys::parse_garbage(key)
                .ok_or_else(|| Error::corrupt("garbage row", "its key is too short"))?;
            if Moment::index_of(version) > flushed {
                next = next.min(release);
                return Ok(ControlFlow::Continue(()));
            }
            let garbage = Garbage::decode(Bytes::copy_from_slice(value))
                .map_err(|error| Error::corrupt("garbage row", error))?;
            let before = out.len();
            garbage.delete(family, out);
            released.note(garbage.bytes(), &out[before..]);
            out.push(Mutation::Delete { family: family.clone(), key: key.to_vec() });
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(next)
    }

    fn delete_entries(&self, range: std::ops::RangeInclusive<u64>, out: &mut Vec<Mutation>) {
        let (id, family) = (self.replica.id, &self.disk.log);
        let count = (range.end() + 1).saturating_sub(*range.start());
        if count > ENTRIES_PURGED_SINGLY_MAX {
            let start = keys::entry(id, *range.start());
            let end = keys::entry(id, range.end() + 1);
            return out.push(Mutation::DeleteRange { family: family.clone(), start, end });
        }
        for index in range {
            let key = keys::entry(id, index);
            out.push(Mutation::Delete { family: family.clone(), key });
        }
    }
}
