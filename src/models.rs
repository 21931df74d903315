//! The models of a node: pushed, checked, loaded on the device, found by name.
//!
//! A version is loaded when it is pushed, when the node starts (the active ones) or when a score
//! first names it; loading is single-flight (`models/slots.rs`) and never on an async thread.

mod slots;

use std::sync::Arc;

use statehouse_cluster::catalog::{Catalog, ModelEntry, ModelFiles};
use statehouse_inference as inference;
use statehouse_inference::{Handle, LoadedModel, Model};
use statehouse_store::Store;

use self::slots::Slots;
use crate::failure::{Failure, Reason};
use crate::score::STATE_COPIES;
use crate::size::ByteSize;

/// The largest model: all files together, in bytes.
pub const MODEL_BYTES_MAX: usize = 256 << 20;

/// Files in a model.
pub const MODEL_FILES_MAX: usize = 16;

/// A loaded version.
#[derive(Clone)]
pub struct Version {
    /// Which version of the model.
    pub version: u64,
    /// Ready to score.
    pub loaded: LoadedModel,
}

/// The models that this node can score with.
pub struct Models {
    catalog: Arc<Catalog>,
    worker: Handle,
    store: Store,
    room: Room,
    slots: Arc<Slots<LoadedModel>>,
}

impl Models {
    /// Over the node's catalog, its device's worker, the store whose space a push takes, and what
    /// rows may have.
    pub fn new(catalog: Arc<Catalog>, worker: Handle, store: Store, room: Room) -> Arc<Self> {
        let unloading = worker.clone();
        let slots = Slots::new(Box::new(move |loaded| unloading.unload(loaded)));
        Arc::new(Models { catalog, worker, store, room, slots })
    }

    /// The worker that drives the device.
    pub fn worker(&self) -> &Handle {
        &self.worker
    }

    /// The catalog.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Loads every active version; one that fails is logged, and answers its failure when used.
    pub async fn load_active(&self) {
        for entry in self.catalog.models().values() {
            let Some(version) = entry.active else { continue };
            if let Err(failure) = self.load(&entry.name, version).await {
                tracing::error!(model = entry.name, version, %failure, "model not loaded");
            }
        }
    }

    /// A version of a model, loaded; version 0 is the active one.
    pub async fn find(&self, name: &str, version: u64) -> Result<Version, Failure> {
        let mut entry = self.catalog.find_model(name).await?;
        if version != 0 && known(&entry, version).is_err() {
            // Pushed a moment ago by way of another node, perhaps.
            self.catalog.catch_up().await?;
            entry = self.catalog.model(name)?;
        }
        let version = match (version, entry.active) {
            (0, Some(active)) => active,
            (0, None) => {
                let message = format!("model {name:?} has no active version");
                return Err(Failure::new(Reason::ModelVersionNotFound, message).with("name", name));
            }
            (version, _) => known(&entry, version)?,
        };
        let loaded = self.load(name, version).await?;
        Ok(Version { version, loaded })
    }

    /// Checks and loads the files, stores them as a new version, and activates it if asked for. To
    /// be awaited to its end: what is loaded meanwhile belongs to nobody else.
    pub async fn push(
        &self,
        files: ModelFiles,
        activate: bool,
    ) -> Result<(Arc<ModelEntry>, u64), Failure> {
        let (worker, room) = (self.worker.clone(), self.room);
        let checked = files.clone();
        let (name, loaded) = blocking(move || {
            let model = Model::from_files(&checked)?;
            Ok((model.name().to_owned(), load(model, &worker, room)?))
        })
        .await?;
        let pushed = match self.store.check_space() {
            Ok(()) => self.catalog.push_model(&name, &files, activate).await.map_err(Failure::from),
            Err(full) => Err(full.into()),
        };
        match pushed {
            Ok(pushed) => {
                self.slots.keep((name.clone(), pushed.version), loaded);
                Ok((self.catalog.model(&name)?, pushed.version))
            }
            Err(failure) => {
                self.worker.unload(&loaded);
                Err(failure)
            }
        }
    }

    /// Makes a version the active one, once it is loaded.
    pub async fn activate(&self, name: &str, version: u64) -> Result<Arc<ModelEntry>, Failure> {
        known(&*self.catalog.model(name)?, version)?;
        self.load(name, version).await?;
        self.catalog.activate_model(name, version).await?;
        Ok(self.catalog.model(name)?)
    }

    /// Deletes a version, or all with version 0, and frees what was loaded.
    pub async fn delete(&self, name: &str, version: u64) -> Result<(), Failure> {
        let only = (version != 0).then_some(version);
        self.catalog.delete_model(name, only).await?;
        self.slots.clear(name, only);
        Ok(())
    }

    /// What loading a version came to, if it was tried.
    pub fn loaded(&self, name: &str, version: u64) -> Option<Result<LoadedModel, Failure>> {
        self.slots.peek(&(name.to_owned(), version))
    }

