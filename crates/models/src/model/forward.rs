//! The decoder, step by step.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::hooks::virtual_tokens;
use crate::layers::softcap;
use crate::model::Model;
use crate::pass::kv_cache::{BlockCache, KvCache};
use crate::pass::positions::Positions;
use crate::pass::snapshot::Snapshot;
use crate::pass::{Context, Pass};
use tunebook_ops::{self as ops, Matrix};

/// Whole passes, each by one snapshot of who answers.
impl Model {
    /// Logits at every position of the text.
    ///
    /// # Shapes
    /// `ids` `[b, t]` u32 -> `[b, t, vocab]`.
    ///
    /// # Errors
    /// When `t` exceeds the context or an id the vocabulary; another number of rows than overlays.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.through(ids, |hidden, pass| self.logits(&hidden, pass))
    }

    /// The residual stream after the last block and the final norm, at every position of the text.
    ///
    /// # Shapes
    /// `ids` `[b, t]` u32 -> `[b, t, hid]`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn hidden_states(&self, ids: &Tensor) -> Result<Tensor> {
        self.through(ids, |hidden, _| Ok(hidden))
    }

    fn through<T>(
        &self,
        ids: &Tensor,
        end: impl FnOnce(Tensor, &Pass<'_>) -> Result<T>,
    ) -> Result<T> {
        let (b, t) = ids.dims2()?;
        let snapshot = self.snapshot();
        if let Some(rows) = snapshot.rows().filter(|rows| *rows != b) {
            return Err(Error::Argument {
                field: "ids",
                value: format!("{b} rows"),
                expected: if rows < b {
                    "no more rows than this handle has overlays"
                } else {
                    "a row for each overlay of this handle"
                },
            });
        }
        let positions = self.positions(b, t, &snapshot)?;
        let pass = Pass::new(&snapshot, &positions);
        let mut x = self.put_virtual_tokens(&self.embed(ids, &pass)?, &pass)?;
        for block in 0..self.num_blocks() {
            x = self.block_forward(block, &x, &pass)?;
        }
        end(self.final_norm(&self.drop_virtual_tokens(&x, &pass)?, &pass)?, &pass)
    }
}

/// One pass, step by step.
impl Model {
    /// The embedding of each token.
    ///
    /// # Shapes
    /// `ids` `[b, t]` u32 -> `[b, t, hid]`.
    ///
    /// # Errors
    /// When an id exceeds the vocabulary.
    pub fn embed(&self, ids: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        Ok(self.inner.decoder.embed(ids, pass)?.to_dtype(self.activation_dtype())?)
    }

    /// Puts each row's virtual tokens before its embedded tokens.
    ///
    /// # Shapes
    /// `x` `[b, t, hid]` -> `[b, n + t, hid]`, n being the most of any row.
    ///
    /// # Errors
    /// When the vectors are not of the hidden size.
    pub fn put_virtual_tokens(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        virtual_tokens::put(x, pass)
    }

    /// Takes the positions off again that [`Model::put_virtual_tokens`] put before the tokens.
    ///
    /// # Shapes
    /// `x` `[b, n + t, hid]` -> `[b, t, hid]`.
    ///
    /// # Errors
    /// When there are no more than those.
    pub fn drop_virtual_tokens(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        match pass.snapshot().virtual_count() {
            0 => Ok(x.clone()),
            n => Ok(x.narrow(1, n, x.dim(1)?.saturating_sub(n))?.contiguous()?),
        }
    }

    /// What [`Model::embed`] multiplies the embedding table's rows with.
    pub fn embed_scale(&self) -> f64 {
        self.inner.decoder.embed_scale()
    }

    /// The weight of that name is the embedding table of the tokens.
    pub fn is_embedding(&self, weight: &str) -> bool {
        matches!(
            weight,
            "model.embed_tokens.weight"
                | "transformer.wte.weight"
                | "transformer.word_embeddings.weight"
        )
    }

    /// The block in which the weight of that name is used; `None`: before or after them.
    pub fn block_of(&self, weight: &str) -> Option<usize> {
        if weight == "transformer.wpe.weight" {
            return Some(0);
        }
        let rest = weight
            .strip_prefix("model.layers.")
            .or_else(|| weight.strip_prefix("transformer.h."))?;
        rest.split('.').next()?.parse().ok()
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.inner.decoder.num_blocks()
    }

    /// The positions of `t` tokens in each of `b` rows, and of the virtual tokens before them;
    /// padding, if any, is on the right.
    ///
    /// # Errors
    /// When they exceed the context.
    pub fn positions(&self, b: usize, t: usize, snapshot: &Snapshot) -> Result<Positions> {
        let context = self.inner.config.max_position_embeddings;
        let (past, virtual_tokens) = (snapshot.past_count(), snapshot.virtual_count());
        let missing = snapshot.missing(b);
        let before = past + virtual_tokens - missing.iter().min().copied().unwrap_or(0);
        if before + t > context {
            let tokens = before + t;
            return Err(Error::ContextLength { tokens, context, advice: " or split it" });
        }
        let positions = match (past, virtual_tokens + t) {
            (0, t) if missing.iter().all(|missing| *missing == 0) => {
                Positions::new(b, t, &self.inner.device)
            }
            (past, t) => Positions::padded(past, t, &missing, &self.inner.device),
        };
        Ok(positions?.in_bf16(self.in_bf16()))
    }

