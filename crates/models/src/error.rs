//! What can go wrong with a model, and what to do about it.

use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No model under that name or path.
    #[error("no model at `{name}`: looked for {looked_for}. {advice}")]
    NotFound {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        looked_for: String,
        /// What to do.
        advice: String,
    },
    /// A file could not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder holds a file that this crate did not write and would replace. Nothing was changed.
    #[error(
        "`{}` holds `{file}`, which tunebook did not write; nothing was changed. Give another folder, or move away what is there",
        path.display()
    )]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// The file.
        file: String,
    },
    /// A file is not what its format asks for, or ends too early.
    #[error("`{}` is damaged or incomplete at {at}: {reason}. Fetch the file again; `cargo xtask lab` fetches the default model", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The part of it: a key, a tensor, the header.
        at: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// A file is not the one that its name promises.
    #[error(
        "`{}` has the wrong checksum: expected sha256 {expected}, found {found} ({bytes} bytes). Fetch it again; for the default model, delete it and run `cargo xtask lab`",
        path.display()
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The known checksum.
        expected: String,
        /// That of the file.
        found: String,
        /// The size of the file.
        bytes: u64,
    },
    /// Weights stored by Python's pickle.
    #[error(
        "`{}` is a pickle: reading one runs whatever code its author put in, so only safetensors and GGUF are read. Convert it once in Python with `model.save_pretrained(folder)`, which writes safetensors",
        path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// A decoder that this crate does not have.
    #[error("unknown architecture `{architecture}` in `{origin}`: known are {known}")]
    UnknownArchitecture {
        /// What the file says.
        architecture: String,
        /// The file.
        origin: String,
        /// What there is.
        known: String,
    },
    /// A part of a file that this crate cannot use yet.
    #[error("`{origin}` has {what} `{found}`, which is not supported: known are {known}")]
    Unsupported {
        /// The file.
        origin: String,
        /// Kind of thing: a tensor type, a tokenizer.
        what: &'static str,
        /// What the file has.
        found: String,
        /// What would be understood.
        known: String,
    },
    /// A field of the model's configuration is missing or makes no sense.
    #[error("config of `{origin}`: `{field}` is {found}, expected {expected}")]
    Config {
        /// The file.
        origin: String,
        /// The field, named as in config.json or as the key of the GGUF file.
        field: String,
        /// The value.
        found: String,
        /// The range.
        expected: String,
    },
    /// The file lacks weights.
    #[error("`{origin}` lacks {} of the tensors that a {architecture} decoder of this config needs: {}", names.len(), few(names))]
    MissingTensors {
        /// The file.
        origin: String,
        /// The decoder.
        architecture: String,
        /// Their names.
        names: Vec<String>,
    },
    /// The file has weights that this decoder would leave unused, so its outputs would be wrong.
    #[error("`{origin}` holds {} tensors that a {architecture} decoder of this config does not use: {}", names.len(), few(names))]
    UnexpectedTensors {
        /// The file.
        origin: String,
        /// The decoder.
        architecture: String,
        /// Their names.
        names: Vec<String>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` of `{origin}` has the shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file.
        origin: String,
        /// The tensor.
        name: String,
        /// By the config.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// The weights are larger than the memory that is left.
    #[error(
        "`{name}` has {:.1} M parameters, which take {:.1} GB as {form}; {:.1} GB are available. Choose a smaller model, or load it as bf16 with `Model::load_as`, which halves f32, or quantised with `Model::load_quantized`",
        *parameters as f64 / 1e6, *bytes as f64 / 1e9, *available as f64 / 1e9
    )]
    Memory {
        /// What was asked for.
        name: String,
        /// Their number.
        parameters: usize,
        /// What they take.
        bytes: u64,
        /// Their types.
        form: String,
        /// What there is.
        available: u64,
    },
    /// A thing that a file format cannot hold.
    #[error(
        "`{model}` cannot be written as {format}: it has {what}, for which {format} has no place. Write safetensors instead (`save_pretrained`)"
    )]
    NotInFormat {
        /// The model.
        model: String,
        /// The format.
        format: &'static str,
        /// What it has.
        what: String,
    },
    /// Nothing to keep quantised.
    #[error(
        "`{origin}` holds its weights as plain f32, so there are no blocks to keep: `Quantization::Nf4` makes some, `Model::load` loads them as they are"
    )]
    NotQuantized {
        /// The file.
        origin: String,
    },
    /// Training asked for a weight that is kept quantised.
    #[error(
        "`{name}` is kept in quantised blocks ({format}) and cannot be trained itself: train an adapter, or load the model as f32 (`Model::load`)"
    )]
    QuantizedWeight {
        /// The weight.
        name: String,
        /// Its blocks.
        format: tunebook_ops::Format,
    },
    /// More tokens than the model was made for.
    #[error(
        "{tokens} tokens are longer than the model's context of {context} (max_position_embeddings): shorten the text{advice}"
    )]
    ContextLength {
        /// What was asked for.
        tokens: usize,
        /// What there is.
        context: usize,
        /// What else helps.
        advice: &'static str,
    },
    /// The work was asked to stop.
    #[error(transparent)]
    Interrupted(#[from] tunebook_progress::Interrupted),

    /// A setting of a call is out of its range.
    #[error("`{field}` is {value}, expected {expected}")]
    Argument {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// The range.
        expected: &'static str,
    },
    /// One of several texts cannot be used.
    #[error("`{list}[{index}]`: {source}")]
    Item {
        /// The list that was given: `users`, `pairs`.
        list: &'static str,
        /// The text's place in it, from 0.
        index: usize,
        /// Why not.
        source: Box<Error>,
    },
    /// The model computes no numbers any more.
    #[error(
        "the model's output is {found}: its weights or the active adapter have diverged. Train again from the base with a smaller learning rate"
    )]
    NotFinite {
        /// One of the logits.
        found: f32,
    },
    /// The model brings no chat template.
    #[error(
        "`{model}` has no chat template, so it is no chat model: `generate` continues plain text; pairs of a prompt and a completion, \
         and plain texts, can be trained"
    )]
    NoChatTemplate {
        /// The model.
        model: String,
    },
    /// The chat template refused the conversation or is wrong.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// The tokenizer refused.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A format of answers that cannot be kept.
    #[error("the answer's format cannot be kept: {problem}")]
    Format {
        /// Why.
        problem: String,
    },
    /// The Hugging Face hub did not give a file.
    #[error(transparent)]
    Hub(tunebook_hub::Error),
    /// A GPU that cannot be used.
    #[error("cannot compute on GPU {ordinal}: {reason}")]
    Gpu {
        /// Its number, counted from 0.
        ordinal: usize,
        /// Why, and what to do.
        reason: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<tunebook_hub::Error> for Error {
    fn from(error: tunebook_hub::Error) -> Self {
        match error.is_interruption() {
            true => Self::Interrupted(tunebook_progress::Interrupted),
            false => Self::Hub(error),
        }
    }
}

impl Error {
    /// Names the text of a list that cannot be used. A request to stop is no text's.
    pub(crate) fn of_item(list: &'static str, index: usize) -> impl FnOnce(Self) -> Self {
        move |error| match error {
            Self::Interrupted(_) | Self::Item { .. } => error,
            error => Self::Item { list, index, source: Box::new(error) },
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source: std::io::Error| match source.get_ref() {
            Some(inner) if inner.is::<tunebook_progress::Interrupted>() => {
                Self::Interrupted(tunebook_progress::Interrupted)
            }
            _ => Self::Write { path, source },
        }
    }
}

/// The first few of many names.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown =
        names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
