//! LoRA as a GGUF file that llama.cpp puts onto a model of its own (`--lora`,
//! <https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py>): `general.type` is
//! `adapter`, and beside the name of each matrix stand `NAME.lora_a` `[r, in]` and `NAME.lora_b`
//! `[out, r]`, the rows of the second in llama.cpp's order.

use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};

use super::Value;
use super::layout::{self, Names};
use super::writer::{Entry, Source, in_their_order, write_file};
use crate::error::{Error, Result};
use crate::model::Model;

/// The update of one projection: `scaling · b · a` is added to its weight.
#[derive(Clone, Debug)]
pub struct LoraUpdate {
    /// The projection, by Hugging Face's name, such as `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// `[r, in]`.
    pub a: Tensor,
    /// `[out, r]`.
    pub b: Tensor,
    /// The factor on the product.
    pub scaling: f64,
}

impl Model {
    /// Writes LoRA updates of this model's projections as a GGUF adapter, in f32. llama.cpp
    /// multiplies each product with `lora_alpha / r`, so `b` takes up what is left of another
    /// scaling. Returns the path.
    ///
    /// # Errors
    /// When a projection is not this model's or a matrix does not fit it, the architecture is not
    /// known to llama.cpp, or the file cannot be written.
    pub fn save_gguf_lora(
        &self,
        path: impl AsRef<Path>,
        name: &str,
        lora_alpha: f64,
        updates: &[LoraUpdate],
    ) -> Result<PathBuf> {
        let path = path.as_ref();
        let names = Names::of(self.config());
        let slots = self.slots();
        let mut entries = Vec::with_capacity(2 * updates.len());
        for update in updates {
            let weight = format!("{}.weight", update.path);
            let slot = slots.iter().find(|slot| slot.path() == update.path);
            let (Some(slot), Some(gguf)) = (slot, names.gguf(&weight)) else {
                return Err(Error::NotInFormat {
                    model: name.to_owned(),
                    format: "GGUF",
                    what: format!(
                        "an update of `{}`, which is no projection of `{}`",
                        update.path,
                        self.name()
                    ),
                });
            };
            let base = slot.base().as_ref();
            let (r, input) = update.a.dims2()?;
            let (output, rank) = update.b.dims2()?;
            let expected =
                [crate::Projection::out_features(base), crate::Projection::in_features(base)];
            if [output, input] != expected || r != rank {
                return Err(Error::Shape {
                    origin: name.to_owned(),
                    name: format!(
                        "{} (lora_B [{output}, {rank}] · lora_A [{r}, {input}])",
                        update.path
                    ),
                    expected: expected.to_vec(),
                    found: vec![output, input],
                });
            }
            let plain =
                |tensor: &Tensor| tensor.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32);
            let mut b = (plain(&update.b)? * (update.scaling * r as f64 / lora_alpha))?;
            if let Some(order) = layout::row_order(self.config(), &weight) {
                b = in_their_order(&b, order)?;
            }
            for (half, tensor) in [("lora_a", plain(&update.a)?), ("lora_b", b)] {
                entries.push(Entry {
                    name: format!("{gguf}.{half}"),
                    shape: tensor.dims().to_vec(),
                    kind: GgmlDType::F32,
                    offset: 0,
                    source: Source::Values(tensor.flatten_all()?.to_vec1()?),
                });
            }
        }
        let text = |text: &str| Value::String(text.to_owned());
        let metadata: Vec<(String, Value)> = [
            ("general.type", text("adapter")),
            ("general.architecture", text(layout::architecture(self.config()))),
            ("general.name", text(name)),
            ("general.file_type", Value::Unsigned(0)),
            ("adapter.type", text("lora")),
            ("adapter.lora.alpha", Value::Float(lora_alpha)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        write_file(path, &metadata, &mut entries, self.config())?;
        Ok(path.to_owned())
    }
}
