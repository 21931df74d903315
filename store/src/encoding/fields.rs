//! Fields and edits as bytes, and the payloads that they carry.
//!
//! ```text
//! field   = short(name) | type | expires | payload                   (the expiry from format 2 on)
//! edit    = 0 field | 1 short(name) | 2 short(name) offset u64 payload
//!         | 3 short(name) max_bytes option payload | 4 short(name) expires
//! expires = 0 | 1 at_ms u64 | 2 ttl_ms u64                           (the last from format 3 on)
//! payload = 0 len u64 bytes | 1 len u64        (1: in chunk rows, see payload.rs)
//! ```

use bytes::Bytes;

use super::{Format, PayloadRef};
use crate::codec::{Malformed, Scanner, Writer};
use crate::command::Edit;
use crate::value::{Field, Value};

const INLINE: u8 = 0;
const DETACHED: u8 = 1;

pub(super) fn encode_payload(out: &mut Writer, bytes: &Bytes, away: bool) {
    out.u8(if away { DETACHED } else { INLINE });
    out.u64(bytes.len() as u64);
    if !away {
        out.raw(bytes);
    }
}

pub(super) fn encode_field(out: &mut Writer, field: &Field, away: bool, format: Format) {
    out.short(field.name.as_bytes());
    match &field.value {
        Value::Bytes(_) => out.u8(0),
        Value::Tensor { dtype, shape, .. } => out.tensor_type(*dtype, shape),
    }
    format.encode_when(out, field.expires);
    encode_payload(out, field.bytes(), away);
}

pub(super) fn encode_edit(out: &mut Writer, edit: &Edit, away: bool, format: Format) {
    match edit {
        Edit::Set(field) => {
            out.u8(0);
            encode_field(out, field, away, format);
        }
        Edit::Remove { name } => {
            out.u8(1);
            out.short(name.as_bytes());
        }
        Edit::WriteRange { name, offset, bytes } => {
            out.u8(2);
            out.short(name.as_bytes());
            out.u64(*offset);
            encode_payload(out, bytes, away);
        }
        Edit::Append { name, bytes, max_bytes } => {
            out.u8(3);
            out.short(name.as_bytes());
            out.option_u64(*max_bytes);
            encode_payload(out, bytes, away);
        }
        Edit::Expire { name, when } => {
            out.u8(4);
            out.short(name.as_bytes());
            format.encode_when(out, *when);
        }
    }
}

pub(super) fn decode_payload<E: From<Malformed>>(
    scan: &mut Scanner,
    payload_ref: PayloadRef,
    resolve: &mut impl FnMut(PayloadRef) -> Result<Bytes, E>,
) -> Result<Bytes, E> {
    let place = scan.u8("where a payload lies")?;
    let len = scan.u64("a payload's length")?;
    match place {
        INLINE => {
            let len = usize::try_from(len).map_err(|_| scan.malformed("a payload"))?;
            Ok(scan.raw(len, "a payload")?)
        }
        DETACHED => resolve(PayloadRef { len, ..payload_ref }),
        _ => Err(scan.malformed("a payload here or in chunks").into()),
    }
}

pub(super) fn decode_field<E: From<Malformed>>(
    scan: &mut Scanner,
    (slot, format): (u16, Format),
    payload: &mut impl FnMut(&mut Scanner, u16) -> Result<Bytes, E>,
) -> Result<Field, E> {
    let name = scan.short_text("a field's name")?;
    let field_type = scan.field_type()?;
    let expires = format.decode_when(scan)?;
    Ok(Field { name, value: field_type.with(payload(scan, slot)?), expires })
}

pub(super) fn decode_edit<E: From<Malformed>>(
    scan: &mut Scanner,
    (slot, format): (u16, Format),
    payload: &mut impl FnMut(&mut Scanner, u16) -> Result<Bytes, E>,
) -> Result<Edit, E> {
    Ok(match scan.u8("an edit")? {
        0 => Edit::Set(decode_field(scan, (slot, format), payload)?),
        1 => Edit::Remove { name: scan.short_text("a field's name")? },
        2 => {
            let name = scan.short_text("a field's name")?;
            let offset = scan.u64("a range's offset")?;
            Edit::WriteRange { name, offset, bytes: payload(scan, slot)? }
        }
        3 => {
            let name = scan.short_text("a field's name")?;
            let max_bytes = scan.option_u64("a limit or none")?;
            Edit::Append { name, bytes: payload(scan, slot)?, max_bytes }
        }
        4 if format >= Format::EXPIRING => Edit::Expire {
            name: scan.short_text("a field's name")?,
            when: format.decode_when(scan)?,
        },
        _ => return Err(scan.malformed("a known edit").into()),
    })
}
