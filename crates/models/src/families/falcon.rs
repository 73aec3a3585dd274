//! The Falcon decoder (<https://arxiv.org/abs/2311.16867>) in its three layouts.
//!
//! | | attention | feed-forward network | positions |
//! |---|---|---|---|
//! | 7B (`multi_query`, `parallel_attn`) | one key and value head | beside the attention, same norm | rotary |
//! | 40B, 180B, 11B (`new_decoder_architecture`) | grouped queries | beside the attention, one norm or two | rotary |
//! | falcon-rw (`alibi`) | as many key as query heads | after the attention | ALiBi, biases everywhere |
//!
//! Queries, keys and values come out of one projection, group by group: the queries of a group, its
//! key, its value. All three layouts are this with another number of groups.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use crate::config::fields::{self, Defaults, JsonFields, Shape};
use crate::error::Result;
use crate::families::decoder::{self as parts, Builder, Decoder, Stack};
use crate::families::{FamilyConfig, ModelType};
use crate::hooks::past_key_values::PastKeyValues;
use crate::hooks::residual::{Flow, Residual, Sublayer};
use crate::layers::attention::{Scores, alibi_slopes};
use crate::layers::rope::{Rope, RopeParameters, RopeScaling};
use crate::layers::{Activation, LayerNorm, Norm, Slot};
use crate::pass::Pass;
use crate::pass::kv_cache::KvCache;
use crate::weights::gguf::{Gguf, Value};
use tunebook_ops as ops;

/// The fields of a decoder of this family besides its sizes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FalconConfig {
    /// Activation of the feed-forward block.
    pub activation: String,
    /// Added to the variance in layer normalisation.
    pub layer_norm_epsilon: f64,
    /// The rotary embedding; unused with `alibi`.
    pub rope_parameters: RopeParameters,
    /// A bias by distance in the place of rotary embedding.
    pub alibi: bool,
    /// Whether projections have a bias.
    pub bias: bool,
    /// One key and value head for all queries.
    pub multi_query: bool,
    /// The layout of the 40B model.
    pub new_decoder_architecture: bool,
    /// The feed-forward network beside the attention, not after it.
    pub parallel_attn: bool,
    /// Norms before attention and feed-forward network in the new layout: one for both, or two.
    pub num_ln_in_parallel_attn: usize,
}

/// The number of key and value heads.
fn key_value_heads(json: &JsonFields<'_>, heads: usize) -> Result<usize> {
    let new = json.flag("new_decoder_architecture")?.unwrap_or(false);
    if !new && json.flag("multi_query")?.unwrap_or(true) {
        return Ok(1);
    }
    if !new {
        return Ok(heads);
    }
    Ok(json.optional_count("num_kv_heads")?.unwrap_or(heads))
}

