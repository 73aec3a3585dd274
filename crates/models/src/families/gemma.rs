//! The Gemma decoders (<https://arxiv.org/abs/2403.08295>, <https://arxiv.org/abs/2408.00118>,
//! <https://arxiv.org/abs/2503.19786>).
//!
//! Like Llama's, but: embeddings times the root of the hidden size; norms that scale by `1 +
//! weight`; GELU in the gated feed-forward network; a scale of the scores that the config names.
//!
//! | `model_type` | what it adds |
//! |---|---|
//! | `gemma` | |
//! | `gemma2` | norms after attention and feed-forward network too; scores and logits bounded by tanh; every second layer with a window |
//! | `gemma3_text` | the norms, and queries and keys normalised head by head; five layers with a window to one without, each kind with a rope base of its own |

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
pub struct GemmaConfig {
    /// Activation of the feed-forward block.
    pub hidden_activation: String,
    /// Added to the mean square in RMS normalisation.
    pub rms_norm_eps: f64,
    /// The rotary embedding of layers without a window.
    pub rope_parameters: RopeParameters,
    /// That of layers with a window.
    pub local_rope_parameters: RopeParameters,
    /// Whether the attention's projections have a bias.
    pub attention_bias: bool,
    /// Scores are divided by its root.
    pub query_pre_attn_scalar: f64,
    /// The keys that a query sees, itself included, in the layers that have a window.
    pub sliding_window: Option<usize>,
    /// For each layer `full_attention` or `sliding_attention`.
    pub layer_types: Vec<String>,
    /// Scores `s` become `c · tanh(s / c)`.
    pub attn_logit_softcapping: Option<f64>,
    /// Logits `l` become `c · tanh(l / c)`.
    pub final_logit_softcapping: Option<f64>,
}

/// The text model's part of the `config.json` of a Gemma 3 that reads pictures, too (4B and larger),
/// whose sizes are left to the class's defaults where they are not written.
pub(crate) fn text_part(json: &Map<String, Json>) -> Option<Map<String, Json>> {
    if json.get("model_type")?.as_str()? != "gemma3" {
        return None;
    }
    let mut text: Map<String, Json> = [
        ("vocab_size", 262_208),
        ("hidden_size", 2304),
        ("intermediate_size", 9216),
        ("num_hidden_layers", 26),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("max_position_embeddings", 131_072),
    ]
    .into_iter()
    .map(|(field, size)| (field.to_owned(), size.into()))
    .collect();
    let ids = ["bos_token_id", "eos_token_id", "pad_token_id"];
    text.extend(ids.iter().filter_map(|id| Some(((*id).to_owned(), json.get(*id)?.clone()))));
    let written = json.get("text_config").and_then(Json::as_object).cloned().unwrap_or_default();
    text.extend(written.into_iter().filter(|(_, value)| !value.is_null()));
    text.insert("model_type".to_owned(), "gemma3_text".into());
    Some(text)
}

