//! The rows of a record in RocksDB's write-ahead log: a write batch, read without RocksDB.
//!
//! ```text
//! batch = sequence u64 | count u32 | change...
//! change = tag u8 | family varint, if the tag says so | long(key) | long(value), if it has one
//! ```
//!
//! Lengths are varints, integers little endian.

/// Bytes in front of the changes.
const HEADER_BYTES: usize = 12;

/// One change of a batch.
pub enum Change<'a> {
    Put { key: &'a [u8], value: &'a [u8] },
    Delete { key: &'a [u8] },
    DeleteRange,
}

/// Shows the changes of a record, in order. Returns whether all of it could be read.
pub fn walk<'a>(record: &'a [u8], visit: &mut dyn FnMut(Change<'a>)) -> bool {
    let mut rest = record.get(HEADER_BYTES..).unwrap_or_default();
    while let Some((tag, behind)) = rest.split_first() {
        rest = behind;
        let Some(change) = change(*tag, &mut rest) else { return false };
        if let Some(change) = change {
            visit(change);
        }
    }
    record.len() >= HEADER_BYTES
}

/// The outer `None`: it can't be read. The inner one: it changes nothing.
fn change<'a>(tag: u8, rest: &mut &'a [u8]) -> Option<Option<Change<'a>>> {
    // The tags of `ValueType` in RocksDB's dbformat.h that this program's batches can have.
    const DELETE: u8 = 0x0;
    const PUT: u8 = 0x1;
    const LOG_DATA: u8 = 0x3;
    const FAMILY_DELETE: u8 = 0x4;
    const FAMILY_PUT: u8 = 0x5;
    const NOTHING: u8 = 0xd;
    const FAMILY_DELETE_RANGE: u8 = 0xe;
    const DELETE_RANGE: u8 = 0xf;
    if matches!(tag, FAMILY_DELETE | FAMILY_PUT | FAMILY_DELETE_RANGE) {
        varint(rest)?;
    }
    match tag {
        PUT | FAMILY_PUT => {
            let (key, value) = (long(rest)?, long(rest)?);
            Some(Some(Change::Put { key, value }))
        }
        DELETE | FAMILY_DELETE => Some(Some(Change::Delete { key: long(rest)? })),
        DELETE_RANGE | FAMILY_DELETE_RANGE => {
            long(rest)?;
            long(rest)?;
            Some(Some(Change::DeleteRange))
        }
        LOG_DATA => {
            long(rest)?;
            Some(None)
        }
        NOTHING => Some(None),
        _ => None,
    }
}

fn long<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = varint(rest)? as usize;
    let (found, behind) = rest.split_at_checked(len)?;
    *rest = behind;
    Some(found)
}

fn varint(rest: &mut &[u8]) -> Option<u32> {
    let mut value = 0u64;
    for shift in (0..35).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(value).ok();
        }
    }
    None
}
