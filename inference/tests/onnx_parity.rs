//! Every fixture that onnxruntime computed must come out the same here.
//!
//! `testdata/ops` and `testdata/models` hold `<case>.onnx` with the tensors `in.<name>` and
//! `out.<name>` in `<case>.safetensors`; a second batch size lies in `<case>.batch1.safetensors`.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use statehouse_inference::onnx::graph::Graph;
use statehouse_inference::onnx::op::{OPERATORS, OPERATORS_ML};
use statehouse_inference::{DType, Program, Tensor, flex};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest difference allowed: absolute up to 1, relative beyond.
const TOLERANCE: f64 = 1e-5;
const OPERATOR_CASES_MIN: usize = 500;
const MODEL_CASES_MIN: usize = 78;

#[test]
fn every_operator_matches_onnxruntime() {
    let ran = check("ops", OPERATOR_CASES_MIN);
    let supported: BTreeSet<&str> = OPERATORS.iter().chain(OPERATORS_ML).copied().collect();
    let missing: Vec<_> = supported.iter().filter(|op| !ran.contains(**op)).collect();
    assert!(missing.is_empty(), "no case covers {missing:?}");
}

#[test]
fn every_exported_model_matches_onnxruntime() {
    check("models", MODEL_CASES_MIN);
}

#[test]
fn odd_but_right_files_match_onnxruntime() {
    check("bad", 3);
}

/// Runs every case of a folder, reports all failures at once, returns the operators seen.
fn check(folder: &str, cases_min: usize) -> BTreeSet<String> {
    let mut operators = BTreeSet::new();
    let mut failures = Vec::new();
    let mut cases = 0;
    for numbers in files(folder, "safetensors") {
        let case = numbers.file_stem().unwrap().to_string_lossy().to_string();
        let graph_file =
            numbers.with_file_name(format!("{}.onnx", case.trim_end_matches(".batch1")));
        cases += 1;
        if let Err(reason) = run_case(&graph_file, &numbers, &mut operators) {
            failures.push(format!("{case}: {reason}"));
        }
    }
    println!("{folder}: {cases} cases, {} failed", failures.len());
    assert!(failures.is_empty(), "{} of {cases} failed:\n{}", failures.len(), failures.join("\n"));
    assert!(cases >= cases_min, "expected at least {cases_min} cases in {folder}, found {cases}");
    operators
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let folder = Path::new("testdata").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

fn run_case(graph: &Path, numbers: &Path, operators: &mut BTreeSet<String>) -> Result<(), String> {
    let graph = Graph::parse(Bytes::from(std::fs::read(graph).unwrap())).map_err(show)?;
    operators.extend(graph.nodes.iter().map(|node| node.op.clone()));
    let program = Arc::new(Program::plan(graph).map_err(show)?);
    let tensors = read(numbers);
    let input = |name: &str| tensors[&format!("in.{name}")].clone();
    let inputs: Vec<Tensor> = program.inputs.iter().map(|port| input(&port.name)).collect();
    let mut runner = flex().unwrap().load(program.clone()).map_err(show)?;
    let first = runner.run(inputs.clone()).map_err(show)?;
    // The second run takes shapes from memory; it must not differ.
    let second = runner.run(inputs).map_err(show)?;
    for ((port, first), second) in program.outputs.iter().zip(first).zip(second) {
        if first
            .to_f64()
            .iter()
            .map(|v| v.to_bits())
            .ne(second.to_f64().iter().map(|v| v.to_bits()))
        {
            return Err(format!("output '{}' differs in the second run", port.name));
        }
        compare(&first, &tensors[&format!("out.{}", port.name)])
            .map_err(|reason| format!("output '{}': {reason}", port.name))?;
    }
    Ok(())
}

fn show(error: statehouse_inference::Error) -> String {
    error.to_string()
}

fn compare(actual: &Tensor, expected: &Tensor) -> Result<(), String> {
    if (actual.dtype, &actual.shape) != (expected.dtype, &expected.shape) {
        let (have, want) = ((actual.dtype, &actual.shape), (expected.dtype, &expected.shape));
        return Err(format!("expected {want:?}, got {have:?}"));
    }
    let tolerance = if actual.dtype == DType::F16 { 1e-3 } else { TOLERANCE };
    for (at, (have, want)) in actual.to_f64().into_iter().zip(expected.to_f64()).enumerate() {
        let same = have == want || (have.is_nan() && want.is_nan());
        if !same
            && (have - want).abs().is_nan()
                | ((have - want).abs() > tolerance * want.abs().max(1.0))
        {
            return Err(format!("element {at}: expected {want}, got {have}"));
        }
    }
    Ok(())
}

fn read(file: &Path) -> BTreeMap<String, Tensor> {
    let raw = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&raw).unwrap();
    tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let dtype = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F64 => DType::F64,
                Dtype::F16 => DType::F16,
                Dtype::I64 => DType::I64,
                Dtype::I32 => DType::I32,
                Dtype::U8 => DType::U8,
                Dtype::BOOL => DType::Bool,
                other => panic!("fixtures hold no {other:?}"),
            };
            let data = Bytes::copy_from_slice(view.data());
            (name, Tensor::new(dtype, view.shape().to_vec(), data).unwrap())
        })
        .collect()
}
