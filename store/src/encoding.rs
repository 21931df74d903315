//! An entry as bytes: for the log row and for the wire, in one versioned format.
//!
//! ```text
//! entry   = format u8 | index u64 | term u64 | body
//! body    = 0 | 1 long(membership) | 2 time_ms u64 | count u16 | command...
//! command = 0 write fields | 1 write edits | 2 write | 3 collection u64 | 4 sweep
//!         | 5 upload | 6 put-upload        (these two: encoding/upload.rs)
//! write   = collection u64 | medium(key) | condition | request | expiry | writer u64 | model
//!         | state_bytes_max u64 | inline_bytes_max u32 | medium(answer)
//! ```
//!
//! Fields and edits are in `encoding/fields.rs`. An entry is written in the oldest format that can
//! say it: 1; 2, if a field expires by itself; 3, if something expires some time after the entry,
//! keeps a state's expiry or gives a new one the default, or limits the requests remembered.
//!
//! Integers are little endian. On the wire every payload is whole; in a log row those that
//! `payload.rs` picks are references, and reading back asks a resolver for their bytes.
//! Nothing is validated here beyond the vocabulary's bounds: that is `apply.rs`.

mod fields;
mod format;
mod upload;

use bytes::Bytes;

use crate::codec::{Malformed, Scanner, Writer};
use crate::command::{
    Body, Command, CommandBatch, Condition, Delete, Encoded, Entry, Expiry, ModelTag, Patch, Put,
    RequestTag, Sweep, Target, Write, WriteLimits,
};
use crate::ids::{CollectionId, EntryId};
use crate::payload::detached;
use fields::{
    decode_edit, decode_field, decode_payload, encode_edit, encode_field, encode_payload,
};
use format::Format;

/// The newest format that this version writes and reads.
pub const ENTRY_FORMAT: u8 = Format::RELATIVE.0;

/// A payload that a log row refers to: blob `(entry index, position, slot)` of a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PayloadRef {
    pub collection: CollectionId,
    pub index: u64,
    pub position: u16,
    pub slot: u16,
    pub len: u64,
}

impl Entry {
    /// The whole entry as bytes, for the wire.
    ///
    /// # Panics
    /// If a command is out of the vocabulary's bounds: see [`CommandBatch::check`].
    pub fn encode(&self) -> Bytes {
        match self.detaches() {
            // Large, and not what the log keeps: not worth remembering.
            true => encode(self, false),
            false => self.encoded.0.get_or_init(|| encode(self, false)).clone(),
        }
    }

    /// Whether payloads lie in chunk rows, so that the log row is not what goes over the wire.
    fn detaches(&self) -> bool {
        let Body::Commands(batch) = &self.body else { return false };
        batch.commands.iter().any(|command| !detached(command).is_empty())
    }

    /// Reads an entry off the wire; payloads share the input's memory.
    pub fn decode(input: Bytes) -> Result<Entry, Malformed> {
        let inside = |_| Err(Malformed { expected: "payloads inside the entry", offset: 0 });
        let entry = decode(input.clone(), inside)?;
        Ok(Entry { encoded: Encoded(input.into()), ..entry })
    }

    /// The log row: payloads that lie in chunk rows are references.
    pub(crate) fn encode_row(&self) -> Bytes {
        match self.detaches() {
            true => encode(self, true),
            false => self.encode(),
        }
    }

    /// Reads a log row; `resolve` brings the payloads that lie in chunk rows.
    pub(crate) fn decode_row<E: From<Malformed>>(
        input: Bytes,
        resolve: impl FnMut(PayloadRef) -> Result<Bytes, E>,
    ) -> Result<Entry, E> {
        decode(input, resolve)
    }
}

/// Which entry a log row holds, without reading the rest.
pub(crate) fn id_of_row(row: &Bytes) -> Result<EntryId, Malformed> {
    let mut scan = Scanner::new(row.clone());
    scan.format(ENTRY_FORMAT)?;
    Ok(EntryId { index: scan.u64("an entry's index")?, term: scan.u64("an entry's term")? })
}

fn encode(entry: &Entry, detach: bool) -> Bytes {
    let mut out = Writer::with_capacity(if detach { 256 } else { entry.bytes() });
    let format = Format::of(entry);
    out.u8(format.0);
    out.u64(entry.index);
    out.u64(entry.term);
    match &entry.body {
        Body::Blank => out.u8(0),
        Body::Membership(membership) => {
            out.u8(1);
            out.long(membership);
        }
        Body::Commands(batch) => {
            out.u8(2);
            out.u64(batch.time_ms);
            let count = u16::try_from(batch.commands.len());
            out.u16(count.expect("an entry has at most 65,535 commands"));
            for command in &batch.commands {
                let away: Vec<u16> = match detach {
                    true => detached(command).iter().map(|payload| payload.slot).collect(),
                    false => Vec::new(),
                };
                encode_command(&mut out, command, &away, format);
            }
        }
    }
    out.into_vec().into()
}

