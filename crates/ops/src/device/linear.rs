//! Linear maps, plain and with a low-rank correction. A frozen weight is part of the node, so its
//! gradient is never computed; a trained one may be an f32 master of bf16 activations: it is cast
//! on the way in, and its gradient comes back in its own type.

use candle_core::{DType, Result, Tensor};

use super::node::{Composed, node};
use crate::Matrix;
use crate::{cuda, linear_shape, profile};

/// See [`crate::linear`].
pub fn linear(x: &Tensor, w: impl Into<Matrix>, bias: Option<&Tensor>) -> Result<Tensor> {
    let w = &w.into();
    let y = {
        let _time = profile::time("linear", "forward");
        product(&x.detach(), &w.detach(), bias.map(Tensor::detach).as_ref())?
    };
    let mut inputs = vec![x];
    let frozen = if w.track_op() { None } else { Some(w.clone()) };
    if let Matrix::Plain(w) = w {
        inputs.extend(w.track_op().then_some(w));
    }
    inputs.extend(bias.filter(|bias| bias.track_op()));
    let trained_bias = bias.is_some_and(Tensor::track_op);
    node(Linear { frozen, trained_bias }, &inputs, y)
}

/// `x · wᵀ + bias` in the type of `x`.
fn product(x: &Tensor, w: &Matrix, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = flat(x, w.dims2()?.1)?.matmul(&w.tensor_as(x.dtype())?.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(&bias.to_dtype(x.dtype())?)?,
        None => y,
    };
    y.reshape(linear_shape(x, w.dims())?)
}

/// `[.., width]` -> `[n, width]`
fn flat(x: &Tensor, width: usize) -> Result<Tensor> {
    x.detach().reshape(((), width))
}

struct Linear {
    /// The weight, unless it is the second input.
    frozen: Option<Matrix>,
    /// Whether the last input is the bias.
    trained_bias: bool,
}

impl Composed for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let x = &inputs[0];
        let w = match &self.frozen {
            Some(w) => w.clone(),
            None => Matrix::from(&inputs[inputs.len() - 1 - usize::from(self.trained_bias)]),
        };
        let (out, inp) = w.dims2()?;
        let dy = flat(dy, out)?;
        let mut found = vec![None; inputs.len()];
        if x.track_op() {
            let w = w.detach().tensor_as(dy.dtype())?;
            found[0] = Some(dy.matmul(&w)?.reshape(x.shape())?);
        }
        if self.frozen.is_none() {
            found[1] = Some(weight_gradient(&dy, &flat(x, inp)?)?.to_dtype(w.dtype())?);
        }
        if self.trained_bias {
            let last = inputs.len() - 1;
            found[last] = Some(dy.to_dtype(DType::F32)?.sum(0)?.to_dtype(inputs[last].dtype())?);
        }
        Ok(found)
    }
}

/// `dyᵀ · x`: `[n, out]`, `[n, in]` -> `[out, in]`
fn weight_gradient(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    dy.t()?.matmul(x)
}

/// See [`crate::lora_linear`].
pub fn lora_linear(
    x: &Tensor,
    w: impl Into<Matrix>,
    bias: Option<&Tensor>,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
    dropout_mask: Option<&Tensor>,
) -> Result<Tensor> {
    let w = &w.into();
    let op = Lora {
        w: w.detach(),
        mask: dropout_mask.map(|mask| mask.detach().to_dtype(x.dtype())).transpose()?,
        scale,
    };
    let y = {
        let _time = profile::time("linear (LoRA)", "forward");
        let x = x.detach();
        let base = product(&x, &op.w, bias.map(Tensor::detach).as_ref())?;
        let u = (op.low(&flat(&x, a.dim(1)?)?, &cast(a, &x)?)? * scale)?;
        add_low(base.reshape(((), op.w.dims2()?.0))?, &u, &cast(b, &x)?, true)?
            .reshape(linear_shape(&x, op.w.dims())?)?
    };
    node(op, &[x, a, b], y)
}

/// A trained matrix in the type of the activations.
fn cast(matrix: &Tensor, x: &Tensor) -> Result<Tensor> {
    matrix.detach().to_dtype(x.dtype())
}

/// `sum + left · right`, with `right` read transposed or not. `sum` may be written to: nothing else
/// holds it.
fn add_low(sum: Tensor, left: &Tensor, right: &Tensor, transposed: bool) -> Result<Tensor> {
    if cuda::add_product(&sum, left, right, transposed)? {
        return Ok(sum);
    }
    let right = if transposed { right.t()? } else { right.clone() };
    sum + left.matmul(&right)?
}

struct Lora {
    w: Matrix,
    mask: Option<Tensor>,
    scale: f64,
}

impl Lora {
    /// `x ∘ mask`, `[n, in]`
    fn masked(&self, x: &Tensor) -> Result<Tensor> {
        match &self.mask {
            Some(mask) => x.mul(&mask.reshape(x.shape())?),
            None => Ok(x.clone()),
        }
    }

    /// `(x ∘ mask) · aᵀ`, `[n, r]`
    fn low(&self, x: &Tensor, a: &Tensor) -> Result<Tensor> {
        self.masked(x)?.matmul(&a.t()?)
    }
}

impl Composed for Lora {
    fn name(&self) -> &'static str {
        "linear (LoRA)"
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let [x, a, b] = inputs else { return Ok(Vec::new()) };
        let (out, inp) = self.w.dims2()?;
        let rows = flat(x, inp)?;
        let dy = flat(dy, out)?;
        let (low_a, low_b) = (cast(a, x)?, cast(b, x)?);
        // du = s · dy · b, [n, r]
        let du = (dy.matmul(&low_b)? * self.scale)?;
        let mut found = vec![None, None, None];
        if x.track_op() {
            let base = dy.matmul(&self.w.tensor_as(dy.dtype())?)?;
            let dx = match &self.mask {
                None => add_low(base, &du, &low_a, false)?,
                Some(_) => (base + self.masked(&du.matmul(&low_a)?)?)?,
            };
            found[0] = Some(dx.reshape(x.shape())?);
        }
        if a.track_op() {
            found[1] = Some(weight_gradient(&du, &self.masked(&rows)?)?.to_dtype(a.dtype())?);
        }
        if b.track_op() {
            let u = (self.low(&rows, &low_a)? * self.scale)?;
            found[2] = Some(weight_gradient(&dy, &u)?.to_dtype(b.dtype())?);
        }
        Ok(found)
    }
}
