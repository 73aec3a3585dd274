//! The GPT-2 decoder
//! (<https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf>):
//! learned positions, layer norms, biases everywhere, one projection for queries, keys and values.
//!
//! Hugging Face keeps the weights of its projections as `[in, out]` (`Conv1D`). Here they are
//! `[out, in]` like all others; they are turned when a file is read or written.

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
use crate::layers::attention::Scores;
use crate::layers::{Activation, LayerNorm, Norm, Slot};
use crate::pass::Pass;
use crate::pass::kv_cache::KvCache;
use crate::weights::gguf::{Gguf, Value};
use tunebook_ops as ops;

/// The fields of a decoder of this family besides its sizes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gpt2Config {
    /// Activation of the feed-forward block.
    pub activation_function: String,
    /// Added to the variance in layer normalisation.
    pub layer_norm_epsilon: f64,
    /// Whether scores are divided by the root of the head's size.
    pub scale_attn_weights: bool,
    /// Whether they are divided by the number of the layer as well, counted from 1.
    pub scale_attn_by_inverse_layer_idx: bool,
}

impl FamilyConfig for Gpt2Config {
    fn model_types() -> &'static [ModelType] {
        &[ModelType { name: "gpt2", gguf: "gpt2", class: "GPT2LMHeadModel" }]
    }

    fn shape(json: &JsonFields<'_>, model_type: &str) -> Result<Shape> {
        let defaults = Defaults {
            intermediate_per_hidden: Some(4),
            tie_word_embeddings: true,
            ..Default::default()
        };
        let shape = Shape::from_json(json, model_type, defaults)?;
        Ok(Shape { head_dim: shape.hidden_size / shape.num_attention_heads, ..shape })
    }

    fn from_json(json: &JsonFields<'_>, _: &Shape) -> Result<Self> {
        if json.flag("add_cross_attention")?.unwrap_or(false) {
            return json.refuse("add_cross_attention", "true", "false: a decoder by itself");
        }
        Ok(Self {
            activation_function: json
                .text("activation_function")?
                .unwrap_or_else(|| "gelu_new".to_owned()),
            layer_norm_epsilon: json.number("layer_norm_epsilon")?.unwrap_or(1e-5),
            scale_attn_weights: json.flag("scale_attn_weights")?.unwrap_or(true),
            scale_attn_by_inverse_layer_idx: json
                .flag("scale_attn_by_inverse_layer_idx")?
                .unwrap_or(false),
        })
    }

    fn from_gguf(file: &Gguf, _: &Shape) -> Result<Self> {
        Ok(Self {
            activation_function: "gelu_new".to_owned(),
            layer_norm_epsilon: file.written_number("gpt2.attention.layer_norm_epsilon")?,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
        })
    }

    fn validate(&self, shape: &Shape, origin: &str) -> Result<()> {
        fields::check_activation("activation_function", &self.activation_function, origin)?;
        fields::check_eps("layer_norm_epsilon", self.layer_norm_epsilon, origin)?;
        if shape.head_dim * shape.num_attention_heads != shape.hidden_size
            || shape.num_key_value_heads != shape.num_attention_heads
        {
            return Err(crate::Error::Config {
                origin: origin.to_owned(),
                field: "n_head".to_owned(),
                found: shape.num_attention_heads.to_string(),
                expected: format!("a divisor of n_embd, which is {}", shape.hidden_size),
            });
        }
        Ok(())
    }

    fn to_json(&self, shape: &Shape, json: &mut Map<String, Json>) {
        for (field, value) in [
            ("n_embd", json!(shape.hidden_size)),
            ("n_layer", json!(shape.num_hidden_layers)),
            ("n_head", json!(shape.num_attention_heads)),
            ("n_positions", json!(shape.max_position_embeddings)),
            ("n_inner", json!(shape.intermediate_size)),
            ("activation_function", json!(self.activation_function)),
            ("layer_norm_epsilon", json!(self.layer_norm_epsilon)),
            ("scale_attn_weights", json!(self.scale_attn_weights)),
            ("scale_attn_by_inverse_layer_idx", json!(self.scale_attn_by_inverse_layer_idx)),
        ] {
            json.insert(field.to_owned(), value);
        }
        for field in [
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "intermediate_size",
            "head_dim",
        ] {
            json.remove(field);
        }
    }

    /// What GGUF cannot say, if the config has it.
    fn not_in_gguf(&self, _: &Shape) -> Option<String> {
        if !self.scale_attn_weights || self.scale_attn_by_inverse_layer_idx {
            return Some("another scale of the scores than 1/√d".to_owned());
        }
        let tanh = Activation::from_name(&self.activation_function) == Some(Activation::GeluTanh);
        (!tanh).then(|| format!("activation_function {}", self.activation_function))
    }

    fn to_gguf(&self, _: &Shape, put: &mut dyn FnMut(&str, Value)) {
        put("attention.layer_norm_epsilon", Value::Float(self.layer_norm_epsilon));
    }

    fn gguf_names(&self, _: &Shape) -> Vec<(&'static str, &'static str)> {
        GGUF_NAMES.to_vec()
    }

    fn prefix(&self) -> &'static str {
        "transformer."
    }

    fn decoder(
        &self,
        shape: &Shape,
        builder: &mut Builder,
        _: &Device,
    ) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(decoder(shape, self, builder)?))
    }
}

