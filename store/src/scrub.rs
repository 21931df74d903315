//! The scrub: reads everything that a store has once, so that damage is found before it is needed.
//!
//! Two passes. The first reads the live files off the disk, past all caches, and compares each with
//! the checksum that it was written with: that finds every changed byte, and says nothing of what
//! should be there and is not. The second reads what a caller could ask for: every record with the
//! chunks it lists, and every entry of the logs with its payloads. What is found is reported as
//! damage of the replicas whose it is, and reading goes on.
//!
//! Knows no clock: whoever calls it waits between pieces, as long as it likes.

use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::applied::Applied;
use crate::blob;
use crate::damage::Damage;
use crate::db::{Fetched, Look, View, Walk};
use crate::disk::{Disk, Replica};
use crate::error::Error;
use crate::extent::chunks_of;
use crate::files::{self, LiveFile, Manifest, Reading};
use crate::garbage::Garbage;
use crate::keys;
use crate::log::Log;
use crate::record::Record;
use crate::sums::Sums;
use crate::tables::blamed;

/// Rows and bytes of one piece of the second pass: as long as a view is held.
const PIECE_ROWS: usize = 512;
const PIECE_BYTES: u64 = 4 << 20;

/// How often the list of files is read again when RocksDB replaces it meanwhile.
const LIST_RETRIES_MAX: usize = 5;

/// What a scrub has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Bytes of files and rows.
    pub bytes: u64,
    /// Live files.
    pub files: u64,
    /// Rows of replicas, and entries of logs.
    pub rows: u64,
    /// Places not known before that do not hold what was written there.
    pub damages: u64,
    /// Whether everything was read; else it was told to stop.
    pub finished: bool,
}

/// Told of bytes read. It may wait, and it may stop the scrub.
pub type Pace<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// A scrub under way. Ends early with `Break`.
pub(crate) struct Scrub<'a> {
    disk: &'a Arc<Disk>,
    database: &'a Path,
    pace: Pace<'a>,
    report: ScrubReport,
}

type Step = Result<ControlFlow<()>, Error>;

impl<'a> Scrub<'a> {
    pub fn new(disk: &'a Arc<Disk>, database: &'a Path, pace: Pace<'a>) -> Self {
        Scrub { disk, database, pace, report: ScrubReport::default() }
    }

    /// Reads everything. An error is the system's: damage is none.
    pub fn run(mut self) -> Result<ScrubReport, Error> {
        let known = self.disk.damage.reported();
        // Somewhere else each time: of scrubs that never come to their end, each reads other parts.
        let start = RandomState::new().hash_one(known);
        let files_first = start.is_multiple_of(2);
        let mut ended = if files_first { self.files(start)? } else { self.replicas(start)? };
        if ended.is_continue() {
            ended = if files_first { self.replicas(start)? } else { self.files(start)? };
        }
        self.report.finished = ended.is_continue();
        if self.report.finished {
            self.disk.scrubs_finished.fetch_add(1, Ordering::Relaxed);
        }
        self.report.damages = self.disk.damage.reported() - known;
        Ok(self.report)
    }

    /// Returns the bytes that a scrub reads: of files once as such and once as rows, of rows that
    /// are in memory only as rows.
    pub fn bytes(&self) -> Result<u64, Error> {
        let files = self.list()?.map_or_else(Vec::new, |list| list.files());
        let files: u64 = files.iter().map(|live| live.bytes).sum();
        Ok(2 * files + self.disk.db.memory_use().memtable_bytes)
    }

    fn read(&mut self, bytes: u64) -> ControlFlow<()> {
        self.report.bytes += bytes;
        self.disk.scrub_bytes.fetch_add(bytes, Ordering::Relaxed);
        (self.pace)(bytes)
    }

