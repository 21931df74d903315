//! Has RocksDB give back the space of what was deleted, which it does not always do by itself.
//!
//! One thread looks at all replicas now and then. A range that was deleted (a dropped collection,
//! the chunks of a large field) is compacted once enough lies under it. When the disk is short of
//! space, everything is asked for: single deletions too, blob files that are garbage in part, and
//! the write-ahead log that nothing but small rows of logs still needs.
//!
//! A compaction writes before it deletes: what has no room for that is left to RocksDB.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::db::{Db, Family};
use crate::disk::{Disk, Replica};
use crate::error::Error;
use crate::keys;
use crate::space::Space;

/// How often it looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes under deleted ranges of a replica from which on they are compacted.
const RANGES_BYTES_MIN: u64 = 64 << 20;

/// Ranges remembered of a replica; beyond, neighbours count as one.
const RANGES_MAX: usize = 64;

/// How long after a whole replica was compacted, for want of space, it may be again.
const WHOLE_INTERVAL: Duration = Duration::from_secs(10);

/// A compaction may write this part of what is free.
const ROOM_DIVISOR: u64 = 2;

/// Bytes of garbage in blob files that are worth moving what is live in them.
const BLOB_GARBAGE_MIN: u64 = 8 << 20;

/// Bytes of write-ahead log, written since the last time, for which the node's own families are
/// flushed when space is short: as long as they are not, they hold the files.
const WAL_BYTES_MIN: u64 = 4 << 20;

/// What was deleted from a replica and may still lie on disk.
#[derive(Default)]
pub(crate) struct Deleted {
    /// In order of their starts, at most [`RANGES_MAX`].
    ranges: Vec<(Vec<u8>, Vec<u8>)>,
    /// About what lies under them.
    bytes: u64,
    /// Rows deleted one by one.
    rows: u64,
    whole_at: Option<Instant>,
    /// Its compactions look through all blob files.
    gathering: bool,
}

impl Deleted {
    /// Of a replica that was opened: what was deleted before may still lie there.
    pub fn unknown() -> Self {
        Deleted { rows: 1, ..Deleted::default() }
    }

    /// Notes a range that was deleted, with about so many bytes in it.
    pub fn add(&mut self, start: &[u8], end: &[u8], bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        let at = self.ranges.partition_point(|(from, _)| &from[..] < start);
        self.ranges.insert(at, (start.to_vec(), end.to_vec()));
        if self.ranges.len() > RANGES_MAX {
            let (_, end) = self.ranges.pop().expect("there are more than the most");
            let last = self.ranges.last_mut().expect("there is one left");
            last.1 = end.max(std::mem::take(&mut last.1));
        }
    }

