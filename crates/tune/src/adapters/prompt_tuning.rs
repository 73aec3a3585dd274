//! Prompt tuning: a few vectors before the tokens of every text, trained as if they were embeddings
//! ([Lester et al. 2021](https://arxiv.org/abs/2104.08691)).
//!
//! They take `num_virtual_tokens` positions of the context. Names and files are PEFT's
//! (`PromptTuningConfig`); the file holds one tensor, `prompt_embeddings` `[n, hid]`.
//!
//! ```
//! use tunebook_tune::PromptTuning;
//! let prompt = PromptTuning { num_virtual_tokens: 8, ..Default::default() };
//! prompt.validate()?;
//! assert!(PromptTuning { num_virtual_tokens: 0, ..prompt }.validate().unwrap_err().to_string().contains("num_virtual_tokens` is 0"));
//! # Ok::<(), tunebook_tune::Error>(())
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};
use tunebook_models::{Mode, Model, Pass, Positions, VirtualTokens};

use crate::adapters::adapter_type::AdapterType;
use crate::adapters::body::{AdapterTensor, Body, Stored};
use crate::adapters::checks::{self, Shape};
use crate::adapters::config::AdapterConfig;
use crate::adapters::hooks::Hooks;
use crate::error::{Error, Result};
use crate::files::stored::StoredTensor;
use crate::train::parameter::Part;
use crate::train::rng::Stream;

/// PEFT's key of what is trained by prompt and prefix tuning.
pub(crate) const KEY: &str = "prompt_embeddings";

/// Configuration of prompt tuning: the fields and names of PEFT's `PromptTuningConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptTuning {
    /// How many vectors. Default 20 (PEFT has no default).
    pub num_virtual_tokens: usize,
    /// How they begin. Default [`PromptTuningInit::Random`].
    pub prompt_tuning_init: PromptTuningInit,
    /// With [`PromptTuningInit::Text`] the text whose embeddings they begin as, repeated or cut to
    /// their number.
    pub prompt_tuning_init_text: Option<String>,
    /// Hidden size. Default: the model's. Another value is refused, since the adapter was made for
    /// another model.
    pub token_dim: Option<usize>,
    /// Blocks of the model, likewise.
    pub num_layers: Option<usize>,
    /// Heads of its queries, likewise.
    pub num_attention_heads: Option<usize>,
    /// Seed of the initial values (PEFT draws them from torch's global generator; this field is not
    /// in its files). Default 42.
    pub init_seed: u64,
}

/// How the vectors of a prompt begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PromptTuningInit {
    /// Normal with standard deviation 1.
    #[default]
    Random,
    /// As the embeddings of a text.
    Text,
    /// As the embeddings of tokens drawn from the vocabulary.
    SampleVocab,
}

impl Default for PromptTuning {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            prompt_tuning_init: PromptTuningInit::Random,
            prompt_tuning_init_text: None,
            token_dim: None,
            num_layers: None,
            num_attention_heads: None,
            init_seed: 42,
        }
    }
}

impl PromptTuning {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// No vector, or no text to begin as: the field, the value and what is accepted.
    pub fn validate(&self) -> Result<()> {
        checks::virtual_tokens("PromptTuning.num_virtual_tokens", self.num_virtual_tokens)?;
        let text = self.prompt_tuning_init_text.as_deref().unwrap_or_default();
        if self.prompt_tuning_init == PromptTuningInit::Text && text.is_empty() {
            return Err(Error::Config {
                field: "PromptTuning.prompt_tuning_init_text",
                value: "empty".to_owned(),
                expected: "a text, as `prompt_tuning_init` is Text",
            });
        }
        Ok(())
    }
}

impl AdapterType for PromptTuning {
    fn peft_type(&self) -> &'static str {
        "PROMPT_TUNING"
    }

    fn validate(&self) -> Result<()> {
        Self::validate(self)
    }

    fn description(&self) -> String {
        format!("prompt tuning, {} virtual tokens", self.num_virtual_tokens)
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("type", "prompt tuning".to_owned()),
            ("num_virtual_tokens", self.num_virtual_tokens.to_string()),
        ]
    }

    fn plan(&self, model: &Model) -> Result<BTreeMap<String, Vec<usize>>> {
        PromptBody::plan(model, self)
    }

    fn build(&self, model: &Model) -> Result<Arc<dyn Body>> {
        Ok(Arc::new(PromptBody::new(model, self)?))
    }
}

/// The vectors before the tokens, as they stand in the model.
#[derive(Debug)]
struct SoftPrompt {
    embeddings: Var,
}

