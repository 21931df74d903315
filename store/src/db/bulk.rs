//! Many rows at once: streamed out of a view, and in as files that RocksDB takes over.
//!
//! Part of the door in `db.rs`.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use rocksdb::{
    DB, DBRawIteratorWithThreadMode, IngestExternalFileOptions, Options, ReadOptions, SstFileWriter,
};

use super::{Db, Family, READAHEAD_BYTES, View, failed, options};
use crate::error::Error;

/// The rows of a family in order, as a view sees them. Not kept in the cache.
pub(crate) struct Rows {
    rows: ManuallyDrop<DBRawIteratorWithThreadMode<'static, DB>>,
    family: Family,
    /// The database rides along in it.
    view: View,
}

/// A file of rows that a family can take over.
pub(crate) struct TableWriter {
    writer: ManuallyDrop<SstFileWriter<'static>>,
    path: PathBuf,
    /// After the writer, which refers to it.
    _options: Box<Options>,
}

impl Db {
    /// Streams the rows of a range.
    pub fn rows(&self, view: View, family: Family, (start, end): (Vec<u8>, Vec<u8>)) -> Rows {
        let mut reads = ReadOptions::default();
        reads.set_snapshot(&*view.snapshot);
        reads.set_iterate_lower_bound(start);
        reads.set_iterate_upper_bound(end);
        reads.fill_cache(false);
        reads.set_readahead_size(READAHEAD_BYTES);
        let mut rows = self.rocks.raw_iterator_cf_opt(&family.0.handle, reads);
        rows.seek_to_first();
        // SAFETY: the iterator goes before family, view and database, which ride along.
        let rows = unsafe {
            std::mem::transmute::<
                DBRawIteratorWithThreadMode<'_, DB>,
                DBRawIteratorWithThreadMode<'static, DB>,
            >(rows)
        };
        Rows { rows: ManuallyDrop::new(rows), family, view }
    }

    /// Begins a file of rows for a replica's family.
    pub fn table(&self, path: PathBuf) -> Result<TableWriter, Error> {
        let mut options = Box::new(options::replica(&self.memory));
        // Written back as it goes: the sync at its end must not meet 64 MiB at once.
        options.set_bytes_per_sync(1 << 20);
        let writer = SstFileWriter::create(&options);
        writer.open(&path).map_err(|error| failed("begin a table", error))?;
        // SAFETY: the writer is dropped before the options, which do not move.
        let writer =
            unsafe { std::mem::transmute::<SstFileWriter<'_>, SstFileWriter<'static>>(writer) };
        Ok(TableWriter { writer: ManuallyDrop::new(writer), path, _options: options })
    }

    /// Has an empty family take over files of rows, all of them or none. Durable on return.
    pub fn ingest(&self, family: &Family, tables: &[PathBuf]) -> Result<(), Error> {
        if tables.is_empty() {
            return Ok(());
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let tables = tables.iter().map(PathBuf::as_path).collect::<Vec<&Path>>();
        self.rocks
            .ingest_external_file_cf_opts(&family.0.handle, &options, tables)
            .map_err(|error| failed("take over tables", error))
    }
}

impl Rows {
    /// The row that the stream is at. `None`: the end, or a failure, which `status` tells.
    pub fn row(&self) -> Option<(&[u8], &[u8])> {
        self.rows.item()
    }

    /// Goes to the next row.
    pub fn step(&mut self) {
        self.rows.next();
    }

    pub fn status(&self) -> Result<(), Error> {
        let (db, family) = (&self.view._db, &self.family);
        self.rows.status().map_err(|error| db.unread("walk rows", family, &[], error))
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // SAFETY: dropped here alone, once, and before what it refers to.
        unsafe { ManuallyDrop::drop(&mut self.rows) }
    }
}

impl TableWriter {
    /// Adds a row behind all others.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.writer.put(key, value).map_err(|error| failed("write a table", error))
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.writer.file_size()
    }

    /// Ends and syncs the file. It has at least one row.
    pub fn finish(mut self) -> Result<PathBuf, Error> {
        self.writer.finish().map_err(|error| failed("end a table", error))?;
        Ok(std::mem::take(&mut self.path))
    }
}

impl Drop for TableWriter {
    fn drop(&mut self) {
        // SAFETY: dropped here alone, once, and before the options.
        unsafe { ManuallyDrop::drop(&mut self.writer) }
    }
}
