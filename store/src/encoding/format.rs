//! Which format an entry is written in: the oldest that can say it, so that nodes of older versions
//! read what they know.

use crate::codec::{Malformed, Scanner, Writer};
use crate::command::{Body, Command, Edit, Entry, Expiry, Sweep};
use crate::value::When;

/// A format of entries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Format(pub u8);

impl Format {
    /// Fields last as long as their state.
    pub const PLAIN: Format = Format(1);
    /// Fields say when they expire.
    pub const EXPIRING: Format = Format(2);
    /// Expiries may count from the entry's time; a sweep may limit the requests remembered.
    pub const RELATIVE: Format = Format(3);

    /// The oldest one that can say an entry.
    pub fn of(entry: &Entry) -> Format {
        let Body::Commands(batch) = &entry.body else { return Format::PLAIN };
        batch.commands.iter().map(Format::of_command).max().unwrap_or(Format::PLAIN)
    }

    fn of_command(command: &Command) -> Format {
        match command {
            Command::Put(put) => {
                let fields = put.fields.iter().map(|field| Format::of_field(field.expires));
                fields.fold(Format::of_expiry(put.write.expiry), Ord::max)
            }
            Command::Patch(patch) => {
                let edits = patch.edits.iter().map(|edit| match edit {
                    Edit::Set(field) => Format::of_field(field.expires),
                    Edit::Expire { when, .. } => Format::EXPIRING.max(Format::of_field(*when)),
                    Edit::Remove { .. } | Edit::WriteRange { .. } | Edit::Append { .. } => {
                        Format::PLAIN
                    }
                });
                edits.fold(Format::of_expiry(patch.write.expiry), Ord::max)
            }
            Command::PutUpload(put) => {
                let fields = put.fields.iter().map(|field| Format::of_field(field.expires));
                fields.fold(Format::of_expiry(put.write.expiry), Ord::max)
            }
            Command::Delete(delete) => Format::of_expiry(delete.write.expiry),
            Command::Sweep(Sweep { requests_max: Some(_), .. }) => Format::RELATIVE,
            Command::DropCollection { .. } | Command::Sweep(_) | Command::Upload(_) => {
                Format::PLAIN
            }
        }
    }

    fn of_expiry(expiry: Expiry) -> Format {
        match expiry {
            Expiry::Keep | Expiry::Never | Expiry::At(_) => Format::PLAIN,
            Expiry::KeepOrAfter(_) | Expiry::After(_) => Format::RELATIVE,
        }
    }

    fn of_field(expires: Option<When>) -> Format {
        match expires {
            None => Format::PLAIN,
            Some(When::At(_)) => Format::EXPIRING,
            Some(When::After(_)) => Format::RELATIVE,
        }
    }

    /// Writes when a field expires, from format 2 on. `After` is of format 3 alone: see `of`.
    pub fn encode_when(self, out: &mut Writer, expires: Option<When>) {
        if self < Format::EXPIRING {
            return;
        }
        match expires {
            None => out.u8(0),
            Some(When::At(at_ms)) => {
                out.u8(1);
                out.u64(at_ms);
            }
            Some(When::After(ttl_ms)) => {
                out.u8(2);
                out.u64(ttl_ms);
            }
        }
    }

    pub fn decode_when(self, scan: &mut Scanner) -> Result<Option<When>, Malformed> {
        if self < Format::EXPIRING {
            return Ok(None);
        }
        match scan.u8("a field's expiry or none")? {
            0 => Ok(None),
            1 => Ok(Some(When::At(scan.u64("when a field expires")?))),
            2 if self >= Format::RELATIVE => {
                Ok(Some(When::After(scan.u64("after how long a field expires")?)))
            }
            _ => Err(scan.malformed("a field's expiry or none")),
        }
    }
}
