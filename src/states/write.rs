//! Writes: checked, turned into one command, proposed, and the reply into an answer.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use statehouse_cluster::catalog::Collection;
use statehouse_cluster::raft::Group;
use statehouse_store::{
    Command, Condition, Delete, Edit, Expiry, Field, Patch, Put, Reply, RequestTag, Target, Value,
    Write, WriteLimits,
};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::limits::{check_field, check_field_name, check_fields};
use super::warning::{Attempt, SizeWarning};
use super::{EDITS_MAX, REQUEST_ID_BYTES_MAX, StateKey, States, check_key};
use crate::admission::Charge;
use crate::chain::Uncommitted;
use crate::failure::{Failure, Reason};
use crate::metrics::CallKind;

/// The caller's idempotency key: 1..=64 bytes.
pub type RequestId = Bytes;

/// What a write needs, and how long it lasts.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// What must hold.
    pub condition: Condition,
    /// `None`: of a whole state the collection's default, of a change what the state has.
    pub expiry: Option<Expiry>,
    /// Empty: none.
    pub request_id: RequestId,
}

/// Replaces a whole state.
#[derive(Debug, Clone)]
pub struct PutCommand {
    /// Whose state.
    pub target: StateKey,
    /// All fields of the new state.
    pub fields: Vec<Field>,
    /// Conditions, expiry, request id.
    pub options: WriteOptions,
}

/// Changes parts of a state.
#[derive(Debug, Clone)]
pub struct PatchCommand {
    /// Whose state.
    pub target: StateKey,
    /// Done in order, all or none.
    pub edits: Vec<Edit>,
    /// Conditions, expiry, request id.
    pub options: WriteOptions,
}

/// Deletes a state.
#[derive(Debug, Clone)]
pub struct DeleteCommand {
    /// Whose state.
    pub target: StateKey,
    /// Conditions and request id.
    pub options: WriteOptions,
}

/// What a write answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The state's new version.
    pub version: u64,
    /// The request id had been seen: the first answer again.
    pub repeated: bool,
    /// The state is above what its collection warns of.
    pub warning: Option<SizeWarning>,
}

/// What a step answers: the write and what its caller had attached.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The write.
    pub written: Written,
    /// As given to the command, or to the first one with this request id.
    pub attached: Bytes,
    /// Of all fields of the state; of a repeat 0.
    pub bytes: u64,
}

impl States {
    /// Replaces a state.
    pub async fn put(
        &self,
        group: &Arc<Group>,
        put: PutCommand,
        charge: &Arc<Charge>,
    ) -> Result<Written, Failure> {
        check_fields(&put.fields)?;
        let collection = self.collection(&put.target.collection).await?;
        let fingerprint = fingerprint(b"put", |hash| {
            for field in &put.fields {
                hash_field(hash, field);
            }
        });
        let write = self.write(&collection, &put.target.key, &put.options, fingerprint)?;
        let bytes = put.fields.iter().map(|field| field.value.bytes().len() as u64).sum();
        check_size(bytes, &collection)?;
        let command = Command::Put(Put { write, fields: put.fields });
        let attempt = Attempt::new(CallKind::Put, bytes);
        self.write_in_turn(&collection, (&put.target.key, group), command, (charge, attempt)).await
    }

    /// Changes parts of a state.
    pub async fn patch(
        &self,
        group: &Arc<Group>,
        patch: PatchCommand,
        charge: &Arc<Charge>,
    ) -> Result<Written, Failure> {
        check_edits(&patch.edits)?;
        let collection = self.collection(&patch.target.collection).await?;
        let fingerprint = fingerprint(b"patch", |hash| {
            for edit in &patch.edits {
                hash_edit(hash, edit);
            }
        });
        self.check_space(patch.edits.iter().all(Edit::frees))?;
        let write = self.changing(&collection, &patch.target.key, &patch.options, fingerprint)?;
        let bytes = patch.edits.iter().map(|edit| edit_bytes(edit) as u64).sum();
        check_size(bytes, &collection)?;
        let command = Command::Patch(Patch { write, edits: patch.edits });
        let attempt = Attempt::new(CallKind::Patch, bytes);
        self.write_in_turn(&collection, (&patch.target.key, group), command, (charge, attempt))
            .await
    }

