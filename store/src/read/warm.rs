//! Brings states into memory for reads that are to come, and hands no bytes out.
//!
//! A record goes into the cache of decoded states, the chunks of its large fields into the block
//! cache. Fields that a read would not keep there pass by, and so does what a caller has no room
//! for: who brings in more than the cache holds throws out what it brought first.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Outcome, RETRIES_MAX, Reader};
use crate::cache::Asked;
use crate::db::{Fetched, Look};
use crate::error::Error;
use crate::extent::{Pieces, chunks_of};
use crate::ids::CollectionId;
use crate::record::{Content, Record};
use crate::selected::{Slice, check_range, selected};
use crate::state::{Cached, Selection};

/// All that is brought in together takes at most one in so many bytes of the block cache.
const ROOM_SHARE: u64 = 2;

/// How warm a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmth {
    /// There is no state.
    NoState,
    /// All that was asked for is in memory.
    Whole,
    /// The record is; some field is too large, or found no room.
    Partly,
}

/// Bytes of large fields that may still be brought into memory.
#[derive(Debug)]
pub struct Room(AtomicU64);

impl Room {
    /// Takes so many bytes, if there are that many.
    fn take(&self, bytes: u64) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }
}

impl Reader {
    /// Room for what is brought in together.
    pub fn room(&self) -> Room {
        Room(AtomicU64::new(self.block_cache_bytes / ROOM_SHARE))
    }

    /// How warm a state is, if that can be said without the disk. A record whose block is in
    /// memory is decoded and kept. Not counted as a lookup.
    pub fn try_warm(
        &self,
        collection: CollectionId,
        key: &[u8],
        selection: &Selection,
        now_ms: u64,
    ) -> Result<Cached<Warmth>, Error> {
        match self.warm_at(Look::Cached, None, collection, key, selection, now_ms)? {
            Outcome::Ready(warmth) => Ok(Cached::Ready(warmth)),
            Outcome::NeedsDisk | Outcome::Gone => Ok(Cached::NeedsDisk),
        }
    }

    /// Brings a state into memory. May wait for the disk. Not counted as a lookup.
    pub fn warm(
        &self,
        collection: CollectionId,
        key: &[u8],
        selection: &Selection,
        now_ms: u64,
        room: &Room,
    ) -> Result<Warmth, Error> {
        for _ in 0..RETRIES_MAX {
            let outcome =
                self.warm_at(Look::Disk, Some(room), collection, key, selection, now_ms)?;
            if let Outcome::Ready(warmth) = outcome {
                return Ok(warmth);
            }
        }
        // It is written faster than it can be read: what was written is in memory.
        Ok(Warmth::Partly)
    }

    fn warm_at(
        &self,
        look: Look<'_>,
        room: Option<&Room>,
        collection: CollectionId,
        key: &[u8],
        selection: &Selection,
        now_ms: u64,
    ) -> Result<Outcome<Warmth>, Error> {
        match self.record_for(Asked::Again, look, collection, (key, now_ms))? {
            Outcome::Ready(Some(record)) => {
                let now_ms = self.now_ms(now_ms);
                self.warm_fields(look, room, collection, (&record, now_ms), selection)
            }
            Outcome::Ready(None) => Ok(Outcome::Ready(Warmth::NoState)),
            Outcome::NeedsDisk => Ok(Outcome::NeedsDisk),
            Outcome::Gone => Ok(Outcome::Gone),
        }
    }

    fn warm_fields(
        &self,
        look: Look<'_>,
        room: Option<&Room>,
        collection: CollectionId,
        (record, now_ms): (&Record, u64),
        selection: &Selection,
    ) -> Result<Outcome<Warmth>, Error> {
        let slices = selected(
            &record.fields,
            selection,
            |field| (&field.name, &field.field_type, field.content.len()),
            |field| !field.expired(now_ms),
        );
        let mut warmth = Warmth::Whole;
        for Slice { field, range, .. } in slices? {
            check_range(&field.name, field.content.len(), &range)?;
            let Content::Blobs(extents) = &field.content else { continue };
            let bytes = range.end - range.start;
            if !self.is_worth_keeping(bytes) || room.is_some_and(|room| !room.take(bytes)) {
                warmth = Warmth::Partly;
                continue;
            }
            for extent in Pieces::range_of(extents, range) {
                let span = chunks_of(&extent);
                for number in span.first..span.end {
                    match self.chunk(look, collection, extent.blob, number)? {
                        Fetched::Found(_) => {}
                        Fetched::Absent => return Ok(Outcome::Gone),
                        Fetched::NeedsDisk => return Ok(Outcome::NeedsDisk),
                    }
                }
            }
        }
        Ok(Outcome::Ready(warmth))
    }
}
