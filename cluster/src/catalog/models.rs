//! Models: versions side by side, one of them active.
//!
//! A model's row lists its versions; each version's files are one state beside it. Version
//! numbers count up and are never used again, since the row outlives its versions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use statehouse_store as store;
use statehouse_store::{Condition, Field, Selection, Value};
use xxhash_rust::xxh3::Xxh3;

use super::{Catalog, MODEL_FILES, MODELS};
use crate::Error;
use crate::clock::unix_now_ms;
use crate::format::Format;
use crate::rows::{self, Row};

/// A model directory's files by name.
pub type ModelFiles = BTreeMap<String, Bytes>;

/// One version of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelVersion {
    /// Counts from 1; never used again.
    pub version: u64,
    /// Unix milliseconds.
    pub pushed_at_ms: u64,
    /// Of all files together.
    pub bytes: u64,
    /// xxh3-128 of the files and their names, in hex.
    pub digest: String,
}

/// A model that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// Its name.
    pub name: String,
    /// The version that scores use which name none.
    pub active: Option<u64>,
    /// In the order pushed.
    pub versions: Vec<ModelVersion>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ModelRow {
    format: Format<1>,
    active: Option<u64>,
    next_version: u64,
    versions: Vec<ModelVersion>,
}

impl Catalog {
    /// All models, by name. One with no version left is not listed.
    pub fn models(&self) -> Arc<BTreeMap<String, Arc<ModelEntry>>> {
        self.models.load_full()
    }

    /// The model of that name.
    pub fn model(&self, name: &str) -> Result<Arc<ModelEntry>, Error> {
        self.models.load().get(name).cloned().ok_or_else(|| unknown(name))
    }

    /// The model of that name, were it pushed a moment ago by way of another node.
    pub async fn find_model(&self, name: &str) -> Result<Arc<ModelEntry>, Error> {
        match self.model(name) {
            Err(Error::Unknown { .. }) => {
                self.catch_up().await?;
                self.model(name)
            }
            found => found,
        }
    }

    /// Stores a new version's files and lists it, active if asked for. The files of a version that
    /// is listed make no new one.
    pub async fn push_model(
        &self,
        name: &str,
        files: &ModelFiles,
        activate: bool,
    ) -> Result<ModelVersion, Error> {
        let _change = self.change.lock().await;
        self.shards.catch_up().await?;
        let current = self.model_row(name)?;
        let condition =
            current.as_ref().map_or(Condition::Absent, |r| Condition::Version(r.version));
        let mut row = current.map_or(
            ModelRow { format: Format, active: None, next_version: 1, versions: Vec::new() },
            |row| row.value,
        );
        let digest = digest(files);
        if let Some(same) = row.versions.iter().find(|found| found.digest == digest).cloned() {
            // Perhaps a repeat: the answer may have got lost. Or the files have, with a disk.
            if !self.has_files(name, same.version).await? {
                self.put_files(name, same.version, files).await?;
            }
            if activate && row.active != Some(same.version) {
                row.active = Some(same.version);
                self.write_model(name, &row, condition).await?;
            }
            return Ok(same);
        }
        let pushed = ModelVersion {
            version: row.next_version,
            pushed_at_ms: unix_now_ms(),
            bytes: files.values().map(|file| file.len() as u64).sum(),
            digest,
        };
        // The files first: a version that is listed can be loaded.
        self.put_files(name, pushed.version, files).await?;
        row.next_version += 1;
        row.versions.push(pushed.clone());
        if activate {
            row.active = Some(pushed.version);
        }
        self.write_model(name, &row, condition).await?;
        Ok(pushed)
    }

    async fn put_files(&self, name: &str, version: u64, files: &ModelFiles) -> Result<(), Error> {
        let fields = files
            .iter()
            .map(|(file, data)| Field::new(file.clone(), Value::Bytes(data.clone())))
            .collect();
        let key = files_key(name, version);
        rows::put_fields(&self.shards, MODEL_FILES, &key, fields, Condition::Any).await?;
        Ok(())
    }

