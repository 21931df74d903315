//! Made-up rows, to try a model with before anyone depends on it, and to measure a device.

use crate::batch::gather;
use crate::error::Error;
use crate::model::{Model, Place};
use crate::onnx::host::{HostTensor, Kind, Values};
use crate::tensor::Tensor;

/// Xorshift64*: a seed gives the same rows everywhere.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Random {
        Random { state: seed ^ 0x9e37_79b9_7f4a_7c15 }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// One row of zeros beside the initial states: one tensor per graph input, without the batch axis.
pub fn zeros(model: &Model) -> Result<Vec<Tensor>, Error> {
    row(model, || 0)
}

/// One row of random numbers beside the initial states: floats from 0 to 1, indices within their
/// table, other integers 0.
pub fn random(model: &Model, random: &mut Random) -> Result<Vec<Tensor>, Error> {
    row(model, || random.next())
}

/// Joins rows to whole graph inputs.
pub fn batch(model: &Model, rows: &[&Vec<Tensor>]) -> Vec<Tensor> {
    let bindings = model.graph_inputs().iter().enumerate();
    bindings
        .map(|(position, binding)| {
            let column: Vec<&Tensor> = rows.iter().map(|row| &row[position]).collect();
            gather(&column, binding.batch_axis, rows.len())
        })
        .collect()
}

fn row(model: &Model, mut next: impl FnMut() -> u64) -> Result<Vec<Tensor>, Error> {
    let bindings = model.graph_inputs().iter();
    bindings
        .map(|binding| match binding.place {
            Place::State(position) => Ok(model.states()[position].initial.clone()),
            Place::Request(position) => {
                let spec = &model.inputs()[position];
                // An axis that may have any length has one here.
                let shape: Vec<usize> =
                    spec.row_shape.iter().map(|axis| axis.unwrap_or(1)).collect();
                let count = shape.iter().product();
                let limit = spec.index_limit.unwrap_or(1).max(1) as u64;
                let values = match Kind::of(spec.dtype) {
                    Kind::Float => Values::Float(
                        (0..count).map(|_| (next() >> 40) as f32 / (1 << 24) as f32).collect(),
                    ),
                    Kind::Int => Values::Int((0..count).map(|_| (next() % limit) as i64).collect()),
                    Kind::Bool => Values::Bool((0..count).map(|_| next() & 1 == 1).collect()),
                };
                HostTensor { shape, values }
                    .to_tensor(spec.dtype)
                    .map_err(|error| Error::internal(error.to_string()))
            }
        })
        .collect()
}
