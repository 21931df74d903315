//! The State use case: read and write states, check requests, turn replies into answers.
//!
//! Knows no gRPC. Everything a client may get wrong about a state is refused here, by name,
//! before a command is proposed. Whose replica it is that reads or proposes, the caller has found
//! (`router.rs`): it comes in as a group.

mod freshness;
mod limits;
mod prefetch;
mod read;
mod stream;
mod upload;
mod warning;
mod write;

use std::sync::Arc;
use std::time::Duration;

use statehouse_cluster::Shards;
use statehouse_cluster::catalog::{Catalog, Collection};

pub use freshness::Freshness;
pub use limits::{
    EDITS_MAX, FIELD_NAME_BYTES_MAX, FIELDS_MAX, KEY_BYTES_MAX, REQUEST_ID_BYTES_MAX,
    check_collection_name, check_key,
};
pub use prefetch::{Prefetched, Prefetches};
pub use read::{GetQuery, KeyHere, StateKey};
pub use stream::{Opened, Slice};
pub use upload::{UploadAction, UploadCommand, Uploaded};
pub use warning::{Attempt, SizeWarning};
pub use write::{
    Answer, DeleteCommand, PatchCommand, PutCommand, RequestId, WriteOptions, Written, fingerprint,
    propose, reply_failure, request_tag, written,
};

use crate::chain::Chains;
use crate::failure::Failure;
use crate::large::LargeRequests;

/// Reads and writes the states of one node.
#[derive(Clone)]
pub struct States {
    shards: Arc<Shards>,
    catalog: Arc<Catalog>,
    chains: Chains,
    prefetches: Prefetches,
    /// How long an upload is kept that nobody continues.
    upload_idle: Duration,
    large: LargeRequests,
}

impl States {
    /// Over the shards and catalog of a node.
    pub fn new(
        shards: Arc<Shards>,
        catalog: Arc<Catalog>,
        upload_idle: Duration,
        large: LargeRequests,
    ) -> Self {
        let prefetches = Prefetches::new(shards.store());
        States { shards, catalog, chains: Chains::default(), prefetches, upload_idle, large }
    }

    /// The collections and models.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// What keeps the writes of a key in order.
    pub fn chains(&self) -> &Chains {
        &self.chains
    }

    /// The shards beneath.
    pub fn shards(&self) -> &Arc<Shards> {
        &self.shards
    }

    /// The collection of that name. One that is known is there at once: nothing is waited for.
    pub async fn collection(&self, name: &str) -> Result<Arc<Collection>, Failure> {
        Ok(self.catalog.find_collection(name).await?)
    }
}
