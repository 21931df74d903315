//! Changes of a collection's settings.

use std::sync::Arc;

use statehouse_store::Condition;

use super::collections::CollectionRow;
use super::{COLLECTIONS, Catalog, Collection, Settings};
use crate::Error;
use crate::rows::{self, Row};

/// Tries of a change that others keep being quicker with.
const TRIES_MAX: usize = 16;

impl Catalog {
    /// Changes a collection's settings. What its states are does not change with them: they are
    /// as they were until they are written again.
    pub async fn update_collection(
        &self,
        name: &str,
        change: impl Fn(&mut Settings),
    ) -> Result<Arc<Collection>, Error> {
        let _change = self.change.lock().await;
        let unknown = || Error::Unknown { kind: "collection", name: name.to_owned() };
        for _ in 0..TRIES_MAX {
            self.shards.catch_up().await?;
            let row: Option<Row<CollectionRow>> =
                rows::get(&self.shards, COLLECTIONS, name.as_bytes())?;
            let row = row.filter(|row| !row.value.dropping).ok_or_else(unknown)?;
            let mut settings = row.value.settings.clone();
            change(&mut settings);
            let written = match settings == row.value.settings {
                true => Some(row.version),
                false => {
                    let changed = row.value.with(settings, row.version);
                    let condition = Condition::Version(row.version);
                    rows::put(&self.shards, COLLECTIONS, name, &changed, condition).await?
                }
            };
            if written.is_some() {
                self.reload_collections()?;
                return self.collection(name);
            }
        }
        Err(Error::Changed { name: name.to_owned() })
    }
}