    /// Deletes a state; answers whether there was one, and whether the request is a repeat.
    pub async fn delete(
        &self,
        group: &Arc<Group>,
        delete: DeleteCommand,
        charge: &Arc<Charge>,
    ) -> Result<(bool, bool), Failure> {
        let collection = self.collection(&delete.target.collection).await?;
        let fingerprint = fingerprint(b"delete", |_| {});
        self.check_space(true)?;
        let write = self.checked(&collection, &delete.target.key, &delete.options, fingerprint)?;
        let command = Command::Delete(Delete { write });
        let turn = self.chains().enter(collection.id, &delete.target.key)?.await?;
        let commit = propose(group, command, turn.begin(), charge);
        turn.leave(None);
        match commit.await? {
            Reply::Deleted { existed, repeated, .. } => Ok((existed, repeated)),
            other => Err(reply_failure(other)),
        }
    }

    /// Proposes a write once those of the same key that came before are proposed.
    async fn write_in_turn(
        &self,
        collection: &Collection,
        (key, group): (&Bytes, &Arc<Group>),
        command: Command,
        (charge, attempt): (&Arc<Charge>, Attempt),
    ) -> Result<Written, Failure> {
        let turn = self.chains().enter(collection.id, key)?.await?;
        let commit = propose(group, command, turn.begin(), charge);
        turn.leave(None);
        let Answer { written, bytes, .. } = written(commit.await?)?;
        Ok(Written { warning: self.size_warning(collection, key, attempt, bytes), ..written })
    }

    /// Refuses if the disk has no room: there is more for what frees space.
    fn check_space(&self, frees: bool) -> Result<(), Failure> {
        let store = self.shards().store();
        match frees {
            true => store.check_space_to_free()?,
            false => store.check_space()?,
        }
        Ok(())
    }

    /// As `write`, of a write that changes a state and does not replace it: unless it says
    /// otherwise, the state expires when it would have, and a new one after the default.
    pub fn change(
        &self,
        collection: &Collection,
        key: &Bytes,
        options: &WriteOptions,
        fingerprint: u64,
    ) -> Result<Write, Failure> {
        self.check_space(false)?;
        self.changing(collection, key, options, fingerprint)
    }

    /// As `change`, but for room on the disk.
    fn changing(
        &self,
        collection: &Collection,
        key: &Bytes,
        options: &WriteOptions,
        fingerprint: u64,
    ) -> Result<Write, Failure> {
        let kept = collection.settings.default_ttl_ms.map_or(Expiry::Keep, Expiry::KeepOrAfter);
        let write = self.checked(collection, key, options, fingerprint)?;
        Ok(Write { expiry: options.expiry.unwrap_or(kept), ..write })
    }

    /// Checks what every write has in common that adds to its state.
    pub fn write(
        &self,
        collection: &Collection,
        key: &Bytes,
        options: &WriteOptions,
        fingerprint: u64,
    ) -> Result<Write, Failure> {
        self.check_space(false)?;
        self.checked(collection, key, options, fingerprint)
    }

    /// Checks what every write has in common, but for room on the disk.
    fn checked(
        &self,
        collection: &Collection,
        key: &Bytes,
        options: &WriteOptions,
        fingerprint: u64,
    ) -> Result<Write, Failure> {
        check_key(key)?;
        let settings = &collection.settings;
        let default = settings.default_ttl_ms.map_or(Expiry::Never, Expiry::After);
        Ok(Write {
            // Not a part of the message that it came with.
            target: Target { collection: collection.id, key: Bytes::copy_from_slice(key) },
            condition: options.condition,
            request: request_tag(collection, key, &options.request_id, fingerprint)?,
            expiry: options.expiry.unwrap_or(default),
            writer: 0,
            model: None,
            limits: WriteLimits {
                state_bytes_max: settings.state_bytes_max,
                inline_bytes_max: settings.inline_bytes_max,
            },
            answer: Bytes::new(),
        })
    }
}

/// Proposes a command at once; the future that comes back has the reply. The chain of its key
/// learns how it ended even if nobody awaits that, and what the call holds is held until then.
pub fn propose(
    group: &Arc<Group>,
    command: Command,
    uncommitted: Uncommitted,
    charge: &Arc<Charge>,
) -> impl Future<Output = Result<Reply, Failure>> + use<> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let held = charge.clone();
    let done = move |reply: Result<Reply, statehouse_cluster::Error>| {
        // Of a repeat, what the caller made of it is not what is stored.
        let stored =
            matches!(reply, Ok(Reply::Written { repeated: false, .. } | Reply::Deleted { .. }));
        uncommitted.settle(stored);
        drop(held);
        // The caller may have given up; the write stands all the same.
        let _ = sender.send(reply);
    };
    let room = if command.frees() { Ok(()) } else { group.check_room() };
    match room {
        Ok(()) => group.propose(command, Box::new(done)),
        Err(full) => done(Err(full)),
    }
    async move {
        let reply = receiver.await;
        let gone = "the node stopped before the reply";
        Ok(reply.map_err(|_| Failure::new(Reason::OutcomeUnknown, gone))??)
    }
}

