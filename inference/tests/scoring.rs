//! The worker from outside: rows in, answers out, on the CPU and on a device made for the test.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

use bytes::Bytes;
use statehouse_inference::onnx::graph::{Attribute, Axis, Graph, Node, ValueInfo};
use statehouse_inference::onnx::host::HostTensor;
use statehouse_inference::{
    Answer, Config, DType, Device, DeviceKind, Error, Handle, InputError, LoadedModel, Model,
    Program, Request, Runner, Tensor, Worker, flex,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const CELL: &str = "models/torch_gru_cell_step_script.onnx";
const CELL_STATE: &str = "[[state]]\nfield = \"h\"\ninput = \"h_in\"\noutput = \"h_out\"\n";

fn model(manifest: &str, file: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file);
    let manifest = format!("name = \"m\"\nformat = \"onnx\"\n{manifest}");
    Model::from_files(&BTreeMap::from([
        ("model.toml".to_string(), Bytes::from(manifest)),
        ("model.onnx".to_string(), Bytes::from(std::fs::read(path).unwrap())),
    ]))
    .unwrap()
}

type Numbered = (usize, Result<Answer, Error>);
type Answers = Receiver<Numbered>;

/// Submits one row; its answer comes under `number`.
fn submit(
    handle: &Handle,
    model: &LoadedModel,
    row: (Vec<Tensor>, Vec<Tensor>),
    deadline: Option<Instant>,
    answer: (usize, &Sender<Numbered>),
) -> Result<(), Error> {
    let (number, sender) = (answer.0, answer.1.clone());
    handle.submit(Request {
        model: model.clone(),
        inputs: row.0,
        states: row.1,
        deadline,
        done: Box::new(move |result| sender.send((number, result)).unwrap()),
    })
}

/// A row of the GRU cell that depends on `number`.
fn cell_row(model: &LoadedModel, number: usize) -> (Vec<Tensor>, Vec<Tensor>) {
    let fill = |shape: &[Option<usize>], offset: usize| {
        let count: usize = shape.iter().map(|axis| axis.unwrap()).product();
        let values: Vec<f32> =
            (0..count).map(|at| ((at + offset + number * 7) % 23) as f32 / 11.5 - 1.0).collect();
        Tensor::from_f32(shape.iter().map(|axis| axis.unwrap()).collect(), &values).unwrap()
    };
    let inputs = model.inputs().iter().map(|spec| fill(&spec.row_shape, 0)).collect();
    let states = model.states().iter().map(|spec| fill(&spec.row_shape, 5)).collect();
    (inputs, states)
}

fn difference(one: &Tensor, other: &Tensor) -> f64 {
    assert_eq!((one.dtype, &one.shape), (other.dtype, &other.shape));
    let pairs = one.to_f64().into_iter().zip(other.to_f64());
    pairs.map(|(one, other)| (one - other).abs()).fold(0.0, f64::max)
}

#[test]
fn rows_scored_together_are_as_scored_alone() {
    let handle = Worker::start(flex().unwrap(), Config::default()).unwrap();
    let model = handle.load(model(CELL_STATE, CELL)).unwrap();
    let (sender, answers): (_, Answers) = channel();
    let alone: Vec<Answer> = (0..100)
        .map(|number| {
            submit(&handle, &model, cell_row(&model, number), None, (number, &sender)).unwrap();
            answers.recv().unwrap().1.unwrap()
        })
        .collect();
    for number in 0..100 {
        submit(&handle, &model, cell_row(&model, number), None, (number, &sender)).unwrap();
    }
    for _ in 0..100 {
        let (number, answer) = answers.recv().unwrap();
        let answer = answer.unwrap();
        assert!(answer.batch_rows <= 64);
        for (one, other) in answer.outputs.iter().zip(&alone[number].outputs) {
            assert!(difference(one, other) < 1e-6);
        }
        assert!(difference(&answer.states[0], &alone[number].states[0]) < 1e-6);
    }
    let (_, stats) = handle.stats().remove(0);
    assert_eq!((stats.rows, stats.failed, stats.late, stats.queued), (200, 0, 0, 0));
    assert_eq!(stats.batch_rows.sum(), 200);
    assert_eq!(stats.queued_us.count(), 200);
    handle.shutdown();
    let refused = submit(&handle, &model, cell_row(&model, 0), None, (0, &sender));
    assert_eq!(refused, Err(Error::Gone { what: "the worker".into() }));
}

