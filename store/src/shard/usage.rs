//! Counts what decisions make of states and uploads: see `usage.rs`.

use bytes::Bytes;

use super::Applier;
use crate::apply::Change;
use crate::error::Error;
use crate::ids::CollectionId;
use crate::keys;
use crate::record::Record;
use crate::usage::{Size, Totals};

impl Applier<'_> {
    /// Counts what a change makes of a state. `stored` is its record so far, expired or not.
    pub(super) fn count(
        &mut self,
        key: &[u8],
        collection: CollectionId,
        stored: Option<&Record>,
        change: &Change,
    ) -> Result<(), Error> {
        let after = match change {
            Change::Keep => return Ok(()),
            Change::Erase => None,
            Change::Store(record) => Some(Size::of(record)),
        };
        let before = stored.map(Size::of);
        if before != after {
            self.totals(collection)?.count_state(before, after);
        }
        let [was, is] = [before, after].map(|size| size.and_then(Size::step));
        if was != is {
            let overlay = &mut self.part.overlay;
            if let Some(step) = was {
                overlay.delete(keys::large(collection, step, key));
            }
            if let Some(step) = is {
                overlay.put(keys::large(collection, step, key), Bytes::new());
            }
        }
        Ok(())
    }

    /// Counts what becomes of an upload, by its bytes.
    pub(super) fn count_upload(
        &mut self,
        collection: CollectionId,
        before: Option<u64>,
        after: Option<u64>,
    ) -> Result<(), Error> {
        if before != after {
            self.totals(collection)?.count_upload(before, after);
        }
        Ok(())
    }

    fn totals(&mut self, collection: CollectionId) -> Result<&mut Totals, Error> {
        let family = &self.part.replica.generation().family;
        self.part.usage.of(&self.disk.db, family, collection)
    }
}