/// The answer of a write, without a warning, or why it was refused.
pub fn written(reply: Reply) -> Result<Answer, Failure> {
    match reply {
        Reply::Written { version, answer, bytes, repeated } => {
            let written = Written { version, repeated, warning: None };
            Ok(Answer { written, attached: answer, bytes })
        }
        other => Err(reply_failure(other)),
    }
}

/// What ties the repeats of a request together: its id on this key, and what it asks.
pub fn request_tag(
    collection: &Collection,
    key: &[u8],
    request_id: &[u8],
    fingerprint: u64,
) -> Result<Option<RequestTag>, Failure> {
    if request_id.is_empty() {
        return Ok(None);
    }
    if request_id.len() > REQUEST_ID_BYTES_MAX {
        let message =
            format!("a request id has 1..={REQUEST_ID_BYTES_MAX} bytes, got {}", request_id.len());
        return Err(Failure::new(Reason::InvalidRequest, message));
    }
    let mut bytes = Vec::with_capacity(10 + key.len() + request_id.len());
    bytes.extend_from_slice(&collection.id.0.to_le_bytes());
    bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(request_id);
    Ok(Some(RequestTag { id: xxh3_128(&bytes).to_le_bytes(), fingerprint }))
}

/// A hash of what a request asks, to tell a repeat from another request under the same id.
pub fn fingerprint(kind: &[u8], feed: impl FnOnce(&mut Xxh3)) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(kind);
    feed(&mut hash);
    hash.digest()
}

/// Why a command was refused.
pub fn reply_failure(reply: Reply) -> Failure {
    match reply {
        Reply::Conflict { current } => {
            let now = current.map_or("absent".to_owned(), |version| version.to_string());
            Failure::new(Reason::VersionConflict, format!("the state's version is {now}"))
                .with("current_version", current.unwrap_or(0))
        }
        Reply::NotFound => {
            Failure::new(Reason::StateNotFound, "there is no state to change under this key")
        }
        Reply::FieldNotFound { name } => {
            Failure::new(Reason::FieldNotFound, format!("the state has no field {name:?}"))
                .with("field", name)
        }
        Reply::RangePastEnd { name, bytes, end } => Failure::new(
            Reason::RangePastEnd,
            format!("the range ends at byte {end}, but field {name:?} has {bytes}"),
        )
        .with("field", name)
        .with("field_bytes", bytes),
        Reply::FieldMismatch { name, expected } => {
            Failure::new(Reason::FieldMismatch, format!("field {name:?}: expected {expected}"))
                .with("field", name)
        }
        Reply::TooLarge { bytes, max } => Failure::new(
            Reason::StateTooLarge,
            format!("the state would have {bytes} bytes, its collection allows {max}"),
        )
        .with("state_bytes_max", max),
        Reply::RequestIdReused => Failure::new(
            Reason::RequestIdReused,
            "this request id was used for another request on this key",
        ),
        Reply::UploadNotFound => {
            let message = "no such upload: never begun, written already, given up or expired";
            Failure::new(Reason::UploadNotFound, message)
        }
        Reply::UploadTaken => {
            Failure::new(Reason::UploadTaken, "another stream continues this upload by now")
        }
        Reply::UploadMismatch => {
            let message = "this upload id was used for other fields: names, types or sizes differ";
            Failure::new(Reason::UploadMismatch, message)
        }
        Reply::UploadIncomplete { bytes, expected } => {
            let message = format!("the upload has {bytes} bytes, its fields have {expected}");
            Failure::new(Reason::UploadIncomplete, message).with("received_bytes", bytes)
        }
        Reply::UploadCorrupt { expected, found } => Failure::new(
            Reason::ChecksumMismatch,
            format!("the bytes' CRC-32 is {found:#010x}, expected {expected:#010x}: begin anew"),
        ),
        Reply::TooManyParts { max } => {
            let message =
                format!("the upload came in {max} parts, the most: begin anew, in larger");
            Failure::new(Reason::InvalidRequest, message)
        }
        Reply::TooManyUploads { max } => {
            let message = format!("the shard holds {max} unfinished uploads: that is its limit");
            Failure::overloaded(message)
        }
        Reply::Written { .. }
        | Reply::Deleted { .. }
        | Reply::Dropped
        | Reply::Swept { .. }
        | Reply::Uploaded { .. }
        | Reply::UploadAborted => {
            Failure::new(Reason::Internal, "a write was answered with another command's reply")
        }
    }
}