/// Fifty chained steps are one run of the graph's GRU over the sequence, and PyTorch's formula.
#[test]
fn chained_steps_are_one_sequence() {
    let handle = Worker::start(flex().unwrap(), Config::default()).unwrap();
    let weights = gru_weights(3, 8);
    let manifest = "name = \"m\"\nformat = \"safetensors\"\n[architecture]\nkind = \"gru\"\n\
                    inputs = 3\nhidden = 8\n\
                    [[state]]\nfield = \"h\"\ninput = \"h_in\"\noutput = \"h_out\"\n";
    let files = BTreeMap::from([
        ("model.toml".to_string(), Bytes::from(manifest)),
        ("model.safetensors".to_string(), safetensors_file(&weights)),
    ]);
    let model = handle.load(Model::from_files(&files).unwrap()).unwrap();
    let (sender, answers): (_, Answers) = channel();
    let mut state = vec![model.states()[0].initial.clone()];
    let mut reference = [0.0_f64; 8];
    let inputs: Vec<[f32; 3]> = (0..50_usize)
        .map(|moment| [0, 1, 2].map(|at| ((moment * 5 + at * 3) % 17) as f32 / 8.5 - 1.0))
        .collect();
    let sequence = gru_over_sequence(&weights, &inputs);
    for (moment, x) in inputs.iter().enumerate() {
        let input = model.check_inputs([("x", Tensor::from_f32(vec![3], x).unwrap())]).unwrap();
        submit(&handle, &model, (input, state), None, (moment, &sender)).unwrap();
        state = answers.recv().unwrap().1.unwrap().states;
        reference = pytorch_gru_cell(&weights, x, &reference);
        let state = state[0].to_f64();
        for unit in 0..8 {
            let (have, want) = (state[unit], reference[unit]);
            assert!((have - want).abs() < 1e-5, "moment {moment}: {have} instead of {want}");
            let want = sequence[moment * 8 + unit];
            assert!((have - want).abs() < 1e-6, "moment {moment}: {have}, in sequence {want}");
        }
    }
    handle.shutdown();
}

/// Every state of one ONNX `GRU` over all inputs: `[moment, unit]`.
fn gru_over_sequence(weights: &[Weight], inputs: &[[f32; 3]]) -> Vec<f64> {
    // ONNX wants update, reset, new; PyTorch keeps reset, update, new.
    let reordered = |which: usize| -> Vec<f32> {
        let values = &weights[which].2;
        let gate = values.len() / 3;
        [&values[gate..2 * gate], &values[..gate], &values[2 * gate..]].concat()
    };
    let port = |name: &str, shape: &[usize]| ValueInfo {
        name: name.into(),
        dtype: DType::F32,
        shape: Some(shape.iter().map(|&length| Axis::Fixed(length)).collect()),
    };
    let constants = [
        ("w", HostTensor::floats(vec![1, 24, 3], reordered(0))),
        ("r", HostTensor::floats(vec![1, 24, 8], reordered(1))),
        ("b", HostTensor::floats(vec![1, 48], [reordered(2), reordered(3)].concat())),
    ];
    let graph = Graph {
        nodes: vec![Node {
            op: "GRU".into(),
            opset: 17,
            inputs: ["x", "w", "r", "b"].map(|name| Some(name.to_string())).to_vec(),
            outputs: vec![Some("all".into())],
            attributes: BTreeMap::from([("linear_before_reset".into(), Attribute::Int(1))]),
            ..Node::default()
        }],
        inputs: vec![port("x", &[inputs.len(), 1, 3])],
        outputs: vec![port("all", &[inputs.len(), 1, 1, 8])],
        constants: constants.map(|(name, value)| (name.to_string(), value)).into(),
    };
    let mut runner = flex().unwrap().load(Arc::new(Program::plan(graph).unwrap())).unwrap();
    let x = Tensor::from_f32(vec![inputs.len(), 1, 3], inputs.as_flattened()).unwrap();
    runner.run(vec![x]).unwrap()[0].to_f64()
}

