//! Keys and values that a block's attention has before the first token comes.
//!
//! A decoder does not know where they come from (a prefix, <https://arxiv.org/abs/2101.00190>).
//! They are what a key-value cache would hold of positions before the text: every token sees them,
//! as far as a sliding window reaches, and the text's positions count on from them. They are taken
//! as they are, neither rotated nor normalised. In a batch that is padded on the left they stand
//! between padding and text.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::Tensor;

use crate::error::Result;
use crate::hooks::virtual_tokens;
use crate::pass::kv_cache::BlockCache;
use crate::pass::positions::Positions;

/// Gives the keys and values of one block, anew in each forward pass, so that they may be part of
/// the graph.
pub trait KeysValues: Send + Sync + fmt::Debug {
    /// Twice `[n, hkv, d]`.
    ///
    /// # Errors
    /// What computing them fails with.
    fn keys_values(&self) -> Result<(Tensor, Tensor)>;

    /// How many positions they are of.
    fn count(&self) -> usize;
}

/// The place before the keys and values of one block. What stands there can be replaced while the
/// model is in use.
#[derive(Debug)]
pub struct Past {
    block: usize,
    heads: usize,
    head_dim: usize,
    current: RwLock<Option<Arc<dyn KeysValues>>>,
}

impl Past {
    pub(crate) fn new(block: usize, heads: usize, head_dim: usize) -> Self {
        Self { block, heads, head_dim, current: RwLock::default() }
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

    /// What stands here now.
    pub fn current(&self) -> Option<Arc<dyn KeysValues>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many positions stand here.
    pub fn count(&self) -> usize {
        self.current().map_or(0, |past| past.count())
    }

    /// Puts keys and values here, from the next forward pass on.
    pub fn replace(&self, past: Arc<dyn KeysValues>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(past);
    }

    /// The first token sees itself alone again.
    pub fn restore(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// All keys and values that the tokens of this call see: these, those in the cache and the
    /// tokens' own, which go into the cache.
    ///
    /// # Shapes
    /// `k` and `v` `[b, t, hkv, d]` or `[b, t, hkv·d]` -> twice `[b, s, hkv, d]` or `[b, s,
    /// hkv·d]`.
    pub(crate) fn with(
        &self,
        k: Tensor,
        v: Tensor,
        positions: &Positions,
        cache: Option<&mut BlockCache>,
    ) -> Result<(Tensor, Tensor)> {
        let begun = cache.as_ref().is_some_and(|cache| !cache.is_empty());
        let past = self.current().filter(|_| !begun);
        if past.is_none() && cache.is_none() {
            return Ok((k, v));
        }
        let (b, t) = (k.dim(0)?, k.dim(1)?);
        let mut k = k.reshape((b, t, self.heads, self.head_dim))?;
        let mut v = v.reshape((b, t, self.heads, self.head_dim))?;
        if let Some(past) = past {
            let (keys, values) = past.keys_values()?;
            k = virtual_tokens::insert(&keys, &k, positions.starts())?;
            v = virtual_tokens::insert(&values, &v, positions.starts())?;
        }
        match cache {
            Some(cache) => cache.append(&k, &v),
            None => Ok((k, v)),
        }
    }
}
