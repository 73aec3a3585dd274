//! Which device to compute on.

use candle_core::{Device, utils};

use crate::error::Result;

/// `Device::best()`.
pub trait BestDevice: Sized {
    /// The first GPU where there is one that this build can use, else the CPU.
    ///
    /// # Errors
    /// When a GPU is there but cannot be opened.
    fn best() -> Result<Self>;
}

impl BestDevice for Device {
    fn best() -> Result<Self> {
        if utils::cuda_is_available() {
            return Ok(Self::new_cuda(0)?);
        }
        if utils::metal_is_available() {
            return Ok(Self::new_metal(0)?);
        }
        Ok(Self::Cpu)
    }
}
