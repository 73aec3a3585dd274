//! From text to tokens and back: the tokenizer, the chat template, and conversations as token ids.

pub mod chat_template;
pub mod conversation;
pub mod tokenizer;
mod turns;
