//! What a family gives the rest of the crate, and how it is put together: a family's constructor
//! names every tensor that it needs, with its shape, and the loader fills them in. So each name and
//! shape is written once.

pub mod falcon;
pub mod gemma;
pub mod gpt2;
pub mod llama;
pub mod phi3;

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::config::{Config, Family};
use crate::error::{Error, Result};
use crate::hooks::past_key_values::Past;
use crate::hooks::residual::{Flow, Joint, Sublayer};
use crate::layers::{Embedding, LayerNorm, Linear, RmsNorm, Slot, Weight};
use crate::pass::kv_cache::BlockCache;
use crate::pass::positions::Positions;
use tunebook_ops::Matrix;

/// A decoder of one family. All operations are differentiable.
pub(crate) trait Decoder: Send + Sync + fmt::Debug {
    /// Number of blocks.
    fn num_blocks(&self) -> usize;

    /// `[b, t]` u32 -> `[b, t, hid]`
    fn embed(&self, ids: &Tensor) -> Result<Tensor>;

    /// What the embedding multiplies its table's rows with.
    fn embed_scale(&self) -> f64 {
        1.0
    }

    /// Block `index`, which exists: `[b, t, hid]` -> `[b, t, hid]`
    fn block(
        &self,
        index: usize,
        x: &Tensor,
        positions: &Positions,
        cache: Option<&mut BlockCache>,
    ) -> Result<Tensor>;

    /// `[.., hid]` -> `[.., hid]`
    fn final_norm(&self, x: &Tensor) -> Result<Tensor>;

    /// The output head, `[vocab, hid]`.
    fn head(&self) -> Matrix;

    /// Logits `l` become `c · tanh(l / c)`.
    fn final_logit_softcapping(&self) -> Option<f64> {
        None
    }

    /// Keys that were computed for texts of up to so many positions are of no use in longer ones.
    fn cache_ends_at(&self) -> Option<usize> {
        None
    }
}

/// A tensor that a decoder needs.
#[derive(Debug)]
pub(crate) struct Need {
    pub(crate) weight: Arc<Weight>,
    /// As the decoder takes it.
    pub(crate) shape: Vec<usize>,
    /// Hugging Face's files hold it transposed (`Conv1D`).
    pub(crate) transposed: bool,
}

/// A decoder and its parts.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) decoder: Box<dyn Decoder>,
    pub(crate) slots: Vec<Arc<Slot>>,
    pub(crate) joints: Vec<Arc<Joint>>,
    /// One for each block, or none where a family cannot have any.
    pub(crate) pasts: Vec<Arc<Past>>,
    pub(crate) needs: Vec<Need>,
}

/// Builds the decoder of a config. Its weights are empty until the loader fills them.
pub(crate) fn build(config: &Config, device: &Device) -> Result<Parts> {
    let mut builder = Builder {
        slots: Vec::new(),
        joints: Vec::new(),
        pasts: Vec::new(),
        needs: Vec::new(),
        empty: empty(device)?,
    };
    let decoder: Box<dyn Decoder> = match &config.family {
        Family::Llama(family) => Box::new(llama::Llama::new(config, family, &mut builder, device)?),
        Family::Falcon(family) => {
            Box::new(falcon::Falcon::new(config, family, &mut builder, device)?)
        }
        Family::Gemma(family) => Box::new(gemma::Gemma::new(config, family, &mut builder, device)?),
        Family::Phi3(family) => Box::new(phi3::Phi3::new(config, family, &mut builder, device)?),
        Family::Gpt2(family) => Box::new(gpt2::Gpt2::new(config, family, &mut builder)?),
    };
    let Builder { slots, joints, pasts, needs, .. } = builder;
    Ok(Parts { decoder, slots, joints, pasts, needs })
}

fn empty(device: &Device) -> Result<Tensor> {
    Ok(Tensor::zeros(0, DType::F32, device)?)
}