    /// Whether a version's files are whole here: not damaged on disk, nor given up for that.
    async fn has_files(&self, name: &str, version: u64) -> Result<bool, Error> {
        let (reader, key) = (self.shards.meta()?.reader().clone(), files_key(name, version));
        let (all, now_ms) = (Selection::all(), unix_now_ms());
        let read = tokio::task::spawn_blocking(move || {
            reader.get_whole(MODEL_FILES, key.as_bytes(), &all, now_ms)
        });
        match read.await.map_err(|error| Error::Closed { reason: error.to_string() })? {
            Ok(state) => Ok(state.is_some()),
            Err(store::Error::Corrupt { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a version the active one.
    pub async fn activate_model(&self, name: &str, version: u64) -> Result<(), Error> {
        let _change = self.change.lock().await;
        self.shards.catch_up().await?;
        let mut row = self.model_row(name)?.ok_or_else(|| unknown(name))?;
        if !row.value.versions.iter().any(|found| found.version == version) {
            return Err(unknown_version(name, version));
        }
        row.value.active = Some(version);
        self.write_model(name, &row.value, Condition::Version(row.version)).await
    }

    /// Deletes one version, which must not be the active one, or with `None` all of them.
    pub async fn delete_model(&self, name: &str, version: Option<u64>) -> Result<(), Error> {
        let _change = self.change.lock().await;
        self.shards.catch_up().await?;
        let mut row = self.model_row(name)?.ok_or_else(|| unknown(name))?;
        let doomed: Vec<u64> = row
            .value
            .versions
            .iter()
            .map(|found| found.version)
            .filter(|found| version.is_none_or(|wanted| wanted == *found))
            .collect();
        if let Some(version) = version {
            if doomed.is_empty() {
                return Err(unknown_version(name, version));
            }
            if row.value.active == Some(version) {
                return Err(Error::Active { name: name.to_owned(), version });
            }
        } else {
            row.value.active = None;
        }
        row.value.versions.retain(|found| !doomed.contains(&found.version));
        self.write_model(name, &row.value, Condition::Version(row.version)).await?;
        // Nobody finds them any more.
        for version in doomed {
            let key = files_key(name, version);
            let deleted = rows::delete(&self.shards, MODEL_FILES, &key, Condition::Any).await;
            deleted.map_err(Error::after_effect)?;
        }
        Ok(())
    }

    /// A version's files. Blocks on the disk.
    pub fn model_files(&self, name: &str, version: u64) -> Result<ModelFiles, Error> {
        let key = files_key(name, version);
        let meta = self.shards.meta()?;
        let reader = meta.reader();
        let state = reader
            .get_whole(MODEL_FILES, key.as_bytes(), &Selection::all(), unix_now_ms())?
            .ok_or_else(|| unknown_version(name, version))?;
        Ok(state
            .fields
            .into_iter()
            .map(|field| (field.name, field.value.bytes().clone()))
            .collect())
    }

    fn model_row(&self, name: &str) -> Result<Option<Row<ModelRow>>, Error> {
        rows::get(&self.shards, MODELS, name.as_bytes())
    }

    async fn write_model(
        &self,
        name: &str,
        row: &ModelRow,
        condition: Condition,
    ) -> Result<(), Error> {
        let written = rows::put(&self.shards, MODELS, name, row, condition).await?;
        self.reload_models().map_err(Error::after_effect)?;
        match written {
            Some(_) => Ok(()),
            None => Err(Error::Changed { name: name.to_owned() }),
        }
    }

    pub(super) fn reload_models(&self) -> Result<(), Error> {
        let _reloading = self.reloading.lock();
        let found = rows::scan::<ModelRow>(&self.shards, MODELS)?
            .into_iter()
            .filter(|row| !row.value.versions.is_empty())
            .map(|row| {
                let (active, versions) = (row.value.active, row.value.versions);
                (row.key.clone(), Arc::new(ModelEntry { name: row.key, active, versions }))
            })
            .collect();
        self.models.store(Arc::new(found));
        Ok(())
    }
}

fn files_key(name: &str, version: u64) -> String {
    format!("{name}/{version}")
}

fn unknown(name: &str) -> Error {
    Error::Unknown { kind: "model", name: name.to_owned() }
}

fn unknown_version(name: &str, version: u64) -> Error {
    Error::Unknown { kind: "model version", name: format!("{name}:{version}") }
}

fn digest(files: &ModelFiles) -> String {
    let mut hash = Xxh3::new();
    for (name, data) in files {
        hash.update(&(name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(&(data.len() as u64).to_le_bytes());
        hash.update(data);
    }
    format!("{:032x}", hash.digest128())
}
