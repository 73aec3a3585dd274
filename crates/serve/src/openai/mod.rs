//! OpenAI's interface (<https://platform.openai.com/docs/api-reference>), with vLLM's additions.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod format;
pub(crate) mod logprobs;
pub(crate) mod messages;
pub(crate) mod models;
pub(crate) mod prompts;
pub(crate) mod sampling;