impl FamilyConfig for GemmaConfig {
    fn model_types() -> &'static [ModelType] {
        &[
            ModelType { name: "gemma", gguf: "gemma", class: "GemmaForCausalLM" },
            ModelType { name: "gemma2", gguf: "gemma2", class: "Gemma2ForCausalLM" },
            ModelType { name: "gemma3_text", gguf: "gemma3", class: "Gemma3ForCausalLM" },
        ]
    }

    fn shape(json: &JsonFields<'_>, model_type: &str) -> Result<Shape> {
        let defaults =
            Defaults { head_dim: Some(256), tie_word_embeddings: true, ..Default::default() };
        Shape::from_json(json, model_type, defaults)
    }

    fn from_json(json: &JsonFields<'_>, shape: &Shape) -> Result<Self> {
        let (model_type, max) = (shape.model_type.as_str(), shape.max_position_embeddings);
        let window = match model_type {
            "gemma" => None,
            _ => json.optional_count("sliding_window")?.or(Some(4096)),
        };
        let interval = match model_type {
            "gemma2" => 2,
            _ => json.optional_count("sliding_window_pattern")?.unwrap_or(6),
        };
        let default_type = |layer: usize| {
            if window.is_some() && !(layer + 1).is_multiple_of(interval) { SLIDING } else { FULL }
        };
        let (rope_parameters, local_rope_parameters) = if model_type == "gemma3_text" {
            let of = |kind: &str, base: &str, default| -> Result<RopeParameters> {
                match json
                    .object("rope_parameters")?
                    .map(|rope| rope.object(kind))
                    .transpose()?
                    .flatten()
                {
                    Some(rope) => {
                        let scaling = RopeScaling::from_json(&rope, json, max)?;
                        let rope_theta = rope.number("rope_theta")?.unwrap_or(default);
                        Ok(RopeParameters { scaling, ..RopeParameters::new(rope_theta) })
                    }
                    None => Ok(RopeParameters::new(json.number(base)?.unwrap_or(default))),
                }
            };
            let mut global = of(FULL, "rope_theta", 1_000_000.0)?;
            if let Some(scaling) = json.object("rope_scaling")? {
                global.scaling = RopeScaling::from_json(&scaling, json, max)?;
            }
            (global, of(SLIDING, "rope_local_base_freq", 10_000.0)?)
        } else {
            let rope = RopeParameters::from_json(json, 10_000.0, max)?;
            (rope.clone(), rope)
        };
        let softcapping = |field: &str, default: f64| -> Result<Option<f64>> {
            Ok(match (json.has(field), model_type) {
                (true, _) => json.number(field)?,
                // Written as null it is none; not written at all it is the class's default.
                (false, "gemma2") => Some(default),
                (false, _) => None,
            })
        };
        if json.flag("use_bidirectional_attention")?.unwrap_or(false) {
            return json.refuse("use_bidirectional_attention", "true", "false or null");
        }
        let hidden_activation = match json.text("hidden_activation")? {
            Some(name) => name,
            // Gemma's first configs say `gelu` in `hidden_act` and mean this.
            None => "gelu_pytorch_tanh".to_owned(),
        };
        Ok(Self {
            hidden_activation,
            rms_norm_eps: json.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_parameters,
            local_rope_parameters,
            attention_bias: json.flag("attention_bias")?.unwrap_or(false),
            query_pre_attn_scalar: match model_type {
                "gemma" => shape.head_dim as f64,
                _ => json.number("query_pre_attn_scalar")?.unwrap_or(256.0),
            },
            sliding_window: window,
            layer_types: json.layer_types(shape.num_hidden_layers, default_type)?,
            attn_logit_softcapping: match model_type {
                // transformers reads Gemma 3's and does not use it.
                "gemma3_text" => None,
                _ => softcapping("attn_logit_softcapping", 50.0)?,
            },
            final_logit_softcapping: softcapping("final_logit_softcapping", 30.0)?,
        })
    }

    fn from_gguf(file: &Gguf, shape: &Shape) -> Result<Self> {
        let architecture = file.text("general.architecture")?;
        let key = |name: &str| format!("{architecture}.{name}");
        let sliding_window = match architecture {
            "gemma" => None,
            _ => file.optional_count(&key("attention.sliding_window"))?.or(Some(4096)),
        };
        let interval = if architecture == "gemma2" { 2 } else { 6 };
        let softcapping = |name: &str, default: f64| -> Result<Option<f64>> {
            match file.get(&key(name)) {
                Some(_) => Ok(Some(file.written_number(&key(name))?)),
                None => Ok((architecture == "gemma2").then_some(default)),
            }
        };
        let global = RopeParameters::from_gguf(file, architecture, shape.max_position_embeddings)?;
        let local = if architecture == "gemma3" {
            let base = key("rope.freq_base_swa");
            RopeParameters::new(match file.get(&base) {
                Some(_) => file.written_number(&base)?,
                None => 10_000.0,
            })
        } else {
            global.clone()
        };
        // llama.cpp takes the head's size, but for the 27B models, which it tells by their number
        // of layers.
        let large = match (architecture, shape.num_hidden_layers) {
            ("gemma2", 46) | ("gemma3", 62) => Some(shape.hidden_size / shape.num_attention_heads),
            _ => None,
        };
        Ok(Self {
            hidden_activation: "gelu_pytorch_tanh".to_owned(),
            rms_norm_eps: file.written_number(&key("attention.layer_norm_rms_epsilon"))?,
            rope_parameters: global,
            local_rope_parameters: local,
            attention_bias: false,
            query_pre_attn_scalar: large.unwrap_or(shape.head_dim) as f64,
            layer_types: (0..shape.num_hidden_layers)
                .map(|layer| {
                    let sliding = sliding_window.is_some() && (layer + 1) % interval != 0;
                    if sliding { SLIDING } else { FULL }.to_owned()
                })
                .collect(),
            sliding_window,
            attn_logit_softcapping: match architecture {
                "gemma2" => softcapping("attn_logit_softcapping", 50.0)?,
                _ => None,
            },
            final_logit_softcapping: softcapping("final_logit_softcapping", 30.0)?,
        })
    }

    fn validate(&self, shape: &Shape, origin: &str) -> Result<()> {
        fields::check_activation("hidden_activation", &self.hidden_activation, origin)?;
        fields::check_eps("rms_norm_eps", self.rms_norm_eps, origin)?;
        fields::check_eps("query_pre_attn_scalar", self.query_pre_attn_scalar, origin)?;
        for cap in [self.attn_logit_softcapping, self.final_logit_softcapping].into_iter().flatten()
        {
            fields::check_eps("attn_logit_softcapping, final_logit_softcapping", cap, origin)?;
        }
        self.rope_parameters.validate(shape.head_dim, origin)?;
        self.local_rope_parameters.validate(shape.head_dim, origin)
    }

    fn to_json(&self, shape: &Shape, json: &mut Map<String, Json>) {
        let model_type = shape.model_type.as_str();
        let rope = match model_type {
            "gemma3_text" => {
                json!({FULL: self.rope_parameters.to_json(), SLIDING: self.local_rope_parameters.to_json()})
            }
            _ => self.rope_parameters.to_json(),
        };
        for (field, value) in [
            ("hidden_activation", json!(self.hidden_activation)),
            ("rms_norm_eps", json!(self.rms_norm_eps)),
            ("rope_parameters", rope),
            ("attention_bias", json!(self.attention_bias)),
        ] {
            json.insert(field.to_owned(), value);
        }
        if model_type == "gemma" {
            json.insert("hidden_act".to_owned(), json!(self.hidden_activation));
            return;
        }
        // transformers takes whole numbers only.
        let whole = self.query_pre_attn_scalar.round() as i64;
        for (field, value) in [
            ("query_pre_attn_scalar", json!(whole)),
            ("sliding_window", json!(self.sliding_window)),
            ("layer_types", json!(self.layer_types)),
            ("attn_logit_softcapping", json!(self.attn_logit_softcapping)),
            ("final_logit_softcapping", json!(self.final_logit_softcapping)),
        ] {
            json.insert(field.to_owned(), value);
        }
    }

    /// What GGUF cannot say, if the config has it.
    fn not_in_gguf(&self, shape: &Shape) -> Option<String> {
        let model_type = shape.model_type.as_str();
        let interval = if model_type == "gemma2" { 2 } else { 6 };
        let regular = self.layer_types.iter().enumerate().all(|(layer, kind)| {
            (kind == SLIDING) == (model_type != "gemma" && (layer + 1) % interval != 0)
        });
        if !regular {
            return Some(format!("layer_types {:?}", self.layer_types));
        }
        let large = match (model_type, shape.num_hidden_layers) {
            ("gemma2", 46) | ("gemma3_text", 62) => shape.hidden_size / shape.num_attention_heads,
            _ => shape.head_dim,
        };
        if self.query_pre_attn_scalar != large as f64 {
            return Some(format!("query_pre_attn_scalar {}", self.query_pre_attn_scalar));
        }
        if self.attention_bias {
            return Some("attention_bias".to_owned());
        }
        if model_type == "gemma3_text" && self.final_logit_softcapping.is_some() {
            return Some("final_logit_softcapping".to_owned());
        }
        if model_type == "gemma2"
            && (self.attn_logit_softcapping.is_none() || self.final_logit_softcapping.is_none())
        {
            return Some("no soft-capping".to_owned());
        }
        match self.rope_parameters.scaling {
            RopeScaling::Default | RopeScaling::Linear { .. } => None,
            _ => Some("a rope scaling".to_owned()),
        }
    }

    fn to_gguf(&self, shape: &Shape, put: &mut dyn FnMut(&str, Value)) {
        let model_type = shape.model_type.as_str();
        put("attention.layer_norm_rms_epsilon", Value::Float(self.rms_norm_eps));
        put("rope.dimension_count", Value::Unsigned(shape.head_dim as u64));
        self.rope_parameters.to_gguf(put);
        if model_type == "gemma3_text" {
            put("rope.freq_base_swa", Value::Float(self.local_rope_parameters.rope_theta));
        }
        if let Some(window) = self.sliding_window {
            put("attention.sliding_window", Value::Unsigned(window as u64));
        }
        if let Some(cap) = self.attn_logit_softcapping {
            put("attn_logit_softcapping", Value::Float(cap));
        }
        if let Some(cap) = self.final_logit_softcapping {
            put("final_logit_softcapping", Value::Float(cap));
        }
    }

    fn gguf_names(&self, shape: &Shape) -> Vec<(&'static str, &'static str)> {
        gguf_names(&shape.model_type)
    }

    fn attends_in_tiles(&self) -> bool {
        self.attn_logit_softcapping.is_none()
    }

    fn gguf_norm_offset(&self) -> f64 {
        1.0
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
fn gguf_names(model_type: &str) -> Vec<(&'static str, &'static str)> {
    let mut names = vec![
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
        ("blk.*.ffn_gate", "model.layers.*.mlp.gate_proj"),
        ("blk.*.ffn_up", "model.layers.*.mlp.up_proj"),
        ("blk.*.ffn_down", "model.layers.*.mlp.down_proj"),
    ];
    if model_type == "gemma" {
        names.push(("blk.*.ffn_norm", "model.layers.*.post_attention_layernorm"));
    } else {
        names.push(("blk.*.post_attention_norm", "model.layers.*.post_attention_layernorm"));
        names.push(("blk.*.ffn_norm", "model.layers.*.pre_feedforward_layernorm"));
        names.push(("blk.*.post_ffw_norm", "model.layers.*.post_feedforward_layernorm"));
    }
    names
}

#[derive(Debug)]
struct Attention {
    q_proj: Arc<Slot>,
    k_proj: Arc<Slot>,
    v_proj: Arc<Slot>,
    o_proj: Arc<Slot>,
    /// Of queries and keys.
    norms: Option<(RmsNorm, RmsNorm)>,
    head_dim: usize,
    rope: Arc<Rope>,
    past: Arc<PastKeyValues>,
    scores: Scores,
}

impl Attention {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let heads = |x: Tensor, norm: Option<&RmsNorm>| -> Result<Tensor> {
            // [b, t, h·d] -> [b, t, h, d]
            let x = match norm {
                Some(norm) => norm.forward(&x.reshape((b, t, (), self.head_dim))?, pass)?,
                None => x,
            };
            self.rope.forward(&x, pass.positions())
        };
        let q = heads(self.q_proj.forward(x, pass)?, self.norms.as_ref().map(|(q, _)| q))?;
        let k = heads(self.k_proj.forward(x, pass)?, self.norms.as_ref().map(|(_, k)| k))?;
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

/// Norms of Gemma 2 and 3 that the first Gemma lacks.
#[derive(Debug)]
struct After {
    post_attention_layernorm: RmsNorm,
    post_feedforward_layernorm: RmsNorm,
}

#[derive(Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    after_attn: Arc<Residual>,
    /// `pre_feedforward_layernorm`, which the first Gemma calls `post_attention_layernorm`.
    before_mlp: RmsNorm,
    mlp: Mlp,
    after_mlp: Arc<Residual>,
    after: Option<After>,
}

impl parts::Block for Block {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let attended =
            self.self_attn.forward(&self.input_layernorm.forward(x, pass)?, pass, cache)?;
        let mut attended = self.after_attn.forward(x, attended, pass)?;
        if let Some(after) = &self.after {
            attended = after.post_attention_layernorm.forward(&attended, pass)?;
        }
        let x = ops::add(x, &attended)?;
        let fed = self.mlp.forward(&self.before_mlp.forward(&x, pass)?, pass)?;
        let mut fed = self.after_mlp.forward(&x, fed, pass)?;
        if let Some(after) = &self.after {
            fed = after.post_feedforward_layernorm.forward(&fed, pass)?;
        }
        Ok(ops::add(&x, &fed)?)
    }
}

