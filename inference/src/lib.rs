//! What we compute: tensors in, tensors out.
//!
//! A [`Model`] is a directory's files: `model.toml` and `model.onnx` (or `model.safetensors` for a
//! built-in architecture). It is checked and planned without a device. A [`Worker`] is the one
//! thread that drives a [`Device`]; it loads models, queues rows earliest deadline first, and
//! answers them in batches.
//!
//! ```no_run
//! # fn main() -> Result<(), statehouse_inference::Error> {
//! # let files = std::collections::BTreeMap::new();
//! use statehouse_inference::{Config, Model, Worker, flex};
//! let handle = Worker::start(flex()?, Config::default())?;
//! let model = handle.load(Model::from_files(&files)?)?;
//! # Ok(()) }
//! ```
//!
//! Reading order: `tensor` (what a value is), `manifest` and `model` (what a model is), `onnx`
//! (parse, plan, run), `device`, then `batch`, `cost`, `queue` and `worker` (when rows run).
//!
//! Deliberately absent: keys, versions, disk, network, async. A row's state arrives with the row
//! and leaves with its answer.
//!
//! Not done:
//! - Floats are computed as f32 and integers as i64, whatever the graph declares; other types are
//!   converted at the edge.
//! - String tensors, control flow (`If`, `Loop`, `Scan`), convolutions and quantised operators.
//! - Two batches in flight: gathering the next batch does not overlap the running one.
//! - Rows whose free axes differ never share a batch (no padding of sequences).
//! - What rows need is measured of the trial's row and taken to grow with a row's bytes: attention
//!   over longer sequences needs more. What an operator needs while it works is not counted.

pub mod batch;
pub mod cost;
pub mod device;
pub mod error;
pub mod histogram;
pub mod manifest;
pub mod model;
pub mod onnx;
pub mod queue;
pub mod stats;
pub mod tensor;
pub mod trial;
pub mod worker;

mod architecture;

pub use device::{Device, DeviceKind, Runner, flex};
pub use error::{Error, InputError, Unsupported};
pub use model::{InputSpec, Limits, Model, NotFinitePolicy, OutputSpec, StateSpec};
pub use onnx::plan::Program;
pub use tensor::{DType, Tensor};
pub use worker::{Answer, Config, Done, Handle, LoadedModel, Request, Worker};
