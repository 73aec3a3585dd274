//! The files of an adapter: PEFT's, AdapterHub's, MLX's and llama.cpp's formats, those on the Hugging
//! Face hub, the fingerprint of tokenizer and chat template, the text part of models that read
//! pictures, too, and writing that is whole or not there.

pub(crate) mod adapterhub;
pub(crate) mod atomic;
pub(crate) mod fingerprint;
pub(crate) mod folder;
pub(crate) mod gguf;
pub(crate) mod hub;
pub(crate) mod in_model;
pub(crate) mod mlx;
pub mod peft;
pub(crate) mod peft_config;
pub(crate) mod stored;
pub(crate) mod text_part;
