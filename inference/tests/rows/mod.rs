//! What tests of the worker share: rows sent under a number, weights as a file.

#![allow(dead_code, reason = "each test uses its part")]

use bytes::Bytes;
use statehouse_inference::{Answer, Error, Handle, LoadedModel, Request, Tensor};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

pub type Numbered = (usize, Result<Answer, Error>);
pub type Answers = Receiver<Numbered>;

/// Submits one row; its answer comes under `number`.
pub fn submit(
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

/// Name, shape, values.
pub type Weight = (&'static str, Vec<usize>, Vec<f32>);

/// A `model.safetensors` with these weights.
pub fn safetensors_file(weights: &[Weight]) -> Bytes {
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
