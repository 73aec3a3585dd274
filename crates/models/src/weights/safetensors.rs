//! safetensors files (<https://github.com/huggingface/safetensors>): one, or several with
//! `model.safetensors.index.json`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::Dtype;
use ::safetensors::{SafeTensorError, SafeTensors};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

use super::{Checkpoint, Stored, values};
use crate::error::{Error, Result};
use tunebook_ops::{Format, Quantized};

/// Where one tensor lies.
struct TensorInfo {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range in the file.
    start: usize,
    end: usize,
}

/// The open files of one model.
pub(crate) struct Shards {
    folder: PathBuf,
    files: Vec<Mmap>,
    tensors: HashMap<String, TensorInfo>,
}

/// The name of the file of an unsharded model.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The name of the file that lists the shards of a model.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

impl Shards {
    /// Opens `model.safetensors` in `folder`, or all shards that the index there names.
    ///
    /// # Errors
    /// When a file is missing, ends too early, or lacks a tensor that the index promises.
    pub(crate) fn open_folder(folder: &Path) -> Result<Self> {
        let index = folder.join(INDEX);
        if !index.is_file() {
            return Self::open(folder, &[SINGLE.to_owned()]);
        }
        let text = std::fs::read_to_string(&index).map_err(Error::io(&index))?;
        let promised = weight_map(&text).map_err(|reason| Error::Corrupt {
            path: index.clone(),
            at: "`weight_map`".to_owned(),
            reason,
        })?;
        let names: BTreeSet<&String> = promised.values().collect();
        let names: Vec<String> = names.into_iter().cloned().collect();
        let shards = Self::open(folder, &names)?;
        for (tensor, file) in &promised {
            if shards.tensors.get(tensor).is_none_or(|info| names[info.file] != *file) {
                return Err(Error::Corrupt {
                    path: index,
                    at: format!("tensor `{tensor}`"),
                    reason: format!("expected it in `{file}`, which does not hold it"),
                });
            }
        }
        Ok(shards)
    }

    fn open(folder: &Path, names: &[String]) -> Result<Self> {
        let mut files = Vec::new();
        let mut tensors = HashMap::new();
        for (number, name) in names.iter().enumerate() {
            let path = folder.join(name);
            let file = File::open(&path).map_err(Error::io(&path))?;
            // SAFETY: model files are written once and then only read; they are replaced by
            // renaming, which keeps this mapping.
            let file = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
            let (header, metadata) = SafeTensors::read_metadata(&file).map_err(|error| Error::Corrupt {
                path: path.clone(),
                at: "the header".to_owned(),
                reason: match error {
                    SafeTensorError::MetadataIncompleteBuffer => {
                        format!("expected the tensors that it lists to fill the file exactly, found a file of {} bytes", file.len())
                    }
                    other => other.to_string(),
                },
            })?;
            let data = header + size_of::<u64>();
            for (tensor, info) in metadata.tensors() {
                let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
                tensors.insert(
                    tensor,
                    TensorInfo {
                        file: number,
                        dtype: info.dtype,
                        shape: info.shape.clone(),
                        start,
                        end,
                    },
                );
            }
            files.push(file);
        }
        Ok(Self { folder: folder.to_owned(), files, tensors })
    }
}

impl Shards {
    /// Files of a model without its output head name no tensor with the prefix that all others
    /// have: adds it.
    pub(crate) fn with_prefix(mut self, prefix: &str) -> Self {
        if !self.tensors.keys().any(|name| name.starts_with(prefix)) {
            let bare = std::mem::take(&mut self.tensors);
            self.tensors = bare
                .into_iter()
                .map(|(name, info)| match name.starts_with("lm_head.") {
                    true => (name, info),
                    false => (format!("{prefix}{name}"), info),
                })
                .collect();
        }
        self
    }

    /// Of a model that reads pictures, too, the tensors of its text model, under the names that they
    /// have in a text model's files; and the number of the others.
    pub(crate) fn text_part(mut self) -> (Self, usize) {
        // `language_model.model.layers…`, and since transformers 4.52 `model.language_model.layers…`.
        let (outside, inside) = ("language_model.", "model.language_model.");
        let holds = |part: &str| self.tensors.keys().any(|name| name.starts_with(part));
        let (nested, becomes) = match (holds(inside), holds(outside)) {
            (true, _) => (inside, "model."),
            (false, true) => (outside, ""),
            (false, false) => return (self, 0),
        };
        let all = std::mem::take(&mut self.tensors);
        let count = all.len();
        for (name, info) in all {
            if let Some(rest) = name.strip_prefix(nested) {
                self.tensors.insert(format!("{becomes}{rest}"), info);
            } else if name.starts_with("lm_head.") {
                self.tensors.insert(name, info);
            }
        }
        let others = count - self.tensors.len();
        (self, others)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensors {
            origin: self.folder.display().to_string(),
            architecture: "this".to_owned(),
            names: vec![name.to_owned()],
        })
    }

    /// The type of most of the weights.
    pub(crate) fn dtype(&self) -> DType {
        let largest = self.tensors.values().max_by_key(|info| info.end - info.start);
        match largest.map(|info| info.dtype) {
            Some(Dtype::F16) => DType::F16,
            Some(Dtype::BF16) => DType::BF16,
            _ => DType::F32,
        }
    }
}

/// Which file holds which tensor.
pub(crate) fn weight_map(text: &str) -> std::result::Result<BTreeMap<String, String>, String> {
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
    let map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or("expected an object, found none")?;
    map.iter()
        .map(|(tensor, file)| match file.as_str() {
            // A name with a folder in it could point anywhere.
            Some(file) if !file.contains(['/', '\\']) => Ok((tensor.clone(), file.to_owned())),
            _ => Err(format!("expected a file name for `{tensor}`, found {file}")),
        })
        .collect()
}

impl Checkpoint for Shards {
    fn origin(&self) -> String {
        self.folder.display().to_string()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.tensors.iter().map(|(name, info)| (name.clone(), info.shape.clone())).collect()
    }

    fn load(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let info = self.info(name)?;
        let bytes = &self.files[info.file][info.start..info.end];
        let stored = match info.dtype {
            Dtype::F32 => Stored::F32,
            Dtype::F16 => Stored::F16,
            Dtype::BF16 => Stored::Bf16,
            other => {
                return Err(Error::Unsupported {
                    origin: self.origin(),
                    what: "a tensor of type",
                    found: format!("{other:?} (`{name}`)"),
                    known: "F32, F16, BF16".to_owned(),
                });
            }
        };
        values(bytes, stored, dtype, &info.shape)
    }

    fn transposes(&self) -> bool {
        true
    }

    fn format(&self, name: &str) -> Option<Format> {
        match self.tensors.get(name)?.dtype {
            Dtype::F16 => Some(Format::Ggml(GgmlDType::F16)),
            Dtype::BF16 => Some(Format::Ggml(GgmlDType::BF16)),
            _ => None,
        }
    }

    fn load_blocks(&self, name: &str) -> Result<Quantized> {
        let info = self.info(name)?;
        match (self.format(name), info.shape.as_slice()) {
            (Some(format), &[rows, cols]) => {
                let bytes = &self.files[info.file][info.start..info.end];
                Ok(Quantized::from_blocks(format, [rows, cols], bytes, &Device::Cpu)?)
            }
            _ => Err(Error::Unsupported {
                origin: self.origin(),
                what: "a tensor of type",
                found: format!("{:?} {:?} (`{name}`)", info.dtype, info.shape),
                known: "a matrix in F16 or BF16".to_owned(),
            }),
        }
    }
}