    async fn load(&self, name: &str, version: u64) -> Result<LoadedModel, Failure> {
        if let Some(Ok(loaded)) = self.loaded(name, version) {
            return Ok(loaded);
        }
        let (catalog, worker, room) = (self.catalog.clone(), self.worker.clone(), self.room);
        let model_name = name.to_owned();
        let load = blocking(move || {
            let model = Model::from_files(&catalog.model_files(&model_name, version)?)?;
            load(model, &worker, room)
        });
        self.slots.load((name.to_owned(), version), load).await
    }
}

/// What the rows of a model may have of a node's memory.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// All calls.
    pub request_bytes_max: u64,
    /// A batch on the device.
    pub batch_bytes_max: u64,
}

/// Loads a model of which one row can be scored, whatever else the node does.
fn load(model: Model, worker: &Handle, room: Room) -> Result<LoadedModel, Failure> {
    check_states(&model, room.request_bytes_max)?;
    let loaded = worker.load(model)?;
    let checked = check_row(&loaded, room.batch_bytes_max.max(room.request_bytes_max));
    if checked.is_err() {
        worker.unload(&loaded);
    }
    checked.map(|()| loaded)
}

/// Refuses a model whose trial's row needs more on the device than a batch, or all calls, may have.
fn check_row(model: &Model, bytes_max: u64) -> Result<(), Failure> {
    let needed = model.trial_row_needs() as u64;
    if needed <= bytes_max {
        return Ok(());
    }
    let message = format!(
        "a row needs {} while it is scored, with what lies between inputs and results, and may \
         have {}: batch_bytes_max, or request_bytes_max",
        ByteSize(needed),
        ByteSize(bytes_max)
    );
    Err(Failure::too_large_for_memory(message, needed, bytes_max))
}

/// Refuses a model whose states are more than calls may have.
fn check_states(model: &Model, request_bytes_max: u64) -> Result<(), Failure> {
    let state_bytes = model.state_bytes() as u64;
    let needed = STATE_COPIES * state_bytes;
    if needed <= request_bytes_max {
        return Ok(());
    }
    let message = format!(
        "states of {} need {} while a row is scored, {STATE_COPIES} copies, and calls have {}",
        ByteSize(state_bytes),
        ByteSize(needed),
        ByteSize(request_bytes_max)
    );
    Err(Failure::too_large_for_memory(message, needed, request_bytes_max))
}

fn known(entry: &ModelEntry, version: u64) -> Result<u64, Failure> {
    if entry.versions.iter().any(|found| found.version == version) {
        return Ok(version);
    }
    let message = format!("model {:?} has no version {version}", entry.name);
    Err(Failure::new(Reason::ModelVersionNotFound, message)
        .with("name", &entry.name)
        .with("version", version))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Failure::new(Reason::Internal, "loading a model panicked")))
}

/// The reason under which a caller learns of an inference error.
pub fn failure_of(error: &inference::Error) -> Failure {
    use inference::{Error, InputError};
    let message = error.to_string();
    match error {
        Error::Manifest { .. }
        | Error::Weights { .. }
        | Error::UnsupportedOperators { .. }
        | Error::SelfTest { .. } => Failure::new(Reason::InvalidModel, message),
        // The worker names the input.
        Error::Run { .. } => Failure::new(Reason::InvalidInput, message),
        Error::Input(InputError::NotFinite { name, .. }) => {
            Failure::new(Reason::NotFinite, message).with("input", name)
        }
        Error::Input(input) => {
            let failure = Failure::new(Reason::InvalidInput, message);
            match input.name() {
                Some(name) => failure.with("input", name),
                None => failure,
            }
        }
        Error::NotFinite { output } => {
            Failure::new(Reason::NotFinite, message).with("output", output)
        }
        Error::Overloaded { .. } => Failure::overloaded(message),
        Error::DeadlineUnmeetable { .. } => Failure::new(Reason::DeadlineExceeded, message),
        Error::Gone { .. } => Failure::new(Reason::Unavailable, message),
        Error::Internal { .. } => Failure::new(Reason::Internal, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use statehouse_inference::onnx::fault::Fault;
    use statehouse_inference::{Error, InputError};

    #[test]
    fn a_row_that_does_not_fit_is_the_callers_fault_and_a_failed_device_is_not() {
        let (name, shape) = ("x".to_owned(), vec![3]);
        let unfit = InputError::Unfit { name, shape, reason: "too long".to_owned() };
        let told = failure_of(&Error::Input(unfit));
        assert_eq!((told.reason, told.value("input")), (Reason::InvalidInput, Some("x")));
        let fault = Fault::Shape("too long".to_owned());
        let run = Error::Run { step: "node 'n'".to_owned(), fault, inputs: Vec::new() };
        assert_eq!(failure_of(&run).reason, Reason::InvalidInput);
        let lost = Error::Internal { reason: "the device is lost".to_owned() };
        assert_eq!(failure_of(&lost).reason, Reason::Internal);
    }
}
