//! The places where a block's attention and feed-forward network hand on their output, at which
//! more can be computed.
//!
//! A decoder does not know what stands there: an adapter library asks the model for its
//! [`Residual`]s by path and puts a [`Branch`] into an [`Overlay`](crate::Overlay), which sees the
//! sublayer's output and the residual stream, and says what takes the output's place.

use std::fmt;

use candle_core::Tensor;

use crate::error::Result;
use crate::pass::{Context, Pass};

/// What is computed where a sublayer hands on its output.
pub trait Branch: Send + Sync + fmt::Debug {
    /// What takes the place of `y`.
    ///
    /// # Shapes
    /// `x`, the residual stream that the sublayer read (before its norm), and `y`, its output, both
    /// `[b, t, hid]` -> `[b, t, hid]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn forward(&self, x: &Tensor, y: &Tensor, context: &Context<'_>) -> Result<Tensor>;
}

/// Which of a block's two sublayers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sublayer {
    /// Attention.
    Attention,
    /// The feed-forward network.
    FeedForward,
}

/// What a block does with a sublayer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Adds it to the residual stream, from which the next sublayer reads.
    Sequential,
    /// Normalises it first and adds it then (Gemma 2 and 3).
    Normed,
    /// Adds it together with the other sublayer's, which has read the same stream (Falcon).
    Parallel,
}

/// The end of one sublayer of a decoder.
#[derive(Debug)]
pub struct Residual {
    index: usize,
    path: String,
    sublayer: Sublayer,
    flow: Flow,
}

impl Residual {
    pub(crate) fn new(index: usize, path: String, sublayer: Sublayer, flow: Flow) -> Self {
        Self { index, path, sublayer, flow }
    }

    /// Its place in the model's list.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Hugging Face's name of the sublayer, such as `model.layers.0.mlp`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Which sublayer ends here.
    pub fn sublayer(&self) -> Sublayer {
        self.sublayer
    }

    /// What the block does with what comes out.
    pub fn flow(&self) -> Flow {
        self.flow
    }

    /// What the block takes as the sublayer's output.
    ///
    /// # Shapes
    /// `x` and `y` `[b, t, hid]` -> `[b, t, hid]`.
    ///
    /// # Errors
    /// What the branch fails with.
    pub(crate) fn forward(&self, x: &Tensor, y: Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        match pass.snapshot().mixed() {
            None => match pass.snapshot().first().branch(self) {
                Some(branch) => {
                    branch.forward(x, &y, &Context::new(pass.snapshot().first(), pass.mode()))
                }
                None => Ok(y),
            },
            Some(mixed) if mixed.groups().iter().all(|g| g.overlay().branch(self).is_none()) => {
                Ok(y)
            }
            Some(mixed) => {
                let mut parts = Vec::with_capacity(mixed.groups().len());
                for group in mixed.groups() {
                    let y = group.take(&y)?;
                    parts.push(match group.overlay().branch(self) {
                        Some(branch) => {
                            let context = Context::new(group.overlay(), pass.mode());
                            branch.forward(&group.take(x)?, &y, &context)?
                        }
                        None => y,
                    });
                }
                mixed.join(&parts)
            }
        }
    }
}
