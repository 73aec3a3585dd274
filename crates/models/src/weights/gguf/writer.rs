//! Writing GGUF (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>) as llama.cpp reads
//! it: its names, its order of rows.

use std::collections::HashMap;
use std::io::{BufWriter, Result as IoResult, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};

use super::layout::{self, Names};
use super::vocabulary;
use super::{Array, Gguf, Value};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::Weight;
use crate::model::Model;
use crate::text::chat_template::ChatTemplate;
use crate::weights::save::Synced;
use tunebook_ops::Matrix;

const ALIGNMENT: usize = 32;

/// How matrices are stored in a GGUF file; norms and biases are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GgufType {
    /// As they are computed with.
    F32,
    /// Half the size, hardly any loss.
    #[default]
    F16,
    /// 8.5 bits a value.
    Q8_0,
    /// 4.5 bits a value; the embedding and the output head 8.5.
    Q4_0,
    /// 5 bits a value; the embedding and the output head 8.5.
    Q4_1,
}

impl GgufType {
    /// The type of one tensor, and llama.cpp's number of the whole file's.
    fn of(self, gguf_name: &str, shape: &[usize]) -> GgmlDType {
        let width = shape.last().copied().unwrap_or(0);
        if shape.len() < 2 || self == Self::F32 {
            return GgmlDType::F32;
        }
        let outer = gguf_name.starts_with("token_embd.") || gguf_name.starts_with("output.");
        match self {
            // llama.cpp adds positions as f32.
            _ if gguf_name.starts_with("position_embd.") => GgmlDType::F32,
            Self::F32 | Self::F16 => GgmlDType::F16,
            _ if !width.is_multiple_of(32) => GgmlDType::F16,
            Self::Q4_0 if !outer => GgmlDType::Q4_0,
            Self::Q4_1 if !outer => GgmlDType::Q4_1,
            _ => GgmlDType::Q8_0,
        }
    }

    fn file_type(self) -> u64 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
        }
    }
}

impl Model {
    /// Writes the model as one GGUF file, which llama.cpp runs, with its tokenizer and chat
    /// template. As in [`Model::save_pretrained`], an adapter that is merged is in the weights, and
    /// one that is active beside them is not, which a line under the cell says. A file of that name
    /// is replaced, at once when the new one is whole.
    ///
    /// # Errors
    /// When the file cannot be written, or model or tokenizer have what GGUF has no place for; a
    /// request to stop.
    pub fn save_gguf(&self, path: impl AsRef<Path>, kind: GgufType) -> Result<PathBuf> {
        self.tell_not_in_weights(path.as_ref());
        self.write_gguf(path.as_ref(), kind)?;
        Ok(path.as_ref().to_owned())
    }

    fn write_gguf(&self, path: &Path, kind: GgufType) -> Result<()> {
        let tokenizer = if self.path().is_file() {
            let source = Gguf::open(self.path())?;
            let mut keys: Vec<(String, Value)> = source
                .keys()
                .filter(|key| key.starts_with("tokenizer."))
                .filter_map(|key| Some((key.clone(), source.get(key)?.clone())))
                .collect();
            keys.sort_by(|a, b| a.0.cmp(&b.0));
            keys
        } else {
            let template = self.chat_template().map(ChatTemplate::source);
            let architecture = layout::architecture(self.config());
            vocabulary::metadata(
                self.tokenizer(),
                template,
                self.config(),
                architecture,
                self.name(),
            )?
        };
        let merged = self.weights_to_save();
        write(path, self.name(), self.config(), (&self.weights(), &merged), tokenizer, kind)
    }
}

/// What is written of one tensor.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: GgmlDType,
    /// Into the data; set when the file is written.
    pub(crate) offset: usize,
    pub(crate) source: Source,
}

pub(crate) enum Source {
    Weight(Arc<Weight>),
    /// In place of the weight of that name.
    Matrix(String, Matrix),
    /// As they are written.
    Values(Vec<f32>),
}

