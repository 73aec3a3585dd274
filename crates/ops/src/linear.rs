//! Linear map whose frozen weight costs no gradient.
//!
//! Candle's own product computes a gradient for both sides and keeps them: for a frozen model that
//! is a third of the arithmetic and the size of all weights. Here a frozen weight is part of the
//! operation, not of the graph.

use std::borrow::Cow;

use candle_core::{DType, Result, Tensor};

use crate::Matrix;
use crate::cpu::blocks::BlockMat;
use crate::cpu::gemm::{Mat, Right as Side, Term, product, sum_of_products};
use crate::cpu::half::{self, HalfMat, Right};
use crate::cpu::{HalfValues, Values, multiply, multiply_in_place, uninit};
use crate::operation::{Buffer, Operation, Slot, node};
use crate::profile;

/// See [`crate::linear`].
pub(crate) fn linear(x: &Tensor, w: &Matrix, bias: Option<&Tensor>) -> Result<Tensor> {
    let shape = crate::linear_shape(x, w.dims())?;
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    if bias.is_some_and(Tensor::track_op) {
        // A trained bias is added by candle: its gradient is a sum over rows.
        return match bias {
            Some(bias) => linear(&x, &w, None)?.broadcast_add(bias),
            None => linear(&x, &w, None),
        };
    }
    let y = {
        let _time = profile::time("linear", "forward");
        let (out, inp) = w.dims2()?;
        let bias = bias.map(Tensor::contiguous).transpose()?;
        let bias = bias.as_ref().map(Values::of).transpose()?;
        let x = Values::of(&x)?;
        times_weight(Mat::new(&x, x.len() / inp, inp), &w, (out, inp), None, bias.as_deref())?
    };
    match w {
        Matrix::Plain(w) if w.track_op() => node(Trained, &[&x, &w], y, shape),
        w => node(Frozen { w }, &[&x], y, shape),
    }
}

struct Frozen {
    w: Matrix,
}

impl Operation for Frozen {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn reads_input(&self, _: usize) -> bool {
        false
    }

    fn backward(&self, _: &[Tensor], _: &Tensor, dy: Buffer, into: &mut [Slot]) -> Result<()> {
        input_gradient(&self.w, &dy, &mut into[0])
    }
}

/// A low-rank product beside that with the weight.
#[derive(Clone, Copy)]
struct Low<'a> {
    a: Mat<'a>,
    b: Mat<'a>,
    alpha: f32,
}

/// `x · wᵀ + bias`, and a low-rank term if there is one. The weight's type decides what the
/// products are computed in.
fn times_weight(
    x: Mat,
    w: &Matrix,
    (out, inp): (usize, usize),
    low: Option<Low>,
    bias: Option<&[f32]>,
) -> Result<Vec<f32>> {
    let sum = |base: Side| {
        let base = Term { a: x, b: base, alpha: 1. };
        let low = low.map(|low| Term { a: low.a, b: low.b.into(), alpha: low.alpha });
        sum_of_products(&std::iter::once(base).chain(low).collect::<Vec<_>>(), bias)
    };
    match w {
        Matrix::Quantized(blocks) => Ok(sum(Side::Blocks(BlockMat::new(blocks).t()))),
        Matrix::Plain(w) if w.dtype() == DType::BF16 => {
            let w = HalfValues::of(w)?;
            let base =
                half::Term { a: x, b: Right::Half(HalfMat::new(&w, out, inp).t()), alpha: 1. };
            let low =
                low.map(|low| half::Term { a: low.a, b: Right::Full(low.b), alpha: low.alpha });
            let terms: Vec<_> = std::iter::once(base).chain(low).collect();
            Ok(half::sum_of_products(&terms, bias))
        }
        Matrix::Plain(w) => Ok(sum(Mat::new(&Values::of(w)?, out, inp).t().into())),
    }
}

/// `dx += dy · w`, and a low-rank term if there is one.
fn input_gradient_with(w: &Matrix, dy: Mat, low: Option<Low>, dx: &mut Slot) -> Result<()> {
    let (out, inp) = w.dims2()?;
    let mut add = |base: Side| {
        let base = Term { a: dy, b: base, alpha: 1. };
        let low = low.map(|low| Term { a: low.a, b: low.b.into(), alpha: low.alpha });
        dx.add_products(&std::iter::once(base).chain(low).collect::<Vec<_>>());
    };
    match w {
        Matrix::Quantized(blocks) => add(Side::Blocks(BlockMat::new(blocks))),
        Matrix::Plain(w) if w.dtype() == DType::BF16 => {
            let w = HalfValues::of(w)?;
            let base = half::Term { a: dy, b: Right::Half(HalfMat::new(&w, out, inp)), alpha: 1. };
            let low =
                low.map(|low| half::Term { a: low.a, b: Right::Full(low.b), alpha: low.alpha });
            dx.add_half_products(&std::iter::once(base).chain(low).collect::<Vec<_>>());
        }
        Matrix::Plain(w) => add(Mat::new(&Values::of(w)?, out, inp).into()),
    }
    Ok(())
}

/// `dx += dy · w`
fn input_gradient(w: &Matrix, dy: &[f32], dx: &mut Slot) -> Result<()> {
    if dx.wanted() {
        let out = w.dims2()?.0;
        input_gradient_with(w, Mat::new(dy, dy.len() / out, out), None, dx)?;
    }
    Ok(())
}

struct Trained;

