//! Finding, naming and testing the device; the only file that touches the driver.

use crate::{SELF_TEST_MAX, Unavailable};
use burn::backend::Cuda;
use burn::backend::cuda::CudaDevice;
use burn::cubecl::config::cache::CacheConfig;
use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use cudarc::driver::CudaContext;
use statehouse_inference::device::BurnDevice;
use statehouse_inference::{Device, DeviceKind};
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};

/// Finds the driver, counts devices, names this one and tests it.
pub fn open(index: usize) -> Result<Box<dyn Device>, Unavailable> {
    let name = find(index)?;
    let (report, reported) = channel();
    std::thread::Builder::new()
        .name("cuda-self-test".into())
        .spawn(move || {
            let outcome = catch_unwind(move || {
                let device = CudaDevice::new(index);
                let device = BurnDevice::<Cuda>::new(device, name, DeviceKind::Cuda);
                device.self_test().map(|()| device)
            });
            // Nobody listens any more if it took too long.
            let _ = report.send(outcome);
        })
        .map_err(|error| Unavailable::SelfTest { reason: error.to_string() })?;
    match reported.recv_timeout(SELF_TEST_MAX) {
        Ok(Ok(Ok(device))) => Ok(Box::new(device)),
        Ok(Ok(Err(error))) => Err(Unavailable::SelfTest { reason: error.to_string() }),
        Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
            Err(Unavailable::SelfTest { reason: "the backend panicked".into() })
        }
        Err(RecvTimeoutError::Timeout) => Err(Unavailable::TimedOut),
    }
}

/// The device's name, for people: `cuda:0 NVIDIA H100`.
fn find(index: usize) -> Result<String, Unavailable> {
    // SAFETY: it only tries to open the driver library, whose initialisers are trusted.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(Unavailable::NoDriver);
    }
    // The loader panics on a driver that lacks a symbol.
    let found = catch_unwind(|| {
        let count = usize::try_from(CudaContext::device_count()?).unwrap_or(0);
        let name = if index < count { Some(CudaContext::new(index)?.name()?) } else { None };
        Ok::<_, cudarc::driver::DriverError>((count, name))
    });
    match found {
        Ok(Ok((_, Some(name)))) => Ok(format!("cuda:{index} {name}")),
        Ok(Ok((count, None))) => Err(Unavailable::NoDevice { index, count }),
        Ok(Err(error)) => Err(Unavailable::Driver { reason: error.to_string() }),
        Err(_) => Err(Unavailable::Driver { reason: "loading it panicked".into() }),
    }
}

/// Settles where kernels and tuning results are kept.
pub fn keep_kernels_in(folder: &Path) -> bool {
    let folder = folder.to_path_buf();
    // A second setting panics in the backend; the first one stands.
    catch_unwind(move || {
        let mut config = CubeClRuntimeConfig::default();
        config.compilation.cache = Some(CacheConfig::File(folder.clone()));
        config.autotune.cache = CacheConfig::File(folder);
        CubeClRuntimeConfig::set(config);
    })
    .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a GPU it must work, without one it must say so; it must never panic.
    #[test]
    fn opens_or_says_why_not() {
        match open(0) {
            Ok(device) => assert_eq!(device.kind(), DeviceKind::Cuda),
            Err(unavailable) => {
                let expected =
                    [Unavailable::NoDriver, Unavailable::NoDevice { index: 0, count: 0 }];
                let no_gpu = expected.contains(&unavailable)
                    || matches!(unavailable, Unavailable::Driver { .. });
                assert!(no_gpu, "a GPU is there but: {unavailable}");
            }
        }
    }
}