/// Writes a model; what is in `merged` stands for the weights of those names.
pub(crate) fn write(
    path: &Path,
    name: &str,
    config: &Config,
    (weights, merged): (&[Arc<Weight>], &HashMap<String, Matrix>),
    tokenizer: Vec<(String, Value)>,
    kind: GgufType,
) -> Result<()> {
    let lacks = config.family.definition().not_in_gguf(&config.shape());
    if let Some(what) = lacks {
        return Err(Error::NotInFormat { model: name.to_owned(), format: "GGUF", what });
    }
    let mut metadata = metadata(name, config, kind);
    metadata.extend(tokenizer);
    let mut entries = entries(name, config, weights, kind)?;
    for entry in &mut entries {
        if let Source::Weight(weight) = &entry.source
            && let Some(matrix) = merged.get(weight.name())
        {
            entry.source = Source::Matrix(weight.name().to_owned(), matrix.clone());
        }
    }
    write_file(path, &metadata, &mut entries, config)
}

/// Writes a file under another name and renames it: whole or as it was before.
pub(crate) fn write_file(
    path: &Path,
    metadata: &[(String, Value)],
    entries: &mut [Entry],
    config: &Config,
) -> Result<()> {
    let mut offset = 0;
    for entry in &mut *entries {
        entry.offset = offset;
        let elements: usize = entry.shape.iter().product();
        let size = elements / entry.kind.block_size() * entry.kind.type_size();
        offset = (offset + size).next_multiple_of(ALIGNMENT);
    }
    let file = Synced::create(path).map_err(Error::write(path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let header = header(metadata, entries);
    let begun = out.write_all(&header).and_then(|()| pad(&mut out, header.len()));
    begun.map_err(Error::write(path))?;
    for entry in entries {
        tunebook_progress::interrupt::check()?;
        let bytes = bytes(entry, config)?;
        let put = out.write_all(&bytes).and_then(|()| pad(&mut out, bytes.len()));
        put.map_err(Error::write(path))?;
    }
    let file = out.into_inner().map_err(|error| Error::write(path)(error.into_error()))?;
    file.put().map_err(Error::write(path))
}

fn metadata(name: &str, config: &Config, kind: GgufType) -> Vec<(String, Value)> {
    let architecture = layout::architecture(config);
    let text = |text: &str| Value::String(text.to_owned());
    let mut metadata = vec![
        ("general.architecture".to_owned(), text(architecture)),
        ("general.name".to_owned(), text(name)),
        ("general.file_type".to_owned(), Value::Unsigned(kind.file_type())),
        ("general.quantization_version".to_owned(), Value::Unsigned(2)),
    ];
    let mut put = |key: &str, value| metadata.push((format!("{architecture}.{key}"), value));
    for (key, count) in [
        ("vocab_size", config.vocab_size),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
    ] {
        put(key, Value::Unsigned(count as u64));
    }
    config.family.definition().to_gguf(&config.shape(), &mut put);
    metadata
}

fn entries(
    name: &str,
    config: &Config,
    weights: &[Arc<Weight>],
    kind: GgufType,
) -> Result<Vec<Entry>> {
    let names = Names::of(config);
    let mut entries = Vec::with_capacity(weights.len() + 2);
    for weight in weights {
        let Some(gguf) = names.gguf(weight.name()) else {
            let what = format!("the tensor `{}`", weight.name());
            return Err(Error::NotInFormat { model: name.to_owned(), format: "GGUF", what });
        };
        let shape = weight.matrix().dims().to_vec();
        let kind = kind.of(&gguf, &shape);
        entries.push(Entry {
            name: gguf,
            shape,
            kind,
            offset: 0,
            source: Source::Weight(Arc::clone(weight)),
        });
    }
    for (name, values) in config.family.definition().gguf_extra(&config.shape()) {
        entries.push(Entry {
            name: name.to_owned(),
            shape: vec![values.len()],
            kind: GgmlDType::F32,
            offset: 0,
            source: Source::Values(values),
        });
    }
    Ok(entries)
}

/// The values of a tensor as they are stored, in llama.cpp's order.
fn bytes(entry: &Entry, config: &Config) -> Result<Vec<u8>> {
    let (name, matrix) = match &entry.source {
        Source::Values(values) => {
            return Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect());
        }
        Source::Weight(weight) => (weight.name(), weight.matrix()),
        Source::Matrix(name, matrix) => (name.as_str(), matrix.clone()),
    };
    let mut tensor = matrix.tensor()?.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let offset = layout::norm_offset(config, name);
    if offset != 0.0 {
        tensor = (tensor + offset)?;
    }
    if let Some(order) = layout::row_order(config, name) {
        tensor = in_their_order(&tensor, order)?;
    }
    let tensor = tensor.contiguous()?;
    if entry.kind == GgmlDType::F32 {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        return Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect());
    }
    Ok(QTensor::quantize(&tensor, entry.kind)?.data()?.into_owned())
}

