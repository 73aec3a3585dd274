//! The Llama decoder (<https://arxiv.org/abs/2302.13971>): pre-norm blocks of grouped-query
//! attention with rotary embedding and a gated feed-forward network.
//!
//! | `model_type` | what it adds |
//! |---|---|
//! | `llama` | Llama 2 and 3, TinyLlama, SmolLM2: biases on request |
//! | `mistral` | a window on the attention (<https://arxiv.org/abs/2310.06825>) |
//! | `qwen2` | biases on queries, keys and values; a window in the upper layers on request |
//! | `qwen3` | queries and keys normalised head by head |
//! | `smollm3` | every fourth layer without rotary embedding (<https://arxiv.org/abs/2501.18795>) |
//!
//! Modules are named as Hugging Face's, so that adapters exchange. The same blocks train (no cache,
//! any tensor may be tracked) and generate (with a cache); all operations are differentiable ones.
//!
//! In the shape comments b is the batch, t the positions of this call, s all positions so far, h
//! the query heads, hkv the key and value heads, d the size of a head.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use crate::config::fields::{self, Defaults, FULL, JsonFields, SLIDING, Shape};
use crate::error::Result;
use crate::families::decoder::{self as parts, Builder, Decoder, Stack};
use crate::families::{FamilyConfig, ModelType};
use crate::hooks::past_key_values::PastKeyValues;
use crate::hooks::residual::{Flow, Residual, Sublayer};
use crate::layers::attention::Scores;
use crate::layers::rope::{Rope, RopeParameters, RopeScaling};
use crate::layers::{Activation, Norm, RmsNorm, Slot};
use crate::pass::Pass;
use crate::pass::kv_cache::KvCache;
use crate::weights::gguf::{Gguf, Value};
use tunebook_ops as ops;

/// The fields of a decoder of this family besides its sizes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LlamaConfig {
    /// Activation of the feed-forward block.
    pub hidden_act: String,
    /// Added to the mean square in RMS normalisation.
    pub rms_norm_eps: f64,
    /// The rotary embedding.
    pub rope_parameters: RopeParameters,
    /// Whether the attention's projections have a bias.
    pub attention_bias: bool,
    /// Whether queries, keys and values have one and the output projection has none (Qwen 2).
    pub qkv_bias: bool,
    /// Whether the feed-forward block's projections have a bias.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised head by head (Qwen 3).
    pub qk_norm: bool,
    /// The keys that a query sees, itself included, in the layers that have a window.
    pub sliding_window: Option<usize>,
    /// For each layer `full_attention` or `sliding_attention`.
    pub layer_types: Vec<String>,
    /// For each layer 1 where queries and keys turn, and 0 where they do not (SmolLM 3).
    pub no_rope_layers: Vec<u8>,
}

