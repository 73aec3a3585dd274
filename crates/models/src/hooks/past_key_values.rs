//! Keys and values that a block's attention has before the first token comes.
//!
//! A decoder does not know where they come from (a prefix, <https://arxiv.org/abs/2101.00190>).
//! They are what a key-value cache would hold of positions before the text: every token sees them,
//! as far as a sliding window reaches, and the text's positions count on from them. They are taken
//! as they are, neither rotated nor normalised. In a batch that is padded on the left they stand
//! between padding and text.

use std::fmt;

use candle_core::Tensor;

use crate::error::Result;
use crate::hooks::virtual_tokens;
use crate::layers::attention::{Scores, attention};
use crate::pass::kv_cache::KvCache;
use crate::pass::{Mode, Pass};

/// Gives the keys and values of one block, anew in each forward pass, so that they may be part of
/// the graph.
pub trait KeysValues: Send + Sync + fmt::Debug {
    /// Twice `[n, hkv, d]`.
    ///
    /// # Errors
    /// What computing them fails with.
    fn keys_values(&self, mode: Mode) -> Result<(Tensor, Tensor)>;

    /// How many positions they are of.
    fn count(&self) -> usize;
}

/// The place before the keys and values of one block.
#[derive(Debug)]
pub struct PastKeyValues {
    block: usize,
    heads: usize,
    head_dim: usize,
}

impl PastKeyValues {
    pub(crate) fn new(block: usize, heads: usize, head_dim: usize) -> Self {
        Self { block, heads, head_dim }
    }

    /// The number of the block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Heads of its keys and values.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Size of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Attention over what the tokens of this pass see: these keys and values, those in the cache
    /// and the tokens' own, which go into the cache.
    ///
    /// # Shapes
    /// `q` `[b, t, h, d]`, `k` and `v` `[b, t, hkv, d]` or `[b, t, hkv·d]` -> `[b, t, h·d]`.
    pub(crate) fn attend(
        &self,
        q: &Tensor,
        (k, v): (Tensor, Tensor),
        pass: &Pass<'_>,
        cache: Option<&mut KvCache>,
        scores: &Scores,
    ) -> Result<Tensor> {
        if let Some(cache) = cache {
            return cache.attend(self.block, (q, &k, &v), pass.positions(), scores);
        }
        let past = pass.snapshot().past_count();
        if past == 0 {
            return attention(q, &k, &v, pass.positions(), scores);
        }
        let shape = (k.dim(0)?, k.dim(1)?, self.heads, self.head_dim);
        let (k, v) = self.put(&k.reshape(shape)?, &v.reshape(shape)?, past, pass)?;
        attention(q, &k, &v, pass.positions(), scores)
    }

    /// Puts each row's keys and values before those of its text; rows that have fewer get padding.
    fn put(&self, k: &Tensor, v: &Tensor, n: usize, pass: &Pass<'_>) -> Result<(Tensor, Tensor)> {
        let (snapshot, mode) = (pass.snapshot(), pass.mode());
        let starts = pass.positions().starts();
        if snapshot.mixed().is_none() {
            let Some(past) = snapshot.first().past_key_values(self.block) else {
                return Ok((k.clone(), v.clone()));
            };
            let (keys, values) = past.keys_values(mode)?;
            let put = |columns, x| virtual_tokens::insert(columns, x, starts);
            return Ok((put(&keys, k)?, put(&values, v)?));
        }
        let b = k.dim(0)?;
        let (mut keys, mut values) = (Vec::with_capacity(b), Vec::with_capacity(b));
        for row in 0..b {
            let overlay = snapshot.row(row);
            let own = match overlay.past_key_values(self.block) {
                Some(past) => Some(past.keys_values(mode)?),
                None => None,
            };
            // The padding in `k`: all of the row's but what stands for past it lacks.
            let padding = starts.map_or(0, |starts| starts[row] - (n - overlay.past_count()));
            let put = |columns: Option<&Tensor>, x: &Tensor| {
                virtual_tokens::insert_row(columns, &x.narrow(0, row, 1)?, padding, n)
            };
            keys.push(put(own.as_ref().map(|(k, _)| k), k)?);
            values.push(put(own.as_ref().map(|(_, v)| v), v)?);
        }
        Ok((Tensor::cat(&keys, 0)?, Tensor::cat(&values, 0)?))
    }
}
