//! A replica on its way to another node: nothing is built, a view is streamed.
//!
//! The view is the database's at one moment, so entries go on being applied and purged meanwhile.
//! What is this replica's own business stays here: chunks that came with entries not applied in
//! the view, and chunks that no state needs and this log still does (`garbage.rs`). The other
//! side is `receive.rs`, and `install.rs` puts what came in the place of a replica.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use arc_swap::Guard;
use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::applied::Applied;
use crate::block::{self, Builder, Total};
use crate::db::{Db, Family, Fetched, Look, Rows, View, Walk};
use crate::disk::{Disk, Replica, decode_applied};
use crate::error::Error;
use crate::extent::{BlobId, ChunkSpan};
use crate::garbage::Garbage;
use crate::ids::{CollectionId, EntryId};
use crate::keys;

/// Bytes made room for in a block at once, however large it may become.
const RESERVED_BYTES_MAX: usize = 4 << 20;

/// A consistent view of a replica as of one entry, in blocks.
pub struct Export {
    rows: Rows,
    applied: Applied,
    own: Own,
    sent: u64,
    hash: Xxh3,
    ended: bool,
}

impl Export {
    pub(crate) fn new(disk: &Arc<Disk>, replica: &Replica) -> Result<Self, Error> {
        replica.check()?;
        // Before the view: an older generation goes on being readable, a newer one is not in it.
        let family = Guard::into_inner(replica.generation()).family.clone();
        let view = disk.db.view();
        let applied = match disk.db.get(&family, keys::APPLIED, Look::View(&view))? {
            Fetched::Found(row) => Some(row.into_bytes()),
            Fetched::Absent | Fetched::NeedsDisk => None,
        };
        let applied = decode_applied(applied)?;
        let own = Own::read(&disk.db, &family, &view, applied.id.index)?;
        let rows = disk.db.rows(view, family, keys::everything());
        Ok(Export { rows, applied, own, sent: 0, hash: Xxh3::new(), ended: false })
    }

    /// The last entry applied in the view; index 0 if there is none.
    pub fn applied(&self) -> EntryId {
        self.applied.id
    }

    /// The last membership applied in the view, and the entry that carried it.
    pub fn membership(&self) -> Option<(EntryId, Bytes)> {
        self.applied.membership.clone()
    }

    /// The next block, of about `bytes_max` bytes and of one row at least. `None`: all are out.
    /// May wait for the disk.
    pub fn next(&mut self, bytes_max: usize) -> Result<Option<Bytes>, Error> {
        if self.ended {
            return Ok(None);
        }
        let mut block = Builder::new(bytes_max.min(RESERVED_BYTES_MAX));
        while let Some((key, value)) = self.rows.row() {
            if self.own.holds(key)? {
                self.rows.step();
                continue;
            }
            let bytes = block.bytes() + Builder::row_bytes(key, value);
            if bytes > bytes_max && block.bytes() > 0 {
                return Ok(Some(self.count(block)));
            }
            block.push(key, value);
            self.sent += 1;
            self.rows.step();
        }
        self.rows.status()?;
        if block.bytes() > 0 {
            return Ok(Some(self.count(block)));
        }
        self.ended = true;
        Ok(Some(block::last(Total { rows: self.sent, hash: self.hash.digest() })))
    }

    fn count(&mut self, block: Builder) -> Bytes {
        let block = block.finish();
        self.hash.update(block::body(&block));
        block
    }
}

/// Rows that are of no use to another replica. Held in memory: a few dozen bytes for each run of
/// chunks that waits for the log to be purged.
struct Own {
    applied_index: u64,
    spans: HashMap<(CollectionId, BlobId), Vec<ChunkSpan>>,
    /// Of dropped collections: chunks of blobs before these.
    dropped: HashMap<CollectionId, BlobId>,
}

impl Own {
    fn read(db: &Db, family: &Family, view: &View, applied_index: u64) -> Result<Self, Error> {
        let mut own = Own { applied_index, spans: HashMap::new(), dropped: HashMap::new() };
        let (look, range) = (Look::View(view), keys::garbage_between(0, u64::MAX));
        db.walk_at(look, family, range, Walk::Ahead { keep: false }, &mut |_, value| {
            let garbage = Garbage::decode(Bytes::copy_from_slice(value))
                .map_err(|error| Error::corrupt("garbage row", error))?;
            match garbage {
                Garbage::Span(collection, span) => {
                    own.spans.entry((collection, span.blob)).or_default().push(span);
                }
                Garbage::Collection(collection, end) => {
                    let dropped = own.dropped.entry(collection).or_insert(end);
                    *dropped = end.max(*dropped);
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(own)
    }

    fn holds(&self, key: &[u8]) -> Result<bool, Error> {
        if keys::is_garbage(key) || key == keys::COMMIT || key == keys::SUMS {
            return Ok(true);
        }
        if !keys::is_chunk(key) {
            return Ok(false);
        }
        let (collection, blob, number) = keys::parse_chunk(key)
            .ok_or_else(|| Error::corrupt("chunk", "its key is malformed"))?;
        let spans = self.spans.get(&(collection, blob)).map_or(&[][..], Vec::as_slice);
        Ok(blob.index > self.applied_index
            || spans.iter().any(|span| (span.first..span.end).contains(&number))
            || self.dropped.get(&collection).is_some_and(|end| blob < *end))
    }
}
