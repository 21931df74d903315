//! Collections and models, kept as ordinary states of shard 0.
//!
//! A row is a state of a system collection, changed by compare-and-swap on its version, so that
//! the catalog needs no state machine, log or snapshot of its own. What is served comes from a
//! copy in memory that is replaced as a whole after each change.
//!
//! Does not load models (the node does) and knows nothing of their contents.

mod collections;
mod models;
mod names;
mod update;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use statehouse_store::CollectionId;
use tokio::sync::watch;

pub use collections::{Collection, Missing, Settings};
pub use models::{ModelEntry, ModelFiles, ModelVersion};
pub use names::{Names, names_on_disk};

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
    /// One reload at a time: what was read first must not be put in place last.
    reloading: parking_lot::Mutex<()>,
}

impl Catalog {
    /// Reads the catalog, and follows it from then on.
    pub async fn open(shards: Arc<Shards>) -> Result<Arc<Self>, Error> {
        let catalog = Arc::new(Catalog {
            shards,
            collections: ArcSwap::default(),
            models: ArcSwap::default(),
            change: tokio::sync::Mutex::new(()),
            reloading: parking_lot::Mutex::new(()),
        });
        catalog.reload()?;
        tokio::spawn(follow(Arc::downgrade(&catalog), catalog.shards.changes()));
        Ok(catalog)
    }

    /// Takes up what other nodes were told is done before this call.
    pub async fn catch_up(&self) -> Result<(), Error> {
        self.shards.catch_up().await?;
        self.reload()
    }

    fn reload(&self) -> Result<(), Error> {
        self.reload_collections()?;
        self.reload_models()
    }
}

/// Takes up each change, and finishes drops that were left half done, until the catalog is gone.
async fn follow(catalog: Weak<Catalog>, mut changes: watch::Receiver<u64>) {
    while changes.changed().await.is_ok() {
        let Some(catalog) = catalog.upgrade() else { return };
        if let Err(error) = catalog.reload() {
            tracing::error!(%error, "the catalog can't be read");
        }
        // One node does it: the one that leads shard 0.
        if catalog.shards.meta().is_ok_and(|meta| meta.leads())
            && let Ok(_change) = catalog.change.try_lock()
            && let Err(error) = catalog.finish_drops().await
        {
            tracing::warn!(%error, "a drop is not finished yet");
        }
    }
}
