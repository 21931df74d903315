//! A node's disk, open: replicas, their logs, shards and readers, and the node's own facts.
//!
//! The front door. Opening takes the directory, opens the database, drops what an interrupted
//! `create_replica` or `drop_replica` left, and starts the commit and read threads.

mod damaged;
mod facts;
mod replicas;

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::batch::ApplyBatch;
use crate::cache::RecordCache;
use crate::commit::{Books, Commit};
use crate::config::Config;
use crate::damage::{DamageLog, DamagePolicy};
use crate::directory::Directory;
use crate::disk::{Disk, Replica};
use crate::error::{Error, ReplicaProblem};
use crate::export::Export;
use crate::facts::{FactsFile, read as read_facts};
use crate::failure::{Failure, FailureHook};
use crate::ids::{CollectionId, ReplicaId};
use crate::keys;
use crate::ledger::Ledger;
use crate::log::Log;
use crate::opening;
use crate::plan::CachePlan;
use crate::pool::ReadPool;
use crate::read::Reader;
use crate::receive::Incoming;
use crate::reclaim::Reclaimer;
use crate::scrub::{Pace, Scrub, ScrubReport};
use crate::set_aside::set_aside;
use crate::shard::Shard;
use crate::space::{DiskLevel, Space};
use crate::stats::{MemoryStats, Stats, WrittenStats};
use crate::tables;
use crate::watch::Watch;
use crate::witness::Witness;

/// Time between two looks at whether a database is closed.
const CLOSE_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A node's disk. Cheap to clone. The directory is free again after [`Store::close`], when every
/// clone, every handle made from it and every `Bytes` read through it is gone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) disk: Arc<Disk>,
    pool: Arc<ReadPool>,
    stream_pool: Arc<ReadPool>,
    space: Arc<Space>,
    reclaimer: Reclaimer,
    id: [u8; 16],
    pub(crate) database: PathBuf,
    policy: PathBuf,
    facts: FactsFile,
    /// Where damaged files are kept.
    aside: PathBuf,
    config: Config,
    incoming: PathBuf,
    receiving: AtomicU64,
}

impl Store {
    /// Opens the store in a directory, or makes one in an empty or missing directory. Blocks.
    ///
    /// `Damaged` if acknowledged rows are lost and no other node is known to hold them. If one is,
    /// a database that can't be opened at all is set aside, and the store has no replicas: see
    /// [`Store::was_set_aside`].
    pub fn open(dir: impl AsRef<Path>, config: Config) -> Result<Store, Error> {
        let directory = Directory::open(dir.as_ref())?;
        let damages = match Store::open_database(&directory, config.clone()) {
            Err(Error::Damaged { damages }) => damages,
            opened => return opened,
        };
        let elsewhere = DamagePolicy::read(&directory.policy) == DamagePolicy::Quarantine;
        if !elsewhere || read_facts(&directory.facts)?.is_none() {
            return Err(Error::Damaged { damages });
        }
        let kept = set_aside(&directory)?;
        tracing::error!(
            target: "audit",
            kept = %kept.display(),
            "a database that can't be opened was set aside: its replicas are to be rebuilt"
        );
        let store = Store::open_database(&directory, config)?;
        damages.iter().for_each(|damage| store.report_damage(damage));
        Ok(store)
    }

