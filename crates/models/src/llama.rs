//! The Llama decoder (<https://arxiv.org/abs/2302.13971>): pre-norm blocks of grouped-query attention with rotary
//! embedding and a gated feed-forward network. Llama, SmolLM and TinyLlama are this.
//!
//! Modules are named as Hugging Face's, so that adapters exchange. The same blocks train (no cache, any tensor may be
//! tracked) and generate (with a cache); all operations are differentiable ones.
//!
//! In the shape comments b is the batch, t the positions of this call, s all positions so far, h the query heads, hkv
//! the key and value heads, d the size of a head.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::cache::{BlockCache, KvCache};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::{Embedding, Linear, RmsNorm, Slot, Weight};
use crate::ops;
use crate::weights::Tensors;

/// Where the tokens of a call stand in their texts.
#[derive(Clone, Debug)]
pub struct Positions {
    /// `[b, t]` u32, counted from 0 at the first token of each row that is no padding.
    ids: Tensor,
    /// For each row the number of padding tokens on its left; `None`: none anywhere.
    starts: Option<Vec<usize>>,
    /// For each row the lengths of the texts packed into it; `None`: one text each.
    segments: Option<Vec<Vec<usize>>>,
}

impl Positions {
    /// The positions of `t` tokens in each of `b` rows, from 0 on; padding, if any, is on the right.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(b: usize, t: usize, device: &Device) -> Result<Self> {
        // [t] -> [b, t]
        let ids = Tensor::arange(0u32, t as u32, device)?.broadcast_as((b, t))?.contiguous()?;
        Ok(Self { ids, starts: None, segments: None })
    }

    /// The positions of rows of `t` tokens into which several texts are packed, `segments[row]` being their lengths: each text counts from 0
    /// and sees itself alone. What is left of a row is padding.
    ///
    /// # Errors
    /// When the texts of a row are longer than `t`, or the device has no room.
    pub fn packed(t: usize, segments: &[Vec<usize>], device: &Device) -> Result<Self> {
        let mut ids = Vec::with_capacity(segments.len() * t);
        for row in segments {
            let from = ids.len();
            for length in row {
                ids.extend(0..*length as u32);
            }
            if ids.len() > from + t {
                return Err(Error::Argument {
                    field: "segments",
                    value: format!("{row:?}"),
                    expected: "lengths that fit into the row together",
                });
            }
            let padding = from + t - ids.len();
            ids.extend(0..padding as u32);
        }
        Ok(Self {
            ids: Tensor::from_vec(ids, (segments.len(), t), device)?,
            starts: None,
            segments: Some(segments.to_vec()),
        })
    }

    /// The positions of columns `from..from + t` of rows that begin with `starts[row]` padding tokens.
    pub(crate) fn padded(from: usize, t: usize, starts: &[usize], device: &Device) -> Result<Self> {
        let ids: Vec<u32> = starts
            .iter()
            .flat_map(|start| (from..from + t).map(move |column| column.saturating_sub(*start) as u32))
            .collect();
        Ok(Self {
            ids: Tensor::from_vec(ids, (starts.len(), t), device)?,
            starts: starts.iter().any(|start| *start > 0).then(|| starts.to_vec()),
            segments: None,
        })
    }
}

#[derive(Debug)]
struct Attention {
    q_proj: Arc<Slot>,
    k_proj: Arc<Slot>,
    v_proj: Arc<Slot>,
    o_proj: Arc<Slot>,
    head_dim: usize,
    rope: Arc<Rope>,
}

impl Attention {
    fn forward(&self, x: &Tensor, positions: &Positions, cache: Option<&mut BlockCache>) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        // [b, t, h·d] -> [b, t, h, d]
        let q = self.rope.forward(&self.q_proj.forward(x)?, positions)?;
        let k = self.rope.forward(&self.k_proj.forward(x)?, positions)?;
        let v = self.v_proj.forward(x)?;
        let (k, v) = match cache {
            // [b, t, hkv, d] -> [b, s, hkv, d]
            Some(cache) => cache.append(&k, &v.reshape((b, t, (), self.head_dim))?)?,
            None => (k, v),
        };
        let how = ops::Attention {
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            starts: positions.starts.clone(),
            segments: positions.segments.clone(),
            ..Default::default()
        };
        // [b, t, h, d] -> [b, t, h·d]
        let y = ops::attention(&q, &k, &v, &how)?;
        self.o_proj.forward(&y)
    }
}

