//! Linear map whose frozen weight costs no gradient.
//!
//! Candle's own product computes a gradient for both sides and keeps them: for a frozen model that
//! is a third of the arithmetic and the size of all weights. Here a frozen weight is part of the
//! operation, not of the graph.

use std::borrow::Cow;

use candle_core::{DType, Result, Tensor};

use crate::Matrix;
use crate::cpu::blocks::BlockMat;
use crate::cpu::gemm::{self, Mat, Right as Side, Start, Term, product, sum_of_products};
use crate::cpu::gemv::{Weights, gemv};
use crate::cpu::half::{self, HalfMat, Right};
use crate::cpu::{HalfValues, Values, multiply, multiply_in_place, uninit};
use crate::operation::{Buffer, Operation, Slot, constant, node};
use crate::{Rows, profile};

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
        let m = x.len() / inp.max(1);
        match Rows::current() {
            Rows::Any => times_weight(Mat::new(&x, m, inp), &w, (out, inp), None, bias.as_deref())?,
            rows => row_by_row(&x, &w, (m, out, inp), rows, bias.as_deref())?,
        }
    };
    match w {
        Matrix::Plain(w) if w.track_op() => node(Trained, &[&x, &w], y, shape),
        w => node(Frozen { w }, &[&x], y, shape),
    }
}

/// `x · wᵀ + bias`, each row the same bits whichever rows are computed with it.
fn row_by_row(
    x: &[f32],
    w: &Matrix,
    (m, n, k): (usize, usize, usize),
    rows: Rows,
    bias: Option<&[f32]>,
) -> Result<Vec<f32>> {
    // SAFETY: both kernels write every element.
    let mut y = unsafe { uninit(m * n) };
    let start = bias.map_or(Start::Zero, Start::Bias);
    let many = rows != Rows::Decode;
    let left = Mat::new(x, m, k);
    match w {
        Matrix::Quantized(blocks) => {
            let blocks_t = BlockMat::new(blocks).t();
            let term = Term { a: left, b: Side::Blocks(blocks_t), alpha: 1. };
            let rounded = half::Term { a: left, b: Right::Blocks(blocks_t), alpha: 1. };
            let done = (rows == Rows::Prefill
                && half::products_by_panels(&mut y, &[rounded], start))
                || (many && gemm::products_by_panels(&mut y, &[term], start));
            if !done {
                gemv(&mut y, x, Weights::Blocks(blocks), (m, n, k), bias);
            }
        }
        Matrix::Plain(w) if w.dtype() == DType::BF16 => {
            let w = HalfValues::of(w)?;
            let right = Right::Half(HalfMat::new(&w, n, k).t());
            let term = half::Term { a: left, b: right, alpha: 1. };
            if !(many && half::products_by_panels(&mut y, &[term], start)) {
                gemv(&mut y, x, Weights::Half(&w), (m, n, k), bias);
            }
        }
        Matrix::Plain(w) => {
            let w = Values::of(w)?;
            let term = Term { a: left, b: Mat::new(&w, n, k).t().into(), alpha: 1. };
            if !(many && gemm::products_by_panels(&mut y, &[term], start)) {
                gemv(&mut y, x, Weights::Full(&w), (m, n, k), bias);
            }
        }
    }
    Ok(y)
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

/// One low-rank product: `scale · x · aᵀ · bᵀ`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[r, in]`
    pub a: Tensor,
    /// `[out, r]`
    pub b: Tensor,
    /// Factor on the product.
    pub scale: f64,
}

