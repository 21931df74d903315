//! Uploads: large states in parts. Each step is one command, and may be repeated without harm.

use std::sync::Arc;

use bytes::Bytes;
use statehouse_cluster::catalog::Collection;
use statehouse_cluster::raft::Group;
use statehouse_store::{
    Command, FieldType, PutUpload, Reply, RequestTag, Target, Upload, UploadId, UploadStep,
    UploadedField,
};
use tokio::sync::oneshot;

use super::limits::check_field_names;
use super::warning::{Attempt, SizeWarning};
use super::write::{Answer, Written, fingerprint, hash_part, propose, request_tag, written};
use super::{
    Freshness, REQUEST_ID_BYTES_MAX, StateKey, States, WriteOptions, check_key, reply_failure,
};
use crate::admission::Charge;
use crate::failure::{Failure, Reason};
use crate::metrics::CallKind;

/// One step of an upload.
#[derive(Debug, Clone)]
pub struct UploadCommand {
    /// Whose state it will be.
    pub target: StateKey,
    /// 1..=64 bytes.
    pub upload_id: Bytes,
    /// What is done.
    pub action: UploadAction,
}

/// What is done to an upload.
#[derive(Debug, Clone)]
pub enum UploadAction {
    /// Begins it, or takes it over.
    Begin {
        /// The stream that feeds it from now on.
        writer: u64,
        /// What is being uploaded.
        fields: Vec<UploadedField>,
    },
    /// Adds bytes.
    Part {
        /// The stream that sends them.
        writer: u64,
        /// Where they begin.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
        /// Their CRC-32.
        crc32: u32,
    },
    /// Makes a state of it.
    End {
        /// The stream that fed it.
        writer: u64,
        /// What was uploaded.
        fields: Vec<UploadedField>,
        /// Conditions and expiry; the upload's id is the request's.
        options: WriteOptions,
        /// The CRC-32 of all bytes.
        crc32: Option<u32>,
    },
    /// Gives it up.
    Abort,
    /// Asks how much is there.
    Look,
}

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uploaded {
    /// So many bytes are there.
    There {
        /// From the beginning.
        bytes: u64,
        /// Unix milliseconds, of a look; else 0.
        expires_at_ms: u64,
    },
    /// It is a state.
    Done {
        /// Of the state.
        version: u64,
        /// It was before.
        repeated: bool,
        /// It is above what its collection warns of.
        warning: Option<SizeWarning>,
    },
    /// It is gone.
    Aborted,
}

/// An upload's id in the store, and the tag of its last command.
struct Names {
    id: UploadId,
    tag: RequestTag,
}

impl States {
    /// Does one step of an upload.
    pub async fn upload(
        &self,
        group: &Arc<Group>,
        command: UploadCommand,
        charge: &Arc<Charge>,
    ) -> Result<Uploaded, Failure> {
        let UploadCommand { target, upload_id, action } = command;
        check_key(&target.key)?;
        let collection = self.collection(&target.collection).await?;
        let idle_ms = self.upload_idle.as_millis() as u64;
        match action {
            UploadAction::Begin { writer, fields } => {
                self.check_upload(&collection, &fields)?;
                let fingerprint = fingerprint_of(&fields);
                let Names { id, tag } = names(&collection, &target.key, &upload_id, fingerprint)?;
                let step = UploadStep::Begin { writer, fingerprint, request: Some(tag), idle_ms };
                uploaded(self.step(group, &collection, target.key, id, step).await?)
            }
            UploadAction::Part { writer, offset, bytes, crc32 } => {
                self.shards().store().check_space()?;
                let Names { id, .. } = names(&collection, &target.key, &upload_id, 0)?;
                let step = UploadStep::Part { writer, offset, bytes, crc32, idle_ms };
                uploaded(self.step(group, &collection, target.key, id, step).await?)
            }
            UploadAction::End { writer, fields, options, crc32 } => {
                let fingerprint = fingerprint_of(&fields);
                let bytes = fields.iter().map(|field| field.bytes).sum();
                let key = target.key;
                let Names { id, tag } = names(&collection, &key, &upload_id, fingerprint)?;
                let mut write = self.write(&collection, &key, &options, fingerprint)?;
                write.request = Some(tag);
                let put = PutUpload { write, id, writer, fields, crc32 };
                let attempt = Attempt::new(CallKind::Write, bytes);
                let turn = self.chains().enter(collection.id, &key)?.await?;
                let commit = propose(group, Command::PutUpload(put), turn.begin(), charge);
                turn.leave(None);
                let Answer { written, bytes, .. } = written(commit.await?)?;
                let warning = self.size_warning(&collection, &key, attempt, bytes);
                let Written { version, repeated, .. } = written;
                Ok(Uploaded::Done { version, repeated, warning })
            }
            UploadAction::Abort => {
                self.shards().store().check_space_to_free()?;
                let Names { id, .. } = names(&collection, &target.key, &upload_id, 0)?;
                uploaded(self.step(group, &collection, target.key, id, UploadStep::Abort).await?)
            }
            UploadAction::Look => {
                let Names { id, .. } = names(&collection, &target.key, &upload_id, 0)?;
                Freshness::Linearizable.reached_by(group).await?;
                let now_ms = group.now_ms();
                let look = move |reader: &statehouse_store::Reader| {
                    reader.upload(collection.id, &id, now_ms).map_err(Failure::from)
                };
                let found = self.on_disk(group.reader(), look).await?;
                let there = found.ok_or_else(|| reply_failure(Reply::UploadNotFound))?;
                let (bytes, expires_at_ms) = (there.bytes, there.expires_at_ms);
                Ok(Uploaded::There { bytes, expires_at_ms })
            }
        }
    }

