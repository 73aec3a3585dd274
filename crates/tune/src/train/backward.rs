//! Loss and gradients of one batch, block by block.
//!
//! Candle's `backward` on the whole model would keep every activation's gradient in one table until
//! it is done, and every block's graph until the end. Here each decoder block is recorded on a
//! [tape](tunebook_ops::tape) of its own, cut at its input:
//!
//! 1. forward: block i takes xᵢ, a leaf, and gives yᵢ with the tape between; xᵢ₊₁ has yᵢ's values
//!    and is a leaf again;
//! 2. the loss gives the gradient of the last x;
//! 3. backward, from the last block to the first: the tape turns the gradient of yᵢ, which is
//!    xᵢ₊₁'s, into those of the block's trainable tensors and of xᵢ, dropping its entries as it
//!    goes.
//!
//! Blocks below the first trainable one build no graph at all, and the first trainable one computes
//! no gradient of its input. With checkpointing, step 1 keeps the x alone and step 3 runs the block
//! again ([Chen et al. 2016](https://arxiv.org/abs/1604.06174)).

use candle_core::{DType, Tensor, Var};
use tunebook_models::{Dropout, Mode, Model, Pass, Positions, Snapshot};
use tunebook_ops as ops;
use tunebook_ops::Tape;
use tunebook_ops::tape::{self, Passed};

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::train::parameter::{Gradients, Parameters, Part};
use crate::train::regularisation::{BaseView, ToBase};
use crate::train::rng::Stream;

/// What does not change from batch to batch.
#[derive(Clone, Copy)]
pub(crate) struct Segments<'a> {
    pub(crate) model: &'a Model,
    pub(crate) parameters: &'a Parameters,
    /// The seeds of the dropout masks.
    pub(crate) dropout: Dropout,
    /// So many of the trained blocks, the first ones, are run again in the backward pass.
    pub(crate) checkpointed_blocks: usize,
    /// A part of each label's probability that is spread over the whole vocabulary.
    pub(crate) label_smoothing: f64,
    /// Noise on the embeddings.
    pub(crate) noise: Option<Noise>,
    /// A penalty on what moves away from the base.
    pub(crate) to_base: Option<&'a ToBase>,
}

/// The summed losses of a batch, scalars that are left where they were computed: to read one is to
/// wait for the device.
pub(crate) struct Losses {
    /// The cross-entropy.
    pub(crate) loss: Tensor,
    /// KL(base ‖ trained) before its coefficient; `None` without such a penalty, and where no position
    /// bears a loss.
    pub(crate) kl: Option<Tensor>,
}

/// NEFTune ([Jain et al. 2023](https://arxiv.org/abs/2310.05914)): uniform noise of size
/// `alpha`/√(t·hid) on every embedding.
#[derive(Clone, Copy)]
pub(crate) struct Noise {
    pub(crate) alpha: f64,
    pub(crate) seed: u64,
    /// The same number draws the same noise.
    pub(crate) draw: u64,
}

impl Noise {
    /// `[b, t, hid]` -> the same.
    fn add(&self, x: &Tensor) -> Result<Tensor> {
        let (_, t, hidden) = x.dims3()?;
        let size = (self.alpha / ((t * hidden) as f64).sqrt()) as f32;
        let mut stream = Stream::new(self.seed, "neftune", self.draw);
        let noise: Vec<f32> =
            (0..x.elem_count()).map(|_| (2.0 * stream.uniform() - 1.0) * size).collect();
        let noise = Tensor::from_vec(noise, x.shape(), x.device())?.to_dtype(x.dtype())?;
        Ok((x + noise)?)
    }
}

/// One block between its forward and its backward pass.
struct Segment {
    input: Tensor,
    /// `None` when the block is run again.
    output: Option<(Tensor, Tape)>,
}

