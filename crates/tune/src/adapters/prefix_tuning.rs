//! Prefix tuning: keys and values before those of the text, in every block, trained ([Li and Liang
//! 2021](https://arxiv.org/abs/2101.00190)).
//!
//! They take `num_virtual_tokens` positions of the context. Names and files are PEFT's
//! (`PrefixTuningConfig`); the file holds one tensor, `prompt_embeddings` `[n, layers·2·hkv·d]`:
//! for each block its keys and then its values.
//!
//! With `prefix_projection` a small network makes them, `W₂·tanh(W₁·E + b₁) + b₂` with E `[n,
//! hkv·d]`, which trains more smoothly; what is saved is what comes out of it, so that an adapter
//! that was loaded trains on without the network, in PEFT as well.
//!
//! ```
//! use tunebook_tune::PrefixTuning;
//! let prefix = PrefixTuning { num_virtual_tokens: 8, prefix_projection: true, ..Default::default() };
//! prefix.validate()?;
//! assert!(PrefixTuning { num_virtual_tokens: 0, ..prefix }.validate().unwrap_err().to_string().contains("num_virtual_tokens` is 0"));
//! # Ok::<(), tunebook_tune::Error>(())
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};
use tunebook_models::{KeysValues, Mode, Model};
use tunebook_ops as ops;

use crate::adapters::adapter_type::AdapterType;
use crate::adapters::body::{AdapterTensor, Body, Stored};
use crate::adapters::checks::{self, Shape};
use crate::adapters::config::AdapterConfig;
use crate::adapters::hooks::Hooks;
use crate::adapters::prompt_tuning::KEY;
use crate::error::{Error, Result};
use crate::files::stored::StoredTensor;
use crate::train::parameter::Part;
use crate::train::rng::Stream;

/// Configuration of prefix tuning: the fields and names of PEFT's `PrefixTuningConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixTuning {
    /// How many positions. Default 20 (PEFT has no default).
    pub num_virtual_tokens: usize,
    /// Let a network make the keys and values. Default false.
    pub prefix_projection: bool,
    /// Units of that network. Default the size of a block's keys.
    pub encoder_hidden_size: Option<usize>,
    /// How the keys and values begin. Default [`PrefixInit::Random`].
    pub init_weights: PrefixInit,
    /// Size of a block's keys, `hkv·d`. Default: the model's. Another value is refused, since the
    /// adapter was made for another model.
    pub token_dim: Option<usize>,
    /// Blocks of the model, likewise.
    pub num_layers: Option<usize>,
    /// Heads of its keys, likewise.
    pub num_attention_heads: Option<usize>,
    /// Seed of the initial values (PEFT draws them from torch's global generator; this field is not
    /// in its files). Default 42.
    pub init_seed: u64,
}

/// How keys and values of a prefix begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefixInit {
    /// Normal with standard deviation 1; through a network with torch's initial weights if there is
    /// one.
    #[default]
    Random,
    /// Zero: PEFT's `"zero"`.
    Zero,
}

impl Default for PrefixTuning {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            prefix_projection: false,
            encoder_hidden_size: None,
            init_weights: PrefixInit::Random,
            token_dim: None,
            num_layers: None,
            num_attention_heads: None,
            init_seed: 42,
        }
    }
}

/// The most units of the network that makes a prefix.
const MOST_UNITS: usize = 1 << 20;

impl PrefixTuning {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// No position, or a network without units: the field, the value and what is accepted.
    pub fn validate(&self) -> Result<()> {
        checks::virtual_tokens("PrefixTuning.num_virtual_tokens", self.num_virtual_tokens)?;
        match self.encoder_hidden_size {
            None | Some(1..=MOST_UNITS) => Ok(()),
            Some(units) => Err(Error::Config {
                field: "PrefixTuning.encoder_hidden_size",
                value: units.to_string(),
                expected: "1 to 1048576, or None for the size of a block's keys",
            }),
        }
    }
}

impl AdapterType for PrefixTuning {
    fn peft_type(&self) -> &'static str {
        "PREFIX_TUNING"
    }

    fn validate(&self) -> Result<()> {
        Self::validate(self)
    }

    fn description(&self) -> String {
        let projection = if self.prefix_projection { ", with a projection" } else { "" };
        format!("prefix tuning, {} virtual tokens{projection}", self.num_virtual_tokens)
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("type", "prefix tuning".to_owned()),
            ("num_virtual_tokens", self.num_virtual_tokens.to_string()),
            ("prefix_projection", self.prefix_projection.to_string()),
        ]
    }

    fn plan(&self, model: &Model) -> Result<BTreeMap<String, Vec<usize>>> {
        PrefixBody::plan(model, self)
    }

    fn build(&self, model: &Model) -> Result<Arc<dyn Body>> {
        Ok(Arc::new(PrefixBody::new(model, self)?))
    }
}

