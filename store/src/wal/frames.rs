//! The frames of a RocksDB log file: 32 KiB blocks of checksummed fragments, put together to
//! records.
//!
//! ```text
//! block    = fragment... | at most 6 zero bytes
//! fragment = crc u32 (masked CRC-32C of what follows the length) | length u16 | type u8
//!          | log number u32, only of the recyclable types | payload
//! record   = one full fragment | a first, any middle ones, a last
//! ```
//!
//! Reads and never writes. What can't be read is shown too, with what can still be seen of it, and
//! reading goes on behind it: at the next fragment if that one is whole, else at the next block.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::crc32c::{crc32c, masked};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 32 << 10;
/// Bytes in front of a fragment's payload.
pub const HEADER_BYTES: usize = 7;
const RECYCLABLE_HEADER_BYTES: usize = 11;

/// A part of a log file.
pub enum Frame<'a> {
    /// A whole record.
    Record { offset: u64, bytes: &'a [u8] },
    /// Bytes that are no record, without the header that they seem to have.
    Bad { offset: u64, reason: &'static str, bytes: &'a [u8] },
}

/// Is shown each part of a file, in order.
pub type Visit<'a> = &'a mut dyn FnMut(Frame<'_>);

/// Shows the parts of a log file. Returns its length in bytes.
pub fn walk(path: &Path, visit: Visit<'_>) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    let mut frames = Frames { visit, record: None };
    let (mut block, mut at) = (vec![0; BLOCK_BYTES], 0);
    loop {
        let read = fill(&mut file, &mut block)?;
        frames.block(at, &block[..read]);
        at += read as u64;
        if read < BLOCK_BYTES {
            frames.drop_record("record without its end");
            return Ok(at);
        }
    }
}

/// Reads as much as there is room for, or as is left.
fn fill(file: &mut File, block: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match file.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Where a fragment's payload is in its record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Full,
    First,
    Middle,
    Last,
    /// Not part of any record: what RocksDB notes about the file.
    Note,
}

struct Fragment<'a> {
    place: Place,
    payload: &'a [u8],
    /// Bytes of the fragment, its header included.
    len: usize,
}

/// Why there is no fragment.
struct Unreadable {
    reason: &'static str,
    /// Where the next one would begin, if the length is to be trusted.
    next: Option<usize>,
}

struct Frames<'a> {
    visit: Visit<'a>,
    /// The record whose fragments are being gathered, and where it begins.
    record: Option<(u64, Vec<u8>)>,
}

impl Frames<'_> {
    fn block(&mut self, start: u64, block: &[u8]) {
        let mut at = 0;
        while block.len() - at >= HEADER_BYTES {
            match fragment(&block[at..]) {
                Ok(found) => {
                    self.fragment(start + at as u64, &found);
                    at += found.len;
                }
                Err(problem) => {
                    let next = problem
                        .next
                        .map(|len| at + len)
                        .filter(|next| fragment(block.get(*next..).unwrap_or_default()).is_ok());
                    let end = next.unwrap_or(block.len());
                    self.bad(start + at as u64, problem.reason, &block[at..end]);
                    let Some(next) = next else { return };
                    at = next;
                }
            }
        }
        if block.len() < BLOCK_BYTES && at < block.len() {
            self.bad(start + at as u64, "header cut short", &block[at..]);
        }
    }

    fn fragment(&mut self, offset: u64, found: &Fragment<'_>) {
        match found.place {
            Place::Note => {}
            Place::Full => {
                self.drop_record("record without its end");
                (self.visit)(Frame::Record { offset, bytes: found.payload });
            }
            Place::First => {
                self.drop_record("record without its end");
                self.record = Some((offset, found.payload.to_vec()));
            }
            Place::Middle | Place::Last => {
                let Some((_, bytes)) = &mut self.record else {
                    let reason = "record without its beginning";
                    return (self.visit)(Frame::Bad { offset, reason, bytes: found.payload });
                };
                bytes.extend_from_slice(found.payload);
                if found.place == Place::Last
                    && let Some((offset, bytes)) = self.record.take()
                {
                    (self.visit)(Frame::Record { offset, bytes: &bytes });
                }
            }
        }
    }

    /// Shows bytes that are no fragment, behind the beginning of the record that they break.
    fn bad(&mut self, offset: u64, reason: &'static str, bytes: &[u8]) {
        if let Some((begin, mut record)) = self.record.take() {
            // The payload goes on behind the header, as far as it can be trusted.
            record.extend_from_slice(bytes.get(HEADER_BYTES..).unwrap_or_default());
            return (self.visit)(Frame::Bad { offset: begin, reason, bytes: &record });
        }
        let bytes = bytes.get(HEADER_BYTES..).unwrap_or_default();
        (self.visit)(Frame::Bad { offset, reason, bytes });
    }

    fn drop_record(&mut self, reason: &'static str) {
        // RocksDB may leave an empty first fragment at the end of a block.
        if let Some((offset, bytes)) = self.record.take()
            && !bytes.is_empty()
        {
            (self.visit)(Frame::Bad { offset, reason, bytes: &bytes });
        }
    }
}

