//! A state as one row: who wrote it, when it expires, and a directory of its fields.
//!
//! ```text
//! record = format u8 | version u64 | writer u64 | expires_at_ms option | model option
//!        | count u16 | field... | inline bytes of all fields, in order
//! field  = short(name) | type | expires_at_ms option                   (from format 2 on)
//!        | 0 len u32                                                   (inline)
//!        | 1 count u16 | extent...                                     (in blobs)
//! extent = index u64 | position u16 | number u16 | offset u64 | len u64
//! ```
//!
//! A record none of whose fields expires by itself is written in format 1: nothing grows for what
//! it does not use. Reading shares the row's memory: an inline field is a slice of it. What may be
//! inline is decided in `apply.rs`, what has expired in `expiry.rs`.

use bytes::Bytes;

use crate::codec::{Malformed, Scanner, Writer};
use crate::command::ModelTag;
use crate::extent::{BlobId, Extent};
use crate::value::FieldType;

/// The newest format that this version writes and reads.
pub const RECORD_FORMAT: u8 = 2;

/// The format of records whose fields all last as long as their state.
const PLAIN: u8 = 1;

const INLINE: u8 = 0;
const IN_BLOBS: u8 = 1;

/// A state as its row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was last written, in the shard's order.
    pub version: u64,
    /// The token of who wrote it; 0 is none.
    pub writer: u64,
    /// Unix milliseconds from which on it counts as absent.
    pub expires_at_ms: Option<u64>,
    /// The model that made it.
    pub model: Option<ModelTag>,
    /// In the order they were added.
    pub fields: Vec<RecordField>,
}

/// A field as the directory says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordField {
    /// Unique in its record.
    pub name: String,
    /// Type and shape.
    pub field_type: FieldType,
    /// Unix milliseconds from which on it counts as absent.
    pub expires_at_ms: Option<u64>,
    /// Where its bytes are.
    pub content: Content,
}

/// Where a field's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In the record.
    Inline(Bytes),
    /// In blobs, in order.
    Blobs(Vec<Extent>),
}

impl Content {
    /// Bytes of the field.
    pub fn len(&self) -> u64 {
        match self {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Blobs(extents) => extents.iter().map(|extent| extent.len).sum(),
        }
    }
}

impl Record {
    /// The runs of blobs that the record needs.
    pub fn extents(&self) -> Vec<Extent> {
        self.fields
            .iter()
            .flat_map(|field| match &field.content {
                Content::Inline(_) => &[][..],
                Content::Blobs(extents) => extents,
            })
            .copied()
            .collect()
    }

    /// The row.
    pub fn encode(&self) -> Vec<u8> {
        let inline: usize = self.fields.iter().filter_map(inline_of).map(Bytes::len).sum();
        let mut out = Writer::with_capacity(64 + 48 * self.fields.len() + inline);
        let expiring = self.fields.iter().any(|field| field.expires_at_ms.is_some());
        let format = if expiring { RECORD_FORMAT } else { PLAIN };
        out.u8(format);
        out.u64(self.version);
        out.u64(self.writer);
        out.option_u64(self.expires_at_ms);
        match &self.model {
            None => out.u8(0),
            Some(model) => {
                out.u8(1);
                out.short(model.name.as_bytes());
                out.u64(model.version);
            }
        }
        out.u16(u16::try_from(self.fields.len()).expect("a state has at most 1,024 fields"));
        for field in &self.fields {
            encode_field(&mut out, field, format);
        }
        for bytes in self.fields.iter().filter_map(inline_of) {
            out.raw(bytes);
        }
        out.into_vec()
    }

    /// Reads a row.
    pub fn decode(row: Bytes) -> Result<Record, Malformed> {
        let mut scan = Scanner::new(row);
        let format = scan.format(RECORD_FORMAT)?;
        let version = scan.u64("a version")?;
        let writer = scan.u64("a writer")?;
        let expires_at_ms = scan.option_u64("an expiry or none")?;
        let model = match scan.u8("a model or none")? {
            0 => None,
            1 => Some(ModelTag {
                name: scan.short_text("a model's name")?,
                version: scan.u64("a model's version")?,
            }),
            _ => return Err(scan.malformed("a model or none")),
        };
        let count = usize::from(scan.u16("a number of fields")?);
        let mut fields = Vec::with_capacity(count);
        let mut inline = Vec::with_capacity(count);
        for _ in 0..count {
            let (field, inline_len) = decode_field(&mut scan, format)?;
            fields.push(field);
            inline.push(inline_len);
        }
        for (field, len) in fields.iter_mut().zip(inline) {
            if let Some(len) = len {
                field.content = Content::Inline(scan.raw(len as usize, "a field's bytes")?);
            }
        }
        scan.finish()?;
        Ok(Record { version, writer, expires_at_ms, model, fields })
    }
}

fn inline_of(field: &RecordField) -> Option<&Bytes> {
    match &field.content {
        Content::Inline(bytes) => Some(bytes),
        Content::Blobs(_) => None,
    }
}

