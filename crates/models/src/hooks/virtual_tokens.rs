//! Vectors that stand before the tokens of every text, as if they were embeddings of tokens.
//!
//! A decoder does not know what they are for (a soft prompt, <https://arxiv.org/abs/2104.08691>).
//! They count as positions: the first token of the text comes after them, and every token sees
//! them. In a batch that is padded on the left they stand between padding and text.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::Tensor;

use crate::error::{Error, Result};

/// Gives the vectors, anew in each forward pass, so that they may be part of the graph.
pub trait Vectors: Send + Sync + fmt::Debug {
    /// `[n, hid]`
    ///
    /// # Errors
    /// What computing them fails with.
    fn vectors(&self) -> Result<Tensor>;

    /// How many there are.
    fn count(&self) -> usize;
}

/// The place before the tokens. What stands there can be replaced while the model is in use.
#[derive(Debug, Default)]
pub struct Front {
    current: RwLock<Option<Arc<dyn Vectors>>>,
}

impl Front {
    /// What stands here now.
    pub fn current(&self) -> Option<Arc<dyn Vectors>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many vectors stand here.
    pub fn count(&self) -> usize {
        self.current().map_or(0, |vectors| vectors.count())
    }

    /// Puts vectors here, from the next forward pass on.
    pub fn replace(&self, vectors: Arc<dyn Vectors>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(vectors);
    }

    /// Texts begin with their first token again.
    pub fn restore(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Puts the same `n` columns into every row of `x`, behind its padding on the left (`starts`).
///
/// # Shapes
/// `columns` `[n, ..]`, `x` `[b, t, ..]` -> `[b, n + t, ..]`.
pub(crate) fn insert(columns: &Tensor, x: &Tensor, starts: Option<&[usize]>) -> Result<Tensor> {
    if columns.rank() + 1 != x.rank() || columns.dims()[1..] != x.dims()[2..] {
        return Err(Error::Shape {
            origin: "what stands before the tokens".to_owned(),
            name: "a column".to_owned(),
            expected: x.dims()[2..].to_vec(),
            found: columns.dims()[1..].to_vec(),
        });
    }
    let (b, t) = (x.dim(0)?, x.dim(1)?);
    let columns = columns.to_dtype(x.dtype())?.unsqueeze(0)?;
    let Some(starts) = starts.filter(|starts| starts.iter().any(|start| *start > 0)) else {
        let mut shape = x.dims().to_vec();
        shape[1] = columns.dim(1)?;
        // [1, n, ..] -> [b, n, ..]
        return Ok(Tensor::cat(
            &[&columns.broadcast_as(shape)?.contiguous()?, &x.contiguous()?],
            1,
        )?);
    };
    let mut rows = Vec::with_capacity(b);
    for (row, start) in starts.iter().enumerate() {
        let x = x.narrow(0, row, 1)?;
        let (padding, text) = (x.narrow(1, 0, *start)?, x.narrow(1, *start, t - start)?);
        rows.push(Tensor::cat(&[&padding, &columns, &text], 1)?);
    }
    Ok(Tensor::cat(&rows, 0)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn columns_stand_between_padding_and_text() {
        let x = Tensor::new(&[[[1f32], [2.], [3.]], [[4.], [5.], [6.]]], &Device::Cpu).unwrap();
        let columns = Tensor::new(&[[7f32], [8.]], &Device::Cpu).unwrap();
        let flat = |starts: Option<&[usize]>| {
            let y = insert(&columns, &x, starts).unwrap();
            assert_eq!(y.dims(), [2, 5, 1]);
            y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(flat(None), [7., 8., 1., 2., 3., 7., 8., 4., 5., 6.]);
        assert_eq!(flat(Some(&[0, 2])), [7., 8., 1., 2., 3., 4., 5., 7., 8., 6.]);
        let wide = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(insert(&wide, &x, None).unwrap_err().to_string().contains("[3]"));
    }
}
