//! The Phi-3 decoder (<https://arxiv.org/abs/2404.14219>): Llama's block with queries, keys and
//! values in one projection and gate and up in another; a window on request, and LongRoPE, whose
//! angles change when a text grows beyond the original context. Phi-4 and Phi-4-mini are this as
//! well.

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
use crate::layers::rope::{Rope, RopeParameters, RopeScaling};
use crate::layers::{Activation, Norm, RmsNorm, Slot};
use crate::pass::Pass;
use crate::pass::kv_cache::KvCache;
use crate::weights::gguf::{Gguf, Value};
use tunebook_ops as ops;

/// The fields of a decoder of this family besides its sizes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phi3Config {
    /// Activation of the feed-forward block.
    pub hidden_act: String,
    /// Added to the mean square in RMS normalisation.
    pub rms_norm_eps: f64,
    /// The rotary embedding.
    pub rope_parameters: RopeParameters,
    /// The keys that a query sees, itself included.
    pub sliding_window: Option<usize>,
}

impl FamilyConfig for Phi3Config {
    fn model_types() -> &'static [ModelType] {
        &[ModelType { name: "phi3", gguf: "phi3", class: "Phi3ForCausalLM" }]
    }

    fn shape(json: &JsonFields<'_>, model_type: &str) -> Result<Shape> {
        Shape::from_json(json, model_type, Defaults::default())
    }

    fn from_json(json: &JsonFields<'_>, shape: &Shape) -> Result<Self> {
        Ok(Self {
            hidden_act: json.text("hidden_act")?.unwrap_or_else(|| "silu".to_owned()),
            rms_norm_eps: json.number("rms_norm_eps")?.unwrap_or(1e-5),
            rope_parameters: RopeParameters::from_json(
                json,
                10_000.0,
                shape.max_position_embeddings,
            )?,
            sliding_window: json.optional_count("sliding_window")?,
        })
    }

    fn from_gguf(file: &Gguf, shape: &Shape) -> Result<Self> {
        let mut rope = RopeParameters::from_gguf(file, "phi3", shape.max_position_embeddings)?;
        if let Some(turned) = file.optional_count("phi3.rope.dimension_count")? {
            rope.partial_rotary_factor = turned as f64 / shape.head_dim as f64;
        }
        if let (Some(short), Some(long)) =
            (file.numbers("rope_factors_short.weight")?, file.numbers("rope_factors_long.weight")?)
        {
            rope.scaling = RopeScaling::LongRope {
                short_factor: short,
                long_factor: long,
                original_max_position_embeddings: file
                    .count("phi3.rope.scaling.original_context_length")?,
                attention_factor: match file.get("phi3.rope.scaling.attn_factor") {
                    Some(_) => file.written_number("phi3.rope.scaling.attn_factor")?,
                    None => 1.0,
                },
            };
        }
        Ok(Self {
            hidden_act: "silu".to_owned(),
            rms_norm_eps: file.written_number("phi3.attention.layer_norm_rms_epsilon")?,
            rope_parameters: rope,
            // The converter writes 0 for none.
            sliding_window: file
                .get("phi3.attention.sliding_window")
                .and_then(Value::as_u64)
                .filter(|window| (1..=1 << 31).contains(window))
                .map(|window| window as usize),
        })
    }

    fn validate(&self, shape: &Shape, origin: &str) -> Result<()> {
        fields::check_activation("hidden_act", &self.hidden_act, origin)?;
        fields::check_eps("rms_norm_eps", self.rms_norm_eps, origin)?;
        self.rope_parameters.validate(shape.head_dim, origin)
    }

    fn to_json(&self, _: &Shape, json: &mut Map<String, Json>) {
        for (field, value) in [
            ("hidden_act", json!(self.hidden_act)),
            ("rms_norm_eps", json!(self.rms_norm_eps)),
            ("rope_parameters", self.rope_parameters.to_json()),
            ("sliding_window", json!(self.sliding_window)),
        ] {
            json.insert(field.to_owned(), value);
        }
        if let RopeScaling::LongRope { original_max_position_embeddings, .. } =
            self.rope_parameters.scaling
        {
            let field = "original_max_position_embeddings".to_owned();
            json.insert(field, json!(original_max_position_embeddings));
        }
    }

    /// What GGUF cannot say, if the config has it.
    fn not_in_gguf(&self, _: &Shape) -> Option<String> {
        match self.rope_parameters.scaling {
            RopeScaling::Default | RopeScaling::LongRope { .. } => None,
            _ => Some("a rope scaling".to_owned()),
        }
    }

    fn to_gguf(&self, shape: &Shape, put: &mut dyn FnMut(&str, Value)) {
        put("attention.layer_norm_rms_epsilon", Value::Float(self.rms_norm_eps));
        put("rope.freq_base", Value::Float(self.rope_parameters.rope_theta));
        let turned = self.rope_parameters.rotary_dim(shape.head_dim);
        put("rope.dimension_count", Value::Unsigned(turned as u64));
        put("attention.sliding_window", Value::Unsigned(self.sliding_window.unwrap_or(0) as u64));
        let mut original = shape.max_position_embeddings;
        if let RopeScaling::LongRope {
            original_max_position_embeddings, attention_factor, ..
        } = self.rope_parameters.scaling
        {
            original = original_max_position_embeddings;
            put("rope.scaling.attn_factor", Value::Float(attention_factor));
        }
        put("rope.scaling.original_context_length", Value::Unsigned(original as u64));
    }

    fn gguf_names(&self, _: &Shape) -> Vec<(&'static str, &'static str)> {
        GGUF_NAMES.to_vec()
    }

    fn gguf_extra(&self, _: &Shape) -> Vec<(&'static str, Vec<f32>)> {
        match self.rope_parameters.long_rope() {
            Some((short, long)) => {
                vec![("rope_factors_short.weight", short), ("rope_factors_long.weight", long)]
            }
            None => Vec::new(),
        }
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
    ("blk.*.attn_qkv", "model.layers.*.self_attn.qkv_proj"),
    ("blk.*.attn_output", "model.layers.*.self_attn.o_proj"),
    ("blk.*.ffn_norm", "model.layers.*.post_attention_layernorm"),
    ("blk.*.ffn_up", "model.layers.*.mlp.gate_up_proj"),
    ("blk.*.ffn_down", "model.layers.*.mlp.down_proj"),
];

