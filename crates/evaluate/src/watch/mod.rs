//! Watching a run: what its losses say.

pub(crate) mod diagnosis;
