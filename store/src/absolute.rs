//! A batch as nodes of an older version read it: whatever counts from the entry's time says when
//! instead. Pure.
//!
//! Only as long as a cluster has such nodes: the shard's time may be ahead of the entry's, and a
//! change in a collection with a default expiry gives that to a state which had another.

use crate::command::{Command, CommandBatch, Edit, Expiry, Write};
use crate::value::When;

impl CommandBatch {
    /// The batch in a format that was there before times to live were durations.
    pub fn made_absolute(mut self) -> CommandBatch {
        let time_ms = self.time_ms;
        self.commands.iter_mut().for_each(|command| absolute(command, time_ms));
        self
    }
}

fn absolute(command: &mut Command, time_ms: u64) {
    match command {
        Command::Put(put) => {
            of_state(&mut put.write, time_ms);
            put.fields.iter_mut().for_each(|field| of_field(&mut field.expires, time_ms));
        }
        Command::Patch(patch) => {
            of_state(&mut patch.write, time_ms);
            for edit in &mut patch.edits {
                match edit {
                    Edit::Set(field) => of_field(&mut field.expires, time_ms),
                    Edit::Expire { when, .. } => of_field(when, time_ms),
                    Edit::Remove { .. } | Edit::WriteRange { .. } | Edit::Append { .. } => {}
                }
            }
        }
        Command::PutUpload(put) => {
            of_state(&mut put.write, time_ms);
            put.fields.iter_mut().for_each(|field| of_field(&mut field.expires, time_ms));
        }
        Command::Delete(delete) => of_state(&mut delete.write, time_ms),
        Command::Sweep(sweep) => sweep.requests_max = None,
        Command::DropCollection { .. } | Command::Upload(_) => {}
    }
}

fn of_state(write: &mut Write, time_ms: u64) {
    write.expiry = match write.expiry {
        Expiry::After(ttl_ms) | Expiry::KeepOrAfter(ttl_ms) => {
            Expiry::At(time_ms.saturating_add(ttl_ms))
        }
        other @ (Expiry::Keep | Expiry::Never | Expiry::At(_)) => other,
    };
}

fn of_field(expires: &mut Option<When>, time_ms: u64) {
    *expires = expires.map(|when| When::At(when.at_ms(time_ms)));
}
