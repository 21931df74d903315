//! Axes of any length, in graphs written here. A state that grows by a row per step: rows of equal
//! lengths share batches, others run apart. Lengths that don't fit are told by the caller's input.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod rows;

use bytes::Bytes;
use prost::Message;
use rows::{Answers, submit};
use statehouse_inference::{
    Answer, Config, Error, Handle, InputError, LoadedModel, Model, Request, Tensor, Worker, flex,
};
use std::collections::BTreeMap;
use std::sync::mpsc::channel;

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opsets: Vec<Opset>,
}

#[derive(Clone, PartialEq, Message)]
struct Opset {
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
    #[prost(message, repeated, tag = "11")]
    inputs: Vec<Port>,
    #[prost(message, repeated, tag = "12")]
    outputs: Vec<Port>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    inputs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    outputs: Vec<String>,
    #[prost(string, tag = "4")]
    op: String,
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "3")]
    int: i64,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    kind: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Port {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Message)]
struct Kind {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorKind>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorKind {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    axes: Vec<Axis>,
}

#[derive(Clone, PartialEq, Message)]
struct Axis {
    #[prost(int64, optional, tag = "1")]
    length: Option<i64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
}

fn port(name: &str, axes: &[&str]) -> Port {
    let axes = axes.iter().map(|axis| match axis.parse() {
        Ok(length) => Axis { length: Some(length), name: None },
        Err(_) => Axis { length: None, name: Some((*axis).to_string()) },
    });
    let shape = Shape { axes: axes.collect() };
    let tensor = TensorKind { dtype: 1, shape: Some(shape) };
    Port { name: name.into(), kind: Some(Kind { tensor: Some(tensor) }) }
}

fn node(op: &str, inputs: &[&str], output: &str, attributes: Vec<Attribute>) -> Node {
    let inputs = inputs.iter().map(|name| (*name).to_string()).collect();
    Node { inputs, outputs: vec![output.into()], op: op.into(), attributes }
}

fn int(name: &str, int: i64) -> Attribute {
    Attribute { name: name.into(), int, ints: Vec::new(), kind: 2 }
}

const SEEN: &str = "[[state]]\nfield = \"seen\"\ninput = \"seen\"\noutput = \"seen_out\"\n";

/// A model of a graph, whose manifest says this besides.
fn model(graph: Graph, manifest: &str) -> Model {
    let file = File { graph: Some(graph), opsets: vec![Opset { version: 11 }] };
    let manifest = format!("name = \"m\"\nformat = \"onnx\"\n{manifest}");
    Model::from_files(&BTreeMap::from([
        ("model.toml".to_string(), Bytes::from(manifest)),
        ("model.onnx".to_string(), Bytes::from(file.encode_to_vec())),
    ]))
    .unwrap()
}

/// `seen_out = concat(seen, x)`, `sum = sum(seen_out)`.
fn growing() -> Model {
    let axes = Attribute { name: "axes".into(), int: 0, ints: vec![1], kind: 7 };
    let graph = Graph {
        nodes: vec![
            node("Concat", &["seen", "x"], "seen_out", vec![int("axis", 1)]),
            node("ReduceSum", &["seen_out"], "sum", vec![axes, int("keepdims", 0)]),
        ],
        inputs: vec![port("x", &["batch", "1"]), port("seen", &["batch", "length"])],
        outputs: vec![port("sum", &["batch"]), port("seen_out", &["batch", "longer"])],
    };
    model(graph, &format!("{SEEN}shape = [0]\n"))
}

fn floats(values: &[f32]) -> Tensor {
    Tensor::from_f32(vec![values.len()], values).unwrap()
}

/// Scores one row.
fn score(
    handle: &Handle,
    model: &LoadedModel,
    x: Tensor,
    states: Vec<Tensor>,
) -> Result<Answer, Error> {
    let (sender, answers): (_, Answers) = channel();
    submit(handle, model, (vec![x], states), None, (0, &sender)).unwrap();
    answers.recv().unwrap().1
}

/// The name and the shape of the input that a row was refused for.
fn blamed(refused: Result<Answer, Error>) -> (String, Vec<usize>) {
    match refused.unwrap_err() {
        Error::Input(InputError::Unfit { name, shape, .. }) => (name, shape),
        other => panic!("expected an input's fault, got {other}"),
    }
}

#[test]
fn an_axis_that_may_have_any_length_is_tried_with_several() {
    // Two numbers have a result, and no others do.
    let parts = Attribute { name: "split".into(), int: 0, ints: vec![1, 1], kind: 7 };
    let mut split = node("Split", &["x"], "left", vec![int("axis", 1), parts]);
    split.outputs.push("right".into());
    let graph = Graph {
        nodes: vec![split, node("Add", &["left", "right"], "sum", vec![])],
        inputs: vec![port("x", &["batch", "time"])],
        outputs: vec![port("sum", &["batch", "1"])],
    };
    let handle = Worker::start(flex().unwrap(), Config::default()).unwrap();
    let model = handle.load(model(graph, "")).unwrap();
    let answer = score(&handle, &model, floats(&[1.0, 2.0]), vec![]).unwrap();
    assert_eq!(answer.outputs[0].to_f32().unwrap(), [3.0]);
    handle.shutdown();
}

#[test]
fn of_an_input_and_a_state_that_do_not_fit_the_caller_is_told_the_input() {
    let graph = Graph {
        nodes: vec![node("Add", &["x", "seen"], "seen_out", vec![])],
        inputs: vec![port("x", &["batch", "time"]), port("seen", &["batch", "length"])],
        outputs: vec![port("seen_out", &["batch", "longer"])],
    };
    let handle = Worker::start(flex().unwrap(), Config::default()).unwrap();
    let model = handle.load(model(graph, &format!("{SEEN}shape = [1]\n"))).unwrap();
    let refused = score(&handle, &model, floats(&[1.0; 3]), vec![floats(&[1.0; 2])]);
    assert_eq!(blamed(refused), ("x".to_string(), vec![3]));
    handle.shutdown();
}

#[test]
fn an_input_that_makes_a_state_of_another_shape_is_the_callers_fault() {
    let graph = Graph {
        nodes: vec![node("Identity", &["x"], "seen_out", vec![])],
        inputs: vec![port("x", &["batch", "time"]), port("seen", &["batch", "2"])],
        outputs: vec![port("seen_out", &["batch", "time"])],
    };
    let handle = Worker::start(flex().unwrap(), Config::default()).unwrap();
    let model = handle.load(model(graph, SEEN)).unwrap();
    let seen = || vec![model.states()[0].initial.clone()];
    let answer = score(&handle, &model, floats(&[1.0, 2.0]), seen()).unwrap();
    assert_eq!(answer.states[0].to_f32().unwrap(), [1.0, 2.0]);
    let refused = score(&handle, &model, floats(&[1.0; 3]), seen());
    assert_eq!(blamed(refused), ("x".to_string(), vec![3]));
    handle.shutdown();
}

#[test]
fn a_state_may_grow_from_nothing() {
    let handle = Worker::start(flex().unwrap(), Config::default()).unwrap();
    let model = handle.load(growing()).unwrap();
    assert_eq!(model.states()[0].row_shape, [None]);
    assert_eq!(model.states()[0].initial.shape, [0]);
    let (sender, answers) = channel();
    let mut states = vec![model.states()[0].initial.clone(); 4];
    // Each of four entities is one step longer than the one before it, and all are scored at once.
    for round in 0..5 {
        for (entity, state) in states.iter().enumerate() {
            if round < entity {
                continue;
            }
            let sender = sender.clone();
            let x = Tensor::from_f32(vec![1], &[1.0 + entity as f32]).unwrap();
            let request = Request {
                model: model.clone(),
                inputs: model.check_inputs([("x", x)]).unwrap(),
                states: vec![state.clone()],
                deadline: None,
                done: Box::new(move |answer| sender.send((entity, answer)).unwrap()),
            };
            handle.submit(request).unwrap();
        }
        for _ in 0..=round.min(3) {
            let (entity, answer) = answers.recv().unwrap();
            let answer: Answer = answer.unwrap();
            let steps = round - entity + 1;
            let sum = (1.0 + entity as f32) * steps as f32;
            assert_eq!(answer.states[0].shape, [steps]);
            assert_eq!(answer.outputs[0].to_f32().unwrap(), [sum]);
            states[entity] = answer.states[0].clone();
        }
    }
    handle.shutdown();
}