impl FamilyConfig for LlamaConfig {
    fn model_types() -> &'static [ModelType] {
        &[
            ModelType { name: "llama", gguf: "llama", class: "LlamaForCausalLM" },
            ModelType { name: "mistral", gguf: "llama", class: "MistralForCausalLM" },
            ModelType { name: "qwen2", gguf: "qwen2", class: "Qwen2ForCausalLM" },
            ModelType { name: "qwen3", gguf: "qwen3", class: "Qwen3ForCausalLM" },
            ModelType { name: "smollm3", gguf: "smollm3", class: "SmolLM3ForCausalLM" },
        ]
    }

    fn shape(json: &JsonFields<'_>, model_type: &str) -> Result<Shape> {
        let defaults = Defaults {
            head_dim: (model_type == "qwen3").then_some(128),
            tie_word_embeddings: model_type == "smollm3",
            ..Default::default()
        };
        Shape::from_json(json, model_type, defaults)
    }

    fn from_json(json: &JsonFields<'_>, shape: &Shape) -> Result<Self> {
        let layers = shape.num_hidden_layers;
        let model_type = shape.model_type.as_str();
        let no_rope_layers = match json.array("no_rope_layers")? {
            None if model_type == "smollm3" => {
                let interval = json.optional_count("no_rope_layer_interval")?.unwrap_or(4);
                (0..layers).map(|layer| u8::from((layer + 1) % interval != 0)).collect()
            }
            None => vec![1; layers],
            Some(flags) => {
                let flags: Option<Vec<u8>> = flags
                    .iter()
                    .map(|flag| flag.as_u64().filter(|flag| *flag < 2).map(|flag| flag as u8))
                    .collect();
                match flags {
                    Some(flags) if flags.len() == layers => flags,
                    _ => {
                        return json.refuse(
                            "no_rope_layers",
                            "another list",
                            &format!("a 0 or 1 for each of {layers} layers"),
                        );
                    }
                }
            }
        };
        // Qwen and SmolLM name a window that counts only on request; Mistral has no such switch.
        let uses_window = match model_type {
            "qwen2" | "qwen3" | "smollm3" => json.flag("use_sliding_window")?.unwrap_or(false),
            "mistral" => true,
            _ => false,
        };
        let sliding_window =
            if uses_window { json.optional_count("sliding_window")? } else { None };
        let first_sliding = json.optional_count("max_window_layers")?.unwrap_or(28);
        let default_type = |layer: usize| {
            let sliding = match model_type {
                "mistral" => true,
                "smollm3" => no_rope_layers[layer] == 0,
                _ => layer >= first_sliding,
            };
            if sliding && sliding_window.is_some() { SLIDING } else { FULL }
        };
        Ok(Self {
            hidden_act: json.text("hidden_act")?.unwrap_or_else(|| "silu".to_owned()),
            rms_norm_eps: json.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_parameters: RopeParameters::from_json(
                json,
                if model_type == "smollm3" { 2_000_000.0 } else { 10_000.0 },
                shape.max_position_embeddings,
            )?,
            attention_bias: match model_type {
                "mistral" | "qwen2" => false,
                _ => json.flag("attention_bias")?.unwrap_or(false),
            },
            qkv_bias: model_type == "qwen2",
            mlp_bias: json.flag("mlp_bias")?.unwrap_or(false),
            qk_norm: model_type == "qwen3",
            layer_types: json.layer_types(layers, default_type)?,
            sliding_window,
            no_rope_layers,
        })
    }

    fn from_gguf(file: &Gguf, shape: &Shape) -> Result<Self> {
        let (architecture, layers) = (shape.model_type.as_str(), shape.num_hidden_layers);
        let key = |name: &str| format!("{architecture}.{name}");
        let sliding_window = file.optional_count(&key("attention.sliding_window"))?;
        let output_bias = file.has_tensor("blk.0.attn_output.bias");
        Ok(Self {
            hidden_act: "silu".to_owned(),
            rms_norm_eps: file.written_number(&key("attention.layer_norm_rms_epsilon"))?,
            rope_parameters: RopeParameters::from_gguf(
                file,
                architecture,
                shape.max_position_embeddings,
            )?,
            attention_bias: file.has_tensor("blk.0.attn_q.bias") && output_bias,
            qkv_bias: file.has_tensor("blk.0.attn_q.bias") && !output_bias,
            mlp_bias: file.has_tensor("blk.0.ffn_down.bias"),
            qk_norm: file.has_tensor("blk.0.attn_q_norm.weight"),
            layer_types: vec![
                if sliding_window.is_some() { SLIDING } else { FULL }.to_owned();
                layers
            ],
            sliding_window,
            // llama.cpp has the interval of four in its code and none in the file.
            no_rope_layers: (0..layers)
                .map(|layer| u8::from(architecture != "smollm3" || (layer + 1) % 4 != 0))
                .collect(),
        })
    }

    fn validate(&self, shape: &Shape, origin: &str) -> Result<()> {
        fields::check_activation("hidden_act", &self.hidden_act, origin)?;
        fields::check_eps("rms_norm_eps", self.rms_norm_eps, origin)?;
        self.rope_parameters.validate(shape.head_dim, origin)
    }

    fn to_json(&self, shape: &Shape, json: &mut Map<String, Json>) {
        let model_type = shape.model_type.as_str();
        json.insert("hidden_act".to_owned(), json!(self.hidden_act));
        json.insert("rms_norm_eps".to_owned(), json!(self.rms_norm_eps));
        json.insert("rope_parameters".to_owned(), self.rope_parameters.to_json());
        json.insert("attention_bias".to_owned(), json!(self.attention_bias));
        if matches!(model_type, "llama" | "smollm3") {
            json.insert("mlp_bias".to_owned(), json!(self.mlp_bias));
        }
        if model_type != "llama" {
            json.insert("sliding_window".to_owned(), json!(self.sliding_window));
        }
        if !matches!(model_type, "llama" | "mistral") {
            json.insert("use_sliding_window".to_owned(), json!(self.sliding_window.is_some()));
            json.insert("layer_types".to_owned(), json!(self.layer_types));
        }
        if model_type == "smollm3" {
            json.insert("no_rope_layers".to_owned(), json!(self.no_rope_layers));
        }
    }

    /// What GGUF cannot say, if the config has it.
    fn not_in_gguf(&self, shape: &Shape) -> Option<String> {
        let model_type = shape.model_type.as_str();
        let every_fourth = self.no_rope_layers.iter().enumerate().all(|(layer, rope)| {
            *rope == u8::from(model_type != "smollm3" || (layer + 1) % 4 != 0)
        });
        if !every_fourth {
            return Some(format!("no_rope_layers {:?}", self.no_rope_layers));
        }
        let mixed = self.layer_types.iter().any(|kind| *kind != self.layer_types[0]);
        if mixed || (self.sliding_window.is_some() && model_type != "mistral") {
            return Some(format!("a sliding window in layers {:?}", self.layer_types));
        }
        match self.rope_parameters.scaling {
            RopeScaling::LongRope { .. } => Some("rope_type longrope".to_owned()),
            _ => None,
        }
    }

    /// Metadata of a GGUF file beside the sizes.
    fn to_gguf(&self, shape: &Shape, put: &mut dyn FnMut(&str, Value)) {
        put("attention.layer_norm_rms_epsilon", Value::Float(self.rms_norm_eps));
        put("rope.dimension_count", Value::Unsigned(shape.head_dim as u64));
        self.rope_parameters.to_gguf(put);
        if let Some(window) =
            self.sliding_window.filter(|_| self.layer_types.iter().any(|kind| kind == SLIDING))
        {
            put("attention.sliding_window", Value::Unsigned(window as u64));
        }
    }

    fn gguf_names(&self, _: &Shape) -> Vec<(&'static str, &'static str)> {
        GGUF_NAMES.to_vec()
    }

    fn gguf_row_order(&self, shape: &Shape, hf: &str) -> Option<Vec<usize>> {
        if !matches!(shape.model_type.as_str(), "llama" | "mistral" | "smollm3") {
            return None;
        }
        let heads = if hf.contains(".q_proj.") {
            shape.num_attention_heads
        } else if hf.contains(".k_proj.") {
            shape.num_key_value_heads
        } else {
            return None;
        };
        let d = shape.head_dim;
        // [h, 2, d/2] from [h, d/2, 2]
        let rows = (0..heads).flat_map(|head| {
            (0..2).flat_map(move |part| (0..d / 2).map(move |i| head * d + 2 * i + part))
        });
        Some(rows.collect())
    }

    fn gguf_extra(&self, shape: &Shape) -> Vec<(&'static str, Vec<f32>)> {
        let divisors = self.rope_parameters.divisors(shape.head_dim);
        divisors.into_iter().map(|divisors| ("rope_freqs.weight", divisors)).collect()
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
const GGUF_NAMES: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("blk.*.attn_norm", "model.layers.*.input_layernorm"),
    ("blk.*.attn_q", "model.layers.*.self_attn.q_proj"),
    ("blk.*.attn_k", "model.layers.*.self_attn.k_proj"),
    ("blk.*.attn_v", "model.layers.*.self_attn.v_proj"),
    ("blk.*.attn_output", "model.layers.*.self_attn.o_proj"),
    ("blk.*.attn_q_norm", "model.layers.*.self_attn.q_norm"),
    ("blk.*.attn_k_norm", "model.layers.*.self_attn.k_norm"),
    ("blk.*.ffn_norm", "model.layers.*.post_attention_layernorm"),
    ("blk.*.ffn_gate", "model.layers.*.mlp.gate_proj"),
    ("blk.*.ffn_up", "model.layers.*.mlp.up_proj"),
    ("blk.*.ffn_down", "model.layers.*.mlp.down_proj"),
];

