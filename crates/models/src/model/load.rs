//! Loading a model: from a GGUF file, or from a folder in Hugging Face's layout.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use candle_core::{DType, Device};
use serde_json::Value as Json;

use crate::config::{self, Config};
use crate::device::default_dtype;
use crate::error::{Error, Result};
use crate::families;
use crate::families::decoder::Parts;
use crate::layers::Weight;
use crate::memory;
use crate::model::{Inner, Model, View};
use crate::pass::overlay::Overlay;
use crate::text::chat_template::ChatTemplate;
use crate::text::tokenizer::{Digits, Tokenizer};
use crate::weights::gguf::weights::GgufWeights;
use crate::weights::gguf::{Gguf, Value};
use crate::weights::safetensors::Shards;
use crate::weights::source::{self, Source};
use crate::weights::{self, Checkpoint, Keep, Quantization};
use tunebook_progress::Stop;

/// Loading.
impl Model {
    /// Loads a model as f32; on a GPU that computes in bf16, as bf16
    /// ([`default_dtype`](crate::default_dtype)). `name_or_path` is a GGUF file, a folder with `config.json`,
    /// `tokenizer.json` and safetensors files, the name of a model in the cache
    /// (`SmolLM2-135M-Instruct` after `cargo xtask lab`), or a repository of the Hugging Face hub
    /// (`owner/name` or `owner/name@revision`), which is fetched.
    ///
    /// # Errors
    /// When there is no such model, a file is damaged or of another kind, its architecture is not
    /// known, tensors are missing, the memory does not suffice, or the hub refuses. The error names
    /// the file and the part of it.
    pub fn load(name_or_path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::load_as(name_or_path, Some(default_dtype(device)), device)
    }

    /// The same with weights of another type; `None` keeps that of the file (f32 for a quantised
    /// one).
    ///
    /// # Errors
    /// As [`Model::load`]; when `dtype` is none of f32, f16 and bf16.
    pub fn load_as(
        name_or_path: impl AsRef<Path>,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self> {
        if let Some(other) = dtype
            && !matches!(other, DType::F32 | DType::F16 | DType::BF16)
        {
            return Err(Error::Argument {
                field: "dtype",
                value: format!("{other:?}"),
                expected: "F32, F16 or BF16",
            });
        }
        Self::load_kept(name_or_path.as_ref(), dtype.map(Keep::As), device)
    }

    /// The same with the matrices in quantised blocks, which are dequantised as they are used, a
    /// tile at a time: the base of QLoRA (<https://arxiv.org/abs/2305.14314>). It takes in memory
    /// what its blocks take. Adapters train on it as on a plain one; the model itself cannot be
    /// trained.
    ///
    /// ```no_run
    /// use tunebook_models::{Device, Model, Quantization};
    /// let model = Model::load_quantized("SmolLM2-135M-Instruct", Quantization::Stored, &Device::Cpu)?;
    /// println!("{model:?}"); // … 98 MB as Q4_1, Q8_0, F32 …
    /// # Ok::<(), tunebook_models::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Model::load`]; when the matrices are to stay as they are stored, and that is f32.
    pub fn load_quantized(
        name_or_path: impl AsRef<Path>,
        quantization: Quantization,
        device: &Device,
    ) -> Result<Self> {
        Self::load_kept(name_or_path.as_ref(), Some(Keep::Quantized(quantization)), device)
    }

    fn load_kept(name_or_path: &Path, keep: Option<Keep>, device: &Device) -> Result<Self> {
        let name = name_or_path.to_string_lossy();
        match source::resolve(name_or_path)? {
            Source::Gguf(path) => Self::load_gguf(&name, path, keep, device),
            Source::Folder(path) => Self::load_folder(&name, path, keep, device),
        }
    }

    fn load_gguf(name: &str, path: PathBuf, keep: Option<Keep>, device: &Device) -> Result<Self> {
        let file = Gguf::open(&path)?;
        let config = Config::from_gguf(&file)?;
        let keep = keep.unwrap_or_else(|| Keep::As(file.dtype()));
        let (tokenizer, parts) = rayon::join(
            || Tokenizer::from_gguf(&file, Digits::default()),
            || fill(name, &config, &GgufWeights::new(&file, &config), keep, device),
        );
        let tokenizer = tokenizer?;
        let source = file.get("tokenizer.chat_template").and_then(Value::as_str);
        let chat_template =
            source.map(|source| ChatTemplate::for_tokenizer(source, &tokenizer)).transpose()?;
        Self::new(name, path, config, parts?, tokenizer, chat_template, (keep, device))
    }

    fn load_folder(name: &str, path: PathBuf, keep: Option<Keep>, device: &Device) -> Result<Self> {
        let read = |file: &str| {
            let path = path.join(file);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some((text, path))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(Error::io(&path)(error)),
            }
        };
        let lacks = |file: &str| Error::NotFound {
            name: name.to_owned(),
            looked_for: format!("`{}`", path.join(file).display()),
            advice: "Give the folder that `save_pretrained` of model and tokenizer wrote"
                .to_owned(),
        };
        let (text, config_path) = read("config.json")?.ok_or_else(|| lacks("config.json"))?;
        let mut config = Config::from_json(&text, &config_path.display().to_string())?;
        if let Some((text, path)) = read("generation_config.json")? {
            for id in config::generation_eos(&text, &path.display().to_string())? {
                if !config.eos_token_id.contains(&id) {
                    config.eos_token_id.push(id);
                }
            }
        }
        let tokenizer_config = match read("tokenizer_config.json")? {
            Some((text, path)) => serde_json::from_str(&text).map_err(|error| Error::Corrupt {
                path,
                at: "the file".to_owned(),
                reason: format!("expected JSON: {error}"),
            })?,
            None => Json::Null,
        };
        let tokenizer_path = path.join("tokenizer.json");
        if !tokenizer_path.is_file() {
            return Err(lacks("tokenizer.json"));
        }
        let tokenizer = Tokenizer::from_file(&tokenizer_path, &tokenizer_config)?;
        let template = match read("chat_template.jinja")? {
            Some((text, _)) => Some(text),
            None => named_template(&tokenizer_config),
        };
        let chat_template =
            template.map(|source| ChatTemplate::for_tokenizer(&source, &tokenizer)).transpose()?;
        let (shards, others) = Shards::open_folder(&path)?.text_part();
        if others > 0 {
            tunebook_progress::stream(&format!(
                "note: `{name}` reads pictures, too: its text model is loaded, and {others} tensors of the rest are not\n"
            ));
        }
        let shards = shards.with_prefix(config.family.definition().prefix());
        let keep = keep.unwrap_or_else(|| Keep::As(shards.dtype()));
        let parts = fill(name, &config, &shards, keep, device)?;
        Self::new(name, path, config, parts, tokenizer, chat_template, (keep, device))
    }

