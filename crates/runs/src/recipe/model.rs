//! The base model of a recipe.

use serde::{Deserialize, Serialize};
use tunebook_models::{DType, Device, Model, Quantization};

use crate::error::Result;

/// The base model of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// A file, a folder, a name in the cache, or a repository of the hub (`owner/name`), as
    /// [`Model::load`] takes it.
    pub name_or_path: String,
    /// The branch, tag or commit of a repository of the hub. Default none: its main branch.
    #[serde(default)]
    pub revision: Option<String>,
    /// The type of the weights in memory. Default `float32`.
    #[serde(default)]
    pub dtype: ModelDtype,
    /// How the matrices are quantised, as for QLoRA; `dtype` has no meaning then and stays
    /// `float32`. Default none.
    #[serde(default)]
    pub quantization: Option<Quantization>,
}

/// The type of a model's weights in memory, under torch's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelDtype {
    /// 32 bits.
    #[default]
    Float32,
    /// 16 bits, with the exponent of `float32`.
    Bfloat16,
    /// 16 bits.
    Float16,
}

impl ModelRecipe {
    /// A model in f32.
    pub fn new(name_or_path: &str) -> Self {
        Self {
            name_or_path: name_or_path.to_owned(),
            revision: None,
            dtype: ModelDtype::default(),
            quantization: None,
        }
    }

    /// Loads the model.
    ///
    /// # Errors
    /// As [`Model::load_as`] and [`Model::load_quantized`].
    pub fn load(&self, device: &Device) -> Result<Model> {
        let name = match &self.revision {
            Some(revision) => format!("{}@{revision}", self.name_or_path),
            None => self.name_or_path.clone(),
        };
        let dtype = match self.dtype {
            ModelDtype::Float32 => DType::F32,
            ModelDtype::Bfloat16 => DType::BF16,
            ModelDtype::Float16 => DType::F16,
        };
        let loaded = match self.quantization {
            Some(quantization) => Model::load_quantized(name, quantization, device),
            None => Model::load_as(name, Some(dtype), device),
        };
        Ok(loaded.map_err(tunebook_tune::Error::from)?)
    }

    /// The recipe of a model that is loaded.
    ///
    /// # Errors
    /// Weights of a type that no recipe names.
    pub(crate) fn of(model: &Model) -> Result<Self, String> {
        let quantization = model.quantization();
        let dtype = match model.loaded_dtype() {
            None | Some(DType::F32) => ModelDtype::Float32,
            Some(DType::BF16) => ModelDtype::Bfloat16,
            Some(DType::F16) => ModelDtype::Float16,
            Some(other) => return Err(format!("its base model is in {other:?}")),
        };
        let (name, revision) = match model.name().rsplit_once('@') {
            Some((name, revision)) if !is_path(name) && !model.path().ends_with(model.name()) => {
                (name.to_owned(), Some(revision.to_owned()))
            }
            _ => (model.name().to_owned(), None),
        };
        Ok(Self { name_or_path: name, revision, dtype, quantization })
    }

    /// A key whose value does not go with the others, and why.
    pub(super) fn problem(&self) -> Option<(&'static str, &'static str)> {
        if self.quantization.is_some() && self.dtype != ModelDtype::Float32 {
            let problem =
                "with `quantization` the matrices are blocks and the rest is float32: leave it out";
            return Some(("dtype", problem));
        }
        if self.revision.is_some() && is_path(&self.name_or_path) {
            let problem = "only a repository of the hub (`owner/name`) has revisions, and `name_or_path` \
                           is none";
            return Some(("revision", problem));
        }
        None
    }
}

/// Whether a name cannot be a repository's, whatever lies on the disk.
fn is_path(name: &str) -> bool {
    name.starts_with(['/', '.', '~']) || name.contains('@') || name.split('/').count() != 2
}