fn encode_command(out: &mut Writer, command: &Command, away: &[u16], format: Format) {
    match command {
        Command::Put(put) => {
            out.u8(0);
            encode_write(out, &put.write);
            out.u16(put.fields.len() as u16);
            for (slot, field) in put.fields.iter().enumerate() {
                encode_field(out, field, away.contains(&(slot as u16)), format);
            }
        }
        Command::Patch(patch) => {
            out.u8(1);
            encode_write(out, &patch.write);
            out.u16(patch.edits.len() as u16);
            for (slot, edit) in patch.edits.iter().enumerate() {
                encode_edit(out, edit, away.contains(&(slot as u16)), format);
            }
        }
        Command::Delete(delete) => {
            out.u8(2);
            encode_write(out, &delete.write);
        }
        Command::DropCollection { collection } => {
            out.u8(3);
            out.u64(collection.0);
        }
        Command::Sweep(sweep) => {
            out.u8(4);
            out.u64(sweep.now_ms);
            out.u32(sweep.limit);
            match &sweep.cursor {
                None => out.u8(0),
                Some(cursor) => {
                    out.u8(1);
                    out.medium(cursor);
                }
            }
            if format >= Format::RELATIVE {
                out.option_u64(sweep.requests_max);
            }
        }
        Command::Upload(upload) => {
            out.u8(5);
            upload::encode(out, upload, away.contains(&0));
        }
        Command::PutUpload(put) => {
            out.u8(6);
            upload::encode_put(out, put, format);
        }
    }
}

fn encode_write(out: &mut Writer, write: &Write) {
    out.u64(write.target.collection.0);
    out.medium(&write.target.key);
    match write.condition {
        Condition::Any => out.u8(0),
        Condition::Absent => out.u8(1),
        Condition::Version(version) => {
            out.u8(2);
            out.u64(version);
        }
        Condition::Writer(writer) => {
            out.u8(3);
            out.u64(writer);
        }
    }
    encode_request(out, write.request.as_ref());
    match write.expiry {
        Expiry::Keep => out.u8(0),
        Expiry::Never => out.u8(1),
        Expiry::At(at_ms) => {
            out.u8(2);
            out.u64(at_ms);
        }
        // These two are of format 3 alone: see `Format::of`.
        Expiry::After(ttl_ms) => {
            out.u8(3);
            out.u64(ttl_ms);
        }
        Expiry::KeepOrAfter(ttl_ms) => {
            out.u8(4);
            out.u64(ttl_ms);
        }
    }
    out.u64(write.writer);
    match &write.model {
        None => out.u8(0),
        Some(model) => {
            out.u8(1);
            out.short(model.name.as_bytes());
            out.u64(model.version);
        }
    }
    out.u64(write.limits.state_bytes_max);
    out.u32(write.limits.inline_bytes_max);
    out.medium(&write.answer);
}

fn encode_request(out: &mut Writer, request: Option<&RequestTag>) {
    match request {
        None => out.u8(0),
        Some(tag) => {
            out.u8(1);
            out.raw(&tag.id);
            out.u64(tag.fingerprint);
        }
    }
}

fn decode<E: From<Malformed>>(
    input: Bytes,
    mut resolve: impl FnMut(PayloadRef) -> Result<Bytes, E>,
) -> Result<Entry, E> {
    let mut scan = Scanner::new(input);
    let format = Format(scan.format(ENTRY_FORMAT)?);
    let index = scan.u64("an entry's index")?;
    let term = scan.u64("an entry's term")?;
    let body = match scan.u8("an entry's body")? {
        0 => Body::Blank,
        1 => Body::Membership(scan.long("a membership")?),
        2 => {
            let time_ms = scan.u64("an entry's time")?;
            let count = scan.u16("a number of commands")?;
            // What a stranger claims is no reason to allocate megabytes.
            let mut commands = Vec::with_capacity(usize::from(count.min(1_024)));
            for position in 0..count {
                let at = At { index, position, format };
                commands.push(decode_command(&mut scan, at, &mut resolve)?);
            }
            Body::Commands(CommandBatch { time_ms, commands })
        }
        _ => return Err(scan.malformed("a known kind of entry").into()),
    };
    scan.finish()?;
    Ok(Entry::new(index, term, body))
}

