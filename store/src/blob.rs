//! A blob's bytes as chunk rows, and back.
//!
//! Knows rows and not where they come from: the caller brings each chunk, from memory, disk, a
//! view, or a batch that is not written yet.

use bytes::{Bytes, BytesMut};

use crate::db::Fetched;
use crate::error::Error;
use crate::extent::{BlobId, CHUNK_BYTES, Extent, chunks_of};
use crate::ids::CollectionId;
use crate::keys;

/// Cuts a blob into its rows; they share its memory.
pub(crate) fn chunk_rows(
    collection: CollectionId,
    blob: BlobId,
    bytes: &Bytes,
    mut row: impl FnMut(Vec<u8>, Bytes),
) {
    let mut rest = bytes.clone();
    for number in 0.. {
        if rest.is_empty() {
            return;
        }
        let chunk = rest.split_to(rest.len().min(CHUNK_BYTES as usize));
        row(keys::chunk(collection, blob, number), chunk);
    }
}

/// What reading bytes came to.
pub(crate) enum Loaded {
    Found(Bytes),
    /// A chunk is gone: the field was replaced.
    Gone,
    /// A chunk is not in memory, and the read may not go further.
    NeedsDisk,
}

impl Loaded {
    pub fn into_option(self) -> Option<Bytes> {
        match self {
            Loaded::Found(bytes) => Some(bytes),
            Loaded::Gone | Loaded::NeedsDisk => None,
        }
    }
}

/// Reads an extent; within one chunk without a copy.
pub(crate) fn read_extent(
    extent: &Extent,
    fetch: impl FnMut(u32) -> Result<Fetched, Error>,
) -> Result<Loaded, Error> {
    let span = chunks_of(extent);
    if extent.len > 0 && span.end - span.first == 1 {
        return read_one(extent, span.first, fetch);
    }
    let mut whole = BytesMut::with_capacity(extent.len as usize);
    let loaded = read_into(extent, fetch, &mut whole)?;
    Ok(match loaded {
        Loaded::Found(_) => Loaded::Found(whole.freeze()),
        other => other,
    })
}

fn read_one(
    extent: &Extent,
    number: u32,
    mut fetch: impl FnMut(u32) -> Result<Fetched, Error>,
) -> Result<Loaded, Error> {
    let pinned = match fetch(number)? {
        Fetched::Found(pinned) => pinned,
        Fetched::Absent => return Ok(Loaded::Gone),
        Fetched::NeedsDisk => return Ok(Loaded::NeedsDisk),
    };
    let (start, end) = within(extent, number, pinned.len())?;
    // A crumb of a chunk is copied: holding it must not pin 256 KiB.
    if (end - start) * 8 < pinned.len() {
        return Ok(Loaded::Found(Bytes::copy_from_slice(&pinned[start..end])));
    }
    Ok(Loaded::Found(pinned.into_bytes().slice(start..end)))
}

/// Reads an extent to the end of a buffer; answers `Found` with nothing in it.
pub(crate) fn read_into(
    extent: &Extent,
    mut fetch: impl FnMut(u32) -> Result<Fetched, Error>,
    out: &mut BytesMut,
) -> Result<Loaded, Error> {
    let span = chunks_of(extent);
    for number in span.first..span.end {
        match fetch(number)? {
            Fetched::Absent => return Ok(Loaded::Gone),
            Fetched::NeedsDisk => return Ok(Loaded::NeedsDisk),
            Fetched::Found(pinned) => {
                let (start, end) = within(extent, number, pinned.len())?;
                out.extend_from_slice(&pinned[start..end]);
            }
        }
    }
    Ok(Loaded::Found(Bytes::new()))
}

/// Which bytes of a chunk belong to an extent.
pub(crate) fn within(
    extent: &Extent,
    number: u32,
    chunk_len: usize,
) -> Result<(usize, usize), Error> {
    let chunk_start = u64::from(number) * CHUNK_BYTES;
    let start = extent.offset.saturating_sub(chunk_start);
    let end = (extent.offset + extent.len - chunk_start).min(CHUNK_BYTES);
    if end > chunk_len as u64 {
        let detail = format!("expected at least {end} bytes, found {chunk_len}");
        return Err(Error::corrupt("chunk", detail));
    }
    Ok((start as usize, end as usize))
}
