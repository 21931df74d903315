//! Collections: create, list, drop.
//!
//! A collection's id is the version of the write that created its row: unique, never used again.
//! A drop first marks the row, then deletes the states in every shard, then the row, so that a
//! crash in between is finished at the next start.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use statehouse_store::{CollectionId, Command, Condition};

use super::{COLLECTIONS, Catalog};
use crate::clock::unix_now_ms;
use crate::format::UpTo;
use crate::rows::{self, Row};
use crate::{Error, META_SHARD};

/// What a read of a missing state answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// An error.
    Error,
    /// A state of version 0 without fields.
    Empty,
}

/// How a collection keeps its states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The largest state, in bytes of its fields.
    pub state_bytes_max: u64,
    /// States up to this many bytes lie in one row.
    pub inline_bytes_max: u32,
    /// Milliseconds until a write that names no expiry expires; `None`: never.
    pub default_ttl_ms: Option<u64>,
    /// What a read of a missing state answers.
    pub missing: Missing,
    /// Other collections never evict its states from memory. Of format 2.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// A write that leaves a state of more bytes is warned of; 0: none is. Of format 2.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub state_bytes_warn: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Settings {
    /// The oldest format of a row that says all of it.
    fn format(&self) -> UpTo<FORMAT> {
        UpTo::of(if self.pinned || self.state_bytes_warn > 0 { 2 } else { 1 })
    }
}

/// The newest format of a collection's row.
const FORMAT: u32 = 2;

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { state_bytes_max, inline_bytes_max, default_ttl_ms, missing, .. } = self;
        write!(f, "state_bytes_max {state_bytes_max}, inline_bytes_max {inline_bytes_max}, ")?;
        match default_ttl_ms {
            Some(ttl_ms) => write!(f, "default_ttl_ms {ttl_ms}, ")?,
            None => f.write_str("no default expiry, ")?,
        }
        let missing = match missing {
            Missing::Error => "an error",
            Missing::Empty => "empty",
        };
        write!(f, "a missing state is {missing}")?;
        if self.state_bytes_warn > 0 {
            write!(f, ", state_bytes_warn {}", self.state_bytes_warn)?;
        }
        f.write_str(if self.pinned { ", pinned" } else { "" })
    }
}

/// A collection that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// Never used again, not even after a drop.
    pub id: CollectionId,
    /// Its name.
    pub name: String,
    /// How it keeps its states.
    pub settings: Settings,
    /// Unix milliseconds.
    pub created_at_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CollectionRow {
    format: UpTo<FORMAT>,
    /// Absent in the row as created: its version is the id.
    id: Option<u64>,
    pub settings: Settings,
    created_at_ms: u64,
    pub dropping: bool,
}

impl CollectionRow {
    /// The collection's id, of the row as read at a version.
    pub fn id(&self, version: u64) -> CollectionId {
        CollectionId(self.id.unwrap_or(version))
    }

    /// The row, read at a version, with other settings.
    pub fn with(self, settings: Settings, version: u64) -> Self {
        let id = Some(self.id.unwrap_or(version));
        CollectionRow { format: settings.format(), id, settings, ..self }
    }
}

impl Catalog {
    /// The collection of that name.
    pub fn collection(&self, name: &str) -> Result<Arc<Collection>, Error> {
        self.collections
            .load()
            .get(name)
            .cloned()
            .ok_or_else(|| Error::Unknown { kind: "collection", name: name.to_owned() })
    }

    /// The collection of that name, were it created a moment ago by way of another node.
    pub async fn find_collection(&self, name: &str) -> Result<Arc<Collection>, Error> {
        match self.collection(name) {
            Err(Error::Unknown { .. }) => {
                self.catch_up().await?;
                self.collection(name)
            }
            found => found,
        }
    }

    /// All collections, by name.
    pub fn collections(&self) -> Arc<BTreeMap<String, Arc<Collection>>> {
        self.collections.load_full()
    }

    /// Creates a collection. With `if_not_exists`, one with the same settings is as good.
    pub async fn create_collection(
        &self,
        name: &str,
        settings: Settings,
        if_not_exists: bool,
    ) -> Result<Arc<Collection>, Error> {
        let _change = self.change.lock().await;
        let row = CollectionRow {
            format: settings.format(),
            id: None,
            settings: settings.clone(),
            created_at_ms: unix_now_ms(),
            dropping: false,
        };
        let written = rows::put(&self.shards, COLLECTIONS, name, &row, Condition::Absent).await?;
        self.reload_collections()?;
        match (written, self.collection(name)) {
            (Some(_), found) => found,
            (None, Ok(found)) if if_not_exists && found.settings == settings => Ok(found),
            (None, found) => {
                let difference = match found {
                    Ok(found) if if_not_exists => {
                        format!(" with other settings: {}", found.settings)
                    }
                    _ => String::new(),
                };
                Err(Error::Exists { kind: "collection", name: name.to_owned(), difference })
            }
        }
    }