/// Name, shape, values.
type Weight = (&'static str, Vec<usize>, Vec<f32>);

/// Weights under PyTorch's names.
fn gru_weights(inputs: usize, hidden: usize) -> Vec<Weight> {
    let shapes = [
        ("gru.weight_ih", vec![3 * hidden, inputs]),
        ("gru.weight_hh", vec![3 * hidden, hidden]),
        ("gru.bias_ih", vec![3 * hidden]),
        ("gru.bias_hh", vec![3 * hidden]),
    ];
    let mut seed = 1_u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    shapes
        .into_iter()
        .map(|(name, shape)| {
            let values = (0..shape.iter().product()).map(|_| next()).collect();
            (name, shape, values)
        })
        .collect()
}

fn safetensors_file(weights: &[Weight]) -> Bytes {
    use safetensors::tensor::{Dtype, TensorView, serialize};
    let raw: Vec<Vec<u8>> = weights
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = weights.iter().zip(&raw).map(|((name, shape, _), raw)| {
        (name.to_string(), TensorView::new(Dtype::F32, shape.clone(), raw).unwrap())
    });
    Bytes::from(serialize(views, None).unwrap())
}

/// `torch.nn.GRUCell` from its documentation, in f64.
fn pytorch_gru_cell(weights: &[Weight], x: &[f32], h: &[f64; 8]) -> [f64; 8] {
    let dot = |which: usize, row: usize, with: &[f64]| -> f64 {
        let columns = with.len();
        let own = &weights[which].2[row * columns..(row + 1) * columns];
        own.iter().zip(with).map(|(w, v)| f64::from(*w) * v).sum::<f64>()
            + f64::from(weights[which + 2].2[row])
    };
    let x: Vec<f64> = x.iter().map(|value| f64::from(*value)).collect();
    let sigmoid = |value: f64| 1.0 / (1.0 + (-value).exp());
    std::array::from_fn(|unit| {
        let reset = sigmoid(dot(0, unit, &x) + dot(1, unit, h));
        let update = sigmoid(dot(0, 8 + unit, &x) + dot(1, 8 + unit, h));
        let new = (dot(0, 16 + unit, &x) + reset * dot(1, 16 + unit, h)).tanh();
        (1.0 - update) * new + update * h[unit]
    })
}

#[test]
fn wrong_inputs_say_what_was_expected() {
    let handle = Worker::start(flex().unwrap(), Config::default()).unwrap();
    let model = handle.load(model(CELL_STATE, CELL)).unwrap();
    let spec = &model.inputs()[0];
    let (name, width) = (spec.name.as_str(), spec.row_shape[0].unwrap());
    let good = || Tensor::zeros(DType::F32, vec![width]).unwrap();
    let refusal = |given: Vec<(&str, Tensor)>| model.check_inputs(given).unwrap_err().to_string();
    let typo = format!("{name}x");
    let unknown = refusal(vec![(&typo, good())]);
    assert_eq!(unknown, format!("unknown input '{typo}', nearest is '{name}'"));
    let missing = refusal(vec![]);
    assert_eq!(missing, format!("missing input '{name}': expected f32 [{width}]"));
    let dtype = refusal(vec![(name, Tensor::zeros(DType::F64, vec![width]).unwrap())]);
    assert_eq!(dtype, format!("input '{name}': expected f32, got f64"));
    let shape = refusal(vec![(name, Tensor::zeros(DType::F32, vec![2, 1]).unwrap())]);
    assert_eq!(shape, format!("input '{name}': expected shape [{width}], got [2, 1]"));
    let mut values = vec![0.0; width];
    values[1] = f32::NAN;
    let nan = refusal(vec![(name, Tensor::from_f32(vec![width], &values).unwrap())]);
    assert_eq!(nan, format!("input '{name}': element 1 is not finite"));
    assert!(refusal(vec![(name, good()), (name, good())]).contains("given twice"));
    let (sender, _answers): (_, Answers) = channel();
    let refused = submit(&handle, &model, (vec![good()], vec![]), None, (0, &sender));
    let expected = InputError::Count { what: "states", expected: 1, actual: 0 };
    assert_eq!(refused, Err(Error::Input(expected)));
    handle.shutdown();
}

#[test]
fn an_index_outside_its_table_is_refused_before_it_is_queued() {
    let model = model("", "models/torch_attention_script.onnx");
    let spec = model.inputs().iter().find(|spec| spec.index_limit.is_some()).unwrap();
    let limit = spec.index_limit.unwrap() as i64;
    let shape: Vec<usize> = spec.row_shape.iter().map(|axis| axis.unwrap_or(1)).collect();
    let count = shape.iter().product();
    let tensor = Tensor::from_i64(shape, &vec![limit; count]).unwrap();
    let error = model.check_inputs([(spec.name.as_str(), tensor)]).unwrap_err().to_string();
    assert!(error.contains(&format!("index {limit} is out of range")), "{error}");
}

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
