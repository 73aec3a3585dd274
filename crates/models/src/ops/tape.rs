//! A tape of the fused operations, for a backward pass without candle's table of gradients.
//!
//! Candle keeps a gradient for each node: a buffer of zeros, and a second buffer for each addition to it. On the tape
//! a first gradient is moved into place and a further one is added inside the operation that computes it, and every
//! node's buffers go as soon as it is done. (Predicted: the table costs 130 MB of memory traffic a block of
//! SmolLM2-135M at 4 x 128 tokens, 0.4 s of a 2 s step. Measured: what is outside the operations fell from 24 % of a
//! step to 0.5 %, and a step's processor time from 4.6 s to 3.0 s on two threads.)
//!
//! While a tape records, a fused operation's result is a leaf for candle. So operations of candle's between fused ones
//! stay in candle's hands: such a segment is put on the tape as one entry, and its backward pass is candle's own.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use tunebook_models::ops;
//!
//! let x = Var::from_tensor(&Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?)?;
//! let tape = ops::Tape::record();
//! let y = ops::swiglu(x.as_tensor(), x.as_tensor())?;
//! let mut gradients = tape.stop().backward(&y, &y.ones_like()?)?;
//! assert!(gradients.remove(x.as_tensor())?.is_some());
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, TensorId, bail,
};

use super::cpu::Values;
use super::device::Composed;
use super::operation::{Operation, Slot};
use super::profile;

