//! A model: its program, and how rows and states are bound to it. Checked without a device.
//! `bind` ties the manifest's names to the graph's.

mod bind;

use crate::architecture;
use crate::batch::RowPeak;
use crate::device::DeviceKind;
use crate::error::{Error, InputError};
use crate::manifest::{Format, Manifest, NotFinite, nearest};
use crate::onnx::graph::Graph;
use crate::onnx::plan::Program;
use crate::tensor::{DType, Tensor};
use crate::trial::Trial;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::Xxh3;

pub use crate::manifest::NotFinite as NotFinitePolicy;

/// The largest initial state.
pub const STATE_BYTES_MAX: usize = 1 << 30;

/// A request input: what the caller gives beside the state.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// Its name in the graph.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// One row's shape, without the batch axis; `None` where any length will do.
    pub row_shape: Vec<Option<usize>>,
    /// What happens to NaN or infinity.
    pub nan: NotFinite,
    /// Indices into a table of this length, if it is one.
    pub index_limit: Option<usize>,
    /// What the model may be tried with when it is loaded, if the manifest says.
    pub trial: Option<Trial>,
}

/// A tensor that is kept between calls.
#[derive(Clone, Debug, PartialEq)]
pub struct StateSpec {
    /// The field of the stored state.
    pub field: String,
    /// The graph input that reads it.
    pub input: String,
    /// The graph output that replaces it.
    pub output: String,
    /// Its element type.
    pub dtype: DType,
    /// One row's shape, without the batch axis; `None` where it may change from step to step.
    pub row_shape: Vec<Option<usize>>,
    /// What a missing state starts from: one row.
    pub initial: Tensor,
}

/// A tensor that is answered.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputSpec {
    /// Its name in the graph.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// One row's shape, without the batch axis; `None` where it depends on the inputs.
    pub row_shape: Vec<Option<usize>>,
}

/// How a model's rows are batched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows per batch.
    pub batch_rows_max: usize,
    /// How long the oldest row may wait for a batch to fill.
    pub batch_wait_max: Duration,
}

/// Where a graph input comes from or an output goes: a position among the request's tensors, or
/// among the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Request(usize),
    State(usize),
}

/// How a graph input or output is cut into rows.
#[derive(Clone, Debug)]
pub(crate) struct Binding {
    pub name: String,
    pub place: Place,
    pub batch_axis: usize,
    pub nan: NotFinite,
}

/// A checked model. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Model {
    parts: Arc<Parts>,
}

#[derive(Clone, Debug)]
struct Parts {
    name: String,
    digest: String,
    program: Arc<Program>,
    inputs: Vec<InputSpec>,
    states: Vec<StateSpec>,
    outputs: Vec<OutputSpec>,
    graph_inputs: Vec<Binding>,
    graph_outputs: Vec<Binding>,
    rows_max: Option<usize>,
    limits: Limits,
    batch_is_one: bool,
    peak: RowPeak,
    warnings: Vec<String>,
}

/// What the trial runs of a model came to.
pub(crate) struct Tried {
    /// Of one row's outputs, in graph order.
    pub shapes: Vec<Vec<usize>>,
    /// Rows per batch at most.
    pub rows_max: usize,
    pub peak: RowPeak,
    pub warnings: Vec<String>,
}

impl Model {
    /// Reads a model directory's files: `model.toml` and the file that its format names. Other
    /// files are ignored.
    pub fn from_files(files: &BTreeMap<String, Bytes>) -> Result<Model, Error> {
        let file = |name: &str| {
            files.get(name).ok_or_else(|| Error::manifest(format!("expected a file {name}")))
        };
        let text = std::str::from_utf8(file("model.toml")?)
            .map_err(|_| Error::manifest("expected UTF-8 text"))?;
        let manifest = Manifest::parse(text)?;
        let (weights, graph) = match (&manifest.format, &manifest.architecture) {
            (Format::Onnx, _) | (Format::Safetensors, None) => {
                let weights = file("model.onnx")?;
                (weights, Graph::parse(weights.clone())?)
            }
            (Format::Safetensors, Some(architecture)) => {
                let weights = file("model.safetensors")?;
                (weights, architecture::build(architecture, weights)?)
            }
        };
        let mut digest = Xxh3::new();
        digest.update(text.as_bytes());
        digest.update(&[0]);
        digest.update(weights);
        let program = Arc::new(Program::plan(graph)?);
        bind::bind(&manifest, program, format!("{:032x}", digest.digest128()))
    }

