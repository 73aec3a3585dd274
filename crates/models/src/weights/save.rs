//! A model as a folder that this crate and Python `transformers` load: `config.json`,
//! `generation_config.json`, tokenizer, chat template and `model.safetensors`, or several shards
//! with `model.safetensors.index.json`.

use std::collections::HashMap;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::layers::Weight;
use crate::model::Model;
use crate::pass::overlay::Overlay;
use crate::pass::{Context, Mode};
use crate::weights::safetensors::{INDEX, SINGLE};
use crate::weights::tensor_file::{self, Data, Entry};
use tunebook_disk::WholeFile;
use tunebook_ops::Matrix;
use tunebook_progress::interrupt;

/// Larger files than this are inconvenient to move about.
const SHARD_BYTES: u64 = 5_000_000_000;

/// The key by which files of this crate are known, as `transformers_version` is for those of
/// `transformers`.
const MARK: &str = "tunebook_version";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const CONFIG: &str = "config.json";

impl Model {
    /// Writes the model into `dir`, as `transformers`' `save_pretrained` does for model and
    /// tokenizer, in shards of at most 5 GB. Returns the folder. A model that was saved there before
    /// is replaced, file by file, each at once; other files stay.
    ///
    /// The weights are those that the model computes with: an adapter that is merged is in them.
    /// One that is active beside the base is not, which a line under the cell says; it is saved by
    /// itself, or merged first. What is kept in quantised blocks is dequantised to f32.
    ///
    /// # Errors
    /// `dir` holds a model, or a file of a model's names, that this crate did not write; a file
    /// cannot be written; a request to stop, after which the folder is as it was.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>) -> Result<PathBuf> {
        self.save_pretrained_sharded(dir, SHARD_BYTES)
    }

    /// The same with shards of at most `max_shard_bytes`; a tensor that is larger has a shard of
    /// its own.
    ///
    /// # Errors
    /// A file cannot be written, or the limit is 0.
    pub fn save_pretrained_sharded(
        &self,
        dir: impl AsRef<Path>,
        max_shard_bytes: u64,
    ) -> Result<PathBuf> {
        self.write_pretrained(dir.as_ref(), max_shard_bytes)?;
        Ok(dir.as_ref().to_owned())
    }

    fn write_pretrained(&self, dir: &Path, max_shard_bytes: u64) -> Result<()> {
        if max_shard_bytes == 0 {
            let expected = "a number of bytes above 0";
            return Err(Error::Argument {
                field: "max_shard_bytes",
                value: "0".to_owned(),
                expected,
            });
        }
        std::fs::create_dir_all(dir).map_err(Error::write(dir))?;
        check_save_folder(dir)?;
        self.tell_not_in_weights(dir);
        self.write_weights(dir, max_shard_bytes)?;
        let tokenizer = self.tokenizer().to_json()?;
        replace(&dir.join("tokenizer.json"), |out| out.write_all(tokenizer.as_bytes()))?;
        let write_json =
            |name: &str, value: &Value| replace(&dir.join(name), |out| writeln!(out, "{value:#}"));
        write_json("tokenizer_config.json", &self.tokenizer_config())?;
        if let Some(template) = self.chat_template() {
            replace(&dir.join("chat_template.jinja"), |out| {
                out.write_all(template.source().as_bytes())
            })?;
        }
        write_json("generation_config.json", &self.generation_config())?;
        write_json(CONFIG, &self.config_json())
    }

    fn write_weights(&self, dir: &Path, max_shard_bytes: u64) -> Result<()> {
        let by_name = self.weights_to_save();
        let weights = self.weights();
        let mut shards: Vec<Vec<&Arc<Weight>>> = Vec::new();
        let (mut total, mut room) = (0u64, 0u64);
        for weight in &weights {
            let matrix = weight.matrix();
            let bytes = (matrix.elem_count() * matrix.dtype().size_in_bytes()) as u64;
            total += bytes;
            match shards.last_mut() {
                Some(shard) if bytes <= room => {
                    shard.push(weight);
                    room -= bytes;
                }
                _ => {
                    shards.push(vec![weight]);
                    room = max_shard_bytes.saturating_sub(bytes);
                }
            }
        }
        let count = shards.len();
        let mut map = Map::new();
        let mut files = Vec::new();
        let mut written = vec![INDEX.to_owned()];
        for (number, shard) in shards.into_iter().enumerate() {
            let file = match count {
                1 => SINGLE.to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            let matrices = shard
                .into_iter()
                .map(|weight| {
                    let matrix =
                        by_name.get(weight.name()).cloned().unwrap_or_else(|| weight.matrix());
                    let turned = self.is_transposed(weight.name());
                    map.insert(weight.name().to_owned(), file.clone().into());
                    Ok((weight.name(), if turned { matrix.tensor()?.t()?.into() } else { matrix }))
                })
                .collect::<Result<Vec<_>>>()?;
            let entries: Vec<_> = matrices
                .iter()
                .map(|(name, matrix)| match matrix {
                    Matrix::Plain(tensor) => Entry::tensor(*name, tensor),
                    Matrix::Quantized(blocks) => {
                        Entry::new(*name, blocks.dims(), Data::Blocks(blocks))
                    }
                })
                .collect();
            let metadata = [("format", "pt"), (MARK, VERSION)];
            files.push(prepare(&dir.join(&file), |out| {
                tensor_file::write_while(out, &entries, &metadata, &goes_on)
            })?);
            written.push(file);
        }
        if count == 1 {
            // What a larger model left here would be taken for this one's.
            written.retain(|file| file != INDEX);
        } else {
            let index = json!({
                "metadata": { "total_size": total, MARK: VERSION },
                "weight_map": map,
            });
            files.push(prepare(&dir.join(INDEX), |out| writeln!(out, "{index:#}"))?);
        }
        // From here on nothing takes time: a model that was here is not replaced by half of another.
        files.into_iter().try_for_each(Prepared::put)?;
        remove_others(dir, &written)
    }

    /// What is written for each weight, by name: a merged adapter's values where there is one, else
    /// those that were loaded. Beside an adapter that is not merged, what it trains of the model's
    /// own weights is not written either.
    pub(crate) fn weights_to_save(&self) -> HashMap<String, Matrix> {
        let snapshot = self.snapshot();
        let overlay = snapshot.first();
        let slots = self.slots();
        let merged = slots
            .iter()
            .all(|slot| overlay.projection(slot).is_none_or(|p| p.as_linear().is_some()));
        let base = Overlay::base();
        let context = Context::new(if merged { overlay } else { base }, Mode::default());
        let mut matrices: HashMap<String, Matrix> = self
            .weights()
            .iter()
            .map(|weight| (weight.name().to_owned(), context.weight(weight)))
            .collect();
        let replaced = slots.iter().filter_map(|slot| Some((slot, overlay.projection(slot)?)));
        for (slot, projection) in replaced.filter(|_| merged) {
            if let Some(linear) = projection.as_linear() {
                matrices.insert(format!("{}.weight", slot.path()), linear.matrix_in(&context));
            }
        }
        matrices
    }

    /// Says that the active adapter is not in the weights, if it is not.
    pub(crate) fn tell_not_in_weights(&self, path: &Path) {
        let snapshot = self.snapshot();
        let overlay = snapshot.first();
        let (slots, residuals) = (self.slots(), self.residuals());
        let mut projections = slots.iter().filter_map(|slot| overlay.projection(slot));
        let why = if projections.any(|projection| projection.as_linear().is_none()) {
            "which is not merged: `merge_adapter` puts it into the weights"
        } else if residuals.iter().any(|place| overlay.branch(place).is_some())
            || overlay.positions_before() > 0
        {
            "which no weights can hold"
        } else {
            return;
        };
        tunebook_progress::stream(&format!(
            "note: `{}` has the base's weights without the active adapter, {why}; `save_adapter` saves it by itself\n",
            path.display()
        ));
    }

    /// The file that the model came with, or what follows from its config.
    fn generation_config(&self) -> Value {
        let brought = std::fs::read_to_string(self.path().join("generation_config.json")).ok();
        let brought =
            brought.and_then(|text| serde_json::from_str::<Map<String, Value>>(&text).ok());
        let mut fields = brought.unwrap_or_default();
        let config = self.config().to_json();
        for field in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            if !config[field].is_null() {
                fields.insert(field.to_owned(), config[field].clone());
            }
        }
        Value::Object(fields)
    }

    fn config_json(&self) -> Value {
        let mut config = self.config().to_json();
        config["dtype"] = match self.dtype() {
            candle_core::DType::BF16 => "bfloat16".into(),
            candle_core::DType::F16 => "float16".into(),
            _ => "float32".into(),
        };
        config[MARK] = VERSION.into();
        config
    }

    fn tokenizer_config(&self) -> Value {
        let tokenizer = self.tokenizer();
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "model_max_length": self.config().max_position_embeddings,
        });
        for (name, id) in [
            ("bos_token", tokenizer.bos_id()),
            ("eos_token", tokenizer.eos_id()),
            ("pad_token", tokenizer.pad_id()),
            ("unk_token", tokenizer.unk_id()),
        ] {
            if let Some(token) = token(id) {
                config[name] = token.into();
            }
        }
        config
    }
}

