//! A replica's rows on their way to another node, in blocks.
//!
//! ```text
//! block = format u8 | kind u8 | body | xxh3 u64 of all before
//! body  = rows:  (medium(key) | long(value))...      kind 0
//!       | last:  rows u64 | xxh3 u64 of all bodies   kind 1
//! ```
//!
//! Integers are little endian. Pure: where rows come from and go to is `export.rs`'s and
//! `receive.rs`'s.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::{Malformed, Scanner, Writer};
use crate::error::TransferProblem;

/// The format of the blocks that this version sends, and the newest that it reads.
pub const TRANSFER_FORMAT: u8 = 2;

const ROWS: u8 = 0;
const LAST: u8 = 1;

const HEADER_BYTES: usize = 2;
const CHECKSUM_BYTES: usize = 8;

/// What a block says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Rows in the order of their keys, still encoded.
    Rows(Bytes),
    /// All rows were sent.
    Last(Total),
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Total {
    pub rows: u64,
    pub hash: u64,
}

/// A block of rows while it is filled.
pub(crate) struct Builder {
    out: Writer,
    bytes: usize,
}

impl Builder {
    pub fn new(bytes: usize) -> Self {
        let mut out = Writer::with_capacity(HEADER_BYTES + bytes + CHECKSUM_BYTES);
        out.u8(TRANSFER_FORMAT);
        out.u8(ROWS);
        Builder { out, bytes: 0 }
    }

    /// Bytes that a row takes.
    pub fn row_bytes(key: &[u8], value: &[u8]) -> usize {
        size_of::<u16>() + key.len() + size_of::<u32>() + value.len()
    }

    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.out.medium(key);
        self.out.long(value);
        self.bytes += Builder::row_bytes(key, value);
    }

    /// Bytes of the rows so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The block.
    pub fn finish(self) -> Bytes {
        seal(self.out)
    }
}

/// The block behind all rows.
pub(crate) fn last(total: Total) -> Bytes {
    let mut out = Writer::with_capacity(HEADER_BYTES + 2 * size_of::<u64>() + CHECKSUM_BYTES);
    out.u8(TRANSFER_FORMAT);
    out.u8(LAST);
    out.u64(total.rows);
    out.u64(total.hash);
    seal(out)
}

fn seal(out: Writer) -> Bytes {
    let mut block = out.into_vec();
    let checksum = xxh3_64(&block);
    block.extend_from_slice(&checksum.to_le_bytes());
    block.into()
}

/// The rows of a finished block: what counts for the hash of all bodies.
pub(crate) fn body(block: &Bytes) -> &[u8] {
    &block[HEADER_BYTES..block.len() - CHECKSUM_BYTES]
}

/// Reads a block whose format and checksum are right.
pub(crate) fn open(block: Bytes) -> Result<Block, TransferProblem> {
    if let Some(found) = block.first().copied().filter(|found| *found > TRANSFER_FORMAT) {
        return Err(TransferProblem::Format { found, supported: TRANSFER_FORMAT });
    }
    let Some((sealed, checksum)) = block.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(Malformed { expected: "a checksum", offset: 0 }.into());
    };
    if xxh3_64(sealed) != u64::from_le_bytes(*checksum) {
        return Err(TransferProblem::Checksum);
    }
    let mut scan = Scanner::new(block.slice(..sealed.len()));
    scan.format(TRANSFER_FORMAT)?;
    match scan.u8("a kind of block")? {
        ROWS => Ok(Block::Rows(block.slice(HEADER_BYTES..sealed.len()))),
        LAST => {
            let (rows, hash) = (scan.u64("a number of rows")?, scan.u64("a hash")?);
            scan.finish()?;
            Ok(Block::Last(Total { rows, hash }))
        }
        _ => Err(scan.malformed("a known kind of block").into()),
    }
}

/// The rows of a body, in order.
pub(crate) struct Rows {
    scan: Scanner,
    left: usize,
}

impl Rows {
    pub fn new(body: Bytes) -> Self {
        let left = body.len();
        Rows { scan: Scanner::new(body), left }
    }
}

impl Iterator for Rows {
    type Item = Result<(Bytes, Bytes), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let row = self.scan.medium("a row's key").and_then(|key| {
            let value = self.scan.long("a row's value")?;
            Ok((key, value))
        });
        self.left = match &row {
            Ok((key, value)) => self.left - Builder::row_bytes(key, value),
            Err(_) => 0,
        };
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_out_as_they_went_in_and_any_change_is_noticed() {
        let mut block = Builder::new(64);
        block.push(b"a", b"1");
        block.push(b"b", b"");
        let block = block.finish();
        let Ok(Block::Rows(rows)) = open(block.clone()) else { panic!("it is a block of rows") };
        assert_eq!(rows, body(&block));
        let rows: Result<Vec<_>, _> = Rows::new(rows).collect();
        let expected: [(Bytes, Bytes); 2] = [("a".into(), "1".into()), ("b".into(), "".into())];
        assert_eq!(rows.unwrap(), expected);
        let total = Total { rows: 2, hash: 7 };
        assert_eq!(open(last(total)), Ok(Block::Last(total)));
        for whole in [block, last(total)] {
            for at in 0..whole.len() {
                let mut changed = whole.to_vec();
                changed[at] ^= 0x10;
                assert!(open(changed.into()).is_err(), "byte {at}");
                assert!(open(whole.slice(..at)).is_err(), "{at} bytes");
            }
        }
    }

    #[test]
    fn a_newer_format_is_told_from_a_broken_block() {
        let mut block = Builder::new(0).finish().to_vec();
        let found = TRANSFER_FORMAT + 1;
        block[0] = found;
        let refused = open(block.into()).unwrap_err();
        assert_eq!(refused, TransferProblem::Format { found, supported: TRANSFER_FORMAT });
    }

    #[test]
    fn rows_that_make_no_sense_are_malformed() {
        let rows: Vec<_> = Rows::new(Bytes::from_static(b"\x05\x00abc")).collect();
        assert!(matches!(rows[..], [Err(Malformed { expected: "a row's key", .. })]), "{rows:?}");
    }
}
