//! The worker on a device under the test's control: what runs together, what is refused.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod rows;

use bytes::Bytes;
use rows::{Answers, safetensors_file, submit};
use statehouse_inference::{
    Answer, Config, Device, DeviceKind, Error, Handle, LoadedModel, Model, Program, Request,
    Runner, Tensor, Worker,
};
use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What a row of [`number`], of 4 bytes, is said to need.
const PEAK_BYTES: usize = 100;

/// A device under the test's control: it adds 1 to the first input, gives NaN for -1, panics for
/// -2, and each run waits for the gate.
struct Gated {
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    closed: bool,
    /// Sizes of the batches that reached the gate while it was closed.
    arrived: Vec<usize>,
    takes: Duration,
}

impl Gate {
    fn set(&self, closed: bool) {
        self.state.lock().unwrap().closed = closed;
        self.changed.notify_all();
    }

    fn wait_for_arrivals(&self, count: usize) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.arrived.len() < count).unwrap());
    }
}

impl Device for Gated {
    fn name(&self) -> String {
        "gated".into()
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Cpu
    }

    fn load(&mut self, _: Arc<Program>) -> Result<Box<dyn Runner>, Error> {
        Ok(Box::new(Gated { gate: self.gate.clone() }))
    }

    fn pads_batches(&self) -> bool {
        false
    }
}

impl Runner for Gated {
    fn run(&mut self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        let x = inputs[0].to_f32().unwrap();
        let takes = {
            let mut state = self.gate.state.lock().unwrap();
            if state.closed {
                state.arrived.push(inputs[0].shape[0]);
                self.gate.changed.notify_all();
            }
            let open = self.gate.changed.wait_while(state, |state| state.closed).unwrap();
            open.takes
        };
        let until = Instant::now() + takes;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        assert!(!x.contains(&-2.0), "asked to panic");
        let values: Vec<f32> =
            x.iter().map(|&value| if value == -1.0 { f32::NAN } else { value + 1.0 }).collect();
        Ok(vec![Tensor::from_f32(inputs[0].shape.clone(), &values).unwrap()])
    }

    fn peak_bytes(&self) -> usize {
        PEAK_BYTES
    }
}

/// A model of one number in, one number out, on the gated device.
fn gated(config: Config, manifest: &str) -> (Arc<Gate>, Handle, LoadedModel) {
    let gate = Arc::new(Gate::default());
    let handle = Worker::start(Box::new(Gated { gate: gate.clone() }), config).unwrap();
    let weights = [("fc1.weight", vec![1, 1], vec![1.0]), ("fc1.bias", vec![1], vec![1.0])];
    let manifest = format!(
        "name = \"m\"\nformat = \"safetensors\"\n{manifest}\
         [architecture]\nkind = \"mlp\"\nsizes = [1, 1]\n"
    );
    let files = BTreeMap::from([
        ("model.toml".to_string(), Bytes::from(manifest)),
        ("model.safetensors".to_string(), safetensors_file(&weights)),
    ]);
    let model = handle.load(Model::from_files(&files).unwrap()).unwrap();
    (gate, handle, model)
}

fn number(value: f32) -> (Vec<Tensor>, Vec<Tensor>) {
    (vec![Tensor::from_f32(vec![1], &[value]).unwrap()], vec![])
}

#[test]
fn what_comes_while_the_device_is_busy_runs_together_next() {
    let (gate, handle, model) = gated(Config::default(), "[batch]\nrows_max = 8\n");
    let (sender, answers): (_, Answers) = channel();
    gate.set(true);
    submit(&handle, &model, number(0.0), None, (0, &sender)).unwrap();
    gate.wait_for_arrivals(1);
    for at in 1..=20 {
        submit(&handle, &model, number(at as f32), None, (at, &sender)).unwrap();
    }
    gate.set(false);
    let mut sizes = BTreeMap::new();
    for _ in 0..=20 {
        let (at, answer) = answers.recv().unwrap();
        let answer = answer.unwrap();
        assert_eq!(answer.outputs[0].to_f32().unwrap(), [at as f32 + 1.0]);
        *sizes.entry(answer.batch_rows).or_insert(0) += 1;
    }
    assert_eq!(sizes, BTreeMap::from([(1, 1), (8, 16), (4, 4)]), "1, then 8, 8 and 4");
    handle.shutdown();
}

