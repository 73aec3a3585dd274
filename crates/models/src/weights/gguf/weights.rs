//! The weights of a GGUF file as a checkpoint under Hugging Face's names.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};

use super::layout::{self, Names};
use super::{Gguf, TensorInfo};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{Checkpoint, Stored, values};
use tunebook_ops::{Format, Quantized};

/// The weights of a file under Hugging Face's names and in Hugging Face's order.
pub(crate) struct GgufWeights<'a> {
    file: &'a Gguf,
    config: &'a Config,
    names: Names,
}

impl<'a> GgufWeights<'a> {
    pub(crate) fn new(file: &'a Gguf, config: &'a Config) -> Self {
        Self { file, config, names: Names::of(config) }
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        let found = self.names.gguf(name).and_then(|gguf| self.file.tensors.get(&gguf));
        found.ok_or_else(|| Error::MissingTensors {
            origin: self.origin(),
            architecture: self.config.model_type.clone(),
            names: vec![name.to_owned()],
        })
    }

    /// The bytes of a tensor, with the rows in Hugging Face's order. Whole rows move, so they can
    /// stay quantised.
    fn bytes(&self, name: &str, info: &TensorInfo) -> Result<Cow<'_, [u8]>> {
        let bytes = &self.file.file[info.start..info.end];
        let Some(order) = layout::row_order(self.config, name) else {
            return Ok(Cow::Borrowed(bytes));
        };
        let rows = info.shape[0];
        if rows != order.len() || !bytes.len().is_multiple_of(rows) {
            return Err(Error::Corrupt {
                path: self.file.path.clone(),
                at: format!("tensor `{name}`"),
                reason: format!("expected {} rows of heads, found {rows}", order.len()),
            });
        }
        let row_bytes = bytes.len() / rows;
        let mut ordered = Vec::with_capacity(bytes.len());
        for row in order {
            ordered.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
        }
        Ok(Cow::Owned(ordered))
    }
}

impl Checkpoint for GgufWeights<'_> {
    fn origin(&self) -> String {
        self.file.origin()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.file
            .tensors
            .iter()
            .map(|(name, info)| (self.names.hf(name), info.shape.clone()))
            .collect()
    }

    fn load(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let info = self.info(name)?;
        let bytes = self.bytes(name, info)?;
        let shape = info.shape.as_slice();
        let tensor = match info.dtype {
            GgmlDType::F32 => values(&bytes, Stored::F32, dtype, shape)?,
            GgmlDType::F16 => values(&bytes, Stored::F16, dtype, shape)?,
            GgmlDType::BF16 => values(&bytes, Stored::Bf16, dtype, shape)?,
            quantised => {
                let storage = QStorage::from_data(bytes, &Device::Cpu, quantised)?;
                QTensor::new(storage, shape)?.dequantize(&Device::Cpu)?.to_dtype(dtype)?
            }
        };
        match layout::norm_offset(self.config, name) {
            0.0 => Ok(tensor),
            offset => Ok((tensor - offset)?),
        }
    }

    fn format(&self, name: &str) -> Option<Format> {
        let dtype = self.info(name).ok()?.dtype;
        (dtype != GgmlDType::F32).then_some(Format::Ggml(dtype))
    }

    fn load_blocks(&self, name: &str) -> Result<Quantized> {
        let info = self.info(name)?;
        let &[rows, cols] = info.shape.as_slice() else {
            return Err(Error::Shape {
                origin: self.origin(),
                name: name.to_owned(),
                expected: vec![0, 0],
                found: info.shape.clone(),
            });
        };
        let bytes = self.bytes(name, info)?;
        Ok(Quantized::from_blocks(Format::Ggml(info.dtype), [rows, cols], &bytes, &Device::Cpu)?)
    }
}