impl Segments<'_> {
    /// The summed losses of a batch. Adds the gradient of `weight` · (loss + coefficient · KL) to
    /// `gradients`.
    ///
    /// # Errors
    /// A failing operation, or the user's wish to stop, which is looked for between blocks. Nothing
    /// but `gradients` has changed then.
    pub(crate) fn loss_and_gradients(
        &self,
        batch: &Batch,
        weight: f64,
        gradients: &mut Gradients,
    ) -> Result<Losses> {
        // While there are no activations yet.
        let base = match self.to_base {
            Some(to_base) => to_base.view(batch)?.map(|view| (to_base, view)),
            None => None,
        };
        let (model, blocks) = (self.model, self.model.num_blocks());
        let first = self.parameters.first_block().unwrap_or(blocks);
        let (front, embedding) =
            (self.parameters.only(Part::Front), self.parameters.only(Part::Embedding));
        // The block whose input needs no gradient.
        let lowest = if front.is_some() || embedding.is_some() { usize::MAX } else { first };
        let snapshot = model.snapshot();
        let positions = positions(model, batch, &snapshot)?;
        let mode = |gradients| Mode { gradients, dropout: Some(self.dropout) };
        // The same pass without a graph and with one.
        let bare = Pass::new(&snapshot, &positions).in_mode(mode(false));
        let pass = bare.in_mode(mode(true));

        let mut x = model.embed(&batch.ids, &bare)?.detach();
        if let Some(noise) = &self.noise {
            x = noise.add(&x)?;
        }
        x = model.put_virtual_tokens(&x, &bare)?.detach();
        for block in 0..first {
            x = model.block_forward(block, &x, &bare)?.detach();
        }
        let mut segments = Vec::with_capacity(blocks - first);
        for block in first..blocks {
            if block < first + self.checkpointed_blocks {
                let y = model.block_forward(block, &x, &bare)?.detach();
                segments.push(Segment { input: x, output: None });
                x = y;
            } else {
                let input = if block == lowest { x } else { leaf(&x)? };
                let recorder = Tape::record();
                let output = model.block_forward(block, &input, &pass)?;
                x = output.clone();
                segments.push(Segment { input, output: Some((output, recorder.stop())) });
            }
        }

        let (losses, gradient) = self.head(&x, batch, base, weight, gradients, &pass)?;
        drop(x);
        let mut gradient = Some(gradient);

        for block in (first..blocks).rev() {
            snapshot.stop().check()?;
            let (Some(segment), Some(above)) = (segments.pop(), gradient.take()) else { break };
            let (input, output, tape) = match segment.output {
                Some((output, tape)) => (segment.input, output, tape),
                None => {
                    let input = if block == lowest { segment.input } else { leaf(&segment.input)? };
                    let recorder = Tape::record();
                    let output = model.block_forward(block, &input, &pass)?;
                    (input, output, recorder.stop())
                }
            };
            let mut found = tape.backward_from(&output, above)?;
            self.collect(&mut found, gradients, |part| {
                part == Part::Block(block) || part == Part::Blocks
            })?;
            if block != lowest {
                gradient = found.pass_on(&input);
            }
        }
        // A block may cut the graph: everything below it has no gradient either, which the check of
        // step one reports.
        let Some(gradient) = gradient.filter(|_| front.is_some() || embedding.is_some()) else {
            return Ok(losses);
        };
        let gradient = gradient.tensor(model.device())?;
        if let Some(index) = front {
            // The same vectors stand before every row: [b, n + t, hid] -> [b, n, hid] -> [n, hid]
            let rows = gradient.narrow(1, 0, snapshot.row(0).virtual_count())?.sum(0)?;
            gradients.add(index, rows.to_dtype(DType::F32)?)?;
        }
        if let Some(index) = embedding {
            // [b, t, hid] -> [b·t, hid]
            let rows = (model.drop_virtual_tokens(&gradient, &pass)?.flatten(0, 1)?
                * model.embed_scale())?;
            let table = self.parameters.get(index);
            let rows = rows.to_dtype(table.var.dtype())?;
            gradients.add_rows(index, table.var.as_tensor(), &batch.ids.flatten_all()?, &rows)?;
        }
        Ok(losses)
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

    /// The summed losses, and the gradient of `weight` times them with respect to the last block's
    /// output. Adds those of the head's own tensors.
    fn head(
        &self,
        x: &Tensor,
        batch: &Batch,
        base: Option<(&ToBase, BaseView)>,
        weight: f64,
        gradients: &mut Gradients,
        pass: &Pass<'_>,
    ) -> Result<(Losses, Passed)> {
        // A tied head is the embedding table.
        let mut collect = |found: &mut tape::Gradients| {
            self.collect(found, gradients, |part| matches!(part, Part::Head | Part::Embedding))
        };
        let x = leaf(x)?;
        let recorder = Tape::record();
        let hidden = final_hidden(self.model, &x, pass)?;
        let sum = summed_loss(self.model, &hidden, batch, self.label_smoothing, pass)?;
        let (mut total, mut kl) = (sum.clone(), None);
        if let Some((to_base, view)) = base {
            let hidden = hidden.index_select(&view.positions, 0)?;
            let found =
                to_base.divergence(&view, &hidden, weight, (self.model, pass), &mut collect)?;
            // Its gradient is known already; a product with it has it.
            let penalty = (hidden.to_dtype(DType::F32)? * found.gradient)?.sum_all()?;
            total = (total + penalty)?;
            kl = Some(found.sum.detach());
        }
        let tape = recorder.stop();
        let weight = Tensor::new(weight as f32, x.device())?;
        let mut found = tape.backward(&total, &weight)?;
        collect(&mut found)?;
        let gradient = match found.pass_on(&x) {
            Some(gradient) => gradient,
            None => Passed::Tensor(x.zeros_like()?), // no position of this batch bears a loss
        };
        Ok((Losses { loss: sum.detach(), kl }, gradient))
    }
}

