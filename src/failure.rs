//! What a caller is told when something can't be done: one reason per thing a caller does
//! differently, with the gRPC code it travels under.
//!
//! `docs/ERRORS.md` is the same table for users; a test holds the two together.

use std::borrow::Cow;
use std::time::Duration;

use statehouse_cluster::placement::Refusal;
use statehouse_cluster::{self as cluster, NodeId, ShardId};
use statehouse_inference as inference;
use statehouse_store as store;
use tonic::Code;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $code:ident;)*) => {
        /// A stable name for why a call failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The name that travels as `ErrorInfo.reason`.
            pub fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }

            /// The gRPC code that it travels under.
            pub fn code(self) -> Code {
                match self { $(Reason::$variant => Code::$code,)* }
            }

            /// The reason of that name, if there is one.
            pub fn of_name(name: &str) -> Option<Reason> {
                match name { $($name => Some(Reason::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    /// No collection of that name.
    CollectionNotFound = "COLLECTION_NOT_FOUND", NotFound;
    /// A collection of that name is there, perhaps with other settings.
    CollectionExists = "COLLECTION_EXISTS", AlreadyExists;
    /// No state under that key.
    StateNotFound = "STATE_NOT_FOUND", NotFound;
    /// The state has no field of that name.
    FieldNotFound = "FIELD_NOT_FOUND", NotFound;
    /// A field is of another kind than the edit needs.
    FieldMismatch = "FIELD_MISMATCH", FailedPrecondition;
    /// A range reaches past the end of its field.
    RangePastEnd = "RANGE_PAST_END", OutOfRange;
    /// `if_version` or `if_absent` did not hold.
    VersionConflict = "VERSION_CONFLICT", Aborted;
    /// No unfinished upload of that id.
    UploadNotFound = "UPLOAD_NOT_FOUND", NotFound;
    /// Another stream continues the upload.
    UploadTaken = "UPLOAD_TAKEN", Aborted;
    /// The upload id was used for other fields.
    UploadMismatch = "UPLOAD_MISMATCH", FailedPrecondition;
    /// The stream does not begin where the upload ends.
    UploadOffset = "UPLOAD_OFFSET", OutOfRange;
    /// The stream ends before its fields do.
    UploadIncomplete = "UPLOAD_INCOMPLETE", FailedPrecondition;
    /// The bytes that came are not those that were sent.
    ChecksumMismatch = "CHECKSUM_MISMATCH", InvalidArgument;
    /// A stream's other end neither sent nor took anything for too long.
    StreamStalled = "STREAM_STALLED", Aborted;
    /// The request id was used for another request on this key.
    RequestIdReused = "REQUEST_ID_REUSED", InvalidArgument;
    /// The state would be larger than its collection allows.
    StateTooLarge = "STATE_TOO_LARGE", InvalidArgument;
    /// The answer would be larger than one message may be.
    AnswerTooLarge = "ANSWER_TOO_LARGE", OutOfRange;
    /// A key of no or too many bytes.
    InvalidKey = "INVALID_KEY", InvalidArgument;
    /// A request that says something that can't be.
    InvalidRequest = "INVALID_REQUEST", InvalidArgument;
    /// A tensor whose bytes do not fit its type and shape.
    InvalidTensor = "INVALID_TENSOR", InvalidArgument;
    /// No model of that name.
    ModelNotFound = "MODEL_NOT_FOUND", NotFound;
    /// The model has no such version, or none is active.
    ModelVersionNotFound = "MODEL_VERSION_NOT_FOUND", NotFound;
    /// The model version is active and can't be deleted.
    ModelActive = "MODEL_ACTIVE", FailedPrecondition;
    /// The model's files can't be read, hold an unknown operator, or fail the self-test.
    InvalidModel = "INVALID_MODEL", InvalidArgument;
    /// An input that is unknown, missing, or of the wrong type or shape.
    InvalidInput = "INVALID_INPUT", InvalidArgument;
    /// NaN or infinity where the model's manifest forbids it.
    NotFinite = "NOT_FINITE", InvalidArgument;
    /// A stored field does not fit the model's state input.
    StateMismatch = "STATE_MISMATCH", FailedPrecondition;
    /// No node of that id.
    NodeNotFound = "NODE_NOT_FOUND", NotFound;
    /// No shard of that number.
    ShardNotFound = "SHARD_NOT_FOUND", NotFound;
    /// No task of that id.
    TaskNotFound = "TASK_NOT_FOUND", NotFound;
    /// A replica, a lead or a node can't be moved, removed or undone as asked.
    MoveRefused = "MOVE_REFUSED", FailedPrecondition;
    /// More memory than the node has for calls, now or later.
    TooLargeForMemory = "TOO_LARGE_FOR_MEMORY", FailedPrecondition;
    /// A bounded queue is full: retry after the time given.
    Overloaded = "OVERLOADED", ResourceExhausted;
    /// The disk is nearly full: writes are refused, reads go on.
    DiskFull = "DISK_FULL", ResourceExhausted;
    /// The deadline passed, or can't be met.
    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded;
    /// The write may or may not have happened: retry with the same request id.
    OutcomeUnknown = "OUTCOME_UNKNOWN", Unknown;
    /// Another node leads the key's shard, or nobody does yet: nothing happened.
    NotLeader = "NOT_LEADER", Unavailable;
    /// The node is stopping or its disk failed: nothing happened.
    Unavailable = "UNAVAILABLE", Unavailable;
    /// The call is for another cluster than the node's: nothing happened.
    WrongCluster = "WRONG_CLUSTER", FailedPrecondition;
    /// What was read is not what was written.
    Corrupt = "CORRUPT", DataLoss;
    /// A fault of ours.
    Internal = "INTERNAL", Internal;
}

/// Why a call failed, with what its caller may want to know.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What a caller decides by.
    pub reason: Reason,
    /// What a person reads.
    pub message: String,
    /// Names and values, such as the current version of a conflict.
    pub metadata: Vec<(Cow<'static, str>, String)>,
    /// When a retry may succeed; `None`: not by waiting.
    pub retry_after: Option<Duration>,
}

/// The names under which `NOT_LEADER` says which shard, who leads it, and where that is.
pub const SHARD: &str = "shard";
pub const LEADER_NODE: &str = "leader_node";
pub const LEADER_ADDRESS: &str = "leader_address";

/// The name under which `CORRUPT` says what was read, if that was damaged on disk.
pub const DAMAGED: &str = "damaged";

/// How long a caller waits after a full queue.
const RETRY_OVERLOADED: Duration = Duration::from_millis(50);

/// How long a caller waits until somebody may lead.
const RETRY_NOT_LEADER: Duration = Duration::from_millis(5);

/// How long a caller waits for space on the disk.
const RETRY_DISK_FULL: Duration = Duration::from_secs(10);

impl Failure {
    /// A failure without metadata.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Failure { reason, message: message.into(), metadata: Vec::new(), retry_after: None }
    }

    /// With a name and value for programs.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.metadata.push((name.into(), value.to_string()));
        self
    }

    /// With a time after which a retry may succeed.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Of a shard that this node doesn't lead; who does, as far as is known.
    pub fn not_leader(shard: ShardId, leader: Option<NodeId>) -> Self {
        let message = match leader {
            Some(node) => format!("shard {shard} is led by node {node}"),
            None => format!("nobody is known to lead shard {shard}"),
        };
        let failure = Failure::new(Reason::NotLeader, message).retry_after(RETRY_NOT_LEADER);
        let failure = failure.with(SHARD, shard);
        leader.into_iter().fold(failure, |failure, node| failure.with(LEADER_NODE, node))
    }

    /// A value by its name.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.metadata.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// What never fits into the node's memory for calls, and which setting says so.
    pub fn too_large_for_memory(message: impl Into<String>, needed: u64, max: u64) -> Self {
        let message = format!(
            "{}: raise memory_max, or the part of it that request_bytes_max is",
            message.into()
        );
        Failure::new(Reason::TooLargeForMemory, message)
            .with("needed_bytes", needed)
            .with("request_bytes_max", max)
    }

    /// A full queue or a spent limit.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Failure::new(Reason::Overloaded, message).retry_after(RETRY_OVERLOADED)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.reason.name(), self.message)
    }
}

