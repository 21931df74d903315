//! A view of another node's replica on its way in: blocks become files that RocksDB takes over.
//!
//! The files lie beside the database, sorted and synced, and are nobody's until `install.rs` puts
//! them in the place of a replica. Memory holds one block and what a file's writer needs. An
//! interrupted transfer begins anew: blocks are not resumed.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::applied::Applied;
use crate::block::{self, Block, Rows, Total};
use crate::db::TableWriter;
use crate::disk::Disk;
use crate::error::{Error, TransferProblem};
use crate::ids::{EntryId, ReplicaId};
use crate::keys;

/// Bytes of a file, after which the next one is begun.
const TABLE_BYTES_MAX: u64 = 64 << 20;

/// A view that comes in. Dropped, it leaves nothing behind.
pub struct Incoming {
    disk: Arc<Disk>,
    replica: ReplicaId,
    /// Before `scratch`: files are closed before their directory goes.
    table: Option<TableWriter>,
    tables: Vec<PathBuf>,
    scratch: Scratch,
    last_key: Vec<u8>,
    rows: u64,
    hash: Xxh3,
    applied: Option<Applied>,
    total: Option<Total>,
    /// What was wrong with a block: no further one makes up for it.
    refused: Option<Error>,
}

/// A whole view, in files: see [`crate::Shard::install`]. Dropped, it leaves nothing behind.
pub struct Received {
    pub(crate) replica: ReplicaId,
    pub(crate) applied: Applied,
    pub(crate) tables: Vec<PathBuf>,
    _scratch: Scratch,
}

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            // The next start tries again.
            tracing::warn!(%error, dir = %self.0.display(), "files of a view not removed");
        }
    }
}

impl Incoming {
    pub(crate) fn new(disk: Arc<Disk>, replica: ReplicaId, dir: PathBuf) -> Result<Self, Error> {
        disk.check()?;
        std::fs::create_dir_all(&dir).map_err(|error| Error::io("make room for a view", error))?;
        Ok(Incoming {
            disk,
            replica,
            table: None,
            tables: Vec::new(),
            scratch: Scratch(dir),
            last_key: Vec::new(),
            rows: 0,
            hash: Xxh3::new(),
            applied: None,
            total: None,
            refused: None,
        })
    }

    /// Takes the next block, in the order in which they were made. Waits for the disk.
    ///
    /// After an error, `Transfer` if it is the block's, every further call answers the same.
    pub fn add(&mut self, block: Bytes) -> Result<(), Error> {
        self.refused.clone().map_or(Ok(()), Err)?;
        self.take(block).inspect_err(|error| self.refused = Some(error.clone()))
    }

    /// All blocks are in: checks that none is missing, and syncs. Waits for the disk.
    pub fn finish(mut self) -> Result<Received, Error> {
        self.refused.clone().map_or(Ok(()), Err)?;
        let (found, expected) = (self.rows, self.total.map(|total| total.rows));
        if expected != Some(found) {
            return Err(Error::transfer(TransferProblem::Incomplete { expected, found }));
        }
        if self.total.is_some_and(|total| total.hash != self.hash.digest()) {
            return Err(Error::transfer(TransferProblem::Checksum));
        }
        self.end_table()?;
        let applied = match self.applied {
            Some(applied) => applied,
            None if found == 0 => Applied::default(),
            None => return Err(Error::transfer(TransferProblem::NoApplied)),
        };
        let Incoming { replica, tables, scratch, .. } = self;
        Ok(Received { replica, applied, tables, _scratch: scratch })
    }

    fn take(&mut self, block: Bytes) -> Result<(), Error> {
        self.disk.check()?;
        let opened = block::open(block).map_err(Error::transfer)?;
        if self.total.is_some() {
            return Err(Error::transfer(TransferProblem::AfterLast));
        }
        match opened {
            Block::Last(total) => self.total = Some(total),
            Block::Rows(body) => {
                self.hash.update(&body);
                for row in Rows::new(body) {
                    let (key, value) = row.map_err(Error::transfer)?;
                    self.put(&key, value)?;
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: Bytes) -> Result<(), Error> {
        if !keys::travels(key) {
            let problem = crate::Malformed { expected: "a row of a known kind", offset: 0 };
            return Err(Error::transfer(problem));
        }
        if *key <= self.last_key[..] {
            return Err(Error::transfer(TransferProblem::Disorder));
        }
        if key == keys::APPLIED {
            let applied = Applied::decode(value.clone()).map_err(Error::transfer)?;
            self.applied = Some(applied);
        }
        let table = match &mut self.table {
            Some(table) => table,
            None => {
                let path = self.scratch.0.join(format!("{}.sst", self.tables.len()));
                self.table.insert(self.disk.db.table(path)?)
            }
        };
        table.put(key, &value)?;
        self.rows += 1;
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        if table.bytes() >= TABLE_BYTES_MAX {
            self.end_table()?;
        }
        Ok(())
    }

    fn end_table(&mut self) -> Result<(), Error> {
        if let Some(table) = self.table.take() {
            self.tables.push(table.finish()?);
        }
        Ok(())
    }
}

impl Received {
    /// The last entry applied in the view; index 0 if there is none.
    pub fn applied(&self) -> EntryId {
        self.applied.id
    }

    /// The last membership applied in the view, and the entry that carried it.
    pub fn membership(&self) -> Option<(EntryId, Bytes)> {
        self.applied.membership.clone()
    }
}
