//! Loading a model in steps small enough to let batches of other models run between them: load and
//! self-test, then one warm run per batch size.

use super::LoadedModel;
use crate::batch::scatter;
use crate::cost::Cost;
use crate::device::{Device, Runner};
use crate::error::Error;
use crate::manifest::NotFinite;
use crate::model::Model;
use crate::tensor::{DType, Tensor};
use crate::trial::{self, Random};
use crossbeam_channel::Sender;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// How far a row's result may differ when it runs beside others: devices choose kernels by batch
/// size, and some round as coarsely as TF32.
const NEIGHBOUR_TOLERANCE: f64 = 1e-2;
/// Seed of the trial inputs.
const SEED: u64 = 1;

/// A model on its way.
pub struct Loading {
    model: Model,
    reply: Sender<Result<LoadedModel, Error>>,
    loaded: Option<(Model, Box<dyn Runner>)>,
    cost: Cost,
    /// Batch sizes still to warm, largest last.
    sizes: Vec<usize>,
}

/// What a step came to.
pub enum Step {
    /// There are more.
    More,
    /// The model is ready.
    Done { model: Model, runner: Box<dyn Runner>, cost: Box<Cost> },
}

impl Loading {
    /// A model to load, and who waits for it.
    pub fn new(model: Model, reply: Sender<Result<LoadedModel, Error>>) -> Loading {
        Loading { model, reply, loaded: None, cost: Cost::default(), sizes: Vec::new() }
    }

    /// Ends the wait. The caller may have gone; then the model is simply not used.
    pub fn reply(self, result: Result<LoadedModel, Error>) {
        if self.reply.send(result).is_err() {
            tracing::warn!(model = self.model.name(), "nobody waited for a load");
        }
    }

    /// Does the next part. A panic in the backend is an error of the load.
    pub fn step(&mut self, device: &mut dyn Device) -> Result<Step, Error> {
        catch_unwind(AssertUnwindSafe(|| self.try_step(device))).unwrap_or_else(|_| {
            let reason = "the device panicked on a trial input".to_string();
            Err(Error::SelfTest { output: String::new(), reason })
        })
    }

    fn try_step(&mut self, device: &mut dyn Device) -> Result<Step, Error> {
        if self.loaded.is_none() {
            let mut runner = device.load(self.model.program().clone())?;
            let seen = self_test(&self.model, runner.as_mut())?;
            let model = self.model.on_device(device.kind(), &seen);
            self.sizes = sizes(model.limits().batch_rows_max);
            self.loaded = Some((model, runner));
            return Ok(Step::More);
        }
        let size = self.sizes.pop();
        match (size, self.loaded.take()) {
            (Some(size), Some((model, mut runner))) => {
                self.warm(size, &model, runner.as_mut())?;
                self.loaded = Some((model, runner));
                Ok(Step::More)
            }
            (None, Some((model, runner))) => {
                Ok(Step::Done { model, runner, cost: Box::new(std::mem::take(&mut self.cost)) })
            }
            (_, None) => Err(Error::internal("a load went on after its end")),
        }
    }

    /// Runs a batch size until it is warm: compiled, tuned, its shapes remembered; then measures
    /// it.
    fn warm(&mut self, size: usize, model: &Model, runner: &mut dyn Runner) -> Result<(), Error> {
        let row = trial::zeros(model)?;
        let rows = vec![&row; size];
        runner.run(trial::batch(model, &rows))?;
        for _ in 0..2 {
            let started = Instant::now();
            runner.run(trial::batch(model, &rows))?;
            self.cost.record(size, started.elapsed());
        }
        Ok(())
    }
}

/// Powers of two up to the limit and the limit itself, largest first.
fn sizes(rows_max: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> =
        (0..).map(|power| 1_usize << power).take_while(|&size| size < rows_max).collect();
    sizes.push(rows_max);
    sizes.reverse();
    sizes
}

/// Runs zeros and random rows from the initial state, alone and together. Results must be finite,
/// have a batch axis where the manifest says, and not depend on the rows beside them. Returns each
/// graph output's row shape.
fn self_test(model: &Model, runner: &mut dyn Runner) -> Result<Vec<Vec<usize>>, Error> {
    let mut random = Random::new(SEED);
    let rows = [
        trial::zeros(model)?,
        trial::random(model, &mut random)?,
        trial::random(model, &mut random)?,
    ];
    let mut alone = Vec::new();
    for row in &rows {
        let outputs = run_trial(model, runner, &[row])?;
        check_finite(model, &outputs)?;
        alone.push(outputs);
    }
    if model.limits().batch_rows_max > 1 {
        let together = run_trial(model, runner, &rows.iter().collect::<Vec<_>>())?;
        check_independent(model, &alone, &together)?;
    }
    Ok(alone[0].iter().map(|rows| rows[0].shape.clone()).collect())
}

/// The rows of each graph output.
fn run_trial(
    model: &Model,
    runner: &mut dyn Runner,
    rows: &[&Vec<Tensor>],
) -> Result<Vec<Vec<Tensor>>, Error> {
    let failed = |output: &str, reason: String| Error::SelfTest { output: output.into(), reason };
    let outputs = runner.run(trial::batch(model, rows)).map_err(|error| match error {
        Error::Internal { reason } => failed("", reason),
        other => other,
    })?;
    let bindings = model.graph_outputs().iter().zip(outputs);
    bindings
        .map(|(binding, output)| {
            scatter(&output, binding.batch_axis, rows.len(), rows.len()).ok_or_else(|| {
                let (axis, count, shape) = (binding.batch_axis, rows.len(), &output.shape);
                failed(
                    &binding.name,
                    format!("axis {axis} of {shape:?} is not the batch of {count}: set batch_axis"),
                )
            })
        })
        .collect()
}

fn check_finite(model: &Model, outputs: &[Vec<Tensor>]) -> Result<(), Error> {
    for (binding, rows) in model.graph_outputs().iter().zip(outputs) {
        let bad = rows.iter().find_map(Tensor::first_not_finite);
        if let (NotFinite::Reject, Some(element)) = (binding.nan, bad) {
            let reason = format!(
                "element {element} is not finite for a trial input (nan = \"allow\" accepts that)"
            );
            return Err(Error::SelfTest { output: binding.name.clone(), reason });
        }
    }
    Ok(())
}

fn check_independent(
    model: &Model,
    alone: &[Vec<Vec<Tensor>>],
    together: &[Vec<Tensor>],
) -> Result<(), Error> {
    for (position, binding) in model.graph_outputs().iter().enumerate() {
        for (row, batched) in together[position].iter().enumerate() {
            let single = &alone[row][position][0];
            // Whole numbers may be the winner of a tie, which rounding decides.
            if !DType::is_float(single.dtype) || close(single, batched) {
                continue;
            }
            let reason = "a row's result depends on the rows beside it: is batch_axis right?";
            return Err(Error::SelfTest { output: binding.name.clone(), reason: reason.into() });
        }
    }
    Ok(())
}

fn close(one: &Tensor, other: &Tensor) -> bool {
    one.shape == other.shape
        && one.to_f64().into_iter().zip(other.to_f64()).all(|(one, other)| {
            let scale = one.abs().max(1.0);
            (one - other).abs() <= NEIGHBOUR_TOLERANCE * scale
                || (!one.is_finite() && !other.is_finite())
        })
}
