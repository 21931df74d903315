//! Reads of one replica as it was at one moment, whatever is applied or installed meanwhile.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::db::{self, Look};
use crate::error::Error;
use crate::ids::CollectionId;
use crate::read::{Outcome, Reader};
use crate::state::{Selection, State, StateField, WholeState};
use crate::stream::FieldStream;

/// One replica as it was at one moment. Holds up compaction: not for long.
pub struct View {
    reader: Reader,
    applied_index: u64,
    at: db::View,
}

impl View {
    pub(crate) fn new(reader: Reader, applied_index: u64, at: db::View) -> Self {
        View { reader, applied_index, at }
    }

    /// Index of an entry that the view has; it may have later ones.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// As [`Reader::get`].
    pub fn get(
        &self,
        collection: CollectionId,
        key: &[u8],
        now_ms: u64,
    ) -> Result<Option<State>, Error> {
        self.reader.get_at(Look::View(&self.at), collection, key, now_ms)
    }

    /// As [`Reader::load`], of a field that this view has read: never `Replaced`.
    pub fn load(&self, field: &StateField, range: Range<u64>) -> Result<Bytes, Error> {
        self.reader.loaded(Look::View(&self.at), field, range)
    }

    /// As [`Reader::get_whole`].
    pub fn get_whole(
        &self,
        collection: CollectionId,
        key: &[u8],
        selection: &Selection,
        now_ms: u64,
    ) -> Result<Option<WholeState>, Error> {
        let look = Look::View(&self.at);
        match self.reader.whole_at(look, collection, key, selection, now_ms)? {
            Outcome::Ready(state) => Ok(state),
            Outcome::NeedsDisk | Outcome::Gone => {
                Err(Error::corrupt("state", "a chunk that its record refers to is missing"))
            }
        }
    }

    /// The bytes of a field that this view has read, to be read piece by piece.
    pub fn stream(
        self: &Arc<Self>,
        field: &StateField,
        range: Range<u64>,
    ) -> Result<FieldStream, Error> {
        FieldStream::new(self.clone(), field, range)
    }

    pub(crate) fn parts(&self) -> (&Reader, &db::View) {
        (&self.reader, &self.at)
    }
}
