//! What can go wrong between a proposal and its reply, one variant per thing a caller does.

use statehouse_store as store;

/// Why a proposal has no reply, or the catalog no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Retry later: a named queue is full.
    #[error("shard {shard} has {waiting} proposals waiting, its limit")]
    Overloaded {
        /// The shard whose queue is full.
        shard: u32,
        /// How many wait.
        waiting: usize,
    },
    /// The node is stopping, or the disk under it failed: ask another one.
    #[error("replica is closed: {reason}")]
    Closed {
        /// What closed it.
        reason: String,
    },
    /// The write may or may not have happened: retry with the same request id.
    #[error("outcome unknown: {reason}")]
    OutcomeUnknown {
        /// What interrupted it.
        reason: String,
    },
    /// The disk under the replica refused or failed.
    #[error(transparent)]
    Store(#[from] std::sync::Arc<store::Error>),
    /// A catalog name that is not there.
    #[error("{kind} {name:?} does not exist")]
    Unknown {
        /// "collection", "model" or "model version".
        kind: &'static str,
        /// What was asked for.
        name: String,
    },
    /// A catalog name that is there already.
    #[error("{kind} {name:?} exists already{difference}")]
    Exists {
        /// "collection" or "model".
        kind: &'static str,
        /// The name.
        name: String,
        /// How it differs from what was asked for; empty, or starts with a space.
        difference: String,
    },
    /// The active version of a model can't be deleted.
    #[error("version {version} of model {name:?} is active: activate another one first")]
    Active {
        /// The model.
        name: String,
        /// The version asked for.
        version: u64,
    },
    /// Somebody else changed the same catalog row at the same time.
    #[error("{name:?} was changed meanwhile: try again")]
    Changed {
        /// The row.
        name: String,
    },
    /// The catalog or the shard descriptor is not what this version writes.
    #[error("{0}")]
    Invalid(String),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Error::Store(std::sync::Arc::new(error))
    }
}
