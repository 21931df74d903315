//! The door to RocksDB: the only place that names it.
//!
//! Everything else speaks of families, rows and batches. Handles and pinned values carry the
//! database with them, so that none outlives it; that is what the `unsafe` here is for.
//! No meaning of a row is known here: that is `keys.rs`.

mod bulk;
mod compaction;
mod listener;
mod message;
mod mutation;
mod options;
mod pinned;
mod unread;

use std::fs::File;
use std::mem::ManuallyDrop;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::statistics::Ticker;
use rocksdb::{
    BoundColumnFamily, ColumnFamilyDescriptor, DB, DBPinnableSlice, ErrorKind, FlushOptions,
    Options, ReadOptions, ReadTier, Snapshot, WriteBatch, WriteOptions,
};

pub(crate) use bulk::{Rows, TableWriter};
pub(crate) use listener::Heard;
pub(crate) use mutation::Mutation;
pub(crate) use options::Recovery;
pub(crate) use pinned::{Block, Fetched, Pinned};
use unread::unopened;

use crate::config::Config;
use crate::damage::DamageLog;
use crate::error::Error;
use crate::ids::ReplicaId;
use crate::keys::{self, LOG_FAMILY, META_FAMILY};
use crate::space;

/// What a row is called that the database itself finds corrupt.
pub(crate) const DATABASE: &str = "database";

/// Bytes read ahead when many rows are walked.
const READAHEAD_BYTES: usize = 2 << 20;

/// An open database.
pub(crate) struct Db {
    rocks: DB,
    options: Options,
    memory: options::Memory,
    cached: ReadOptions,
    disk: ReadOptions,
    flushed: ReadOptions,
    writes: WriteOptions,
    unlogged: WriteOptions,
    damage: Arc<DamageLog>,
    heard: Arc<Heard>,
    /// Held as long as the database is open: released last.
    _lock: File,
}

/// A column family.
#[derive(Clone)]
pub(crate) struct Family(Arc<FamilyHandle>);

/// Whose rows a column family holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Log,
    Meta,
    /// A generation of a replica.
    Replica(ReplicaId, u64),
    Nobody,
}

struct FamilyHandle {
    owner: Owner,
    /// Before `_db`: a handle must go before its database does.
    handle: Arc<BoundColumnFamily<'static>>,
    name: String,
    _db: Arc<Db>,
}

/// How a database is opened.
pub(crate) struct Opening<'a> {
    pub config: &'a Config,
    /// Whether files are read and written past the page cache.
    pub direct_io: bool,
    pub recovery: Recovery,
    /// Whether it is opened though tables can't be: reading them then says so. The write-ahead log
    /// must have been checked before.
    pub tolerant: bool,
    /// Where lost rows that reads meet are reported.
    pub damage: Arc<DamageLog>,
}

/// Changes that become visible together.
#[derive(Default)]
pub(crate) struct Batch {
    writes: WriteBatch,
}

/// Where a read may look.
#[derive(Clone, Copy)]
pub(crate) enum Look<'a> {
    /// In memory alone.
    Cached,
    /// Wherever the row is.
    Disk,
    /// Wherever the row was when the view was taken.
    View(&'a View),
    /// The same; what comes from disk does not stay in memory.
    Passing(&'a View),
}

/// How rows are walked.
#[derive(Clone, Copy)]
pub(crate) enum Walk {
    /// A few: as they are found.
    Few,
    /// Many, all of them: read ahead.
    Ahead {
        /// They stay in the cache afterwards, and displace others.
        keep: bool,
    },
}

/// The database as it was at one moment.
pub(crate) struct View {
    reads: ReadOptions,
    passing: ReadOptions,
    snapshot: ManuallyDrop<Snapshot<'static>>,
    _db: Arc<Db>,
}

/// Is shown key and value of each row.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Error>;

/// Bytes that the database holds in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MemoryUse {
    pub cache_bytes: u64,
    pub cache_pinned_bytes: u64,
    pub memtable_bytes: u64,
}