    fn open_database(directory: &Directory, config: Config) -> Result<Store, Error> {
        let damage = Arc::<DamageLog>::default();
        let opened = opening::open(directory, &config, &damage)?;
        let restored = opened.restore_families()?;
        let db = opened.db;
        let missing = |what| Error::corrupt("database", format!("it has no family {what:?}"));
        let log = db.family(keys::LOG_FAMILY).ok_or(missing(keys::LOG_FAMILY))?;
        let meta = db.family(keys::META_FAMILY).ok_or(missing(keys::META_FAMILY))?;
        let failure = Arc::new(Failure::default());
        let held = Ledger { commit: opened.held_commit, ..opened.ledger.clone() };
        let witness = Witness::start(directory.synced.clone(), &held, failure.clone())?;
        let (ledger, synced) = (opened.ledger, opened.held_commit);
        let books = Books { ledger, witness, meta: meta.clone(), synced };
        let disk = Arc::new(Disk {
            commit: Commit::start(db.clone(), failure.clone(), &config, books)?,
            watch: Watch::start(db.clone(), failure.clone())?,
            db,
            log,
            meta,
            failure,
            damage,
            cache: RecordCache::new(config.state_cache_bytes),
            replicas: RwLock::new(BTreeMap::new()),
            tail_bytes: AtomicU64::new(0),
            tail_bytes_max: config.log_tail_bytes_max as u64,
            kept_used: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            changing: Mutex::new(()),
            commands_applied: AtomicU64::new(0),
            payload_applied_bytes: AtomicU64::new(0),
            scrub_bytes: AtomicU64::new(0),
            scrubs_finished: AtomicU64::new(0),
        });
        let pool = Arc::new(ReadPool::new("read", config.read_threads, config.read_queue_max));
        let (threads, queue_max) = (config.stream_threads, config.stream_queue_max);
        let stream_pool = Arc::new(ReadPool::new("stream", threads, queue_max));
        let (reserve, freeing) = (config.disk_reserve_bytes, config.disk_freeing_reserve_bytes);
        let dir = directory.database.parent().unwrap_or(Path::new("."));
        let space = Arc::new(Space::new(dir, reserve, freeing));
        let reclaimer = Reclaimer::start(&disk, space.clone())?;
        let inner = Inner {
            disk,
            pool,
            stream_pool,
            space,
            reclaimer,
            id: directory.store_id,
            database: directory.database.clone(),
            policy: directory.policy.clone(),
            facts: FactsFile::new(directory.facts.clone()),
            aside: directory.aside.clone(),
            config,
            incoming: directory.incoming.clone(),
            receiving: AtomicU64::new(0),
        };
        opened.damages.iter().for_each(|damage| inner.disk.damage.report(damage));
        let opened = inner
            .check_identity()
            .and_then(|()| inner.restore(&restored))
            .and_then(|()| inner.open_replicas(&opened.quarantined))
            .and_then(|()| inner.facts.copy(&inner.disk));
        match opened {
            Ok(()) => Ok(Store { inner: Arc::new(inner) }),
            Err(error) => Err(inner.fail(error)),
        }
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The directory that it was opened in.
    pub fn dir(&self) -> &Path {
        self.inner.database.parent().expect("the database is a folder of the store's directory")
    }

    /// Which store this is: random, made with it.
    pub fn id(&self) -> [u8; 16] {
        self.inner.id
    }

    /// The replicas, in order.
    pub fn replicas(&self) -> Vec<ReplicaId> {
        self.inner.disk.replicas.read().keys().copied().collect()
    }

    /// A replica's log.
    pub fn log(&self, id: ReplicaId) -> Result<Log, Error> {
        Ok(Log::new(self.inner.disk.clone(), self.inner.whole(id)?))
    }

    /// A replica's state machine; one owner at a time.
    pub fn shard(&self, id: ReplicaId) -> Result<Shard, Error> {
        let replica = self.inner.whole(id)?;
        if replica.taken.swap(true, Ordering::AcqRel) {
            return Err(Error::Replica { replica: id, problem: ReplicaProblem::Taken });
        }
        Ok(Shard::new(self.inner.disk.clone(), replica))
    }

    /// A reader of a replica.
    pub fn reader(&self, id: ReplicaId) -> Result<Reader, Error> {
        let replica = self.inner.whole(id)?;
        Ok(Reader::new(self.inner.disk.clone(), replica, self.inner.config.block_cache_bytes))
    }

    /// Threads for reads that wait for the disk.
    pub fn read_pool(&self) -> &Arc<ReadPool> {
        &self.inner.pool
    }

    /// Threads that read long stretches piece by piece ([`crate::FieldStream`]).
    pub fn stream_pool(&self) -> &Arc<ReadPool> {
        &self.inner.stream_pool
    }

    /// An empty batch for shards to apply entries to.
    pub fn apply_batch(&self) -> ApplyBatch {
        ApplyBatch::new(self.inner.disk.clone())
    }

    /// A consistent view of a replica as of its last applied entry, to send away. Holds up
    /// compaction, and keeps replaced rows on disk, until it is dropped.
    pub fn export(&self, id: ReplicaId) -> Result<Export, Error> {
        Export::new(&self.inner.disk, &*self.inner.whole(id)?)
    }

    /// Room for a view that comes in for a replica that exists here. Dropped, or when the
    /// process ends, it leaves nothing behind.
    pub fn receive(&self, id: ReplicaId) -> Result<Incoming, Error> {
        self.inner.whole(id)?;
        let number = self.inner.receiving.fetch_add(1, Ordering::Relaxed);
        let dir = self.inner.incoming.join(format!("{id}-{number}"));
        Incoming::new(self.inner.disk.clone(), id, dir)
    }

    /// Writes what some replicas have applied to files, so that their logs can be purged: see
    /// [`crate::Log::flushed`]. Blocks; other threads go on. Replicas that do not exist or are in
    /// quarantine are left out.
    pub fn flush(&self, ids: &[ReplicaId]) -> Result<(), Error> {
        let disk = &self.inner.disk;
        for id in ids {
            disk.check()?;
            let Ok(replica) = self.inner.whole(*id) else { continue };
            // Before: what is freed meanwhile may miss this flush.
            replica.freed_bytes.store(0, Ordering::Relaxed);
            if let Err(error) = disk.db.flush(&replica.generation().family)
                && replica.check().is_ok()
            {
                return Err(disk.failure.raise(&error));
            }
            replica.flushed(&disk.db)?;
        }
        Ok(())
    }

    /// Refuses when less than the reserve is free on the disk. That there is enough is asked at
    /// most every 50 ms. Call it before a write is admitted; nothing below does.
    pub fn check_space(&self) -> Result<(), Error> {
        self.inner.space.check()
    }

    /// Refuses when less than the freeing reserve is free on the disk: for writes that give space
    /// back, see [`crate::Command::frees`]. That there is enough is asked at most every 50 ms.
    pub fn check_space_to_free(&self) -> Result<(), Error> {
        self.inner.space.check_freeing()
    }

    /// Returns how full the disk is, by its two reserves. That there is enough is asked at most
    /// every 50 ms.
    pub fn disk_level(&self) -> DiskLevel {
        self.inner.space.level()
    }

    /// Whether the disk comes near the reserve: space should be given back at once.
    pub fn is_short_of_space(&self) -> bool {
        self.inner.space.is_short()
    }

    /// The failure that stopped the store, if one did.
    pub fn failure(&self) -> Option<Error> {
        self.inner.disk.failure.get()
    }

    /// Calls the hook once when a write or sync fails: at once if one has. It must not block.
    pub fn on_failure(&self, hook: FailureHook) {
        self.inner.disk.failure.on_failure(hook);
    }

    /// Reads everything that the store has once and reports the damage it finds. `pace` is told of
    /// each piece read: it may wait, and it may end the scrub. Blocks.
    pub fn scrub(&self, pace: Pace<'_>) -> Result<ScrubReport, Error> {
        Scrub::new(&self.inner.disk, &self.inner.database, pace).run()
    }

    /// Returns the bytes that a scrub would read now, before decompression.
    pub fn scrub_bytes(&self) -> Result<u64, Error> {
        Scrub::new(&self.inner.disk, &self.inner.database, &mut |_| ControlFlow::Break(())).bytes()
    }

    /// Figures as of now.
    pub fn stats(&self) -> Stats {
        let disk = &self.inner.disk;
        let (shared, pinned) = disk.cache.stats();
        Stats {
            commit: disk.commit.stats(),
            memory: self.memory(),
            state_cache_hits: shared.hits + pinned.hits,
            state_cache_misses: shared.misses + pinned.misses,
            state_cache_pinned_hits: pinned.hits,
            state_cache_pinned_misses: pinned.misses,
            replicas: disk.replicas.read().len(),
            reads_waiting: self.inner.pool.waiting(),
            commands_applied: disk.commands_applied.load(Ordering::Relaxed),
            payload_applied_bytes: disk.payload_applied_bytes.load(Ordering::Relaxed),
            written: WrittenStats::of(|name| disk.db.ticker(name)),
            disk_free_bytes: self.inner.space.free().ok(),
            damages: disk.damage.reported(),
            scrub_bytes: disk.scrub_bytes.load(Ordering::Relaxed),
            scrubs_finished: disk.scrubs_finished.load(Ordering::Relaxed),
        }
    }

    /// What is held in memory now.
    pub fn memory(&self) -> MemoryStats {
        let disk = &self.inner.disk;
        let memory = disk.db.memory_use();
        let (shared, pinned) = disk.cache.stats();
        MemoryStats {
            block_cache_bytes: memory.cache_bytes,
            block_cache_pinned_bytes: memory.cache_pinned_bytes,
            state_cache_bytes: shared.bytes + pinned.bytes,
            state_cache_pinned_bytes: pinned.bytes,
            memtable_bytes: memory.memtable_bytes,
            log_tail_bytes: disk.tail_bytes.load(Ordering::Relaxed),
        }
    }

    /// Has the block cache keep so many bytes from now on: fewer than configured, to make room
    /// for something else, or as many again. What is too much goes as other blocks come.
    pub fn set_block_cache_bytes(&self, bytes: usize) {
        self.inner.disk.db.set_block_cache_bytes(bytes);
    }

    /// Keeps the decoded states of these collections in a part of the cache of their own, which no
    /// others evict, and those of no other collections. The store knows no catalog: whoever
    /// follows it says so.
    pub fn pin(&self, collections: &HashSet<CollectionId>) {
        self.inner.disk.cache.pin(collections);
    }

    /// What the cache of decoded states does, and what it would do if it had another size.
    pub fn cache_plan(&self) -> Vec<CachePlan> {
        CachePlan::of(&self.inner.disk.cache)
    }

    /// A counter of RocksDB by its name, such as `rocksdb.block.cache.hit`.
    pub fn ticker(&self, name: &str) -> Option<u64> {
        self.inner.disk.db.ticker(name)
    }

    /// A property of RocksDB by its name, such as `rocksdb.estimate-pending-compaction-bytes`;
    /// of one replica, or of the whole database where it has one.
    pub fn property(&self, replica: Option<ReplicaId>, name: &str) -> Option<String> {
        let disk = &self.inner.disk;
        match replica {
            None => disk.db.property(None, name),
            Some(id) => {
                let replica = disk.replicas.read().get(&id).cloned()?;
                disk.db.property(Some(&replica.generation().family), name)
            }
        }
    }

    /// Stops: refuses new jobs, batches and pooled reads, does what waits, writes memtables to
    /// files, syncs, and ends the threads. Blocks. After it a start replays nothing. Once: again
    /// does nothing.
    pub fn close(&self) -> Result<(), Error> {
        let disk = &self.inner.disk;
        let _changing = self.inner.disk.changing.lock();
        if disk.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.inner.pool.close();
        self.inner.stream_pool.close();
        disk.commit.close();
        let flushed = disk.failure.check().and_then(|()| {
            let replicas: Vec<_> = disk.replicas.read().values().cloned().collect();
            disk.db.sync()?;
            replicas.iter().try_for_each(|replica| disk.db.flush(&replica.generation().family))?;
            [&disk.log, &disk.meta].into_iter().try_for_each(|family| disk.db.flush(family))
        });
        let claimed = disk.commit.close_books(flushed.is_ok());
        disk.watch.close();
        disk.db.stop_background_work();
        self.inner.reclaimer.close();
        flushed.and(claimed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reclaimer.close();
    }
}

impl Inner {
    /// Closes what an opening that failed has opened. Returns its error when the database is
    /// closed: its files may be moved then.
    fn fail(self, error: Error) -> Error {
        self.disk.commit.close();
        let _ = self.disk.commit.close_books(false);
        self.disk.watch.close();
        self.disk.closed.store(true, Ordering::Release);
        self.reclaimer.close();
        let error = tables::as_damage(error, &self.disk.damage);
        let db = Arc::downgrade(&self.disk.db);
        drop(self);
        // Threads that were told to end let go of it as they do.
        while db.strong_count() > 0 {
            std::thread::sleep(CLOSE_POLL_INTERVAL);
        }
        error
    }

    fn replica(&self, id: ReplicaId) -> Result<Arc<Replica>, Error> {
        self.disk.replicas.read().get(&id).cloned().ok_or(Error::missing(id))
    }

    /// A replica that is not in quarantine.
    fn whole(&self, id: ReplicaId) -> Result<Arc<Replica>, Error> {
        let replica = self.replica(id)?;
        replica.check()?;
        Ok(replica)
    }
}