impl std::error::Error for Failure {}

impl From<&store::Error> for Failure {
    fn from(error: &store::Error) -> Self {
        let message = error.to_string();
        match error {
            store::Error::Overloaded { .. } => Failure::overloaded(message),
            store::Error::DiskFull { free, reserve } => Failure::new(Reason::DiskFull, message)
                .with("free_bytes", free)
                .with("reserve_bytes", reserve)
                .retry_after(RETRY_DISK_FULL),
            store::Error::Corrupt { what, .. } => {
                Failure::new(Reason::Corrupt, message).with(DAMAGED, what)
            }
            store::Error::Damaged { .. } => Failure::new(Reason::Corrupt, message),
            store::Error::DiskFailed { .. } => Failure::new(Reason::Unavailable, message),
            // It has gone elsewhere, or is going: whoever leads the shard serves the call.
            store::Error::Replica { .. } => {
                Failure::new(Reason::Unavailable, message).retry_after(RETRY_NOT_LEADER)
            }
            _ => Failure::new(Reason::Internal, message),
        }
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Failure::from(&error)
    }
}

impl From<cluster::Error> for Failure {
    fn from(error: cluster::Error) -> Self {
        let message = error.to_string();
        match error {
            cluster::Error::Overloaded { .. } => Failure::overloaded(message),
            cluster::Error::NotLeader { shard, leader } => {
                Failure::not_leader(shard, leader.map(|leader| leader.node))
            }
            cluster::Error::Members { .. } => {
                Failure::new(Reason::Unavailable, message).retry_after(RETRY_OVERLOADED)
            }
            cluster::Error::DisksFull { .. } => {
                Failure::new(Reason::DiskFull, message).retry_after(RETRY_DISK_FULL)
            }
            cluster::Error::Closed { .. } => Failure::new(Reason::Unavailable, message),
            cluster::Error::Unreachable { .. } | cluster::Error::Peer { passes: true, .. } => {
                Failure::new(Reason::Unavailable, message).retry_after(RETRY_OVERLOADED)
            }
            cluster::Error::Peer { passes: false, .. } => Failure::new(Reason::Internal, message),
            cluster::Error::Refused(refusal) => match refusal {
                Refusal::UnknownNode(_) => Failure::new(Reason::NodeNotFound, message),
                Refusal::UnknownShard(_) => Failure::new(Reason::ShardNotFound, message),
                _ => Failure::new(Reason::MoveRefused, message),
            },
            cluster::Error::OutcomeUnknown { .. } => Failure::new(Reason::OutcomeUnknown, message),
            cluster::Error::Store(error) => Failure::from(&*error),
            cluster::Error::Unknown { kind, name } => {
                let reason = match kind {
                    "collection" => Reason::CollectionNotFound,
                    "model" => Reason::ModelNotFound,
                    "node" => Reason::NodeNotFound,
                    "task" => Reason::TaskNotFound,
                    _ => Reason::ModelVersionNotFound,
                };
                Failure::new(reason, message).with("name", name)
            }
            cluster::Error::Exists { name, .. } => {
                Failure::new(Reason::CollectionExists, message).with("name", name)
            }
            cluster::Error::Active { name, version } => Failure::new(Reason::ModelActive, message)
                .with("name", name)
                .with("version", version),
            cluster::Error::Changed { .. } => {
                Failure::new(Reason::VersionConflict, message).retry_after(RETRY_OVERLOADED)
            }
            cluster::Error::Invalid(_) => Failure::new(Reason::Internal, message),
        }
    }
}

impl From<inference::Error> for Failure {
    fn from(error: inference::Error) -> Self {
        crate::models::failure_of(&error)
    }
}
