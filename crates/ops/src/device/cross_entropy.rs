//! Cross-entropy of the output head, in chunks of rows, with the gradient computed in the forward
//! pass (as the fused form does).

use candle_core::{D, DType, Result, Tensor};

use super::node::{Composed, node};
use crate::cross_entropy::chunk_rows;
use crate::{IGNORE, cuda, profile};

/// f32 logits held at a time, of which the composition needs three. 128 MiB are 682 rows of a
/// vocabulary of 49152.
const CHUNK_BYTES: usize = 128 << 20;

/// See [`crate::cross_entropy`].
pub fn cross_entropy(hidden: &Tensor, head_w: &Tensor, labels: &[i64]) -> Result<(Tensor, usize)> {
    let (rows, targets): (Vec<u32>, Vec<u32>) = labels
        .iter()
        .enumerate()
        .filter(|&(_, &label)| label != IGNORE)
        .map(|(row, &label)| (row as u32, label as u32))
        .unzip();
    let count = rows.len();
    let want = [hidden.track_op(), head_w.track_op()];
    let (loss, gradients) = {
        let _time = profile::time("cross_entropy", "forward");
        forward(&hidden.detach(), &head_w.detach(), &rows, &targets, want)?
    };
    let inputs: &[&Tensor] = if want[1] { &[hidden, head_w] } else { &[hidden] };
    Ok((node(CrossEntropy { gradients }, inputs, loss)?, count))
}

/// The summed loss, and the gradients wanted of hidden and head_w.
fn forward(
    hidden: &Tensor,
    head_w: &Tensor,
    rows: &[u32],
    targets: &[u32],
    want: [bool; 2],
) -> Result<(Tensor, [Option<Tensor>; 2])> {
    let (device, dtype) = (hidden.device(), hidden.dtype());
    let vocab = head_w.dim(0)?;
    let head = head_w.to_dtype(dtype)?;
    let size = chunk_rows(rows.len(), vocab, CHUNK_BYTES);
    let mut loss = Tensor::zeros((), DType::F32, device)?;
    let mut dh = want[0].then(|| hidden.zeros_like()).transpose()?;
    let mut dw = want[1].then(|| Tensor::zeros(head_w.shape(), DType::F32, device)).transpose()?;
    for (rows, targets) in rows.chunks(size).zip(targets.chunks(size)) {
        let rows = Tensor::new(rows, device)?;
        let targets = Tensor::new(targets, device)?;
        // [c, hid]
        let input = hidden.index_select(&rows, 0)?;
        // [c, vocab]
        let logits = input.matmul(&head.t()?)?;
        if let Some(losses) = cuda::cross_entropy(&logits, &targets)? {
            loss = (loss + losses.sum_all()?)?;
            if let Some(sum) = &dh {
                dh = Some(sum.index_add(&rows, &logits.matmul(&head)?, 0)?);
            }
            if let Some(sum) = &dw {
                dw = Some((sum + logits.t()?.matmul(&input)?.to_dtype(DType::F32)?)?);
            }
            continue;
        }
        let logits = logits.to_dtype(DType::F32)?;
        let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        let chosen = logits.gather(&targets.unsqueeze(1)?, D::Minus1)?;
        let exponentials = logits.exp()?;
        drop(logits);
        let sums = exponentials.sum_keepdim(D::Minus1)?;
        loss = (loss + (sums.log()? - chosen)?.sum_all()?)?;
        if dh.is_none() && dw.is_none() {
            continue;
        }
        // The gradient of the logits is softmax − one-hot; the second part is a row of the head
        // (and of the input), so no one-hot is made.
        let softmax = exponentials.broadcast_div(&sums)?.to_dtype(dtype)?;
        drop(exponentials);
        if let Some(sum) = &dh {
            let gradient = (softmax.matmul(&head)? - head.index_select(&targets, 0)?)?;
            dh = Some(sum.index_add(&rows, &gradient, 0)?);
        }
        if let Some(sum) = &dw {
            let gradient = softmax.t()?.matmul(&input)?.to_dtype(DType::F32)?;
            let labelled = input.to_dtype(DType::F32)?.neg()?;
            dw = Some((sum + gradient)?.index_add(&targets, &labelled, 0)?);
        }
    }
    let dw = dw.map(|dw| dw.to_dtype(head_w.dtype())).transpose()?;
    Ok((loss, [dh, dw]))
}

struct CrossEntropy {
    /// Of hidden and head_w, from the forward pass.
    gradients: [Option<Tensor>; 2],
}

impl Composed for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, d: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let scaled = |gradient: &Option<Tensor>| match gradient {
            Some(gradient) => gradient.broadcast_mul(&d.to_dtype(gradient.dtype())?).map(Some),
            None => Ok(None),
        };
        self.gradients.iter().take(inputs.len()).map(scaled).collect()
    }
}