#[derive(Debug)]
struct Attention {
    q_proj: Arc<Slot>,
    k_proj: Arc<Slot>,
    v_proj: Arc<Slot>,
    o_proj: Arc<Slot>,
    /// Of queries and keys.
    norms: Option<(RmsNorm, RmsNorm)>,
    head_dim: usize,
    rope: Option<Arc<Rope>>,
    past: Arc<PastKeyValues>,
    scores: Scores,
}

impl Attention {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let heads = |x: &Tensor, norm: Option<&RmsNorm>| -> Result<Tensor> {
            // [b, t, h·d] -> [b, t, h, d]
            let x = match norm {
                Some(norm) => norm.forward(&x.reshape((b, t, (), self.head_dim))?, pass)?,
                None => x.clone(),
            };
            match &self.rope {
                Some(rope) => rope.forward(&x, pass.positions()),
                None => Ok(x.reshape((b, t, (), self.head_dim))?),
            }
        };
        let q = heads(&self.q_proj.forward(x, pass)?, self.norms.as_ref().map(|(q, _)| q))?;
        let k = heads(&self.k_proj.forward(x, pass)?, self.norms.as_ref().map(|(_, k)| k))?;
        let v = self.v_proj.forward(x, pass)?;
        // [b, t, h, d] -> [b, t, h·d]
        let y = self.past.attend(&q, (k, v), pass, cache, &self.scores)?;
        self.o_proj.forward(&y, pass)
    }
}