/// Where in the log the command being read stands, and how it is written.
#[derive(Clone, Copy)]
struct At {
    index: u64,
    position: u16,
    format: Format,
}

fn decode_command<E: From<Malformed>>(
    scan: &mut Scanner,
    at: At,
    resolve: &mut impl FnMut(PayloadRef) -> Result<Bytes, E>,
) -> Result<Command, E> {
    let kind = scan.u8("a command")?;
    let command = match kind {
        0 | 1 => {
            let write = decode_write(scan, at.format)?;
            let count = scan.u16("a number of fields or edits")?;
            let collection = write.target.collection;
            let mut payload = |scan: &mut Scanner, slot| {
                let payload_ref =
                    PayloadRef { collection, index: at.index, position: at.position, slot, len: 0 };
                decode_payload(scan, payload_ref, resolve)
            };
            if kind == 0 {
                let fields =
                    (0..count).map(|slot| decode_field(scan, (slot, at.format), &mut payload));
                Command::Put(Put { write, fields: fields.collect::<Result<_, E>>()? })
            } else {
                let edits =
                    (0..count).map(|slot| decode_edit(scan, (slot, at.format), &mut payload));
                Command::Patch(Patch { write, edits: edits.collect::<Result<_, E>>()? })
            }
        }
        2 => Command::Delete(Delete { write: decode_write(scan, at.format)? }),
        3 => Command::DropCollection { collection: CollectionId(scan.u64("a collection")?) },
        4 => {
            let now_ms = scan.u64("a sweep's time")?;
            let limit = scan.u32("a sweep's limit")?;
            let cursor = match scan.u8("a sweep's cursor")? {
                0 => None,
                _ => Some(scan.medium("a sweep's cursor")?),
            };
            let requests_max = match at.format >= Format::RELATIVE {
                true => scan.option_u64("a limit of requests or none")?,
                false => None,
            };
            Command::Sweep(Sweep { now_ms, limit, cursor, requests_max })
        }
        5 => {
            let payload = |scan: &mut Scanner, collection| {
                let (slot, len) = (0, 0);
                let At { index, position, .. } = at;
                let payload_ref = PayloadRef { collection, index, position, slot, len };
                decode_payload(scan, payload_ref, resolve)
            };
            Command::Upload(upload::decode(scan, payload)?)
        }
        6 => Command::PutUpload(upload::decode_put(scan, at.format)?),
        _ => return Err(scan.malformed("a known command").into()),
    };
    command.check().map_err(|_| scan.malformed("a command within bounds"))?;
    Ok(command)
}

fn decode_write(scan: &mut Scanner, format: Format) -> Result<Write, Malformed> {
    let collection = CollectionId(scan.u64("a collection")?);
    let key = scan.medium("a key")?;
    let condition = match scan.u8("a condition")? {
        0 => Condition::Any,
        1 => Condition::Absent,
        2 => Condition::Version(scan.u64("a version")?),
        3 => Condition::Writer(scan.u64("a writer")?),
        _ => return Err(scan.malformed("a known condition")),
    };
    let request = decode_request(scan)?;
    let expiry = match scan.u8("an expiry")? {
        0 => Expiry::Keep,
        1 => Expiry::Never,
        2 => Expiry::At(scan.u64("an expiry's time")?),
        3 if format >= Format::RELATIVE => Expiry::After(scan.u64("a time to live")?),
        4 if format >= Format::RELATIVE => Expiry::KeepOrAfter(scan.u64("a time to live")?),
        _ => return Err(scan.malformed("a known expiry")),
    };
    let writer = scan.u64("a writer")?;
    let model = match scan.u8("a model")? {
        0 => None,
        1 => Some(ModelTag {
            name: scan.short_text("a model's name")?,
            version: scan.u64("a model's version")?,
        }),
        _ => return Err(scan.malformed("a model or none")),
    };
    let limits = WriteLimits {
        state_bytes_max: scan.u64("a limit of state bytes")?,
        inline_bytes_max: scan.u32("a limit of inline bytes")?,
    };
    let answer = scan.medium("an answer")?;
    let target = Target { collection, key };
    Ok(Write { target, condition, request, expiry, writer, model, limits, answer })
}

fn decode_request(scan: &mut Scanner) -> Result<Option<RequestTag>, Malformed> {
    match scan.u8("a request tag")? {
        0 => Ok(None),
        1 => Ok(Some(RequestTag {
            id: scan.bytes16("a request's id")?,
            fingerprint: scan.u64("a request's fingerprint")?,
        })),
        _ => Err(scan.malformed("a request tag or none")),
    }
}
