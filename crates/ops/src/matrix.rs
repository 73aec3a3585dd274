//! What a weight's values are kept in: plain numbers, or quantised blocks that are dequantised as
//! they are used.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::quantized::Quantized;

/// The values of a weight.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// A tensor.
    Plain(Tensor),
    /// Blocks, always frozen.
    Quantized(Arc<Quantized>),
}

impl Matrix {
    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::Plain(tensor) => tensor.dims(),
            Self::Quantized(blocks) => blocks.dims(),
        }
    }

    /// Its shape as a matrix.
    ///
    /// # Errors
    /// When it is none.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match *self.dims() {
            [rows, cols] => Ok((rows, cols)),
            _ => bail!("expected a matrix, found {:?}", self.dims()),
        }
    }

    /// The type of its numbers; of blocks, the type that they are dequantised to.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Plain(tensor) => tensor.dtype(),
            Self::Quantized(_) => DType::F32,
        }
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        match self {
            Self::Plain(tensor) => tensor.device(),
            Self::Quantized(blocks) => blocks.device(),
        }
    }

    /// How many numbers it has.
    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Plain(tensor) => (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64,
            Self::Quantized(blocks) => blocks.bytes(),
        }
    }

    /// Whether it is kept in blocks.
    pub fn is_quantized(&self) -> bool {
        matches!(self, Self::Quantized(_))
    }

    /// Whether a gradient is wanted of it: never of blocks.
    pub fn track_op(&self) -> bool {
        matches!(self, Self::Plain(tensor) if tensor.track_op())
    }

    /// The values as a tensor: itself, or blocks dequantised to f32, which is another copy.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn tensor(&self) -> Result<Tensor> {
        match self {
            Self::Plain(tensor) => Ok(tensor.clone()),
            Self::Quantized(blocks) => blocks.dequantize(),
        }
    }

    /// The values as a tensor of another type of number.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn tensor_as(&self, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Plain(tensor) => tensor.to_dtype(dtype),
            Self::Quantized(blocks) => blocks.dequantize_as(dtype),
        }
    }

    /// Some rows.
    ///
    /// # Shapes
    /// `ids` `[n]` u32 -> `[n, cols]`.
    ///
    /// # Errors
    /// When an id is not below the number of rows.
    pub fn select(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(tensor) => tensor.index_select(ids, 0),
            Self::Quantized(blocks) => blocks.select(ids),
        }
    }

    /// The same values as a constant.
    pub fn detach(&self) -> Self {
        match self {
            Self::Plain(tensor) => Self::Plain(tensor.detach()),
            Self::Quantized(blocks) => Self::Quantized(Arc::clone(blocks)),
        }
    }

    /// The same values in one piece.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn contiguous(&self) -> Result<Self> {
        match self {
            Self::Plain(tensor) => Ok(Self::Plain(tensor.contiguous()?)),
            Self::Quantized(blocks) => Ok(Self::Quantized(Arc::clone(blocks))),
        }
    }
}

impl From<Tensor> for Matrix {
    fn from(tensor: Tensor) -> Self {
        Self::Plain(tensor)
    }
}

impl From<&Tensor> for Matrix {
    fn from(tensor: &Tensor) -> Self {
        Self::Plain(tensor.clone())
    }
}

impl From<Quantized> for Matrix {
    fn from(blocks: Quantized) -> Self {
        Self::Quantized(Arc::new(blocks))
    }
}

impl From<&Matrix> for Matrix {
    fn from(matrix: &Matrix) -> Self {
        matrix.clone()
    }
}
