//! Rotary embedding by candle's own kernel; the backward pass turns the other way.

use candle_core::{Result, Tensor, bail};
use candle_nn::rotary_emb::rope_thd;

use super::node::{Composed, node};
use crate::{cuda, profile};

/// See [`crate::rope`]. Whether the positions lie within the angles is not looked at: they
/// would have to come to the host.
pub fn rope(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    positions: &Tensor,
    shape: [usize; 4],
) -> Result<Tensor> {
    let _time = profile::time("rope", "forward");
    let turned = x.detach().reshape(&shape[..])?.contiguous()?;
    if let Some(y) = cuda::rope(&turned, cos, sin, positions, 1.)? {
        let op = Turned { cos: cos.detach(), sin: sin.detach(), positions: positions.clone() };
        return node(op, &[x], y);
    }
    let rows = positions.flatten_all()?;
    let half = cos.dim(1)?;
    // [max, d/2] -> [b, t, d/2]
    let select = |angles: &Tensor| {
        angles
            .detach()
            .index_select(&rows, 0)?
            .reshape((shape[0], shape[1], half))?
            .to_dtype(x.dtype())
    };
    let op = Rope { cos: select(cos)?, sin: select(sin)?, shape };
    let y = op.turn(&x.detach(), &op.sin)?;
    node(op, &[x], y)
}

/// The same by a kernel of ours, which reads the angles itself.
struct Turned {
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
}

impl Composed for Turned {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dx = cuda::rope(dy, &self.cos, &self.sin, &self.positions, -1.)?;
        dx.map(|dx| Ok(vec![Some(dx.reshape(inputs[0].shape())?)])).unwrap_or_else(|| {
            bail!("rope: the kernels were switched off between the forward and the backward pass")
        })
    }
}

struct Rope {
    cos: Tensor,
    sin: Tensor,
    /// `[b, t, h, d]`
    shape: [usize; 4],
}

impl Rope {
    fn turn(&self, x: &Tensor, sin: &Tensor) -> Result<Tensor> {
        rope_thd(&x.reshape(&self.shape[..])?.contiguous()?, &self.cos, sin)
    }
}

impl Composed for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dx = self.turn(dy, &self.sin.neg()?)?;
        Ok(vec![Some(dx.reshape(inputs[0].shape())?)])
    }
}
