//! The record format of RocksDB's MANIFEST: blocks of 32 KiB, each record with its checksum.
//!
//! RocksDB takes a record that ends behind the end of the file for one whose writer died, and says
//! nothing; a flipped bit in a length looks the same. Here it is told apart: a record whose bytes
//! are whole but for the length, or that whole records follow, is broken and not torn.

use crate::crc32c::{crc32c, masked};

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// A place that does not hold what was written there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// The offset in the file, in bytes.
    pub offset: u64,
    /// The problem.
    pub detail: String,
}

impl Broken {
    pub fn at(offset: usize, detail: impl Into<String>) -> Self {
        Broken { offset: offset as u64, detail: detail.into() }
    }
}

/// A record, and where it begins in its file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub offset: usize,
    pub bytes: Vec<u8>,
}

/// A record's piece in one block.
struct Piece<'a> {
    kind: u8,
    bytes: &'a [u8],
    end: usize,
}

/// Returns the whole records of a file. What its writer did not finish at its end is left out.
pub(crate) fn read(file: &[u8]) -> Result<Vec<Record>, Broken> {
    let mut found = Vec::new();
    let mut begun: Option<Record> = None;
    let mut at = 0;
    while at < file.len() {
        let left = BLOCK_BYTES - at % BLOCK_BYTES;
        if left < HEADER_BYTES {
            at += left;
            continue;
        }
        if file[at..].iter().all(|byte| *byte == 0) {
            break;
        }
        let Some(piece) = piece(file, at)? else { break };
        let (offset, bytes) = (at, piece.bytes.to_vec());
        begun = match (piece.kind, begun.take()) {
            (FULL, None) => {
                found.push(Record { offset, bytes });
                None
            }
            (FIRST, None) => Some(Record { offset, bytes }),
            (MIDDLE | LAST, Some(mut record)) => {
                record.bytes.extend_from_slice(piece.bytes);
                match piece.kind {
                    LAST => {
                        found.push(record);
                        None
                    }
                    _ => Some(record),
                }
            }
            (kind, _) => return Err(Broken::at(at, format!("a record's part {kind} is astray"))),
        };
        at = piece.end;
    }
    Ok(found)
}

/// The piece at an offset; `None` if its writer did not finish it.
fn piece(file: &[u8], at: usize) -> Result<Option<Piece<'_>>, Broken> {
    let Some(header) = file.get(at..at + HEADER_BYTES) else { return Ok(None) };
    let stored = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let end = at + HEADER_BYTES + length;
    let holds = |end: usize| masked(crc32c(&file[at + 6..end])) == stored;
    if at % BLOCK_BYTES + HEADER_BYTES + length > BLOCK_BYTES {
        return Err(Broken::at(at, format!("a record's length is {length}: past its block")));
    }
    if end > file.len() {
        if holds(file.len()) || followed(file, at + 1) {
            return Err(Broken::at(at, format!("a record's length is {length}: past the end")));
        }
        return Ok(None);
    }
    if !holds(end) {
        return Err(Broken::at(at, "a record's checksum does not match"));
    }
    Ok(Some(Piece { kind: header[6], bytes: &file[at + HEADER_BYTES..end], end }))
}

/// Whether a whole record begins at an offset or behind it.
fn followed(file: &[u8], from: usize) -> bool {
    (from..file.len().saturating_sub(HEADER_BYTES)).any(|at| {
        let header = &file[at..at + HEADER_BYTES];
        let stored = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let end = at + HEADER_BYTES + length;
        (FULL..=LAST).contains(&header[6])
            && length > 0
            && end <= file.len()
            && masked(crc32c(&file[at + 6..end])) == stored
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crc32c::extend;

    fn append(file: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
        let crc = extend(crc32c(&[kind]), bytes);
        file.extend_from_slice(&masked(crc).to_le_bytes());
        file.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        file.push(kind);
        file.extend_from_slice(bytes);
    }

    fn file() -> Vec<u8> {
        let mut file = Vec::new();
        append(&mut file, FULL, b"one");
        append(&mut file, FIRST, b"two, ");
        append(&mut file, LAST, b"in parts");
        append(&mut file, FULL, b"three");
        file
    }

    #[test]
    fn records_come_back_whole_and_in_order() {
        let texts: Vec<_> =
            read(&file()).expect("it is whole").into_iter().map(|r| r.bytes).collect();
        assert_eq!(texts, [&b"one"[..], b"two, in parts", b"three"]);
    }

    #[test]
    fn an_unfinished_tail_is_no_damage() {
        let whole = file();
        for len in whole.len() - 11..whole.len() {
            assert_eq!(read(&whole[..len]).expect("a torn tail").len(), 2, "{len} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let whole = file();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&flipped).is_err(), "bit {bit}");
        }
    }
}