/// Parts of tensor names: GGUF's, Hugging Face's.
const GGUF_NAMES: &[(&str, &str)] = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
    ("blk.*.attn_norm", "transformer.h.*.ln_1"),
    ("blk.*.attn_qkv", "transformer.h.*.attn.c_attn"),
    ("blk.*.attn_output", "transformer.h.*.attn.c_proj"),
    ("blk.*.ffn_norm", "transformer.h.*.ln_2"),
    ("blk.*.ffn_up", "transformer.h.*.mlp.c_fc"),
    ("blk.*.ffn_down", "transformer.h.*.mlp.c_proj"),
];

#[derive(Debug)]
struct Attention {
    c_attn: Arc<Slot>,
    c_proj: Arc<Slot>,
    heads: usize,
    past: Arc<PastKeyValues>,
    scores: Scores,
}

impl Attention {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let (b, t, hidden) = x.dims3()?;
        let (h, d) = (self.heads, hidden / self.heads);
        // [b, t, 3·h·d] -> [b, t, 3·h, d]
        let qkv = self.c_attn.forward(x, pass)?.reshape((b, t, 3 * h, d))?;
        let part = |from| -> Result<Tensor> { Ok(qkv.narrow(2, from, h)?.contiguous()?) };
        let (q, k, v) = (part(0)?, part(h)?, part(2 * h)?);
        // [b, t, h, d] -> [b, t, h·d]
        let y = self.past.attend(&q, (k, v), pass, cache, &self.scores)?;
        self.c_proj.forward(&y, pass)
    }
}

#[derive(Debug)]
struct Mlp {
    c_fc: Arc<Slot>,
    c_proj: Arc<Slot>,
    act: Activation,
}

impl Mlp {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.c_proj.forward(&self.act.forward(&self.c_fc.forward(x, pass)?)?, pass)
    }
}

#[derive(Debug)]
struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    after_attn: Arc<Residual>,
    ln_2: LayerNorm,
    mlp: Mlp,
    after_mlp: Arc<Residual>,
}

impl parts::Block for Block {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let y = self.attn.forward(&self.ln_1.forward(x, pass)?, pass, cache)?;
        let x = ops::add(x, &self.after_attn.forward(x, y, pass)?)?;
        let y = self.mlp.forward(&self.ln_2.forward(&x, pass)?, pass)?;
        Ok(ops::add(&x, &self.after_mlp.forward(&x, y, pass)?)?)
    }
}

/// Builds the GPT-2 decoder with its output head.
fn decoder(
    shape: &Shape,
    family: &Gpt2Config,
    builder: &mut Builder,
) -> Result<Stack<Block, LayerNorm>> {
    let (hidden, ffn, eps) =
        (shape.hidden_size, shape.intermediate_size, family.layer_norm_epsilon);
    let act =
        fields::activation("activation_function", &family.activation_function, &shape.model_type)?;
    let wte = builder.embedding("transformer.wte", shape.vocab_size, hidden);
    let wpe = builder.embedding("transformer.wpe", shape.max_position_embeddings, hidden);
    let mut h = Vec::with_capacity(shape.num_hidden_layers);
    for layer in 0..shape.num_hidden_layers {
        let path = |module: &str| format!("transformer.h.{layer}.{module}");
        let mut scale = match family.scale_attn_weights {
            true => 1.0 / (shape.head_dim as f32).sqrt(),
            false => 1.0,
        };
        if family.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f32;
        }
        h.push(Block {
            ln_1: builder.layer_norm(path("ln_1"), hidden, eps),
            attn: Attention {
                c_attn: builder.conv1d(path("attn.c_attn"), hidden, 3 * hidden),
                c_proj: builder.conv1d(path("attn.c_proj"), hidden, hidden),
                heads: shape.num_attention_heads,
                past: builder.past(layer, shape.num_attention_heads, shape.head_dim),
                scores: Scores { scale, ..Default::default() },
            },
            after_attn: builder.residual(path("attn"), Sublayer::Attention, Flow::Sequential),
            ln_2: builder.layer_norm(path("ln_2"), hidden, eps),
            mlp: Mlp {
                c_fc: builder.conv1d(path("mlp.c_fc"), hidden, ffn),
                c_proj: builder.conv1d(path("mlp.c_proj"), ffn, hidden),
                act,
            },
            after_mlp: builder.residual(path("mlp"), Sublayer::FeedForward, Flow::Sequential),
        });
    }
    let ln_f = builder.layer_norm("transformer.ln_f".to_owned(), hidden, eps);
    let lm_head = builder.head(shape, &wte);
    Ok(Stack {
        embedding: wte,
        blocks: h,
        norm: ln_f,
        head: lm_head,
        learned_positions: Some(wpe),
        embed_scale: 1.0,
        final_logit_softcapping: None,
        cache_ends_at: None,
    })
}
