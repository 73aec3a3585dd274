//! Every operation for devices and number types that have no fused form: composed of candle's own
//! operations, with a backward pass of ours.
//!
//! The backward passes are written out rather than left to candle, which would compute gradients of
//! frozen weights, keep every intermediate result of the composition, and add each gradient to a
//! buffer of zeros. Here a node keeps its inputs and computes the rest again; nothing of size `t ×
//! s` or `rows × vocabulary` is kept. No operation copies to the host or waits for the device.
//! Reductions, softmax and the gated activation's gradient are computed in f32 whatever the
//! tensors' type.
//!
//! On the CPU these forms run for number types without a fused form, and everywhere when
//! `TUNEBOOK_OPS=composed` is set: so the path that a GPU takes by default is tested on machines
//! that have none. **On a GPU it has never run**: no machine with one was at hand.

mod attention;
mod cross_entropy;
mod layer_norm;
mod linear;
mod node;
mod rms_norm;
mod rope;
mod small;
#[cfg(test)]
mod tests;

pub use attention::attention;
pub use cross_entropy::cross_entropy;
pub use layer_norm::layer_norm;
pub use linear::{linear, lora_linear};
pub use node::Composed;
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use small::{add, gated};

use std::sync::OnceLock;

/// Whether `TUNEBOOK_OPS=composed` asks for these forms on the CPU, too. Looked up once.
pub fn forced() -> bool {
    static FORCED: OnceLock<bool> = OnceLock::new();
    *FORCED.get_or_init(|| std::env::var("TUNEBOOK_OPS").is_ok_and(|value| value == "composed"))
}