#[test]
fn batches_have_the_rows_whose_needs_fit() {
    let batch_bytes_max = 3 * PEAK_BYTES + PEAK_BYTES / 2;
    let config = Config { batch_bytes_max, ..Config::default() };
    let (gate, handle, model) = gated(config, "[batch]\nrows_max = 8\n");
    assert_eq!(model.trial_row_needs(), PEAK_BYTES);
    assert_eq!(model.limits().batch_rows_max, 3, "all rows are of one shape");
    let (sender, answers): (_, Answers) = channel();
    gate.set(true);
    submit(&handle, &model, number(0.0), None, (0, &sender)).unwrap();
    gate.wait_for_arrivals(1);
    for at in 1..=6 {
        submit(&handle, &model, number(at as f32), None, (at, &sender)).unwrap();
    }
    gate.set(false);
    let rows = (0..=6).map(|_| answers.recv().unwrap().1.unwrap().batch_rows);
    assert_eq!(rows.collect::<Vec<_>>(), [1, 3, 3, 3, 3, 3, 3]);
    handle.shutdown();
}

#[test]
fn rows_of_different_lengths_share_no_batch() {
    let gate = Arc::new(Gate::default());
    let handle = Worker::start(Box::new(Gated { gate: gate.clone() }), Config::default()).unwrap();
    let onnx = std::fs::read("testdata/rows/four_places.onnx").unwrap();
    let files = BTreeMap::from([
        ("model.toml".to_string(), Bytes::from("name = \"m\"\nformat = \"onnx\"\n")),
        ("model.onnx".to_string(), Bytes::from(onnx)),
    ]);
    let model = handle.load(Model::from_files(&files).unwrap()).unwrap();
    let (sender, answers): (_, Answers) = channel();
    gate.set(true);
    submit(&handle, &model, number(0.0), None, (0, &sender)).unwrap();
    gate.wait_for_arrivals(1);
    let rows = [(1, 1), (2, 2), (3, 1), (4, 2)];
    for (at, length) in rows {
        let row = Tensor::from_f32(vec![length], &vec![at as f32; length]).unwrap();
        submit(&handle, &model, (vec![row], vec![]), None, (at, &sender)).unwrap();
    }
    gate.set(false);
    let mut found: BTreeMap<usize, Result<Answer, Error>> =
        (0..=4).map(|_| answers.recv().unwrap()).collect();
    for (at, length) in rows {
        let answer = found.remove(&at).unwrap().unwrap();
        assert_eq!(answer.batch_rows, 2, "those of its length and no others");
        assert_eq!(answer.outputs[0].to_f32().unwrap(), vec![at as f32 + 1.0; length]);
    }
    handle.shutdown();
}

#[test]
fn the_earliest_deadline_runs_first() {
    let (gate, handle, model) = gated(Config::default(), "[batch]\nrows_max = 1\n");
    let (sender, answers): (_, Answers) = channel();
    gate.set(true);
    submit(&handle, &model, number(0.0), None, (0, &sender)).unwrap();
    gate.wait_for_arrivals(1);
    let now = Instant::now();
    let hours = |hours: u64| Some(now + Duration::from_secs(3600 * hours));
    for (at, deadline) in [(1, hours(3)), (2, hours(1)), (3, None), (4, hours(2))] {
        submit(&handle, &model, number(at as f32), deadline, (at, &sender)).unwrap();
    }
    gate.set(false);
    let order: Vec<usize> = (0..5).map(|_| answers.recv().unwrap().0).collect();
    assert_eq!(order, [0, 3, 2, 4, 1], "no deadline counts as ten seconds");
    handle.shutdown();
}

#[test]
fn a_full_queue_refuses_at_once_and_loses_nothing() {
    let config = Config { queue_rows_max: 4, ..Config::default() };
    let (gate, handle, model) = gated(config, "");
    let (sender, answers): (_, Answers) = channel();
    gate.set(true);
    submit(&handle, &model, number(0.0), None, (0, &sender)).unwrap();
    gate.wait_for_arrivals(1);
    for at in 1..=4 {
        submit(&handle, &model, number(0.0), None, (at, &sender)).unwrap();
    }
    let refused = submit(&handle, &model, number(0.0), None, (5, &sender));
    assert_eq!(refused, Err(Error::Overloaded { queued: 4, queued_max: 4 }));
    gate.set(false);
    for _ in 0..5 {
        assert!(answers.recv().unwrap().1.is_ok());
    }
    assert_eq!(handle.stats()[0].1.overloaded, 1);
    handle.shutdown();
}

