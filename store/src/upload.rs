//! A state that comes in parts: the commands, what is kept until it is whole, what they do to it.
//!
//! The bytes of a part are a blob from the moment its entry is appended. An upload's row lists
//! the blobs; the command that ends it makes a record of that list, and no byte is written again.
//! Until then nobody sees any of it. An upload that nobody continues expires.
//!
//! One stream at a time feeds an upload: whoever begins it again, to go on after a broken
//! connection, takes it over, and the stream from before is refused.
//!
//! Pure: every replica decides the same from the same entry.

use bytes::Bytes;
use crc32fast::Hasher;

use crate::apply::Moment;
use crate::codec::{Malformed, Scanner, Writer};
use crate::command::{
    FIELDS_MAX, OutOfBounds, RequestTag, Target, Write, bounded, check_field_name,
};
use crate::extent::{BlobId, EXTENTS_MAX, Extent};
use crate::reply::Reply;
use crate::value::{AXES_MAX, FieldType, When};

/// Uploads that a shard may hold.
pub const UPLOADS_MAX: usize = 256;

/// Parts of one upload.
pub const UPLOAD_PARTS_MAX: usize = EXTENTS_MAX;

const FORMAT: u8 = 1;

/// Which upload: a hash of collection, key and the name that its caller gave it.
pub type UploadId = [u8; 16];

/// Begins, continues or gives up an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Whose state it will be.
    pub target: Target,
    /// Which upload.
    pub id: UploadId,
    /// What is done.
    pub step: UploadStep,
}

/// What is done to an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadStep {
    /// Begins it, or takes it over. Answered by how much of it is there.
    Begin {
        /// The stream that feeds it from now on.
        writer: u64,
        /// A hash of what is being uploaded: its fields, types, sizes.
        fingerprint: u64,
        /// Of the command that will end it: if that was done already, this is answered as it was.
        request: Option<RequestTag>,
        /// Milliseconds after which it expires unless it is continued.
        idle_ms: u64,
    },
    /// Adds bytes at the end. Answered by how much is there: less than expected if the part did
    /// not follow what was there, and changed nothing.
    Part {
        /// The stream that sends it.
        writer: u64,
        /// Where in the upload it begins.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
        /// Their CRC-32 (IEEE).
        crc32: u32,
        /// Milliseconds after which the upload expires unless it is continued.
        idle_ms: u64,
    },
    /// Gives it up.
    Abort,
}

/// Replaces a state, or creates it, by what was uploaded. A refusal for its condition leaves the
/// upload as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutUpload {
    /// Which state, when, by whom.
    pub write: Write,
    /// Which upload.
    pub id: UploadId,
    /// The stream that fed it.
    pub writer: u64,
    /// All fields of the new state; their bytes follow each other in the upload.
    pub fields: Vec<UploadedField>,
    /// The CRC-32 (IEEE) of all bytes, if the sender names it.
    pub crc32: Option<u32>,
}

/// A field within an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedField {
    /// Unique in its state.
    pub name: String,
    /// Type and shape.
    pub field_type: FieldType,
    /// How many of the upload's bytes are its.
    pub bytes: u64,
    /// From when on it counts as absent; `None`: as long as its state lasts.
    pub expires: Option<When>,
}

impl Upload {
    pub(crate) fn check(&self) -> Result<(), OutOfBounds> {
        self.target.check()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.target.key.len()
            + match &self.step {
                UploadStep::Begin { .. } | UploadStep::Abort => 0,
                UploadStep::Part { bytes, .. } => bytes.len(),
            }
    }
}