impl FamilyConfig for FalconConfig {
    fn model_types() -> &'static [ModelType] {
        &[ModelType { name: "falcon", gguf: "falcon", class: "FalconForCausalLM" }]
    }

    fn shape(json: &JsonFields<'_>, model_type: &str) -> Result<Shape> {
        let defaults = Defaults {
            intermediate_per_hidden: Some(4),
            max_position_embeddings: Some(2048),
            tie_word_embeddings: true,
            ..Default::default()
        };
        let shape = Shape::from_json(json, model_type, defaults)?;
        Ok(Shape {
            num_key_value_heads: key_value_heads(json, shape.num_attention_heads)?,
            head_dim: shape.hidden_size / shape.num_attention_heads,
            ..shape
        })
    }

    fn from_json(json: &JsonFields<'_>, shape: &Shape) -> Result<Self> {
        let new = json.flag("new_decoder_architecture")?.unwrap_or(false);
        let norms =
            json.optional_count("num_ln_in_parallel_attn")?.unwrap_or(if new { 2 } else { 1 });
        if norms > 2 {
            return json.refuse("num_ln_in_parallel_attn", &norms.to_string(), "1 or 2");
        }
        Ok(Self {
            activation: json.text("activation")?.unwrap_or_else(|| "gelu".to_owned()),
            layer_norm_epsilon: json.number("layer_norm_epsilon")?.unwrap_or(1e-5),
            rope_parameters: RopeParameters::from_json(
                json,
                10_000.0,
                shape.max_position_embeddings,
            )?,
            alibi: json.flag("alibi")?.unwrap_or(false),
            bias: json.flag("bias")?.unwrap_or(false),
            multi_query: json.flag("multi_query")?.unwrap_or(true),
            new_decoder_architecture: new,
            parallel_attn: new || json.flag("parallel_attn")?.unwrap_or(true),
            num_ln_in_parallel_attn: if new { norms } else { 1 },
        })
    }

    fn from_gguf(file: &Gguf, shape: &Shape) -> Result<Self> {
        // llama.cpp knows the two parallel layouts and tells them apart by the second norm.
        let norms = if file.has_tensor("blk.0.attn_norm_2.weight") { 2 } else { 1 };
        let new = norms == 2 || shape.num_key_value_heads > 1;
        Ok(Self {
            activation: "gelu".to_owned(),
            layer_norm_epsilon: file.written_number("falcon.attention.layer_norm_epsilon")?,
            rope_parameters: RopeParameters::from_gguf(
                file,
                "falcon",
                shape.max_position_embeddings,
            )?,
            alibi: false,
            bias: false,
            multi_query: true,
            new_decoder_architecture: new,
            parallel_attn: true,
            num_ln_in_parallel_attn: norms,
        })
    }

    fn validate(&self, shape: &Shape, origin: &str) -> Result<()> {
        fields::check_activation("activation", &self.activation, origin)?;
        fields::check_eps("layer_norm_epsilon", self.layer_norm_epsilon, origin)?;
        if shape.head_dim * shape.num_attention_heads != shape.hidden_size {
            return Err(crate::Error::Config {
                origin: origin.to_owned(),
                field: "num_attention_heads".to_owned(),
                found: shape.num_attention_heads.to_string(),
                expected: format!("a divisor of hidden_size, which is {}", shape.hidden_size),
            });
        }
        if self.alibi { Ok(()) } else { self.rope_parameters.validate(shape.head_dim, origin) }
    }

    fn to_json(&self, shape: &Shape, json: &mut Map<String, Json>) {
        for (field, value) in [
            ("activation", json!(self.activation)),
            ("layer_norm_epsilon", json!(self.layer_norm_epsilon)),
            ("rope_parameters", self.rope_parameters.to_json()),
            ("alibi", json!(self.alibi)),
            ("bias", json!(self.bias)),
            ("multi_query", json!(self.multi_query)),
            ("new_decoder_architecture", json!(self.new_decoder_architecture)),
            ("parallel_attn", json!(self.parallel_attn)),
            ("num_ln_in_parallel_attn", json!(self.num_ln_in_parallel_attn)),
            ("ffn_hidden_size", json!(shape.intermediate_size)),
            ("num_kv_heads", json!(shape.num_key_value_heads)),
        ] {
            json.insert(field.to_owned(), value);
        }
        for field in ["intermediate_size", "num_key_value_heads", "head_dim"] {
            json.remove(field);
        }
    }

    /// What GGUF cannot say, if the config has it.
    fn not_in_gguf(&self, _: &Shape) -> Option<String> {
        if self.alibi || self.bias || !self.parallel_attn {
            return Some(
                "alibi, bias or a feed-forward network after the attention (falcon-rw)".to_owned(),
            );
        }
        if !self.new_decoder_architecture && !self.multi_query {
            return Some("multi_query false in the old layout".to_owned());
        }
        if self.activation != "gelu" {
            return Some(format!("activation {}", self.activation));
        }
        match self.rope_parameters.scaling {
            RopeScaling::Default => None,
            _ => Some("a rope scaling".to_owned()),
        }
    }

    fn to_gguf(&self, shape: &Shape, put: &mut dyn FnMut(&str, Value)) {
        put("attention.layer_norm_epsilon", Value::Float(self.layer_norm_epsilon));
        put("rope.dimension_count", Value::Unsigned(shape.head_dim as u64));
        self.rope_parameters.to_gguf(put);
    }

    fn gguf_names(&self, _: &Shape) -> Vec<(&'static str, &'static str)> {
        gguf_names(self)
    }

    fn prefix(&self) -> &'static str {
        "transformer."
    }

    fn attends_in_tiles(&self) -> bool {
        !self.alibi
    }

    fn gguf_row_order(&self, shape: &Shape, hf: &str) -> Option<Vec<usize>> {
        if !hf.contains(".query_key_value.") {
            return None;
        }
        let (heads, kv_heads, d) =
            (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim);
        let group = heads / kv_heads;
        // [hkv, g + 2, d] from [h + 2·hkv, d]
        let head_of = |kv: usize, member: usize| match member {
            member if member < group => kv * group + member,
            member if member == group => heads + kv,
            _ => heads + kv_heads + kv,
        };
        let rows = (0..kv_heads).flat_map(|kv| {
            (0..group + 2).flat_map(move |member| {
                let head = head_of(kv, member);
                (0..d).map(move |i| head * d + i)
            })
        });
        Some(rows.collect())
    }

    fn decoder(
        &self,
        shape: &Shape,
        builder: &mut Builder,
        device: &Device,
    ) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(decoder(shape, self, builder, device)?))
    }
}

