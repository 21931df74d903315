//! Everything this room can refuse, one variant per thing a caller does differently.

use crate::onnx::fault::Fault;
use crate::tensor::{DType, ShapeError};
use std::time::Duration;

/// Why a model was not loaded or a row was not scored.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// `model.toml` is wrong. The message carries line numbers where there are any.
    #[error("model.toml: {reason}")]
    Manifest { reason: String },
    /// The graph or weights file is corrupt, over a limit, or not what the manifest says.
    #[error("{file}: {reason}")]
    Weights { file: String, reason: String },
    /// The graph uses operators that are not interpreted: all of them, and what else is wrong with
    /// it as far as that can be told.
    #[error("{}", unsupported(.operators, .others))]
    UnsupportedOperators { operators: Vec<Unsupported>, others: Vec<String> },
    /// A trial run at load failed; `output` is empty if it failed as a whole.
    #[error("self-test failed{}: {reason}", at_output(.output))]
    SelfTest { output: String, reason: String },
    /// A run failed on the shapes or numbers that it was given; `inputs` are the graph inputs that
    /// these came from. The worker tells callers of it as [`Error::Input`].
    #[error("{step}: {fault}")]
    Run { step: String, fault: Fault, inputs: Vec<String> },
    /// The request's tensors are not what the model declares.
    #[error(transparent)]
    Input(#[from] InputError),
    /// This row's result holds NaN or infinity where the manifest forbids it.
    #[error("output '{output}' is not finite")]
    NotFinite { output: String },
    /// The queue is full.
    #[error("the worker's queue is full: {queued} rows wait, at most {queued_max} may")]
    Overloaded { queued: usize, queued_max: usize },
    /// By the measured cost the answer would come after the deadline.
    #[error("deadline can't be met: {needed:?} needed, {left:?} left")]
    DeadlineUnmeetable { needed: Duration, left: Duration },
    /// The model was unloaded or the worker has shut down.
    #[error("{what} is gone")]
    Gone { what: String },
    /// The device failed or a run panicked.
    #[error("inference failed: {reason}")]
    Internal { reason: String },
}

/// An operator that is not interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Its name.
    pub op: String,
    /// Its domain; empty for the default one.
    pub domain: String,
    /// The version of its domain.
    pub opset: i64,
    /// How many nodes have it.
    pub nodes: usize,
    /// The name of the first of them.
    pub node: String,
}

/// What is wrong with a request's tensors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The model has no input of this name.
    #[error("unknown input '{name}'{}", suggest(.nearest))]
    Unknown { name: String, nearest: Option<String> },
    /// An input was given twice.
    #[error("input '{name}' is given twice")]
    Duplicate { name: String },
    /// A declared input was not given.
    #[error("missing input '{name}': expected {dtype} {shape}")]
    Missing { name: String, dtype: DType, shape: String },
    /// Another element type.
    #[error("input '{name}': expected {expected}, got {actual}")]
    DType { name: String, expected: DType, actual: DType },
    /// Another shape. The expectation shows free axes as `?`.
    #[error("input '{name}': expected shape {expected}, got {actual:?}")]
    Shape { name: String, expected: String, actual: Vec<usize> },
    /// Bytes that don't fill the shape.
    #[error("input '{name}': {source}")]
    Bytes { name: String, source: ShapeError },
    /// NaN or infinity where the manifest forbids it.
    #[error("input '{name}': element {element} is not finite")]
    NotFinite { name: String, element: usize },
    /// An index outside the table it selects from.
    #[error(
        "input '{name}': index {value} is out of range, expected {min}..={max}{}",
        in_step(.step)
    )]
    Index {
        name: String,
        value: i64,
        min: i64,
        max: i64,
        /// The node that selects, if the index was computed.
        step: Option<String>,
    },
    /// Shapes or numbers for which the graph has no result.
    #[error("input '{name}' of shape {shape:?}: {reason}")]
    Unfit { name: String, shape: Vec<usize>, reason: String },
    /// A number of tensors other than declared.
    #[error("expected {expected} {what}, got {actual}")]
    Count { what: &'static str, expected: usize, actual: usize },
}

