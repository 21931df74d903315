//! Chunk rows that no record needs, but that the log may still need.
//!
//! An entry's large payloads lie in chunk rows alone. As long as the entry is in the log, a
//! follower that lags may have to be sent it, so its chunks outlive the record that dropped
//! them: apply leaves a garbage row, and purging the log through the entry deletes the chunks.
//! Once the log is purged that far, apply deletes at once.
//!
//! This is replica-local: replicas purge at different times. It is no part of a state's hash.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::codec::{Malformed, Scanner, Writer};
use crate::db::{Db, Family, Mutation, Walk};
use crate::error::Error;
use crate::extent::{BlobId, CHUNK_BYTES, ChunkSpan};
use crate::ids::CollectionId;
use crate::keys;

/// Beyond this many chunks a range deletion is cheaper than one deletion for each.
const CHUNKS_DELETED_SINGLY_MAX: u32 = 32;

/// What a dropped collection counts for: enough to have its deletions flushed.
pub(crate) const COLLECTION_BYTES: u64 = 1 << 30;

const FORMAT: u8 = 1;
const SPAN: u8 = 0;
const COLLECTION: u8 = 1;

/// Chunk rows to delete once the log is purged far enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Garbage {
    /// Some chunks of a blob.
    Span(CollectionId, ChunkSpan),
    /// All chunks of a collection whose blobs lie before this one: it was dropped there.
    Collection(CollectionId, BlobId),
}

impl Garbage {
    /// The index through which the log must be purged.
    pub fn release(&self) -> u64 {
        match self {
            Garbage::Span(_, span) => span.blob.index,
            Garbage::Collection(_, end) => end.index,
        }
    }

    /// About how many bytes are deleted, as far as that is known.
    pub fn bytes(&self) -> u64 {
        match self {
            Garbage::Span(_, span) => u64::from(span.end - span.first) * CHUNK_BYTES,
            Garbage::Collection(..) => COLLECTION_BYTES,
        }
    }

    /// The deletions.
    pub fn delete(&self, family: &Family, out: &mut Vec<Mutation>) {
        let family = family.clone();
        match self {
            Garbage::Collection(collection, end) => {
                let (start, end) = keys::chunks_before(*collection, *end);
                out.push(Mutation::DeleteRange { family, start, end });
            }
            Garbage::Span(collection, ChunkSpan { blob, first, end })
                if end - first > CHUNKS_DELETED_SINGLY_MAX =>
            {
                let start = keys::chunk(*collection, *blob, *first);
                let end = keys::chunk(*collection, *blob, *end);
                out.push(Mutation::DeleteRange { family, start, end });
            }
            Garbage::Span(collection, ChunkSpan { blob, first, end }) => {
                for chunk in *first..*end {
                    let key = keys::chunk(*collection, *blob, chunk);
                    out.push(Mutation::Delete { family: family.clone(), key });
                }
            }
        }
    }

    /// The row's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(32);
        out.u8(FORMAT);
        let (kind, collection, blob) = match self {
            Garbage::Span(collection, span) => (SPAN, collection, span.blob),
            Garbage::Collection(collection, end) => (COLLECTION, collection, *end),
        };
        out.u8(kind);
        out.u64(collection.0);
        out.u64(blob.index);
        out.u16(blob.position);
        out.u16(blob.number);
        if let Garbage::Span(_, span) = self {
            out.u32(span.first);
            out.u32(span.end);
        }
        out.into_vec()
    }

    /// Reads a row's value.
    pub fn decode(row: Bytes) -> Result<Garbage, Malformed> {
        let mut scan = Scanner::new(row);
        scan.format(FORMAT)?;
        let kind = scan.u8("a kind of garbage")?;
        let collection = CollectionId(scan.u64("a collection")?);
        let blob = BlobId {
            index: scan.u64("a blob's entry")?,
            position: scan.u16("a blob's command")?,
            number: scan.u16("a blob's number")?,
        };
        let garbage = match kind {
            SPAN => {
                let (first, end) = (scan.u32("a first chunk")?, scan.u32("a last chunk")?);
                Garbage::Span(collection, ChunkSpan { blob, first, end })
            }
            COLLECTION => Garbage::Collection(collection, blob),
            _ => return Err(scan.malformed("a known kind of garbage")),
        };
        scan.finish()?;
        Ok(garbage)
    }
}

/// Returns about how many bytes of chunks wait in a family for the log to be purged.
pub(crate) fn waiting(db: &Db, family: &Family) -> Result<u64, Error> {
    let mut bytes = 0u64;
    let all = keys::garbage_between(0, u64::MAX);
    db.walk(family, all, Walk::Few, &mut |_, value| {
        let garbage = Garbage::decode(Bytes::copy_from_slice(value))
            .map_err(|error| Error::corrupt("garbage row", error))?;
        bytes = bytes.saturating_add(garbage.bytes());
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_garbage_row_survives_a_round_trip_and_no_truncation() {
        let blob = BlobId { index: 9, position: 2, number: 1 };
        let collection = CollectionId(4);
        for garbage in [
            Garbage::Span(collection, ChunkSpan { blob, first: 3, end: 70 }),
            Garbage::Collection(collection, blob),
        ] {
            let row = Bytes::from(garbage.encode());
            for len in 0..row.len() {
                assert!(Garbage::decode(row.slice(..len)).is_err(), "{len} of {}", row.len());
            }
            assert_eq!(Garbage::decode(row), Ok(garbage));
            assert_eq!(garbage.release(), 9);
        }
    }
}
