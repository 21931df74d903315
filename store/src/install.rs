//! Puts a received view in the place of a replica.
//!
//! In steps, each of which leaves the old replica whole, or the new one:
//!
//! 1. a column family of the next generation is made;
//! 2. it takes over the received files;
//! 3. one synced batch in the commit thread's queue flips to it: descriptor, purge point, log;
//! 4. the old family is dropped. Who reads it goes on until they let go of it.
//!
//! A crash before 3 leaves a family that no descriptor names, one after it the old family, which
//! none names any more: the next start drops either. The vote is untouched.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;

use crate::applied::Applied;
use crate::commit::{Callback, Job};
use crate::db::{Family, Mutation};
use crate::disk::{Disk, Generation, Replica, encode_descriptor, encode_purged};
use crate::error::{Error, ReplicaProblem};
use crate::extent::chunks_of;
use crate::ids::EntryId;
use crate::keys;
use crate::log::Log;
use crate::receive::Received;
use crate::reclaim::Deleted;
use crate::shard::Shard;
use crate::sums::Sums;
use crate::tail::LogState;
use crate::unflushed::Unflushed;
use crate::usage;

/// How long an installation waits before it tries a full commit queue again.
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(2);

impl Shard {
    /// Replaces everything that this replica has by what was received; blocks until that is
    /// durable. Readers see it at once.
    ///
    /// The log is purged through the view's last entry. If it holds that very entry, what
    /// follows is kept, for a quorum may count on it; else it is empty.
    ///
    /// Waits while the commit queue is full. On an error the replica is as it was: `Replica` when
    /// it is ahead of the view.
    ///
    /// # Panics
    /// If the view was received for another replica.
    pub fn install(&mut self, received: Received) -> Result<(), Error> {
        let (disk, replica) = self.parts();
        assert_eq!(received.replica, replica.id, "a view goes to the replica it came for");
        let _changing = disk.changing.lock();
        disk.check()?;
        replica.check()?;
        if received.applied.id.index < replica.applied.lock().id.index {
            return Err(Error::Replica { replica: replica.id, problem: ReplicaProblem::Ahead });
        }
        let number = replica.next_generation();
        let name = keys::family(replica.id, number);
        disk.db.create_family(&name)?;
        let (sender, durable) = crossbeam_channel::bounded(1);
        let done = Box::new(move |result| {
            // The receiver waits below.
            let _ = sender.send(result);
        });
        let flipped = fill(disk, replica, &received, (&name, number))
            .and_then(|generation| flip(disk, replica, generation, &received.applied, done));
        let old = match flipped {
            Ok(old) => old,
            Err(error) => {
                drop_family(disk, &name);
                return Err(error);
            }
        };
        // From here on the disk may have the new one: what fails now leaves both families.
        let ended = || Error::io("install a view", "the commit thread ended");
        durable.recv().unwrap_or_else(|_| Err(ended()))?;
        let (start, end) = keys::all_records();
        disk.cache.forget(old.space, &start, &end);
        drop_family(disk, &keys::family(replica.id, old.number));
        Ok(())
    }
}

/// A generation with everything that was received.
fn fill(
    disk: &Arc<Disk>,
    replica: &Replica,
    received: &Received,
    (name, number): (&str, u64),
) -> Result<Generation, Error> {
    let missing = || Error::corrupt("database", format!("it has no family {name:?}"));
    let family = disk.db.family(name).ok_or_else(missing)?;
    disk.db.ingest(&family, &received.tables)?;
    usage::ensure(&disk.db, &family)?;
    tracing::info!(replica = %replica.id, applied = %received.applied.id, "installing a view");
    Ok(Generation { number, family, space: disk.cache.space() })
}

/// A family that stays is dropped by the next start.
fn drop_family(disk: &Disk, name: &str) {
    if let Err(error) = disk.db.drop_family(name) {
        tracing::warn!(%error, family = name, "family of a replaced replica not dropped");
    }
}

