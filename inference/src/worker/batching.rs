//! One batch: rows to graph inputs, a run, graph outputs to answers.
//!
//! A row whose numbers have no result (an index past its table, a division by zero) fails the run
//! that it is in. Then the batch is halved and run again until that row is alone, so the others get
//! their answers: one such row of 64 makes the batch cost about three times as much.

use super::{Answer, Done};
use crate::batch::{gather, padded, scatter};
use crate::device::Runner;
use crate::error::{Error, InputError};
use crate::manifest::NotFinite;
use crate::model::{Binding, Model, Place, shape_fits, shape_text};
use crate::onnx::fault::{Fault, unfit};
use crate::queue::Row;
use crate::tensor::{Tensor, first_not_finite};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// A callback and what to call it with.
pub type Answered = (Done, Result<Answer, Error>);

/// A batch that was run.
pub struct Ran {
    /// In the order of the rows.
    pub answers: Vec<Answered>,
    /// How long each row had waited.
    pub queued: Vec<Duration>,
    /// Gathering, running and reading back.
    pub took: Duration,
    /// Whether the run panicked.
    pub panicked: bool,
    /// Whether `took` is the cost of one run of all rows.
    pub at_once: bool,
}

/// One row's outputs and new states while they are collected.
#[derive(Clone, Default)]
struct Parts {
    batch_rows: u32,
    outputs: Vec<Tensor>,
    states: Vec<Option<Tensor>>,
    error: Option<Error>,
}

/// Runs rows together. Every row gets an answer.
pub fn run(model: &Model, runner: &mut dyn Runner, rows: Vec<Row>, pads: bool) -> Ran {
    let started = Instant::now();
    let mut run = Run { model, runner, pads, panicked: false, runs: 0 };
    let parts = run.rows(&rows);
    let (panicked, at_once) = (run.panicked, run.runs == 1);
    let took = started.elapsed();
    let queued: Vec<Duration> =
        rows.iter().map(|row| started.saturating_duration_since(row.arrived)).collect();
    let answers = rows.into_iter().zip(parts).zip(&queued).map(|((row, parts), &queued)| {
        let result = match parts.error {
            Some(error) => Err(error),
            None => Ok(Answer {
                outputs: parts.outputs,
                states: parts.states.into_iter().flatten().collect(),
                batch_rows: parts.batch_rows,
                queued,
                ran: took,
            }),
        };
        (row.done, result)
    });
    Ran { answers: answers.collect(), queued, took, panicked, at_once }
}

/// The runs that a batch takes.
struct Run<'a> {
    model: &'a Model,
    runner: &'a mut dyn Runner,
    pads: bool,
    panicked: bool,
    runs: usize,
}

impl Run<'_> {
    /// What each row comes to, together if they can be.
    fn rows(&mut self, rows: &[Row]) -> Vec<Parts> {
        let count = rows.len();
        let error = match self.together(rows) {
            Ok(parts) => return parts,
            Err(error) => error,
        };
        match &error {
            Error::Run { fault, .. } if fault.is_of_one_row() && count > 1 => {
                let (first, second) = rows.split_at(count / 2);
                let mut parts = self.rows(first);
                // A runner that panicked is not used again.
                parts.extend(match self.panicked {
                    true => failed(second.len(), &Error::internal("a run panicked")),
                    false => self.rows(second),
                });
                parts
            }
            Error::Run { .. } => failed(count, &of_caller(self.model, &rows[0], error)),
            _ => failed(count, &error),
        }
    }

    fn together(&mut self, rows: &[Row]) -> Result<Vec<Parts>, Error> {
        let (model, count) = (self.model, rows.len());
        let width = padded(count, model.limits().batch_rows_max, self.pads);
        self.runs += 1;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let outputs = self.runner.run(inputs(model, rows, width))?;
            split(model, &outputs, count, width)
        }));
        outcome.unwrap_or_else(|_| {
            self.panicked = true;
            Err(Error::internal("a run panicked"))
        })
    }
}

fn failed(count: usize, error: &Error) -> Vec<Parts> {
    vec![Parts { error: Some(error.clone()), ..Parts::default() }; count]
}