/// What is trained.
#[derive(Debug)]
enum Source {
    /// The keys and values themselves, `[n, layers·2·dim]`.
    Flat(Var),
    /// A network that makes them.
    Network(Network),
}

#[derive(Debug)]
struct Network {
    /// `[n, dim]`
    embedding: Var,
    /// `[units, dim]` and `[units]`
    first: (Var, Var),
    /// For each block `[2·dim, units]` and `[2·dim]`: its part of the second map, so that a block's
    /// gradient is no larger than that.
    second: Vec<(Var, Var)>,
}

/// The prefix of one model.
#[derive(Debug)]
struct Prefix {
    source: Source,
    n: usize,
    heads: usize,
    head_dim: usize,
}

impl Prefix {
    /// Keys and values of a block side by side, `[n, 2·dim]`.
    fn of_block(&self, block: usize, mode: Mode) -> candle_core::Result<Tensor> {
        let value = |var: &Var| mode.value(var);
        let dim = self.heads * self.head_dim;
        match &self.source {
            Source::Flat(flat) => value(flat).narrow(1, block * 2 * dim, 2 * dim),
            Source::Network(Network { embedding, first, second }) => {
                let Some((weight, bias)) = second.get(block) else {
                    candle_core::bail!(
                        "prefix: expected a block below {}, found {block}",
                        second.len()
                    )
                };
                let hidden =
                    ops::linear(&value(embedding), value(&first.0), Some(&value(&first.1)))?
                        .tanh()?;
                ops::linear(&hidden, value(weight), Some(&value(bias)))
            }
        }
    }
}

/// The prefix as one block sees it.
#[derive(Debug)]
struct BlockPrefix {
    prefix: Arc<Prefix>,
    block: usize,
}

impl KeysValues for BlockPrefix {
    fn keys_values(&self, mode: Mode) -> tunebook_models::Result<(Tensor, Tensor)> {
        let Prefix { n, heads, head_dim, .. } = *self.prefix;
        // [n, 2·dim] -> [n, 2, hkv, d] -> twice [n, hkv, d]
        let both = self
            .prefix
            .of_block(self.block, mode)?
            .contiguous()?
            .reshape((n, 2, heads, head_dim))?;
        let part = |index| both.narrow(1, index, 1)?.squeeze(1)?.contiguous();
        Ok((part(0)?, part(1)?))
    }

    fn count(&self) -> usize {
        self.prefix.n
    }
}

/// Prefix tuning as the body of an adapter.
#[derive(Debug)]
pub(crate) struct PrefixBody {
    config: PrefixTuning,
    prefix: Arc<Prefix>,
    shape: Shape,
}

/// What PEFT's configuration says of this model.
///
/// # Errors
/// The model has no place for a prefix, or the configuration was made for another.
fn shape_of(model: &Model, config: &PrefixTuning) -> Result<Shape> {
    checks::context("PrefixTuning.num_virtual_tokens", model, config.num_virtual_tokens)?;
    let pasts = model.past_key_values();
    match pasts.first() {
        Some(first) => {
            let shape = Shape {
                token_dim: first.heads() * first.head_dim(),
                num_layers: pasts.len(),
                num_attention_heads: first.heads(),
            };
            shape.check([config.token_dim, config.num_layers, config.num_attention_heads])?;
            Ok(shape)
        }
        None => Err(Error::Config {
            field: "PrefixTuning",
            value: format!("asked of a `{}` model in the 40B layout", model.config().model_type),
            expected: "another strategy (PromptTuning, Lora): transformers keeps a key for every query head there, so that a prefix in PEFT's \
                       format has more heads than the model has keys",
        }),
    }
}

impl PrefixBody {
    pub(crate) fn plan(
        model: &Model,
        config: &PrefixTuning,
    ) -> Result<BTreeMap<String, Vec<usize>>> {
        let Shape { token_dim, num_layers, .. } = shape_of(model, config)?;
        Ok([(KEY.to_owned(), vec![config.num_virtual_tokens, num_layers * 2 * token_dim])].into())
    }

