//! What a replica holds, read as a whole: a hash to compare replicas, a count of its rows.
//!
//! The hash is over content, not over layout: a field hashes the same whether it lies in one
//! blob or in many. Garbage, requests and the expiry index are no part of it. Both walk every
//! row: for tests, audits and repairs, not for a request.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::db::{Db, Family, Fetched, Look, Walk};
use crate::error::Error;
use crate::extent::chunks_of;
use crate::keys;
use crate::record::{Content, Record};
use crate::value::FieldType;
use crate::{blob, ids::CollectionId};

/// Hashes all states as they are at one moment.
pub(crate) fn state_hash(db: &Arc<Db>, family: &Family) -> Result<u64, Error> {
    let mut hash = Xxh3::new();
    let view = db.view();
    let look = Look::View(&view);
    let walk = Walk::Ahead { keep: false };
    db.walk_at(look, family, keys::all_records(), walk, &mut |row, value| {
        let record = Record::decode(Bytes::copy_from_slice(value))
            .map_err(|error| Error::corrupt("state record", error))?;
        part(&mut hash, row);
        hash_record(&mut hash, &record, |collection_hash, content| {
            let collection = keys::collection_of(row);
            hash_content(collection_hash, collection, content, |key| db.get(family, key, look))
        })?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(hash.digest())
}

/// Rows of a replica by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// States, expired ones included.
    pub states: u64,
    /// Chunks of large fields and of payloads that the log needs.
    pub chunks: u64,
    /// Bytes in these.
    pub chunk_bytes: u64,
    /// Requests remembered.
    pub requests: u64,
    /// Rows of the expiry index.
    pub expiries: u64,
    /// Uploads that are no states yet.
    pub uploads: u64,
    /// Runs of chunks that wait for the log to be purged.
    pub garbage: u64,
}

/// Counts all rows.
pub(crate) fn census(db: &Db, family: &Family) -> Result<Census, Error> {
    let mut census = Census::default();
    db.walk(family, keys::everything(), Walk::Ahead { keep: false }, &mut |row, value| {
        match row.first() {
            Some(b'S') => census.states += 1,
            Some(b'C') => {
                census.chunks += 1;
                census.chunk_bytes += value.len() as u64;
            }
            Some(b'D') => census.requests += 1,
            Some(b'X') => census.expiries += 1,
            Some(b'U') => census.uploads += 1,
            Some(b'G') => census.garbage += 1,
            Some(b'A' | b'H' | b'L' | b'T' | b'W') => {}
            Some(_) | None => return Err(Error::corrupt("row", "its kind is unknown")),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(census)
}

fn hash_record(
    hash: &mut Xxh3,
    record: &Record,
    content: impl Fn(&mut Xxh3, &Content) -> Result<(), Error>,
) -> Result<(), Error> {
    hash.update(&record.version.to_le_bytes());
    hash.update(&record.writer.to_le_bytes());
    hash.update(&record.expires_at_ms.unwrap_or(u64::MAX).to_le_bytes());
    match &record.model {
        None => hash.update(&[0]),
        Some(model) => {
            hash.update(&[1]);
            part(hash, model.name.as_bytes());
            hash.update(&model.version.to_le_bytes());
        }
    }
    for field in &record.fields {
        part(hash, field.name.as_bytes());
        if let Some(at_ms) = field.expires_at_ms {
            hash.update(&at_ms.to_le_bytes());
        }
        match &field.field_type {
            FieldType::Bytes => hash.update(&[0]),
            FieldType::Tensor { dtype, shape } => {
                hash.update(&[1, *dtype as u8, shape.len() as u8]);
                for axis in shape {
                    hash.update(&axis.to_le_bytes());
                }
            }
        }
        hash.update(&field.content.len().to_le_bytes());
        content(hash, &field.content)?;
    }
    Ok(())
}

fn hash_content(
    hash: &mut Xxh3,
    collection: CollectionId,
    content: &Content,
    fetch: impl Fn(&[u8]) -> Result<Fetched, Error>,
) -> Result<(), Error> {
    let extents = match content {
        Content::Inline(bytes) => {
            hash.update(bytes);
            return Ok(());
        }
        Content::Blobs(extents) => extents,
    };
    for extent in extents {
        let span = chunks_of(extent);
        for number in span.first..span.end {
            let Fetched::Found(chunk) = fetch(&keys::chunk(collection, extent.blob, number))?
            else {
                let missing = "a chunk that its record refers to is missing";
                return Err(Error::corrupt("state", missing));
            };
            let (start, end) = blob::within(extent, number, chunk.len())?;
            hash.update(&chunk[start..end]);
        }
    }
    Ok(())
}

fn part(hash: &mut Xxh3, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}