    /// The manifest's name.
    pub fn name(&self) -> &str {
        &self.parts.name
    }

    /// The request inputs, in graph order.
    pub fn inputs(&self) -> &[InputSpec] {
        &self.parts.inputs
    }

    /// The states, in the manifest's order.
    pub fn states(&self) -> &[StateSpec] {
        &self.parts.states
    }

    /// The answered outputs, in graph order, without the states.
    pub fn outputs(&self) -> &[OutputSpec] {
        &self.parts.outputs
    }

    /// How rows are batched; before loading, as on a CPU.
    pub fn limits(&self) -> Limits {
        self.parts.limits
    }

    /// What whoever pushed the model should know of its trial runs; empty before it is loaded.
    pub fn warnings(&self) -> &[String] {
        &self.parts.warnings
    }

    /// Bytes of one row's initial states.
    pub fn state_bytes(&self) -> usize {
        self.parts.states.iter().map(|state| state.initial.data.len()).sum()
    }

    /// The bytes that a row of so many bytes needs while it runs, as its trial showed: inputs and
    /// states, results, and what lies between.
    pub fn row_needs(&self, row_bytes: usize) -> usize {
        self.parts.peak.needs(row_bytes)
    }

    /// The bytes that the row needed with which the model was tried; 0 before it is loaded.
    pub fn trial_row_needs(&self) -> usize {
        self.row_needs(self.parts.peak.row_bytes)
    }

    /// Whether every row has the same shapes.
    pub fn is_of_fixed_shape(&self) -> bool {
        let inputs = self.parts.inputs.iter().map(|input| &input.row_shape);
        let states = self.parts.states.iter().map(|state| &state.row_shape);
        inputs.chain(states).flatten().all(Option::is_some)
    }

    /// The bytes of weights as they are computed (f32, i64).
    pub fn weights_bytes(&self) -> usize {
        self.parts.program.constant_bytes()
    }

    /// A hash of manifest and weights, 32 hex digits. Not cryptographic.
    pub fn digest(&self) -> &str {
        &self.parts.digest
    }

    /// The planned graph.
    pub fn program(&self) -> &Arc<Program> {
        &self.parts.program
    }

    /// A paragraph for people.
    pub fn describe(&self) -> String {
        let parts = &self.parts;
        let steps = parts.program.steps.len();
        let batching = if parts.batch_is_one {
            "row by row: the graph's batch axis is fixed to 1".to_string()
        } else {
            format!("up to {} rows per batch", parts.limits.batch_rows_max)
        };
        let input = |spec: &InputSpec| {
            format!("{} {} {}", spec.name, spec.dtype, shape_text(&spec.row_shape))
        };
        let state = |spec: &StateSpec| {
            format!("{} {} {}", spec.field, spec.dtype, shape_text(&spec.row_shape))
        };
        let output = |spec: &OutputSpec| format!("{} {}", spec.name, spec.dtype);
        format!(
            "{}: inputs {}; states {}; outputs {}; {steps} steps, {} bytes of weights; {batching}",
            parts.name,
            listed(parts.inputs.iter().map(input)),
            listed(parts.states.iter().map(state)),
            listed(parts.outputs.iter().map(output)),
            self.weights_bytes(),
        )
    }

