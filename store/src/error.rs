//! What can go wrong on a node's disk, one variant per thing a caller does differently.
//!
//! A refused command is no error: that is a [`crate::Reply`].

use std::path::PathBuf;
use std::sync::Arc;

use crate::codec::Malformed;
use crate::command::OutOfBounds;
use crate::damage::Damage;
use crate::ids::ReplicaId;

/// Why the store did not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Another process, or another store of this one, has the directory open.
    #[error("directory {} is in use by another store", dir.display())]
    InUse {
        /// Which.
        dir: PathBuf,
    },
    /// The directory holds files that are not a store's.
    #[error("directory {} is not empty and not a store: expected an empty one", dir.display())]
    NotOurs {
        /// Which.
        dir: PathBuf,
    },
    /// The store was written by a newer version of this software.
    #[error("store has format {found}, expected at most {supported}: use a newer version")]
    NewerFormat {
        /// What is on disk.
        found: u32,
        /// What this version reads.
        supported: u32,
    },
    /// What was read is not what was written.
    #[error("corrupt {what}: {detail}")]
    Corrupt {
        /// What was read.
        what: &'static str,
        /// What was wrong with it.
        detail: String,
    },
    /// The disk refused a read, or an operation outside the commit path.
    #[error("{what} failed: {detail}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        detail: String,
    },
    /// A named queue is full: retry later.
    #[error("{queue} is full: it holds its limit of {max}")]
    Overloaded {
        /// Which queue, with its unit.
        queue: &'static str,
        /// Its limit.
        max: usize,
    },
    /// Less space is free than is kept in reserve: writes are refused, reads go on.
    #[error("disk has {free} bytes free, fewer than the reserve of {reserve}")]
    DiskFull {
        /// Bytes free.
        free: u64,
        /// Bytes kept free.
        reserve: u64,
    },
    /// A write or sync failed earlier. What the disk holds is unknown: the store takes no more.
    #[error("store stopped after a disk failure: {reason}")]
    DiskFailed {
        /// The first failure.
        reason: Arc<str>,
    },
    /// The replica is not in the state that the call needs.
    #[error("replica {replica} {problem}")]
    Replica {
        /// Which.
        replica: ReplicaId,
        /// What is the matter.
        problem: ReplicaProblem,
    },
    /// What came in is not a view of a replica, or not all of it: nothing has changed here.
    #[error("received view is unusable: {problem}")]
    Transfer {
        /// What is the matter.
        problem: TransferProblem,
    },
    /// Acknowledged rows can't be read as they were written, and no other node is known to hold
    /// them: the store is not opened, and nothing in it has changed.
    #[error("{} of acknowledged data: {}", describe_count(damages), describe(damages))]
    Damaged {
        /// The damaged places, at least one.
        damages: Arc<[Damage]>,
    },
    /// The entry is out of the vocabulary's bounds.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
    /// The state has no field of that name.
    #[error("state has no field {name:?}")]
    UnknownField {
        /// The name asked for.
        name: String,
    },
    /// A range to read ends behind its field.
    #[error("range ends at byte {end}, expected at most {bytes}, the end of field {name:?}")]
    RangePastEnd {
        /// The field.
        name: String,
        /// Bytes that it has.
        bytes: u64,
        /// Where the range would end.
        end: u64,
    },
    /// Rows were asked for of a field that has none.
    #[error("field {name:?} has no rows: expected a tensor with at least one axis")]
    NoRows {
        /// The field.
        name: String,
    },
    /// The state was replaced while its bytes were read: read it again, or through a view.
    #[error("state was replaced while it was read")]
    Replaced,
}

/// What is the matter with a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaProblem {
    /// There is none.
    #[error("does not exist")]
    Missing,
    /// There is one already.
    #[error("exists already")]
    Exists,
    /// Somebody else holds its `Shard`.
    #[error("is applied by somebody else")]
    Taken,
    /// It has lost acknowledged rows: other replicas of its shard rebuild it under a new id.
    #[error("is quarantined: it has lost acknowledged rows")]
    Quarantined,
    /// It has applied more than the view that should take its place.
    #[error("is ahead of the view received for it")]
    Ahead,
}

/// What is the matter with a view that came in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferProblem {
    /// A newer version sent it.
    #[error("block has format {found}, expected at most {supported}")]
    Format {
        /// What came.
        found: u8,
        /// What this version reads.
        supported: u8,
    },
    /// A block is not what was sent.
    #[error("checksum of a block does not match")]
    Checksum,
    /// A block is what was sent, and makes no sense.
    #[error("block is malformed: {0}")]
    Malformed(#[from] Malformed),
    /// A block came twice, or before one that belongs in front of it.
    #[error("rows are out of order")]
    Disorder,
    /// Blocks are missing, the last one among them or not.
    #[error("blocks are missing: expected {expected:?} rows, found {found}")]
    Incomplete {
        /// Rows that were sent; `None` if the last block has not come.
        expected: Option<u64>,
        /// Rows that came.
        found: u64,
    },
    /// Something came behind the last block.
    #[error("a block came behind the last one")]
    AfterLast,
    /// The row that says what is applied is missing.
    #[error("applied row is missing")]
    NoApplied,
}

impl Error {
    pub(crate) fn io(what: &'static str, error: impl std::fmt::Display) -> Self {
        Error::Io { what, detail: error.to_string() }
    }

    pub(crate) fn corrupt(what: &'static str, detail: impl std::fmt::Display) -> Self {
        Error::Corrupt { what, detail: detail.to_string() }
    }

    pub(crate) fn transfer(problem: impl Into<TransferProblem>) -> Self {
        Error::Transfer { problem: problem.into() }
    }

    pub(crate) fn missing(replica: ReplicaId) -> Self {
        Error::Replica { replica, problem: ReplicaProblem::Missing }
    }

    pub(crate) fn quarantined(replica: ReplicaId) -> Self {
        Error::Replica { replica, problem: ReplicaProblem::Quarantined }
    }
}

/// Damages named in an error message; the log and `repair` have the others.
const DAMAGES_SHOWN_MAX: usize = 4;

fn describe_count(damages: &[Damage]) -> String {
    match damages.len() {
        1 => "damage at one place".to_owned(),
        count => format!("damage at {count} places"),
    }
}

fn describe(damages: &[Damage]) -> String {
    let shown: Vec<String> =
        damages.iter().take(DAMAGES_SHOWN_MAX).map(ToString::to_string).collect();
    shown.join("; ")
}

/// What can go wrong while a log row is read: its bytes, or its payloads.
impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Error::corrupt("row", malformed)
    }
}
