//! What a write does to a state: (record or none, command, moment) -> (change, reply).
//!
//! Total and deterministic: every replica decides the same from the same entry. A refusal is a
//! reply. Time is the entry's; nothing here looks at a clock. The only I/O is bytes of blobs
//! that must be written again, read through a function that the caller passes; its failure is
//! the only error. Requests seen before, rows and indexes are the shard's (`shard.rs`).

use bytes::Bytes;

use crate::command::{
    Command, Condition, Delete, Expiry, FIELDS_MAX, Patch, Put, Write, WriteLimits,
};
use crate::extent::{BlobId, ChunkSpan, Extent, Piece, Pieces, unreferenced};
use crate::patch;
use crate::payload::{detached, outgrown};
use crate::record::{Content, Record, RecordField};
use crate::reply::Reply;
use crate::upload::PutUpload;
use crate::value::{Field, FieldType};

/// When a command happens, in the shard's order and by the entry's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Index of the entry.
    pub index: u64,
    /// Position of the command in it.
    pub position: u16,
    /// Unix milliseconds.
    pub time_ms: u64,
}

impl Moment {
    /// The version of what is written now.
    pub fn version(self) -> u64 {
        self.index << 16 | u64::from(self.position)
    }

    /// The index of the entry that wrote a version.
    pub fn index_of(version: u64) -> u64 {
        version >> 16
    }

    /// A blob that came with this command.
    pub fn blob(self, number: u16) -> BlobId {
        BlobId { index: self.index, position: self.position, number }
    }
}

/// What becomes of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Keep,
    /// This is the record now.
    Store(Record),
    /// There is no record now.
    Erase,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What its caller is told.
    pub reply: Reply,
    /// What becomes of the record.
    pub change: Change,
    /// Blobs to write with the record.
    pub spills: Vec<(BlobId, Bytes)>,
    /// Chunk rows that nothing refers to any more.
    pub freed: Vec<ChunkSpan>,
}

/// Reads the bytes of an extent.
pub type Load<'a, E> = dyn FnMut(&Extent) -> Result<Bytes, E> + 'a;

/// A field while its state is being worked out.
#[derive(Clone, Debug)]
pub struct Draft {
    pub name: String,
    pub field_type: FieldType,
    pub expires_at_ms: Option<u64>,
    pub content: DraftContent,
}

/// Where the bytes of a draft are.
#[derive(Clone, Debug)]
pub enum DraftContent {
    Inline(Bytes),
    Pieces(Pieces),
}

impl DraftContent {
    pub fn len(&self) -> u64 {
        match self {
            DraftContent::Inline(bytes) => bytes.len() as u64,
            DraftContent::Pieces(pieces) => pieces.len(),
        }
    }
}

/// Replaces a state.
pub fn put<E>(
    put: &Put,
    away: &Away,
    stored: Option<&Record>,
    moment: Moment,
    load: &mut Load<'_, E>,
) -> Result<Decision, E> {
    let alive = stored.filter(|record| !record.expired(moment.time_ms));
    let fields = put.fields.iter();
    let fields = fields.map(|f| (f.name.as_str(), f.value.field_type(), f.bytes().len() as u64));
    if let Some(refusal) = refuse(put.write.condition, alive).or_else(|| bad_fields(fields)) {
        return Ok(away.refused(refusal));
    }
    let drafts =
        put.fields.iter().enumerate().map(|(slot, it)| away.draft(slot, it, moment)).collect();
    let model = put.write.model.clone();
    finish(&put.write, away, drafts, Stored { stored, alive }, (moment, model), load)
}