#[test]
fn a_deadline_that_the_measured_cost_rules_out_is_refused() {
    let gate = Arc::new(Gate::default());
    gate.state.lock().unwrap().takes = Duration::from_millis(40);
    let handle = Worker::start(Box::new(Gated { gate }), Config::default()).unwrap();
    let files = |manifest: &str| {
        let weights = [("fc1.weight", vec![1, 1], vec![1.0]), ("fc1.bias", vec![1], vec![1.0])];
        BTreeMap::from([
            ("model.toml".to_string(), Bytes::from(manifest.to_string())),
            ("model.safetensors".to_string(), safetensors_file(&weights)),
        ])
    };
    let manifest = "name = \"m\"\nformat = \"safetensors\"\n[batch]\nrows_max = 2\n\
                    [architecture]\nkind = \"mlp\"\nsizes = [1, 1]\n";
    let model = handle.load(Model::from_files(&files(manifest)).unwrap()).unwrap();
    let (sender, answers): (_, Answers) = channel();
    let soon = Some(Instant::now() + Duration::from_millis(10));
    let refused = submit(&handle, &model, number(0.0), soon, (0, &sender)).unwrap_err();
    assert!(matches!(refused, Error::DeadlineUnmeetable { .. }), "{refused}");
    let later = Some(Instant::now() + Duration::from_secs(600));
    submit(&handle, &model, number(0.0), later, (1, &sender)).unwrap();
    assert!(answers.recv().unwrap().1.is_ok());
    assert_eq!(handle.stats()[0].1.late, 1);
    handle.shutdown();
}

#[test]
fn only_the_row_that_is_not_finite_fails() {
    let (gate, handle, model) = gated(Config::default(), "");
    let (sender, answers): (_, Answers) = channel();
    gate.set(true);
    submit(&handle, &model, number(0.0), None, (0, &sender)).unwrap();
    gate.wait_for_arrivals(1);
    for (at, value) in [(1, 5.0), (2, -1.0), (3, 7.0)] {
        submit(&handle, &model, number(value), None, (at, &sender)).unwrap();
    }
    gate.set(false);
    let results: BTreeMap<usize, Result<Answer, Error>> =
        (0..4).map(|_| answers.recv().unwrap()).collect();
    assert_eq!(results[&1].as_ref().unwrap().outputs[0].to_f32().unwrap(), [6.0]);
    assert_eq!(results[&2].as_ref().unwrap_err(), &Error::NotFinite { output: "score".into() });
    assert_eq!(results[&3].as_ref().unwrap().batch_rows, 3);
    handle.shutdown();
}

#[test]
fn a_panic_in_a_run_fails_that_batch_and_nothing_else() {
    let (_, handle, model) = gated(Config::default(), "");
    let (sender, answers): (_, Answers) = channel();
    submit(&handle, &model, number(-2.0), None, (0, &sender)).unwrap();
    let failed = answers.recv().unwrap().1.unwrap_err();
    assert_eq!(failed, Error::Internal { reason: "a run panicked".into() });
    submit(&handle, &model, number(1.0), None, (1, &sender)).unwrap();
    assert_eq!(answers.recv().unwrap().1.unwrap().outputs[0].to_f32().unwrap(), [2.0]);
    let panics = Box::new(|_| panic!("a callback that panics"));
    let (inputs, states) = number(1.0);
    let request = Request { model: model.clone(), inputs, states, deadline: None, done: panics };
    handle.submit(request).unwrap();
    submit(&handle, &model, number(2.0), None, (2, &sender)).unwrap();
    assert!(answers.recv().unwrap().1.is_ok());
    handle.shutdown();
}

#[test]
fn what_waits_is_answered_when_its_model_or_the_worker_goes() {
    let (gate, handle, model) = gated(Config::default(), "");
    let (sender, answers): (_, Answers) = channel();
    gate.set(true);
    submit(&handle, &model, number(0.0), None, (0, &sender)).unwrap();
    gate.wait_for_arrivals(1);
    submit(&handle, &model, number(1.0), None, (1, &sender)).unwrap();
    handle.unload(&model);
    let (at, waiting) = answers.recv().unwrap();
    assert_eq!((at, waiting.unwrap_err()), (1, Error::Gone { what: "the model".into() }));
    let refused = submit(&handle, &model, number(2.0), None, (2, &sender));
    assert_eq!(refused, Err(Error::Gone { what: "the model".into() }));
    gate.set(false);
    assert!(answers.recv().unwrap().1.is_ok(), "what was running is answered");
    handle.shutdown();
    handle.shutdown();
}

#[test]
fn a_model_that_waits_for_company_gets_it() {
    let manifest = "[batch]\nrows_max = 3\nwait_max_us = 1000000\n";
    let (_, handle, model) = gated(Config::default(), manifest);
    let (sender, answers): (_, Answers) = channel();
    for at in 0..3 {
        submit(&handle, &model, number(at as f32), None, (at, &sender)).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(answers.recv().unwrap().1.unwrap().batch_rows, 3);
    }
    assert_eq!(handle.stats()[0].1.reasons.full, 1);
    handle.shutdown();
}