fn encode_field(out: &mut Writer, field: &RecordField, format: u8) {
    out.short(field.name.as_bytes());
    out.field_type(&field.field_type);
    if format > PLAIN {
        out.option_u64(field.expires_at_ms);
    }
    match &field.content {
        Content::Inline(bytes) => {
            out.u8(INLINE);
            out.u32(u32::try_from(bytes.len()).expect("inline fields are below 4 GiB"));
        }
        Content::Blobs(extents) => {
            out.u8(IN_BLOBS);
            out.u16(u16::try_from(extents.len()).expect("a field has at most 2,048 extents"));
            for extent in extents {
                out.u64(extent.blob.index);
                out.u16(extent.blob.position);
                out.u16(extent.blob.number);
                out.u64(extent.offset);
                out.u64(extent.len);
            }
        }
    }
}

/// A field of the directory, and how many bytes it has inline.
fn decode_field(scan: &mut Scanner, format: u8) -> Result<(RecordField, Option<u32>), Malformed> {
    let name = scan.short_text("a field's name")?;
    let field_type = scan.field_type()?;
    let expires_at_ms = match format {
        PLAIN => None,
        _ => scan.option_u64("a field's expiry or none")?,
    };
    let (content, inline) = match scan.u8("where a field lies")? {
        INLINE => (Content::Inline(Bytes::new()), Some(scan.u32("a field's length")?)),
        IN_BLOBS => {
            let count = usize::from(scan.u16("a number of extents")?);
            let mut extents = Vec::with_capacity(count);
            for _ in 0..count {
                extents.push(decode_extent(scan)?);
            }
            (Content::Blobs(extents), None)
        }
        _ => return Err(scan.malformed("a field here or in blobs")),
    };
    Ok((RecordField { name, field_type, expires_at_ms, content }, inline))
}

fn decode_extent(scan: &mut Scanner) -> Result<Extent, Malformed> {
    let blob = BlobId {
        index: scan.u64("an extent's entry")?,
        position: scan.u16("an extent's command")?,
        number: scan.u16("an extent's blob")?,
    };
    let offset = scan.u64("an extent's offset")?;
    let len = scan.u64("an extent's length")?;
    if offset.checked_add(len).is_none() {
        return Err(scan.malformed("an extent within its blob"));
    }
    Ok(Extent { blob, offset, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::DType;

    fn record() -> Record {
        let field = |name: &str, field_type, content| RecordField {
            name: name.into(),
            field_type,
            expires_at_ms: None,
            content,
        };
        let extent = |index, len| Extent {
            blob: BlobId { index, position: 3, number: 0x8001 },
            offset: 9,
            len,
        };
        let tensor = FieldType::Tensor { dtype: DType::F32, shape: vec![2, 5_000] };
        Record {
            version: 77 << 16,
            writer: 5,
            expires_at_ms: Some(1_000),
            model: Some(ModelTag { name: "gru".into(), version: 2 }),
            fields: vec![
                field("a", FieldType::Bytes, Content::Inline(Bytes::from_static(b"hello"))),
                field("b", tensor, Content::Blobs(vec![extent(7, 100), extent(8, 39_900)])),
                field("c", FieldType::Bytes, Content::Inline(Bytes::new())),
                field("d", FieldType::Bytes, Content::Inline(Bytes::from_static(b"world"))),
            ],
        }
    }

    /// One whose fields expire at times of their own, but for the last.
    fn expiring() -> Record {
        let mut record = record();
        for (field, at_ms) in record.fields.iter_mut().zip([5, u64::MAX, 7]) {
            field.expires_at_ms = Some(at_ms);
        }
        record
    }

    #[test]
    fn a_record_survives_a_round_trip_and_shares_its_rows_memory() {
        let row = Bytes::from(expiring().encode());
        assert_eq!(Record::decode(row).expect("it was just encoded"), expiring());
        let row = Bytes::from(record().encode());
        let decoded = Record::decode(row.clone()).expect("it was just encoded");
        assert_eq!(decoded, record());
        let Content::Inline(hello) = &decoded.fields[0].content else { panic!("it is inline") };
        assert!(row.as_ptr_range().contains(&hello.as_ptr()));
    }

    #[test]
    fn every_truncation_and_every_addition_is_refused() {
        for row in [record().encode(), expiring().encode()].map(Bytes::from) {
            for len in 0..row.len() {
                assert!(Record::decode(row.slice(..len)).is_err(), "{len} of {}", row.len());
            }
            let longer = Bytes::from([&row[..], b"!"].concat());
            assert!(Record::decode(longer).is_err());
        }
    }

    #[test]
    fn a_row_of_format_1_is_read_and_written_as_ever() {
        let row: &[&[u8]] = &[
            &[1, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
            &[1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            &[1, b'f', 0, 0, 2, 0, 0, 0, b'h', b'i'],
        ];
        let row = Bytes::from(row.concat());
        let content = Content::Inline(Bytes::from_static(b"hi"));
        let (name, field_type) = ("f".into(), FieldType::Bytes);
        let fields = vec![RecordField { name, field_type, expires_at_ms: None, content }];
        let record = Record { version: 2, writer: 3, expires_at_ms: Some(4), model: None, fields };
        assert_eq!(record.encode(), row);
        assert_eq!(Record::decode(row), Ok(record));
    }

    #[test]
    fn an_extent_past_the_end_of_numbers_is_refused() {
        let mut bad = record();
        let Content::Blobs(extents) = &mut bad.fields[1].content else { panic!("it is in blobs") };
        extents[0].offset = u64::MAX;
        assert!(Record::decode(bad.encode().into()).is_err());
    }
}
