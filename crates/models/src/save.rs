//! A model as a folder that this crate and Python `transformers` load: `config.json`, tokenizer, chat template and
//! `model.safetensors`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::matrix::Matrix;
use crate::model::Model;
use crate::tensor_file::{self, Data, Entry};
use crate::weights::safetensors::SINGLE;

impl Model {
    /// Writes the model with its weights as they are now (those of the base: an adapter is saved by itself) into `dir`, as `transformers`'
    /// `save_pretrained` does for model and tokenizer, quantised ones dequantised to f32. Returns the folder. Files that are there already are replaced, each at once.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save_pretrained(&self, dir: &str) -> Result<PathBuf> {
        let dir = PathBuf::from(dir);
        std::fs::create_dir_all(&dir).map_err(Error::write(&dir))?;
        let weights = self.weights();
        let matrices = weights
            .iter()
            .map(|weight| {
                let matrix = weight.matrix();
                let turned = self.is_transposed(weight.name());
                Ok((weight.name(), if turned { matrix.tensor()?.t()?.into() } else { matrix }))
            })
            .collect::<Result<Vec<_>>>()?;
        let entries: Vec<_> = matrices
            .iter()
            .map(|(name, matrix)| match matrix {
                Matrix::Plain(tensor) => Entry::tensor(*name, tensor),
                Matrix::Quantized(blocks) => Entry::new(*name, blocks.dims(), Data::Blocks(blocks)),
            })
            .collect();
        replace(&dir.join(SINGLE), |out| tensor_file::write(out, &entries, &[("format", "pt")]))?;
        let tokenizer = self.tokenizer().to_json()?;
        replace(&dir.join("tokenizer.json"), |out| out.write_all(tokenizer.as_bytes()))?;
        let write_json =
            |name: &str, value: &Value| replace(&dir.join(name), |out| writeln!(out, "{value:#}"));
        write_json("tokenizer_config.json", &self.tokenizer_config())?;
        if let Some(template) = self.chat_template() {
            replace(&dir.join("chat_template.jinja"), |out| out.write_all(template.source().as_bytes()))?;
        }
        write_json("config.json", &self.config_json())?;
        Ok(dir)
    }

    fn config_json(&self) -> Value {
        let mut config = self.config().to_json();
        config["dtype"] = match self.dtype() {
            candle_core::DType::BF16 => "bfloat16".into(),
            candle_core::DType::F16 => "float16".into(),
            _ => "float32".into(),
        };
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

/// Writes a file under another name, flushes it and renames it: whole or as it was before.
fn replace(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        fill(&mut out)?;
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    written.map_err(|source| {
        let _ = std::fs::remove_file(&temporary); // never made, or of no use
        Error::write(path)(source)
    })
}
