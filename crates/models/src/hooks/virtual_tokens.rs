//! Vectors that stand before the tokens of every text, as if they were embeddings of tokens.
//!
//! A decoder does not know what they are for (a soft prompt, <https://arxiv.org/abs/2104.08691>).
//! They count as positions: the first token of the text comes after them, and every token sees
//! them. In a batch that is padded on the left they stand between padding and text.

use std::fmt;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::pass::{Mode, Pass};

/// Gives the vectors, anew in each forward pass, so that they may be part of the graph.
pub trait VirtualTokens: Send + Sync + fmt::Debug {
    /// `[n, hid]`
    ///
    /// # Errors
    /// What computing them fails with.
    fn vectors(&self, mode: Mode) -> Result<Tensor>;

    /// How many there are.
    fn count(&self) -> usize;
}

/// Puts each row's virtual tokens before its text, so that all texts begin in the same column as
/// before, moved by the largest number of virtual tokens. Rows that have fewer get padding.
///
/// # Shapes
/// `x` `[b, t, hid]` -> `[b, n + t, hid]`.
pub(crate) fn put(x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
    let (snapshot, mode) = (pass.snapshot(), pass.mode());
    let starts = pass.positions().starts();
    if snapshot.mixed().is_none() {
        return match snapshot.first().virtual_tokens() {
            Some(tokens) => insert(&tokens.vectors(mode)?, x, starts),
            None => Ok(x.clone()),
        };
    }
    let n = snapshot.virtual_count();
    if n == 0 {
        return Ok(x.clone());
    }
    let missing = snapshot.missing(x.dim(0)?);
    let mut rows = Vec::with_capacity(missing.len());
    for (row, missing) in missing.iter().enumerate() {
        let columns = match snapshot.row(row).virtual_tokens() {
            Some(tokens) => Some(tokens.vectors(mode)?),
            None => None,
        };
        let padding = starts.map_or(0, |starts| starts[row] - missing);
        rows.push(insert_row(columns.as_ref(), &x.narrow(0, row, 1)?, padding, n)?);
    }
    Ok(Tensor::cat(&rows, 0)?)
}

/// Puts the same `n` columns into every row of `x`, behind its padding on the left (`starts`).
///
/// # Shapes
/// `columns` `[n, ..]`, `x` `[b, t, ..]` -> `[b, n + t, ..]`.
pub(crate) fn insert(columns: &Tensor, x: &Tensor, starts: Option<&[usize]>) -> Result<Tensor> {
    check(columns, x)?;
    let n = columns.dim(0)?;
    let Some(starts) = starts.filter(|starts| starts.iter().any(|start| *start > 0)) else {
        let mut shape = x.dims().to_vec();
        shape[1] = n;
        let columns = columns.to_dtype(x.dtype())?.unsqueeze(0)?;
        // [1, n, ..] -> [b, n, ..]
        return Ok(Tensor::cat(
            &[&columns.broadcast_as(shape)?.contiguous()?, &x.contiguous()?],
            1,
        )?);
    };
    let row =
        |(row, start): (usize, &usize)| insert_row(Some(columns), &x.narrow(0, row, 1)?, *start, n);
    let rows: Vec<Tensor> = starts.iter().enumerate().map(row).collect::<Result<_>>()?;
    Ok(Tensor::cat(&rows, 0)?)
}

/// Puts `n` columns into one row, behind its padding on the left: the given ones, and before them
/// as much padding as they are fewer.
///
/// # Shapes
/// `columns` `[at most n, ..]`, `x` `[1, t, ..]` -> `[1, n + t, ..]`.
pub(crate) fn insert_row(
    columns: Option<&Tensor>,
    x: &Tensor,
    padding: usize,
    n: usize,
) -> Result<Tensor> {
    let t = x.dim(1)?;
    let mut parts = vec![x.narrow(1, 0, padding)?];
    let given = columns.map_or(Ok(0), |columns| columns.dim(0))?;
    if given < n {
        let mut shape = x.dims().to_vec();
        shape[1] = n - given;
        parts.push(Tensor::zeros(shape, x.dtype(), x.device())?);
    }
    if let Some(columns) = columns {
        check(columns, x)?;
        parts.push(columns.to_dtype(x.dtype())?.unsqueeze(0)?);
    }
    parts.push(x.narrow(1, padding, t - padding)?);
    Ok(Tensor::cat(&parts, 1)?)
}

fn check(columns: &Tensor, x: &Tensor) -> Result<()> {
    if columns.rank() + 1 == x.rank() && columns.dims()[1..] == x.dims()[2..] {
        return Ok(());
    }
    Err(Error::Shape {
        origin: "what stands before the tokens".to_owned(),
        name: "a column".to_owned(),
        expected: x.dims()[2..].to_vec(),
        found: columns.dims()[1..].to_vec(),
    })
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

    #[test]
    fn a_row_with_fewer_columns_is_padded_before_them() {
        let x = Tensor::new(&[[[1f32], [2.], [3.]]], &Device::Cpu).unwrap();
        let columns = Tensor::new(&[[7f32]], &Device::Cpu).unwrap();
        let y = insert_row(Some(&columns), &x, 1, 3).unwrap();
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1., 0., 0., 7., 2., 3.]);
    }
}