#[derive(Debug)]
struct Mlp {
    gate_proj: Arc<Slot>,
    up_proj: Arc<Slot>,
    down_proj: Arc<Slot>,
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = ops::swiglu(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?;
        self.down_proj.forward(&gated)
    }
}

#[derive(Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn forward(&self, x: &Tensor, positions: &Positions, cache: Option<&mut BlockCache>) -> Result<Tensor> {
        let x = ops::add(x, &self.self_attn.forward(&self.input_layernorm.forward(x)?, positions, cache)?)?;
        let y = self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?;
        Ok(ops::add(&x, &y)?)
    }
}

/// The angles of the rotary embedding, `[max, d/2]` each.
#[derive(Debug)]
struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    fn new(config: &Config, device: &Device) -> Result<Self> {
        let (half, max) = (config.head_dim / 2, config.max_position_embeddings);
        // As in transformers: inverse frequencies and angles in f32.
        let frequencies: Vec<f32> = (0..half)
            .map(|i| 1.0 / (config.rope_theta as f32).powf((2 * i) as f32 / config.head_dim as f32))
            .collect();
        let angles: Vec<f32> =
            (0..max).flat_map(|position| frequencies.iter().map(move |f| position as f32 * f)).collect();
        let angles = Tensor::from_vec(angles, (max, half), device)?;
        Ok(Self { cos: angles.cos()?, sin: angles.sin()? })
    }

    fn forward(&self, x: &Tensor, positions: &Positions) -> Result<Tensor> {
        Ok(ops::rope(x, &self.cos, &self.sin, &positions.ids)?)
    }
}

/// A Llama decoder with its output head.
#[derive(Debug)]
pub(crate) struct Llama {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: Arc<Weight>,
    slots: Vec<Arc<Slot>>,
    /// Every tensor, in the order of [`tensors`].
    weights: Vec<Arc<Weight>>,
}

/// A projection of a block: its module, sizes in and out, and whether it has a bias.
struct ProjectionShape {
    name: &'static str,
    input: usize,
    output: usize,
    bias: bool,
}

/// The projections of each block, in the order of Hugging Face's files.
fn projections(config: &Config) -> [ProjectionShape; 7] {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let (q, kv) =
        (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let attention =
        |name, input, output| ProjectionShape { name, input, output, bias: config.attention_bias };
    let mlp = |name, input, output| ProjectionShape { name, input, output, bias: config.mlp_bias };
    [
        attention("self_attn.q_proj", hidden, q),
        attention("self_attn.k_proj", hidden, kv),
        attention("self_attn.v_proj", hidden, kv),
        attention("self_attn.o_proj", q, hidden),
        mlp("mlp.gate_proj", hidden, ffn),
        mlp("mlp.up_proj", hidden, ffn),
        mlp("mlp.down_proj", ffn, hidden),
    ]
}

/// Names and shapes of all tensors that a decoder of this config has.
pub(crate) fn tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for layer in 0..config.num_hidden_layers {
        let name = |module: &str, kind: &str| format!("model.layers.{layer}.{module}.{kind}");
        for projection in projections(config) {
            tensors.push((name(projection.name, "weight"), vec![projection.output, projection.input]));
            if projection.bias {
                tensors.push((name(projection.name, "bias"), vec![projection.output]));
            }
        }
        tensors.push((name("input_layernorm", "weight"), vec![hidden]));
        tensors.push((name("post_attention_layernorm", "weight"), vec![hidden]));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    }
    tensors
}

