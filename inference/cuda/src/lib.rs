//! The CUDA device: found safely, tested before use.
//!
//! This is the only crate that names Burn's `Cuda` type, because that takes minutes to compile.
//! Without the feature `cuda` it compiles to an [`open`] that says so, and depends on nothing.
//!
//! A machine without a GPU makes the backend panic on two threads. So the driver is looked for
//! first, and the self-test runs on its own thread, with a time limit, where a panic ends nothing
//! else. Anything but the right answer in time is [`Unavailable`]; whether that is an error is the
//! caller's business.
//!
//! Not done: more than one GPU per process at a time, CUDA graphs, half-precision weights.

use statehouse_inference::Device;
use std::time::Duration;

#[cfg(feature = "cuda")]
mod open;

/// How long the self-test may take. The first kernels are compiled in it.
pub const SELF_TEST_MAX: Duration = Duration::from_secs(120);

/// Why there is no CUDA device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// This binary was built without it.
    #[error("built without CUDA (feature `cuda`)")]
    NotBuilt,
    /// There is no driver on this machine.
    #[error("no NVIDIA driver: libcuda.so was not found")]
    NoDriver,
    /// The driver refused.
    #[error("the NVIDIA driver failed: {reason}")]
    Driver { reason: String },
    /// There are fewer devices.
    #[error("no CUDA device {index}: {count} found")]
    NoDevice { index: usize, count: usize },
    /// A product did not come out right, or the backend panicked.
    #[error("the device failed its self-test: {reason}")]
    SelfTest { reason: String },
    /// The self-test did not end in time.
    #[error("the device's self-test took longer than {SELF_TEST_MAX:?}")]
    TimedOut,
}

/// Opens and tests a CUDA device.
#[cfg(feature = "cuda")]
pub fn open(index: usize) -> Result<Box<dyn Device>, Unavailable> {
    open::open(index)
}

/// Opens and tests a CUDA device.
#[cfg(not(feature = "cuda"))]
pub fn open(_index: usize) -> Result<Box<dyn Device>, Unavailable> {
    Err(Unavailable::NotBuilt)
}

/// Keeps compiled kernels and tuning results in this folder, so that a restart needs neither. Must
/// come before the first [`open`]; `false` if something in this process had settled it already.
#[cfg(feature = "cuda")]
pub fn keep_kernels_in(folder: &std::path::Path) -> bool {
    open::keep_kernels_in(folder)
}

/// Keeps compiled kernels and tuning results in this folder; without the feature there are none.
#[cfg(not(feature = "cuda"))]
pub fn keep_kernels_in(_folder: &std::path::Path) -> bool {
    false
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use super::*;

    #[test]
    fn says_that_it_was_not_built() {
        let Err(unavailable) = open(0) else { panic!("there is no device without the feature") };
        assert_eq!(unavailable.to_string(), "built without CUDA (feature `cuda`)");
        assert!(!keep_kernels_in(std::path::Path::new("/tmp")));
    }
}
