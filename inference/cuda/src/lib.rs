//! CUDA device.

use statehouse_inference::Device;

/// Why no CUDA device can be had.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Built without feature `cuda`.
    #[error("built without feature cuda")]
    NotBuilt,
}

/// Opens a CUDA device.
pub fn open(_index: usize) -> Result<Box<dyn Device>, Unavailable> {
    Err(Unavailable::NotBuilt)
}