/// Rows as llama.cpp has them: row i of ours is row `order[i]` of theirs.
pub(crate) fn in_their_order(tensor: &Tensor, order: Vec<usize>) -> Result<Tensor> {
    let mut inverse = vec![0u32; order.len()];
    for (ours, theirs) in order.into_iter().enumerate() {
        inverse[theirs] = ours as u32;
    }
    let count = inverse.len();
    Ok(tensor.index_select(&Tensor::from_vec(inverse, count, &Device::Cpu)?, 0)?)
}

fn header(metadata: &[(String, Value)], entries: &[Entry]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        out.extend(kind_of(value).to_le_bytes());
        put_value(&mut out, value);
    }
    for entry in entries {
        text(&mut out, &entry.name);
        out.extend((entry.shape.len() as u32).to_le_bytes());
        for size in entry.shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes());
        }
        let number: u32 = match entry.kind {
            GgmlDType::F16 => 1,
            GgmlDType::Q4_0 => 2,
            GgmlDType::Q4_1 => 3,
            GgmlDType::Q8_0 => 8,
            _ => 0,
        };
        out.extend(number.to_le_bytes());
        out.extend((entry.offset as u64).to_le_bytes());
    }
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The number of a value's type: 32 bits wide, as llama.cpp asks for, unless the value needs more.
fn kind_of(value: &Value) -> u32 {
    match value {
        Value::Unsigned(n) => unsigned_kind(&[*n]),
        Value::Signed(n) => signed_kind(&[*n]),
        Value::Float(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
    }
}

fn unsigned_kind(values: &[u64]) -> u32 {
    if values.iter().all(|n| u32::try_from(*n).is_ok()) { 4 } else { 10 }
}

fn signed_kind(values: &[i64]) -> u32 {
    if values.iter().all(|n| i32::try_from(*n).is_ok()) { 5 } else { 11 }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Unsigned(n) => put_unsigned(out, &[*n]),
        Value::Signed(n) => put_signed(out, &[*n]),
        Value::Float(x) => out.extend((*x as f32).to_le_bytes()),
        Value::Bool(flag) => out.push(u8::from(*flag)),
        Value::String(string) => text(out, string),
        Value::Array(values) => put_array(out, values),
    }
}

fn put_unsigned(out: &mut Vec<u8>, values: &[u64]) {
    match unsigned_kind(values) {
        10 => values.iter().for_each(|n| out.extend(n.to_le_bytes())),
        _ => values.iter().for_each(|n| out.extend((*n as u32).to_le_bytes())),
    }
}

fn put_signed(out: &mut Vec<u8>, values: &[i64]) {
    match signed_kind(values) {
        11 => values.iter().for_each(|n| out.extend(n.to_le_bytes())),
        _ => values.iter().for_each(|n| out.extend((*n as i32).to_le_bytes())),
    }
}