pub(super) fn check_size(bytes: u64, collection: &Collection) -> Result<(), Failure> {
    let max = collection.settings.state_bytes_max;
    if bytes <= max {
        return Ok(());
    }
    Err(reply_failure(Reply::TooLarge { bytes, max }))
}

fn check_edits(edits: &[Edit]) -> Result<(), Failure> {
    if edits.is_empty() || edits.len() > EDITS_MAX {
        let message = format!("a patch has 1..={EDITS_MAX} edits, got {}", edits.len());
        return Err(Failure::new(Reason::InvalidRequest, message));
    }
    edits.iter().try_for_each(|edit| match edit {
        Edit::Set(field) => check_field(field),
        Edit::Remove { name }
        | Edit::WriteRange { name, .. }
        | Edit::Append { name, .. }
        | Edit::Expire { name, .. } => check_field_name(name),
    })?;
    check_overlaps(edits)
}

/// Ranges of one field that are written by one patch must not overlap: which of them was meant
/// can't be told. What sets, removes or grows the field between them begins anew.
fn check_overlaps(edits: &[Edit]) -> Result<(), Failure> {
    let mut ranges: HashMap<&str, Vec<(usize, u64, u64)>> = HashMap::new();
    for (at, edit) in edits.iter().enumerate() {
        let (name, start, end) = match edit {
            Edit::WriteRange { name, offset, bytes } => {
                (name, *offset, offset.saturating_add(bytes.len() as u64))
            }
            Edit::Set(Field { name, .. }) | Edit::Remove { name } | Edit::Append { name, .. } => {
                ranges.remove(name.as_str());
                continue;
            }
            Edit::Expire { .. } => continue,
        };
        let others = ranges.entry(name).or_default();
        let overlap = others.iter().find(|(_, from, until)| start < *until && *from < end);
        if let Some((other, ..)) = overlap {
            let message = format!("edits {other} and {at} overwrite the same bytes of {name:?}");
            return Err(Failure::new(Reason::InvalidRequest, message).with("field", name));
        }
        others.push((at, start, end));
    }
    Ok(())
}

fn edit_bytes(edit: &Edit) -> usize {
    match edit {
        Edit::Set(field) => field.value.bytes().len(),
        Edit::Remove { .. } | Edit::Expire { .. } => 0,
        Edit::WriteRange { bytes, .. } | Edit::Append { bytes, .. } => bytes.len(),
    }
}

pub(super) fn hash_part(hash: &mut Xxh3, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn hash_field(hash: &mut Xxh3, field: &Field) {
    hash_part(hash, field.name.as_bytes());
    if let Value::Tensor { dtype, shape, .. } = &field.value {
        hash.update(&[*dtype as u8, shape.len() as u8]);
        for axis in shape {
            hash.update(&axis.to_le_bytes());
        }
    }
    hash_part(hash, field.value.bytes());
}

/// When something expires is no part of what is asked: milliseconds from now are another time when
/// the request is sent again.
fn hash_edit(hash: &mut Xxh3, edit: &Edit) {
    match edit {
        Edit::Set(field) => {
            hash.update(b"s");
            hash_field(hash, field);
        }
        Edit::Remove { name } => {
            hash.update(b"r");
            hash_part(hash, name.as_bytes());
        }
        Edit::WriteRange { name, offset, bytes } => {
            hash.update(b"w");
            hash_part(hash, name.as_bytes());
            hash.update(&offset.to_le_bytes());
            hash_part(hash, bytes);
        }
        Edit::Append { name, bytes, max_bytes } => {
            hash.update(b"a");
            hash_part(hash, name.as_bytes());
            hash.update(&max_bytes.unwrap_or(u64::MAX).to_le_bytes());
            hash_part(hash, bytes);
        }
        Edit::Expire { name, when } => {
            hash.update(if when.is_some() { b"x" } else { b"n" });
            hash_part(hash, name.as_bytes());
        }
    }
}
