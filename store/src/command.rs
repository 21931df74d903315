//! The replicated vocabulary: what an entry asks of a shard. What the shard answers is in
//! `reply.rs`, and what large states are asked in parts in `upload.rs`.
//!
//! Pure data. Its bytes are in `encoding.rs`, its meaning in `apply.rs`. Nothing here knows
//! time, disk or Raft: an entry carries the proposer's clock as a value.

use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;

use crate::ids::{CollectionId, EntryId};
use crate::upload::{PutUpload, Upload};
use crate::value::{AXES_MAX, Field, Value, When};

/// Commands in one entry: a command's position in its entry is 16 bits of a version.
pub const COMMANDS_PER_ENTRY_MAX: usize = 65_535;
/// The longest key, in bytes. The shortest is 1.
pub const KEY_BYTES_MAX: usize = 512;
/// Fields of one state.
pub const FIELDS_MAX: usize = 1_024;
/// Edits of one patch.
pub const EDITS_MAX: usize = 1_024;
/// The longest field name, in bytes. The shortest is 1.
pub const FIELD_NAME_BYTES_MAX: usize = 255;
/// The longest model name, in bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 255;
/// The longest answer kept for a repeated request, in bytes.
pub const ANSWER_BYTES_MAX: usize = 16 << 10;

/// One item of a replica's log. Made once and not changed: it remembers its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Position in the log, from 1, without gaps.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// What it asks.
    pub body: Body,
    pub(crate) encoded: Encoded,
}

/// An entry's bytes, once they were needed: the same for the log and for every follower. Entries
/// are compared by what they say.
#[derive(Clone, Default)]
pub(crate) struct Encoded(pub OnceLock<Bytes>);

impl PartialEq for Encoded {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Encoded {}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.0.get().is_some() { "known" } else { "unknown" };
        f.write_str(state)
    }
}

impl Entry {
    /// An item at a place in the log.
    pub fn new(index: u64, term: u64, body: Body) -> Self {
        Entry { index, term, body, encoded: Encoded::default() }
    }

    /// Which entry this is.
    pub fn id(&self) -> EntryId {
        EntryId { index: self.index, term: self.term }
    }

    /// About how many bytes the entry takes in a log.
    pub fn bytes(&self) -> usize {
        const FIXED: usize = 64;
        FIXED
            + match &self.body {
                Body::Blank => 0,
                Body::Membership(membership) => membership.len(),
                Body::Commands(batch) => batch.commands.iter().map(Command::bytes).sum(),
            }
    }
}

/// What an entry asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing: a new leader's first entry.
    Blank,
    /// Who votes from now on; opaque here, kept in the applied row.
    Membership(Bytes),
    /// Changes of states.
    Commands(CommandBatch),
}

/// Commands that ride in one entry, each with its own reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandBatch {
    /// The proposer's clock, in Unix milliseconds: the time at which all of them happen.
    pub time_ms: u64,
    /// At most [`COMMANDS_PER_ENTRY_MAX`].
    pub commands: Vec<Command>,
}

/// One change of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Replaces a state, or creates it.
    Put(Put),
    /// Changes parts of a state.
    Patch(Patch),
    /// Removes a state.
    Delete(Delete),
    /// Removes every state of a collection.
    DropCollection {
        /// Never used again afterwards: commands for it that still arrive would bring rows back.
        collection: CollectionId,
    },
    /// Removes what has expired.
    Sweep(Sweep),
    /// Begins, continues or ends an upload.
    Upload(Upload),
    /// Replaces a state, or creates it, by what was uploaded.
    PutUpload(PutUpload),
}

/// Where a state lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its collection.
    pub collection: CollectionId,
    /// 1..=512 bytes.
    pub key: Bytes,
}

/// What must hold for a write to happen. An expired state counts as absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Any,
    /// There is no state.
    Absent,
    /// The state has this version.
    Version(u64),
    /// The state was written with this token: a step that builds on one not yet committed.
    Writer(u64),
}

