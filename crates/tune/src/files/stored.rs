//! A tensor of a file, in memory.

use candle_core::{DType, Tensor};

use crate::error::Result;

/// A tensor in memory, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// As many values as the dimensions multiply to.
    pub values: Vec<f32>,
}

impl StoredTensor {
    pub(crate) fn of(tensor: &Tensor) -> Result<Self> {
        let values = tensor.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(Self { shape: tensor.dims().to_vec(), values })
    }
}
