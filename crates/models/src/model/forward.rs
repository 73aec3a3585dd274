//! The decoder, step by step.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use tunebook_progress::Stop;

use crate::error::{Error, Result};
use crate::hooks::virtual_tokens;
use crate::layers::softcap;
use crate::model::Model;
use crate::pass::kv_cache::{KvCache, Pages, TextCache};
use crate::pass::overlay::Overlay;
use crate::pass::positions::Positions;
use crate::pass::snapshot::Snapshot;
use crate::pass::{Context, Mode, Pass};
use tunebook_ops::{self as ops, Matrix};

/// Whole passes, each by one snapshot of who answers.
impl Model {
    /// Logits at every position of the text, in f32 whatever the model computes in; `ids` may lie on
    /// any device. So a cell that reads them is the same for every model and device.
    ///
    /// # Shapes
    /// `ids` `[b, t]` u32 -> `[b, t, vocab]`.
    ///
    /// # Errors
    /// When `t` exceeds the context or an id the vocabulary; another number of rows than overlays.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let logits = self.through(ids, |hidden, pass| self.logits(&hidden, pass))?;
        Ok(logits.to_dtype(DType::F32)?)
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
        let ids = &ids.to_device(self.device())?;
        let (b, t) = ids.dims2()?;
        let snapshot = self.snapshot();
        snapshot.check_count("ids", b)?;
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

    /// One pass over the next tokens of some texts, each a row of its own. What stands before a
    /// text by its overlay (virtual tokens, a prefix) belongs to its first positions.
    ///
    /// The texts come back with the pass's positions; when the pass fails they are lost.
    ///
    /// # Shapes
    /// -> `[n, 1, hid]` before the final norm, a row for each token.
    pub(crate) fn pass_over(
        &self,
        pages: &Pages,
        stop: &Stop,
        texts: &[Tokens<'_>],
        mut caches: Vec<TextCache>,
    ) -> Result<(Vec<TextCache>, Tensor)> {
        let device = self.device();
        for (text, cache) in texts.iter().zip(&mut caches) {
            if cache.len() == 0 {
                self.put_past(pages, text.overlay, cache)?;
            }
        }
        let (mut positions, mut ends) = (Vec::new(), Vec::new());
        let mut overlays = Vec::new();
        for (text, cache) in texts.iter().zip(&caches) {
            for i in 0..text.count() {
                positions.push((cache.len() + i) as u32);
                ends.push(text.end);
                overlays.push(Arc::clone(text.overlay));
            }
        }
        let snapshot = Snapshot::of(overlays, stop.clone());
        let positions = Positions::of_rows(positions, ends, device)?.in_bf16(self.in_bf16());
        let pass = Pass::new(&snapshot, &positions);
        let mut x = self.embed_texts(texts, stop)?;
        let counts = texts.iter().map(Tokens::count).zip(caches).collect();
        let mut cache = KvCache::new(pages, counts)?;
        for block in 0..self.num_blocks() {
            stop.check()?;
            x = self.inner.decoder.block(block, &x, &pass, Some(&mut cache))?;
        }
        Ok((cache.into_texts(), x))
    }

    /// The rows of a pass, virtual tokens among them: `[n, 1, hid]`.
    fn embed_texts(&self, texts: &[Tokens<'_>], stop: &Stop) -> Result<Tensor> {
        let ids: Vec<u32> = texts.iter().flat_map(|text| text.ids).copied().collect();
        let overlays = texts
            .iter()
            .flat_map(|text| std::iter::repeat_n(Arc::clone(text.overlay), text.ids.len()));
        let snapshot = Snapshot::of(overlays.collect(), stop.clone());
        let n = ids.len();
        let ids = Tensor::from_vec(ids, (n, 1), self.device())?;
        let positions = Positions::new(n, 1, self.device())?;
        let x = match n {
            // Virtual tokens alone.
            0 => None,
            _ => Some(self.embed(&ids, &Pass::new(&snapshot, &positions))?),
        };
        if texts.iter().all(|text| text.virtual_tokens.is_empty())
            && let Some(x) = x
        {
            return Ok(x);
        }
        let (mut parts, mut from) = (Vec::new(), 0);
        for text in texts {
            if let Some(tokens) = text.overlay.virtual_tokens()
                && !text.virtual_tokens.is_empty()
            {
                let vectors = tokens.vectors(Mode::default())?;
                let (first, count) = (text.virtual_tokens.start, text.virtual_tokens.len());
                // [count, hid] -> [count, 1, hid]
                let vectors = vectors.narrow(0, first, count)?.unsqueeze(1)?;
                parts.push(vectors.to_dtype(self.activation_dtype())?);
            }
            if let Some(x) = x.as_ref().filter(|_| !text.ids.is_empty()) {
                parts.push(x.narrow(0, from, text.ids.len())?);
                from += text.ids.len();
            }
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Puts an overlay's keys and values at the first positions of a text.
    fn put_past(&self, pages: &Pages, overlay: &Overlay, text: &mut TextCache) -> Result<()> {
        let count = overlay.past_count();
        if count == 0 {
            return Ok(());
        }
        let mut cache = KvCache::new(pages, vec![(count, std::mem::replace(text, pages.text()))])?;
        for block in 0..self.num_blocks() {
            if let Some(past) = overlay.past_key_values(block) {
                let (keys, values) = past.keys_values(Mode::default())?;
                cache.put(block, &keys, &values)?;
            }
        }
        if let Some(filled) = cache.into_texts().pop() {
            *text = filled;
        }
        Ok(())
    }

    /// Logits of some rows of what a pass gave, each by the overlay that answers it.
    ///
    /// # Shapes
    /// `hidden` `[n, 1, hid]` -> `[n, vocab]`.
    pub(crate) fn logits_of(&self, hidden: &Tensor, snapshot: &Snapshot) -> Result<Tensor> {
        let positions = Positions::new(hidden.dim(0)?, 1, self.device())?;
        let pass = Pass::new(snapshot, &positions);
        let normed = self.final_norm(&hidden.contiguous()?, &pass)?;
        // [n, 1, hid] -> [n, hid]
        self.logits(&normed.squeeze(1)?.contiguous()?, &pass)
    }

    /// Where keys and values of its texts are kept: in bf16 where the weights are, in f32 on the
    /// CPU otherwise, and in the type of the activations on other devices.
    pub(crate) fn pages(&self) -> Pages {
        let config = self.config();
        let kept = if self.in_bf16() { DType::BF16 } else { DType::F32 };
        Pages::new(
            self.num_blocks(),
            (config.num_key_value_heads, config.head_dim),
            (self.activation_dtype(), kept),
            self.device(),
        )
    }
}

/// The next tokens of a text, for a pass.
#[derive(Debug)]
pub(crate) struct Tokens<'a> {
    pub(crate) overlay: &'a Arc<Overlay>,
    /// The overlay's virtual tokens that come first; the text's first pass begins with them.
    pub(crate) virtual_tokens: Range<usize>,
    pub(crate) ids: &'a [u32],
    /// How many positions the text has, as far as it is known: it decides on the angles of rotary
    /// embeddings that change with the length.
    pub(crate) end: usize,
}

impl Tokens<'_> {
    fn count(&self) -> usize {
        self.virtual_tokens.len() + self.ids.len()
    }
}