thread_local! {
    static RECORDING: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// The operations of one stretch of a forward pass, in their order.
#[derive(Default)]
pub struct Tape {
    entries: Vec<Entry>,
    /// What candle computed and a fused operation took: already an entry.
    segments: HashSet<TensorId>,
}

/// How an entry is differentiated.
enum Step {
    /// On the host's f32 buffers.
    Fused(Box<dyn Operation>),
    /// By tensor operations on any device.
    Composed(Box<dyn Composed>),
    /// By candle: a segment of its own operations.
    Candle,
}

struct Entry {
    step: Step,
    inputs: Vec<Place>,
    output: Place,
}

/// A tensor's place in the graph, and its values if the backward pass reads them. (Predicted for a block of SmolLM2-135M under LoRA on
/// queries and values: of 81 numbers a token and a hidden size, 33 are of no further use: inputs of frozen maps, of sums and rotations.)
struct Place {
    id: TensorId,
    shape: Shape,
    tracked: bool,
    values: Tensor,
}

impl Place {
    fn of(tensor: &Tensor) -> Self {
        let (id, shape, tracked) = (tensor.id(), tensor.shape().clone(), tensor.track_op());
        Self { id, shape, tracked, values: tensor.clone() }
    }

    /// Without its values.
    fn empty(tensor: &Tensor) -> Self {
        let nothing = Storage::Cpu(CpuStorage::F32(Vec::new()));
        let values = Tensor::from_storage(nothing, Shape::from(0), BackpropOp::none(), false);
        Self { values, ..Self::of(tensor) }
    }
}

/// A tape that records this thread's operations until [`Recorder::stop`] (or until it is dropped).
#[must_use = "without `stop` the tape is dropped with what it recorded"]
pub struct Recorder {
    /// The tape that recorded before, if any; it waits. `None` once it has been put back.
    outer: Option<Option<Tape>>,
    /// Recording belongs to a thread.
    not_send: PhantomData<*const ()>,
}

impl Tape {
    /// Begins to record on this thread.
    pub fn record() -> Recorder {
        let outer = RECORDING.with_borrow_mut(|tape| tape.replace(Self::default()));
        Recorder { outer: Some(outer), not_send: PhantomData }
    }

    /// The gradients of whatever `output` was computed from, given its own. The tape is used up, entry by entry, and
    /// so is the memory it holds.
    ///
    /// # Errors
    /// When the shapes of `output` and `gradient` differ, or an operation fails.
    pub fn backward(mut self, output: &Tensor, gradient: &Tensor) -> Result<Gradients> {
        if output.dims() != gradient.dims() {
            bail!("backward: expected a gradient {:?}, found {:?}", output.dims(), gradient.dims())
        }
        let mut found = Gradients::default();
        self.note_segment(output);
        found.insert_tensor(output.id(), gradient)?;
        while let Some(Entry { step, inputs, output }) = self.entries.pop() {
            let (places, inputs): (Vec<_>, Vec<_>) = inputs
                .into_iter()
                .map(|Place { id, shape, tracked, values }| ((id, shape, tracked), values))
                .unzip();
            let op = match step {
                Step::Fused(op) => op,
                Step::Composed(op) => {
                    let Some(dy) = found.remove(&output.values)? else { continue };
                    found.composed(&*op, &inputs, &output.values, &dy)?;
                    continue;
                }
                Step::Candle => {
                    let Some(dy) = found.remove(&output.values)? else { continue };
                    found.segment(&output.values, &dy)?;
                    continue;
                }
            };
            let Some(dy) = found.sums.remove(&output.id).map(|(sum, _)| sum) else { continue };
            let _time = profile::time(op.name(), "backward");
            let mut slots: Vec<Slot> = places
                .iter()
                .map(|(id, _, tracked)| Slot::new(*tracked, found.sums.remove(id).map(|(sum, _)| sum)))
                .collect();
            op.backward(&inputs, &output.values, Cow::Owned(dy), &mut slots)?;
            for (slot, (id, shape, _)) in slots.into_iter().zip(&places) {
                if let Some(sum) = slot.into_sum() {
                    found.insert(*id, shape, sum);
                }
            }
        }
        Ok(found)
    }

    fn note_segment(&mut self, tensor: &Tensor) {
        if tensor.track_op() && !tensor.is_variable() && self.segments.insert(tensor.id()) {
            self.entries.push(Entry { step: Step::Candle, inputs: Vec::new(), output: Place::of(tensor) });
        }
    }
}

impl Recorder {
    /// Ends recording.
    pub fn stop(mut self) -> Tape {
        self.put_back().unwrap_or_default()
    }

    fn put_back(&mut self) -> Option<Tape> {
        let outer = self.outer.take()?;
        RECORDING.with_borrow_mut(|tape| std::mem::replace(tape, outer))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.put_back();
    }
}

/// Whether this thread records.
pub(super) fn recording() -> bool {
    RECORDING.with_borrow(Option::is_some)
}

pub(super) fn push(op: Box<dyn Operation>, inputs: &[&Tensor], output: &Tensor) {
    push_step(Step::Fused(op), inputs, output);
}

pub(super) fn push_composed(op: Box<dyn Composed>, inputs: &[&Tensor], output: &Tensor) {
    push_step(Step::Composed(op), inputs, output);
}

fn push_step(step: Step, inputs: &[&Tensor], output: &Tensor) {
    RECORDING.with_borrow_mut(|tape| {
        if let Some(tape) = tape {
            inputs.iter().for_each(|input| tape.note_segment(input));
            let read = |input: Option<usize>| match (&step, input) {
                (Step::Fused(op), Some(index)) => op.reads_input(index),
                (Step::Fused(op), None) => op.reads_output(),
                (Step::Composed(_) | Step::Candle, _) => true,
            };
            let place = |tensor: &Tensor, input: Option<usize>| match read(input) {
                true => Place::of(tensor),
                false => Place::empty(tensor),
            };
            let inputs = inputs.iter().enumerate().map(|(i, input)| place(input, Some(i))).collect();
            let output = place(output, None);
            tape.entries.push(Entry { step, inputs, output });
        }
    });
}

/// What a backward pass found: the gradients of the leaves.
#[derive(Default)]
pub struct Gradients {
    sums: HashMap<TensorId, (Vec<f32>, Shape)>,
    /// Of tensors that no fused operation can take.
    others: HashMap<TensorId, Tensor>,
}

impl Gradients {
    /// Takes out the gradient of a leaf.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn remove(&mut self, leaf: &Tensor) -> Result<Option<Tensor>> {
        if let Some((sum, shape)) = self.sums.remove(&leaf.id()) {
            return Tensor::from_vec(sum, shape, leaf.device()).map(Some);
        }
        Ok(self.others.remove(&leaf.id()))
    }

    fn insert(&mut self, id: TensorId, shape: &Shape, sum: Vec<f32>) {
        match self.sums.remove(&id) {
            None => self.sums.insert(id, (sum, shape.clone())),
            Some((before, shape)) => {
                let mut slot = Slot::new(true, Some(before));
                slot.add(Cow::Owned(sum));
                self.sums.insert(id, (slot.into_sum().unwrap_or_default(), shape))
            }
        };
    }

    /// Adds a gradient: where fused operations find it if its tensor can be theirs.
    fn insert_tensor(&mut self, id: TensorId, gradient: &Tensor) -> Result<()> {
        if gradient.device().is_cpu() && gradient.dtype() == DType::F32 {
            let gradient = gradient.contiguous()?;
            self.insert(id, gradient.shape(), Values::of(&gradient)?.to_vec());
        } else if let Some(before) = self.others.remove(&id) {
            self.others.insert(id, (before + gradient)?);
        } else {
            self.others.insert(id, gradient.detach());
        }
        Ok(())
    }

    /// The backward pass of a composed operation.
    fn composed(&mut self, op: &dyn Composed, inputs: &[Tensor], output: &Tensor, dy: &Tensor) -> Result<()> {
        let _time = profile::time(op.name(), "backward");
        for (input, gradient) in inputs.iter().zip(op.backward(inputs, output, &dy.contiguous()?)?) {
            if let Some(gradient) = gradient.filter(|_| input.track_op()) {
                self.insert_tensor(input.id(), &gradient)?;
            }
        }
        Ok(())
    }

    /// The backward pass of what candle computed between two fused operations.
    fn segment(&mut self, output: &Tensor, gradient: &Tensor) -> Result<()> {
        let _time = profile::time("candle", "backward");
        let store = seeded(output, gradient)?.backward()?;
        for id in store.get_ids() {
            if let Some(gradient) = store.get_id(*id) {
                self.insert_tensor(*id, gradient)?;
            }
        }
        Ok(())
    }
}

/// A scalar whose `backward` gives `y` the gradient `gradient`.
fn seeded(y: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    if y.device().is_metal() {
        return (y * gradient)?.sum_all();
    }
    y.apply_op1(Seed(gradient.clone()))
}

/// What `(y · gradient).sum()` is for backward, without computing it: `backward` starts from a scalar, and its value
/// is of no use.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.]), Shape::from(())))
    }

    fn cuda_fwd(&self, y: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((y.device().zeros_impl(&Shape::from(()), DType::F32)?, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
