//! Decoders, and how one is put together: a family's constructor names every tensor that it needs,
//! with its shape, and the loader fills them in. So each name and shape is written once.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::config::fields::Shape;
use crate::error::{Error, Result};
use crate::hooks::past_key_values::PastKeyValues;
use crate::hooks::residual::{Flow, Residual, Sublayer};
use crate::layers::{Embedding, LayerNorm, Linear, Norm, RmsNorm, Slot, Weight};
use crate::pass::Pass;
use crate::pass::kv_cache::KvCache;
use tunebook_ops as ops;

/// A decoder. All operations are differentiable.
pub(crate) trait Decoder: Send + Sync + fmt::Debug {
    /// Number of blocks.
    fn num_blocks(&self) -> usize;

    /// `[b, t]` u32 -> `[b, t, hid]`
    fn embed(&self, ids: &Tensor, pass: &Pass<'_>) -> Result<Tensor>;

    /// What the embedding multiplies its table's rows with.
    fn embed_scale(&self) -> f64;

    /// Block `index`: `[b, t, hid]` -> `[b, t, hid]`
    ///
    /// # Errors
    /// When there is none of that number.
    fn block(
        &self,
        index: usize,
        x: &Tensor,
        pass: &Pass<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor>;

    /// `[.., hid]` -> `[.., hid]`
    fn final_norm(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor>;

    /// The output head, `[vocab, hid]`.
    fn head(&self) -> &Arc<Weight>;

    /// Logits `l` become `c · tanh(l / c)`.
    fn final_logit_softcapping(&self) -> Option<f64>;

    /// Keys that were computed for texts of up to so many positions are of no use in longer ones.
    fn cache_ends_at(&self) -> Option<usize>;
}

/// One block of a family.
pub(crate) trait Block: Send + Sync + fmt::Debug {
    /// `[b, t, hid]` -> `[b, t, hid]`
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<&mut KvCache>) -> Result<Tensor>;
}

/// A decoder as all families have it: an embedding, equal blocks, a norm and an output head.
#[derive(Debug)]
pub(crate) struct Stack<B, N> {
    pub(crate) embedding: Embedding,
    /// Factor on the embedding table's rows.
    pub(crate) embed_scale: f64,
    /// A vector for each position, added to what the first block takes (GPT-2).
    pub(crate) learned_positions: Option<Embedding>,
    pub(crate) blocks: Vec<B>,
    pub(crate) norm: N,
    pub(crate) head: Arc<Weight>,
    pub(crate) final_logit_softcapping: Option<f64>,
    pub(crate) cache_ends_at: Option<usize>,
}

impl<B: Block, N: Norm + Send + Sync + fmt::Debug> Decoder for Stack<B, N> {
    fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn embed(&self, ids: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let x = self.embedding.forward(ids, pass)?;
        if self.embed_scale == 1.0 { Ok(x) } else { Ok((x * self.embed_scale)?) }
    }

    fn embed_scale(&self) -> f64 {
        self.embed_scale
    }

    fn block(
        &self,
        index: usize,
        x: &Tensor,
        pass: &Pass<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let Some(block) = self.blocks.get(index) else {
            return Err(Error::Argument {
                field: "index",
                value: index.to_string(),
                expected: "the number of a block, below `num_blocks()`",
            });
        };
        match &self.learned_positions {
            // Here and not in `embed`, so that vectors that stand for tokens (a soft prompt) have a
            // position as well.
            Some(table) if index == 0 => {
                let x = ops::add(x, &table.forward(pass.positions().ids(), pass)?)?;
                block.forward(&x, pass, cache)
            }
            _ => block.forward(x, pass, cache),
        }
    }

    fn final_norm(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.norm.forward(x, pass)
    }

    fn head(&self) -> &Arc<Weight> {
        &self.head
    }

    fn final_logit_softcapping(&self) -> Option<f64> {
        self.final_logit_softcapping
    }

    fn cache_ends_at(&self) -> Option<usize> {
        self.cache_ends_at
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
    pub(crate) residuals: Vec<Arc<Residual>>,
    /// One for each block, or none where a family cannot have any.
    pub(crate) past_key_values: Vec<Arc<PastKeyValues>>,
    pub(crate) needs: Vec<Need>,
}

/// Collects what a decoder needs, in the order in which it asks.
pub(crate) struct Builder {
    slots: Vec<Arc<Slot>>,
    residuals: Vec<Arc<Residual>>,
    past_key_values: Vec<Arc<PastKeyValues>>,
    needs: Vec<Need>,
    empty: Tensor,
}

impl Builder {
    /// # Errors
    /// The device has no memory.
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            slots: Vec::new(),
            residuals: Vec::new(),
            past_key_values: Vec::new(),
            needs: Vec::new(),
            empty: Tensor::zeros(0, DType::F32, device)?,
        })
    }

    /// The decoder that this builder was asked for, with its parts.
    pub(crate) fn finish(self, decoder: Box<dyn Decoder>) -> Parts {
        let Self { slots, residuals, past_key_values, needs, .. } = self;
        Parts { decoder, slots, residuals, past_key_values, needs }
    }

    pub(crate) fn weight(&mut self, name: String, shape: &[usize]) -> Arc<Weight> {
        self.need(name, shape, false)
    }

    fn need(&mut self, name: String, shape: &[usize], transposed: bool) -> Arc<Weight> {
        let weight = Arc::new(Weight::at(self.needs.len(), name, self.empty.clone()));
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
        let slot = Arc::new(Slot::new(self.slots.len(), path, Linear::of(weight, bias)));
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
    pub(crate) fn residual(
        &mut self,
        path: String,
        sublayer: Sublayer,
        flow: Flow,
    ) -> Arc<Residual> {
        let residual = Arc::new(Residual::new(self.residuals.len(), path, sublayer, flow));
        self.residuals.push(Arc::clone(&residual));
        residual
    }

    /// The place before a block's keys and values, of so many heads.
    pub(crate) fn past(
        &mut self,
        block: usize,
        heads: usize,
        head_dim: usize,
    ) -> Arc<PastKeyValues> {
        let past = Arc::new(PastKeyValues::new(block, heads, head_dim));
        self.past_key_values.push(Arc::clone(&past));
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
    pub(crate) fn head(&mut self, shape: &Shape, embedding: &Embedding) -> Arc<Weight> {
        match shape.tie_word_embeddings {
            true => Arc::clone(embedding.weight()),
            false => {
                self.weight("lm_head.weight".to_owned(), &[shape.vocab_size, shape.hidden_size])
            }
        }
    }
}
