//! Linear map whose frozen weight costs no gradient.
//!
//! Candle's own product computes a gradient for both sides and keeps them: for a frozen model that is a third of the
//! arithmetic and the size of all weights. Here the weight is part of the operation, not of the graph.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::cpu::gemm::{Mat, Start, Term, product, products, sum_of_products};
use super::cpu::{Values, uninit, values};
use super::flat;

/// See [`super::linear`].
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let shape = super::linear_shape(x, w)?;
    let x = x.contiguous()?;
    if w.track_op() || bias.is_some_and(Tensor::track_op) {
        // A trained bias is added by candle: its gradient is a sum over rows.
        let y = x.apply_op2(&w.contiguous()?, Trained { shape })?;
        return match bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        };
    }
    let op = Frozen { w: w.contiguous()?, bias: bias.map(Tensor::contiguous).transpose()?, shape };
    if x.track_op() { x.apply_op1(op) } else { x.apply_op1_no_bwd(&op) }
}

struct Frozen {
    w: Tensor,
    bias: Option<Tensor>,
    shape: Shape,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "linear-frozen"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _time = super::profile::time("linear forward");
        let (out, inp) = self.w.dims2()?;
        let x = values(x, layout)?;
        let w = Values::of(&self.w)?;
        let bias = self.bias.as_ref().map(Values::of).transpose()?;
        let term = Term { a: Mat::new(x, x.len() / inp, inp), b: Mat::new(&w, out, inp).t(), alpha: 1. };
        let y = sum_of_products(&[term], bias.as_deref());
        Ok((CpuStorage::F32(y), self.shape.clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let _time = super::profile::time("linear backward");
        if !x.track_op() {
            return Ok(None);
        }
        input_gradient(x, &self.w, dy).map(Some)
    }
}

/// `dx = dy · w`
fn input_gradient(x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (out, inp) = w.dims2()?;
    let dy = flat(dy)?;
    let (dy, w) = (Values::of(&dy)?, Values::of(w)?);
    let dx = product(Mat::new(&dy, dy.len() / out, out), Mat::new(&w, out, inp));
    Tensor::from_vec(dx, x.shape(), x.device())
}

struct Trained {
    shape: Shape,
}

impl CustomOp2 for Trained {
    fn name(&self) -> &'static str {
        "linear-trained"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _time = super::profile::time("linear forward");
        let (out, inp) = lw.shape().dims2()?;
        let (x, w) = (values(x, lx)?, values(w, lw)?);
        let y = product(Mat::new(x, x.len() / inp, inp), Mat::new(w, out, inp).t());
        Ok((CpuStorage::F32(y), self.shape.clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _time = super::profile::time("linear backward");
        let dx = if x.track_op() { Some(input_gradient(x, w, dy)?) } else { None };
        let dw = if w.track_op() {
            let (out, inp) = w.dims2()?;
            let dy = flat(dy)?;
            let (dy, x) = (Values::of(&dy)?, Values::of(x)?);
            let n = dy.len() / out;
            // dw = dyᵀ · x
            let dw = product(Mat::new(&dy, n, out).t(), Mat::new(&x, n, inp));
            Some(Tensor::from_vec(dw, (out, inp), w.device())?)
        } else {
            None
        };
        Ok((dx, dw))
    }
}

/// A frozen linear map with a low-rank correction, see [`super::lora_linear`].
pub fn lora_linear(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
    dropout_mask: Option<&Tensor>,
) -> Result<Tensor> {
    let op = Lora {
        w: w.detach().contiguous()?,
        bias: bias.map(|bias| bias.detach().contiguous()).transpose()?,
        mask: dropout_mask.map(|mask| mask.detach().contiguous()).transpose()?,
        scale: scale as f32,
        shape: super::linear_shape(x, w)?,
    };
    let (x, a, b) = (x.contiguous()?, a.contiguous()?, b.contiguous()?);
    if x.track_op() || a.track_op() || b.track_op() {
        x.apply_op3(&a, &b, op)
    } else {
        x.apply_op3_no_bwd(&a, &b, &op)
    }
}

/// `y = x·wᵀ + bias + s·(x∘mask)·aᵀ·bᵀ`: the low-rank product joins the base product as more depth of the same
/// tiles. `u = (x∘mask)·aᵀ` is computed again in the backward pass (`r/out` of the work) rather than kept.
struct Lora {
    w: Tensor,
    bias: Option<Tensor>,
    mask: Option<Tensor>,
    scale: f32,
    shape: Shape,
}

impl Lora {
    /// `x ∘ mask`, or nothing where there is no mask.
    fn masked(&self, x: &[f32]) -> Result<Option<Vec<f32>>> {
        let Some(mask) = &self.mask else { return Ok(None) };
        let mask = Values::of(mask)?;
        // SAFETY: `multiply` writes every element.
        let mut out = unsafe { uninit(x.len()) };
        super::cpu::multiply(&mut out, x, &mask);
        Ok(Some(out))
    }
}

impl CustomOp3 for Lora {
    fn name(&self) -> &'static str {
        "linear-lora"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _time = super::profile::time("lora_linear forward");
        let (out, inp) = self.w.dims2()?;
        let r = la.dims()[0];
        let (x, a, b) = (values(x, lx)?, values(a, la)?, values(b, lb)?);
        let n = x.len() / inp;
        let w = Values::of(&self.w)?;
        let bias = self.bias.as_ref().map(Values::of).transpose()?;
        let masked = self.masked(x)?;
        let u = product(Mat::new(masked.as_deref().unwrap_or(x), n, inp), Mat::new(a, r, inp).t());
        let terms = [
            Term { a: Mat::new(x, n, inp), b: Mat::new(&w, out, inp).t(), alpha: 1. },
            Term { a: Mat::new(&u, n, r), b: Mat::new(b, out, r).t(), alpha: self.scale },
        ];
        let y = sum_of_products(&terms, bias.as_deref());
        Ok((CpuStorage::F32(y), self.shape.clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _time = super::profile::time("lora_linear backward");
        let (out, inp) = self.w.dims2()?;
        let r = a.dim(0)?;
        let dy = flat(dy)?;
        let (dy, xs, av, bv) = (Values::of(&dy)?, Values::of(x)?, Values::of(a)?, Values::of(b)?);
        let n = dy.len() / out;
        let dy = Mat::new(&dy, n, out);
        let masked = self.masked(&xs)?;
        let input = Mat::new(masked.as_deref().unwrap_or(&xs), n, inp);
        // du = s · dy · b
        let du = sum_of_products(&[Term { a: dy, b: Mat::new(&bv, out, r), alpha: self.scale }], None);
        let du = Mat::new(&du, n, r);
        let dx = if x.track_op() {
            let w = Values::of(&self.w)?;
            let base = Term { a: dy, b: Mat::new(&w, out, inp), alpha: 1. };
            let low = Term { a: du, b: Mat::new(&av, r, inp), alpha: 1. };
            let dx = match &self.mask {
                None => sum_of_products(&[base, low], None),
                Some(mask) => {
                    let mut dx = sum_of_products(&[low], None);
                    let mask = Values::of(mask)?;
                    super::cpu::multiply_in_place(&mut dx, &mask);
                    products(&mut dx, &[base], Start::Accumulate);
                    dx
                }
            };
            Some(Tensor::from_vec(dx, x.shape(), x.device())?)
        } else {
            None
        };
        let da = if a.track_op() {
            // da = duᵀ · (x ∘ mask)
            Some(Tensor::from_vec(product(du.t(), input), (r, inp), a.device())?)
        } else {
            None
        };
        let db = if b.track_op() {
            let u = product(input, Mat::new(&av, r, inp).t());
            // dbᵀ = s · uᵀ · dy, then turned: read so, dy is streamed along its rows.
            let turned =
                sum_of_products(&[Term { a: Mat::new(&u, n, r).t(), b: dy, alpha: self.scale }], None);
            let mut db = vec![0.; out * r];
            for (i, row) in db.chunks_exact_mut(r).enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value = turned[j * out + i];
                }
            }
            Some(Tensor::from_vec(db, (out, r), b.device())?)
        } else {
            None
        };
        Ok((dx, da, db))
    }
}