    /// The positions of rows of `t` tokens into which several texts are packed, `segments[row]`
    /// being their lengths: each text counts from 0 and sees itself alone. What is left of a row is
    /// padding.
    ///
    /// # Errors
    /// When a text exceeds the context, the texts of a row exceed `t`, or virtual tokens stand
    /// before the texts, which would have to be there for each.
    pub fn packed_positions(
        &self,
        t: usize,
        segments: &[Vec<usize>],
        snapshot: &Snapshot,
    ) -> Result<Positions> {
        if snapshot.virtual_count() + snapshot.past_count() > 0 {
            return Err(Error::Argument {
                field: "segments",
                value: format!("{} packed rows", segments.len()),
                expected: "one text in each row while virtual tokens stand before it",
            });
        }
        let context = self.inner.config.max_position_embeddings;
        // The padding counts on from 0, too.
        let padding = |row: &Vec<usize>| t.saturating_sub(row.iter().sum());
        let longest = segments
            .iter()
            .flat_map(|row| row.iter().copied().chain([padding(row)]))
            .max()
            .unwrap_or(0);
        if longest > context {
            return Err(Error::ContextLength { tokens: longest, context, advice: " or split it" });
        }
        Ok(Positions::packed(t, segments, &self.inner.device)?.in_bf16(self.in_bf16()))
    }

    /// Whether attention goes through its scores tile by tile, so that texts of a packed row cost
    /// no more than alone. Bounded or biased scores (Gemma 2, falcon-rw) are held in memory, the
    /// whole row's.
    pub fn attends_in_tiles(&self) -> bool {
        self.inner.config.family.definition().attends_in_tiles()
    }

    /// Whether its matrices are bf16.
    fn in_bf16(&self) -> bool {
        !self.is_quantized() && self.dtype() == DType::BF16
    }

    /// One block of the decoder.
    ///
    /// # Shapes
    /// `x` `[b, t, hid]` -> `[b, t, hid]`.
    ///
    /// # Errors
    /// When there is no such block or the shapes do not fit; when the pass is asked to stop.
    pub fn block_forward(&self, index: usize, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        pass.snapshot().stop().check()?;
        self.inner.decoder.block(index, x, pass, None)
    }

    /// The norm after the last block.
    ///
    /// # Shapes
    /// `x` `[.., hid]` -> `[.., hid]`.
    ///
    /// # Errors
    /// When the last dimension is not `hid`.
    pub fn final_norm(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.inner.decoder.final_norm(x, pass)
    }

    /// The output head that was loaded, `[vocab, hid]`; the embedding table itself where they are
    /// tied. Of a quantised head a new copy in f32.
    pub fn head_weight(&self) -> Tensor {
        self.inner.decoder.head().get()
    }

    /// The output head as operations of a pass take it, `[vocab, hid]`: of the overlay that answers
    /// all rows.
    pub fn head(&self, pass: &Pass<'_>) -> Matrix {
        Context::new(pass.snapshot().first(), pass.mode()).weight(self.inner.decoder.head())
    }

    /// Logits `l` become `c · tanh(l / c)` with this `c` (Gemma 2).
    pub fn final_logit_softcapping(&self) -> Option<f64> {
        self.inner.decoder.final_logit_softcapping()
    }

    /// Logits of what [`Model::final_norm`] gave.
    ///
    /// # Shapes
    /// `hidden` `[.., hid]` -> `[.., vocab]`.
    ///
    /// # Errors
    /// When the last dimension is not `hid`.
    pub fn logits(&self, hidden: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let head = self.inner.decoder.head();
        let logits = pass.by_overlay(
            hidden,
            |overlay| overlay.weight(head).is_some(),
            |hidden, context| Ok(ops::linear(hidden, context.weight(head), None)?),
        )?;
        softcap::softcapped(logits, self.inner.decoder.final_logit_softcapping())
    }

    /// The summed cross-entropy of the output head at the labelled rows and their number, as
    /// [`ops::cross_entropy`], with what the family does to its logits. One overlay answers all
    /// rows.
    ///
    /// # Shapes
    /// `hidden` `[n, hid]`, `labels` of length `n`, [`ops::IGNORE`] where there is none.
    ///
    /// # Errors
    /// When the shapes do not fit together or a label is outside the vocabulary.
    pub fn cross_entropy(
        &self,
        hidden: &Tensor,
        labels: &[i64],
        pass: &Pass<'_>,
    ) -> Result<(Tensor, usize)> {
        let head = self.head(pass);
        match self.inner.decoder.final_logit_softcapping() {
            None => Ok(ops::cross_entropy(hidden, head, labels)?),
            Some(cap) => softcap::softcapped_cross_entropy(hidden, &head, labels, cap),
        }
    }

    /// Logits of the position after the last one. With the first call to a cache go the virtual
    /// tokens.
    ///
    /// `ids` `[b, t]` -> `[b, vocab]`
    pub(crate) fn next_logits(
        &self,
        ids: &Tensor,
        pass: &Pass<'_>,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let mut x = self.embed(ids, pass)?;
        if cache.blocks.first().is_some_and(BlockCache::is_empty) {
            x = virtual_tokens::put(&x, pass)?;
        }
        for (block, cache) in cache.blocks.iter_mut().enumerate() {
            pass.snapshot().stop().check()?;
            x = self.inner.decoder.block(block, &x, pass, Some(cache))?;
        }
        let (_, t, _) = x.dims3()?;
        // [b, t, hid] -> [b, hid]
        let last = x.narrow(1, t - 1, 1)?.squeeze(1)?.contiguous()?;
        self.logits(&self.final_norm(&last, pass)?, pass)
    }

    /// Room for the keys and values of `capacity` positions in each of `b` rows.
    pub(crate) fn cache(&self, b: usize, capacity: usize) -> Result<KvCache> {
        let config = self.config();
        let shape = (b, capacity, config.num_key_value_heads, config.head_dim);
        KvCache::new(self.num_blocks(), shape, self.activation_dtype(), self.device())
    }
}
