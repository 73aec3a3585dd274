//! Weights: the tensors that a decoder was loaded with.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use candle_core::{Tensor, Var};

use crate::error::{Error, Result};
use tunebook_ops::Matrix;

/// One tensor of a decoder, a constant. What is trained in its place stands in an
/// [`Overlay`](crate::Overlay). It may be kept in quantised blocks ([`Matrix`]).
pub struct Weight {
    index: usize,
    name: String,
    values: RwLock<Matrix>,
    /// A variable has had its memory.
    shared: AtomicBool,
}

impl Weight {
    /// A weight of its own, of no model.
    pub fn new(name: impl Into<String>, values: impl Into<Matrix>) -> Self {
        Self::at(usize::MAX, name, values)
    }

    /// A model's weight of that index, under Hugging Face's name for it.
    pub(crate) fn at(index: usize, name: impl Into<String>, values: impl Into<Matrix>) -> Self {
        Self {
            index,
            name: name.into(),
            values: RwLock::new(values.into()),
            shared: AtomicBool::new(false),
        }
    }

    /// Its place in the model's list.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Hugging Face's name for it, such as `model.norm.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tensor; of a quantised weight a new copy in f32. [`Weight::matrix`] is what an operation
    /// takes.
    pub fn get(&self) -> Tensor {
        self.matrix().tensor().expect("as many values as the shape says make a tensor")
    }

    /// The tensor, or the blocks that it is kept in.
    pub fn matrix(&self) -> Matrix {
        self.values.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the weight have the memory of `var`, which should hold its values: what is trained in
    /// the variable is seen here at once, and there is one copy.
    ///
    /// # Errors
    /// When the shapes differ, or the weight is kept in quantised blocks, which cannot be trained.
    pub fn share(&self, var: &Var) -> Result<()> {
        if let Matrix::Quantized(blocks) = self.matrix() {
            return Err(Error::QuantizedWeight {
                name: self.name.clone(),
                format: blocks.format(),
            });
        }
        self.check_shape(var)?;
        self.shared.store(true, Ordering::Relaxed);
        self.fill(var.as_detached_tensor().into());
        Ok(())
    }

    /// Whether a variable has had its memory, so that its values may change without notice.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }

    /// # Errors
    /// When the variable has another shape.
    pub(crate) fn check_shape(&self, var: &Var) -> Result<()> {
        let expected = self.matrix();
        if var.dims() == expected.dims() {
            return Ok(());
        }
        Err(Error::Shape {
            origin: "the variable".to_owned(),
            name: self.name.clone(),
            expected: expected.dims().to_vec(),
            found: var.dims().to_vec(),
        })
    }

    /// Puts the values that were loaded in place of the empty ones it was made with.
    pub(crate) fn fill(&self, values: Matrix) {
        *self.values.write().unwrap_or_else(PoisonError::into_inner) = values;
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({} {:?})", self.name, self.matrix().dims())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_weight_shares_the_memory_of_the_variable_that_trains_it() {
        let weight = Weight::new("w", Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap());
        let var = Var::from_tensor(&weight.get()).unwrap();
        assert!(!weight.is_shared());
        weight.share(&var).unwrap();
        assert!(weight.is_shared());
        var.set(&Tensor::new(&[3f32, 4.], &Device::Cpu).unwrap()).unwrap();
        assert!(!weight.get().track_op());
        assert_eq!(weight.get().to_vec1::<f32>().unwrap(), [3., 4.]);
        let other = Var::new(&[1f32], &Device::Cpu).unwrap();
        assert!(weight.share(&other).unwrap_err().to_string().contains("[1]"));
    }
}