    fn files(&mut self, start: u64) -> Step {
        let Some(manifest) = self.list()? else { return Ok(ControlFlow::Continue(())) };
        let mut files = manifest.files();
        let first = start as usize % files.len().max(1);
        files.rotate_left(first);
        for live in files {
            if self.disk.check().is_err() || self.file(&live, &manifest)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The list of live files; `None` if it is damaged, which is reported.
    fn list(&self) -> Result<Option<Manifest>, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            match files::read(self.database) {
                Ok(manifest) => return Ok(Some(manifest)),
                // RocksDB may have begun another list since its name was read.
                Err(_) if tries < LIST_RETRIES_MAX => {}
                Err(files::Unread::Failed(error)) => return Err(error),
                Err(files::Unread::Damaged(damage)) => {
                    self.disk.damage.report(&damage);
                    return Ok(None);
                }
            }
        }
    }

    fn file(&mut self, live: &LiveFile, manifest: &Manifest) -> Step {
        let path = self.database.join(live.name());
        let file = match files::open_without_cache(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // A compaction may have replaced it.
                if self.is_live(live)? {
                    let detail = format!("is missing: expected {} bytes", live.bytes);
                    self.broken(live, manifest, 0, detail)?;
                }
                return Ok(ControlFlow::Continue(()));
            }
            Err(error) => return Err(Error::io("open a file of the database", error)),
        };
        self.report.files += 1;
        match files::verify(&file, live, &mut |bytes| self.read(bytes))? {
            Reading::Whole => {}
            Reading::Stopped => return Ok(ControlFlow::Break(())),
            Reading::Broken(broken) => self.broken(live, manifest, broken.offset, broken.detail)?,
        }
        Ok(ControlFlow::Continue(()))
    }

    fn is_live(&self, live: &LiveFile) -> Result<bool, Error> {
        Ok(self.list()?.is_some_and(|list| list.files().contains(live)))
    }

    fn broken(
        &self,
        live: &LiveFile,
        manifest: &Manifest,
        offset: u64,
        detail: String,
    ) -> Result<(), Error> {
        let file = Some(self.database.join(live.name()));
        let damage = Damage { replica: None, file, offset: Some(offset), detail };
        if live.family != keys::LOG_FAMILY || !self.disk.db.rewrite_log_if_whole(live) {
            let blamed = blamed(&damage, live, manifest);
            blamed.iter().for_each(|damage| self.disk.damage.report(damage));
        } else if self.is_live(live)? {
            let detail = format!("{}; no entry is lost, but the table stays", damage.detail);
            self.disk.damage.report(&Damage { detail, ..damage });
        } else {
            // Nothing is lost: what is damaged is what nobody reads, such as a filter.
            tracing::warn!(target: "audit", %damage, "the log was written again from whole rows");
        }
        Ok(())
    }

    fn replicas(&mut self, start: u64) -> Step {
        let mut replicas: Vec<_> = self.disk.replicas.read().values().cloned().collect();
        let first = start as usize % replicas.len().max(1);
        replicas.rotate_left(first);
        for replica in replicas {
            if self.replica(&replica)?.is_break() || self.log(&replica)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads the rows of a replica, but for the chunks: those are read with the records that list
    /// them, and the others in their files alone.
    fn replica(&mut self, replica: &Replica) -> Step {
        for (start, end) in [(b'A', b'C'), (b'D', b'S'), (b'S', b'T'), (b'T', u8::MAX)] {
            let mut cursor = vec![start];
            while self.disk.check().and_then(|()| replica.check()).is_ok() {
                let (next, bytes) = match self.piece(replica, (cursor, vec![end])) {
                    Ok(piece) => piece,
                    // What lies behind in this range can't be reached.
                    Err(Error::Corrupt { .. }) => break,
                    Err(error) => return Err(error),
                };
                if self.read(bytes).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                match next {
                    Some(next) => cursor = next,
                    None => break,
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads rows from the start of a range on. Answers where to go on, and how much was read.
    fn piece(
        &mut self,
        replica: &Replica,
        range: (Vec<u8>, Vec<u8>),
    ) -> Result<(Option<Vec<u8>>, u64), Error> {
        let view = self.disk.db.view();
        let generation = replica.generation();
        let (mut next, mut rows, mut bytes) = (None, 0, 0);
        let walk = Walk::Ahead { keep: false };
        let look = Look::Passing(&view);
        self.disk.db.walk_at(look, &generation.family, range, walk, &mut |row, value| {
            if rows == PIECE_ROWS || bytes >= PIECE_BYTES {
                next = Some(row.to_vec());
                return Ok(ControlFlow::Break(()));
            }
            rows += 1;
            bytes += (row.len() + value.len()) as u64;
            // One row that is lost does not hide the next.
            match self.disk.seen(replica.id, self.row(replica, &view, row, value)) {
                Ok(chunks) => bytes += chunks,
                Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
            Ok(ControlFlow::Continue(()))
        })?;
        self.report.rows += rows as u64;
        Ok((next, bytes))
    }

    /// Reads a row. Answers the bytes of chunks that belong to it.
    fn row(&self, replica: &Replica, view: &View, row: &[u8], value: &[u8]) -> Result<u64, Error> {
        let value = Bytes::copy_from_slice(value);
        match row.first() {
            Some(b'S') if row.len() >= keys::RECORD_PREFIX => {
                self.record(replica, view, row, value)
            }
            Some(b'A') => {
                let applied = Applied::decode(value);
                applied.map(|_| 0).map_err(|error| Error::corrupt("applied row", error))
            }
            Some(b'G') => {
                let garbage = Garbage::decode(value);
                garbage.map(|_| 0).map_err(|error| Error::corrupt("garbage row", error))
            }
            Some(b'H') => {
                let sums = Sums::open(Some(value), 0);
                sums.map(|_| 0).map_err(|error| Error::corrupt("row of sums", error))
            }
            Some(b'D' | b'L' | b'T' | b'U' | b'W' | b'X') => Ok(0),
            _ => Err(Error::corrupt("row", "its kind is unknown")),
        }
    }

    fn record(
        &self,
        replica: &Replica,
        view: &View,
        row: &[u8],
        value: Bytes,
    ) -> Result<u64, Error> {
        let record = Record::decode(value).map_err(|e| Error::corrupt("state record", e))?;
        let (collection, generation) = (keys::collection_of(row), replica.generation());
        let mut bytes = 0;
        for extent in record.extents() {
            let span = chunks_of(&extent);
            for number in span.first..span.end {
                let key = keys::chunk(collection, extent.blob, number);
                let look = Look::Passing(view);
                let Fetched::Found(chunk) = self.disk.db.get(&generation.family, &key, look)?
                else {
                    let missing = "a chunk that its record refers to is missing";
                    return Err(Error::corrupt("state", missing));
                };
                blob::within(&extent, number, chunk.len())?;
                bytes += chunk.len() as u64;
            }
        }
        Ok(bytes)
    }

    /// Reads the entries of a replica that are on disk, with their payloads.
    fn log(&mut self, replica: &Arc<Replica>) -> Step {
        let log = Log::new(self.disk.clone(), replica.clone());
        let mut next = log.purged().map_or(0, |purged| purged.index) + 1;
        while self.disk.check().and_then(|()| replica.check()).is_ok() {
            // What fails because it is purged or truncated meanwhile does not fail twice.
            let found = log.check_stored(next, PIECE_BYTES).or_else(|_| {
                next = next.max(log.purged().map_or(0, |purged| purged.index) + 1);
                log.check_stored(next, PIECE_BYTES)
            });
            let found = match self.disk.seen(replica.id, found) {
                Ok(found) => found,
                Err(Error::Corrupt { .. } | Error::Replica { .. }) => break,
                Err(error) => return Err(error),
            };
            self.report.rows += found.entries;
            if self.read(found.bytes).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if found.entries == 0 {
                break;
            }
            next += found.entries;
        }
        Ok(ControlFlow::Continue(()))
    }
}
