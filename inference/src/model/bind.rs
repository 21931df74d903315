//! Ties a manifest's names to a graph: which inputs are the caller's, which are state, where the
//! batch axis is. Everything that doesn't fit is an error that says what would.

use super::{
    Binding, InputSpec, Limits, Model, OutputSpec, Parts, Place, STATE_BYTES_MAX, StateSpec,
    shape_fits, shape_text,
};
use crate::batch::RowPeak;
use crate::device::DeviceKind;
use crate::error::Error;
use crate::manifest::{self, Initial, Manifest, nearest};
use crate::onnx::graph::Axis;
use crate::onnx::host::HostTensor;
use crate::onnx::plan::{Port, Program};
use crate::tensor::{DType, Tensor, byte_count};
use crate::trial::{self, Trial};
use bytes::Bytes;
use std::sync::Arc;

/// Ties the manifest to its graph.
pub(super) fn bind(
    manifest: &Manifest,
    program: Arc<Program>,
    digest: String,
) -> Result<Model, Error> {
    check_names(manifest, &program)?;
    let mut inputs = Vec::new();
    let mut states: Vec<Option<StateSpec>> = vec![None; manifest.states.len()];
    let mut graph_inputs = Vec::new();
    let mut batch_is_one = false;
    for port in &program.inputs {
        let state = manifest.states.iter().position(|state| state.input == port.name);
        let written = manifest.inputs.iter().find(|written| written.name == port.name);
        let batch_axis = match state {
            Some(position) => manifest.states[position].batch_axis,
            None => written.map_or(0, |written| written.batch_axis),
        };
        let (row_shape, is_one) = input_rows(port, batch_axis)?;
        batch_is_one |= is_one;
        let nan = written.map(|written| written.nan).unwrap_or_default();
        let place = match state {
            Some(position) => {
                let state = &manifest.states[position];
                states[position] = Some(state_spec(state, port, row_shape)?);
                Place::State(position)
            }
            None => {
                let index_limit = program.index_limits.get(&port.name).copied();
                let trial = written.and_then(|written| written.trial.as_ref());
                let wrong =
                    |reason| Error::manifest(format!("input '{}': trial: {reason}", port.name));
                let trial = trial.map(Trial::read).transpose().map_err(wrong)?;
                let (name, dtype) = (port.name.clone(), port.dtype);
                let spec = InputSpec { name, dtype, row_shape, nan, index_limit, trial };
                if let Some(trial) = &spec.trial {
                    trial.check(&spec).map_err(wrong)?;
                }
                inputs.push(spec);
                Place::Request(inputs.len() - 1)
            }
        };
        graph_inputs.push(Binding { name: port.name.clone(), place, batch_axis, nan });
    }
    let states: Vec<StateSpec> = states
        .into_iter()
        .map(|state| state.expect("check_names found every state's input"))
        .collect();
    let (outputs, graph_outputs) = bind_outputs(manifest, &program, &states)?;
    let mut parts = Parts {
        name: manifest.name.clone(),
        digest,
        program,
        inputs,
        states,
        outputs,
        graph_inputs,
        graph_outputs,
        rows_max: manifest.batch.rows_max,
        limits: Limits { batch_rows_max: 1, batch_wait_max: manifest.wait_max() },
        batch_is_one,
        peak: RowPeak::default(),
        warnings: Vec::new(),
    };
    parts.limits.batch_rows_max = parts.rows_on(DeviceKind::Cpu);
    Ok(Model { parts: Arc::new(parts) })
}

/// Every name in the manifest must be in the graph.
fn check_names(manifest: &Manifest, program: &Program) -> Result<(), Error> {
    let inputs = manifest.states.iter().map(|state| &state.input);
    let inputs = inputs.chain(manifest.inputs.iter().map(|input| &input.name));
    let outputs = manifest.states.iter().map(|state| &state.output);
    let outputs = outputs.chain(manifest.outputs.iter().map(|output| &output.name));
    known("input", inputs, &program.inputs)?;
    known("output", outputs, &program.outputs)?;
    for (position, state) in manifest.states.iter().enumerate() {
        let dtype = |ports: &[Port], name: &str| {
            ports.iter().find(|port| port.name == name).map(|port| port.dtype)
        };
        let (read, write) =
            (dtype(&program.inputs, &state.input), dtype(&program.outputs, &state.output));
        if read != write {
            return Err(Error::manifest(format!(
                "state {position} '{}': input '{}' and output '{}' have different types",
                state.field, state.input, state.output
            )));
        }
    }
    Ok(())
}

fn known<'a>(
    what: &str,
    names: impl Iterator<Item = &'a String>,
    ports: &[Port],
) -> Result<(), Error> {
    for name in names {
        if ports.iter().any(|port| port.name == *name) {
            continue;
        }
        let nearest = nearest(name, ports.iter().map(|port| port.name.as_str()));
        let nearest = nearest.map(|name| format!(", nearest is '{name}'")).unwrap_or_default();
        return Err(Error::manifest(format!("the graph has no {what} '{name}'{nearest}")));
    }
    Ok(())
}

