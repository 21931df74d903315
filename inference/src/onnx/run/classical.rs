//! The `ai.onnx.ml` operators: read back, computed on the host, uploaded again.

use super::value::{Dense, Value};
use super::{Kit, Outcome};
use crate::onnx::fault::unfit;
use crate::onnx::host::{HostTensor, Values};
use crate::onnx::linear::{Linear, Normalize, Scaler};
use crate::onnx::trees::Trees;
use burn::tensor::TensorData;
use burn::tensor::backend::Backend;

/// A tree ensemble over rows of features.
pub fn trees<B: Backend>(trees: &Trees, value: Value<B>, kit: &Kit<B>) -> Outcome<Vec<Value<B>>> {
    let (rows, columns, features) = table(value)?;
    if columns < trees.features_min() {
        return Err(unfit!("expected {} features, got {columns}", trees.features_min()));
    }
    let (labels, scores) = trees.run(&features, columns);
    let scores = floats(vec![rows, trees.targets()], scores, kit);
    Ok(if trees.is_classifier() { vec![ints(rows, labels, kit), scores] } else { vec![scores] })
}

/// A linear model over rows of features.
pub fn linear<B: Backend>(
    linear: &Linear,
    value: Value<B>,
    kit: &Kit<B>,
) -> Outcome<Vec<Value<B>>> {
    let (rows, columns, features) = table(value)?;
    if columns != linear.features() {
        return Err(unfit!("expected {} features, got {columns}", linear.features()));
    }
    let (labels, scores) = linear.run(&features);
    let scores = floats(vec![rows, linear.targets()], scores, kit);
    Ok(if linear.is_classifier() { vec![ints(rows, labels, kit), scores] } else { vec![scores] })
}

/// `Normalizer`.
pub fn normalizer<B: Backend>(norm: Normalize, value: Value<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    rows(value, kit, None, |values, columns| norm.run(values, columns))
}

/// `Scaler`.
pub fn scaler<B: Backend>(scaler: &Scaler, value: Value<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    rows(value, kit, scaler.columns(), |values, columns| scaler.run(values, columns))
}

/// An operator that changes rows in place.
fn rows<B: Backend>(
    value: Value<B>,
    kit: &Kit<B>,
    expected: Option<usize>,
    change: impl FnOnce(&mut [f32], usize),
) -> Outcome<Value<B>> {
    let shape = value.shape();
    let (_, columns, mut features) = table(value)?;
    if let Some(expected) = expected.filter(|&expected| expected != columns) {
        return Err(unfit!("expected {expected} features, got {columns}"));
    }
    change(&mut features, columns);
    Ok(floats(shape, features, kit))
}

/// Rows, columns and elements; one axis is one row.
fn table<B: Backend>(value: Value<B>) -> Outcome<(usize, usize, Vec<f32>)> {
    let host = value.into_host()?;
    let HostTensor { shape, values } = std::sync::Arc::unwrap_or_clone(host);
    let (rows, columns) = match shape[..] {
        [columns] => (1, columns),
        [rows, columns] => (rows, columns),
        _ => return Err(unfit!("expected rows and columns, got {shape:?}")),
    };
    if columns == 0 {
        return Err("expected at least one feature".into());
    }
    let features = match values {
        Values::Float(values) => values,
        Values::Int(values) => values.into_iter().map(|value| value as f32).collect(),
        Values::Bool(values) => {
            values.into_iter().map(|value| f32::from(u8::from(value))).collect()
        }
    };
    Ok((rows, columns, features))
}

fn floats<B: Backend>(shape: Vec<usize>, values: Vec<f32>, kit: &Kit<B>) -> Value<B> {
    Value::float(B::float_from_data(TensorData::new(values, shape), &kit.device))
}

fn ints<B: Backend>(rows: usize, values: Vec<i64>, kit: &Kit<B>) -> Value<B> {
    let data = TensorData::new(values, vec![rows]);
    Value::Device(Dense::Int(B::int_from_data(data, &kit.device)))
}
