//! The training loop and its parts.

pub(crate) mod args;
pub(crate) mod backward;
pub(crate) mod checkpoint;
pub(crate) mod difference;
mod eight_bit;
pub(crate) mod loss_scale;
pub(crate) mod lr_range;
pub(crate) mod optim;
pub(crate) mod output_dir;
pub(crate) mod parameter;
pub(crate) mod regularisation;
pub(crate) mod rng;
pub(crate) mod run;
pub(crate) mod schedule;
pub(crate) mod step;
pub(crate) mod trained;
pub(crate) mod trainer;
