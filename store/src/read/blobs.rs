//! The bytes of large fields: chunk by chunk where they are few, reading ahead where they are many.

use std::ops::{ControlFlow, Range};

use bytes::{Bytes, BytesMut};

use super::{Outcome, Reader};
use crate::blob::{self, Loaded};
use crate::db::{Look, Walk};
use crate::error::Error;
use crate::extent::{CHUNK_BYTES, Extent, Pieces};
use crate::ids::CollectionId;
use crate::keys;

/// Extents of more bytes are read ahead.
const READ_AHEAD_FROM_BYTES: u64 = 4 * CHUNK_BYTES;

impl Reader {
    /// As [`Reader::load_blob`]; chunks that make no sense are reported. Through a view, so are
    /// those that are missing: nobody deletes what a view sees.
    pub(super) fn load_checked(
        &self,
        look: Look<'_>,
        collection: CollectionId,
        extents: &[Extent],
        range: Range<u64>,
    ) -> Result<Outcome<Bytes>, Error> {
        let loaded = match (self.load_blob(look, collection, extents, range), look) {
            (Ok(Outcome::Gone), Look::View(_) | Look::Passing(_)) => {
                Err(Error::corrupt("state", "a chunk that its record refers to is missing"))
            }
            (loaded, _) => loaded,
        };
        self.disk.seen(self.replica.id, loaded)
    }

    fn load_blob(
        &self,
        look: Look<'_>,
        collection: CollectionId,
        extents: &[Extent],
        range: Range<u64>,
    ) -> Result<Outcome<Bytes>, Error> {
        let parts = Pieces::range_of(extents, range.clone());
        let fetch = |extent: &Extent| {
            let blob = extent.blob;
            move |number| self.chunk(look, collection, blob, number)
        };
        if let [extent] = &parts[..]
            && !read_ahead(look, extent)
        {
            return Ok(outcome(blob::read_extent(extent, fetch(extent))?));
        }
        let mut whole = BytesMut::with_capacity((range.end - range.start) as usize);
        for extent in &parts {
            let loaded = match read_ahead(look, extent) {
                true => self.walk_extent(look, collection, extent, &mut whole)?,
                false => blob::read_into(extent, fetch(extent), &mut whole)?,
            };
            match loaded {
                Loaded::Found(_) => {}
                Loaded::Gone => return Ok(Outcome::Gone),
                Loaded::NeedsDisk => return Ok(Outcome::NeedsDisk),
            }
        }
        Ok(Outcome::Ready(whole.freeze()))
    }

    /// Reads a long extent chunk after chunk, reading ahead.
    fn walk_extent(
        &self,
        look: Look<'_>,
        collection: CollectionId,
        extent: &Extent,
        out: &mut BytesMut,
    ) -> Result<Loaded, Error> {
        let span = crate::extent::chunks_of(extent);
        let rows = (
            keys::chunk(collection, extent.blob, span.first),
            keys::chunk(collection, extent.blob, span.end),
        );
        let keep = self.is_worth_keeping(extent.len);
        let mut next = span.first;
        let (generation, walk) = (self.generation(), Walk::Ahead { keep });
        self.disk.db.walk_at(look, &generation.family, rows, walk, &mut |key, chunk| {
            if key != keys::chunk(collection, extent.blob, next) {
                return Ok(ControlFlow::Break(()));
            }
            let (start, end) = blob::within(extent, next, chunk.len())?;
            out.extend_from_slice(&chunk[start..end]);
            next += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(if next == span.end { Loaded::Found(Bytes::new()) } else { Loaded::Gone })
    }
}

fn outcome(loaded: Loaded) -> Outcome<Bytes> {
    match loaded {
        Loaded::Found(bytes) => Outcome::Ready(bytes),
        Loaded::Gone => Outcome::Gone,
        Loaded::NeedsDisk => Outcome::NeedsDisk,
    }
}

fn read_ahead(look: Look<'_>, extent: &Extent) -> bool {
    match look {
        Look::Cached => false,
        Look::Disk | Look::View(_) | Look::Passing(_) => extent.len > READ_AHEAD_FROM_BYTES,
    }
}