impl PutUpload {
    pub(crate) fn check(&self) -> Result<(), OutOfBounds> {
        self.write.check()?;
        bounded("fields", self.fields.len(), (0, FIELDS_MAX))?;
        self.fields.iter().try_for_each(|field| {
            check_field_name(&field.name)?;
            match &field.field_type {
                FieldType::Tensor { shape, .. } => {
                    bounded("axes of a tensor", shape.len(), (0, AXES_MAX))
                }
                FieldType::Bytes => Ok(()),
            }
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.write.bytes() + self.fields.iter().map(|field| field.name.len() + 32).sum::<usize>()
    }
}

/// What is kept of an upload until it is a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Unix milliseconds.
    pub expires_at_ms: u64,
    pub writer: u64,
    pub fingerprint: u64,
    /// The CRC-32 of all bytes so far.
    pub crc32: u32,
    /// Whose state it will be.
    pub key: Bytes,
    /// Where the bytes lie.
    pub parts: Vec<Extent>,
}

/// What a step does to what is kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stepped {
    pub reply: Reply,
    pub next: Next,
    /// Bytes that nothing refers to any more.
    pub freed: Vec<Extent>,
}

/// What is kept after a step.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Same,
    Keep(Kept),
    Gone,
}

impl Stepped {
    fn answer(reply: Reply) -> Self {
        Stepped { reply, next: Next::Same, freed: Vec::new() }
    }
}

impl Kept {
    /// Bytes that are there.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len).sum()
    }

    pub fn expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms <= now_ms
    }

    /// The row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(48 + self.key.len() + 28 * self.parts.len());
        out.u8(FORMAT);
        out.u64(self.expires_at_ms);
        out.u64(self.writer);
        out.u64(self.fingerprint);
        out.u32(self.crc32);
        out.medium(&self.key);
        out.u32(u32::try_from(self.parts.len()).expect("an upload has at most 2,048 parts"));
        for part in &self.parts {
            out.u64(part.blob.index);
            out.u16(part.blob.position);
            out.u16(part.blob.number);
            out.u64(part.len);
        }
        out.into_vec()
    }

    /// Reads a row.
    pub fn decode(row: Bytes) -> Result<Kept, Malformed> {
        let mut scan = Scanner::new(row);
        scan.format(FORMAT)?;
        let expires_at_ms = scan.u64("an expiry")?;
        let writer = scan.u64("a writer")?;
        let fingerprint = scan.u64("a fingerprint")?;
        let crc32 = scan.u32("a CRC-32")?;
        let key = scan.medium("a key")?;
        let count = scan.u32("a number of parts")?;
        let mut parts = Vec::with_capacity((count as usize).min(UPLOAD_PARTS_MAX));
        for _ in 0..count {
            let blob = BlobId {
                index: scan.u64("a part's entry")?,
                position: scan.u16("a part's command")?,
                number: scan.u16("a part's blob")?,
            };
            parts.push(Extent { blob, offset: 0, len: scan.u64("a part's length")? });
        }
        scan.finish()?;
        Ok(Kept { expires_at_ms, writer, fingerprint, crc32, key, parts })
    }
}