/// Recognises the repeats of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestTag {
    /// A hash of collection, key and request id.
    pub id: [u8; 16],
    /// A hash of what was asked: tells a repeat from another request under the same id.
    pub fingerprint: u64,
}

/// When a written state expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// As before; a new state never does.
    Keep,
    /// As before; a new state so many milliseconds after the entry's time.
    KeepOrAfter(u64),
    /// Never.
    Never,
    /// At this time, in Unix milliseconds.
    At(u64),
    /// So many milliseconds after the entry's time.
    After(u64),
}

/// The model version that wrote a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelTag {
    /// The model's name.
    pub name: String,
    /// Its version.
    pub version: u64,
}

/// What a collection allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteLimits {
    /// Bytes of all fields of a state together.
    pub state_bytes_max: u64,
    /// Bytes of fields that stay inside the record; larger ones go to blobs.
    pub inline_bytes_max: u32,
}

/// What every write says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which state.
    pub target: Target,
    /// What must hold.
    pub condition: Condition,
    /// `None`: repeats are not recognised.
    pub request: Option<RequestTag>,
    /// When the state expires.
    pub expiry: Expiry,
    /// A token of the writer that a later [`Condition::Writer`] may name; 0 is none.
    pub writer: u64,
    /// The model that made the state. A patch without one keeps the state's.
    pub model: Option<ModelTag>,
    /// What the collection allows.
    pub limits: WriteLimits,
    /// Opaque; kept with the request's row and returned to repeats. At most 16 KiB.
    pub answer: Bytes,
}

/// Replaces a state, or creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Which, when, by whom.
    pub write: Write,
    /// All fields of the new state.
    pub fields: Vec<Field>,
}

/// Changes parts of a state: all edits, in order, or none. Creates a state if all are `Set`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Which, when, by whom.
    pub write: Write,
    /// At most [`EDITS_MAX`].
    pub edits: Vec<Edit>,
}

/// One change of a field. A field that has expired is not there. Only [`Edit::Set`] and
/// [`Edit::Expire`] change when a field expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Adds or replaces a field.
    Set(Field),
    /// Removes a field that is there.
    Remove {
        /// Which.
        name: String,
    },
    /// Overwrites bytes of a field; its length, type and shape stay.
    WriteRange {
        /// Which.
        name: String,
        /// First byte to overwrite.
        offset: u64,
        /// What to write there.
        bytes: Bytes,
    },
    /// Adds bytes to the end of a field; to a tensor, whole rows of its first axis.
    Append {
        /// Which.
        name: String,
        /// What to add.
        bytes: Bytes,
        /// Drop from the front (of a tensor: whole rows) to stay within this many bytes.
        max_bytes: Option<u64>,
    },
    /// Changes when a field expires, and nothing else of it.
    Expire {
        /// Which.
        name: String,
        /// `None`: it lasts as long as its state.
        when: Option<When>,
    },
}

/// Removes a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// Which. Expiry, writer, model and limits mean nothing here.
    pub write: Write,
}

/// Removes expired states and fields, and the request rows that are too old to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// What expires up to here goes, but nothing that is alive by the entry's own time.
    pub now_ms: u64,
    /// States to remove, as a whole or fields of them, at most.
    pub limit: u32,
    /// Where in the expiry index to begin, as `Reader::sweep_start` says: spares a walk over
    /// what earlier sweeps left behind.
    pub cursor: Option<Bytes>,
    /// Request ids that the shard remembers at most from now on; `None`: as before.
    pub requests_max: Option<u64>,
}

/// A part of a command is larger or smaller than the vocabulary allows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {min}..={max} {what}, found {found}")]
pub struct OutOfBounds {
    /// What is counted, with its unit.
    pub what: &'static str,
    /// How many there are.
    pub found: usize,
    /// How few there may be.
    pub min: usize,
    /// How many there may be.
    pub max: usize,
}

pub(crate) fn bounded(
    what: &'static str,
    found: usize,
    (min, max): (usize, usize),
) -> Result<(), OutOfBounds> {
    if (min..=max).contains(&found) {
        return Ok(());
    }
    Err(OutOfBounds { what, found, min, max })
}