    /// Notes that more bytes lie under the ranges than was said of each.
    pub fn add_bytes(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Notes rows that were deleted one by one.
    pub fn add_rows(&mut self, rows: u64) {
        self.rows += rows;
    }

    fn take_ranges(&mut self, bytes_min: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
        if self.bytes < bytes_min {
            return Vec::new();
        }
        self.bytes = 0;
        std::mem::take(&mut self.ranges)
    }

    /// Whether the whole replica should be compacted now; noted as done.
    fn take_whole(&mut self) -> bool {
        let recently = self.whole_at.is_some_and(|at| at.elapsed() < WHOLE_INTERVAL);
        if recently || (self.rows == 0 && self.ranges.is_empty()) {
            return false;
        }
        *self = Deleted {
            whole_at: Some(Instant::now()),
            gathering: self.gathering,
            ..Deleted::default()
        };
        true
    }
}

/// The thread; ends when this is dropped, or the store is.
pub(crate) struct Reclaimer {
    thread: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl Reclaimer {
    /// Starts the thread.
    pub fn start(disk: &Arc<Disk>, space: Arc<Space>) -> Result<Self, Error> {
        let (end, ended) = crossbeam_channel::bounded(0);
        let disk = Arc::downgrade(disk);
        let thread = std::thread::Builder::new()
            .name("reclaim".into())
            .spawn(move || run(&disk, &space, &ended))
            .map_err(|error| Error::io("start the reclaiming thread", error))?;
        Ok(Reclaimer { thread: Mutex::new(Some((end, thread))) })
    }

    /// Ends the thread. Blocks until the compaction under way ends, for which background work must
    /// have been stopped.
    pub fn close(&self) {
        let Some((end, thread)) = self.thread.lock().take() else { return };
        drop(end);
        if thread.join().is_err() {
            tracing::error!("the reclaiming thread ended in a panic");
        }
    }
}

fn run(disk: &Weak<Disk>, space: &Space, ended: &Receiver<()>) {
    let mut wal_flushed_at = 0;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK_INTERVAL) {
        let Some(disk) = disk.upgrade() else { return };
        let replicas: Vec<_> = disk.replicas.read().values().cloned().collect();
        for replica in replicas {
            if disk.check().is_err() {
                return;
            }
            // Asked for each: a compaction before may have made room, or taken it.
            match space.is_short() {
                false => reclaim(&disk.db, &replica),
                true => reclaim_all(&disk.db, &replica, space),
            }
        }
        if space.is_short()
            && let Err(error) = let_go_of_wal(&disk, &mut wal_flushed_at)
            && disk.check().is_ok()
        {
            disk.failure.raise(&error);
            return;
        }
    }
}

/// Compacts what was deleted in ranges, if it is much.
fn reclaim(db: &Db, replica: &Replica) {
    let family = replica.generation().family.clone();
    let (ranges, gathering) = {
        let mut deleted = replica.deleted.lock();
        (deleted.take_ranges(RANGES_BYTES_MIN), std::mem::take(&mut deleted.gathering))
    };
    if gathering {
        gather(db, &family, false);
    }
    compact(db, &family, &ranges);
}

/// Compacts everything that was deleted, as far as there is room for what that writes.
fn reclaim_all(db: &Db, replica: &Replica, space: &Space) {
    let family = replica.generation().family.clone();
    let room = space.free().unwrap_or(0) / ROOM_DIVISOR;
    let found = db.on_disk(&family);
    let live = found.blobs.saturating_sub(found.blob_garbage);
    let worth = found.blob_garbage >= BLOB_GARBAGE_MIN && live <= room;
    if worth != replica.deleted.lock().gathering && gather(db, &family, worth) {
        replica.deleted.lock().gathering = worth;
    }
    if found.tables > room {
        let ranges = replica.deleted.lock().take_ranges(0);
        return compact(db, &family, &ranges);
    }
    if replica.deleted.lock().take_whole() {
        let (start, end) = keys::everything();
        db.compact(&family, (&start, &end));
    }
}

fn compact(db: &Db, family: &Family, ranges: &[(Vec<u8>, Vec<u8>)]) {
    for (start, end) in ranges {
        db.compact(family, (start, end));
    }
}

fn gather(db: &Db, family: &Family, all: bool) -> bool {
    let set = db.gather_all_blobs(family, all);
    if let Err(error) = &set {
        tracing::warn!(%error, "garbage in blob files is not looked for");
    }
    set.is_ok()
}

/// Flushes the log's and the node's own rows, if much was logged since it was done last.
fn let_go_of_wal(disk: &Disk, flushed_at: &mut u64) -> Result<(), Error> {
    let written = disk.db.ticker("rocksdb.wal.bytes").unwrap_or(0);
    if written.saturating_sub(*flushed_at) < WAL_BYTES_MIN {
        return Ok(());
    }
    *flushed_at = written;
    [&disk.log, &disk.meta].into_iter().try_for_each(|family| disk.db.flush(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: u8) -> ([u8; 1], [u8; 1]) {
        ([from], [from + 1])
    }

    #[test]
    fn ranges_wait_until_enough_lies_under_them_and_then_go_together() {
        let mut deleted = Deleted::default();
        for from in [4, 2] {
            let (start, end) = range(from);
            deleted.add(&start, &end, 10);
        }
        assert!(deleted.take_ranges(21).is_empty());
        let expected = vec![(vec![2], vec![3]), (vec![4], vec![5])];
        assert_eq!(deleted.take_ranges(20), expected);
        assert!(deleted.take_ranges(1).is_empty());
        assert!(deleted.take_ranges(0).is_empty());
    }

    #[test]
    fn of_many_ranges_few_are_kept_and_all_are_covered() {
        let mut deleted = Deleted::default();
        for from in 0..200 {
            let (start, end) = range(from);
            deleted.add(&start, &end, 1);
        }
        let ranges = deleted.take_ranges(0);
        assert!(ranges.len() <= RANGES_MAX, "{}", ranges.len());
        for from in 0..200u8 {
            let covered = |(start, end): &(Vec<u8>, Vec<u8>)| start[0] <= from && from < end[0];
            assert!(ranges.iter().any(covered), "{from}");
        }
    }

    #[test]
    fn a_whole_replica_is_compacted_only_for_what_was_deleted_and_not_twice_at_once() {
        let mut deleted = Deleted::default();
        assert!(!deleted.take_whole(), "nothing was deleted");
        deleted.add_rows(1);
        assert!(deleted.take_whole());
        deleted.add_rows(1);
        assert!(!deleted.take_whole(), "it was done a moment ago");
        assert_eq!(deleted.rows, 1, "and is remembered for the next time");
    }
}
