//! From text to tokens and back: the tokenizer, the chat template, and conversations as token ids.

pub(crate) mod chat_template;
pub(crate) mod conversation;
mod token_bytes;
pub(crate) mod tokenizer;
mod turns;
