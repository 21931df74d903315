//! The worker's loop: controls first, then the most urgent batch, and between batches one step of a
//! load.

use super::batching::{self, Ran};
use super::loading::{Loading, Step};
use super::{Control, Entry, LoadedModel, Running, Shared, State, gone};
use crate::batch::{Cut, Rules, rows_within};
use crate::device::{Device, Runner};
use crate::error::Error;
use crate::model::Model;
use crate::queue::{LaneKey, ModelId, Taken};
use crate::stats::Stats;
use parking_lot::MutexGuard;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A model on this thread.
struct Ready {
    model: Model,
    runner: Box<dyn Runner>,
}

/// What only this thread owns.
struct Thread {
    shared: Arc<Shared>,
    device: Box<dyn Device>,
    ready: HashMap<ModelId, Ready>,
    loading: VecDeque<Loading>,
}

/// What to do next.
enum Next {
    Close,
    Control(Control),
    Batch(LaneKey, Taken),
    Load,
}

/// Runs until the worker is told to close.
pub fn run(shared: Arc<Shared>, device: Box<dyn Device>) {
    let ready = HashMap::new();
    let mut thread = Thread { shared, device, ready, loading: VecDeque::new() };
    if catch_unwind(AssertUnwindSafe(|| thread.serve())).is_err() {
        tracing::error!("the inference thread panicked and takes no more work");
        thread.shared.state.lock().closing = true;
    }
    thread.close();
}

impl Thread {
    fn serve(&mut self) {
        let mut batches_since_load = 0;
        loop {
            // A load gives way to one batch after each of its steps, and no longer.
            let load_is_due = !self.loading.is_empty() && batches_since_load > 0;
            match self.next(load_is_due) {
                Next::Close => break,
                Next::Control(control) => self.control(control),
                Next::Batch(key, taken) => {
                    batches_since_load += 1;
                    self.batch(&key, taken);
                }
                Next::Load => {
                    batches_since_load = 0;
                    self.load_step();
                }
            }
        }
    }

    fn next(&self, load_is_due: bool) -> Next {
        let mut state = self.shared.state.lock();
        loop {
            if state.closing {
                return Next::Close;
            }
            if let Some(control) = state.controls.pop_front() {
                return Next::Control(control);
            }
            if load_is_due {
                return Next::Load;
            }
            let until = match self.take_batch(&mut state) {
                Ok((key, taken)) => return Next::Batch(key, taken),
                Err(until) => until,
            };
            if !self.loading.is_empty() {
                return Next::Load;
            }
            state.asleep = true;
            match until {
                Some(until) => drop(self.shared.wake.wait_until(&mut state, until)),
                None => self.shared.wake.wait(&mut state),
            }
            state.asleep = false;
        }
    }

    /// The most urgent batch, or until when there is none (`None`: until something comes).
    fn take_batch(
        &self,
        state: &mut MutexGuard<'_, State>,
    ) -> Result<(LaneKey, Taken), Option<Instant>> {
        let now = Instant::now();
        let mut wait: Vec<(LaneKey, Instant)> = Vec::new();
        loop {
            let waits = |key: &LaneKey| wait.iter().any(|(waiting, _)| waiting == key);
            let Some(key) = state.queue.most_urgent(|key| !waits(key)).cloned() else {
                return Err(wait.into_iter().map(|(_, until)| until).min());
            };
            let Some(entry) = state.models.get(&key.model) else {
                // Unloading removes a model and its rows together.
                unreachable!("rows wait only for loaded models");
            };
            let limits = entry.model.limits();
            let row_needs = entry.model.row_needs(state.queue.row_bytes(&key));
            let bytes_max = self.shared.config.batch_bytes_max;
            let rows_max = rows_within(bytes_max, row_needs, limits.batch_rows_max);
            let rules = Rules { rows_max, wait_max: limits.batch_wait_max };
            match state.queue.decide(&key, now, rules, &entry.cost) {
                Cut::Wait(until) => wait.push((key, until)),
                Cut::Run { dropped, rows, reason } => {
                    let estimate = entry.cost.estimate(rows);
                    let taken = state.queue.take(&key, dropped, rows, reason);
                    if !taken.rows.is_empty() {
                        state.running = Some(Running { since: now, estimate });
                    }
                    return Ok((key, taken));
                }
            }
        }
    }

    fn batch(&mut self, key: &LaneKey, taken: Taken) {
        let late = taken.dropped.len() as u64;
        let now = Instant::now();
        for row in taken.dropped {
            let left = row.deadline.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
            let needed = self.at_least_one(key.model);
            answer(|| row.refuse(Error::DeadlineUnmeetable { needed, left }));
        }
        let mut outcome = None;
        if let Some(ready) = self.ready.get_mut(&key.model) {
            if !taken.rows.is_empty() {
                let pads = self.device.pads_batches();
                outcome =
                    Some(batching::run(&ready.model, ready.runner.as_mut(), taken.rows, pads));
            }
        } else {
            for row in taken.rows {
                answer(|| row.refuse(gone("the model")));
            }
        }
        let (answers, panicked) = self.record(key.model, late, taken.reason, outcome);
        for (done, result) in answers {
            answer(|| done(result));
        }
        if panicked {
            self.reload(key.model);
        }
    }

    fn at_least_one(&self, model: ModelId) -> Duration {
        let state = self.shared.state.lock();
        state.models.get(&model).map_or(Duration::ZERO, |entry| entry.cost.at_least(1))
    }

