//! What can't be a model is refused with a typed error that names the fault, and never with a
//! panic.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_inference::onnx::graph::{Axis, Graph};
use statehouse_inference::onnx::plan::Port;
use statehouse_inference::{Config, Error, Model, Program, Tensor, Worker, flex};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FLIPS: usize = 10_000;

fn testdata(path: &str) -> PathBuf {
    Path::new("testdata").join(path)
}

fn read(path: &str) -> Bytes {
    Bytes::from(std::fs::read(testdata(path)).unwrap())
}

fn model(manifest: &str, onnx: Bytes) -> Result<Model, Error> {
    let manifest = format!("name = \"m\"\nformat = \"onnx\"\n{manifest}");
    Model::from_files(&BTreeMap::from([
        ("model.toml".to_string(), Bytes::from(manifest)),
        ("model.onnx".to_string(), onnx),
    ]))
}

/// Reads and, if that works, loads.
fn load(manifest: &str, onnx: Bytes) -> Result<(), Error> {
    let handle = Worker::start(flex()?, Config::default())?;
    let result = model(manifest, onnx).and_then(|model| handle.load(model)).map(|_| ());
    handle.shutdown();
    result
}

/// Plans a graph and runs it on zeros of its declared shapes.
fn run_graph(path: &Path) -> Result<(), Error> {
    let graph = Graph::parse(Bytes::from(std::fs::read(path).unwrap()))?;
    let program = Arc::new(Program::plan(graph)?);
    let zeros = |port: &Port| {
        let axes = port.shape.as_ref().unwrap().iter();
        let shape = axes.map(|axis| if let Axis::Fixed(length) = axis { *length } else { 1 });
        Tensor::zeros(port.dtype, shape.collect()).unwrap()
    };
    let inputs = program.inputs.iter().map(zeros).collect();
    flex()?.load(program)?.run(inputs).map(|_| ())
}

const STATE: &str = "[[state]]\nfield = \"h\"\ninput = \"h_in\"\noutput = \"h_out\"\n";

const TRIAL: &str = "[[input]]\nname = \"x\"\ntrial = 1\n";

/// Every file of `testdata/bad` without numbers beside it, and what its refusal must say.
const EXPECTED: &[(&str, &str)] = &[
    ("attribute_of_wrong_type", "attribute"),
    ("axis_out_of_range", "axis"),
    ("cycle", "cycle"),
    ("dropout_training", "drop"),
    ("empty", "expected an opset import"),
    ("external_data", "external data is refused"),
    ("gru_short_lengths", "batch axis is fixed to 3"),
    ("index_out_of_range", "index"),
    ("made_twice", "defined twice"),
    ("missing_argument", "expected an input 1"),
    ("nan_output", "self-test failed at output 'y'"),
    ("nan_state", "self-test failed at output 'h_out'"),
    ("no_graph", "expected a graph"),
    (
        "opset_and_operator",
        "unsupported operator Einsum (domain '', opset 10) in node 'similarity'; also: \
         expected opset 11 to 21, got 10",
    ),
    ("opset_10", "expected opset 11 to 21, got 10"),
    ("opset_99", "expected opset 11 to 21, got 99"),
    (
        "several_unlisted",
        "unsupported operators Hardmax (domain '', opset 17) in 2 nodes, the first is 'hard', \
         Det (domain '', opset 17) in node 'det'; also: node 'soft' (Softmax): expected an \
         integer in attribute 'axis'",
    ),
    ("shapes_disagree", "do not multiply"),
    ("string_input", "string tensors are not supported"),
    ("subgraph", "unsupported operator If"),
    ("tensor_dims_overflow", "constant 'w'"),
    ("tensor_negative_dims", "constant 'w'"),
    ("tensor_of_unknown_type", "constant 'w'"),
    ("tensor_too_short", "constant 'w'"),
    ("tree_loop", "a tree has a loop"),
    ("truncated", "truncated or not an ONNX file"),
    ("undefined_output", "is never computed"),
    ("undefined_value", "is never computed"),
    (
        "unlisted_domain",
        "unsupported operator FusedGemm (domain 'com.microsoft', opset 1) in node 'fused'",
    ),
    ("unlisted_operator", "unsupported operator Einsum (domain '', opset 17) in node 'similarity'"),
    ("vast_constant", "over the limit"),
    ("zipmap", "zipmap=False"),
];