#[derive(Debug)]
struct Attention {
    qkv_proj: Arc<Slot>,
    o_proj: Arc<Slot>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rope: Arc<Rope>,
    past: Arc<PastKeyValues>,
    scores: Scores,
}

impl Attention {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let (h, hkv, d) = (self.heads, self.kv_heads, self.head_dim);
        // [b, t, (h + 2·hkv)·d] -> [b, t, h + 2·hkv, d]
        let qkv = self.qkv_proj.forward(x, pass)?.reshape((b, t, h + 2 * hkv, d))?;
        let q = self.rope.forward(&qkv.narrow(2, 0, h)?, pass.positions())?;
        let k = self.rope.forward(&qkv.narrow(2, h, hkv)?, pass.positions())?;
        let v = qkv.narrow(2, h + hkv, hkv)?.contiguous()?;
        // [b, t, h, d] -> [b, t, h·d]
        let y = self.past.attend(&q, (k, v), pass, cache, &self.scores)?;
        self.o_proj.forward(&y, pass)
    }
}

#[derive(Debug)]
struct Mlp {
    gate_up_proj: Arc<Slot>,
    down_proj: Arc<Slot>,
    act: Activation,
}

impl Mlp {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        // [b, t, 2·ffn] -> twice [b, t, ffn]
        let gate_up = self.gate_up_proj.forward(x, pass)?;
        let ffn = gate_up.dim(2)? / 2;
        let (gate, up) = (gate_up.narrow(2, 0, ffn)?, gate_up.narrow(2, ffn, ffn)?);
        self.down_proj.forward(&self.act.gate(&gate.contiguous()?, &up.contiguous()?)?, pass)
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

/// Builds the Phi-3 decoder with its output head.
fn decoder(
    shape: &Shape,
    family: &Phi3Config,
    builder: &mut Builder,
    device: &Device,
) -> Result<Stack<Block, RmsNorm>> {
    let (hidden, ffn, d) = (shape.hidden_size, shape.intermediate_size, shape.head_dim);
    let (heads, kv_heads) = (shape.num_attention_heads, shape.num_key_value_heads);
    let act = fields::activation("hidden_act", &family.hidden_act, &shape.model_type)?;
    let rope =
        Arc::new(Rope::new(&family.rope_parameters, d, shape.max_position_embeddings, device)?);
    let embed_tokens = builder.embedding("model.embed_tokens", shape.vocab_size, hidden);
    let mut layers = Vec::with_capacity(shape.num_hidden_layers);
    for layer in 0..shape.num_hidden_layers {
        let path = |module: &str| format!("model.layers.{layer}.{module}");
        let linear = |builder: &mut Builder, module: &str, input, output| {
            builder.linear(path(module), input, output, false)
        };
        let norm = |builder: &mut Builder, module: &str| {
            builder.rms_norm(path(module), hidden, family.rms_norm_eps)
        };
        layers.push(Block {
            input_layernorm: norm(builder, "input_layernorm"),
            self_attn: Attention {
                qkv_proj: linear(builder, "self_attn.qkv_proj", hidden, (heads + 2 * kv_heads) * d),
                o_proj: linear(builder, "self_attn.o_proj", heads * d, hidden),
                heads,
                kv_heads,
                head_dim: d,
                rope: Arc::clone(&rope),
                past: builder.past(layer, kv_heads, d),
                scores: Scores {
                    scale: 1.0 / (d as f32).sqrt(),
                    window: family.sliding_window,
                    ..Default::default()
                },
            },
            after_attn: builder.residual(path("self_attn"), Sublayer::Attention, Flow::Sequential),
            post_attention_layernorm: norm(builder, "post_attention_layernorm"),
            mlp: Mlp {
                gate_up_proj: linear(builder, "mlp.gate_up_proj", hidden, 2 * ffn),
                down_proj: linear(builder, "mlp.down_proj", ffn, hidden),
                act,
            },
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