/// Builds the Gemma decoder with its output head.
fn decoder(
    shape: &Shape,
    family: &GemmaConfig,
    builder: &mut Builder,
    device: &Device,
) -> Result<Stack<Block, RmsNorm>> {
    let (hidden, ffn, d) = (shape.hidden_size, shape.intermediate_size, shape.head_dim);
    let (q, kv) = (shape.num_attention_heads * d, shape.num_key_value_heads * d);
    let act =
        fields::activation("hidden_activation", &family.hidden_activation, &shape.model_type)?;
    let max = shape.max_position_embeddings;
    let global = Arc::new(Rope::new(&family.rope_parameters, d, max, device)?);
    let local = Arc::new(Rope::new(&family.local_rope_parameters, d, max, device)?);
    let embed_tokens = builder.embedding("model.embed_tokens", shape.vocab_size, hidden);
    let first = shape.model_type == "gemma";
    let mut layers = Vec::with_capacity(shape.num_hidden_layers);
    for layer in 0..shape.num_hidden_layers {
        let path = |module: &str| format!("model.layers.{layer}.{module}");
        let norm = |builder: &mut Builder, module: &str, size| {
            builder.rms_norm_around_one(path(module), size, family.rms_norm_eps)
        };
        let linear = |builder: &mut Builder, module: &str, input, output| {
            builder.linear(path(module), input, output, family.attention_bias)
        };
        let sliding = family.layer_types[layer] == SLIDING;
        let self_attn = Attention {
            q_proj: linear(builder, "self_attn.q_proj", hidden, q),
            k_proj: linear(builder, "self_attn.k_proj", hidden, kv),
            v_proj: linear(builder, "self_attn.v_proj", hidden, kv),
            o_proj: linear(builder, "self_attn.o_proj", q, hidden),
            norms: match shape.model_type.as_str() {
                "gemma3_text" => Some((
                    norm(builder, "self_attn.q_norm", d),
                    norm(builder, "self_attn.k_norm", d),
                )),
                _ => None,
            },
            head_dim: d,
            rope: Arc::clone(if sliding { &local } else { &global }),
            past: builder.past(layer, shape.num_key_value_heads, d),
            scores: Scores {
                scale: family.query_pre_attn_scalar.powf(-0.5) as f32,
                window: family.sliding_window.filter(|_| sliding),
                softcap: family.attn_logit_softcapping,
                alibi: None,
            },
        };
        let mlp = Mlp {
            gate_proj: builder.linear(path("mlp.gate_proj"), hidden, ffn, false),
            up_proj: builder.linear(path("mlp.up_proj"), hidden, ffn, false),
            down_proj: builder.linear(path("mlp.down_proj"), ffn, hidden, false),
            act,
        };
        let input_layernorm = norm(builder, "input_layernorm", hidden);
        let after = match first {
            true => None,
            false => Some(After {
                post_attention_layernorm: norm(builder, "post_attention_layernorm", hidden),
                post_feedforward_layernorm: norm(builder, "post_feedforward_layernorm", hidden),
            }),
        };
        let before_mlp =
            if first { "post_attention_layernorm" } else { "pre_feedforward_layernorm" };
        let before_mlp = norm(builder, before_mlp, hidden);
        let flow = if first { Flow::Sequential } else { Flow::Normed };
        layers.push(Block {
            input_layernorm,
            self_attn,
            after_attn: builder.residual(path("self_attn"), Sublayer::Attention, flow),
            before_mlp,
            mlp,
            after_mlp: builder.residual(path("mlp"), Sublayer::FeedForward, flow),
            after,
        });
    }
    let norm = builder.rms_norm_around_one("model.norm".to_owned(), hidden, family.rms_norm_eps);
    let lm_head = builder.head(shape, &embed_tokens);
    Ok(Stack {
        embedding: embed_tokens,
        blocks: layers,
        norm,
        head: lm_head,
        embed_scale: (hidden as f64).sqrt(),
        final_logit_softcapping: family.final_logit_softcapping,
        learned_positions: None,
        cache_ends_at: None,
    })
}