/// What the caller of a row is told of a run that failed on the row's shapes or numbers: by the
/// request's input that they came from, else by the state's.
fn of_caller(model: &Model, row: &Row, error: Error) -> Error {
    let Error::Run { step, fault, inputs } = error else { return error };
    let given = |binding: &&Binding| inputs.contains(&binding.name);
    let bindings = || model.graph_inputs().iter().filter(given);
    let request = bindings().filter(|binding| matches!(binding.place, Place::Request(_)));
    let mut named: Vec<&Binding> = request.collect();
    if named.is_empty() {
        named = bindings().collect();
    }
    let name = named.iter().map(|binding| binding.name.as_str()).collect::<Vec<_>>().join(", ");
    let shape = named.first().map(|binding| match binding.place {
        Place::Request(position) => row.inputs[position].shape.clone(),
        Place::State(position) => row.states[position].shape.clone(),
    });
    Error::Input(match fault {
        Fault::Index { value, min, max } => {
            InputError::Index { name, value, min, max, step: Some(step) }
        }
        fault => InputError::Unfit {
            name,
            shape: shape.unwrap_or_default(),
            reason: format!("{step}: {fault}"),
        },
    })
}

fn inputs(model: &Model, rows: &[Row], width: usize) -> Vec<Tensor> {
    let bindings = model.graph_inputs().iter();
    bindings
        .map(|binding| {
            let tensors: Vec<&Tensor> = rows
                .iter()
                .map(|row| match binding.place {
                    Place::Request(position) => &row.inputs[position],
                    Place::State(position) => &row.states[position],
                })
                .collect();
            gather(&tensors, binding.batch_axis, width)
        })
        .collect()
}

fn split(
    model: &Model,
    outputs: &[Tensor],
    count: usize,
    width: usize,
) -> Result<Vec<Parts>, Error> {
    let (output_count, state_count) = (model.outputs().len(), model.states().len());
    let mut parts = vec![
        Parts {
            batch_rows: count as u32,
            outputs: Vec::with_capacity(output_count),
            states: vec![None; state_count],
            error: None,
        };
        count
    ];
    for (position, (binding, output)) in model.graph_outputs().iter().zip(outputs).enumerate() {
        let rows = scatter(output, binding.batch_axis, count, width).ok_or_else(|| {
            let (axis, shape) = (binding.batch_axis, &output.shape);
            misshapen(model, position, unfit!("axis {axis} of {shape:?} is not the batch"))
        })?;
        if let (Place::State(state), Some(row)) = (binding.place, rows.first())
            && !shape_fits(&model.states()[state].row_shape, &row.shape)
        {
            let expected = shape_text(&model.states()[state].row_shape);
            let fault = unfit!("expected a state of shape {expected}, got {:?}", row.shape);
            return Err(misshapen(model, position, fault));
        }
        check(binding, output, &rows, &mut parts);
        for (row, parts) in rows.into_iter().zip(&mut parts) {
            match binding.place {
                Place::Request(_) => parts.outputs.push(row),
                Place::State(position) => parts.states[position] = Some(row),
            }
        }
    }
    Ok(parts)
}

/// The trial run at load showed that outputs have the right shapes, so these inputs' shapes are why
/// one hasn't.
fn misshapen(model: &Model, position: usize, fault: Fault) -> Error {
    let port = &model.program().outputs[position];
    let inputs = model.program().sources(&[port.value]);
    Error::Run { step: format!("output '{}'", port.name), fault, inputs }
}

/// Marks rows that hold what the manifest forbids.
fn check(binding: &Binding, whole: &Tensor, rows: &[Tensor], parts: &mut [Parts]) {
    let all_finite = || first_not_finite(whole.dtype, &whole.data).is_none();
    if binding.nan == NotFinite::Allow || all_finite() {
        return;
    }
    for (row, parts) in rows.iter().zip(parts) {
        if row.first_not_finite().is_some() && parts.error.is_none() {
            parts.error = Some(Error::NotFinite { output: binding.name.clone() });
        }
    }
}
