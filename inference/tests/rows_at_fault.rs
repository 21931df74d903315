//! Rows that a model has no result for are refused by their input, and those beside them answered:
//! an index past its table by whatever way it came, a division by zero, an empty sequence.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod rows;

use bytes::Bytes;
use rows::{Answers, submit};
use statehouse_inference::onnx::graph::{Axis, Graph};
use statehouse_inference::onnx::plan::Port;
use statehouse_inference::{
    Answer, Config, DType, Error, Handle, InputError, LoadedModel, Model, Program, Tensor, Worker,
    flex,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

/// Rows of the table, and numbers in each.
const TABLE: i64 = 10;
const WIDTH: i64 = 2;

fn load(handle: &Handle, name: &str, manifest: &str) -> Result<LoadedModel, Error> {
    let path = Path::new("testdata/rows").join(format!("{name}.onnx"));
    let manifest = format!("name = \"m\"\nformat = \"onnx\"\n{manifest}");
    handle.load(Model::from_files(&BTreeMap::from([
        ("model.toml".to_string(), Bytes::from(manifest)),
        ("model.onnx".to_string(), Bytes::from(std::fs::read(path).unwrap())),
    ]))?)
}

fn start() -> Handle {
    Worker::start(flex().unwrap(), Config::default()).unwrap()
}

/// The answers to rows that wait together, by number.
fn score(handle: &Handle, model: &LoadedModel, rows: Vec<Row>) -> Vec<Result<Answer, Error>> {
    let (sender, answers): (_, Answers) = channel();
    let count = rows.len();
    let mut found: Vec<Option<Result<Answer, Error>>> = vec![None; count];
    for (number, row) in rows.into_iter().enumerate() {
        submit(handle, model, row, None, (number, &sender)).unwrap();
    }
    for _ in 0..count {
        let (number, answer) = answers.recv().unwrap();
        found[number] = Some(answer);
    }
    found.into_iter().map(Option::unwrap).collect()
}

type Row = (Vec<Tensor>, Vec<Tensor>);

fn ids(values: &[i64]) -> Tensor {
    Tensor::from_i64(vec![values.len()], values).unwrap()
}

fn id(value: i64) -> Tensor {
    Tensor::from_i64(vec![], &[value]).unwrap()
}

/// The table's row of an id that counts from the end if it is negative.
fn table_row(id: i64) -> Vec<f64> {
    let row = if id < 0 { id + TABLE } else { id };
    (0..WIDTH).map(|at| (row * WIDTH + at) as f64).collect()
}

fn named(error: &Error) -> &str {
    let Error::Input(input) = error else { panic!("expected an input's fault, got {error}") };
    input.name().unwrap()
}

#[test]
fn an_index_past_its_table_is_refused_whatever_way_it_came() {
    let handle = start();
    let wide = [0, 4, 9, 10, 1000, -1, -10, -11, i64::MAX, i64::MIN, 7];
    for (name, shift, from_end) in [
        ("id_selected", 0, true),
        ("id_sliced", 0, true),
        ("id_split", 0, true),
        ("id_cast", 0, true),
        ("id_shifted", 5, true),
        // As onnxruntime: columns are not counted from the end.
        ("id_extracted", 0, false),
    ] {
        let model = load(&handle, name, "").unwrap();
        let sent: Vec<i64> = wide.iter().map(|id: &i64| id.wrapping_sub(shift)).collect();
        let rows = sent.iter().map(|&id| (vec![ids(&[0, 0, id])], vec![])).collect();
        for (at, answer) in score(&handle, &model, rows).into_iter().enumerate() {
            let id = sent[at].wrapping_add(shift);
            let min = if from_end { -TABLE } else { 0 };
            if (min..TABLE).contains(&id) {
                let output = answer.unwrap_or_else(|error| panic!("{name}, {id}: {error}"));
                assert_eq!(output.outputs[0].to_f64(), table_row(id), "{name}, id {id}");
                continue;
            }
            let error = answer.expect_err(&format!("{name}: id {id} was answered"));
            assert_eq!(named(&error), "cat", "{error}");
            let Error::Input(InputError::Index { value, min: least, max, .. }) = error else {
                panic!("{name}, id {id}: {error}");
            };
            assert_eq!((value, least, max), (id, min, TABLE - 1), "{name}");
        }
    }
    handle.shutdown();
}

#[test]
fn an_index_that_lies_in_the_state_is_refused_by_the_states_input() {
    let handle = start();
    let manifest = "[[state]]\nfield = \"last\"\ninput = \"last\"\noutput = \"last_out\"\n";
    let model = load(&handle, "id_from_state", manifest).unwrap();
    let rows = [3, 10, -1].map(|last| (vec![id(5)], vec![id(last)])).to_vec();
    let answers = score(&handle, &model, rows);
    assert_eq!(answers[0].as_ref().unwrap().outputs[0].to_f64(), table_row(3));
    assert_eq!(answers[2].as_ref().unwrap().outputs[0].to_f64(), table_row(-1));
    let error = answers[1].as_ref().unwrap_err();
    assert_eq!(named(error), "last");
    assert!(error.to_string().contains("index 10 is out of range, expected -10..=9"), "{error}");
    handle.shutdown();
}

/// One worker thread is busy with the first row while the others gather, so bad ones share a batch
/// with good ones; of these each must get its own answer.
#[test]
fn rows_beside_a_refused_one_are_answered() {
    let handle = start();
    let model = load(&handle, "id_selected", "").unwrap();
    for bad in [&[13][..], &[0, 63], &[1, 2, 3, 40, 41]] {
        let mut sent: Vec<i64> = (0..64).map(|at| at % TABLE).collect();
        for &at in bad {
            sent[at] = 99;
        }
        let rows = sent.iter().map(|&id| (vec![ids(&[0, 0, id])], vec![])).collect();
        for (at, answer) in score(&handle, &model, rows).into_iter().enumerate() {
            match bad.contains(&at) {
                true => assert_eq!(named(&answer.unwrap_err()), "cat"),
                false => assert_eq!(answer.unwrap().outputs[0].to_f64(), table_row(sent[at])),
            }
        }
    }
    handle.shutdown();
}

#[test]
fn a_division_by_zero_is_that_rows_fault() {
    let handle = start();
    let model = load(&handle, "hundred_by", "").unwrap();
    let rows = [[3, 7], [0, 7], [-1, i64::MIN]].map(|row| (vec![ids(&row)], vec![])).to_vec();
    let answers = score(&handle, &model, rows);
    assert_eq!(answers[0].as_ref().unwrap().outputs[0].to_f64(), [33.0, 14.0]);
    assert_eq!(answers[2].as_ref().unwrap().outputs[0].to_f64(), [-100.0, 0.0]);
    let error = answers[1].as_ref().unwrap_err();
    assert_eq!(named(error), "x");
    assert!(error.to_string().contains("division by zero"), "{error}");
    handle.shutdown();
}

#[test]
fn an_empty_sequence_is_answered_or_the_callers_fault() {
    let handle = start();
    let full = || (vec![ids(&[1, 3])], vec![]);
    let empty = || (vec![ids(&[])], vec![]);
    for (name, refused) in [
        ("bag_sum", None),
        ("bag_mean", Some("output 'y' is not finite")),
        ("bag_max", Some("output 'y' is not finite")),
    ] {
        let model = load(&handle, name, "").unwrap();
        let answers = score(&handle, &model, vec![full(), empty(), full()]);
        assert!(answers[0].is_ok() && answers[2].is_ok(), "{name}");
        match (refused, &answers[1]) {
            (None, Ok(answer)) => assert_eq!(answer.outputs[0].to_f64(), [0.0, 0.0]),
            (Some(part), Err(error)) => assert!(error.to_string().contains(part), "{error}"),
            (_, other) => panic!("{name}: {other:?}"),
        }
    }
    let model = load(&handle, "best_of", "").unwrap();
    let none = Tensor::zeros(DType::F32, vec![0]).unwrap();
    let error = score(&handle, &model, vec![(vec![none], vec![])]).remove(0).unwrap_err();
    assert_eq!(named(&error), "x");
    assert!(
        error.to_string().starts_with("input 'x' of shape [0]: node 'best' (ArgMax)"),
        "{error}"
    );
    handle.shutdown();
}

/// A quotient that no number of its type can hold traps the processor, and is no result either.
#[test]
fn a_division_that_overflows_is_the_rows_fault() {
    let onnx = Bytes::from(std::fs::read("testdata/ops/div_int64.onnx").unwrap());
    let program = Arc::new(Program::plan(Graph::parse(onnx).unwrap()).unwrap());
    let filled = |port: &Port, number: i64| {
        let axes = port.shape.as_ref().unwrap().iter();
        let shape = axes.map(|axis| if let Axis::Fixed(length) = axis { *length } else { 1 });
        let shape: Vec<usize> = shape.collect();
        let numbers = vec![number; shape.iter().product()];
        Tensor::from_i64(shape, &numbers).unwrap()
    };
    let run = |dividend, divisor| {
        let inputs = [(0, dividend), (1, divisor)];
        let inputs = inputs.map(|(at, number)| filled(&program.inputs[at], number)).to_vec();
        flex().unwrap().load(program.clone()).unwrap().run(inputs)
    };
    let quotient = run(i64::MIN + 1, -1).unwrap().remove(0);
    assert_eq!(quotient.data[..8], i64::MAX.to_le_bytes());
    let error = run(i64::MIN, -1).unwrap_err();
    assert!(matches!(&error, Error::Run { fault, .. } if fault.is_of_one_row()), "{error}");
    assert!(error.to_string().contains("integer division overflows"), "{error}");
}

#[test]
fn lengths_that_do_not_fit_are_the_callers_fault() {
    let handle = start();
    let floats = |length| Tensor::zeros(DType::F32, vec![length]).unwrap();
    let two = load(&handle, "two_lengths", "").unwrap();
    let row = |left, right| (vec![floats(left), floats(right)], vec![]);
    let answers = score(&handle, &two, vec![row(3, 3), row(2, 3)]);
    assert!(answers[0].is_ok());
    let error = answers[1].as_ref().unwrap_err();
    assert_eq!(named(error), "a, b");
    assert!(error.to_string().contains("do not broadcast"), "{error}");

    let places = load(&handle, "four_places", "").unwrap();
    let row = |length| (vec![floats(length)], vec![]);
    let answers = score(&handle, &places, vec![row(4), row(5)]);
    assert_eq!(answers[0].as_ref().unwrap().outputs[0].to_f64(), [3.0; 4]);
    let error = answers[1].as_ref().unwrap_err();
    assert_eq!(named(error), "x");
    assert!(error.to_string().contains("index 4 is out of range"), "{error}");
    handle.shutdown();
}

#[test]
fn made_up_rows_that_do_not_suit_a_model_are_no_reason_to_refuse_it() {
    let handle = start();
    // Of zero no logarithm is finite; a difference needs two.
    let log = load(&handle, "logarithm", "").unwrap();
    let warned = log.warnings().join("\n");
    assert!(warned.contains("output 'y' is not finite for a made-up row"), "{warned}");
    let whole = load(&handle, "hundred_by", "").unwrap();
    assert!(whole.warnings().join("\n").contains("division by zero"), "{:?}", whole.warnings());
    let step = load(&handle, "largest_step", "").unwrap();
    let row = Tensor::from_f32(vec![3], &[1.0, 2.0, 5.0]).unwrap();
    let answer = score(&handle, &step, vec![(vec![row], vec![])]).remove(0).unwrap();
    assert_eq!(answer.outputs[0].to_f64(), [3.0]);
    // Real rows are judged as ever.
    let zero = Tensor::zeros(DType::F32, vec![2]).unwrap();
    let error = score(&handle, &log, vec![(vec![zero], vec![])]).remove(0).unwrap_err();
    assert_eq!(error, Error::NotFinite { output: "y".into() });
    handle.shutdown();
}

#[test]
fn a_model_is_tried_with_what_its_manifest_says() {
    let handle = start();
    let trial = |text: &str| format!("[[input]]\nname = \"x\"\ntrial = {text}\n");
    for good in ["1", "1.5", "[1, 4.5]", "{ min = 0.5, max = 2 }", "{ value = 3, shape = [2] }"] {
        let model = load(&handle, "logarithm", &trial(good)).unwrap();
        assert!(model.warnings().is_empty(), "{good}: {:?}", model.warnings());
    }
    let refusal =
        |name: &str, text: &str| load(&handle, name, &trial(text)).unwrap_err().to_string();
    assert!(refusal("logarithm", "0").contains("is not finite for the manifest's trial"));
    assert!(refusal("hundred_by", "0").contains("division by zero"));
    assert!(refusal("logarithm", "[1, 2, 3]").contains("expected a row of shape [2], got [3]"));
    assert!(refusal("hundred_by", "1.5").contains("expected whole numbers of i64, got 1.5"));
    assert!(refusal("logarithm", "{ mim = 1 }").contains("unknown key 'mim'"));
    assert!(refusal("logarithm", "{ min = 2, max = 1 }").contains("min up to max"));
    load(&handle, "largest_step", &trial("{ value = 1, shape = [2] }")).unwrap();
    let one = refusal("largest_step", "{ value = 1, shape = [1] }");
    assert!(one.contains("output 'y'"), "{one}");
    handle.shutdown();
}
