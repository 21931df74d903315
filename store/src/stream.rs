//! A long stretch of a field, read piece by piece: memory holds the piece at hand alone.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::blob;
use crate::db::{Fetched, Look};
use crate::error::Error;
use crate::extent::{CHUNK_BYTES, Extent, Pieces};
use crate::ids::CollectionId;
use crate::selected::{check_range, inline_part};
use crate::state::{Payload, StateField};
use crate::view::View;

/// Reads a stretch of a field from a view, from its front to its end.
pub struct FieldStream {
    view: Arc<View>,
    left: Left,
    /// What is read stays in the block cache.
    keep: bool,
}

/// What is not read yet.
enum Left {
    Inline(Bytes),
    Blobs(CollectionId, VecDeque<Extent>),
}

impl FieldStream {
    pub(crate) fn new(
        view: Arc<View>,
        field: &StateField,
        range: Range<u64>,
    ) -> Result<Self, Error> {
        check_range(&field.name, field.bytes_len, &range)?;
        let keep = view.parts().0.is_worth_keeping(range.end - range.start);
        let left = match &field.payload {
            Payload::Inline(bytes) => Left::Inline(inline_part(&field.name, bytes, range)?),
            Payload::Blob(handle) => {
                Left::Blobs(handle.collection, Pieces::range_of(&handle.extents, range).into())
            }
        };
        Ok(FieldStream { view, left, keep })
    }

    /// The next bytes, at most 256 KiB; `None` at the end. May wait for the disk.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, Error> {
        let (collection, extents) = match &mut self.left {
            Left::Inline(bytes) => {
                let piece = bytes.split_to(bytes.len().min(CHUNK_BYTES as usize));
                return Ok(Some(piece).filter(|piece| !piece.is_empty()));
            }
            Left::Blobs(collection, extents) => (*collection, extents),
        };
        let Some(front) = extents.front_mut() else { return Ok(None) };
        let first =
            Extent { len: front.len.min(CHUNK_BYTES - front.offset % CHUNK_BYTES), ..*front };
        if first.len == front.len {
            extents.pop_front();
        } else {
            front.offset += first.len;
            front.len -= first.len;
        }
        let (reader, at) = self.view.parts();
        let look = if self.keep { Look::View(at) } else { Look::Passing(at) };
        let chunk = |number| reader.chunk(look, collection, first.blob, number);
        let piece = blob::read_extent(&first, |number| match chunk(number)? {
            Fetched::Absent | Fetched::NeedsDisk => {
                Err(Error::corrupt("state", "a chunk that its record refers to is missing"))
            }
            found @ Fetched::Found(_) => Ok(found),
        })?;
        Ok(piece.into_option())
    }
}
