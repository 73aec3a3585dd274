//! The training loop and its parts.

pub mod args;
pub(crate) mod backward;
pub mod checkpoint;
mod eight_bit;
pub(crate) mod loss_scale;
pub mod lr_range;
pub mod optim;
pub mod parameter;
pub(crate) mod rng;
pub mod run;
pub mod schedule;
pub mod step;
pub(crate) mod trained;
pub mod trainer;