/// Parts of tensor names: GGUF's, Hugging Face's.
fn gguf_names(config: &FalconConfig) -> Vec<(&'static str, &'static str)> {
    let mut names = vec![
        ("token_embd", "transformer.word_embeddings"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
        ("blk.*.attn_qkv", "transformer.h.*.self_attention.query_key_value"),
        ("blk.*.attn_output", "transformer.h.*.self_attention.dense"),
        ("blk.*.ffn_up", "transformer.h.*.mlp.dense_h_to_4h"),
        ("blk.*.ffn_down", "transformer.h.*.mlp.dense_4h_to_h"),
    ];
    if config.num_ln_in_parallel_attn == 2 {
        // llama.cpp's first norm is the feed-forward network's.
        names.push(("blk.*.attn_norm", "transformer.h.*.ln_mlp"));
        names.push(("blk.*.attn_norm_2", "transformer.h.*.ln_attn"));
    } else {
        names.push(("blk.*.attn_norm", "transformer.h.*.input_layernorm"));
    }
    names
}

#[derive(Debug)]
struct Attention {
    query_key_value: Arc<Slot>,
    dense: Arc<Slot>,
    kv_heads: usize,
    head_dim: usize,
    rope: Option<Arc<Rope>>,
    past: Arc<PastKeyValues>,
    scores: Scores,
}

impl Attention {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let (b, t, hidden) = x.dims3()?;
        let (d, hkv) = (self.head_dim, self.kv_heads);
        let h = hidden / d;
        let group = h / hkv;
        // [b, t, hkv·(g + 2)·d] -> [b, t, hkv, g + 2, d]
        let qkv = self.query_key_value.forward(x, pass)?.reshape((b, t, hkv, group + 2, d))?;
        // [b, t, hkv, g, d] -> [b, t, h, d]
        let q = qkv.narrow(3, 0, group)?.contiguous()?.reshape((b, t, h, d))?;
        // [b, t, hkv, 1, d] -> [b, t, hkv, d]
        let k = qkv.narrow(3, group, 1)?.squeeze(3)?.contiguous()?;
        let v = qkv.narrow(3, group + 1, 1)?.squeeze(3)?.contiguous()?;
        let (q, k) = match &self.rope {
            Some(rope) => {
                (rope.forward(&q, pass.positions())?, rope.forward(&k, pass.positions())?)
            }
            None => (q, k),
        };
        // [b, t, h, d] -> [b, t, h·d]
        let y = self.past.attend(&q, (k, v), pass, cache, &self.scores)?;
        self.dense.forward(&y, pass)
    }
}

#[derive(Debug)]
struct Mlp {
    dense_h_to_4h: Arc<Slot>,
    dense_4h_to_h: Arc<Slot>,
    act: Activation,
}

impl Mlp {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.dense_4h_to_h.forward(&self.act.forward(&self.dense_h_to_4h.forward(x, pass)?)?, pass)
    }
}

/// Where the norms stand.
#[derive(Debug)]
enum Norms {
    /// Attention and feed-forward network beside each other, after one norm.
    Parallel { input_layernorm: LayerNorm },
    /// Beside each other, each after a norm of its own.
    ParallelTwo { ln_attn: LayerNorm, ln_mlp: LayerNorm },
    /// One after the other.
    Sequential { input_layernorm: LayerNorm, post_attention_layernorm: LayerNorm },
}

#[derive(Debug)]
struct Block {
    norms: Norms,
    self_attention: Attention,
    after_attn: Arc<Residual>,
    mlp: Mlp,
    after_mlp: Arc<Residual>,
}

