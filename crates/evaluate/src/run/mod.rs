//! Evaluations: a model answers rows, the answers are measured, two models are compared.

pub(crate) mod answers;
pub(crate) mod args;
pub(crate) mod comparison;
pub(crate) mod evaluate;
pub(crate) mod evaluation;
pub(crate) mod example;
mod order;
pub(crate) mod prepare;