    fn new(
        name: &str,
        path: PathBuf,
        config: Config,
        parts: Parts,
        tokenizer: Tokenizer,
        chat_template: Option<ChatTemplate>,
        (keep, device): (Keep, &Device),
    ) -> Result<Self> {
        // Added tokens may lie beyond the table (Gemma 3's for pictures, a padding token): a text
        // that holds one is an error, with its name.
        if tokenizer.vocab_size_without_added() > config.vocab_size {
            return Err(Error::Config {
                origin: path.display().to_string(),
                field: "vocab_size".to_owned(),
                found: config.vocab_size.to_string(),
                expected: format!(
                    "at least {}, the number of tokens of the tokenizer without added ones",
                    tokenizer.vocab_size_without_added()
                ),
            });
        }
        let Parts { decoder, slots, residuals, past_key_values, needs } = parts;
        let transposed = needs
            .iter()
            .filter(|need| need.transposed)
            .map(|need| need.weight.name().to_owned())
            .collect();
        let weights: Vec<Arc<Weight>> = needs.into_iter().map(|need| need.weight).collect();
        let parameter_count = weights.iter().map(|weight| weight.matrix().elem_count()).sum();
        let memory_bytes = weights.iter().map(|weight| weight.matrix().bytes()).sum();
        let mut end_ids = config.eos_token_id.clone();
        end_ids.extend(tokenizer.eos_id().filter(|id| !config.eos_token_id.contains(id)));
        Ok(Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                path,
                config,
                decoder,
                slots,
                residuals,
                past_key_values,
                active: RwLock::new(Arc::new(Overlay::default())),
                weights,
                transposed,
                tokenizer,
                chat_template,
                device: device.clone(),
                end_ids,
                version: Default::default(),
                parameter_count,
                memory_bytes,
                keep,
                activations: keep.activations(device),
                extensions: Mutex::default(),
                format_vocabulary: OnceLock::new(),
            }),
            view: View::Active,
            stop: Stop::cell(),
        })
    }
}

/// Builds the decoder and fills its weights, after saying how much memory they take.
fn fill(
    name: &str,
    config: &Config,
    checkpoint: &dyn Checkpoint,
    keep: Keep,
    device: &Device,
) -> Result<Parts> {
    // Every block has tensors of its own, and what stands for one while it is loaded is larger than
    // a small one in a file.
    let tensors = checkpoint.shapes().len();
    if config.num_hidden_layers > tensors {
        return Err(Error::Config {
            origin: checkpoint.origin(),
            field: "num_hidden_layers".to_owned(),
            found: config.num_hidden_layers.to_string(),
            expected: format!("fewer than the tensors that the files hold, which are {tensors}"),
        });
    }
    // Shapes first, on nothing: what a config asks for may be more than there is.
    let parts = families::build(&config.family, &config.shape(), device)?;
    weights::check(checkpoint, &config.model_type, &parts.needs)?;
    let count: usize = parts.needs.iter().map(|need| need.shape.iter().product::<usize>()).sum();
    if matches!(keep, Keep::Quantized(_))
        && !weights::has_blocks(checkpoint, &parts.needs, keep, device)
    {
        return Err(Error::NotQuantized { origin: checkpoint.origin() });
    }
    let (bytes, forms) = weights::size(checkpoint, &parts.needs, keep, device);
    memory::announce(name, count, bytes, &forms.join(", "), device)?;
    weights::load(checkpoint, &parts.needs, keep, device)?;
    Ok(parts)
}

/// The template in `tokenizer_config.json`: a text, or a list of named ones of which `default`
/// counts.
fn named_template(config: &Json) -> Option<String> {
    match config.get("chat_template")? {
        Json::String(text) => Some(text.clone()),
        Json::Array(templates) => {
            let default = templates
                .iter()
                .find(|template| template.get("name").and_then(Json::as_str) == Some("default"))?;
            Some(default.get("template")?.as_str()?.to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_can_be_kept_and_shared() {
        fn shared<T: Clone + Send + Sync + 'static>() {}
        shared::<Model>();
    }
}
