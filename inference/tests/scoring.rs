//! The worker from outside, on the CPU: rows in, answers out.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod rows;

use bytes::Bytes;
use rows::{Answers, Weight, safetensors_file, submit};
use statehouse_inference::onnx::graph::{Attribute, Axis, Graph, Node, ValueInfo};
use statehouse_inference::onnx::host::HostTensor;
use statehouse_inference::{
    Answer, Config, DType, Error, InputError, LoadedModel, Model, Program, Tensor, Worker, flex,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

const CELL: &str = "models/torch_gru_cell_step_script.onnx";
const CELL_STATE: &str = "[[state]]\nfield = \"h\"\ninput = \"h_in\"\noutput = \"h_out\"\n";

fn model(manifest: &str, file: &str) -> Model {
    let path = Path::new("testdata").join(file);
    let manifest = format!("name = \"m\"\nformat = \"onnx\"\n{manifest}");
    Model::from_files(&BTreeMap::from([
        ("model.toml".to_string(), Bytes::from(manifest)),
        ("model.onnx".to_string(), Bytes::from(std::fs::read(path).unwrap())),
    ]))
    .unwrap()
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
fn a_row_that_is_not_as_declared_is_refused_before_it_is_queued() {
    let handle = Worker::start(flex().unwrap(), Config::default()).unwrap();
    let model = handle.load(model(CELL_STATE, CELL)).unwrap();
    let floats = |width| Tensor::zeros(DType::F32, vec![width]).unwrap();
    let doubles = |width| Tensor::zeros(DType::F64, vec![width]).unwrap();
    let (sender, _answers): (_, Answers) = channel();
    let refusal = |x: Tensor, h: Tensor| {
        let refused = submit(&handle, &model, (vec![x], vec![h]), None, (0, &sender));
        refused.unwrap_err().to_string()
    };
    assert_eq!(refusal(floats(7), floats(16)), "input 'x': expected shape [6], got [7]");
    assert_eq!(refusal(doubles(6), floats(16)), "input 'x': expected f32, got f64");
    // A state goes by the name of its input.
    assert_eq!(refusal(floats(6), floats(17)), "input 'h_in': expected shape [16], got [17]");
    assert_eq!(refusal(floats(6), doubles(16)), "input 'h_in': expected f32, got f64");
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
