//! Watching a run: the diagnosis of its losses, what was forgotten and what is remembered, and spot
//! checks of answers.

pub(crate) mod diagnosis;
pub(crate) mod forgetting;
pub(crate) mod grounding;
pub(crate) mod memorisation;
pub(crate) mod passages;
pub(crate) mod style;