impl parts::Block for Block {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let (attended, fed) = match &self.norms {
            Norms::Parallel { input_layernorm } => {
                let normed = input_layernorm.forward(x, pass)?;
                (
                    self.self_attention.forward(&normed, pass, cache)?,
                    self.mlp.forward(&normed, pass)?,
                )
            }
            Norms::ParallelTwo { ln_attn, ln_mlp } => (
                self.self_attention.forward(&ln_attn.forward(x, pass)?, pass, cache)?,
                self.mlp.forward(&ln_mlp.forward(x, pass)?, pass)?,
            ),
            Norms::Sequential { input_layernorm, post_attention_layernorm } => {
                let attended =
                    self.self_attention.forward(&input_layernorm.forward(x, pass)?, pass, cache)?;
                let x = ops::add(x, &self.after_attn.forward(x, attended, pass)?)?;
                let fed = self.mlp.forward(&post_attention_layernorm.forward(&x, pass)?, pass)?;
                return Ok(ops::add(&x, &self.after_mlp.forward(&x, fed, pass)?)?);
            }
        };
        let (attended, fed) =
            (self.after_attn.forward(x, attended, pass)?, self.after_mlp.forward(x, fed, pass)?);
        Ok(ops::add(x, &ops::add(&fed, &attended)?)?)
    }
}

/// Builds the Falcon decoder with its output head.
fn decoder(
    shape: &Shape,
    family: &FalconConfig,
    builder: &mut Builder,
    device: &Device,
) -> Result<Stack<Block, LayerNorm>> {
    let (hidden, ffn, d) = (shape.hidden_size, shape.intermediate_size, shape.head_dim);
    let (heads, kv_heads) = (shape.num_attention_heads, shape.num_key_value_heads);
    let act = fields::activation("activation", &family.activation, &shape.model_type)?;
    let rope = match family.alibi {
        true => None,
        false => {
            let max = shape.max_position_embeddings;
            Some(Arc::new(Rope::new(&family.rope_parameters, d, max, device)?))
        }
    };
    let word_embeddings =
        builder.embedding("transformer.word_embeddings", shape.vocab_size, hidden);
    let mut h = Vec::with_capacity(shape.num_hidden_layers);
    for layer in 0..shape.num_hidden_layers {
        let path = |module: &str| format!("transformer.h.{layer}.{module}");
        let norm = |builder: &mut Builder, module: &str| {
            builder.layer_norm(path(module), hidden, family.layer_norm_epsilon)
        };
        let linear = |builder: &mut Builder, module: &str, input, output| {
            builder.linear(path(module), input, output, family.bias)
        };
        let norms = if !family.parallel_attn {
            Norms::Sequential {
                input_layernorm: norm(builder, "input_layernorm"),
                post_attention_layernorm: norm(builder, "post_attention_layernorm"),
            }
        } else if family.num_ln_in_parallel_attn == 2 {
            Norms::ParallelTwo {
                ln_attn: norm(builder, "ln_attn"),
                ln_mlp: norm(builder, "ln_mlp"),
            }
        } else {
            Norms::Parallel { input_layernorm: norm(builder, "input_layernorm") }
        };
        let qkv = (heads + 2 * kv_heads) * d;
        let flow = if family.parallel_attn { Flow::Parallel } else { Flow::Sequential };
        h.push(Block {
            norms,
            self_attention: Attention {
                query_key_value: linear(builder, "self_attention.query_key_value", hidden, qkv),
                dense: linear(builder, "self_attention.dense", hidden, hidden),
                kv_heads,
                head_dim: d,
                rope: rope.clone(),
                past: match family.new_decoder_architecture {
                    // transformers keeps a key for each query there, so that its prefixes have
                    // more heads than the model has keys.
                    true => Arc::new(PastKeyValues::new(layer, kv_heads, d)),
                    false => builder.past(layer, kv_heads, d),
                },
                scores: Scores {
                    scale: 1.0 / (d as f32).sqrt(),
                    alibi: family.alibi.then(|| alibi_slopes(heads)),
                    ..Default::default()
                },
            },
            after_attn: builder.residual(path("self_attention"), Sublayer::Attention, flow),
            mlp: Mlp {
                dense_h_to_4h: linear(builder, "mlp.dense_h_to_4h", hidden, ffn),
                dense_4h_to_h: linear(builder, "mlp.dense_4h_to_h", ffn, hidden),
                act,
            },
            after_mlp: builder.residual(path("mlp"), Sublayer::FeedForward, flow),
        });
    }
    let ln_f = builder.layer_norm("transformer.ln_f".to_owned(), hidden, family.layer_norm_epsilon);
    let lm_head = builder.head(shape, &word_embeddings);
    Ok(Stack {
        embedding: word_embeddings,
        blocks: h,
        norm: ln_f,
        head: lm_head,
        embed_scale: 1.0,
        learned_positions: None,
        final_logit_softcapping: None,
        cache_ends_at: None,
    })
}