/// Whether the user wants the writing to go on.
pub(crate) fn goes_on() -> std::io::Result<()> {
    // Not of the kind `Interrupted`, after which `write_all` tries again.
    interrupt::check().map_err(std::io::Error::other)
}

/// A file that is flushed to the disk as it is written, so that its end does not wait for all of it.
/// Dropped before [`Synced::put`] it is gone.
pub(crate) struct Synced {
    file: WholeFile,
    unsynced: usize,
}

impl Synced {
    /// What a slow disk takes in less than a second.
    const MOST_BYTES: usize = 64 << 20;

    pub(crate) fn create(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: WholeFile::create(path)?, unsynced: 0 })
    }

    /// Puts it in its place, flushed.
    pub(crate) fn put(self) -> std::io::Result<()> {
        self.file.put()
    }
}

impl Write for Synced {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.unsynced >= Self::MOST_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        let count = self.file.write(&bytes[..bytes.len().min(Self::MOST_BYTES)])?;
        self.unsynced += count;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// A file that is written and flushed under another name. Dropped, it is gone.
struct Prepared {
    file: Synced,
    path: PathBuf,
}

impl Prepared {
    fn put(self) -> Result<()> {
        self.file.put().map_err(Error::write(&self.path))
    }
}

fn prepare(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<Synced>) -> std::io::Result<()>,
) -> Result<Prepared> {
    let written = (|| {
        let mut out = BufWriter::with_capacity(1 << 20, Synced::create(path)?);
        fill(&mut out)?;
        let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.file.sync_all()?;
        Ok(file)
    })();
    Ok(Prepared { file: written.map_err(Error::write(path))?, path: path.to_owned() })
}

