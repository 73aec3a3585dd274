//! A tape of the fused operations, for a backward pass without candle's table of gradients.
//!
//! Candle keeps a gradient for each node: a buffer of zeros, and a second buffer for each addition
//! to it. On the tape a first gradient is moved into place and a further one is added inside the
//! operation that computes it, and every node's buffers go as soon as it is done. Figures:
//! `docs/measurements.md`, "Memory and the tape".
//!
//! While a tape records, a fused operation's result is a leaf for candle. So operations of candle's
//! between fused ones stay in candle's hands: such a segment is put on the tape as one entry, and
//! its backward pass is candle's own.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use tunebook_ops as ops;
//!
//! let x = Var::from_tensor(&Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?)?;
//! let tape = ops::Tape::record();
//! let y = ops::swiglu(x.as_tensor(), x.as_tensor())?;
//! let mut gradients = tape.stop().backward(&y, &y.ones_like()?)?;
//! assert!(gradients.remove(x.as_tensor())?.is_some());
//! # Ok::<(), candle_core::Error>(())
//! ```

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor,
    TensorId, bail,
};

use crate::cpu::Values;
use crate::device::Composed;
use crate::operation::{Buffer, Operation, Slot};
use crate::profile;

thread_local! {
    static RECORDING: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// The operations of one stretch of a forward pass, in their order.
#[derive(Default)]
pub struct Tape {
    entries: Vec<Entry>,
    /// What candle computed and a fused operation took: already an entry.
    segments: HashSet<TensorId>,
    /// The entries whose results can be had again at little cost, by those results.
    makers: HashMap<TensorId, usize>,
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

/// A tensor's place in the graph, and its values if the backward pass reads them. Inputs of frozen
/// linears, of sums and of rotations are not kept; a norm's output is computed again for the
/// operations that read it. Figures: `docs/measurements.md`, "Memory and the tape".
struct Place {
    id: TensorId,
    shape: Shape,
    tracked: bool,
    values: Tensor,
    /// The entry that makes the values again when they are read.
    maker: Option<usize>,
}

impl Place {
    fn of(tensor: &Tensor) -> Self {
        let (id, shape, tracked) = (tensor.id(), tensor.shape().clone(), tensor.track_op());
        Self { id, shape, tracked, values: tensor.clone(), maker: None }
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

    /// The gradients of whatever `output` was computed from, given its own. The tape is used up,
    /// entry by entry, and so is the memory it holds.
    ///
    /// # Errors
    /// When the shapes of `output` and `gradient` differ, or an operation fails.
    pub fn backward(self, output: &Tensor, gradient: &Tensor) -> Result<Gradients> {
        self.backward_from(output, Passed::Tensor(gradient.clone()))
    }

    /// [`Tape::backward`] from what another tape found.
    ///
    /// # Errors
    /// As there.
    pub fn backward_from(mut self, output: &Tensor, gradient: Passed) -> Result<Gradients> {
        if output.dims() != gradient.dims() {
            bail!("backward: expected a gradient {:?}, found {:?}", output.dims(), gradient.dims())
        }
        let mut found = Gradients::default();
        self.note_segment(output);
        match gradient {
            Passed::Host(sum, shape) => found.insert(output.id(), &shape, sum),
            Passed::Tensor(gradient) => found.insert_tensor(output.id(), &gradient)?,
        }
        // What was made again, until its maker has had its turn.
        let mut remade: HashMap<usize, Tensor> = HashMap::new();
        while let Some(Entry { step, inputs, output }) = self.entries.pop() {
            remade.remove(&self.entries.len());
            let op = match step {
                Step::Fused(op) => op,
                Step::Composed(op) => {
                    let Some(dy) = found.remove(&output.values)? else { continue };
                    let inputs: Vec<Tensor> =
                        inputs.into_iter().map(|place| place.values).collect();
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
            let values = inputs
                .iter()
                .map(|place| self.values(place, &mut remade))
                .collect::<Result<Vec<_>>>()?;
            let _time = profile::time(op.name(), "backward");
            let mut slots: Vec<Slot> = inputs
                .iter()
                .map(|place| {
                    Slot::new(place.tracked, found.sums.remove(&place.id).map(|(sum, _)| sum))
                })
                .collect();
            op.backward(&values, &output.values, dy, &mut slots)?;
            for (slot, place) in slots.into_iter().zip(&inputs) {
                if let Some(sum) = slot.into_sum() {
                    found.insert(place.id, &place.shape, sum);
                }
            }
        }
        Ok(found)
    }

    /// What an operation reads of a place: kept, or made again by the entry that made it.
    fn values(&self, place: &Place, remade: &mut HashMap<usize, Tensor>) -> Result<Tensor> {
        let Some(maker) = place.maker else { return Ok(place.values.clone()) };
        if let Some(made) = remade.get(&maker) {
            return Ok(made.clone());
        }
        let Some(Entry { step: Step::Fused(op), inputs, .. }) = self.entries.get(maker) else {
            bail!("backward: the maker of an input of shape {:?} is gone", place.shape)
        };
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.values.clone()).collect();
        let made = Tensor::from_vec(op.remake(&inputs)?, place.shape.clone(), &Device::Cpu)?;
        remade.insert(maker, made.clone());
        Ok(made)
    }

    fn note_segment(&mut self, tensor: &Tensor) {
        if tensor.track_op() && !tensor.is_variable() && self.segments.insert(tensor.id()) {
            self.entries.push(Entry {
                step: Step::Candle,
                inputs: Vec::new(),
                output: Place::of(tensor),
            });
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
            let remakes = matches!(&step, Step::Fused(op) if op.remakes());
            let input = |(index, input): (usize, &&Tensor)| {
                let maker = tape.makers.get(&input.id()).copied();
                match &step {
                    _ if !read(Some(index)) => Place::empty(input),
                    // What makes something again needs its own inputs at hand.
                    Step::Fused(_) if maker.is_some() && !remakes => {
                        Place { maker, ..Place::empty(input) }
                    }
                    _ => Place::of(input),
                }
            };
            let inputs = inputs.iter().enumerate().map(input).collect();
            if remakes {
                tape.makers.insert(output.id(), tape.entries.len());
            }
            let output = if read(None) { Place::of(output) } else { Place::empty(output) };
            tape.entries.push(Entry { step, inputs, output });
        }
    });
}

/// A gradient on its way from one tape to the next, which moves it where both are on the host.
#[derive(Debug)]
pub enum Passed {
    /// Values of fused operations.
    Host(Buffer, Shape),
    /// Anything else.
    Tensor(Tensor),
}

impl Passed {
    /// As a tensor.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn tensor(self, device: &Device) -> Result<Tensor> {
        match self {
            Self::Host(sum, shape) => Tensor::from_vec(Arc::unwrap_or_clone(sum), shape, device),
            Self::Tensor(tensor) => Ok(tensor),
        }
    }

    fn dims(&self) -> &[usize] {
        match self {
            Self::Host(_, shape) => shape.dims(),
            Self::Tensor(tensor) => tensor.dims(),
        }
    }
}

/// What a backward pass found: the gradients of the leaves.
#[derive(Default)]
pub struct Gradients {
    sums: HashMap<TensorId, (Buffer, Shape)>,
    /// Of tensors that no fused operation can take.
    others: HashMap<TensorId, Tensor>,
}

impl Gradients {
    /// Takes out the gradient of a leaf.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn remove(&mut self, leaf: &Tensor) -> Result<Option<Tensor>> {
        self.pass_on(leaf).map(|passed| passed.tensor(leaf.device())).transpose()
    }

    /// Takes out the gradient of a leaf for the tape that gave it.
    pub fn pass_on(&mut self, leaf: &Tensor) -> Option<Passed> {
        match self.sums.remove(&leaf.id()) {
            Some((sum, shape)) => Some(Passed::Host(sum, shape)),
            None => self.others.remove(&leaf.id()).map(Passed::Tensor),
        }
    }

    fn insert(&mut self, id: TensorId, shape: &Shape, sum: Buffer) {
        match self.sums.remove(&id) {
            None => self.sums.insert(id, (sum, shape.clone())),
            Some((before, shape)) => {
                let mut slot = Slot::new(true, Some(before));
                slot.add(sum);
                self.sums.insert(id, (slot.into_sum().unwrap_or_default(), shape))
            }
        };
    }

    /// Adds a gradient: where fused operations find it if its tensor can be theirs.
    fn insert_tensor(&mut self, id: TensorId, gradient: &Tensor) -> Result<()> {
        if gradient.device().is_cpu() && gradient.dtype() == DType::F32 {
            let gradient = gradient.contiguous()?;
            self.insert(id, gradient.shape(), Arc::new(Values::of(&gradient)?.to_vec()));
        } else if let Some(before) = self.others.remove(&id) {
            self.others.insert(id, (before + gradient)?);
        } else {
            self.others.insert(id, gradient.detach());
        }
        Ok(())
    }

    /// The backward pass of a composed operation.
    fn composed(
        &mut self,
        op: &dyn Composed,
        inputs: &[Tensor],
        output: &Tensor,
        dy: &Tensor,
    ) -> Result<()> {
        let _time = profile::time(op.name(), "backward");
        for (input, gradient) in
            inputs.iter().zip(op.backward(inputs, output, &dy.contiguous()?)?)
        {
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

/// What `(y · gradient).sum()` is for backward, without computing it: `backward` starts from a
/// scalar, and its value is of no use.
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

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate as ops;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.).collect()
    }

    /// Both sides of a sum get one buffer: whoever adds to it must not change what the other reads,
    /// in whatever order they come.
    #[test]
    fn sides_of_a_sum_do_not_disturb_one_another() {
        let var = |seed| {
            Var::from_tensor(&Tensor::from_vec(numbers(160, seed), (5, 32), &Device::Cpu).unwrap())
                .unwrap()
        };
        let (x, z) = (var(1), var(2));
        let scale = Tensor::from_vec(numbers(32, 4), 32, &Device::Cpu).unwrap();
        let forward = |first: bool| {
            let (x, z) = (x.as_tensor(), z.as_tensor());
            let gated = ops::swiglu(&ops::rms_norm(x, &scale, 1e-5)?, z)?;
            let sum = if first { ops::add(x, &gated)? } else { ops::add(&gated, x)? };
            let twice = ops::add(&sum, &sum)?;
            ops::add(&ops::rms_norm(&twice, &scale, 1e-5)?, &ops::add(x, &twice)?)
        };
        let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for first in [true, false] {
            let recorder = Tape::record();
            let y = forward(first).unwrap();
            let mut found = recorder.stop().backward(&y, &y.ones_like().unwrap()).unwrap();
            let expected = forward(first).unwrap().sum_all().unwrap().backward().unwrap();
            for var in [&x, &z] {
                let found = flat(found.remove(var.as_tensor()).unwrap().unwrap());
                let expected = flat(expected.get(var.as_tensor()).unwrap().clone());
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(
                        (found - expected).abs() < 1e-5 * expected.abs().max(1.),
                        "{found} {expected}"
                    );
                }
            }
        }
    }

    /// A norm's result that a trained map reads is not kept, and comes back with the same bits.
    #[test]
    fn cheap_results_are_made_again() {
        let var = |dims: (usize, usize), seed| {
            Var::from_tensor(
                &Tensor::from_vec(numbers(dims.0 * dims.1, seed), dims, &Device::Cpu).unwrap(),
            )
            .unwrap()
        };
        let (x, up, down) = (var((5, 32), 1), var((48, 32), 2), var((32, 24), 3));
        let scale = Tensor::from_vec(numbers(32, 4), 32, &Device::Cpu).unwrap();
        let forward = || {
            let h = ops::rms_norm(x.as_tensor(), &scale, 1e-5)?;
            let both = ops::linear(&h, up.as_tensor(), None)?;
            let halves =
                [both.narrow(1, 0, 24)?.contiguous()?, both.narrow(1, 24, 24)?.contiguous()?];
            ops::linear(&ops::swiglu(&halves[0], &halves[1])?, down.as_tensor(), None)
        };
        let recorder = Tape::record();
        let y = forward().unwrap();
        let tape = recorder.stop();
        let made: Vec<usize> =
            tape.entries.iter().flat_map(|e| &e.inputs).filter_map(|p| p.maker).collect();
        assert_eq!(made.len(), 2, "both maps read what is made again");
        for place in
            tape.entries.iter().flat_map(|e| &e.inputs).filter(|place| place.maker.is_some())
        {
            assert_eq!(place.values.elem_count(), 0);
        }
        let mut found = tape.backward(&y, &y.ones_like().unwrap()).unwrap();
        // In candle's graph everything is kept.
        let expected = forward().unwrap().sum_all().unwrap().backward().unwrap();
        for var in [&x, &up, &down] {
            let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let found = flat(found.remove(var.as_tensor()).unwrap().unwrap());
            assert_eq!(found, flat(expected.get(var.as_tensor()).unwrap().clone()));
        }
    }
}
