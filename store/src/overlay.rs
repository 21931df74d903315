//! What a batch has changed in one replica and not written yet, laid over the database.
//!
//! Later commands of a batch must see what earlier ones did. Each row is kept once, however
//! often it changes, and written once.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::db::{Batch, Db, Family, Fetched, Look, Pinned, Walk};
use crate::error::Error;

/// Rows changed and not written yet.
#[derive(Default)]
pub(crate) struct Overlay {
    /// `None`: the row is deleted.
    rows: HashMap<Vec<u8>, Option<Bytes>>,
    /// Ranges deleted; `rows` holds what came after.
    dropped: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
}

impl Overlay {
    /// A row as it is after everything so far.
    pub fn fetch(&self, db: &Arc<Db>, family: &Family, key: &[u8]) -> Result<Fetched, Error> {
        match self.decided(key) {
            Some(Some(value)) => Ok(Fetched::Found(Pinned::Owned(value))),
            Some(None) => Ok(Fetched::Absent),
            None => db.get(family, key, Look::Disk),
        }
    }

    /// A row, if something here decides it; `Some(None)`: it is deleted.
    pub fn decided(&self, key: &[u8]) -> Option<Option<Bytes>> {
        match self.rows.get(key) {
            Some(value) => Some(value.clone()),
            None => self.is_dropped(key).then_some(None),
        }
    }

    pub fn put(&mut self, key: Vec<u8>, value: Bytes) {
        self.bytes += key.len() + value.len();
        self.rows.insert(key, Some(value));
    }

    pub fn delete(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.rows.insert(key, None);
    }

    /// Deletes all rows from `start` to before `end`.
    pub fn drop_range(&mut self, start: Vec<u8>, end: Vec<u8>) {
        self.rows.retain(|key, _| *key < start || *key >= end);
        self.bytes += start.len() + end.len();
        self.dropped.push((start, end));
    }

    /// The keys of the first `limit` rows of a range, as they are after everything so far.
    pub fn keys(
        &self,
        db: &Arc<Db>,
        family: &Family,
        (start, end): (Vec<u8>, Vec<u8>),
        limit: usize,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let put = |(key, value): (&Vec<u8>, &Option<Bytes>)| {
            (value.is_some() && *key >= start && *key < end).then(|| key.clone())
        };
        let mut keys: Vec<_> = self.rows.iter().filter_map(put).collect();
        let mut stored = 0;
        let range = (start.clone(), end.clone());
        db.walk(family, range, Walk::Few, &mut |key, _| {
            if stored == limit {
                return Ok(ControlFlow::Break(()));
            }
            if !self.rows.contains_key(key) && !self.is_dropped(key) {
                keys.push(key.to_vec());
                stored += 1;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        keys.sort_unstable();
        keys.truncate(limit);
        Ok(keys)
    }

    /// Adds all changes to a batch.
    pub fn write(&self, family: &Family, batch: &mut Batch) {
        for (start, end) in &self.dropped {
            batch.delete_range(family, start, end);
        }
        // Neighbours in order: an insertion into the memtable starts where the last one was.
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        for (key, value) in rows {
            match value {
                Some(value) => batch.put(family, key, value),
                None => batch.delete(family, key),
            }
        }
    }

    /// The rows changed last, as they are now; `None`: deleted.
    pub fn rows(&self) -> impl Iterator<Item = (&[u8], &Option<Bytes>)> {
        self.rows.iter().map(|(key, value)| (&key[..], value))
    }

    /// The ranges deleted, before what `rows` has.
    pub fn dropped(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.dropped
    }

    /// About how many bytes of memory the changes take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_dropped(&self, key: &[u8]) -> bool {
        self.dropped.iter().any(|(start, end)| key >= &start[..] && key < &end[..])
    }
}
