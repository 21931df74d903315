//! Collections and models, kept as ordinary states of shard 0.
//!
//! A row is a state of a system collection, changed by compare-and-swap on its version, so that
//! the catalog needs no state machine, log or snapshot of its own. What is served comes from a
//! copy in memory that is replaced as a whole after each change.
//!
//! Does not load models (the node does) and knows nothing of their contents.

mod collections;
mod models;
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use statehouse_store::CollectionId;

pub use collections::{Collection, Missing, Settings};
pub use models::{ModelEntry, ModelFiles, ModelVersion};

use crate::{Error, Shards};

/// System collections have fixed ids below every id that a version can be.
const COLLECTIONS: CollectionId = CollectionId(1);
const MODELS: CollectionId = CollectionId(2);
const MODEL_FILES: CollectionId = CollectionId(3);

/// The collections and models that exist.
pub struct Catalog {
    shards: Arc<Shards>,
    collections: ArcSwap<BTreeMap<String, Arc<Collection>>>,
    models: ArcSwap<BTreeMap<String, Arc<ModelEntry>>>,
    /// One change at a time on this node; other nodes are held off by compare-and-swap.
    change: tokio::sync::Mutex<()>,
}

impl Catalog {
    /// Reads the catalog and finishes drops that a crash interrupted.
    pub async fn open(shards: Arc<Shards>) -> Result<Arc<Self>, Error> {
        let catalog = Arc::new(Catalog {
            shards,
            collections: ArcSwap::default(),
            models: ArcSwap::default(),
            change: tokio::sync::Mutex::new(()),
        });
        catalog.reload_collections()?;
        catalog.reload_models()?;
        catalog.finish_drops().await?;
        Ok(catalog)
    }
}