/// Collects what a decoder needs, in the order in which it asks.
pub(crate) struct Builder {
    slots: Vec<Arc<Slot>>,
    joints: Vec<Arc<Joint>>,
    pasts: Vec<Arc<Past>>,
    needs: Vec<Need>,
    empty: Tensor,
}

impl Builder {
    pub(crate) fn weight(&mut self, name: String, shape: &[usize]) -> Arc<Weight> {
        self.need(name, shape, false)
    }

    fn need(&mut self, name: String, shape: &[usize], transposed: bool) -> Arc<Weight> {
        let weight = Arc::new(Weight::new(name, self.empty.clone()));
        self.needs.push(Need { weight: Arc::clone(&weight), shape: shape.to_vec(), transposed });
        weight
    }

    fn slot(
        &mut self,
        path: String,
        (input, output): (usize, usize),
        bias: bool,
        transposed: bool,
    ) -> Arc<Slot> {
        let weight = self.need(format!("{path}.weight"), &[output, input], transposed);
        let bias = bias.then(|| self.weight(format!("{path}.bias"), &[output]));
        let slot = Arc::new(Slot::new(path, Linear::of(weight, bias)));
        self.slots.push(Arc::clone(&slot));
        slot
    }

    /// A replaceable projection.
    pub(crate) fn linear(
        &mut self,
        path: String,
        input: usize,
        output: usize,
        bias: bool,
    ) -> Arc<Slot> {
        self.slot(path, (input, output), bias, false)
    }

    /// A replaceable projection whose weight lies in files as `[in, out]`, always with a bias.
    pub(crate) fn conv1d(&mut self, path: String, input: usize, output: usize) -> Arc<Slot> {
        self.slot(path, (input, output), true, true)
    }

    /// The end of the sublayer at `path`.
    pub(crate) fn joint(&mut self, path: String, sublayer: Sublayer, flow: Flow) -> Arc<Joint> {
        let joint = Arc::new(Joint::new(path, sublayer, flow));
        self.joints.push(Arc::clone(&joint));
        joint
    }

    /// The place before a block's keys and values, of so many heads.
    pub(crate) fn past(&mut self, block: usize, heads: usize, head_dim: usize) -> Arc<Past> {
        let past = Arc::new(Past::new(block, heads, head_dim));
        self.pasts.push(Arc::clone(&past));
        past
    }

    pub(crate) fn embedding(&mut self, path: &str, count: usize, size: usize) -> Embedding {
        Embedding::new(self.weight(format!("{path}.weight"), &[count, size]))
    }

    pub(crate) fn rms_norm(&mut self, path: String, n: usize, eps: f64) -> RmsNorm {
        RmsNorm::new(self.weight(format!("{path}.weight"), &[n]), eps)
    }

    pub(crate) fn rms_norm_around_one(&mut self, path: String, n: usize, eps: f64) -> RmsNorm {
        RmsNorm::around_one(self.weight(format!("{path}.weight"), &[n]), eps)
    }

    pub(crate) fn layer_norm(&mut self, path: String, n: usize, eps: f64) -> LayerNorm {
        let weight = self.weight(format!("{path}.weight"), &[n]);
        LayerNorm::new(weight, self.weight(format!("{path}.bias"), &[n]), eps)
    }

    /// The output head: the embedding table, or a table of its own.
    pub(crate) fn head(&mut self, config: &Config, embedding: &Embedding) -> Arc<Weight> {
        match config.tie_word_embeddings {
            true => Arc::clone(embedding.weight()),
            false => {
                self.weight("lm_head.weight".to_owned(), &[config.vocab_size, config.hidden_size])
            }
        }
    }
}

/// The block of that number.
///
/// # Errors
/// When there is none.
pub(crate) fn block_at<T>(blocks: &[T], index: usize) -> Result<&T> {
    blocks.get(index).ok_or_else(|| Error::Argument {
        field: "index",
        value: index.to_string(),
        expected: "the number of a block, below `num_blocks()`",
    })
}
