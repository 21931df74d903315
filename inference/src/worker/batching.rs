//! One batch: rows to graph inputs, a run, graph outputs to answers.

use super::{Answer, Done};
use crate::batch::{gather, padded, scatter};
use crate::device::Runner;
use crate::error::Error;
use crate::manifest::NotFinite;
use crate::model::{Binding, Model, Place, shape_fits};
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
}

/// One row's outputs and new states while they are collected.
#[derive(Clone, Default)]
struct Parts {
    outputs: Vec<Tensor>,
    states: Vec<Option<Tensor>>,
    error: Option<Error>,
}

/// Runs rows together. Every row gets an answer.
pub fn run(model: &Model, runner: &mut dyn Runner, rows: Vec<Row>, pads: bool) -> Ran {
    let started = Instant::now();
    let count = rows.len();
    let width = padded(count, model.limits().batch_rows_max, pads);
    let mut panicked = false;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let outputs = runner.run(inputs(model, &rows, width))?;
        split(model, &outputs, count, width)
    }));
    let outcome = outcome.unwrap_or_else(|_| {
        panicked = true;
        Err(Error::internal("a run panicked"))
    });
    let took = started.elapsed();
    let queued: Vec<Duration> =
        rows.iter().map(|row| started.saturating_duration_since(row.arrived)).collect();
    let parts = match outcome {
        Ok(parts) => parts,
        Err(error) => vec![Parts { error: Some(error), ..Parts::default() }; count],
    };
    let answers = rows.into_iter().zip(parts).zip(&queued).map(|((row, parts), &queued)| {
        let result = match parts.error {
            Some(error) => Err(error),
            None => Ok(Answer {
                outputs: parts.outputs,
                states: parts.states.into_iter().flatten().collect(),
                batch_rows: count as u32,
                queued,
                ran: took,
            }),
        };
        (row.done, result)
    });
    Ran { answers: answers.collect(), queued, took, panicked }
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
            outputs: Vec::with_capacity(output_count),
            states: vec![None; state_count],
            error: None,
        };
        count
    ];
    for (binding, output) in model.graph_outputs().iter().zip(outputs) {
        let rows = scatter(output, binding.batch_axis, count, width).ok_or_else(|| {
            let (name, axis) = (&binding.name, binding.batch_axis);
            let shape = &output.shape;
            Error::internal(format!("output '{name}': axis {axis} of {shape:?} is not the batch"))
        })?;
        check(model, binding, output, &rows, &mut parts)?;
        for (row, parts) in rows.into_iter().zip(&mut parts) {
            match binding.place {
                Place::Request(_) => parts.outputs.push(row),
                Place::State(position) => parts.states[position] = Some(row),
            }
        }
    }
    Ok(parts)
}

/// Marks rows that hold what the manifest forbids; a state of another shape fails them all.
fn check(
    model: &Model,
    binding: &Binding,
    whole: &Tensor,
    rows: &[Tensor],
    parts: &mut [Parts],
) -> Result<(), Error> {
    if let (Place::State(position), Some(row)) = (binding.place, rows.first()) {
        let spec = &model.states()[position];
        if !shape_fits(&spec.row_shape, &row.shape) {
            let (name, shape) = (&binding.name, &row.shape);
            return Err(Error::internal(format!("state '{name}' came out as {shape:?}")));
        }
    }
    let all_finite = || first_not_finite(whole.dtype, &whole.data).is_none();
    if binding.nan == NotFinite::Allow || all_finite() {
        return Ok(());
    }
    for (row, parts) in rows.iter().zip(parts) {
        if row.first_not_finite().is_some() && parts.error.is_none() {
            parts.error = Some(Error::NotFinite { output: binding.name.clone() });
        }
    }
    Ok(())
}