#[derive(Debug)]
struct Mlp {
    gate_proj: Arc<Slot>,
    up_proj: Arc<Slot>,
    down_proj: Arc<Slot>,
    act: Activation,
}

impl Mlp {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.down_proj.forward(
            &self.act.gate(&self.gate_proj.forward(x, pass)?, &self.up_proj.forward(x, pass)?)?,
            pass,
        )
    }
}

#[derive(Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    after_attn: Arc<Residual>,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
    after_mlp: Arc<Residual>,
}

impl parts::Block for Block {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let y = self.self_attn.forward(&self.input_layernorm.forward(x, pass)?, pass, cache)?;
        let x = ops::add(x, &self.after_attn.forward(x, y, pass)?)?;
        let y = self.mlp.forward(&self.post_attention_layernorm.forward(&x, pass)?, pass)?;
        Ok(ops::add(&x, &self.after_mlp.forward(&x, y, pass)?)?)
    }
}

/// Builds the Llama decoder with its output head.
fn decoder(
    shape: &Shape,
    family: &LlamaConfig,
    builder: &mut Builder,
    device: &Device,
) -> Result<Stack<Block, RmsNorm>> {
    let (hidden, ffn, d) = (shape.hidden_size, shape.intermediate_size, shape.head_dim);
    let (q, kv) = (shape.num_attention_heads * d, shape.num_key_value_heads * d);
    let act = fields::activation("hidden_act", &family.hidden_act, &shape.model_type)?;
    let rope =
        Arc::new(Rope::new(&family.rope_parameters, d, shape.max_position_embeddings, device)?);
    let embed_tokens = builder.embedding("model.embed_tokens", shape.vocab_size, hidden);
    let mut layers = Vec::with_capacity(shape.num_hidden_layers);
    for layer in 0..shape.num_hidden_layers {
        let path = |module: &str| format!("model.layers.{layer}.{module}");
        let norm = |builder: &mut Builder, module: &str, size| {
            builder.rms_norm(path(module), size, family.rms_norm_eps)
        };
        let qkv_bias = family.attention_bias || family.qkv_bias;
        let self_attn = Attention {
            q_proj: builder.linear(path("self_attn.q_proj"), hidden, q, qkv_bias),
            k_proj: builder.linear(path("self_attn.k_proj"), hidden, kv, qkv_bias),
            v_proj: builder.linear(path("self_attn.v_proj"), hidden, kv, qkv_bias),
            o_proj: builder.linear(path("self_attn.o_proj"), q, hidden, family.attention_bias),
            norms: match family.qk_norm {
                true => Some((
                    norm(builder, "self_attn.q_norm", d),
                    norm(builder, "self_attn.k_norm", d),
                )),
                false => None,
            },
            head_dim: d,
            rope: (family.no_rope_layers[layer] == 1).then(|| Arc::clone(&rope)),
            past: builder.past(layer, shape.num_key_value_heads, d),
            scores: Scores {
                scale: 1.0 / (d as f32).sqrt(),
                window: family.sliding_window.filter(|_| family.layer_types[layer] == SLIDING),
                ..Default::default()
            },
        };
        let mlp = Mlp {
            gate_proj: builder.linear(path("mlp.gate_proj"), hidden, ffn, family.mlp_bias),
            up_proj: builder.linear(path("mlp.up_proj"), hidden, ffn, family.mlp_bias),
            down_proj: builder.linear(path("mlp.down_proj"), ffn, hidden, family.mlp_bias),
            act,
        };
        layers.push(Block {
            input_layernorm: norm(builder, "input_layernorm", hidden),
            self_attn,
            after_attn: builder.residual(path("self_attn"), Sublayer::Attention, Flow::Sequential),
            post_attention_layernorm: norm(builder, "post_attention_layernorm", hidden),
            mlp,
            after_mlp: builder.residual(path("mlp"), Sublayer::FeedForward, Flow::Sequential),
        });
    }
    let norm = builder.rms_norm("model.norm".to_owned(), hidden, family.rms_norm_eps);
    let lm_head = builder.head(shape, &embed_tokens);
    Ok(Stack {
        embedding: embed_tokens,
        blocks: layers,
        norm,
        head: lm_head,
        cache_ends_at: rope.switches_at(),
        embed_scale: 1.0,
        learned_positions: None,
        final_logit_softcapping: None,
    })
}