impl Db {
    /// Opens the database in `dir`, or makes one. `lock` is held until it is closed. `Damaged`,
    /// naming the file, if one that the opening needs is.
    pub fn open(dir: &Path, opening: Opening<'_>, lock: File) -> Result<Arc<Self>, Error> {
        let (config, recovery, damage) = (opening.config, opening.recovery, opening.damage);
        let memory = options::Memory::new(config);
        let mut database = options::database(config, &memory, opening.direct_io, recovery);
        database.set_paranoid_checks(!opening.tolerant);
        if space::is_below(dir, config.disk_reserve_bytes) {
            options::keep_recovered_memtables(&mut database);
        }
        let heard = Arc::new(Heard::default());
        listener::listen(&mut database, &heard);
        let names = match dir.join("CURRENT").exists() {
            true => DB::list_cf(&Options::default(), dir).map_err(unopened)?,
            false => Vec::new(),
        };
        let fixed = [LOG_FAMILY, META_FAMILY].map(str::to_owned);
        let made = (!recovery.is_look()).then_some(fixed);
        let mut families: Vec<String> =
            names.into_iter().chain(made.into_iter().flatten()).collect();
        families.sort_unstable();
        families.dedup();
        let descriptors = families.into_iter().map(|name| {
            let options = match name.as_str() {
                LOG_FAMILY => options::log(&memory),
                META_FAMILY | "default" => options::meta(&memory),
                _ => options::replica(&memory),
            };
            ColumnFamilyDescriptor::new(name, options)
        });
        let rocks = match recovery.is_look() {
            true => DB::open_cf_descriptors_read_only(&database, dir, descriptors, false),
            false => DB::open_cf_descriptors(&database, dir, descriptors),
        };
        let rocks = rocks.map_err(unopened)?;
        let mut cached = ReadOptions::default();
        cached.set_read_tier(ReadTier::BlockCache);
        let mut writes = WriteOptions::default();
        // A replica may be dropped while writes for it are on their way.
        writes.set_ignore_missing_column_families(true);
        let mut unlogged = WriteOptions::default();
        unlogged.set_ignore_missing_column_families(true);
        unlogged.disable_wal(true);
        let mut flushed = ReadOptions::default();
        flushed.set_read_tier(ReadTier::Persisted);
        let (disk, options) = (ReadOptions::default(), database);
        let _lock = lock;
        let db = Db {
            rocks,
            options,
            memory,
            cached,
            disk,
            flushed,
            writes,
            unlogged,
            damage,
            heard,
            _lock,
        };
        Ok(Arc::new(db))
    }

    /// A column family that exists.
    pub fn family(self: &Arc<Self>, name: &str) -> Option<Family> {
        let handle = self.rocks.cf_handle(name)?;
        // SAFETY: the handle is used and dropped before the database, which rides along.
        let handle = unsafe {
            std::mem::transmute::<Arc<BoundColumnFamily<'_>>, Arc<BoundColumnFamily<'static>>>(
                handle,
            )
        };
        let owner = match (name, keys::parse_family(name)) {
            (LOG_FAMILY, _) => Owner::Log,
            (META_FAMILY, _) => Owner::Meta,
            (_, Some((replica, generation))) => Owner::Replica(replica, generation),
            (_, None) => Owner::Nobody,
        };
        let name = name.to_owned();
        Some(Family(Arc::new(FamilyHandle { owner, handle, name, _db: self.clone() })))
    }

    /// Makes a replica's column family.
    pub fn create_family(&self, name: &str) -> Result<(), Error> {
        let options = options::replica(&self.memory);
        self.rocks.create_cf(name, &options).map_err(|error| failed("create a replica", error))
    }

    /// Drops a column family with everything in it.
    pub fn drop_family(&self, name: &str) -> Result<(), Error> {
        self.rocks.drop_cf(name).map_err(|error| failed("drop a replica", error))
    }

    /// The names of all column families.
    pub fn family_names(&self, dir: &Path) -> Result<Vec<String>, Error> {
        DB::list_cf(&Options::default(), dir).map_err(|error| failed("list replicas", error))
    }

