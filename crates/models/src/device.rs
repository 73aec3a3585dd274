//! Which device to compute on.

use std::sync::Once;

use candle_core::{DType, Device};

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

/// The number type of [`Model::load`](crate::Model::load) on a device: bf16 on a GPU that computes in
/// it (NVIDIA's since Ampere, compute capability 8.0), f32 elsewhere. What is trained is f32
/// everywhere. f16 has to be asked for: its gradients need a scale (`TrainingArgs::fp16`).
pub fn default_dtype(device: &Device) -> DType {
    dtype_of(capability(device))
}

fn dtype_of(capability: Option<(i32, i32)>) -> DType {
    match capability {
        Some((major, _)) if major >= 8 => DType::BF16,
        _ => DType::F32,
    }
}

/// The compute capability of an NVIDIA GPU; `None` of other devices, and where the driver does not
/// say.
#[cfg(feature = "cuda")]
fn capability(device: &Device) -> Option<(i32, i32)> {
    let Device::Cuda(device) = device else { return None };
    device.cuda_stream().context().compute_capability().ok()
}

#[cfg(not(feature = "cuda"))]
fn capability(_: &Device) -> Option<(i32, i32)> {
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
    // Its other lines are a backtrace.
    let reason =
        |error: candle_core::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
    Device::new_cuda_with_stream(ordinal)
        .map_err(|error| Error::Gpu { ordinal, reason: reason(error) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_bf16_where_the_gpu_computes_in_it() {
        let of = |major, minor| dtype_of(Some((major, minor)));
        assert_eq!([of(8, 0), of(8, 6), of(9, 0), of(12, 0)], [DType::BF16; 4]);
        assert_eq!([of(6, 1), of(7, 0), of(7, 5)], [DType::F32; 3]);
        assert_eq!(default_dtype(&Device::Cpu), DType::F32);
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_gpu_that_this_build_cannot_use_is_refused_with_the_remedy() {
        assert!(Device::best().unwrap().is_cpu());
        let error = Device::gpu(1).unwrap_err().to_string();
        assert!(error.contains("GPU 1") && error.contains("lab --cuda"), "{error}");
    }
}
