//! One forward pass: the decisions that are made before the first block and hold to the last.
//!
//! A [`Pass`] borrows a [`Snapshot`], which says who answers (an [`Overlay`] for all rows of the
//! batch, or one for each), and the [`Positions`] of the tokens; its [`Mode`] says whether a graph
//! is built and dropout drawn. Nothing of it can change while blocks run, so an answer is never half
//! by one adapter and half by another, and training turns nothing on for whoever else asks.

pub(crate) mod kv_cache;
pub(crate) mod overlay;
pub(crate) mod positions;
pub(crate) mod snapshot;

use candle_core::{Tensor, Var};

use crate::error::Result;
use crate::layers::Weight;
use crate::pass::overlay::Overlay;
use crate::pass::positions::Positions;
use crate::pass::snapshot::Snapshot;
use tunebook_ops::Matrix;

/// Seeds of the dropout masks of one pass: the same numbers draw the same masks, so that a block
/// can be run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropout {
    /// The run's seed.
    pub seed: u64,
    /// The number of the pass within the run.
    pub draw: u64,
}

/// How a pass computes. The default is inference: no graph, no dropout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Trained tensors are variables of the graph. Otherwise no graph is built, and nothing is kept
    /// for a backward pass.
    pub gradients: bool,
    /// Dropout is drawn with these seeds; `None`: nothing is dropped.
    pub dropout: Option<Dropout>,
}

impl Mode {
    /// The tensor of a variable, part of the graph where one is built.
    pub fn value(self, var: &Var) -> Tensor {
        match self.gradients {
            true => var.as_tensor().clone(),
            false => var.as_detached_tensor(),
        }
    }
}

/// What one layer sees of a pass: the overlay of its rows, and the mode.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    overlay: &'a Overlay,
    mode: Mode,
}

impl<'a> Context<'a> {
    /// The context of rows that this overlay answers.
    pub fn new(overlay: &'a Overlay, mode: Mode) -> Self {
        Self { overlay, mode }
    }

    /// How the pass computes.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The tensor of a variable, part of the graph where one is built.
    pub fn value(&self, var: &Var) -> Tensor {
        self.mode.value(var)
    }

    /// The values of a weight: the overlay's own, or those that were loaded.
    pub(crate) fn weight(&self, weight: &Weight) -> Matrix {
        match self.overlay.weight(weight) {
            Some(var) => self.mode.value(var).into(),
            None => weight.matrix(),
        }
    }

    /// [`Context::weight`] as a tensor; of quantised blocks a new copy in f32.
    pub(crate) fn tensor(&self, weight: &Weight) -> Result<Tensor> {
        Ok(self.weight(weight).tensor()?)
    }
}

/// One forward pass over a batch.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    positions: &'a Positions,
    snapshot: &'a Snapshot,
    mode: Mode,
}

impl<'a> Pass<'a> {
    /// A pass for inference. Row `i` of the batch is answered by the snapshot's overlay of row `i`.
    pub fn new(snapshot: &'a Snapshot, positions: &'a Positions) -> Self {
        Self { positions, snapshot, mode: Mode::default() }
    }

    /// The same pass in another mode.
    #[must_use]
    pub fn in_mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// Where the tokens stand.
    pub fn positions(&self) -> &'a Positions {
        self.positions
    }

    /// Who answers.
    pub fn snapshot(&self) -> &'a Snapshot {
        self.snapshot
    }

    /// How it computes.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Computes each row with the overlay that answers it: all rows at once where no overlay
    /// touches the layer or one overlay answers all, else the rows of each overlay together.
    ///
    /// # Shapes
    /// `x` `[rows, ..]`; `layer` keeps the rows and may change what follows.
    pub(crate) fn by_overlay(
        &self,
        x: &Tensor,
        touches: impl Fn(&Overlay) -> bool,
        layer: impl Fn(&Tensor, &Context<'_>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self.snapshot.mixed() {
            None => layer(x, &Context::new(self.snapshot.first(), self.mode)),
            Some(mixed) if !mixed.groups().iter().any(|group| touches(group.overlay())) => {
                layer(x, &Context::new(Overlay::base(), self.mode))
            }
            Some(mixed) => {
                let rows = |group: &snapshot::Group| {
                    layer(&group.take(x)?, &Context::new(group.overlay(), self.mode))
                };
                mixed.join(&mixed.groups().iter().map(rows).collect::<Result<Vec<_>>>()?)
            }
        }
    }
}
