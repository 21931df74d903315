//! What all parts of an open store share: the database, the commit thread, the replicas.
//!
//! Inner to the crate: users hold a `Store`, and through it logs, shards and readers, which
//! each hold one of these and one replica.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::applied::Applied;
use crate::cache::{RecordCache, Space};
use crate::codec::{Malformed, Scanner, Writer};
use crate::commit::Commit;
use crate::damage::{Damage, DamageLog};
use crate::db::{DATABASE, Db, Family};
use crate::error::Error;
use crate::failure::Failure;
use crate::garbage;
use crate::ids::{EntryId, ReplicaId};
use crate::keys;
use crate::reclaim::Deleted;
use crate::sums::Sums;
use crate::tail::LogState;
use crate::unflushed::Unflushed;
use crate::usage;
use crate::watch::Watch;

/// The newest format of a replica's descriptor.
const DESCRIPTOR_FORMAT: u8 = 2;

/// An open store's parts.
pub(crate) struct Disk {
    pub db: Arc<Db>,
    pub log: Family,
    pub meta: Family,
    pub commit: Commit,
    pub failure: Arc<Failure>,
    pub damage: Arc<DamageLog>,
    pub watch: Watch,
    pub cache: RecordCache,
    pub replicas: RwLock<BTreeMap<ReplicaId, Arc<Replica>>>,
    /// Bytes of entries in the tails of all logs.
    pub tail_bytes: AtomicU64,
    pub tail_bytes_max: u64,
    pub commands_applied: AtomicU64,
    pub payload_applied_bytes: AtomicU64,
    /// Records that apply took from memory.
    pub kept_used: AtomicU64,
    pub scrub_bytes: AtomicU64,
    pub scrubs_finished: AtomicU64,
    pub closed: AtomicBool,
    /// One replica is made, dropped or replaced at a time.
    pub changing: Mutex<()>,
}

impl Disk {
    /// Refuses if the store is closed or its disk has failed.
    pub fn check(&self) -> Result<(), Error> {
        self.failure.check()?;
        match self.closed.load(Ordering::Acquire) {
            true => Err(Error::io("write", "the store is closed")),
            false => Ok(()),
        }
    }

    /// Reports a replica's row that makes no sense as damage. The database has reported its own.
    pub fn seen<T>(&self, replica: ReplicaId, read: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Corrupt { what, detail }) = &read
            && *what != DATABASE
        {
            let (file, offset, detail) = (None, None, format!("corrupt {what}: {detail}"));
            self.damage.report(&Damage { replica: Some(replica), file, offset, detail });
        }
        read
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Joined: a thread that closes the database while the process exits would use what RocksDB
        // has destroyed by then.
        self.commit.close();
        self.commit.stop_books();
        self.watch.close();
    }
}

/// Where a replica's rows are. Installing a view replaces it as a whole; who holds the old one
/// goes on reading it.
#[derive(Clone)]
pub(crate) struct Generation {
    pub number: u64,
    pub family: Family,
    /// Where its records are kept in memory.
    pub space: Space,
}

/// One replica's state in memory.
pub(crate) struct Replica {
    pub id: ReplicaId,
    /// Replaced under the lock of `log`.
    generation: ArcSwap<Generation>,
    /// The number of the next generation: none is used twice.
    next_generation: AtomicU64,
    pub log: Mutex<LogState>,
    /// Through which index the log is purged for certain; apply may delete the chunks of those
    /// entries. Follows `log.purged` when the purge is written.
    pub purged: AtomicU64,
    pub applied: Mutex<Applied>,
    /// A sum over what is applied.
    pub sums: Mutex<Sums>,
    /// The same as in `applied`, for readers.
    pub applied_index: AtomicU64,
    pub time_ms: AtomicU64,
    /// No garbage row has a release index below, and no expiry row a time below: where walks
    /// begin, so that they do not cross what earlier ones have deleted.
    pub garbage_from: AtomicU64,
    pub expiries_from_ms: AtomicU64,
    /// Somebody holds the replica's `Shard`.
    pub taken: AtomicBool,
    pub dropped: AtomicBool,
    /// It has lost acknowledged rows: nothing is read from it or written to it any more.
    pub quarantined: AtomicBool,
    /// What was applied since the last flush that we know of.
    pub unflushed: Mutex<Unflushed>,
    /// Bytes of chunks that purges have deleted since the last flush that we know of.
    pub freed_bytes: AtomicU64,
    /// About how many bytes of chunks wait for the log to be purged.
    pub garbage_bytes: AtomicU64,
    /// What was deleted and may still lie on disk.
    pub deleted: Mutex<Deleted>,
}

impl Replica {
    /// Reads what the disk says of a replica.
    pub fn open(
        db: &Arc<Db>,
        (log, meta): (&Family, &Family),
        id: ReplicaId,
        space: Space,
    ) -> Result<Replica, Error> {
        let number = match db.fetch(meta, &keys::descriptor(id))? {
            None => 0,
            Some(row) => decode_descriptor(row)?,
        };
        let family = db
            .family(&keys::family(id, number))
            .ok_or_else(|| Error::corrupt("replica", format!("{id} has no column family")))?;
        usage::ensure(db, &family)?;
        let applied = decode_applied(db.fetch(&family, keys::APPLIED)?)?;
        let garbage_bytes = garbage::waiting(db, &family)?;
        let sums = Sums::open(db.fetch(&family, keys::SUMS)?, applied.id.index)
            .map_err(|error| Error::corrupt("row of sums", error))?;
        let purged = match db.fetch(meta, &keys::purged(id))? {
            None => EntryId::default(),
            Some(row) => decode_purged(&row)?,
        };
        let vote = db.fetch(meta, &keys::vote(id))?;
        let last = last_entry(db, log, id)?.filter(|last| last.index > purged.index);
        let log = LogState::open(last.unwrap_or(purged), purged, vote);
        let generation = Generation { number, family, space };
        let garbage_bytes = AtomicU64::new(garbage_bytes);
        let sums = Mutex::new(sums);
        Ok(Replica { garbage_bytes, sums, ..Replica::with(id, generation, applied, log) })
    }

