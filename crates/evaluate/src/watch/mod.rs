//! Watching a run: the diagnosis of its losses, and spot checks of its answers.

pub(crate) mod diagnosis;
pub(crate) mod grounding;