impl Operation for Trained {
    fn name(&self) -> &'static str {
        "linear (trained)"
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: Buffer, into: &mut [Slot]) -> Result<()> {
        let [x, w] = inputs else { return Ok(()) };
        input_gradient(&w.into(), &dy, &mut into[0])?;
        if into[1].wanted() {
            let (out, inp) = w.dims2()?;
            let x = Values::of(x)?;
            let n = dy.len() / out;
            // dw += dyᵀ · x
            into[1].add_products(&[Term {
                a: Mat::new(&dy, n, out).t(),
                b: Mat::new(&x, n, inp).into(),
                alpha: 1.,
            }]);
        }
        Ok(())
    }
}

/// A frozen linear map with a low-rank correction, see [`crate::lora_linear`].
pub(crate) fn lora_linear(
    x: &Tensor,
    w: &Matrix,
    bias: Option<&Tensor>,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
    dropout_mask: Option<&Tensor>,
) -> Result<Tensor> {
    let shape = crate::linear_shape(x, w.dims())?;
    let (x, a, b) = (x.contiguous()?, a.contiguous()?, b.contiguous()?);
    let bias = bias.map(|bias| bias.detach().contiguous()).transpose()?;
    let op = Lora {
        w: w.detach().contiguous()?,
        mask: dropout_mask.map(|mask| mask.detach().contiguous()).transpose()?,
        scale: scale as f32,
    };
    let y = op.forward(&Values::of(&x)?, bias.as_ref(), &a, &Values::of(&b)?)?;
    node(op, &[&x, &a, &b], y, shape)
}

/// `y = x·wᵀ + bias + s·(x∘mask)·aᵀ·bᵀ`: the low-rank product joins the base product as more depth
/// of the same tiles. `u = (x∘mask)·aᵀ` is computed again in the backward pass (`r/out` of the
/// work) rather than kept.
struct Lora {
    w: Matrix,
    mask: Option<Tensor>,
    scale: f32,
}

impl Lora {
    /// `x ∘ mask`
    fn masked<'a>(&self, x: &'a [f32]) -> Result<Cow<'a, [f32]>> {
        let Some(mask) = &self.mask else { return Ok(Cow::Borrowed(x)) };
        let mask = Values::of(mask)?;
        // SAFETY: `multiply` writes every element.
        let mut out = unsafe { uninit(x.len()) };
        multiply(&mut out, x, &mask);
        Ok(Cow::Owned(out))
    }

    fn forward(&self, x: &[f32], bias: Option<&Tensor>, a: &Tensor, b: &[f32]) -> Result<Vec<f32>> {
        let _time = profile::time("linear (LoRA)", "forward");
        let (out, inp) = self.w.dims2()?;
        let (n, r) = (x.len() / inp, a.dim(0)?);
        let bias = bias.map(Values::of).transpose()?;
        let u = product(Mat::new(&self.masked(x)?, n, inp), Mat::new(&Values::of(a)?, r, inp).t());
        let low = Low { a: Mat::new(&u, n, r), b: Mat::new(b, out, r).t(), alpha: self.scale };
        times_weight(Mat::new(x, n, inp), &self.w, (out, inp), Some(low), bias.as_deref())
    }
}

impl Operation for Lora {
    fn name(&self) -> &'static str {
        "linear (LoRA)"
    }

    fn reads_input(&self, _: usize) -> bool {
        true
    }

    fn backward(&self, inputs: &[Tensor], _: &Tensor, dy: Buffer, into: &mut [Slot]) -> Result<()> {
        let ([x, a, b], [dx, da, db]) = (inputs, into) else { return Ok(()) };
        let (out, inp) = self.w.dims2()?;
        let r = a.dim(0)?;
        let (x, a, b) = (Values::of(x)?, Values::of(a)?, Values::of(b)?);
        let n = dy.len() / out;
        let dy = Mat::new(&dy, n, out);
        let masked = self.masked(&x)?;
        let input = Mat::new(&masked, n, inp);
        // du = s · dy · b
        let du = sum_of_products(
            &[Term { a: dy, b: Mat::new(&b, out, r).into(), alpha: self.scale }],
            None,
        );
        let du = Mat::new(&du, n, r);
        if dx.wanted() {
            let low = Low { a: du, b: Mat::new(&a, r, inp), alpha: 1. };
            match &self.mask {
                None => input_gradient_with(&self.w, dy, Some(low), dx)?,
                Some(mask) => {
                    let low = Term { a: low.a, b: low.b.into(), alpha: low.alpha };
                    let mut gradient = sum_of_products(&[low], None);
                    multiply_in_place(&mut gradient, &Values::of(mask)?);
                    dx.add(gradient);
                    input_gradient_with(&self.w, dy, None, dx)?;
                }
            }
        }
        if da.wanted() {
            // da += duᵀ · (x ∘ mask)
            da.add_products(&[Term { a: du.t(), b: input.into(), alpha: 1. }]);
        }
        if db.wanted() {
            let u = product(input, Mat::new(&a, r, inp).t());
            // dbᵀ = s · uᵀ · dy, then turned: read so, dy is streamed along its rows.
            let turned = sum_of_products(
                &[Term { a: Mat::new(&u, n, r).t(), b: dy.into(), alpha: self.scale }],
                None,
            );
            let mut gradient = vec![0.; out * r];
            for (i, row) in gradient.chunks_exact_mut(r).enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = turned[j * out + i];
                }
            }
            db.add(gradient);
        }
        Ok(())
    }
}
