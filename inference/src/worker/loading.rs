//! Loading a model in steps small enough to let batches of other models run between them: load and
//! self-test, then one warm run per batch size.

use super::LoadedModel;
use super::self_test::{Tested, self_test};
use crate::cost::Cost;
use crate::device::{Device, Runner};
use crate::error::Error;
use crate::model::Model;
use crate::tensor::Tensor;
use crate::trial;
use crossbeam_channel::Sender;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// A model on its way.
pub struct Loading {
    model: Model,
    reply: Sender<Result<LoadedModel, Error>>,
    bytes_max: usize,
    loaded: Option<Loaded>,
    cost: Cost,
    /// Batch sizes still to warm, smallest last.
    sizes: Vec<usize>,
}

/// What passed its self-test.
struct Loaded {
    model: Model,
    runner: Box<dyn Runner>,
    /// What is run to warm a batch size.
    row: Vec<Tensor>,
}

/// What a step came to.
pub enum Step {
    /// There are more.
    More,
    /// The model is ready.
    Done { model: Model, runner: Box<dyn Runner>, cost: Box<Cost> },
}

impl Loading {
    /// A model to load, who waits for it, and the bytes that a batch may have.
    pub fn new(
        model: Model,
        reply: Sender<Result<LoadedModel, Error>>,
        bytes_max: usize,
    ) -> Loading {
        Loading { model, reply, bytes_max, loaded: None, cost: Cost::default(), sizes: Vec::new() }
    }

    /// Ends the wait. The caller may have gone; then the model is simply not used.
    pub fn reply(self, result: Result<LoadedModel, Error>) {
        if self.reply.send(result).is_err() {
            tracing::warn!(model = self.model.name(), "nobody waited for a load");
        }
    }

    /// Does the next part. A panic in the backend is an error of the load.
    pub fn step(&mut self, device: &mut dyn Device) -> Result<Step, Error> {
        let step = catch_unwind(AssertUnwindSafe(|| self.try_step(device)));
        let failed = |reason| Error::SelfTest { output: String::new(), reason };
        match step {
            Ok(Err(error @ Error::Run { .. })) => Err(failed(error.to_string())),
            Ok(result) => result,
            Err(_) => Err(failed("the device panicked on a trial input".into())),
        }
    }

    fn try_step(&mut self, device: &mut dyn Device) -> Result<Step, Error> {
        let Some(loaded) = &mut self.loaded else {
            let mut runner = device.load(self.model.program().clone())?;
            let model = self.model.on_device(device.kind());
            let Tested { model, row, rows_max } =
                self_test(model, runner.as_mut(), self.bytes_max)?;
            self.sizes = sizes(rows_max);
            self.loaded = Some(Loaded { model, runner, row });
            return Ok(Step::More);
        };
        if let Some(size) = self.sizes.pop() {
            warm(size, loaded, &mut self.cost)?;
            return Ok(Step::More);
        }
        let Some(Loaded { model, runner, .. }) = self.loaded.take() else {
            return Err(Error::internal("a load went on after its end"));
        };
        Ok(Step::Done { model, runner, cost: Box::new(std::mem::take(&mut self.cost)) })
    }
}

/// Runs a batch size until it is warm: compiled, tuned, its shapes remembered; then measures it.
fn warm(size: usize, loaded: &mut Loaded, cost: &mut Cost) -> Result<(), Error> {
    let rows = vec![&loaded.row; size];
    loaded.runner.run(trial::batch(&loaded.model, &rows))?;
    for _ in 0..2 {
        let started = Instant::now();
        loaded.runner.run(trial::batch(&loaded.model, &rows))?;
        cost.record(size, started.elapsed());
    }
    Ok(())
}

/// Powers of two up to the limit and the limit itself, largest first.
fn sizes(rows_max: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> =
        (0..).map(|power| 1_usize << power).take_while(|&size| size < rows_max).collect();
    sizes.push(rows_max);
    sizes.reverse();
    sizes
}
