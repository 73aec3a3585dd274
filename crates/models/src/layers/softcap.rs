//! What Gemma does to its logits: `l` becomes `c · tanh(l / c)`.

use candle_core::{D, DType, Tensor};

use crate::error::Result;
use tunebook_ops as ops;
use tunebook_ops::Matrix;

/// Logits after the bound, if there is one.
pub(crate) fn softcapped(logits: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        None => Ok(logits),
        Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
    }
}

/// As [`ops::cross_entropy`], with bounded logits. The logits of all labelled rows are in memory at
/// once.
pub(crate) fn softcapped_cross_entropy(
    hidden: &Tensor,
    head: &Matrix,
    labels: &[i64],
    cap: f64,
) -> Result<(Tensor, usize)> {
    let labelled: Vec<usize> = labels
        .iter()
        .enumerate()
        .filter(|(_, label)| **label != ops::IGNORE)
        .map(|(row, _)| row)
        .collect();
    let count = labelled.len();
    let vocab = head.dims2()?.0;
    let targets: Vec<u32> = labelled.iter().map(|row| labels[*row] as u32).collect();
    if count == 0
        || hidden.dim(0)? != labels.len()
        || targets.iter().any(|target| *target as usize >= vocab)
    {
        // Nothing to bound, or an error that is told there.
        return Ok(ops::cross_entropy(hidden, head, labels)?);
    }
    let rows: Vec<u32> = labelled.iter().map(|row| *row as u32).collect();
    let rows = Tensor::from_vec(rows, count, hidden.device())?;
    let targets = Tensor::from_vec(targets, (count, 1), hidden.device())?;
    let logits = ops::linear(&hidden.index_select(&rows, 0)?, head, None)?;
    let logits = softcapped(logits.to_dtype(DType::F32)?, Some(cap))?;
    // No logit exceeds the bound, so the exponentials need no maximum taken off.
    let log_sum = (logits - cap)?;
    let chosen = log_sum.gather(&targets, D::Minus1)?;
    let log_sum = log_sum.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok(((log_sum - chosen)?.sum_all()?, count))
}
