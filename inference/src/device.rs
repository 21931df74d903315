//! What runs programs: a device loads a program and gives a runner for it.
//!
//! The CPU is always there, through Burn's Flex backend. Other devices come from other crates by
//! [`BurnDevice`], generic over the backend, so that only they compile that backend.

use crate::error::Error;
use crate::onnx::plan::Program;
use crate::onnx::run::{Kit, Session};
use crate::tensor::Tensor;
use burn::backend::Flex;
use burn::tensor::backend::Backend;
use burn::tensor::{TensorData, read_sync};
use std::sync::Arc;

/// What kind of device it is; default batch limits depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl DeviceKind {
    /// Rows per batch where the manifest doesn't say.
    pub const fn batch_rows_default(self) -> usize {
        match self {
            DeviceKind::Cpu => 64,
            DeviceKind::Cuda => 1024,
        }
    }
}

/// Runs programs. Driven by one thread.
pub trait Device: Send {
    /// For people: `flex (cpu)`, `cuda:0 NVIDIA H100`.
    fn name(&self) -> String;
    /// Which kind it is.
    fn kind(&self) -> DeviceKind;
    /// Loads a program.
    fn load(&mut self, program: Arc<Program>) -> Result<Box<dyn Runner>, Error>;
    /// Whether each batch size costs a compilation, so that batches are padded to a few sizes.
    fn pads_batches(&self) -> bool;
}

/// A loaded program.
pub trait Runner: Send {
    /// Runs whole batched graph inputs, in graph order; outputs come in graph order.
    fn run(&mut self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error>;

    /// The most bytes that inputs, results and what lies between took at a time, in the last run
    /// whose shapes were new; 0 if that is not known.
    fn peak_bytes(&self) -> usize {
        0
    }
}

/// The CPU, self-tested.
pub fn flex() -> Result<Box<dyn Device>, Error> {
    let device = BurnDevice::<Flex>::new(Default::default(), "flex (cpu)".into(), DeviceKind::Cpu);
    device.self_test()?;
    Ok(Box::new(device))
}

/// A device of any Burn backend.
pub struct BurnDevice<B: Backend> {
    device: B::Device,
    name: String,
    kind: DeviceKind,
}

impl<B: Backend> BurnDevice<B> {
    /// A device under this name. Nothing is started yet.
    pub fn new(device: B::Device, name: String, kind: DeviceKind) -> BurnDevice<B> {
        BurnDevice { device, name, kind }
    }

    /// A product whose result is known, computed and read back. A broken installation may panic
    /// here instead of failing.
    pub fn self_test(&self) -> Result<(), Error> {
        const SIDE: usize = 32;
        // Small integers, so that every precision gives the exact result.
        let values: Vec<f32> = (0..SIDE * SIDE).map(|at| (at % 7) as f32 - 3.0).collect();
        let upload = || {
            let data = TensorData::new(values.clone(), [SIDE, SIDE]);
            B::float_from_data(data, &self.device)
        };
        let product = B::float_matmul(upload(), upload());
        let wrong = |reason: String| Error::internal(format!("{}: {reason}", self.name));
        let read = read_sync(B::float_into_data(product))
            .map_err(|error| wrong(format!("reading back failed: {error:?}")))?;
        let actual: Vec<f32> = read.iter::<f32>().collect();
        let expected = |at: usize| -> f32 {
            let (row, column) = (at / SIDE, at % SIDE);
            (0..SIDE).map(|k| values[row * SIDE + k] * values[k * SIDE + column]).sum()
        };
        let count_is_right = actual.len() == SIDE * SIDE;
        if count_is_right && actual.iter().enumerate().all(|(at, value)| *value == expected(at)) {
            Ok(())
        } else {
            Err(wrong("a matrix product came out wrong".into()))
        }
    }
}

impl<B: Backend> Device for BurnDevice<B> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn kind(&self) -> DeviceKind {
        self.kind
    }

    fn load(&mut self, program: Arc<Program>) -> Result<Box<dyn Runner>, Error> {
        let kit = Kit::<B>::new(self.device.clone(), self.kind == DeviceKind::Cpu);
        Ok(Box::new(Session::new(program, kit)))
    }

    fn pads_batches(&self) -> bool {
        self.kind != DeviceKind::Cpu
    }
}

impl<B: Backend> Runner for Session<B> {
    fn run(&mut self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        Session::run(self, inputs)
    }

    fn peak_bytes(&self) -> usize {
        Session::peak_bytes(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_passes_its_self_test() {
        let device = flex().unwrap();
        assert_eq!(device.name(), "flex (cpu)");
        assert_eq!(device.kind(), DeviceKind::Cpu);
        assert!(!device.pads_batches());
    }
}