/// Writes a file under another name, flushes it and renames it: whole or as it was before.
fn replace(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<Synced>) -> std::io::Result<()>,
) -> Result<()> {
    prepare(path, fill)?.put()
}

/// Refuses a folder in which [`Model::save_pretrained`] would have to replace files that this crate did
/// not write: for those who ask before hours of training.
///
/// # Errors
/// The folder cannot be read, or holds such a file.
pub fn check_save_folder(dir: &Path) -> Result<()> {
    let marked = |json: Option<Value>, within: Option<&str>| {
        let json = json.unwrap_or_default();
        !within.map_or(&json, |within| &json[within])[MARK].is_null()
    };
    let json = |path: &Path| serde_json::from_slice(&std::fs::read(path).ok()?).ok();
    let config = dir.join(CONFIG);
    // Without it a folder is no model's, and all other files count by themselves.
    let is_ours = config.exists() && marked(json(&config), None);
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let own = match name.as_str() {
            CONFIG => is_ours,
            INDEX => marked(json(&path), Some("metadata")),
            name if is_weights(name) => marked(header(&path), Some("__metadata__")),
            "tokenizer.json"
            | "tokenizer_config.json"
            | "chat_template.jinja"
            | "generation_config.json" => is_ours || !config.exists() && has_marked(dir),
            _ => true,
        };
        if !own {
            return Err(Error::Occupied { path: dir.to_owned(), file: name });
        }
    }
    Ok(())
}

/// Whether this crate has written weights into the folder, and was ended before the rest.
fn has_marked(dir: &Path) -> bool {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    files
        .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
        .any(|path| header(&path).is_some_and(|header| !header["__metadata__"][MARK].is_null()))
}

/// `model.safetensors` or `model-00001-of-00002.safetensors`.
fn is_weights(name: &str) -> bool {
    let digits = |part: &str| part.len() == 5 && part.bytes().all(|byte| byte.is_ascii_digit());
    let shard = name
        .strip_prefix("model-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .and_then(|rest| rest.split_once("-of-"));
    name == SINGLE || shard.is_some_and(|(number, count)| digits(number) && digits(count))
}

/// The header of a safetensors file.
fn header(path: &Path) -> Option<Value> {
    const MOST_BYTES: u64 = 100_000_000; // what the format allows
    let mut file = std::fs::File::open(path).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = Some(u64::from_le_bytes(length)).filter(|length| *length <= MOST_BYTES)?;
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).ok()?;
    serde_json::from_slice(&header).ok()
}

/// Removes weights of the model that was saved in this folder before; [`check_save_folder`] has seen to it
/// that they are ours.
fn remove_others(dir: &Path, written: &[String]) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if (is_weights(&name) || name == INDEX) && !written.iter().any(|file| *file == name) {
            std::fs::remove_file(&path).map_err(Error::write(&path))?;
        }
    }
    Ok(())
}