/// The summed loss of a batch without gradients.
pub(crate) fn loss(model: &Model, batch: &Batch) -> Result<f64> {
    let snapshot = model.snapshot();
    let positions = positions(model, batch, &snapshot)?;
    let pass = Pass::new(&snapshot, &positions);
    let hidden = hidden_in(model, batch, &pass)?;
    Ok(f64::from(summed_loss(model, &hidden, batch, 0.0, &pass)?.to_scalar::<f32>()?))
}

/// What the head is given of a batch, without gradients.
///
/// # Shapes
/// -> `[b·t, hid]`.
pub(crate) fn hidden_states(model: &Model, batch: &Batch) -> Result<Tensor> {
    let snapshot = model.snapshot();
    let positions = positions(model, batch, &snapshot)?;
    hidden_in(model, batch, &Pass::new(&snapshot, &positions))
}

fn hidden_in(model: &Model, batch: &Batch, pass: &Pass<'_>) -> Result<Tensor> {
    let mut x = model.put_virtual_tokens(&model.embed(&batch.ids, pass)?, pass)?;
    for block in 0..model.num_blocks() {
        x = model.block_forward(block, &x, pass)?;
    }
    final_hidden(model, &x, pass)
}

/// # Shapes
/// `x` `[b, n + t, hid]`, of which the first n positions are what stands before the tokens ->
/// `[b·t, hid]`.
fn final_hidden(model: &Model, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
    Ok(model.final_norm(&model.drop_virtual_tokens(x, pass)?, pass)?.flatten(0, 1)?)
}

fn positions(model: &Model, batch: &Batch, snapshot: &Snapshot) -> Result<Positions> {
    let (b, t) = batch.ids.dims2()?;
    Ok(match &batch.segments {
        Some(segments) => model.packed_positions(t, segments, snapshot)?,
        None => model.positions(b, t, snapshot)?,
    })
}

/// # Shapes
/// `hidden` `[b·t, hid]` -> a scalar.
fn summed_loss(
    model: &Model,
    hidden: &Tensor,
    batch: &Batch,
    smoothing: f64,
    pass: &Pass<'_>,
) -> Result<Tensor> {
    let (sum, count) = model.cross_entropy(hidden, &batch.labels, pass)?;
    if smoothing == 0.0 || count == 0 {
        return Ok(sum);
    }
    if model.final_logit_softcapping().is_some() {
        return Err(Error::Config {
            field: "label_smoothing_factor",
            value: smoothing.to_string(),
            expected: "0 for a model that bounds its logits (final_logit_softcapping)",
        });
    }
    // `transformers`' LabelSmoother: (1 - s) · nll + s · mean over the vocabulary of -log p. With
    // p's normaliser in both terms that is nll + s · (logit of the label - mean logit), and a mean
    // of logits is one product with the mean row of the head: no logits are needed.
    let labelled = batch.labels.iter().enumerate().filter(|(_, label)| **label != ops::IGNORE);
    let (rows, labels): (Vec<u32>, Vec<u32>) =
        labelled.map(|(row, label)| (row as u32, *label as u32)).unzip();
    let device = hidden.device();
    let (rows, labels) = (Tensor::new(rows, device)?, Tensor::new(labels, device)?);
    // [n, hid]
    let hidden = hidden.index_select(&rows, 0)?.to_dtype(DType::F32)?;
    let head = model.head(pass);
    let apart = head.select(&labels)?.to_dtype(DType::F32)?;
    let apart = apart.broadcast_sub(&head.tensor_as(DType::F32)?.mean_keepdim(0)?)?;
    let correction = (hidden.mul(&apart)?.sum_all()? * smoothing)?;
    Ok((sum + correction)?)
}

/// The start of a new tape: the values alone, marked as wanting a gradient.
fn leaf(x: &Tensor) -> Result<Tensor> {
    // The result of a fused operation is one already, and its own tape is another.
    if x.is_variable() { Ok(x.clone()) } else { Ok(Var::from_tensor(&x.detach())?.into_inner()) }
}