    pub(crate) fn new(model: &Model, config: &PrefixTuning) -> Result<Self> {
        let shape = shape_of(model, config)?;
        let (n, dim, blocks) = (config.num_virtual_tokens, shape.token_dim, shape.num_layers);
        let draw = Draw { seed: config.init_seed, device: model.device() };
        let zero = config.init_weights == PrefixInit::Zero;
        let source = match config.prefix_projection {
            false if zero => {
                Source::Flat(Var::zeros((n, blocks * 2 * dim), DType::F32, model.device())?)
            }
            false => Source::Flat(draw.normal((n, blocks * 2 * dim), KEY)?),
            true => {
                let units = config.encoder_hidden_size.unwrap_or(dim);
                let mut second = Vec::with_capacity(blocks);
                for block in 0..blocks {
                    second.push(match zero {
                        true => (
                            Var::zeros((2 * dim, units), DType::F32, model.device())?,
                            Var::zeros(2 * dim, DType::F32, model.device())?,
                        ),
                        false => draw.linear(2 * dim, units, &format!("transform.2.{block}"))?,
                    });
                }
                Source::Network(Network {
                    embedding: draw.normal((n, dim), "embedding")?,
                    first: draw.linear(units, dim, "transform.0")?,
                    second,
                })
            }
        };
        let (heads, head_dim) = (shape.num_attention_heads, dim / shape.num_attention_heads);
        let prefix = Prefix { source, n, heads, head_dim };
        Ok(Self { config: config.clone(), prefix: Arc::new(prefix), shape })
    }
}

/// Initial values as torch's layers have them.
struct Draw<'a> {
    seed: u64,
    device: &'a Device,
}

impl Draw<'_> {
    fn normal(&self, shape: (usize, usize), name: &str) -> Result<Var> {
        let mut stream = Stream::new(self.seed, name, 0);
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| stream.normal()).collect();
        Ok(Var::from_tensor(&Tensor::from_vec(values, shape, self.device)?)?)
    }

    /// Weight `[out, in]` and bias `[out]`, uniform in ±1/√in.
    fn linear(&self, output: usize, input: usize, name: &str) -> Result<(Var, Var)> {
        let bound = 1.0 / (input as f32).sqrt();
        let uniform = |count: usize, name: String| {
            let mut stream = Stream::new(self.seed, &name, 0);
            (0..count).map(|_| (2.0 * stream.uniform() - 1.0) * bound).collect::<Vec<f32>>()
        };
        let weight = Tensor::from_vec(
            uniform(output * input, format!("{name}.weight")),
            (output, input),
            self.device,
        )?;
        let bias = Tensor::from_vec(uniform(output, format!("{name}.bias")), output, self.device)?;
        Ok((Var::from_tensor(&weight)?, Var::from_tensor(&bias)?))
    }
}

impl Body for PrefixBody {
    fn modules(&self) -> Vec<String> {
        Vec::new()
    }

    fn tensors(&self) -> Vec<AdapterTensor> {
        let tensor = |key: &str, var: &Var, part| AdapterTensor {
            key: key.to_owned(),
            var: var.clone(),
            part,
        };
        match &self.prefix.source {
            Source::Flat(flat) => vec![tensor(KEY, flat, Part::Blocks)],
            Source::Network(Network { embedding, first, second }) => {
                let mut tensors = vec![
                    tensor("embedding.weight", embedding, Part::Blocks),
                    tensor("transform.0.weight", &first.0, Part::Blocks),
                    tensor("transform.0.bias", &first.1, Part::Blocks),
                ];
                for (block, (weight, bias)) in second.iter().enumerate() {
                    tensors.push(tensor(
                        &format!("transform.2.weight.{block}"),
                        weight,
                        Part::Block(block),
                    ));
                    tensors.push(tensor(
                        &format!("transform.2.bias.{block}"),
                        bias,
                        Part::Block(block),
                    ));
                }
                tensors
            }
        }
    }

    fn hooks(&self) -> Hooks {
        let past = |block| {
            Arc::new(BlockPrefix { prefix: Arc::clone(&self.prefix), block }) as Arc<dyn KeysValues>
        };
        Hooks {
            past_key_values: (0..self.shape.num_layers).map(past).collect(),
            ..Hooks::default()
        }
    }

    fn merged(&self) -> Result<Option<Hooks>> {
        Ok(None) // no weight of the base has keys before the first token
    }

    fn config(&self) -> AdapterConfig {
        self.config.clone().into()
    }

    fn stored(&self) -> Result<Stored> {
        let blocks = (0..self.shape.num_layers)
            .map(|block| Ok(self.prefix.of_block(block, Mode::default())?.detach()))
            .collect::<Result<Vec<_>>>()?;
        let config = PrefixTuning {
            token_dim: Some(self.shape.token_dim),
            num_layers: Some(self.shape.num_layers),
            num_attention_heads: Some(self.shape.num_attention_heads),
            ..self.config.clone()
        };
        Ok((config.into(), [(KEY.to_owned(), StoredTensor::of(&Tensor::cat(&blocks, 1)?)?)].into()))
    }
}