/// See [`crate::add_low_rank`].
pub(crate) fn add_low_rank(
    x: &Tensor,
    y: &Tensor,
    parts: &[(Option<&[u32]>, &[LowRank])],
) -> Result<Tensor> {
    let _time = profile::time("linear (low rank)", "forward");
    let (x, y) = (x.contiguous()?, y.contiguous()?);
    let shape = y.shape().clone();
    let rows = y.dim(0)?;
    let (x, mut sum) = (Values::of(&x)?, Values::of(&y)?.to_vec());
    let (inp, out) = (x.len() / rows.max(1), sum.len() / rows.max(1));
    for (chosen, low) in parts {
        let part: Cow<'_, [f32]> = match chosen {
            None => Cow::Borrowed(&x),
            Some(chosen) => {
                let row = |row: &u32| &x[*row as usize * inp..(*row as usize + 1) * inp];
                Cow::Owned(chosen.iter().flat_map(row).copied().collect())
            }
        };
        for LowRank { a, b, scale } in *low {
            let ((r, k), n) = (a.dims2()?, b.dim(0)?);
            let (a, b) = (a.contiguous()?, b.contiguous()?);
            let m = part.len() / k.max(1);
            // SAFETY: both are written whole.
            let (mut u, mut d) = unsafe { (uninit(m * r), uninit(m * n)) };
            gemv(&mut u, &part, Weights::Full(&Values::of(&a)?), (m, r, k), None);
            gemv(&mut d, &u, Weights::Full(&Values::of(&b)?), (m, n, r), None);
            let scale = *scale as f32;
            let all = 0..rows as u32;
            let places = chosen.map_or_else(|| all.collect(), <[u32]>::to_vec);
            for (place, d) in places.iter().zip(d.chunks_exact(out.max(1))) {
                let place = *place as usize * out;
                for (y, d) in sum[place..place + out].iter_mut().zip(d) {
                    *y += d * scale;
                }
            }
        }
    }
    constant(sum, shape)
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
    if Rows::current() != Rows::Any && dropout_mask.is_none() {
        let y = linear(x, w, bias)?;
        let low = LowRank { a: a.detach(), b: b.detach(), scale };
        let (_, width) = a.dims2()?;
        // [.., in] -> [n, in]
        let (rows, out) = (x.reshape(((), width))?, y.dims().last().copied().unwrap_or(0));
        return add_low_rank(&rows, &y.reshape(((), out))?, &[(None, &[low])])?.reshape(y.shape());
    }
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

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::Quantized;

    fn tensor(rows: usize, cols: usize, seed: usize) -> Tensor {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.;
        Tensor::from_vec((0..rows * cols).map(value).collect(), (rows, cols), &Device::Cpu).unwrap()
    }

    fn rows(x: &Tensor) -> Vec<Vec<f32>> {
        x.to_vec2().unwrap()
    }

    /// Each row of a prompt and of a decoding step by itself, and among others.
    #[test]
    fn rows_of_texts_do_not_depend_on_each_other() {
        if crate::device::forced() {
            // Other devices promise nothing of the kind.
            return;
        }
        let (x, w) = (tensor(70, 96, 1), tensor(80, 96, 2));
        let weights: [Matrix; 3] = [
            w.clone().into(),
            w.to_dtype(DType::BF16).unwrap().into(),
            Quantized::ggml(&w, GgmlDType::Q4_1).unwrap().into(),
        ];
        let (a, b) = (tensor(8, 96, 3), tensor(80, 8, 4));
        let low = [LowRank { a: a.clone(), b: b.clone(), scale: 0.5 }];
        for (w, kind) in weights
            .iter()
            .flat_map(|w| [Rows::Prefill, Rows::Decode, Rows::Score].map(|kind| (w, kind)))
        {
            let compute = |x: &Tensor| {
                kind.during(|| {
                    let y = crate::linear(x, w, None).unwrap();
                    let lora = crate::lora_linear(x, w, None, &a, &b, 0.5, None).unwrap();
                    let sum = crate::add_low_rank(x, &y, &[(None, &low)]).unwrap().unwrap();
                    assert_eq!(rows(&lora), rows(&sum), "one operation or two");
                    sum
                })
            };
            let together = rows(&compute(&x));
            for (row, expected) in together.iter().enumerate() {
                let one = compute(&x.narrow(0, row, 1).unwrap());
                assert_eq!(&rows(&one)[0], expected, "{kind:?}, row {row}");
            }
            let any = crate::lora_linear(&x, w, None, &a, &b, 0.5, None).unwrap();
            for (x, y) in together.iter().flatten().zip(rows(&any).iter().flatten()) {
                assert!((x - y).abs() < 0.2, "{x} {y}");
            }
        }
    }

    #[test]
    fn some_rows_get_their_own_low_rank_product() {
        if crate::device::forced() {
            // It has no composed form.
            return;
        }
        let (x, y) = (tensor(3, 4, 1), tensor(3, 5, 2));
        let low = |seed| LowRank { a: tensor(2, 4, seed), b: tensor(5, 2, seed + 1), scale: 2. };
        let (first, second) = ([low(3)], [low(5), low(7)]);
        let sum = crate::add_low_rank(&x, &y, &[(Some(&[2]), &first), (Some(&[0]), &second)]);
        let sum = rows(&sum.unwrap().unwrap());
        let expected = |row: usize, low: &[LowRank]| {
            let (x, y) = (x.narrow(0, row, 1).unwrap(), y.narrow(0, row, 1).unwrap());
            rows(&crate::add_low_rank(&x, &y, &[(None, low)]).unwrap().unwrap()).remove(0)
        };
        assert_eq!(sum, [expected(0, &second), rows(&y)[1].clone(), expected(2, &first)]);
        let wrong = crate::add_low_rank(&y, &y, &[(None, &first)]).unwrap_err().to_string();
        assert!(wrong.contains("expected x [.., 4]"), "{wrong}");
    }
}