impl CommandBatch {
    /// Whether the batch and all its commands are within the vocabulary's bounds.
    pub fn check(&self) -> Result<(), OutOfBounds> {
        bounded("commands in an entry", self.commands.len(), (0, COMMANDS_PER_ENTRY_MAX))?;
        self.commands.iter().try_for_each(Command::check)
    }
}

impl Command {
    /// Whether every part is within the vocabulary's bounds. A log refuses entries that are not.
    pub fn check(&self) -> Result<(), OutOfBounds> {
        match self {
            Command::Put(put) => {
                put.write.check()?;
                bounded("fields", put.fields.len(), (0, FIELDS_MAX))?;
                put.fields.iter().try_for_each(check_field)
            }
            Command::Patch(patch) => {
                patch.write.check()?;
                bounded("edits", patch.edits.len(), (0, EDITS_MAX))?;
                patch.edits.iter().try_for_each(|edit| match edit {
                    Edit::Set(field) => check_field(field),
                    Edit::Remove { name }
                    | Edit::WriteRange { name, .. }
                    | Edit::Append { name, .. }
                    | Edit::Expire { name, .. } => check_field_name(name),
                })
            }
            Command::Delete(delete) => delete.write.check(),
            Command::DropCollection { .. } | Command::Sweep(_) => Ok(()),
            Command::Upload(upload) => upload.check(),
            Command::PutUpload(put) => put.check(),
        }
    }

    /// About how many bytes the command takes in a log, for bounding queues.
    pub fn bytes(&self) -> usize {
        const FIXED: usize = 96;
        match self {
            Command::Put(put) => {
                FIXED + put.write.bytes() + put.fields.iter().map(field_bytes).sum::<usize>()
            }
            Command::Patch(patch) => {
                FIXED + patch.write.bytes() + patch.edits.iter().map(Edit::bytes).sum::<usize>()
            }
            Command::Delete(delete) => FIXED + delete.write.bytes(),
            Command::DropCollection { .. } => FIXED,
            Command::Sweep(sweep) => FIXED + sweep.cursor.as_ref().map_or(0, Bytes::len),
            Command::Upload(upload) => FIXED + upload.bytes(),
            Command::PutUpload(put) => FIXED + put.bytes(),
        }
    }
}

impl Target {
    pub(crate) fn check(&self) -> Result<(), OutOfBounds> {
        bounded("bytes of a key", self.key.len(), (1, KEY_BYTES_MAX))
    }
}

impl Write {
    pub(crate) fn check(&self) -> Result<(), OutOfBounds> {
        self.target.check()?;
        bounded("bytes of an answer", self.answer.len(), (0, ANSWER_BYTES_MAX))?;
        match &self.model {
            None => Ok(()),
            Some(model) => {
                bounded("bytes of a model's name", model.name.len(), (0, MODEL_NAME_BYTES_MAX))
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        let model = self.model.as_ref().map_or(0, |model| model.name.len());
        self.target.key.len() + self.answer.len() + model
    }
}

impl Edit {
    fn bytes(&self) -> usize {
        match self {
            Edit::Set(field) => field_bytes(field),
            Edit::Remove { name } => name.len() + 8,
            Edit::Expire { name, .. } => name.len() + 16,
            Edit::WriteRange { name, bytes, .. } | Edit::Append { name, bytes, .. } => {
                name.len() + bytes.len() + 24
            }
        }
    }
}

pub(crate) fn check_field_name(name: &str) -> Result<(), OutOfBounds> {
    bounded("bytes of a field's name", name.len(), (1, FIELD_NAME_BYTES_MAX))
}

fn check_field(field: &Field) -> Result<(), OutOfBounds> {
    check_field_name(&field.name)?;
    match &field.value {
        Value::Tensor { shape, .. } => bounded("axes of a tensor", shape.len(), (0, AXES_MAX)),
        Value::Bytes(_) => Ok(()),
    }
}

fn field_bytes(field: &Field) -> usize {
    field.name.len() + field.value.bytes().len() + 32
}
