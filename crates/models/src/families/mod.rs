//! The families of decoders. One file is one family: its configuration ([`FamilyConfig`]), its names
//! in GGUF and its blocks. A new family is a file, its `mod` line and a variant of [`Family`].

pub(crate) mod decoder;
pub(crate) mod falcon;
pub(crate) mod gemma;
pub(crate) mod gpt2;
pub(crate) mod llama;
pub(crate) mod phi3;

use candle_core::Device;
use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::config::fields::{JsonFields, Shape};
use crate::error::{Error, Result};
use crate::weights::gguf::{Gguf, Value};
use decoder::{Builder, Decoder, Parts};

/// A value of `model_type` in `config.json`, and what others call it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelType {
    pub(crate) name: &'static str,
    /// llama.cpp's architecture.
    pub(crate) gguf: &'static str,
    /// The class of `transformers`.
    pub(crate) class: &'static str,
}

/// What a family says of itself; implemented by its configuration.
pub(crate) trait FamilyConfig {
    /// The model types of this family. Of two that are one architecture in GGUF the first is read.
    fn model_types() -> &'static [ModelType]
    where
        Self: Sized;

    /// The sizes in a `config.json`.
    ///
    /// # Errors
    /// A field is missing or has a wrong value, here and in the next two.
    fn shape(json: &JsonFields<'_>, model_type: &str) -> Result<Shape>
    where
        Self: Sized;

    /// The fields of a `config.json` beside the sizes.
    fn from_json(json: &JsonFields<'_>, shape: &Shape) -> Result<Self>
    where
        Self: Sized;

    /// The metadata of a GGUF file beside the sizes.
    fn from_gguf(file: &Gguf, shape: &Shape) -> Result<Self>
    where
        Self: Sized;

    /// # Errors
    /// A field has a wrong value, or one that contradicts the sizes. `origin` is named in errors.
    fn validate(&self, shape: &Shape, origin: &str) -> Result<()>;

    /// Adds the family's fields to a `config.json` that has the sizes.
    fn to_json(&self, shape: &Shape, json: &mut Map<String, Json>);

    /// Builds the decoder with its output head.
    ///
    /// # Errors
    /// The device has no memory.
    fn decoder(
        &self,
        shape: &Shape,
        builder: &mut Builder,
        device: &Device,
    ) -> Result<Box<dyn Decoder>>;

    /// Pairs of module names, GGUF's and Hugging Face's, with `*` for the number of the block.
    fn gguf_names(&self, shape: &Shape) -> Vec<(&'static str, &'static str)>;

    /// What GGUF cannot say, if the config has it.
    fn not_in_gguf(&self, shape: &Shape) -> Option<String>;

    /// Metadata of a GGUF file beside the sizes.
    fn to_gguf(&self, shape: &Shape, put: &mut dyn FnMut(&str, Value));

    /// Tensors of a GGUF file that are no weights.
    fn gguf_extra(&self, _: &Shape) -> Vec<(&'static str, Vec<f32>)> {
        Vec::new()
    }

    /// For each row of Hugging Face's tensor `hf` the row of GGUF's, where the orders differ.
    fn gguf_row_order(&self, _: &Shape, _hf: &str) -> Option<Vec<usize>> {
        None
    }

    /// What the weights of GGUF's norms hold more than Hugging Face's.
    fn gguf_norm_offset(&self) -> f64 {
        0.0
    }

    /// What the names of all tensors but the output head begin with.
    fn prefix(&self) -> &'static str {
        "model."
    }

    /// Whether attention goes through its scores tile by tile; bounded or biased scores are held in
    /// memory.
    fn attends_in_tiles(&self) -> bool {
        true
    }
}

/// Declares [`Family`], and finds and reads the family of a file.
macro_rules! families {
    (
        $(#[$attribute:meta])*
        pub enum Family {
            $($(#[$doc:meta])* $name:ident($module:ident::$config:ident),)*
        }
    ) => {
        $(#[$attribute])*
        pub enum Family {
            $($(#[$doc])* $name($module::$config),)*
        }

        impl Family {
            /// What the family says of itself.
            pub(crate) fn definition(&self) -> &dyn FamilyConfig {
                match self {
                    $(Self::$name(config) => config,)*
                }
            }

            fn model_types() -> impl Iterator<Item = &'static ModelType> {
                [$($module::$config::model_types()),*].into_iter().flatten()
            }

            /// The sizes and the family of a `config.json`.
            ///
            /// # Errors
            /// An unknown architecture; a field that is missing or has a wrong value.
            pub(crate) fn from_json(json: &JsonFields<'_>) -> Result<(Shape, Self)> {
                let name = json.model_type()?;
                $(if $module::$config::model_types().iter().any(|known| known.name == name) {
                    let shape = $module::$config::shape(json, &name)?;
                    shape.check(json.origin())?;
                    let family = Self::$name($module::$config::from_json(json, &shape)?);
                    return Ok((shape, family));
                })*
                Err(unknown(&name, json.origin()))
            }

            /// The sizes and the family of a GGUF file.
            ///
            /// # Errors
            /// As [`Family::from_json`].
            pub(crate) fn from_gguf(file: &Gguf) -> Result<(Shape, Self)> {
                let architecture = file.text("general.architecture")?;
                let is_it = |known: &&ModelType| known.gguf == architecture;
                $(if let Some(known) = $module::$config::model_types().iter().find(is_it) {
                    let shape = Shape::from_gguf(file, architecture, known.name)?;
                    shape.check(&file.origin())?;
                    let family = Self::$name($module::$config::from_gguf(file, &shape)?);
                    return Ok((shape, family));
                })*
                Err(unknown(architecture, &file.origin()))
            }
        }
    };
}

families! {
    /// What each family has beside the sizes that all share.
    #[derive(Clone, Debug, PartialEq, Serialize)]
    #[serde(untagged)]
    pub enum Family {
        /// Llama, Mistral, Qwen 2 and 3, SmolLM.
        Llama(llama::LlamaConfig),
        /// Gemma 1, 2 and 3.
        Gemma(gemma::GemmaConfig),
        /// Phi-3 and Phi-4.
        Phi3(phi3::Phi3Config),
        /// Falcon.
        Falcon(falcon::FalconConfig),
        /// GPT-2.
        Gpt2(gpt2::Gpt2Config),
    }
}

impl Family {
    /// The model type of that name.
    pub(crate) fn model_type(name: &str) -> Option<&'static ModelType> {
        Self::model_types().find(|known| known.name == name)
    }
}

/// The architectures that this crate can run, by the name that `config.json` gives them
/// (`model_type`). Most have the same name in GGUF; `mistral` is `llama` there, `gemma3_text` is
/// `gemma3`.
pub fn known_architectures() -> Vec<&'static str> {
    Family::model_types().map(|known| known.name).collect()
}

fn unknown(architecture: &str, origin: &str) -> Error {
    Error::UnknownArchitecture {
        architecture: architecture.to_owned(),
        origin: origin.to_owned(),
        known: known_architectures().join(", "),
    }
}

/// Builds the decoder of a family. Its weights are empty until the loader fills them.
///
/// # Errors
/// The device has no memory.
pub(crate) fn build(family: &Family, shape: &Shape, device: &Device) -> Result<Parts> {
    let mut builder = Builder::new(device)?;
    let decoder = family.definition().decoder(shape, &mut builder, device)?;
    Ok(builder.finish(decoder))
}