/// One type for all: the widest that any of them needs.
fn put_array(out: &mut Vec<u8>, values: &Array) {
    let kind: u32 = match values {
        Array::Unsigned(values) => unsigned_kind(values),
        Array::Signed(values) => signed_kind(values),
        Array::Float(_) => 6,
        Array::Bool(_) => 7,
        Array::String(_) => 8,
        Array::Array(_) => 9,
    };
    out.extend(kind.to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    match values {
        Array::Unsigned(values) => put_unsigned(out, values),
        Array::Signed(values) => put_signed(out, values),
        Array::Float(values) => values.iter().for_each(|x| out.extend((*x as f32).to_le_bytes())),
        Array::Bool(values) => out.extend(values.iter().map(|flag| u8::from(*flag))),
        Array::String(values) => values.iter().for_each(|value| text(out, value)),
        Array::Array(values) => values.iter().for_each(|value| put_array(out, value)),
    }
}

fn pad(out: &mut impl Write, written: usize) -> IoResult<()> {
    let zeros = [0u8; ALIGNMENT];
    out.write_all(&zeros[..written.next_multiple_of(ALIGNMENT) - written])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families;
    use crate::weights::gguf::weights::GgufWeights;
    use crate::weights::{Keep, check, load};

    /// What is written as f32 is read back: the same config, the same values under the same names;
    /// or the reason is told.
    #[test]
    fn every_family_comes_back() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/logits");
        let folder = tempfile::tempdir().unwrap();
        let mut refused = Vec::new();
        let folders = std::fs::read_dir(&golden).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<String> = folders
            .filter(|path| path.join("config.json").is_file())
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        for name in &names {
            let model = Model::load(golden.join(name), &Device::Cpu).unwrap();
            let path = folder.path().join(format!("{name}.gguf"));
            if let Err(error) = write(
                &path,
                name,
                model.config(),
                (&model.weights(), &HashMap::new()),
                Vec::new(),
                GgufType::F32,
            ) {
                assert!(error.to_string().contains("GGUF has no place"), "{error}");
                refused.push(name);
                continue;
            }
            let file = Gguf::open(&path).unwrap();
            let config = Config::from_gguf(&file).unwrap();
            let parts = families::build(&config.family, &config.shape(), &Device::Cpu).unwrap();
            let weights = GgufWeights::new(&file, &config);
            check(&weights, name, &parts.needs).unwrap();
            load(&weights, &parts.needs, Keep::As(DType::F32), &Device::Cpu).unwrap();
            for (need, weight) in parts.needs.iter().zip(model.weights()) {
                assert_eq!(need.weight.name(), weight.name());
                let flat = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                for (a, b) in flat(need.weight.get()).iter().zip(flat(weight.get())) {
                    assert!((a - b).abs() < 1e-6, "{name}: {}", weight.name());
                }
            }
            let mut expected = model.config().to_json();
            let mut found = config.to_json();
            for json in [&mut expected, &mut found] {
                // Ids are the tokenizer's, which is not written here; a Mistral is a Llama; a
                // Llama's stretched frequencies come as a list.
                let fields = [
                    "bos_token_id",
                    "eos_token_id",
                    "pad_token_id",
                    "architectures",
                    "model_type",
                    "sliding_window",
                ];
                let fields = fields.iter().chain(&[
                    "rope_parameters",
                    "mlp_bias",
                    "hidden_act",
                    "num_ln_in_parallel_attn",
                ]);
                for field in fields {
                    json.as_object_mut().unwrap().remove(*field);
                }
            }
            assert_eq!(found, expected, "{name}");
        }
        // Qwen's window in some layers, SmolLM3's and Gemma's other patterns, Gemma 2's other
        // scale, ALiBi.
        assert_eq!(refused, ["falcon-rw", "gemma2", "gemma3", "qwen2", "smollm3"]);
    }
}