/// The fragment at the beginning of some bytes that end with their block.
fn fragment(bytes: &[u8]) -> Result<Fragment<'_>, Unreadable> {
    let unreadable = |reason, next| Err(Unreadable { reason, next });
    let Some(&[a, b, c, d, low, high, kind]) = bytes.first_chunk::<HEADER_BYTES>() else {
        return unreadable("header cut short", None);
    };
    let length = usize::from(u16::from_le_bytes([low, high]));
    if kind == 0 && length == 0 {
        return unreadable("zeros instead of a record", None);
    }
    let (place, header) = match kind {
        1 => (Place::Full, HEADER_BYTES),
        2 => (Place::First, HEADER_BYTES),
        3 => (Place::Middle, HEADER_BYTES),
        4 => (Place::Last, HEADER_BYTES),
        5 => (Place::Full, RECYCLABLE_HEADER_BYTES),
        6 => (Place::First, RECYCLABLE_HEADER_BYTES),
        7 => (Place::Middle, RECYCLABLE_HEADER_BYTES),
        8 => (Place::Last, RECYCLABLE_HEADER_BYTES),
        // Sizes of user-defined timestamps, and which file came before.
        10 => (Place::Note, HEADER_BYTES),
        11 => (Place::Note, RECYCLABLE_HEADER_BYTES),
        131 => (Place::Note, RECYCLABLE_HEADER_BYTES),
        // RocksDB skips what it does not know of these.
        128.. => (Place::Note, HEADER_BYTES),
        // 9 says that what follows is compressed: this program never asks for it.
        _ => return unreadable("unknown type of record", Some(HEADER_BYTES + length)),
    };
    let len = header + length;
    if len > bytes.len() {
        return unreadable("record cut short", None);
    }
    if masked(crc32c(&bytes[6..len])) != u32::from_le_bytes([a, b, c, d]) {
        return unreadable("checksum mismatch", Some(len));
    }
    Ok(Fragment { place, payload: &bytes[header..len], len })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::wal::salvage::Framed;

    /// A log file as RocksDB writes it.
    fn encode(records: &[Vec<u8>]) -> Vec<u8> {
        let mut framed = Framed { out: Vec::new(), len: 0 };
        records.iter().for_each(|record| framed.record(record).unwrap());
        framed.out
    }

    fn records() -> Vec<Vec<u8>> {
        [100, 40_000, 7, 32_754, 0, 200_000, 50]
            .into_iter()
            .zip(1u8..)
            .map(|(len, byte)| vec![byte; len])
            .collect()
    }

    /// The records that are whole, and where bytes are that are none.
    fn read(bytes: &[u8]) -> (Vec<Vec<u8>>, Vec<(u64, &'static str)>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let (mut whole, mut bad) = (Vec::new(), Vec::new());
        let len = walk(file.path(), &mut |frame| match frame {
            Frame::Record { bytes, .. } => whole.push(bytes.to_vec()),
            Frame::Bad { offset, reason, .. } => bad.push((offset, reason)),
        });
        assert_eq!(len.unwrap(), bytes.len() as u64);
        (whole, bad)
    }

    #[test]
    fn records_of_any_size_are_read_back() {
        assert_eq!(read(&encode(&records())), (records(), vec![]));
    }

    #[test]
    fn a_flipped_bit_costs_the_record_it_is_in_and_is_seen() {
        let (bytes, records) = (encode(&records()), records());
        for at in (0..bytes.len()).step_by(997) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let (whole, bad) = read(&damaged);
            assert!(!bad.is_empty(), "byte {at}");
            assert!(bad[0].0 <= at as u64, "byte {at}: {bad:?}");
            assert!(whole.iter().all(|record| records.contains(record)), "byte {at}");
            assert!(whole.len() >= records.len() - 3, "byte {at}: {} whole", whole.len());
        }
    }

    #[test]
    fn a_file_cut_anywhere_keeps_the_records_before_the_cut() {
        let (bytes, records) = (encode(&records()), records());
        let mut ends = Vec::new();
        for count in 1..=records.len() {
            ends.push(encode(&records[..count]).len());
        }
        for end in (0..bytes.len()).step_by(501) {
            let (whole, bad) = read(&bytes[..end]);
            let expected = ends.iter().filter(|at| **at <= end).count();
            assert_eq!(whole, records[..expected], "cut at {end}");
            let at_boundary = end % BLOCK_BYTES == 0 || ends.contains(&end);
            assert!(at_boundary || !bad.is_empty(), "cut at {end}");
        }
    }

    #[test]
    fn zeros_behind_the_last_record_are_seen() {
        let mut bytes = encode(&records());
        let end = bytes.len() as u64;
        bytes.resize(bytes.len() + 100_000, 0);
        let (whole, bad) = read(&bytes);
        assert_eq!(whole, records());
        assert_eq!(bad[0], (end, "zeros instead of a record"));
    }
}