#[test]
#[allow(clippy::too_many_lines, reason = "one table of all files")]
fn bad_files_are_refused_by_name() {
    let expected: BTreeMap<&str, &str> = EXPECTED.iter().copied().collect();
    let mut seen = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(testdata("bad")).unwrap() {
        let path = entry.unwrap().path();
        let is_graph = path.extension().is_some_and(|extension| extension == "onnx");
        if !is_graph || path.with_extension("safetensors").exists() {
            continue;
        }
        let case = path.file_stem().unwrap().to_string_lossy().to_string();
        // What is tried with made-up numbers need not be finite; with the manifest's it must.
        let manifest = match case.as_str() {
            "nan_state" => format!("{STATE}{TRIAL}"),
            "nan_output" => TRIAL.to_string(),
            _ => String::new(),
        };
        if case == "gru_short_lengths" {
            // Its batch axis is fixed, so it is no model; the run itself must refuse it too.
            let message = run_graph(&path).unwrap_err().to_string();
            assert!(message.contains("every sequence to be 3 long"), "{message}");
        }
        let message = match load(&manifest, Bytes::from(std::fs::read(&path).unwrap())) {
            Ok(()) => "loaded".to_string(),
            Err(error) => error.to_string(),
        };
        match expected.get(case.as_str()) {
            Some(part) if message.contains(part) => seen += 1,
            part => wrong.push(format!("{case}: expected {part:?}, got: {message}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, expected.len(), "every expectation has its file");
}

#[test]
fn a_fixed_batch_of_one_runs_row_by_row_and_says_so() {
    let model = model("", read("bad/fixed_batch_one.onnx")).unwrap();
    assert_eq!(model.limits().batch_rows_max, 1);
    assert!(model.describe().contains("row by row"), "{}", model.describe());
}

#[test]
fn a_manifest_must_agree_with_its_graph() {
    let onnx = || read("models/torch_gru_cell_step_script.onnx");
    let refusal = |manifest: &str| model(manifest, onnx()).unwrap_err().to_string();
    let wrong_input = STATE.replace("h_in", "h_inn");
    assert_eq!(
        refusal(&wrong_input),
        "model.toml: the graph has no input 'h_inn', nearest is 'h_in'"
    );
    let wrong_length = format!("{STATE}initial = [1.0, 2.0]\n");
    assert!(refusal(&wrong_length).contains("expected 16 numbers, got 2"));
    let wrong_word = format!("{STATE}initial = \"ones\"\n");
    assert!(refusal(&wrong_word).contains("expected \"zeros\", a number or a list, got \"ones\""));
    let missing = Model::from_files(&BTreeMap::new()).unwrap_err();
    assert_eq!(missing.to_string(), "model.toml: expected a file model.toml");
}

#[test]
fn a_state_is_an_input_and_an_output_of_one_type() {
    let refusal = |state: &str, file: &str| model(state, read(file)).unwrap_err().to_string();
    let wrong_output = STATE.replace("h_out", "h_outt");
    assert_eq!(
        refusal(&wrong_output, "models/torch_gru_cell_step_script.onnx"),
        "model.toml: the graph has no output 'h_outt', nearest is 'h_out'"
    );
    let two_types = STATE.replace("h_in", "last").replace("h_out", "score");
    assert_eq!(
        refusal(&two_types, "rows/since_last_i64.onnx"),
        "model.toml: state 0 'h': input 'last' and output 'score' have different types"
    );
}

/// The two layers of a GRU step have the batch on axis 1: on axis 0 rows would be mixed up.
#[test]
fn a_wrong_batch_axis_is_found_at_load() {
    let right = format!("{STATE}batch_axis = 1\n");
    load(&right, read("models/torch_gru_step_script.onnx")).unwrap();
    let error = load(STATE, read("models/torch_gru_step_script.onnx")).unwrap_err();
    assert!(error.to_string().contains("batch"), "{error}");
}

#[test]
fn every_truncation_is_refused_without_a_panic() {
    let whole = read("models/torch_gru_step_script.onnx");
    for length in 0..whole.len() {
        let cut = whole.slice(..length);
        let outcome = catch_unwind(AssertUnwindSafe(|| model("", cut).map(|_| ())));
        let outcome = outcome.unwrap_or_else(|_| panic!("panicked at {length} bytes"));
        assert!(outcome.is_err(), "{length} of {} bytes were taken for a model", whole.len());
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_122);
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let files = [
        read("models/torch_gru_step_script.onnx"),
        read("models/torch_attention_dynamo.onnx"),
        read("models/sklearn_random_forest_three.onnx"),
    ];
    let mut refused = 0;
    for flip in 0..FLIPS {
        let mut bytes = files[flip % files.len()].to_vec();
        for _ in 0..random.random_range(1..=4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| model("", Bytes::from(bytes)).map(|_| ())));
        let outcome = outcome.unwrap_or_else(|_| panic!("flip {flip} of seed {seed} panicked"));
        refused += usize::from(outcome.is_err());
    }
    println!("{refused} of {FLIPS} refused");
    assert!(refused > FLIPS / 20, "too few flips reached anything that matters");
}