impl InputError {
    /// The input that is wrong, if it's one.
    pub fn name(&self) -> Option<&str> {
        match self {
            InputError::Unknown { name, .. }
            | InputError::Duplicate { name }
            | InputError::Missing { name, .. }
            | InputError::DType { name, .. }
            | InputError::Shape { name, .. }
            | InputError::Bytes { name, .. }
            | InputError::NotFinite { name, .. }
            | InputError::Index { name, .. }
            | InputError::Unfit { name, .. } => Some(name),
            InputError::Count { .. } => None,
        }
    }
}

/// Of so many unknown operators a refusal says where they are; of the others only their names. It
/// travels in a header, which has a limit of its own.
const PLACES_MAX: usize = 16;
/// So many of the other things that are wrong with a graph are told.
const OTHERS_MAX: usize = 8;

fn unsupported(operators: &[Unsupported], others: &[String]) -> String {
    let one = |(at, found): (usize, &Unsupported)| {
        let Unsupported { op, domain, opset, nodes, node } = found;
        if at >= PLACES_MAX {
            return op.clone();
        }
        let place = match nodes {
            1 => format!("node '{node}'"),
            _ => format!("{nodes} nodes, the first is '{node}'"),
        };
        format!("{op} (domain '{domain}', opset {opset}) in {place}")
    };
    let all: Vec<String> = operators.iter().enumerate().map(one).collect();
    let s = if all.len() == 1 { "" } else { "s" };
    let also: String = others.iter().map(|other| format!("; also: {other}")).collect();
    format!("unsupported operator{s} {}{also}", all.join(", "))
}

fn in_step(step: &Option<String>) -> String {
    step.as_ref().map(|step| format!(" in {step}")).unwrap_or_default()
}

fn at_output(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(" at output '{output}'") }
}

fn suggest(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(", nearest is '{name}'")).unwrap_or_default()
}

impl Error {
    /// A [`Error::Manifest`] with this reason.
    pub(crate) fn manifest(reason: impl Into<String>) -> Error {
        Error::Manifest { reason: reason.into() }
    }

    /// A [`Error::Weights`] about `model.onnx`.
    pub(crate) fn onnx(reason: impl Into<String>) -> Error {
        Error::Weights { file: "model.onnx".into(), reason: reason.into() }
    }

    /// One error of all that is wrong with a graph; `None` if nothing is.
    pub(crate) fn of_graph(operators: Vec<Unsupported>, others: Vec<Error>) -> Option<Error> {
        let reasons = others.into_iter().map(|error| match error {
            Error::Weights { reason, .. } => reason,
            other => other.to_string(),
        });
        let mut reasons: Vec<String> = reasons.collect();
        if reasons.len() > OTHERS_MAX {
            let more = reasons.split_off(OTHERS_MAX).len();
            reasons.push(format!("and {more} more"));
        }
        match (operators.is_empty(), reasons.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Error::onnx(reasons.join("; "))),
            (false, _) => Some(Error::UnsupportedOperators { operators, others: reasons }),
        }
    }

    /// A [`Error::Internal`] with this reason.
    pub(crate) fn internal(reason: impl Into<String>) -> Error {
        Error::Internal { reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_every_operator_and_fits_a_header() {
        let operator = |at: usize| Unsupported {
            op: format!("Operator{at}"),
            domain: "com.example".into(),
            opset: 1,
            nodes: 1 + at,
            node: format!("/encoder/layers.{at}/attention/projection"),
        };
        let others = (0..50).map(|at| Error::onnx(format!("node {at} is wrong"))).collect();
        let all = (0..200).map(operator).collect();
        let said = Error::of_graph(all, others).unwrap().to_string();
        for at in 0..200 {
            assert!(said.contains(&format!("Operator{at}")), "{at} in {said}");
        }
        assert!(said.contains("node 7 is wrong; also: and 42 more"), "{said}");
        assert!(said.len() < 6 << 10, "{} bytes", said.len());
    }
}
