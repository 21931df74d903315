//! What a read answers: a state with its fields where they lie, or whole.
//!
//! [`State`] refers to large fields; [`WholeState`] has the bytes that were asked for.

use std::sync::Arc;

use bytes::Bytes;

use crate::command::ModelTag;
use crate::error::Error;
use crate::extent::Extent;
use crate::ids::CollectionId;
use crate::record::{Content, Record, RecordField};
use crate::selected::{Slice, selected};
use crate::value::{Field, FieldType};

/// What a read that may not wait for the disk comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cached<T> {
    /// It was in memory.
    Ready(T),
    /// It is on disk: read it on a thread that may wait.
    NeedsDisk,
}

/// A state; large fields are referred to and not read.
#[derive(Clone, Debug)]
pub struct State {
    /// When it was last written, in the shard's order.
    pub version: u64,
    /// Unix milliseconds from which on it counts as absent.
    pub expires_at_ms: Option<u64>,
    /// The token of who wrote it; 0 is none.
    pub writer: u64,
    /// The model that made it.
    pub model: Option<ModelTag>,
    /// Those that had not expired when it was read, in the order they were added.
    pub fields: Vec<StateField>,
}

/// A field of a state.
#[derive(Clone, Debug)]
pub struct StateField {
    /// Unique in its state.
    pub name: String,
    /// Type and shape.
    pub field_type: FieldType,
    /// Unix milliseconds from which on it counts as absent.
    pub expires_at_ms: Option<u64>,
    /// Bytes of the whole field.
    pub bytes_len: u64,
    /// The bytes, or where they are.
    pub payload: Payload,
}

/// A field's bytes, or where they are.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Here. They may share the memory of the cache: do not keep them for long.
    Inline(Bytes),
    /// On disk: `Reader::load` brings them.
    Blob(BlobHandle),
}

/// Where a large field lies. Good until its state is replaced.
#[derive(Clone, Debug)]
pub struct BlobHandle {
    pub(crate) collection: CollectionId,
    pub(crate) extents: Arc<[Extent]>,
}

/// A state with the bytes of the fields that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WholeState {
    /// When it was last written, in the shard's order; 0 of an empty one.
    pub version: u64,
    /// Unix milliseconds from which on it counts as absent.
    pub expires_at_ms: Option<u64>,
    /// The token of who wrote it; 0 is none.
    pub writer: u64,
    /// The model that made it.
    pub model: Option<ModelTag>,
    /// In the order they were added, or asked for. Rows of a tensor are a tensor; a range of
    /// bytes is bytes.
    pub fields: Vec<Field>,
}

impl WholeState {
    /// A record with the bytes of some of its fields.
    pub(crate) fn of(record: &Record, fields: Vec<Field>) -> Self {
        WholeState {
            version: record.version,
            expires_at_ms: record.expires_at_ms,
            writer: record.writer,
            model: record.model.clone(),
            fields,
        }
    }

    /// Bytes of the fields that are here.
    pub fn bytes_len(&self) -> u64 {
        self.fields.iter().map(|field| field.value.bytes().len() as u64).sum()
    }

    /// A state without fields that nobody has written.
    pub fn empty() -> Self {
        WholeState::default()
    }
}

/// Which fields to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// `None`: all, whole.
    pub fields: Option<Vec<FieldRange>>,
    /// A field that the state does not have is left out, and no error.
    pub if_present: bool,
}

/// A field to read, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRange {
    /// The field's name.
    pub name: String,
    /// Which part.
    pub part: Part,
}

/// A part of a field. No length or count: to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Bytes, whatever they mean.
    Bytes {
        /// The first one.
        offset: u64,
        /// How many.
        len: Option<u64>,
    },
    /// Rows of a tensor: a range of its leading dimension.
    Rows {
        /// The first one.
        first: u64,
        /// How many.
        count: Option<u64>,
    },
}

impl Selection {
    /// All fields that have not expired, whole.
    pub fn all() -> Self {
        Selection::default()
    }

    /// These fields, in this order.
    pub fn fields(fields: Vec<FieldRange>) -> Self {
        Selection { fields: Some(fields), if_present: false }
    }

    /// Those of these fields that the state has, whole, in this order.
    pub fn if_present(names: Vec<String>) -> Self {
        let whole = |name| FieldRange { name, part: Part::Whole };
        let fields = names.into_iter().map(whole).collect();
        Selection { fields: Some(fields), if_present: true }
    }
}

impl State {
    /// A record, but for the fields that have expired.
    pub(crate) fn of(record: &Record, collection: CollectionId, now_ms: u64) -> State {
        let there = record.fields.iter().filter(|field| !field.expired(now_ms));
        State {
            version: record.version,
            expires_at_ms: record.expires_at_ms,
            writer: record.writer,
            model: record.model.clone(),
            fields: there.map(|field| StateField::of(field, collection)).collect(),
        }
    }

    /// The field of a name, if there is one.
    pub fn field(&self, name: &str) -> Option<&StateField> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The parts of fields that a selection names.
    pub fn select(&self, selection: &Selection) -> Result<Vec<Slice<'_, StateField>>, Error> {
        selected(
            &self.fields,
            selection,
            |field| (&field.name, &field.field_type, field.bytes_len),
            |_| true,
        )
    }

    /// Bytes of all fields.
    pub fn bytes_len(&self) -> u64 {
        self.fields.iter().map(|field| field.bytes_len).sum()
    }
}

impl StateField {
    fn of(field: &RecordField, collection: CollectionId) -> StateField {
        let payload = match &field.content {
            Content::Inline(bytes) => Payload::Inline(bytes.clone()),
            Content::Blobs(extents) => {
                Payload::Blob(BlobHandle { collection, extents: extents[..].into() })
            }
        };
        let (name, field_type) = (field.name.clone(), field.field_type.clone());
        let (expires_at_ms, bytes_len) = (field.expires_at_ms, field.content.len());
        StateField { name, field_type, expires_at_ms, bytes_len, payload }
    }
}