/// A row's shape, and whether the batch axis is fixed to one.
fn input_rows(port: &Port, batch_axis: usize) -> Result<(Vec<Option<usize>>, bool), Error> {
    let wrong = |reason: String| Error::onnx(format!("input '{}': {reason}", port.name));
    let shape = port.shape.as_ref().ok_or_else(|| wrong("expected a declared shape".into()))?;
    let batch = shape
        .get(batch_axis)
        .ok_or_else(|| wrong(format!("expected a batch axis {batch_axis}")))?;
    let is_one = match batch {
        Axis::Free(_) => false,
        Axis::Fixed(1) => true,
        Axis::Fixed(rows) => {
            return Err(wrong(format!("batch axis is fixed to {rows}: export it as dynamic")));
        }
    };
    Ok((without_axis(shape, batch_axis), is_one))
}

fn without_axis(shape: &[Axis], batch_axis: usize) -> Vec<Option<usize>> {
    let rest = shape.iter().enumerate().filter(|(at, _)| *at != batch_axis);
    rest.map(|(_, axis)| match axis {
        Axis::Fixed(length) => Some(*length),
        Axis::Free(_) => None,
    })
    .collect()
}

fn state_spec(
    state: &manifest::State,
    port: &Port,
    row_shape: Vec<Option<usize>>,
) -> Result<StateSpec, Error> {
    let wrong = |reason: String| Error::manifest(format!("state '{}': {reason}", state.field));
    let shape = match &state.shape {
        Some(shape) if shape_fits(&row_shape, shape) => shape.clone(),
        Some(shape) => {
            let declared = shape_text(&row_shape);
            return Err(wrong(format!("shape {shape:?} does not fit the graph's {declared}")));
        }
        None => row_shape.iter().copied().collect::<Option<Vec<usize>>>().ok_or_else(|| {
            let declared = shape_text(&row_shape);
            wrong(format!("the graph leaves {declared} open: give shape = [...]"))
        })?,
    };
    if byte_count(port.dtype, &shape).map_or(true, |bytes| bytes > STATE_BYTES_MAX) {
        return Err(wrong(format!("shape {shape:?} is over the limit of {STATE_BYTES_MAX} bytes")));
    }
    let elements: usize = shape.iter().product();
    let initial = match &state.initial {
        Initial::Number(number) => filled(port.dtype, shape, *number).map_err(wrong)?,
        Initial::Word(word) if word == "zeros" => filled(port.dtype, shape, 0.0).map_err(wrong)?,
        Initial::Word(word) => {
            return Err(wrong(format!(
                "initial: expected \"zeros\", a number or a list, got \"{word}\""
            )));
        }
        Initial::List(values) if values.len() == elements => {
            listed(port.dtype, shape, values).map_err(wrong)?
        }
        Initial::List(values) => {
            let given = values.len();
            return Err(wrong(format!("initial: expected {elements} numbers, got {given}")));
        }
    };
    Ok(StateSpec {
        field: state.field.clone(),
        input: state.input.clone(),
        output: state.output.clone(),
        dtype: port.dtype,
        row_shape,
        initial,
    })
}

/// One row of a state from all of its numbers.
fn listed(dtype: DType, shape: Vec<usize>, numbers: &[f64]) -> Result<Tensor, String> {
    let values = trial::given(dtype, numbers).map_err(|reason| format!("initial: {reason}"))?;
    HostTensor { shape, values }.to_tensor(dtype).map_err(|error| error.to_string())
}

/// One row of a state of equal numbers, without a copy on the way: it may be large.
fn filled(dtype: DType, shape: Vec<usize>, number: f64) -> Result<Tensor, String> {
    let one = listed(dtype, vec![1], &[number])?;
    let bytes = byte_count(dtype, &shape).map_err(|error| error.to_string())?;
    let data = match one.data.iter().all(|&byte| byte == 0) {
        // Untouched pages of zeros take no memory.
        true => vec![0; bytes],
        false => one.data.repeat(bytes / dtype.size_bytes()),
    };
    Tensor::new(dtype, shape, Bytes::from(data)).map_err(|error| error.to_string())
}

fn bind_outputs(
    manifest: &Manifest,
    program: &Program,
    states: &[StateSpec],
) -> Result<(Vec<OutputSpec>, Vec<Binding>), Error> {
    let mut outputs = Vec::new();
    let mut bindings = Vec::new();
    for port in &program.outputs {
        let written = manifest.outputs.iter().find(|written| written.name == port.name);
        let mut nan = written.map(|written| written.nan).unwrap_or_default();
        let mut batch_axis = written.map_or(0, |written| written.batch_axis);
        let place = match states.iter().position(|state| state.output == port.name) {
            Some(position) => {
                nan = manifest.states[position].nan;
                batch_axis = manifest.states[position].batch_axis;
                Place::State(position)
            }
            None => {
                let row_shape = match &port.shape {
                    Some(shape) => without_axis(shape, batch_axis),
                    None => Vec::new(),
                };
                outputs.push(OutputSpec { name: port.name.clone(), dtype: port.dtype, row_shape });
                Place::Request(outputs.len() - 1)
            }
        };
        bindings.push(Binding { name: port.name.clone(), place, batch_axis, nan });
    }
    Ok((outputs, bindings))
}