/// Makes a generation the replica's: in memory at once, on disk when `done` is called. Answers the
/// one before it. On an error nothing has changed.
fn flip(
    disk: &Arc<Disk>,
    replica: &Arc<Replica>,
    generation: Generation,
    applied: &Applied,
    done: Callback,
) -> Result<Arc<Generation>, Error> {
    // Whatever job of this log follows belongs to the new generation. Not held while the disk is
    // waited for: callbacks of jobs in front need it.
    let done = Arc::new(Mutex::new(Some(done)));
    let (mut log, goes_on) = loop {
        let log = replica.log.lock();
        let (mut mutations, goes_on) = rows(disk, replica, &log, applied.id, &generation.family)?;
        let put = |key, value| Mutation::Put { family: disk.meta.clone(), key, value };
        mutations.push(put(keys::descriptor(replica.id), encode_descriptor(generation.number)));
        mutations.push(put(keys::purged(replica.id), encode_purged(applied.id)));
        let log_end = (!goes_on).then_some((replica.id, applied.id));
        let done = done.clone();
        let done: Callback = Box::new(move |result| {
            if let Some(done) = done.lock().take() {
                done(result);
            }
        });
        match disk.commit.push(Job { log_end, ..Job::synced(mutations, done) }) {
            Ok(()) => break (log, goes_on),
            // A view costs too much to be thrown away for that.
            Err(Error::Overloaded { .. }) => drop(log),
            Err(error) => return Err(error),
        }
        std::thread::sleep(QUEUE_FULL_WAIT);
    };
    let gone = match goes_on {
        true => log.forget_through(applied.id.index),
        false => log.restart(applied.id),
    };
    log.purged = applied.id;
    disk.tail_bytes.fetch_sub(gone, Ordering::Relaxed);
    // Before the generation: a reader of the log that misses a payload learns why.
    replica.purged.store(applied.id.index, Ordering::Release);
    let old = replica.replace_generation(generation);
    *replica.unflushed.lock() = Unflushed::default();
    replica.garbage_from.store(0, Ordering::Release);
    // A view brings no garbage, and the family is new.
    replica.garbage_bytes.store(0, Ordering::Relaxed);
    *replica.deleted.lock() = Deleted::default();
    replica.expiries_from_ms.store(0, Ordering::Release);
    *replica.sums.lock() = Sums::since(applied.id.index);
    replica.publish(applied.clone());
    Ok(old)
}