    /// One row.
    pub fn get(
        self: &Arc<Self>,
        family: &Family,
        key: &[u8],
        look: Look<'_>,
    ) -> Result<Fetched, Error> {
        let reads = match look {
            Look::Cached => &self.cached,
            Look::Disk => &self.disk,
            Look::View(view) => &view.reads,
            Look::Passing(view) => &view.passing,
        };
        match self.rocks.get_pinned_cf_opt(&family.0.handle, key, reads) {
            Ok(None) => Ok(Fetched::Absent),
            Ok(Some(slice)) => {
                // SAFETY: the slice's lifetime is that of the database, which rides along.
                let slice = unsafe {
                    std::mem::transmute::<DBPinnableSlice<'_>, DBPinnableSlice<'static>>(slice)
                };
                let block = Block { slice: ManuallyDrop::new(slice), _db: self.clone() };
                Ok(Fetched::Found(Pinned::Block(block)))
            }
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(Fetched::NeedsDisk),
            Err(error) => Err(self.unread("read", family, key, error)),
        }
    }

    /// One row, wherever it is.
    pub fn fetch(self: &Arc<Self>, family: &Family, key: &[u8]) -> Result<Option<Bytes>, Error> {
        match self.get(family, key, Look::Disk)? {
            Fetched::Found(pinned) => Ok(Some(pinned.into_bytes())),
            Fetched::Absent | Fetched::NeedsDisk => Ok(None),
        }
    }

    /// A row that [`Db::write_unlogged`] alone writes, as it would be found after a crash.
    ///
    /// As long as nothing was written unlogged since the database was opened, RocksDB looks into
    /// memtables too; they then hold logged rows alone.
    pub fn fetch_flushed(&self, family: &Family, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let row = self.rocks.get_cf_opt(&family.0.handle, key, &self.flushed);
        row.map(|row| row.map(Bytes::from)).map_err(|error| self.unread("read", family, key, error))
    }

    /// Walks the rows of a range in order until told to stop.
    pub fn walk(
        &self,
        family: &Family,
        range: (Vec<u8>, Vec<u8>),
        walk: Walk,
        visit: Visit<'_>,
    ) -> Result<(), Error> {
        self.walk_at(Look::Disk, family, range, walk, visit)
    }

