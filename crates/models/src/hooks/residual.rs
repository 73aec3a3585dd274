//! The places where a block's attention and feed-forward network hand on their output, at which
//! more can be computed.
//!
//! A decoder does not know what stands there: an adapter library asks the model for its [`Joint`]s
//! by path and puts a [`Branch`] of its own there, which sees the sublayer's output and the
//! residual stream beside it, and says what takes the output's place.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::Tensor;

use crate::error::Result;

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
    fn forward(&self, x: &Tensor, y: &Tensor) -> Result<Tensor>;
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

/// The end of one sublayer of a decoder. What stands there can be replaced while the model is in
/// use.
#[derive(Debug)]
pub struct Joint {
    path: String,
    sublayer: Sublayer,
    flow: Flow,
    current: RwLock<Option<Arc<dyn Branch>>>,
}

impl Joint {
    pub(crate) fn new(path: String, sublayer: Sublayer, flow: Flow) -> Self {
        Self { path, sublayer, flow, current: RwLock::default() }
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

    /// What stands here now.
    pub fn current(&self) -> Option<Arc<dyn Branch>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts something here, from the next forward pass on.
    pub fn replace(&self, branch: Arc<dyn Branch>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(branch);
    }

    /// The sublayer's output passes as it is again.
    pub fn restore(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What the block takes as the sublayer's output.
    ///
    /// # Shapes
    /// `x` and `y` `[b, t, hid]` -> `[b, t, hid]`.
    ///
    /// # Errors
    /// What the branch fails with.
    pub(crate) fn pass(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        match self.current() {
            Some(branch) => branch.forward(x, &y),
            None => Ok(y),
        }
    }
}
