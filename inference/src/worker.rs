//! The one thread that drives a device, and the handle that others hold.
//!
//! A submitted row goes straight into the queue, under one short lock; the thread takes batches out
//! of it. Callbacks run on the thread, so they must be cheap and must not block. The thread ends by
//! [`Handle::shutdown`] only.

mod batching;
mod loading;
mod self_test;
mod thread;

use crate::cost::Cost;
use crate::device::Device;
use crate::error::{Error, InputError};
use crate::model::{Model, shape_fits, shape_text};
use crate::queue::{LaneKey, ModelId, Queue, Row};
use crate::stats::Stats;
use crate::tensor::Tensor;
use crossbeam_channel::bounded;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The worker's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Rows that may wait, over all models.
    pub queue_rows_max: usize,
    /// Bytes of one batch: its rows' inputs and states, results, and what lies between, as the
    /// trial of the model showed. One row may have more.
    pub batch_bytes_max: usize,
    /// Models that may be loaded at a time.
    pub models_max: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config { queue_rows_max: 4096, batch_bytes_max: 256 << 20, models_max: 256 }
    }
}

/// Called once with the result, on the worker's thread.
pub type Done = Box<dyn FnOnce(Result<Answer, Error>) + Send>;

/// One row to score.
pub struct Request {
    /// Which model.
    pub model: LoadedModel,
    /// As [`Model::check_inputs`] gives them: declared order, one row each, no batch axis.
    pub inputs: Vec<Tensor>,
    /// In the order of [`Model::states`], one row each.
    pub states: Vec<Tensor>,
    /// When the answer is worthless.
    pub deadline: Option<Instant>,
    /// Who waits for it.
    pub done: Done,
}

/// One row's result. Its tensors may share the memory of the whole batch.
#[derive(Clone, Debug)]
pub struct Answer {
    /// In the order of [`Model::outputs`].
    pub outputs: Vec<Tensor>,
    /// The new states, in the order of [`Model::states`].
    pub states: Vec<Tensor>,
    /// How many rows ran together.
    pub batch_rows: u32,
    /// How long the row waited.
    pub queued: Duration,
    /// How long its batch ran.
    pub ran: Duration,
}

/// A model that is ready on the device.
#[derive(Clone, Debug)]
pub struct LoadedModel {
    id: ModelId,
    model: Model,
}

impl LoadedModel {
    /// Its number, never used twice by one worker.
    pub fn id(&self) -> ModelId {
        self.id
    }
}

impl Deref for LoadedModel {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.model
    }
}

/// Starts workers.
pub struct Worker;

impl Worker {
    /// Starts the thread that drives this device.
    pub fn start(device: Box<dyn Device>, config: Config) -> Result<Handle, Error> {
        let shared = Arc::new(Shared {
            device_name: device.name(),
            config,
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
            thread: Mutex::new(None),
        });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("inference".into())
            .spawn(move || thread::run(of_thread, device))
            .map_err(|error| Error::internal(format!("starting a thread: {error}")))?;
        *shared.thread.lock() = Some(thread);
        Ok(Handle { shared })
    }
}

/// Talks to a worker. Cloning is cheap.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    device_name: String,
    config: Config,
    state: Mutex<State>,
    wake: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Everything behind the one lock.
#[derive(Default)]
struct State {
    queue: Queue,
    controls: VecDeque<Control>,
    models: HashMap<ModelId, Entry>,
    models_pending: usize,
    models_made: ModelId,
    running: Option<Running>,
    asleep: bool,
    closing: bool,
}

/// What callers of [`Handle::submit`] need to know of a loaded model.
struct Entry {
    model: Model,
    cost: Cost,
    stats: Stats,
}

/// The batch on the device.
#[derive(Clone, Copy)]
struct Running {
    since: Instant,
    estimate: Duration,
}

enum Control {
    Load { model: Model, reply: crossbeam_channel::Sender<Result<LoadedModel, Error>> },
    Unload(ModelId),
}

impl Handle {
    /// The device's name.
    pub fn device_name(&self) -> &str {
        &self.shared.device_name
    }

    /// Plans, warms every batch size and self-tests. Blocks until done; other models go on
    /// meanwhile.
    pub fn load(&self, model: Model) -> Result<LoadedModel, Error> {
        let (reply, loaded) = bounded(1);
        {
            let mut state = self.shared.state.lock();
            if state.closing {
                return Err(gone("the worker"));
            }
            let queued = state.models.len() + state.models_pending;
            if queued >= self.shared.config.models_max {
                let queued_max = self.shared.config.models_max;
                return Err(Error::Overloaded { queued, queued_max });
            }
            state.models_pending += 1;
            state.controls.push_back(Control::Load { model, reply });
        }
        self.shared.wake.notify_one();
        loaded.recv().unwrap_or_else(|_| Err(gone("the worker")))
    }

