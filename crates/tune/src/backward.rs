//! Loss and gradients of one batch, block by block.
//!
//! Candle's `backward` on the whole model would keep every activation's gradient in one table until it is done, and every block's
//! graph until the end. Here each decoder block is recorded on a [tape](tunebook_models::ops::tape) of its own, cut at its input:
//!
//! 1. forward: block i takes xᵢ, a leaf, and gives yᵢ with the tape between; xᵢ₊₁ has yᵢ's values and is a leaf again;
//! 2. the loss gives the gradient of the last x;
//! 3. backward, from the last block to the first: the tape turns the gradient of yᵢ, which is xᵢ₊₁'s, into those of the block's
//!    trainable tensors and of xᵢ, dropping its entries as it goes.
//!
//! Blocks below the first trainable one build no graph at all, and the first trainable one computes no gradient of its input. With
//! checkpointing, step 1 keeps the x alone and step 3 runs the block again ([Chen et al. 2016](https://arxiv.org/abs/1604.06174)).

use candle_core::{Tensor, Var};
use tunebook_models::ops::{Tape, tape};
use tunebook_models::{Model, ops};
use tunebook_progress::interrupt;

use crate::batch::Batch;
use crate::error::Result;
use crate::lora_linear::Mode;
use crate::parameter::{Gradients, Parameters, Part};

/// What does not change from batch to batch.
pub(crate) struct Segments<'a> {
    pub(crate) model: &'a Model,
    pub(crate) parameters: &'a Parameters,
    pub(crate) mode: &'a Mode,
    pub(crate) gradient_checkpointing: bool,
}

/// One block between its forward and its backward pass.
struct Segment {
    input: Tensor,
    /// `None` when the block is run again.
    output: Option<(Tensor, Tape)>,
}

impl Segments<'_> {
    /// The summed loss of a batch. Adds the gradient of `weight` · that sum to `gradients`, unless `reject` refuses the loss.
    ///
    /// # Errors
    /// A failing operation, a refused loss, or the user's wish to stop, which is looked for between blocks. Nothing but `gradients` has
    /// changed then.
    pub(crate) fn loss_and_gradients(
        &self,
        batch: &Batch,
        weight: f64,
        gradients: &mut Gradients,
        reject: impl FnOnce(f64) -> Result<()>,
    ) -> Result<f64> {
        let (model, blocks) = (self.model, self.model.num_blocks());
        let first = self.parameters.first_block().unwrap_or(blocks);
        let embedding = self.parameters.embedding();
        // The block whose input needs no gradient.
        let lowest = if embedding.is_some() { usize::MAX } else { first };
        let (b, t) = batch.ids.dims2()?;
        let positions = model.positions(b, t)?;

        self.mode.set_gradients(false);
        let mut x = model.embed(&batch.ids)?.detach();
        for block in 0..first {
            interrupt::check()?;
            x = model.block_forward(block, &x, &positions)?.detach();
        }
        let mut segments = Vec::with_capacity(blocks - first);
        for block in first..blocks {
            interrupt::check()?;
            if self.gradient_checkpointing {
                let y = model.block_forward(block, &x, &positions)?.detach();
                segments.push(Segment { input: x, output: None });
                x = y;
            } else {
                self.mode.set_gradients(true);
                let input = if block == lowest { x } else { leaf(&x)? };
                let recorder = Tape::record();
                let output = model.block_forward(block, &input, &positions)?;
                x = output.clone();
                segments.push(Segment { input, output: Some((output, recorder.stop())) });
            }
        }

        self.mode.set_gradients(true);
        let (loss, mut gradient) = self.head(&x, batch, weight, gradients, reject)?;
        drop(x);

        for block in (first..blocks).rev() {
            interrupt::check()?;
            let Some(segment) = segments.pop() else { break };
            let (input, output, tape) = match segment.output {
                Some((output, tape)) => (segment.input, output, tape),
                None => {
                    let input = if block == lowest { segment.input } else { leaf(&segment.input)? };
                    let recorder = Tape::record();
                    let output = model.block_forward(block, &input, &positions)?;
                    (input, output, recorder.stop())
                }
            };
            let mut found = tape.backward(&output, &gradient)?;
            self.collect(&mut found, gradients, |part| part == Part::Block(block))?;
            if block != lowest {
                match found.remove(&input)? {
                    Some(below) => gradient = below,
                    // The block cuts the graph: everything below it has no gradient either, which the check of step one reports.
                    None => return Ok(loss),
                }
            }
        }
        if let Some(index) = embedding {
            // [b, t, hid] -> [b·t, hid]
            let rows = gradient.flatten(0, 1)?;
            let table = self.parameters.get(index);
            gradients.add_rows(index, table.var.as_tensor(), &batch.ids.flatten_all()?, &rows)?;
        }
        Ok(loss)
    }

    /// Moves the gradients of the parameters in some part of the model to the others.
    fn collect(
        &self,
        found: &mut tape::Gradients,
        gradients: &mut Gradients,
        here: impl Fn(Part) -> bool,
    ) -> Result<()> {
        for (index, parameter) in self.parameters.iter().enumerate().filter(|(_, p)| here(p.part)) {
            if let Some(gradient) = found.remove(parameter.var.as_tensor())? {
                gradients.add(index, gradient)?;
            }
        }
        Ok(())
    }

    /// The summed loss, and the gradient of `weight` times it with respect to the last block's output. Adds those of the head's own tensors.
    fn head(
        &self,
        x: &Tensor,
        batch: &Batch,
        weight: f64,
        gradients: &mut Gradients,
        reject: impl FnOnce(f64) -> Result<()>,
    ) -> Result<(f64, Tensor)> {
        let x = leaf(x)?;
        let recorder = Tape::record();
        let sum = summed_loss(self.model, &x, batch)?;
        let tape = recorder.stop();
        let loss = f64::from(sum.to_scalar::<f32>()?);
        reject(loss)?;
        let weight = Tensor::new(weight as f32, x.device())?;
        let mut found = tape.backward(&sum, &weight)?;
        // A tied head is the embedding table.
        self.collect(&mut found, gradients, |part| matches!(part, Part::Head | Part::Embedding))?;
        let gradient = match found.remove(&x)? {
            Some(gradient) => gradient,
            None => x.zeros_like()?, // no position of this batch bears a loss
        };
        Ok((loss, gradient))
    }
}

/// The summed loss of a batch without gradients.
pub(crate) fn loss(model: &Model, batch: &Batch) -> Result<f64> {
    let (b, t) = batch.ids.dims2()?;
    let positions = model.positions(b, t)?;
    let mut x = model.embed(&batch.ids)?;
    for block in 0..model.num_blocks() {
        interrupt::check()?;
        x = model.block_forward(block, &x, &positions)?;
    }
    Ok(f64::from(summed_loss(model, &x, batch)?.to_scalar::<f32>()?))
}

/// # Shapes
/// `x` `[b, t, hid]` -> a scalar.
fn summed_loss(model: &Model, x: &Tensor, batch: &Batch) -> Result<Tensor> {
    // [b, t, hid] -> [b·t, hid]
    let hidden = model.final_norm(x)?.flatten(0, 1)?;
    let (sum, _) = ops::cross_entropy(&hidden, &model.head_weight(), &batch.labels)?;
    Ok(sum)
}

/// The start of a new tape: the values alone, marked as wanting a gradient.
fn leaf(x: &Tensor) -> Result<Tensor> {
    // The result of a fused operation is one already, and its own tape is another.
    if x.is_variable() { Ok(x.clone()) } else { Ok(Var::from_tensor(&x.detach())?.into_inner()) }
}