impl VirtualTokens for SoftPrompt {
    fn vectors(&self, mode: Mode) -> tunebook_models::Result<Tensor> {
        Ok(mode.value(&self.embeddings))
    }

    fn count(&self) -> usize {
        self.embeddings.dims().first().copied().unwrap_or(0)
    }
}

/// Prompt tuning as the body of an adapter.
#[derive(Debug)]
pub(crate) struct PromptBody {
    config: PromptTuning,
    prompt: Arc<SoftPrompt>,
    shape: Shape,
}

/// What PEFT's configuration says of this model.
///
/// # Errors
/// The configuration was made for another.
fn shape_of(model: &Model, config: &PromptTuning) -> Result<Shape> {
    checks::context("PromptTuning.num_virtual_tokens", model, config.num_virtual_tokens)?;
    let of = model.config();
    let shape = Shape {
        token_dim: of.hidden_size,
        num_layers: of.num_hidden_layers,
        num_attention_heads: of.num_attention_heads,
    };
    shape.check([config.token_dim, config.num_layers, config.num_attention_heads])?;
    Ok(shape)
}

impl PromptBody {
    pub(crate) fn plan(
        model: &Model,
        config: &PromptTuning,
    ) -> Result<BTreeMap<String, Vec<usize>>> {
        let shape = shape_of(model, config)?;
        Ok([(KEY.to_owned(), vec![config.num_virtual_tokens, shape.token_dim])].into())
    }

    pub(crate) fn new(model: &Model, config: &PromptTuning) -> Result<Self> {
        let shape = shape_of(model, config)?;
        let (n, hidden, device) = (config.num_virtual_tokens, shape.token_dim, model.device());
        let mut stream = Stream::new(config.init_seed, KEY, 0);
        let embedded = |ids: Vec<u32>| -> Result<Tensor> {
            let ids = Tensor::from_vec(ids, (1, n), device)?;
            // [1, n, hid] -> [n, hid]
            let snapshot = model.base().snapshot();
            let positions = Positions::new(1, n, device)?;
            let embedded = model.embed(&ids, &Pass::new(&snapshot, &positions))?;
            Ok(embedded.squeeze(0)?.to_dtype(DType::F32)?.detach())
        };
        let initial = match config.prompt_tuning_init {
            PromptTuningInit::Random => {
                let values: Vec<f32> = (0..n * hidden).map(|_| stream.normal()).collect();
                Tensor::from_vec(values, (n, hidden), device)?
            }
            PromptTuningInit::SampleVocab => {
                embedded((0..n).map(|_| stream.below(model.config().vocab_size) as u32).collect())?
            }
            PromptTuningInit::Text => {
                let text = config.prompt_tuning_init_text.as_deref().unwrap_or_default();
                let ids = model.tokenizer().encode_with_special_tokens(text)?;
                if ids.is_empty() {
                    return Err(Error::Config {
                        field: "PromptTuning.prompt_tuning_init_text",
                        value: format!("`{text}`, which is no token"),
                        expected: "a text of at least one token",
                    });
                }
                embedded(ids.iter().copied().cycle().take(n).collect())?
            }
        };
        Ok(Self {
            config: config.clone(),
            prompt: Arc::new(SoftPrompt { embeddings: Var::from_tensor(&initial.contiguous()?)? }),
            shape,
        })
    }
}

impl Body for PromptBody {
    fn modules(&self) -> Vec<String> {
        Vec::new()
    }

    fn tensors(&self) -> Vec<AdapterTensor> {
        vec![AdapterTensor {
            key: KEY.to_owned(),
            var: self.prompt.embeddings.clone(),
            part: Part::Front,
        }]
    }

    fn hooks(&self) -> Hooks {
        Hooks { virtual_tokens: Some(self.prompt.clone()), ..Hooks::default() }
    }

    fn merged(&self) -> Result<Option<Hooks>> {
        Ok(None) // no weight of the base makes tokens out of nothing
    }

    fn config(&self) -> AdapterConfig {
        self.config.clone().into()
    }

    fn stored(&self) -> Result<Stored> {
        let config = PromptTuning {
            token_dim: Some(self.shape.token_dim),
            num_layers: Some(self.shape.num_layers),
            num_attention_heads: Some(self.shape.num_attention_heads),
            ..self.config.clone()
        };
        let stored = StoredTensor::of(self.prompt.embeddings.as_tensor())?;
        Ok((config.into(), [(KEY.to_owned(), stored)].into()))
    }
}
