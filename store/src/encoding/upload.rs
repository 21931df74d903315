//! The commands of uploads as bytes.
//!
//! ```text
//! upload     = collection u64 | medium(key) | id 16 bytes | step
//! step       = 0 writer u64 fingerprint u64 request idle_ms u64
//!            | 1 writer u64 offset u64 crc32 u32 idle_ms u64 payload
//!            | 2
//! put-upload = write | id 16 bytes | writer u64 | crc32 option | count u16 | field...
//! field      = short(name) | type | bytes u64 | expires               (the last from format 2 on)
//! ```

use bytes::Bytes;

use super::{Format, decode_request, decode_write, encode_payload, encode_request, encode_write};
use crate::codec::{Malformed, Scanner, Writer};
use crate::command::Target;
use crate::ids::CollectionId;
use crate::upload::{PutUpload, Upload, UploadStep, UploadedField};

pub(super) fn encode(out: &mut Writer, upload: &Upload, away: bool) {
    out.u64(upload.target.collection.0);
    out.medium(&upload.target.key);
    out.raw(&upload.id);
    match &upload.step {
        UploadStep::Begin { writer, fingerprint, request, idle_ms } => {
            out.u8(0);
            out.u64(*writer);
            out.u64(*fingerprint);
            encode_request(out, request.as_ref());
            out.u64(*idle_ms);
        }
        UploadStep::Part { writer, offset, bytes, crc32, idle_ms } => {
            out.u8(1);
            out.u64(*writer);
            out.u64(*offset);
            out.u32(*crc32);
            out.u64(*idle_ms);
            encode_payload(out, bytes, away);
        }
        UploadStep::Abort => out.u8(2),
    }
}

/// `payload` reads a payload of a collection.
pub(super) fn decode<E: From<Malformed>>(
    scan: &mut Scanner,
    mut payload: impl FnMut(&mut Scanner, CollectionId) -> Result<Bytes, E>,
) -> Result<Upload, E> {
    let collection = CollectionId(scan.u64("a collection")?);
    let key = scan.medium("a key")?;
    let id = scan.bytes16("an upload's id")?;
    let step = match scan.u8("a step of an upload")? {
        0 => UploadStep::Begin {
            writer: scan.u64("an upload's writer")?,
            fingerprint: scan.u64("an upload's fingerprint")?,
            request: decode_request(scan)?,
            idle_ms: scan.u64("an upload's idle time")?,
        },
        1 => UploadStep::Part {
            writer: scan.u64("an upload's writer")?,
            offset: scan.u64("a part's offset")?,
            crc32: scan.u32("a part's CRC-32")?,
            idle_ms: scan.u64("an upload's idle time")?,
            bytes: payload(scan, collection)?,
        },
        2 => UploadStep::Abort,
        _ => return Err(scan.malformed("a known step of an upload").into()),
    };
    Ok(Upload { target: Target { collection, key }, id, step })
}

pub(super) fn encode_put(out: &mut Writer, put: &PutUpload, format: Format) {
    encode_write(out, &put.write);
    out.raw(&put.id);
    out.u64(put.writer);
    match put.crc32 {
        None => out.u8(0),
        Some(crc32) => {
            out.u8(1);
            out.u32(crc32);
        }
    }
    out.u16(put.fields.len() as u16);
    for field in &put.fields {
        out.short(field.name.as_bytes());
        out.field_type(&field.field_type);
        out.u64(field.bytes);
        format.encode_when(out, field.expires);
    }
}

pub(super) fn decode_put(scan: &mut Scanner, format: Format) -> Result<PutUpload, Malformed> {
    let write = decode_write(scan, format)?;
    let id = scan.bytes16("an upload's id")?;
    let writer = scan.u64("an upload's writer")?;
    let crc32 = match scan.u8("a CRC-32 or none")? {
        0 => None,
        1 => Some(scan.u32("a CRC-32")?),
        _ => return Err(scan.malformed("a CRC-32 or none")),
    };
    let count = scan.u16("a number of fields")?;
    let field = |_| {
        Ok(UploadedField {
            name: scan.short_text("a field's name")?,
            field_type: scan.field_type()?,
            bytes: scan.u64("a field's bytes")?,
            expires: format.decode_when(scan)?,
        })
    };
    let fields = (0..count).map(field).collect::<Result<_, Malformed>>()?;
    Ok(PutUpload { write, id, writer, fields, crc32 })
}
