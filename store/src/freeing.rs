//! Which commands give space back: those that are taken while the disk is nearly full.
//!
//! Each writes a little itself (its entry, perhaps a request's row), which is what the freeing
//! reserve is for. Whether it gives anything back depends on what it finds; that it adds no more
//! than a row does not.

use crate::command::{Body, Command, Edit, Entry};
use crate::upload::UploadStep;

impl Command {
    /// Whether the command removes, and adds no bytes of a caller's: deletes, patches that remove
    /// fields or have them expire, drops of collections, sweeps, uploads given up.
    pub fn frees(&self) -> bool {
        match self {
            Command::Delete(_) | Command::DropCollection { .. } | Command::Sweep(_) => true,
            Command::Patch(patch) => patch.edits.iter().all(Edit::frees),
            Command::Upload(upload) => matches!(upload.step, UploadStep::Abort),
            Command::Put(_) | Command::PutUpload(_) => false,
        }
    }
}

impl Edit {
    /// Whether the edit adds no bytes to its state.
    pub fn frees(&self) -> bool {
        match self {
            Edit::Remove { .. } | Edit::Expire { .. } => true,
            Edit::Set(_) | Edit::WriteRange { .. } | Edit::Append { .. } => false,
        }
    }
}

impl Entry {
    /// Whether the entry holds no command that adds bytes. Blank entries and memberships don't:
    /// without them nobody leads, and no replica moves to where there is room.
    pub fn frees(&self) -> bool {
        match &self.body {
            Body::Blank | Body::Membership(_) => true,
            Body::Commands(batch) => batch.commands.iter().all(Command::frees),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::command::{
        CommandBatch, Condition, Delete, Expiry, Patch, Put, Target, Write, WriteLimits,
    };
    use crate::ids::CollectionId;

    fn write() -> Write {
        Write {
            target: Target { collection: CollectionId(1), key: Bytes::from_static(b"k") },
            condition: Condition::Any,
            request: None,
            expiry: Expiry::Keep,
            writer: 0,
            model: None,
            limits: WriteLimits { state_bytes_max: 1 << 20, inline_bytes_max: 1 << 10 },
            answer: Bytes::new(),
        }
    }

    fn entry(commands: Vec<Command>) -> Entry {
        Entry::new(1, 1, Body::Commands(CommandBatch { time_ms: 1, commands }))
    }

    #[test]
    fn an_entry_frees_only_if_each_of_its_commands_does() {
        let delete = || Command::Delete(Delete { write: write() });
        let drop = || Command::DropCollection { collection: CollectionId(1) };
        let put = || Command::Put(Put { write: write(), fields: Vec::new() });
        let patch = |edits| Command::Patch(Patch { write: write(), edits });
        let remove = || Edit::Remove { name: "f".into() };
        let append = || Edit::Append { name: "f".into(), bytes: Bytes::new(), max_bytes: Some(1) };
        assert!(Entry::new(1, 1, Body::Blank).frees());
        assert!(Entry::new(1, 1, Body::Membership(Bytes::new())).frees());
        assert!(entry(vec![delete(), drop(), patch(vec![remove()])]).frees());
        assert!(!entry(vec![delete(), put()]).frees());
        assert!(!entry(vec![patch(vec![remove(), append()])]).frees());
    }
}
