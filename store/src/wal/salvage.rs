//! A log file with the whole records of a damaged one.
//!
//! RocksDB, told to skip what is bad, skips the rest of the 32 KiB block too, with whole records of
//! other replicas in it. Given the whole records alone it loses nothing else.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::frames::{BLOCK_BYTES, Frame, HEADER_BYTES, walk};
use crate::crc32c::{crc32c, masked};

/// Writes the whole records of a file to another one, synced.
pub fn copy_whole(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut out = Framed { out: BufWriter::new(File::create(to)?), len: 0 };
    let mut written = Ok(());
    walk(from, &mut |frame| {
        if let Frame::Record { bytes, .. } = frame
            && written.is_ok()
        {
            written = out.record(bytes);
        }
    })?;
    written?;
    out.out.flush()?;
    out.out.get_ref().sync_all()
}

/// Records being put into frames.
pub struct Framed<W> {
    pub out: W,
    pub len: usize,
}

impl<W: Write> Framed<W> {
    /// Adds a record, as RocksDB does.
    pub fn record(&mut self, record: &[u8]) -> std::io::Result<()> {
        let (mut rest, mut first) = (record, true);
        loop {
            let room = BLOCK_BYTES - self.len % BLOCK_BYTES;
            if room < HEADER_BYTES {
                self.write(&[0; HEADER_BYTES][..room])?;
                continue;
            }
            let (payload, behind) = rest.split_at(rest.len().min(room - HEADER_BYTES));
            let last = behind.is_empty();
            let kind: u8 = match (first, last) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            let summed = [&[kind], payload].concat();
            self.write(&masked(crc32c(&summed)).to_le_bytes())?;
            self.write(&(payload.len() as u16).to_le_bytes())?;
            self.write(&summed)?;
            if last {
                return Ok(());
            }
            (rest, first) = (behind, false);
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.len += bytes.len();
        self.out.write_all(bytes)
    }
}