    /// Counts a batch, and frees the device for the estimate of [`super::Handle::submit`].
    fn record(
        &self,
        model: ModelId,
        late: u64,
        reason: crate::batch::Reason,
        outcome: Option<Ran>,
    ) -> (Vec<batching::Answered>, bool) {
        let mut state = self.shared.state.lock();
        state.running = None;
        let mut unloaded = Stats::default();
        let (stats, cost) = match state.models.get_mut(&model) {
            Some(entry) => (&mut entry.stats, Some(&mut entry.cost)),
            None => (&mut unloaded, None),
        };
        stats.late += late;
        let Some(ran) = outcome else { return (Vec::new(), false) };
        stats.batch(ran.answers.len(), ran.took, reason);
        for queued in &ran.queued {
            stats.waited(*queued);
        }
        let failed = ran.answers.iter().filter(|(_, result)| result.is_err()).count() as u64;
        stats.failed += failed;
        stats.rows += ran.answers.len() as u64 - failed;
        if let Some(cost) = cost.filter(|_| ran.at_once && !ran.panicked) {
            cost.record(ran.answers.len(), ran.took);
        }
        (ran.answers, ran.panicked)
    }

    /// A runner that panicked may be half changed: it is replaced.
    fn reload(&mut self, model: ModelId) {
        let Some(ready) = self.ready.get_mut(&model) else { return };
        let program = ready.model.program().clone();
        match catch_unwind(AssertUnwindSafe(|| self.device.load(program))) {
            Ok(Ok(runner)) => ready.runner = runner,
            Ok(Err(error)) => {
                tracing::error!(model = ready.model.name(), %error, "reloading failed");
            }
            Err(_) => tracing::error!(model = ready.model.name(), "reloading panicked"),
        }
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Load { model, reply } => {
                let bytes_max = self.shared.config.batch_bytes_max;
                self.loading.push_back(Loading::new(model, reply, bytes_max));
            }
            Control::Unload(id) => drop(self.ready.remove(&id)),
        }
    }

    fn load_step(&mut self) {
        let Some(mut loading) = self.loading.pop_front() else { return };
        let result = match loading.step(self.device.as_mut()) {
            Ok(Step::More) => return self.loading.push_front(loading),
            Ok(Step::Done { model, runner, cost }) => {
                let mut state = self.shared.state.lock();
                state.models_pending -= 1;
                state.models_made += 1;
                let id = state.models_made;
                let entry = Entry { model: model.clone(), cost: *cost, stats: Stats::default() };
                state.models.insert(id, entry);
                drop(state);
                for warning in model.warnings() {
                    tracing::warn!(model = model.name(), warning, "model tried");
                }
                self.ready.insert(id, Ready { model: model.clone(), runner });
                Ok(LoadedModel { id, model })
            }
            Err(error) => {
                self.shared.state.lock().models_pending -= 1;
                Err(error)
            }
        };
        loading.reply(result);
    }

    fn close(mut self) {
        let (rows, controls) = {
            let mut state = self.shared.state.lock();
            (state.queue.clear_all(), std::mem::take(&mut state.controls))
        };
        for row in rows {
            answer(|| row.refuse(gone("the worker")));
        }
        for control in controls {
            self.control(control);
        }
        for loading in self.loading {
            loading.reply(Err(gone("the worker")));
        }
    }
}

/// Calls a callback; a panic in it must not end the worker.
fn answer(callback: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(callback)).is_err() {
        tracing::error!("an answer's callback panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Reason;
    use crate::cost::Cost;
    use crate::device::flex;
    use crate::queue::Row;
    use crate::tensor::Tensor;
    use crate::worker::Config;
    use bytes::Bytes;
    use parking_lot::{Condvar, Mutex};
    use std::collections::BTreeMap;

    const MODEL: ModelId = 1;

    /// A thread that isn't started, with a model that divides a hundred by each of two numbers.
    fn with_a_model() -> Thread {
        let onnx = std::fs::read("testdata/rows/hundred_by.onnx").unwrap();
        let files = BTreeMap::from([
            ("model.toml".to_string(), Bytes::from("name = \"m\"\nformat = \"onnx\"\n")),
            ("model.onnx".to_string(), Bytes::from(onnx)),
        ]);
        let model = Model::from_files(&files).unwrap();
        let mut device = flex().unwrap();
        let runner = device.load(model.program().clone()).unwrap();
        let entry = Entry { model: model.clone(), cost: Cost::default(), stats: Stats::default() };
        let state = State { models: HashMap::from([(MODEL, entry)]), ..State::default() };
        let shared = Arc::new(Shared {
            device_name: device.name(),
            config: Config::default(),
            state: Mutex::new(state),
            wake: Condvar::new(),
            thread: Mutex::new(None),
        });
        let ready = HashMap::from([(MODEL, Ready { model, runner })]);
        Thread { shared, device, ready, loading: VecDeque::new() }
    }

    fn row(numbers: [i64; 2]) -> Row {
        Row {
            inputs: vec![Tensor::from_i64(vec![2], &numbers).unwrap()],
            states: vec![],
            deadline: None,
            arrived: Instant::now(),
            done: Box::new(|_| ()),
        }
    }

    #[test]
    fn a_batch_that_was_halved_says_nothing_of_what_its_rows_cost_together() {
        let mut thread = with_a_model();
        let mut cost_after = |rows: [[i64; 2]; 2]| {
            let rows = rows.map(row).into();
            let key = LaneKey { model: MODEL, free_axes: vec![] };
            thread.batch(&key, Taken { dropped: vec![], rows, reason: Reason::Free });
            thread.shared.state.lock().models[&MODEL].cost.estimate(2)
        };
        assert_eq!(cost_after([[3, 7], [0, 7]]), Duration::ZERO, "nothing was measured");
        assert!(cost_after([[3, 7], [1, 7]]) > Duration::ZERO);
    }
}