/// Does a step. `kept` is the upload as it is stored, `part` the blob of the bytes that came with
/// the step, `full` that the shard has no room for another upload.
pub(crate) fn step(
    upload: &Upload,
    kept: Option<Kept>,
    part: Option<Extent>,
    moment: Moment,
    full: impl FnOnce() -> bool,
) -> Stepped {
    // What has expired counts as absent, and makes room for what begins.
    let expired = kept.as_ref().is_some_and(|kept| kept.expired(moment.time_ms));
    let (alive, dead) = if expired { (None, kept) } else { (kept, None) };
    match &upload.step {
        UploadStep::Begin { writer, fingerprint, idle_ms, .. } => {
            let expires_at_ms = moment.time_ms.saturating_add(*idle_ms);
            match alive {
                Some(kept) if kept.fingerprint != *fingerprint => {
                    Stepped::answer(Reply::UploadMismatch)
                }
                Some(kept) => {
                    let reply = Reply::Uploaded { bytes: kept.bytes() };
                    let next = Next::Keep(Kept { writer: *writer, expires_at_ms, ..kept });
                    Stepped { reply, next, freed: Vec::new() }
                }
                None if dead.is_none() && full() => {
                    Stepped::answer(Reply::TooManyUploads { max: UPLOADS_MAX })
                }
                None => {
                    let fresh = Kept {
                        expires_at_ms,
                        writer: *writer,
                        fingerprint: *fingerprint,
                        crc32: 0,
                        key: upload.target.key.clone(),
                        parts: Vec::new(),
                    };
                    let freed = dead.map(|dead| dead.parts).unwrap_or_default();
                    Stepped { reply: Reply::Uploaded { bytes: 0 }, next: Next::Keep(fresh), freed }
                }
            }
        }
        UploadStep::Part { writer, offset, bytes, crc32, idle_ms } => {
            let refused =
                |reply| Stepped { freed: part.into_iter().collect(), ..Stepped::answer(reply) };
            let Some(mut kept) = alive else { return refused(Reply::UploadNotFound) };
            if kept.writer != *writer {
                return refused(Reply::UploadTaken);
            }
            let there = kept.bytes();
            if *offset != there {
                return refused(Reply::Uploaded { bytes: there });
            }
            if kept.parts.len() >= UPLOAD_PARTS_MAX {
                return refused(Reply::TooManyParts { max: UPLOAD_PARTS_MAX });
            }
            kept.expires_at_ms = moment.time_ms.saturating_add(*idle_ms);
            kept.crc32 = joined_crc32((kept.crc32, there), (*crc32, bytes.len() as u64));
            kept.parts.extend(part);
            let reply = Reply::Uploaded { bytes: there + bytes.len() as u64 };
            Stepped { reply, next: Next::Keep(kept), freed: Vec::new() }
        }
        UploadStep::Abort => {
            let freed = alive.or(dead).map(|kept| kept.parts).unwrap_or_default();
            Stepped { reply: Reply::UploadAborted, next: Next::Gone, freed }
        }
    }
}

/// Whether an upload may become a state; else why not, and what is kept.
#[allow(clippy::result_large_err, reason = "not worth an allocation: a refusal is seldom")]
pub(crate) fn complete(
    put: &PutUpload,
    kept: Option<Kept>,
    moment: Moment,
) -> Result<Kept, Stepped> {
    let alive = kept.filter(|kept| !kept.expired(moment.time_ms));
    let Some(kept) = alive else { return Err(Stepped::answer(Reply::UploadNotFound)) };
    if kept.writer != put.writer {
        return Err(Stepped::answer(Reply::UploadTaken));
    }
    let bytes = kept.bytes();
    let sizes = put.fields.iter().map(|field| field.bytes);
    let expected = sizes.fold(0u64, u64::saturating_add);
    if bytes != expected {
        return Err(Stepped::answer(Reply::UploadIncomplete { bytes, expected }));
    }
    match put.crc32 {
        Some(expected) if expected != kept.crc32 => {
            let reply = Reply::UploadCorrupt { expected, found: kept.crc32 };
            Err(Stepped { reply, next: Next::Gone, freed: kept.parts })
        }
        Some(_) | None => Ok(kept),
    }
}