/// Replaces a state by what was uploaded, complete and in these parts. A conflict leaves the
/// parts alone; any other refusal frees them.
pub fn put_upload<E>(
    put: &PutUpload,
    parts: &[Extent],
    stored: Option<&Record>,
    moment: Moment,
    load: &mut Load<'_, E>,
) -> Result<Decision, E> {
    let alive = stored.filter(|record| !record.expired(moment.time_ms));
    if let Some(refusal) = refuse(put.write.condition, alive) {
        return Ok(Away::default().refused(refusal));
    }
    let away = Away::parts(parts);
    let fields = put.fields.iter().map(|f| (f.name.as_str(), f.field_type.clone(), f.bytes));
    if let Some(refusal) = bad_fields(fields) {
        return Ok(away.refused(refusal));
    }
    let mut end = 0;
    let draft = |field: &crate::upload::UploadedField| {
        let range = end..end + field.bytes;
        end = range.end;
        let content = DraftContent::Pieces(Pieces::stored(&Pieces::range_of(parts, range)));
        let (name, field_type) = (field.name.clone(), field.field_type.clone());
        let expires_at_ms = field.expires.map(|when| when.at_ms(moment.time_ms));
        Draft { name, field_type, expires_at_ms, content }
    };
    let drafts = put.fields.iter().map(draft).collect();
    let model = put.write.model.clone();
    finish(&put.write, &away, drafts, Stored { stored, alive }, (moment, model), load)
}

/// Changes parts of a state.
pub fn patch<E>(
    patch: &Patch,
    away: &Away,
    stored: Option<&Record>,
    moment: Moment,
    load: &mut Load<'_, E>,
) -> Result<Decision, E> {
    let alive = stored.filter(|record| !record.expired(moment.time_ms));
    if let Some(refusal) = refuse(patch.write.condition, alive) {
        return Ok(away.refused(refusal));
    }
    if alive.is_none() && !patch.edits.iter().all(patch::creates) {
        return Ok(away.refused(Reply::NotFound));
    }
    let drafts = alive.map(|record| drafts_of(record, moment.time_ms));
    let mut drafts = drafts.unwrap_or_default();
    for (slot, edit) in patch.edits.iter().enumerate() {
        if let Err(refusal) = patch::edit(&mut drafts, slot, edit, (away, moment)) {
            return Ok(away.refused(refusal));
        }
    }
    if drafts.len() > FIELDS_MAX {
        let name = drafts[FIELDS_MAX].name.clone();
        let expected = format!("at most {FIELDS_MAX} fields in a state");
        return Ok(away.refused(Reply::FieldMismatch { name, expected }));
    }
    let model = match (&patch.write.model, alive) {
        (Some(model), _) => Some(model.clone()),
        (None, Some(record)) => record.model.clone(),
        (None, None) => None,
    };
    finish(&patch.write, away, drafts, Stored { stored, alive }, (moment, model), load)
}

/// Removes a state.
pub fn delete(delete: &Delete, stored: Option<&Record>, moment: Moment) -> Decision {
    let alive = stored.filter(|record| !record.expired(moment.time_ms));
    if let Some(refusal) = refuse(delete.write.condition, alive) {
        return Away::default().refused(refusal);
    }
    let existed = alive.is_some();
    let reply = Reply::Deleted { version: moment.version(), existed, repeated: false };
    match stored {
        None => Decision { reply, change: Change::Keep, spills: Vec::new(), freed: Vec::new() },
        Some(record) => erase(record, reply),
    }
}

/// Removes a record with its blobs.
pub fn erase(record: &Record, reply: Reply) -> Decision {
    let freed = unreferenced(&record.extents(), &[]);
    Decision { reply, change: Change::Erase, spills: Vec::new(), freed }
}

/// The payloads of a command that lie in chunk rows already.
#[derive(Clone, Debug, Default)]
pub struct Away {
    slots: Vec<(u16, Extent)>,
}

impl Away {
    /// Those of a command at its place in the log.
    pub fn of(command: &Command, moment: Moment) -> Self {
        let extent = |slot, bytes: &Bytes| Extent {
            blob: moment.blob(slot),
            offset: 0,
            len: bytes.len() as u64,
        };
        let payloads = detached(command);
        Away { slots: payloads.iter().map(|p| (p.slot, extent(p.slot, p.bytes))).collect() }
    }