    fn with(id: ReplicaId, generation: Generation, applied: Applied, log: LogState) -> Replica {
        Replica {
            id,
            next_generation: AtomicU64::new(generation.number + 1),
            generation: ArcSwap::from_pointee(generation),
            purged: AtomicU64::new(log.purged.index),
            log: Mutex::new(log),
            sums: Mutex::new(Sums::since(applied.id.index)),
            applied_index: AtomicU64::new(applied.id.index),
            time_ms: AtomicU64::new(applied.time_ms),
            applied: Mutex::new(applied),
            garbage_from: AtomicU64::new(0),
            expiries_from_ms: AtomicU64::new(0),
            taken: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
            quarantined: AtomicBool::new(false),
            unflushed: Mutex::default(),
            freed_bytes: AtomicU64::new(0),
            garbage_bytes: AtomicU64::new(0),
            deleted: Mutex::new(Deleted::unknown()),
        }
    }

    /// A replica in quarantine, of which nothing is read: it can be dropped.
    pub fn hollow(id: ReplicaId, number: u64, family: Family, space: Space) -> Replica {
        let log = LogState::open(EntryId::default(), EntryId::default(), None);
        let generation = Generation { number, family, space };
        let replica = Replica::with(id, generation, Applied::default(), log);
        replica.quarantined.store(true, Ordering::Release);
        replica
    }

    /// Where the replica's rows are now.
    pub fn generation(&self) -> Guard<Arc<Generation>> {
        self.generation.load()
    }

    /// Puts another generation in its place. The caller holds the log.
    pub fn replace_generation(&self, generation: Generation) -> Arc<Generation> {
        self.generation.swap(Arc::new(generation))
    }

    /// The number of a new generation.
    pub fn next_generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Ordering::Relaxed)
    }

    /// The last entry that would be applied after a crash: its changes are in files.
    pub fn flushed(&self, db: &Db) -> Result<EntryId, Error> {
        let row = db.fetch_flushed(&self.generation().family, keys::APPLIED)?;
        let flushed = decode_applied(row)?.id;
        self.unflushed.lock().settle(flushed.index);
        Ok(flushed)
    }

    /// Refuses if the replica was dropped or is quarantined.
    pub fn check(&self) -> Result<(), Error> {
        if self.dropped.load(Ordering::Acquire) {
            return Err(Error::missing(self.id));
        }
        match self.quarantined.load(Ordering::Acquire) {
            true => Err(Error::quarantined(self.id)),
            false => Ok(()),
        }
    }

    /// Makes visible what a written batch has applied.
    pub fn publish(&self, applied: Applied) {
        self.time_ms.store(applied.time_ms, Ordering::Release);
        self.applied_index.store(applied.id.index, Ordering::Release);
        *self.applied.lock() = applied;
    }
}

pub(crate) fn decode_applied(row: Option<Bytes>) -> Result<Applied, Error> {
    match row {
        None => Ok(Applied::default()),
        Some(row) => Applied::decode(row).map_err(|error| Error::corrupt("applied row", error)),
    }
}

pub(crate) fn last_entry(
    db: &Arc<Db>,
    log: &Family,
    id: ReplicaId,
) -> Result<Option<EntryId>, Error> {
    let range = (keys::entry(id, 0), keys::entry(id, u64::MAX));
    let Some((_, row)) = db.last_row(log, range)? else { return Ok(None) };
    crate::encoding::id_of_row(&row).map(Some).map_err(|e| Error::corrupt("log row", e))
}

/// The value of a `replica/` row: of the first format as long as that says everything.
pub(crate) fn encode_descriptor(generation: u64) -> Bytes {
    let mut out = Writer::default();
    match generation {
        0 => out.u8(1),
        _ => {
            out.u8(DESCRIPTOR_FORMAT);
            out.u64(generation);
        }
    }
    out.into_vec().into()
}

/// The generation that a `replica/` row names.
pub(crate) fn decode_descriptor(row: Bytes) -> Result<u64, Error> {
    let (found, supported) = (row.first().copied().unwrap_or_default(), DESCRIPTOR_FORMAT);
    if found > supported {
        let (found, supported) = (u32::from(found), u32::from(supported));
        return Err(Error::NewerFormat { found, supported });
    }
    let read = |row| {
        let mut scan = Scanner::new(row);
        let generation = match scan.format(DESCRIPTOR_FORMAT)? {
            1 => 0,
            _ => scan.u64("a generation")?,
        };
        scan.finish()?;
        Ok(generation)
    };
    read(row).map_err(|error: Malformed| Error::corrupt("replica's descriptor", error))
}

/// The value of a `purged/` row.
pub(crate) fn encode_purged(id: EntryId) -> Bytes {
    Bytes::from([id.index.to_le_bytes(), id.term.to_le_bytes()].concat())
}

pub(crate) fn decode_purged(row: &[u8]) -> Result<EntryId, Error> {
    let (index, term) = row
        .split_first_chunk::<8>()
        .and_then(|(index, term)| Some((index, term.try_into().ok()?)))
        .ok_or_else(|| Error::corrupt("purged row", "expected 16 bytes"))?;
    Ok(EntryId { index: u64::from_le_bytes(*index), term: u64::from_le_bytes(term) })
}