    /// Drops a collection and every state in it.
    pub async fn drop_collection(&self, name: &str) -> Result<(), Error> {
        let _change = self.change.lock().await;
        self.shards.catch_up().await?;
        let unknown = || Error::Unknown { kind: "collection", name: name.to_owned() };
        let row: Row<CollectionRow> =
            rows::get(&self.shards, COLLECTIONS, name.as_bytes())?.ok_or_else(unknown)?;
        let id = row.value.id(row.version);
        let marked = CollectionRow { id: Some(id.0), dropping: true, ..row.value };
        let condition = Condition::Version(row.version);
        let version = rows::put(&self.shards, COLLECTIONS, name, &marked, condition)
            .await?
            .ok_or_else(unknown)?;
        // From here on nobody finds it: a repeat, or the next leader of shard 0, goes on.
        let finished = async {
            self.reload_collections()?;
            self.finish_drop(name, id, version).await
        };
        finished.await.map_err(Error::after_effect)
    }

    pub(super) async fn finish_drops(&self) -> Result<(), Error> {
        for row in rows::scan::<CollectionRow>(&self.shards, COLLECTIONS)? {
            if row.value.dropping {
                let id = row.value.id(row.version);
                tracing::info!(collection = row.key, "finishing an interrupted drop");
                self.finish_drop(&row.key, id, row.version).await?;
            }
        }
        Ok(())
    }

    /// Deletes the states, then the row at the version at which it was marked: a collection that
    /// was made under the same name since then is another one.
    async fn finish_drop(
        &self,
        name: &str,
        collection: CollectionId,
        marked: u64,
    ) -> Result<(), Error> {
        for shard in self.shards.map().all().filter(|shard| *shard != META_SHARD) {
            self.shards.propose(shard, Command::DropCollection { collection }).await?;
        }
        rows::delete(&self.shards, COLLECTIONS, name, Condition::Version(marked)).await
    }

    /// What is served from now on; the store is told which states to hold on to.
    fn put_in_place(&self, found: BTreeMap<String, Arc<Collection>>) {
        let pinned = found.values().filter(|collection| collection.settings.pinned);
        self.shards.store().pin(&pinned.map(|collection| collection.id).collect());
        self.collections.store(Arc::new(found));
    }

    pub(super) fn reload_collections(&self) -> Result<(), Error> {
        let _reloading = self.reloading.lock();
        let found = rows::scan::<CollectionRow>(&self.shards, COLLECTIONS)?
            .into_iter()
            .filter(|row| !row.value.dropping)
            .map(|row| {
                let collection = Collection {
                    id: row.value.id(row.version),
                    name: row.key.clone(),
                    settings: row.value.settings,
                    created_at_ms: row.value.created_at_ms,
                };
                (row.key, Arc::new(collection))
            })
            .collect();
        self.put_in_place(found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_both_formats_are_read_and_the_older_is_written_where_it_says_everything() {
        let old = r#"{"format":1,"id":null,"settings":{"state_bytes_max":9,"inline_bytes_max":8,
            "default_ttl_ms":null,"missing":"error"},"created_at_ms":7,"dropping":false}"#;
        let row: CollectionRow = serde_json::from_str(old).unwrap();
        assert!(!row.settings.pinned);
        let plain = |json: &str| json.split_whitespace().collect::<String>();
        assert_eq!(serde_json::to_string(&row).unwrap(), plain(old));

        let settings = Settings { pinned: true, ..row.settings.clone() };
        let row = CollectionRow { format: settings.format(), settings, ..row };
        let new = serde_json::to_string(&row).unwrap();
        assert!(new.contains(r#""format":2"#) && new.contains(r#""pinned":true"#), "{new}");
        assert!(serde_json::from_str::<CollectionRow>(&new).unwrap().settings.pinned);

        let settings = Settings { pinned: false, state_bytes_warn: 3, ..row.settings };
        assert_eq!(settings.format(), UpTo::of(2));
    }
}