    /// Checks one row's inputs, given by name, and puts them in declared order.
    pub fn check_inputs<N: AsRef<str>>(
        &self,
        given: impl IntoIterator<Item = (N, Tensor)>,
    ) -> Result<Vec<Tensor>, Error> {
        let specs = &self.parts.inputs;
        let mut found: Vec<Option<Tensor>> = vec![None; specs.len()];
        for (name, tensor) in given {
            let name = name.as_ref();
            let Some(position) = specs.iter().position(|spec| spec.name == name) else {
                let nearest = nearest(name, specs.iter().map(|spec| spec.name.as_str()));
                return Err(InputError::Unknown { name: name.into(), nearest }.into());
            };
            check_input(&specs[position], &tensor)?;
            if found[position].replace(tensor).is_some() {
                return Err(InputError::Duplicate { name: name.into() }.into());
            }
        }
        found
            .into_iter()
            .zip(specs)
            .map(|(tensor, spec)| {
                tensor.ok_or_else(|| {
                    let (name, shape) = (spec.name.clone(), shape_text(&spec.row_shape));
                    InputError::Missing { name, dtype: spec.dtype, shape }.into()
                })
            })
            .collect()
    }

    pub(crate) fn graph_inputs(&self) -> &[Binding] {
        &self.parts.graph_inputs
    }

    pub(crate) fn graph_outputs(&self) -> &[Binding] {
        &self.parts.graph_outputs
    }

    /// This model with the limits of a device.
    pub(crate) fn on_device(&self, kind: DeviceKind) -> Model {
        let mut parts = Parts::clone(&self.parts);
        parts.limits.batch_rows_max = parts.rows_on(kind);
        Model { parts: Arc::new(parts) }
    }

    /// This model with what its trial runs came to; outputs whose graph declares no shape have
    /// that of the trial.
    pub(crate) fn tried(&self, tried: Tried) -> Model {
        let mut parts = Parts::clone(&self.parts);
        parts.limits.batch_rows_max = parts.limits.batch_rows_max.min(tried.rows_max);
        parts.warnings = tried.warnings;
        parts.peak = tried.peak;
        for ((port, binding), shape) in
            parts.program.outputs.iter().zip(&parts.graph_outputs).zip(&tried.shapes)
        {
            if let (None, Place::Request(position)) = (&port.shape, binding.place) {
                parts.outputs[position].row_shape = shape.iter().copied().map(Some).collect();
            }
        }
        Model { parts: Arc::new(parts) }
    }
}

impl Parts {
    fn rows_on(&self, kind: DeviceKind) -> usize {
        match (self.batch_is_one, self.rows_max) {
            (true, _) => 1,
            (false, Some(rows)) => rows,
            (false, None) => kind.batch_rows_default(),
        }
    }
}

/// A shape for messages: `[4, ?]`.
pub(crate) fn shape_text(shape: &[Option<usize>]) -> String {
    let axis = |axis: &Option<usize>| axis.map_or("?".to_string(), |length| length.to_string());
    format!("[{}]", shape.iter().map(axis).collect::<Vec<_>>().join(", "))
}

/// Whether a row's shape is as declared.
pub(crate) fn shape_fits(declared: &[Option<usize>], actual: &[usize]) -> bool {
    declared.len() == actual.len()
        && declared.iter().zip(actual).all(|(axis, length)| axis.is_none_or(|axis| axis == *length))
}

fn listed(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

pub(crate) fn check_input(spec: &InputSpec, tensor: &Tensor) -> Result<(), InputError> {
    let name = || spec.name.clone();
    if tensor.dtype != spec.dtype {
        let (expected, actual) = (spec.dtype, tensor.dtype);
        return Err(InputError::DType { name: name(), expected, actual });
    }
    if !shape_fits(&spec.row_shape, &tensor.shape) {
        let (expected, actual) = (shape_text(&spec.row_shape), tensor.shape.clone());
        return Err(InputError::Shape { name: name(), expected, actual });
    }
    Tensor::new(tensor.dtype, tensor.shape.clone(), tensor.data.clone())
        .map_err(|source| InputError::Bytes { name: name(), source })?;
    if spec.nan == NotFinite::Reject
        && let Some(element) = tensor.first_not_finite()
    {
        return Err(InputError::NotFinite { name: name(), element });
    }
    if let Some(limit) = spec.index_limit {
        let limit = limit as i64;
        let indices = crate::onnx::host::ints(tensor.dtype, &tensor.data);
        if let Some(&value) = indices.iter().find(|value| !(-limit..limit).contains(*value)) {
            let (min, max) = (-limit, limit - 1);
            return Err(InputError::Index { name: name(), value, min, max, step: None });
        }
    }
    Ok(())
}
