//! How many bytes the values of a run take at a time: the caller's rows, what lies between, and
//! results.
//!
//! Counted by shapes, in the first run with them. What an operator needs while it works, and the
//! weights, are not counted; a value that shares another's memory counts anew.

use super::Value;
use super::value::Dense;
use crate::onnx::host::Values;
use crate::onnx::plan::{Step, ValueId};
use burn::tensor::backend::Backend;
use std::collections::HashMap;

/// The values of a run that are there.
#[derive(Debug, Default)]
pub struct Footprint {
    bytes: HashMap<ValueId, usize>,
    live: usize,
    peak: usize,
}

impl Footprint {
    /// A value is there now.
    pub fn add<B: Backend>(&mut self, slot: ValueId, value: &Value<B>) {
        self.set(slot, bytes(value));
    }

    /// A step has run: what it read last is gone.
    pub fn stepped(&mut self, step: &Step) {
        for operand in step.inputs.iter().flatten().filter(|operand| operand.last) {
            self.live -= self.bytes.remove(&operand.value).unwrap_or(0);
        }
    }

    /// The most bytes that were there at a time.
    pub fn peak(&self) -> usize {
        self.peak
    }

    fn set(&mut self, slot: ValueId, bytes: usize) {
        let before = self.bytes.insert(slot, bytes).unwrap_or(0);
        self.live = self.live - before + bytes;
        self.peak = self.peak.max(self.live);
    }
}

fn bytes<B: Backend>(value: &Value<B>) -> usize {
    let size = match value {
        Value::Host(hosted) => match &hosted.tensor.values {
            Values::Float(_) => size_of::<f32>(),
            Values::Int(_) => size_of::<i64>(),
            Values::Bool(_) => size_of::<bool>(),
        },
        Value::Device(Dense::Float(_)) => size_of::<f32>(),
        Value::Device(Dense::Int(_)) => size_of::<i64>(),
        Value::Device(Dense::Bool(_)) => size_of::<bool>(),
    };
    value.shape().iter().product::<usize>() * size
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::op::Op;
    use crate::onnx::plan::Operand;

    #[test]
    fn the_peak_is_what_a_step_reads_and_makes_beside_what_waits() {
        let mut footprint = Footprint::default();
        let operand = |value, last| Some(Operand { value, last });
        let step = |inputs| Step { name: String::new(), op: Op::Not, inputs, outputs: vec![] };
        footprint.set(0, 10);
        footprint.set(1, 5);
        footprint.set(2, 20);
        footprint.stepped(&step(vec![operand(0, true), operand(1, false), None]));
        assert_eq!(footprint.peak(), 35);
        // 5 wait, 20 are read, and as many made.
        footprint.set(3, 20);
        footprint.stepped(&step(vec![operand(2, true)]));
        assert_eq!(footprint.peak(), 45);
        footprint.set(4, 1);
        assert_eq!(footprint.peak(), 45);
    }
}
