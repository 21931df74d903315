//! What of a record has expired at a time: all of it, or fields by themselves. Pure.
//!
//! What has expired counts as absent from that moment on, everywhere; a sweep only gives its
//! space back, so that nobody can tell whether one has been. That is why a swept record keeps its
//! version, and why a state stays when all its fields have expired: only its own expiry ends it.

use crate::apply::{Change, Decision, erase};
use crate::extent::unreferenced;
use crate::record::{Record, RecordField};
use crate::reply::Reply;

impl Record {
    /// Whether the state counts as absent at a time.
    pub fn expired(&self, now_ms: u64) -> bool {
        expired(self.expires_at_ms, now_ms)
    }

    /// When something of it expires next, or has expired first: its place in the expiry index.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        let fields = self.fields.iter().filter_map(|field| field.expires_at_ms);
        self.expires_at_ms.into_iter().chain(fields).min()
    }
}

impl RecordField {
    /// Whether the field counts as absent at a time.
    pub fn expired(&self, now_ms: u64) -> bool {
        expired(self.expires_at_ms, now_ms)
    }
}

fn expired(expires_at_ms: Option<u64>, now_ms: u64) -> bool {
    expires_at_ms.is_some_and(|at_ms| at_ms <= now_ms)
}

/// What a sweep removes of a record.
pub(crate) enum Removed {
    /// All of it.
    State,
    /// So many of its fields.
    Fields(u64),
}

/// Removes what has expired of a record up to a time.
pub(crate) fn sweep(record: &Record, until_ms: u64, reply: Reply) -> (Removed, Decision) {
    if record.expired(until_ms) {
        return (Removed::State, erase(record, reply));
    }
    let mut left = record.clone();
    left.fields.retain(|field| !field.expired(until_ms));
    let removed = (record.fields.len() - left.fields.len()) as u64;
    let freed = unreferenced(&record.extents(), &left.extents());
    let change = Change::Store(left);
    (Removed::Fields(removed), Decision { reply, change, spills: Vec::new(), freed })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::extent::{BlobId, CHUNK_BYTES, ChunkSpan, Extent};
    use crate::record::Content;
    use crate::value::FieldType;

    const BLOB: BlobId = BlobId { index: 7, position: 0, number: 0 };

    fn field(name: &str, expires_at_ms: Option<u64>, content: Content) -> RecordField {
        RecordField { name: name.into(), field_type: FieldType::Bytes, expires_at_ms, content }
    }

    fn run(offset: u64, len: u64) -> Content {
        Content::Blobs(vec![Extent { blob: BLOB, offset, len }])
    }

    fn record(expires_at_ms: Option<u64>) -> Record {
        let fields = vec![
            field("stays", None, Content::Inline(Bytes::from_static(b"x"))),
            // The two share a chunk, as fields of an upload may.
            field("soon", Some(50), run(0, 3 * CHUNK_BYTES + 1)),
            field("later", Some(60), run(3 * CHUNK_BYTES + 1, CHUNK_BYTES)),
        ];
        Record { version: 9, writer: 8, expires_at_ms, model: None, fields }
    }

    fn swept(record: &Record, until_ms: u64) -> (Option<u64>, Decision) {
        let (removed, decision) = sweep(record, until_ms, Reply::Dropped);
        match removed {
            Removed::State => (None, decision),
            Removed::Fields(fields) => (Some(fields), decision),
        }
    }

    #[test]
    fn the_earliest_expiry_is_the_next() {
        assert_eq!(record(None).next_expiry_ms(), Some(50));
        assert_eq!(record(Some(40)).next_expiry_ms(), Some(40));
        assert_eq!(record(Some(70)).next_expiry_ms(), Some(50));
        assert_eq!(Record { fields: vec![], ..record(None) }.next_expiry_ms(), None);
    }

    #[test]
    fn a_swept_field_goes_with_the_chunks_that_no_other_needs() {
        let before = record(None);
        let (removed, decision) = swept(&before, 50);
        assert_eq!(removed, Some(1));
        assert_eq!(decision.freed, [ChunkSpan { blob: BLOB, first: 0, end: 3 }]);
        let Change::Store(left) = decision.change else { panic!("the state stays") };
        assert_eq!((left.version, left.writer, left.fields.len()), (9, 8, 2));
        let (removed, decision) = swept(&left, 60);
        assert_eq!(removed, Some(1));
        assert_eq!(decision.freed, [ChunkSpan { blob: BLOB, first: 3, end: 5 }]);
        let Change::Store(left) = decision.change else { panic!("the state stays") };
        assert_eq!((left.next_expiry_ms(), left.fields.len()), (None, 1));
    }

    #[test]
    fn a_swept_state_goes_with_all_its_fields() {
        let (removed, decision) = swept(&record(Some(55)), 55);
        assert_eq!((removed, decision.change), (None, Change::Erase));
        assert_eq!(decision.freed, [ChunkSpan { blob: BLOB, first: 0, end: 5 }]);
    }
}
