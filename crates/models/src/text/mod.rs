//! From text to tokens and back: the tokenizer and the chat template.

pub mod chat_template;
pub mod tokenizer;
