//! How much a replica holds, and its largest states: see `usage.rs` of the crate.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::Reader;
use crate::db::{Fetched, Look, View, Walk};
use crate::error::Error;
use crate::ids::CollectionId;
use crate::keys;
use crate::record::Record;
use crate::usage::{Size, Totals};

/// A state and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LargeState {
    /// Its collection.
    pub collection: CollectionId,
    /// Its key.
    pub key: Bytes,
    /// Bytes of all its fields.
    pub bytes: u64,
    /// Unix milliseconds. What has expired is there until it is swept.
    pub expires_at_ms: Option<u64>,
}

impl Reader {
    /// What each collection holds that holds something. May wait for the disk.
    pub fn usage(&self) -> Result<Vec<(CollectionId, Totals)>, Error> {
        self.replica.check()?;
        self.usage_at(Look::Disk)
    }

    /// The largest states, of one collection or of all, the largest first. Those of less than a
    /// sixteenth between them may be left out for each other. None that is one row alone is
    /// among them. May wait for the disk.
    pub fn largest(
        &self,
        collection: Option<CollectionId>,
        limit: usize,
    ) -> Result<Vec<LargeState>, Error> {
        self.replica.check()?;
        let generation = self.generation();
        let view = self.disk.db.view();
        let collections = match collection {
            Some(collection) => vec![collection],
            None => {
                let usage = self.usage_at(Look::View(&view))?;
                usage.into_iter().map(|(collection, _)| collection).collect()
            }
        };
        let mut rows = Vec::new();
        for collection in collections {
            let (range, mut left) = (keys::large_of(collection), limit);
            if left == 0 {
                break;
            }
            let look = Look::View(&view);
            self.disk.db.walk_at(look, &generation.family, range, Walk::Few, &mut |row, _| {
                rows.push(row.to_vec());
                left -= 1;
                Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        rows.sort_unstable_by(|a, b| keys::step_of_large(a).cmp(keys::step_of_large(b)));
        rows.truncate(limit);
        let states = rows.into_iter().map(|row| self.large_state(&view, &row));
        let mut states: Vec<LargeState> = states.collect::<Result<_, _>>()?;
        states.sort_by_key(|state| std::cmp::Reverse(state.bytes));
        Ok(states)
    }

    fn usage_at(&self, look: Look<'_>) -> Result<Vec<(CollectionId, Totals)>, Error> {
        let mut found = Vec::new();
        let (family, range) = (&self.generation().family, keys::usages());
        self.disk.db.walk_at(look, family, range, Walk::Few, &mut |row, value| {
            let totals = Totals::decode(Bytes::copy_from_slice(value))?;
            found.push((keys::collection_of(row), totals));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// The state of a row among the large ones.
    fn large_state(&self, view: &View, row: &[u8]) -> Result<LargeState, Error> {
        let (collection, key) = (keys::collection_of(row), keys::key_of_large(row));
        let record = keys::record(collection, key);
        let family = &self.generation().family;
        let Fetched::Found(found) = self.disk.db.get(family, &record, Look::Passing(view))? else {
            return Err(Error::corrupt("usage row", "it names a state that is not there"));
        };
        let record = Record::decode(found.into_bytes());
        let record = record.map_err(|error| Error::corrupt("state record", error))?;
        Ok(LargeState {
            collection,
            key: Bytes::copy_from_slice(key),
            bytes: Size::of(&record).bytes,
            expires_at_ms: record.expires_at_ms,
        })
    }
}
