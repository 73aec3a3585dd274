//! What a fused operation is to the graph: a node with a backward pass, on our [tape](crate::tape)
//! while one records, in candle's graph otherwise.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};
use rayon::prelude::*;

use crate::cpu::crew::Each;
use crate::cpu::gemm::{Start, Term, products, sum_of_products};
use crate::cpu::{CHUNK, Values, half, math};
use crate::{profile, tape};

/// A gradient's values. Where an operation hands one buffer on to two inputs, the first that adds
/// to it while the other is still to be read copies it.
pub(crate) type Buffer = Arc<Vec<f32>>;

/// The backward pass of one node; whatever it needs of the forward pass it holds.
pub(crate) trait Operation: Send + Sync + 'static {
    /// Name in profiles and errors.
    fn name(&self) -> &'static str;

    /// Whether the backward pass reads the values of an input. If not, the tape does not keep them,
    /// and `backward` finds an empty tensor there.
    fn reads_input(&self, index: usize) -> bool;

    /// Whether it reads those of its output.
    fn reads_output(&self) -> bool {
        false
    }

    /// Whether [`Operation::remake`] gives the output again at little cost. Then the tape keeps
    /// this operation's inputs, and not its output for those that read it.
    fn remakes(&self) -> bool {
        false
    }

    /// The output again, the same bits.
    ///
    /// # Errors
    /// When it cannot ([`Operation::remakes`]), or a buffer is not what the forward pass made sure
    /// of.
    fn remake(&self, _inputs: &[Tensor]) -> Result<Vec<f32>> {
        bail!("{}: the result is not computed again", self.name())
    }

    /// Adds the gradient of each wanted input to its slot. `dy` is the gradient of `output`.
    ///
    /// # Errors
    /// When a buffer is not what the forward pass made sure of.
    fn backward(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        dy: Buffer,
        into: &mut [Slot],
    ) -> Result<()>;
}

/// Where an input's gradient is summed.
#[derive(Debug)]
pub(crate) struct Slot {
    wanted: bool,
    sum: Option<Buffer>,
}

impl Slot {
    /// A slot with what other nodes have already added.
    pub(crate) fn new(wanted: bool, sum: Option<Buffer>) -> Self {
        Self { wanted, sum }
    }

    /// Whether anything further down needs this gradient.
    pub(crate) fn wanted(&self) -> bool {
        self.wanted
    }

    /// The sum, if anything was added.
    pub(crate) fn into_sum(self) -> Option<Buffer> {
        self.sum
    }

    /// Takes the sum so far, to be added to and given back with [`Slot::set`].
    pub(crate) fn take(&mut self) -> Option<Vec<f32>> {
        self.sum.take().map(Arc::unwrap_or_clone)
    }

    /// Puts a sum there.
    pub(crate) fn set(&mut self, sum: Vec<f32>) {
        self.sum = Some(Arc::new(sum));
    }

    /// Adds a gradient.
    pub(crate) fn add(&mut self, gradient: impl Into<Buffer>) {
        let gradient = gradient.into();
        match &mut self.sum {
            None => self.sum = Some(gradient),
            Some(sum) => Arc::make_mut(sum)
                .par_chunks_mut(CHUNK)
                .zip(gradient.par_chunks(CHUNK))
                .each(|(sum, gradient)| math::add_scaled(sum, 1., gradient)),
        }
    }

    /// Adds a sum of matrix products with weights in bf16, inside the product.
    pub(crate) fn add_half_products(&mut self, terms: &[half::Term]) {
        match &mut self.sum {
            None => self.set(half::sum_of_products(terms, None)),
            Some(sum) => {
                half::products(Arc::make_mut(sum).as_mut_slice(), terms, Start::Accumulate)
            }
        }
    }

    /// Adds a sum of matrix products, inside the product.
    pub(crate) fn add_products(&mut self, terms: &[Term]) {
        match &mut self.sum {
            None => self.set(sum_of_products(terms, None)),
            Some(sum) => products(Arc::make_mut(sum).as_mut_slice(), terms, Start::Accumulate),
        }
    }
}

/// A result that no gradient flows through.
pub(crate) fn constant(values: Vec<f32>, shape: Shape) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &candle_core::Device::Cpu)
}

/// The result of an operation as a tensor: part of the tape or of candle's graph if an input is
/// tracked.
pub(crate) fn node<O: Operation>(
    op: O,
    inputs: &[&Tensor],
    values: Vec<f32>,
    shape: Shape,
) -> Result<Tensor> {
    let storage = CpuStorage::F32(values);
    if !inputs.iter().any(|input| input.track_op()) {
        return Ok(Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), false));
    }
    if tape::recording() {
        // A leaf for candle: should one of its own operations take this tensor, it tracks from here
        // on.
        let output = Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), true);
        tape::push(Box::new(op), inputs, &output);
        return Ok(output);
    }
    let node = InGraph { op: Arc::new(op), result: Mutex::new(Some((storage, shape))) };
    match *inputs {
        [x] => x.apply_op1(node),
        [x, y] => x.apply_op2(y, node),
        [x, y, z] => x.apply_op3(y, z, node),
        _ => bail!("{}: expected one to three inputs, found {}", node.op.name(), inputs.len()),
    }
}

/// An operation as candle's graph takes it. The forward pass has already run.
struct InGraph<O> {
    op: Arc<O>,
    result: Mutex<Option<(CpuStorage, Shape)>>,
}

impl<O: Operation> InGraph<O> {
    fn result(&self) -> Result<(CpuStorage, Shape)> {
        match self.result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(result) => Ok(result),
            None => bail!("{}: a node's forward pass runs once", self.op.name()),
        }
    }

    fn gradients(
        &self,
        inputs: &[&Tensor],
        output: &Tensor,
        dy: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let _time = profile::time(self.op.name(), "backward");
        let mut slots: Vec<Slot> =
            inputs.iter().map(|input| Slot::new(input.track_op(), None)).collect();
        let tensors: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
        // Candle hands on views (of a transpose, of a broadcast) as they are.
        let dy = dy.contiguous()?;
        self.op.backward(&tensors, output, Arc::new(Values::of(&dy)?.to_vec()), &mut slots)?;
        let tensor = |(slot, input): (Slot, &&Tensor)| {
            slot.into_sum()
                .map(|sum| {
                    Tensor::from_vec(Arc::unwrap_or_clone(sum), input.shape(), input.device())
                })
                .transpose()
        };
        slots.into_iter().zip(inputs).map(tensor).collect()
    }
}

impl<O: Operation> CustomOp1 for InGraph<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut found = self.gradients(&[x], y, dy)?;
        Ok(found.swap_remove(0))
    }
}

impl<O: Operation> CustomOp2 for InGraph<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut found = self.gradients(&[a, b], y, dy)?.into_iter();
        Ok((found.next().flatten(), found.next().flatten()))
    }
}

impl<O: Operation> CustomOp3 for InGraph<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut found = self.gradients(&[a, b, c], y, dy)?.into_iter();
        Ok((found.next().flatten(), found.next().flatten(), found.next().flatten()))
    }
}
