//! The costs of a run before it is made: floating-point operations, memory and time.

pub(crate) mod flops;
pub(crate) mod memory;
pub(crate) mod preflight;
pub(crate) mod rehearsal;
pub(crate) mod summary;