    /// Refuses what can't become a state, before a byte of it came.
    fn check_upload(
        &self,
        collection: &Collection,
        fields: &[UploadedField],
    ) -> Result<(), Failure> {
        self.shards().store().check_space()?;
        check_field_names(fields.iter().map(|field| field.name.as_str()))?;
        let bytes = fields.iter().map(|field| field.bytes).fold(0, u64::saturating_add);
        super::write::check_size(bytes, collection)
    }

    async fn step(
        &self,
        group: &Arc<Group>,
        collection: &Collection,
        key: Bytes,
        id: UploadId,
        step: UploadStep,
    ) -> Result<Reply, Failure> {
        let target = Target { collection: collection.id, key };
        let (sender, receiver) = oneshot::channel();
        let command = Command::Upload(Upload { target, id, step });
        if !command.frees() {
            group.check_room()?;
        }
        // The caller may have given up.
        group.propose(command, Box::new(move |reply| drop(sender.send(reply))));
        let gone = || Failure::new(Reason::OutcomeUnknown, "the node stopped before the reply");
        Ok(receiver.await.map_err(|_| gone())??)
    }
}

fn uploaded(reply: Reply) -> Result<Uploaded, Failure> {
    match reply {
        Reply::Uploaded { bytes } => Ok(Uploaded::There { bytes, expires_at_ms: 0 }),
        Reply::UploadAborted => Ok(Uploaded::Aborted),
        Reply::Written { version, repeated, .. } => {
            Ok(Uploaded::Done { version, repeated, warning: None })
        }
        other => Err(reply_failure(other)),
    }
}

fn names(
    collection: &Collection,
    key: &[u8],
    upload_id: &[u8],
    fingerprint: u64,
) -> Result<Names, Failure> {
    let tag = request_tag(collection, key, upload_id, fingerprint)?.ok_or_else(|| {
        let message = format!("an upload id has 1..={REQUEST_ID_BYTES_MAX} bytes, got none");
        Failure::new(Reason::InvalidRequest, message)
    })?;
    Ok(Names { id: tag.id, tag })
}

/// A hash of what is uploaded, its bytes apart.
fn fingerprint_of(fields: &[UploadedField]) -> u64 {
    fingerprint(b"upload", |hash| {
        for field in fields {
            hash_part(hash, field.name.as_bytes());
            if let FieldType::Tensor { dtype, shape } = &field.field_type {
                hash.update(&[*dtype as u8, shape.len() as u8]);
                for axis in shape {
                    hash.update(&axis.to_le_bytes());
                }
            }
            hash.update(&field.bytes.to_le_bytes());
        }
    })
}
