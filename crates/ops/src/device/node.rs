//! What a composed operation is to the graph: a node with a backward pass on tensors, on our
//! [tape](crate::tape) while one records, in candle's graph otherwise.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, InplaceOp1, Layout, Result,
    Shape, Storage, Tensor, Var, bail,
};

use crate::{profile, tape};

/// The backward pass of one node, in tensor operations.
pub trait Composed: Send + Sync + 'static {
    /// Name in profiles and errors.
    fn name(&self) -> &'static str;

    /// The gradient of each input (`None` where there is none, or where `input.track_op()` says
    /// that nobody wants it). `dy` is the gradient of `output`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn backward(
        &self,
        inputs: &[Tensor],
        output: &Tensor,
        dy: &Tensor,
    ) -> Result<Vec<Option<Tensor>>>;
}

/// `y`, which `op` says how to differentiate, as a part of the tape or of candle's graph if an
/// input is tracked. `y` is computed from detached inputs, and nothing else holds it.
pub(super) fn node<O: Composed>(op: O, inputs: &[&Tensor], y: Tensor) -> Result<Tensor> {
    if !inputs.iter().any(|input| input.track_op()) {
        return Ok(y.detach());
    }
    if tape::recording() {
        let output = leaf(y, inputs)?;
        tape::push_composed(Box::new(op), inputs, &output);
        return Ok(output);
    }
    let node = InGraph { op: Arc::new(op), y: y.detach().contiguous()? };
    match *inputs {
        [x] => x.apply_op1(node),
        [x, y] => x.apply_op2(y, node),
        [x, y, z] => x.apply_op3(y, z, node),
        _ => bail!("{}: expected one to three inputs, found {}", node.op.name(), inputs.len()),
    }
}

/// The same values as a leaf of candle's graph.
fn leaf(y: Tensor, inputs: &[&Tensor]) -> Result<Tensor> {
    let movable = y.layout().start_offset() == 0
        && y.is_contiguous()
        && (y.device().is_cpu() || y.device().is_cuda())
        && !inputs.iter().any(|input| shares_buffer(&y, input));
    if !movable {
        return Ok(Var::from_tensor(&y.detach())?.into_inner());
    }
    let shape = y.shape().clone();
    let take = Take(Mutex::new(None));
    y.inplace_op1(&take)?;
    drop(y);
    match take.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(storage) => Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), true)),
        None => bail!("a result's buffer could not be taken"),
    }
}

fn shares_buffer(a: &Tensor, b: &Tensor) -> bool {
    std::ptr::eq::<Storage>(&*a.storage_and_layout().0, &*b.storage_and_layout().0)
}

/// Moves the buffer out of a tensor: candle has no other way to mark a result as a leaf than to
/// copy it.
struct Take(Mutex<Option<Storage>>);

impl Take {
    fn put(&self, storage: Storage) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(storage);
    }
}

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        self.put(Storage::Cpu(std::mem::replace(storage, CpuStorage::U8(Vec::new()))));
        Ok(())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        let placeholder = storage.device().zeros_impl(&Shape::from(1), DType::U8)?;
        self.put(Storage::Cuda(std::mem::replace(storage, placeholder)));
        Ok(())
    }
}

/// An operation as candle's graph takes it. The forward pass has already run.
struct InGraph<O> {
    op: Arc<O>,
    y: Tensor,
}

impl<O: Composed> InGraph<O> {
    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.y.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("{}: its result is on another device than its inputs", self.op.name()),
        }
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.y.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("{}: its result is on another device than its inputs", self.op.name()),
        }
    }

    fn gradients(
        &self,
        inputs: &[&Tensor],
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let _time = profile::time(self.op.name(), "backward");
        let inputs: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
        // Candle hands on views (of a transpose, of a broadcast) as they are.
        self.op.backward(&inputs, &y.detach(), &dy.detach().contiguous()?)
    }
}

impl<O: Composed> CustomOp1 for InGraph<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(&[x], y, dy)?.into_iter().next().flatten())
    }
}

impl<O: Composed> CustomOp2 for InGraph<O> {
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
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
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

impl<O: Composed> CustomOp3 for InGraph<O> {
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
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
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