    /// Those of an upload.
    fn parts(parts: &[Extent]) -> Self {
        Away { slots: (0u16..).zip(parts.iter().copied()).collect() }
    }

    pub(crate) fn find(&self, slot: usize) -> Option<Extent> {
        self.slots.iter().find(|(number, _)| usize::from(*number) == slot).map(|(_, at)| *at)
    }

    fn extents(&self) -> Vec<Extent> {
        self.slots.iter().map(|(_, extent)| *extent).collect()
    }

    /// The payload of an edit as a piece of its field.
    pub(crate) fn piece(&self, slot: usize, bytes: &Bytes) -> Piece {
        self.find(slot).map_or_else(|| Piece::Fresh(bytes.clone()), Piece::Stored)
    }

    /// A field given whole.
    pub(crate) fn draft(&self, slot: usize, field: &Field, moment: Moment) -> Draft {
        let content = match self.find(slot) {
            None => DraftContent::Inline(field.bytes().clone()),
            Some(extent) => DraftContent::Pieces(Pieces::stored(&[extent])),
        };
        let (name, field_type) = (field.name.clone(), field.value.field_type());
        let expires_at_ms = field.expires.map(|when| when.at_ms(moment.time_ms));
        Draft { name, field_type, expires_at_ms, content }
    }

    /// Nothing changes, and what the command brought is garbage. Also what a repeated request
    /// comes to.
    pub fn refused(&self, reply: Reply) -> Decision {
        let freed = unreferenced(&self.extents(), &[]);
        Decision { reply, change: Change::Keep, spills: Vec::new(), freed }
    }
}

/// The record before the command: as on disk, and `None` in `alive` if it counts as absent.
#[derive(Clone, Copy)]
struct Stored<'a> {
    stored: Option<&'a Record>,
    alive: Option<&'a Record>,
}

/// Why a condition does not hold.
fn refuse(condition: Condition, alive: Option<&Record>) -> Option<Reply> {
    let holds = match condition {
        Condition::Any => true,
        Condition::Absent => alive.is_none(),
        Condition::Version(version) => alive.is_some_and(|record| record.version == version),
        Condition::Writer(writer) => {
            alive.is_some_and(|record| writer != 0 && record.writer == writer)
        }
    };
    let current = alive.map(|record| record.version);
    (!holds).then_some(Reply::Conflict { current })
}

/// Why fields, each by name, type and bytes, can't be a state.
fn bad_fields<'a>(
    fields: impl Iterator<Item = (&'a str, FieldType, u64)> + Clone,
) -> Option<Reply> {
    let mut names: Vec<&str> = fields.clone().map(|(name, ..)| name).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let expected = "every field once".to_owned();
        return Some(Reply::FieldMismatch { name: twice[0].to_owned(), expected });
    }
    fields.into_iter().find_map(|(name, field_type, bytes)| bad_field(name, &field_type, bytes))
}

/// Why a field's bytes do not fit its type.
pub(crate) fn bad_field(name: &str, field_type: &FieldType, bytes: u64) -> Option<Reply> {
    let FieldType::Tensor { dtype, shape } = field_type else { return None };
    let expected = match field_type.bytes_len() {
        Some(expected) if expected == bytes => return None,
        Some(expected) => format!("{expected} bytes for {dtype} of shape {shape:?}, not {bytes}"),
        None => format!("a shape of less than 2^64 bytes, not {dtype} of {shape:?}"),
    };
    Some(Reply::FieldMismatch { name: name.to_owned(), expected })
}

/// The fields of a record that have not expired.
fn drafts_of(record: &Record, now_ms: u64) -> Vec<Draft> {
    let draft = |field: &RecordField| Draft {
        name: field.name.clone(),
        field_type: field.field_type.clone(),
        expires_at_ms: field.expires_at_ms,
        content: match &field.content {
            Content::Inline(bytes) => DraftContent::Inline(bytes.clone()),
            Content::Blobs(extents) => DraftContent::Pieces(Pieces::stored(extents)),
        },
    };
    record.fields.iter().filter(|field| !field.expired(now_ms)).map(draft).collect()
}