impl Llama {
    /// Builds the decoder from the tensors that [`tensors`] lists.
    pub(crate) fn new(config: &Config, mut weights: Tensors, device: &Device) -> Result<Self> {
        let mut taken = Vec::new();
        let mut take = |name: &str| -> Result<Arc<Weight>> {
            let tensor = weights.remove(name).ok_or_else(|| Error::MissingTensors {
                origin: "the loaded weights".to_owned(),
                architecture: config.model_type.clone(),
                names: vec![name.to_owned()],
            })?;
            let weight = Arc::new(Weight::new(name, tensor));
            taken.push(Arc::clone(&weight));
            Ok(weight)
        };
        let rope = Arc::new(Rope::new(config, device)?);
        let embed_tokens = Embedding::new(take("model.embed_tokens.weight")?);
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        let mut slots = Vec::new();
        for layer in 0..config.num_hidden_layers {
            let mut of_block = Vec::new();
            for projection in projections(config) {
                let path = format!("model.layers.{layer}.{}", projection.name);
                let weight = take(&format!("{path}.weight"))?;
                let bias = if projection.bias { Some(take(&format!("{path}.bias"))?) } else { None };
                of_block.push(Arc::new(Slot::new(path, Linear::of(weight, bias))));
            }
            slots.extend(of_block.iter().cloned());
            let [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] =
                <[Arc<Slot>; 7]>::try_from(of_block).map_err(|found| Error::Argument {
                    field: "projections",
                    value: found.len().to_string(),
                    expected: "seven in each block",
                })?;
            let norm = |weight| RmsNorm::new(weight, config.rms_norm_eps);
            layers.push(Block {
                input_layernorm: norm(take(&format!("model.layers.{layer}.input_layernorm.weight"))?),
                self_attn: Attention {
                    q_proj,
                    k_proj,
                    v_proj,
                    o_proj,
                    head_dim: config.head_dim,
                    rope: rope.clone(),
                },
                post_attention_layernorm: norm(take(&format!(
                    "model.layers.{layer}.post_attention_layernorm.weight"
                ))?),
                mlp: Mlp { gate_proj, up_proj, down_proj },
            });
        }
        let norm = RmsNorm::new(take("model.norm.weight")?, config.rms_norm_eps);
        let lm_head = match config.tie_word_embeddings {
            true => Arc::clone(embed_tokens.weight()),
            false => take("lm_head.weight")?,
        };
        Ok(Self { embed_tokens, layers, norm, lm_head, slots, weights: taken })
    }

    /// Every tensor, a tied output head counted once.
    pub(crate) fn weights(&self) -> &[Arc<Weight>] {
        &self.weights
    }

    pub(crate) fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.layers.len()
    }

    /// `[b, t]` u32 -> `[b, t, hid]`
    pub(crate) fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.embed_tokens.forward(ids)
    }

    /// `[b, t, hid]` -> `[b, t, hid]`
    pub(crate) fn block_forward(&self, index: usize, x: &Tensor, positions: &Positions) -> Result<Tensor> {
        match self.layers.get(index) {
            Some(block) => block.forward(x, positions, None),
            None => Err(Error::Argument {
                field: "index",
                value: index.to_string(),
                expected: "the number of a block, below `num_blocks()`",
            }),
        }
    }

    /// `[b, t, hid]` -> `[b, t, hid]`
    pub(crate) fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(x)
    }

    /// `[vocab, hid]`
    pub(crate) fn head_weight(&self) -> Tensor {
        self.lm_head.get()
    }

    /// Logits of the position after the last one.
    ///
    /// `ids` `[b, t]` -> `[b, vocab]`
    pub(crate) fn next_logits(
        &self,
        ids: &Tensor,
        positions: &Positions,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let mut x = self.embed(ids)?;
        for (block, cache) in self.layers.iter().zip(&mut cache.blocks) {
            x = block.forward(&x, positions, Some(cache))?;
        }
        let (_, t, _) = x.dims3()?;
        // [b, t, hid] -> [b, hid]
        let last = x.narrow(1, t - 1, 1)?.squeeze(1)?.contiguous()?;
        Ok(ops::linear(&self.norm.forward(&last)?, &self.lm_head.get(), None)?)
    }

    pub(crate) fn cache(&self, config: &Config, b: usize, capacity: usize) -> Result<KvCache> {
        let shape = (b, capacity, config.num_key_value_heads, config.head_dim);
        KvCache::new(self.layers.len(), shape, self.dtype(), self.lm_head.get().device())
    }

    pub(crate) fn dtype(&self) -> DType {
        self.lm_head.get().dtype()
    }
}
