//! Which device to compute on.

use std::sync::Once;

use candle_core::Device;

use crate::error::{Error, Result};

/// `Device::best()`.
pub trait BestDevice: Sized {
    /// The first GPU where there is one that this build can use, else the CPU. The first call says
    /// which, where there is something to say: a GPU that is used, or one that is not and could be.
    ///
    /// # Errors
    /// When a GPU is there but cannot be opened.
    fn best() -> Result<Self>;

    /// GPU number `ordinal`, counted from 0. All threads share one stream of it: the trainer
    /// computes on other threads than the caller's, and candle's `Device::new_cuda` gives each
    /// thread a stream of its own, of which none waits for another.
    ///
    /// # Errors
    /// In a build for the CPU; when there is no such GPU or it cannot be opened.
    fn gpu(ordinal: usize) -> Result<Self>;
}

/// How much memory a GPU has, in bytes: free, and in all. `None` for the CPU, and where the driver
/// does not say.
#[cfg(feature = "cuda")]
pub fn gpu_memory(device: &Device) -> Option<(u64, u64)> {
    let Device::Cuda(device) = device else { return None };
    let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
    Some((free as u64, total as u64))
}

/// How much memory a GPU has, in bytes: free, and in all. `None` for the CPU, and where the driver
/// does not say.
#[cfg(not(feature = "cuda"))]
pub fn gpu_memory(_: &Device) -> Option<(u64, u64)> {
    None
}

impl BestDevice for Device {
    fn best() -> Result<Self> {
        let (device, says) = choose()?;
        static SAID: Once = Once::new();
        if let Some(says) = says {
            SAID.call_once(|| tunebook_progress::stream(&format!("{says}\n")));
        }
        Ok(device)
    }

    fn gpu(ordinal: usize) -> Result<Self> {
        open(ordinal)
    }
}

/// The GPU's number where a message has to name it.
#[cfg(feature = "cuda")]
fn choose() -> Result<(Device, Option<String>)> {
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    match CudaContext::device_count() {
        Ok(count) if count > 0 => {
            let name = CudaContext::new(0).and_then(|context| context.name());
            let name = name.unwrap_or_else(|_| "without a name".to_owned());
            Ok((open(0)?, Some(format!("Computing on GPU 0 of {count}: {name}."))))
        }
        Ok(_) => {
            Ok((Device::Cpu, Some("Computing on the CPU: the driver knows no GPU.".to_owned())))
        }
        Err(error) => Ok((
            Device::Cpu,
            Some(format!("Computing on the CPU: the CUDA driver does not answer ({error:?}).")),
        )),
    }
}

#[cfg(feature = "cuda")]
fn open(ordinal: usize) -> Result<Device> {
    Device::new_cuda_with_stream(ordinal)
        .map_err(|error| Error::Gpu { ordinal, reason: error.to_string() })
}

#[cfg(not(feature = "cuda"))]
fn choose() -> Result<(Device, Option<String>)> {
    if candle_core::utils::metal_is_available() {
        return Ok((Device::new_metal(0)?, None));
    }
    // The driver's own file: there without a single GPU call.
    let idle = std::path::Path::new("/proc/driver/nvidia/version").exists();
    Ok((
        Device::Cpu,
        idle.then(|| {
            "Computing on the CPU: an NVIDIA GPU is here, but this build does not use it (`cargo xtask lab --cuda` does)."
                .to_owned()
        }),
    ))
}

#[cfg(not(feature = "cuda"))]
fn open(ordinal: usize) -> Result<Device> {
    Err(Error::Gpu {
        ordinal,
        reason:
            "this build is for the CPU; start with `cargo xtask lab --cuda`, or build with `--features cuda`"
                .to_owned(),
    })
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_this_build_cannot_use_is_refused_with_the_remedy() {
        assert!(Device::best().unwrap().is_cpu());
        let error = Device::gpu(1).unwrap_err().to_string();
        assert!(error.contains("GPU 1") && error.contains("lab --cuda"), "{error}");
    }
}
