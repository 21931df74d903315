//! Whether a live file holds what was written to it.
//!
//! At a start only lengths and ends are looked at: a start must not read everything. A scrub reads
//! the whole file, past the page cache, and compares its checksum with the MANIFEST's. A blob file
//! is then walked record by record to say where it is broken; in a table the offset is left to
//! whoever reads its rows.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::Advice;

use super::manifest::{BLOB_FOOTER_BYTES, BLOB_HEADER_BYTES, FileKind, LiveFile};
use super::records::Broken;
use crate::crc32c::{crc32c, extend, masked};
use crate::error::Error;

/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// The last bytes of a table (RocksDB's block-based format), and the first of a blob file.
const TABLE_MAGIC: [u8; 8] = 0x88e2_41b7_85f4_cff7_u64.to_le_bytes();
const BLOB_MAGIC: [u8; 4] = 2_395_959_u32.to_le_bytes();

/// Bytes in front of a blob's key: lengths, expiry, two checksums.
const BLOB_RECORD_BYTES: usize = 32;

/// What reading a file came to.
pub(crate) enum Reading {
    /// Every byte is as it was written, as far as its checksums tell.
    Whole,
    /// The file is damaged.
    Broken(Broken),
    /// The reader was told to stop.
    Stopped,
}

/// Checks that a file is there, and its length and ends. Reads a few bytes.
pub(crate) fn check_size(dir: &Path, live: &LiveFile) -> Result<Option<Broken>, Error> {
    let file = match File::open(dir.join(live.name())) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let detail = format!("is missing: expected {} bytes", live.bytes);
            return Ok(Some(Broken::at(0, detail)));
        }
        Err(error) => return Err(Error::io("open a file of the database", error)),
    };
    check_ends(&file, live)
}

fn check_ends(file: &File, live: &LiveFile) -> Result<Option<Broken>, Error> {
    let found = file.metadata().map_err(|error| Error::io("look at a file", error))?.len();
    if found != live.bytes {
        let detail = format!("has {found} bytes, expected {}", live.bytes);
        return Ok(Some(Broken { offset: found.min(live.bytes), detail }));
    }
    let (offset, expected): (u64, &[u8]) = match live.kind {
        FileKind::Table => (live.bytes.saturating_sub(TABLE_MAGIC.len() as u64), &TABLE_MAGIC),
        FileKind::Blob => (0, &BLOB_MAGIC),
    };
    let mut bytes = [0; 8];
    let bytes = &mut bytes[..expected.len()];
    Ok(match file.read_exact_at(bytes, offset) {
        Ok(()) if bytes == expected => None,
        Ok(()) => Some(Broken { offset, detail: "its magic number is wrong".into() }),
        Err(error) => Some(Broken { offset, detail: format!("it can't be read: {error}") }),
    })
}

/// Opens a file so that reading it reads the disk and leaves nothing in the page cache.
pub(crate) fn open_without_cache(path: &Path) -> std::io::Result<File> {
    let file = File::open(path)?;
    forget(&file);
    Ok(file)
}

fn forget(file: &File) {
    // Advice: where it is not taken, reading still works.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}

/// Reads a file from its beginning to its end. `read` is told of bytes read, and may stop it.
pub(crate) fn verify(
    file: &File,
    live: &LiveFile,
    read: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Reading, Error> {
    if let Some(broken) = check_ends(file, live)? {
        return Ok(Reading::Broken(broken));
    }
    let mut piece = vec![0; PIECE_BYTES];
    let (mut offset, mut crc) = (0, 0);
    while offset < live.bytes {
        let length = (live.bytes - offset).min(PIECE_BYTES as u64) as usize;
        let piece = &mut piece[..length];
        if let Err(error) = file.read_exact_at(piece, offset) {
            let detail = format!("it can't be read: {error}");
            return Ok(Reading::Broken(Broken { offset, detail }));
        }
        crc = extend(crc, piece);
        offset += length as u64;
        if read(length as u64).is_break() {
            return Ok(Reading::Stopped);
        }
    }
    let differs = live.checksum.filter(|expected| *expected != crc);
    let broken = match live.kind {
        FileKind::Blob if differs.is_some() || live.checksum.is_none() => broken_blob(file, live),
        FileKind::Blob | FileKind::Table => None,
    };
    forget(file);
    Ok(match (broken, differs) {
        (Some(broken), _) => Reading::Broken(broken),
        (None, Some(expected)) => {
            let detail = format!("its checksum is {crc:08x}, expected {expected:08x}");
            Reading::Broken(Broken { offset: 0, detail })
        }
        (None, None) => Reading::Whole,
    })
}

/// The first record of a blob file that its checksums do not match.
fn broken_blob(file: &File, live: &LiveFile) -> Option<Broken> {
    let mut offset = BLOB_HEADER_BYTES;
    let end = live.bytes.saturating_sub(BLOB_FOOTER_BYTES);
    let broken = |offset, detail: &str| Some(Broken { offset, detail: detail.to_owned() });
    let mut header = [0; BLOB_RECORD_BYTES];
    let mut bytes = Vec::new();
    while offset < end {
        if file.read_exact_at(&mut header, offset).is_err() {
            return broken(offset, "a blob's header can't be read");
        }
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if masked(crc32c(&header[..24])) != word(24) {
            return broken(offset, "the checksum of a blob's header does not match");
        }
        let length = long(0).saturating_add(long(8));
        let first = offset + BLOB_RECORD_BYTES as u64;
        if length > end.saturating_sub(first) {
            return broken(offset, "a blob ends behind its file");
        }
        bytes.resize(length as usize, 0);
        if file.read_exact_at(&mut bytes, first).is_err() {
            return broken(first, "a blob can't be read");
        }
        if masked(crc32c(&bytes)) != word(28) {
            return broken(offset, "the checksum of a blob does not match");
        }
        offset = first + length;
    }
    None
}