/// What becomes of the log's rows, and whether entries behind the view's last one stay.
fn rows(
    disk: &Arc<Disk>,
    replica: &Arc<Replica>,
    log: &LogState,
    applied: EntryId,
    family: &Family,
) -> Result<(Vec<Mutation>, bool), Error> {
    let reader = Log::new(disk.clone(), replica.clone());
    let goes_on =
        log.last.index > applied.index && reader.id_at(log, applied.index)? == Some(applied);
    let end = if goes_on { applied.index + 1 } else { u64::MAX };
    let mut out = vec![Mutation::DeleteRange {
        family: disk.log.clone(),
        start: keys::entry(replica.id, 0),
        end: keys::entry(replica.id, end),
    }];
    if !goes_on {
        return Ok((out, false));
    }
    let old = replica.generation();
    for index in applied.index + 1..=log.last.index {
        // In memory: maybe not written yet, and then not in the old family.
        if let Some((entry, _)) = log.get(index) {
            reader.rows_of(entry, family, &mut out);
            continue;
        }
        for (collection, extent) in
            reader.payloads_at(log, index, &keys::entry(replica.id, index))?
        {
            let span = chunks_of(&extent);
            for number in span.first..span.end {
                let key = keys::chunk(collection, extent.blob, number);
                let missing = || Error::corrupt("log", "an entry's payload is missing");
                let value = disk.db.fetch(&old.family, &key)?.ok_or_else(missing)?;
                out.push(Mutation::Put { family: family.clone(), key, value });
            }
        }
    }
    Ok((out, true))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::*;
    use crate::command::{Body, Entry};
    use crate::config::Config;
    use crate::db::Look;
    use crate::directory::Directory;
    use crate::ids::ReplicaId;
    use crate::store::Store;

    const REPLICA: ReplicaId = ReplicaId(1);

    /// A store whose replica has applied some entries of a term; none of them has a state.
    fn store(dir: &Path, term: u64, entries: u64) -> Store {
        let store = Store::open(dir, Config::default()).unwrap();
        store.create_replica(REPLICA).unwrap();
        let log = store.log(REPLICA).unwrap();
        for index in 1..=entries {
            let membership = Bytes::from(format!("members {term}"));
            let entry = Entry::new(index, term, Body::Membership(membership));
            let (sender, receiver) = crossbeam_channel::bounded(1);
            let done = Box::new(move |result| sender.send(result).unwrap());
            log.append(vec![entry.clone()], done).unwrap();
            receiver.recv().unwrap().unwrap();
            let mut batch = store.apply_batch();
            store.shard(REPLICA).unwrap().apply(&mut batch, &entry).unwrap();
            batch.commit().unwrap();
        }
        store
    }

    fn received(store: &Store) -> Received {
        let dir = tempfile::TempDir::new().unwrap();
        let from = self::store(dir.path(), 2, 5);
        let mut export = from.export(REPLICA).unwrap();
        let mut incoming = store.receive(REPLICA).unwrap();
        while let Some(block) = export.next(1).unwrap() {
            incoming.add(block).unwrap();
        }
        drop(export);
        from.close().unwrap();
        incoming.finish().unwrap()
    }

    /// The families of the replica on disk, and the entry that each has applied.
    fn families(dir: &Path) -> Vec<(String, u64)> {
        let directory = Directory::open(dir).unwrap();
        let database = directory.database.clone();
        let db = crate::opening::look(&directory, &Config::default(), crate::db::Recovery::Whole);
        let db = db.unwrap();
        let mut found = Vec::new();
        for name in db.family_names(&database).unwrap() {
            if keys::parse_family(&name).is_some() {
                let family = db.family(&name).unwrap();
                let row = match db.get(&family, keys::APPLIED, Look::Disk).unwrap() {
                    crate::db::Fetched::Found(row) => Some(row.into_bytes()),
                    crate::db::Fetched::Absent | crate::db::Fetched::NeedsDisk => None,
                };
                found.push((name, crate::disk::decode_applied(row).unwrap().id.index));
            }
        }
        found
    }

    /// What a start makes of the directory: the applied entry, the last of the log, and whether
    /// anything is left beside the replica's one family.
    fn start(dir: &Path) -> (EntryId, EntryId) {
        let store = Store::open(dir, Config::default()).unwrap();
        let applied = store.shard(REPLICA).unwrap().applied();
        let last = store.log(REPLICA).unwrap().last().unwrap();
        store.close().unwrap();
        drop(store);
        assert_eq!(families(dir).len(), 1, "one family is left");
        assert!(!dir.join("incoming").exists(), "no files are left");
        (applied, last)
    }

    #[test]
    fn an_install_that_ends_before_the_flip_leaves_the_old_replica() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = store(dir.path(), 1, 3);
        let received = received(&store);
        let shard = store.shard(REPLICA).unwrap();
        let (disk, replica) = shard.parts();
        disk.db.create_family("r1.1").unwrap();
        drop(fill(disk, replica, &received, ("r1.1", 1)).unwrap());
        store.close().unwrap();
        // As a crash would: nobody tidies up.
        std::mem::forget(received);
        drop((shard, store));
        let found = families(dir.path());
        assert_eq!(found, [("r1".to_owned(), 3), ("r1.1".to_owned(), 5)]);
        let old = EntryId { index: 3, term: 1 };
        assert_eq!(start(dir.path()), (old, old));
    }

    #[test]
    fn an_install_that_ends_after_the_flip_leaves_the_new_replica() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = store(dir.path(), 1, 3);
        let received = received(&store);
        let shard = store.shard(REPLICA).unwrap();
        let (disk, replica) = shard.parts();
        disk.db.create_family("r1.1").unwrap();
        let generation = fill(disk, replica, &received, ("r1.1", 1)).unwrap();
        let (sender, durable) = crossbeam_channel::bounded(1);
        let done = Box::new(move |result| sender.send(result).unwrap());
        let old = flip(disk, replica, generation, &received.applied, done).unwrap();
        durable.recv().unwrap().unwrap();
        store.close().unwrap();
        std::mem::forget(received);
        drop((old, shard, store));
        assert_eq!(families(dir.path()).len(), 2);
        let new = EntryId { index: 5, term: 2 };
        assert_eq!(start(dir.path()), (new, new));
        assert_eq!(families(dir.path()), [("r1.1".to_owned(), 5)]);
    }
}