    /// Forgets a model; its waiting rows are answered with [`Error::Gone`].
    pub fn unload(&self, model: &LoadedModel) {
        let rows = {
            let mut state = self.shared.state.lock();
            state.models.remove(&model.id);
            state.controls.push_back(Control::Unload(model.id));
            state.queue.clear(model.id)
        };
        self.shared.wake.notify_one();
        for row in rows {
            row.refuse(gone("the model"));
        }
    }

    /// Queues one row. Never blocks; what can't be queued is refused at once.
    pub fn submit(&self, request: Request) -> Result<(), Error> {
        let free_axes = check_row(&request)?;
        let now = Instant::now();
        let mut state = self.shared.state.lock();
        if state.closing {
            return Err(gone("the worker"));
        }
        let queued = state.queue.len();
        let Some(entry) = state.models.get_mut(&request.model.id) else {
            return Err(gone("the model"));
        };
        if queued >= self.shared.config.queue_rows_max {
            entry.stats.overloaded += 1;
            let queued_max = self.shared.config.queue_rows_max;
            return Err(Error::Overloaded { queued, queued_max });
        }
        if let Some(deadline) = request.deadline {
            let needed = state.needed(request.model.id, deadline, now);
            let left = deadline.saturating_duration_since(now);
            if needed > left || left == Duration::ZERO {
                if let Some(entry) = state.models.get_mut(&request.model.id) {
                    entry.stats.late += 1;
                }
                return Err(Error::DeadlineUnmeetable { needed, left });
            }
        }
        let key = LaneKey { model: request.model.id, free_axes };
        let Request { inputs, states, deadline, done, .. } = request;
        state.queue.push(key, Row { inputs, states, deadline, arrived: now, done });
        let wake = std::mem::take(&mut state.asleep);
        drop(state);
        if wake {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// What each loaded model has done.
    pub fn stats(&self) -> Vec<(LoadedModel, Stats)> {
        let state = self.shared.state.lock();
        let mut all: Vec<(LoadedModel, Stats)> = state
            .models
            .iter()
            .map(|(&id, entry)| {
                let stats = Stats { queued: state.queue.rows_of(id), ..entry.stats.clone() };
                (LoadedModel { id, model: entry.model.clone() }, stats)
            })
            .collect();
        all.sort_by_key(|(model, _)| model.id);
        all
    }

    /// Stops the thread after its present batch and waits for it. What waits is answered with
    /// [`Error::Gone`]. Blocks; a second call returns at once.
    pub fn shutdown(&self) {
        self.shared.state.lock().closing = true;
        self.shared.wake.notify_one();
        let thread = self.shared.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the inference thread panicked");
        }
    }
}

impl State {
    /// The least time until a row with this deadline is answered, by measured cost.
    fn needed(&self, model: ModelId, deadline: Instant, now: Instant) -> Duration {
        let Some(entry) = self.models.get(&model) else { return Duration::ZERO };
        let ahead = self.queue.ahead_of(deadline);
        let running = self.running.map_or(Duration::ZERO, |running| {
            running.estimate.saturating_sub(now.saturating_duration_since(running.since))
        });
        if ahead == 0 && self.running.is_none() {
            // Nothing is in the way: only the impossible is refused, and the run corrects the
            // estimate.
            return entry.cost.at_least(1);
        }
        let rows_max = entry.model.limits().batch_rows_max;
        let together = (ahead % rows_max) + 1;
        let before = entry.cost.estimate(rows_max) * (ahead / rows_max) as u32;
        running + before + entry.cost.at_least(together)
    }
}

fn gone(what: &str) -> Error {
    Error::Gone { what: what.to_string() }
}

/// Checks a row's shapes and returns the lengths of its free axes.
fn check_row(request: &Request) -> Result<Vec<usize>, Error> {
    let model = &request.model;
    let (inputs, states) = (model.inputs(), model.states());
    for (what, expected, actual) in [
        ("inputs", inputs.len(), request.inputs.len()),
        ("states", states.len(), request.states.len()),
    ] {
        if expected != actual {
            return Err(InputError::Count { what, expected, actual }.into());
        }
    }
    let inputs = inputs.iter().map(|spec| (&spec.name, spec.dtype, &spec.row_shape));
    let states = states.iter().map(|spec| (&spec.input, spec.dtype, &spec.row_shape));
    let mut free_axes = Vec::new();
    for ((name, dtype, row_shape), tensor) in
        inputs.chain(states).zip(request.inputs.iter().chain(&request.states))
    {
        if tensor.dtype != dtype {
            let (name, actual) = (name.clone(), tensor.dtype);
            return Err(InputError::DType { name, expected: dtype, actual }.into());
        }
        if !shape_fits(row_shape, &tensor.shape) {
            let (name, actual) = (name.clone(), tensor.shape.clone());
            return Err(InputError::Shape { name, expected: shape_text(row_shape), actual }.into());
        }
        let free = row_shape.iter().zip(&tensor.shape).filter(|(axis, _)| axis.is_none());
        free_axes.extend(free.map(|(_, length)| *length));
    }
    Ok(free_axes)
}