    /// As [`Db::walk`], of the rows as a look sees them. A cached look is one at the disk.
    pub fn walk_at(
        &self,
        look: Look<'_>,
        family: &Family,
        (start, end): (Vec<u8>, Vec<u8>),
        walk: Walk,
        visit: Visit<'_>,
    ) -> Result<(), Error> {
        let mut reads = ReadOptions::default();
        if let Look::View(view) | Look::Passing(view) = look {
            reads.set_snapshot(&*view.snapshot);
        }
        reads.set_iterate_lower_bound(start.as_slice());
        reads.set_iterate_upper_bound(end);
        if let Walk::Ahead { keep } = walk {
            reads.fill_cache(keep);
            reads.set_readahead_size(READAHEAD_BYTES);
        }
        let mut rows = self.rocks.raw_iterator_cf_opt(&family.0.handle, reads);
        rows.seek_to_first();
        while let Some((key, value)) = rows.item() {
            if visit(key, value)?.is_break() {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|error| self.unread("walk rows", family, &start, error))
    }

    /// The last row of a range.
    pub fn last_row(
        &self,
        family: &Family,
        (start, end): (Vec<u8>, Vec<u8>),
    ) -> Result<Option<(Vec<u8>, Bytes)>, Error> {
        let mut reads = ReadOptions::default();
        reads.set_iterate_lower_bound(start.as_slice());
        reads.set_iterate_upper_bound(end);
        let mut rows = self.rocks.raw_iterator_cf_opt(&family.0.handle, reads);
        rows.seek_to_last();
        let found = rows.item().map(|(key, value)| (key.to_vec(), Bytes::copy_from_slice(value)));
        rows.status().map_err(|error| self.unread("walk rows", family, &start, error))?;
        Ok(found)
    }

    /// The database as it is now.
    pub fn view(self: &Arc<Self>) -> View {
        let snapshot = self.rocks.snapshot();
        let (mut reads, mut passing) = (ReadOptions::default(), ReadOptions::default());
        reads.set_snapshot(&snapshot);
        passing.set_snapshot(&snapshot);
        passing.fill_cache(false);
        // SAFETY: the snapshot is released before the database, which rides along.
        let snapshot = unsafe { std::mem::transmute::<Snapshot<'_>, Snapshot<'static>>(snapshot) };
        View { reads, passing, snapshot: ManuallyDrop::new(snapshot), _db: self.clone() }
    }

    /// Writes a batch to the log and memory, not synced.
    pub fn write(&self, batch: Batch) -> Result<(), Error> {
        self.rocks.write_opt(batch.writes, &self.writes).map_err(|error| failed("write", error))
    }

    /// Writes a batch to memory alone: gone after a crash, unless its families were flushed. A
    /// family's batches are flushed in order and each as a whole.
    pub fn write_unlogged(&self, batch: Batch) -> Result<(), Error> {
        self.rocks.write_opt(batch.writes, &self.unlogged).map_err(|error| failed("write", error))
    }

    /// Syncs what was written so far. Not a synced write: that would make writers wait for it.
    pub fn sync(&self) -> Result<(), Error> {
        self.rocks.flush_wal(true).map_err(|error| failed("sync", error))
    }

    /// Writes a family's memtables to files, synced. Rows that were logged before one of these
    /// rows are synced too, in whatever family they are.
    pub fn flush(&self, family: &Family) -> Result<(), Error> {
        // Waits by default.
        let options = FlushOptions::default();
        self.rocks.flush_cf_opt(&family.0.handle, &options).map_err(|error| failed("flush", error))
    }

    /// Stops flushes and compactions, and waits for those under way.
    pub fn stop_background_work(&self) {
        self.rocks.cancel_all_background_work(true);
    }

    /// Fails the writes that wait for a flush or compaction, and those that would from now on.
    pub fn fail_waiting_writes(&self) {
        self.rocks.cancel_all_background_work(false);
    }

    /// Has the cache keep so many bytes of blocks from now on.
    pub fn set_block_cache_bytes(&self, bytes: usize) {
        self.memory.set_block_cache_bytes(bytes);
    }

    /// Whether flushes fall behind what is written.
    pub fn is_behind(&self) -> bool {
        self.memory.memtables_are_behind()
    }

    pub fn memory_use(&self) -> MemoryUse {
        MemoryUse {
            cache_bytes: self.memory.cache.get_usage() as u64,
            cache_pinned_bytes: self.memory.cache.get_pinned_usage() as u64,
            memtable_bytes: self.memory.memtables.get_usage() as u64,
        }
    }

    /// A property of the whole database, or of one column family.
    pub fn property(&self, family: Option<&Family>, name: &str) -> Option<String> {
        let found = match family {
            None => self.rocks.property_value(name),
            Some(family) => self.rocks.property_value_cf(&family.0.handle, name),
        };
        found.ok().flatten()
    }

    /// A counter of the database by RocksDB's name for it.
    pub fn ticker(&self, name: &str) -> Option<u64> {
        let ticker: Ticker = name.parse().ok()?;
        Some(self.options.get_ticker_count(ticker))
    }
}

impl Batch {
    pub fn put(&mut self, family: &Family, key: &[u8], value: &[u8]) {
        self.writes.put_cf(&family.0.handle, key, value);
    }

    pub fn delete(&mut self, family: &Family, key: &[u8]) {
        self.writes.delete_cf(&family.0.handle, key);
    }

    pub fn delete_range(&mut self, family: &Family, start: &[u8], end: &[u8]) {
        self.writes.delete_range_cf(&family.0.handle, start, end);
    }

    pub fn add(&mut self, mutation: &Mutation) {
        match mutation {
            Mutation::Put { family, key, value } => self.put(family, key, value),
            Mutation::Delete { family, key } => self.delete(family, key),
            Mutation::DeleteRange { family, start, end } => self.delete_range(family, start, end),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

impl Family {
    /// Whose rows the family holds.
    pub fn owner(&self) -> Owner {
        self.0.owner
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: dropped here alone, once, and before the database.
        unsafe { ManuallyDrop::drop(&mut self.snapshot) }
    }
}

fn failed(what: &'static str, error: rocksdb::Error) -> Error {
    match error.kind() {
        ErrorKind::Corruption => Error::corrupt(DATABASE, error),
        _ => Error::io(what, error),
    }
}