/// The CRC-32 of bytes followed by others, each by CRC-32 and length.
fn joined_crc32(first: (u32, u64), second: (u32, u64)) -> u32 {
    let mut joined = Hasher::new_with_initial_len(first.0, first.1);
    joined.combine(&Hasher::new_with_initial_len(second.0, second.1));
    joined.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::CollectionId;

    fn moment(index: u64, time_ms: u64) -> Moment {
        Moment { index, position: 0, time_ms }
    }

    fn upload(step: UploadStep) -> Upload {
        let target = Target { collection: CollectionId(3), key: Bytes::from_static(b"k") };
        Upload { target, id: [7; 16], step }
    }

    fn begin(writer: u64, fingerprint: u64) -> Upload {
        upload(UploadStep::Begin { writer, fingerprint, request: None, idle_ms: 100 })
    }

    fn part(writer: u64, offset: u64, bytes: &'static [u8]) -> Upload {
        let (crc32, bytes) = (crc32fast::hash(bytes), Bytes::from_static(bytes));
        upload(UploadStep::Part { writer, offset, bytes, crc32, idle_ms: 100 })
    }

    fn blob(index: u64, len: u64) -> Extent {
        Extent { blob: moment(index, 0).blob(0), offset: 0, len }
    }

    fn kept(stepped: Stepped) -> Kept {
        match stepped.next {
            Next::Keep(kept) => kept,
            next => panic!("expected something kept, found {next:?}"),
        }
    }

    #[test]
    fn parts_follow_each_other_and_their_checksums_join() {
        let begun = step(&begin(1, 9), None, None, moment(1, 0), || false);
        assert_eq!(begun.reply, Reply::Uploaded { bytes: 0 });
        let first = part(1, 0, b"hello ");
        let first = step(&first, Some(kept(begun)), Some(blob(2, 6)), moment(2, 50), || false);
        assert_eq!(first.reply, Reply::Uploaded { bytes: 6 });
        let held = kept(first);
        assert_eq!(held.expires_at_ms, 150, "a part puts the expiry off");
        let gap =
            step(&part(1, 7, b"x"), Some(held.clone()), Some(blob(3, 1)), moment(3, 50), || false);
        assert_eq!((gap.reply, gap.next), (Reply::Uploaded { bytes: 6 }, Next::Same));
        assert_eq!(gap.freed, [blob(3, 1)]);
        let second = part(1, 6, b"world");
        let second = step(&second, Some(held), Some(blob(4, 5)), moment(4, 50), || false);
        let whole = kept(second);
        assert_eq!(whole.parts, [blob(2, 6), blob(4, 5)]);
        assert_eq!(whole.crc32, crc32fast::hash(b"hello world"));
    }

    #[test]
    fn who_begins_again_takes_over_and_the_one_before_is_refused() {
        let held = kept(step(&begin(1, 9), None, None, moment(1, 0), || false));
        let other = step(&begin(2, 8), Some(held.clone()), None, moment(2, 0), || false);
        assert_eq!((other.reply, other.next), (Reply::UploadMismatch, Next::Same));
        let held = kept(step(&begin(2, 9), Some(held), None, moment(2, 0), || true));
        let late = step(&part(1, 0, b"x"), Some(held), Some(blob(3, 1)), moment(3, 0), || false);
        assert_eq!((late.reply, late.freed), (Reply::UploadTaken, vec![blob(3, 1)]));
    }

    #[test]
    fn what_has_expired_counts_as_absent_and_makes_room() {
        let mut held = kept(step(&begin(1, 9), None, None, moment(1, 0), || false));
        held.parts.push(blob(2, 5));
        let late = step(&part(1, 5, b"x"), Some(held.clone()), None, moment(3, 100), || false);
        assert_eq!(late.reply, Reply::UploadNotFound);
        let again = step(&begin(1, 8), Some(held), None, moment(4, 100), || true);
        assert_eq!(again.freed, [blob(2, 5)]);
        assert_eq!(kept(again).fingerprint, 8);
        let full = step(&begin(1, 9), None, None, moment(5, 100), || true);
        assert_eq!(full.reply, Reply::TooManyUploads { max: UPLOADS_MAX });
    }

    #[test]
    fn an_upload_of_crumbs_is_refused_by_name() {
        let mut held = kept(step(&begin(1, 9), None, None, moment(1, 0), || false));
        held.parts = (0..UPLOAD_PARTS_MAX as u64).map(|index| blob(index + 2, 1)).collect();
        let there = held.bytes();
        let next = part(1, there, b"x");
        let refused = step(&next, Some(held), Some(blob(9_999, 1)), moment(9_999, 0), || false);
        assert_eq!(refused.reply, Reply::TooManyParts { max: UPLOAD_PARTS_MAX });
        assert_eq!((refused.next, refused.freed), (Next::Same, vec![blob(9_999, 1)]));
    }

    #[test]
    fn a_row_survives_a_round_trip_and_no_truncation() {
        let held = Kept {
            expires_at_ms: 5,
            writer: 6,
            fingerprint: 7,
            crc32: 8,
            key: Bytes::from_static(b"key"),
            parts: vec![blob(1, 2), blob(3, 4)],
        };
        let row = Bytes::from(held.encode());
        for len in 0..row.len() {
            assert!(Kept::decode(row.slice(..len)).is_err(), "{len} of {}", row.len());
        }
        assert_eq!(Kept::decode(row), Ok(held));
    }
}
