//! What a shard answers to a command.

use bytes::Bytes;

/// What a shard answers to a command. A refusal is an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The state was written.
    Written {
        /// Its new version.
        version: u64,
        /// As the command carried it; for a repeat, as the first one did.
        answer: Bytes,
        /// Bytes of all its fields. For a repeat 0: that is not remembered.
        bytes: u64,
        /// The request had been done before: this is its reply.
        repeated: bool,
    },
    /// The state is gone.
    Deleted {
        /// The version at which it went.
        version: u64,
        /// There was a state.
        existed: bool,
        /// The request had been done before: this is its reply.
        repeated: bool,
    },
    /// The condition did not hold.
    Conflict {
        /// The state's version; `None` if there is no state.
        current: Option<u64>,
    },
    /// There is no state to change.
    NotFound,
    /// The state has no such field.
    FieldNotFound {
        /// The field asked for.
        name: String,
    },
    /// A range ends behind its field.
    RangePastEnd {
        /// The field.
        name: String,
        /// Bytes that it has.
        bytes: u64,
        /// The byte at which the range would end.
        end: u64,
    },
    /// A field is not what the change needs.
    FieldMismatch {
        /// The field.
        name: String,
        /// What was expected, for a person.
        expected: String,
    },
    /// The state would be larger than its collection allows.
    TooLarge {
        /// Bytes that its fields would have.
        bytes: u64,
        /// What the collection allows.
        max: u64,
    },
    /// The request id was used before for another request.
    RequestIdReused,
    /// The collection is empty.
    Dropped,
    /// Expired states, fields and uploads are gone.
    Swept {
        /// How many states.
        states: u64,
        /// How many fields of states that stay.
        fields: u64,
        /// How many uploads.
        uploads: u64,
    },
    /// So much of an upload is there: what was sent beyond must be sent again from here.
    Uploaded {
        /// Bytes, from the beginning.
        bytes: u64,
    },
    /// The upload is gone, or there was none.
    UploadAborted,
    /// There is no such upload: it was never begun, is done, or has expired.
    UploadNotFound,
    /// Another stream has taken the upload over.
    UploadTaken,
    /// The upload was begun for other fields.
    UploadMismatch,
    /// The upload has not all its bytes.
    UploadIncomplete {
        /// Bytes that are there.
        bytes: u64,
        /// Bytes that its fields have.
        expected: u64,
    },
    /// The upload's bytes are not those that were sent. It is gone.
    UploadCorrupt {
        /// The CRC-32 that its sender names.
        expected: u32,
        /// The CRC-32 of what is there.
        found: u32,
    },
    /// The upload has as many parts as one may have, and is not whole.
    TooManyParts {
        /// How many.
        max: usize,
    },
    /// The shard holds as many uploads as it may.
    TooManyUploads {
        /// How many.
        max: usize,
    },
}