/// Makes a record of the drafts: within the limits, what is large in blobs.
fn finish<E>(
    write: &Write,
    away: &Away,
    mut drafts: Vec<Draft>,
    before: Stored<'_>,
    (moment, model): (Moment, Option<crate::command::ModelTag>),
    load: &mut Load<'_, E>,
) -> Result<Decision, E> {
    let bytes = drafts.iter().fold(0u64, |sum, draft| sum.saturating_add(draft.content.len()));
    let WriteLimits { state_bytes_max: max, inline_bytes_max } = write.limits;
    if bytes > max {
        return Ok(away.refused(Reply::TooLarge { bytes, max }));
    }
    spill_outgrown(&mut drafts, inline_bytes_max);
    let mut spills = Vec::new();
    let mut fields = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let content = match draft.content {
            DraftContent::Inline(bytes) => Content::Inline(bytes),
            DraftContent::Pieces(mut pieces) => {
                pieces.settle(load)?;
                place(pieces, moment, &mut spills)
            }
        };
        let Draft { name, field_type, expires_at_ms, .. } = draft;
        fields.push(RecordField { name, field_type, expires_at_ms, content });
    }
    let after = |ttl_ms: u64| Some(moment.time_ms.saturating_add(ttl_ms));
    let expires_at_ms = match (write.expiry, before.alive) {
        (Expiry::Keep | Expiry::KeepOrAfter(_), Some(record)) => record.expires_at_ms,
        (Expiry::Keep | Expiry::Never, _) => None,
        (Expiry::At(at_ms), _) => Some(at_ms),
        (Expiry::KeepOrAfter(ttl_ms), None) | (Expiry::After(ttl_ms), _) => after(ttl_ms),
    };
    let version = moment.version();
    let record = Record { version, writer: write.writer, expires_at_ms, model, fields };
    let mut touched = before.stored.map(Record::extents).unwrap_or_default();
    touched.extend(away.extents());
    let freed = unreferenced(&touched, &record.extents());
    let reply = Reply::Written { version, answer: write.answer.clone(), bytes, repeated: false };
    Ok(Decision { reply, change: Change::Store(record), spills, freed })
}

/// Sends the largest inline fields to blobs until the rest may stay.
fn spill_outgrown(drafts: &mut [Draft], inline_bytes_max: u32) {
    let inline = |draft: &Draft| match &draft.content {
        DraftContent::Inline(bytes) => bytes.len() as u64,
        DraftContent::Pieces(_) => 0,
    };
    let sizes: Vec<u64> = drafts.iter().map(inline).collect();
    for position in outgrown(&sizes, u64::from(inline_bytes_max)) {
        let draft = &mut drafts[position];
        if let DraftContent::Inline(bytes) = &draft.content {
            draft.content = DraftContent::Pieces(Pieces::fresh(bytes.clone()));
        }
    }
}

/// Gives every piece that is nowhere yet a blob.
fn place(pieces: Pieces, moment: Moment, spills: &mut Vec<(BlobId, Bytes)>) -> Content {
    if pieces.is_empty() {
        return Content::Inline(Bytes::new());
    }
    let extents = pieces.into_vec().into_iter().map(|piece| match piece {
        Piece::Stored(extent) => extent,
        Piece::Fresh(bytes) => {
            let number = u16::try_from(usize::from(BlobId::APPLIED) + spills.len());
            let number = number.expect("a patch of 1,024 edits makes far fewer than 32,768 blobs");
            let extent = Extent { blob: moment.blob(number), offset: 0, len: bytes.len() as u64 };
            spills.push((extent.blob, bytes));
            extent
        }
    });
    Content::Blobs(extents.collect())
}
