//! Every operation on a device, composed or by the kernels of this module, against the plain form
//! in f32 on the CPU: value and gradients, in every number type. The tests run them on the CPU and,
//! where there is one, on a GPU; the GPU kit (`cargo xtask gpu-kit`) takes them to machines that
//! have one.

use candle_core::{DType, Device, Result, Tensor, Var, bail};

use super::proven::Kernel;
use crate::{
    Attention, Gate, Tape, add, attention, cross_entropy, gated, layer_norm, linear, lora_linear,
    naive, rms_norm, rope,
};

/// The number types of activations.
pub const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// One operation.
#[derive(Clone, Copy)]
pub struct Check {
    /// The operation, and what is special about its inputs.
    pub name: &'static str,
    /// The kernel that it has.
    pub kernel: Option<Kernel>,
    run: fn(&Place) -> Result<Vec<Difference>>,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A value or gradient beside the right one.
#[derive(Clone, Debug)]
pub struct Difference {
    /// `value`, or `gradient` with the input's number.
    pub of: String,
    /// As [`difference`] has it, NaN where a number is none.
    pub found: f32,
    /// How large it may be.
    pub allowed: f32,
}

impl Difference {
    /// Whether it is small enough; a NaN never is.
    pub fn is_small(&self) -> bool {
        self.found <= self.allowed
    }
}

/// Where, and in what type.
struct Place {
    device: Device,
    dtype: DType,
}

/// All operations.
pub const CHECKS: &[Check] = &[
    Check { name: "linear, frozen", kernel: None, run: frozen_linear },
    Check { name: "linear, trained", kernel: None, run: trained_linear },
    Check { name: "lora_linear", kernel: Some(Kernel::LowRank), run: low_rank },
    Check { name: "add", kernel: None, run: sum },
    Check { name: "rms_norm", kernel: Some(Kernel::RmsNorm), run: root_mean_square },
    Check { name: "layer_norm", kernel: Some(Kernel::LayerNorm), run: layer },
    Check { name: "gated, SiLU", kernel: Some(Kernel::Gated), run: |p| activation(p, Gate::Silu) },
    Check { name: "gated, GELU", kernel: Some(Kernel::Gated), run: |p| activation(p, Gate::Gelu) },
    Check {
        name: "gated, GELU by tanh",
        kernel: Some(Kernel::Gated),
        run: |p| activation(p, Gate::GeluTanh),
    },
    Check { name: "rope", kernel: Some(Kernel::Rope), run: rotation },
    Check {
        name: "cross_entropy, 30 x 48",
        kernel: Some(Kernel::CrossEntropy),
        run: |p| loss(p, 30, 48),
    },
    Check {
        name: "cross_entropy, 700 x 1000",
        kernel: Some(Kernel::CrossEntropy),
        run: |p| loss(p, 700, 1000),
    },
    Check {
        name: "attention, groups of heads",
        kernel: Some(Kernel::Attention),
        run: |p| attend(p, 0),
    },
    Check {
        name: "attention, padding and a past",
        kernel: Some(Kernel::Attention),
        run: |p| attend(p, 1),
    },
    Check {
        name: "attention, packed rows",
        kernel: Some(Kernel::Attention),
        run: |p| attend(p, 2),
    },
    Check { name: "attention, a window", kernel: Some(Kernel::Attention), run: |p| attend(p, 3) },
    Check { name: "attention, many tiles", kernel: Some(Kernel::Attention), run: |p| attend(p, 4) },
];

impl Check {
    /// The differences on this device in this type; which kernels take part is what
    /// [`allow`](super::allow) was told.
    ///
    /// # Errors
    /// When an operation fails on the device.
    pub fn run(&self, device: &Device, dtype: DType) -> Result<Vec<Difference>> {
        (self.run)(&Place { device: device.clone(), dtype })
    }
}

/// How far numbers of a type may lie apart: bf16 keeps 8 bits and f16 11, of which an operation
/// rounds a few times (0.01 was the most on the CPU); f32 products may be TF32 on a GPU.
pub fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 0.02,
        DType::F16 => 5e-3,
        _ => 2e-3,
    }
}

/// Numbers in −1..1 that depend on the seed, on the CPU.
pub fn numbers(shape: &[usize], seed: u64) -> Result<Tensor> {
    let n = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f32> = (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The largest difference of two tensors' numbers, over the largest of `right` in the same window of
/// 16 positions (of the second dimension; of the first where there are two). A tensor's later rows
/// may be a hundred times smaller than its first, as attention's are; a single row may cancel to
/// nothing, and is rounded as its summands are.
///
/// # Errors
/// Shapes that differ, a device that does not answer, and a `right` that anything would agree with:
/// no numbers, zero, or one number everywhere, as a device gives that computes nothing.
pub fn difference(found: &Tensor, right: &Tensor) -> Result<f32> {
    // Numbers of a row of the batch, and of a position in it.
    let (batch, position) = match right.dims() {
        [] | [_] => (right.elem_count(), right.elem_count()),
        [_, rest] => (right.elem_count(), *rest),
        [_, positions, rest @ ..] => {
            let position = rest.iter().product::<usize>();
            (positions * position, position)
        }
    };
    let (batch, window) = (batch.max(1), (16 * position).max(1));
    let list = |t: &Tensor| -> Result<Vec<f32>> {
        t.detach().flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec1()
    };
    let (found, right) = (list(found)?, list(right)?);
    if found.len() != right.len() {
        bail!("{} numbers, expected {}", found.len(), right.len())
    }
    match right.first() {
        Some(first) if *first != 0. && right.len() == 1 => {}
        Some(first) if right.iter().any(|value| value != first) => {}
        first => {
            bail!("the right side is {} everywhere: nothing was compared", first.unwrap_or(&0.))
        }
    }
    let squares: f64 = right.iter().map(|value| f64::from(*value).powi(2)).sum();
    let floor = 0.05 * (squares / right.len() as f64).sqrt() as f32;
    // `f32::max` would drop a NaN.
    let larger = |a: f32, b: f32| if a.is_nan() || b <= a { a } else { b };
    let mut worst = 0f32;
    for (found, right) in found.chunks(batch).zip(right.chunks(batch)) {
        for (found, right) in found.chunks(window).zip(right.chunks(window)) {
            let size = right.iter().fold(floor, |a, b| a.max(b.abs()));
            let most = found.iter().zip(right).fold(0f32, |a, (x, y)| larger(a, (x - y).abs()));
            worst = larger(worst, most / size);
        }
    }
    Ok(worst)
}

type Form<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

impl Place {
    /// A frozen tensor: where the operation runs, and as the plain form has it.
    fn frozen(&self, shape: &[usize], seed: u64) -> Result<(Tensor, Tensor)> {
        let rounded = numbers(shape, seed)?.to_dtype(self.dtype)?;
        Ok((rounded.to_device(&self.device)?, rounded.to_dtype(DType::F32)?))
    }

    /// Value and gradients of `form`, whose inputs are of this type but for the trained ones
    /// (`masters`), which stay f32, against the plain form.
    fn compare(
        &self,
        inputs: &[Tensor],
        masters: &[usize],
        form: Form,
        plain: Form,
    ) -> Result<Vec<Difference>> {
        let inputs: Vec<Tensor> = inputs
            .iter()
            .enumerate()
            .map(|(i, x)| if masters.contains(&i) { Ok(x.clone()) } else { x.to_dtype(self.dtype) })
            .collect::<Result<_>>()?;
        let variables = |place: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<Vec<Tensor>> {
            inputs.iter().map(|x| Ok(Var::from_tensor(&place(x)?)?.as_tensor().clone())).collect()
        };
        let there = variables(&|x| x.to_device(&self.device))?;
        let tape = Tape::record();
        let y = form(&there)?;
        // Such as every type holds it.
        let dy = numbers(y.dims(), 77)?.to_dtype(DType::BF16)?;
        let passed = dy.to_device(&self.device)?.to_dtype(y.dtype())?;
        let mut found = tape.stop().backward(&y, &passed)?;

        let here = variables(&|x| x.to_dtype(DType::F32))?;
        let right = plain(&here)?;
        let dy = dy.to_dtype(DType::F32)?.reshape(right.shape())?;
        let gradients = right.mul(&dy)?.sum_all()?.backward()?;

        let allowed = tolerance(self.dtype);
        let of = |of: String, found: &Tensor, right: &Tensor| -> Result<Difference> {
            Ok(Difference { of, found: difference(found, right)?, allowed })
        };
        let mut differences = vec![of("value".to_owned(), &y, &right)?];
        for (i, (there, here)) in there.iter().zip(&here).enumerate() {
            let (Some(found), Some(right)) = (found.remove(there)?, gradients.get(here)) else {
                bail!("input {i} has no gradient")
            };
            differences.push(of(format!("gradient {i}"), &found, right)?);
        }
        Ok(differences)
    }
}

fn frozen_linear(place: &Place) -> Result<Vec<Difference>> {
    let (there, here) = place.frozen(&[40, 72], 1)?;
    place.compare(&[numbers(&[2, 17, 72], 2)?], &[], &|v| linear(&v[0], &there, None), &|v| {
        naive::linear(&v[0], &here, None)
    })
}

fn trained_linear(place: &Place) -> Result<Vec<Difference>> {
    place.compare(
        &[numbers(&[2, 17, 72], 2)?, numbers(&[40, 72], 3)?, numbers(&[40], 4)?],
        &[1, 2],
        &|v| linear(&v[0], &v[1], Some(&v[2])),
        &|v| naive::linear(&v[0], &v[1], Some(&v[2])),
    )
}

fn low_rank(place: &Place) -> Result<Vec<Difference>> {
    let (there, here) = place.frozen(&[48, 64], 1)?;
    place.compare(
        &[numbers(&[2, 9, 64], 2)?, numbers(&[8, 64], 3)?, numbers(&[48, 8], 4)?],
        &[1, 2],
        &|v| lora_linear(&v[0], &there, None, &v[1], &v[2], 0.5, None),
        &|v| naive::lora_linear(&v[0], &here, None, &v[1], &v[2], 0.5, None),
    )
}

fn sum(place: &Place) -> Result<Vec<Difference>> {
    let inputs = [numbers(&[2, 5, 300], 2)?, numbers(&[2, 5, 300], 3)?];
    place.compare(&inputs, &[], &|v| add(&v[0], &v[1]), &|v| &v[0] + &v[1])
}

fn root_mean_square(place: &Place) -> Result<Vec<Difference>> {
    let (there, here) = place.frozen(&[300], 1)?;
    place.compare(&[numbers(&[2, 5, 300], 2)?], &[], &|v| rms_norm(&v[0], &there, 1e-5), &|v| {
        naive::rms_norm(&v[0], &here, 1e-5)
    })
}

fn layer(place: &Place) -> Result<Vec<Difference>> {
    let ((there, here), (b_there, b_here)) = (place.frozen(&[300], 1)?, place.frozen(&[300], 4)?);
    place.compare(
        &[numbers(&[2, 5, 300], 2)?],
        &[],
        &|v| layer_norm(&v[0], &there, &b_there, 1e-5),
        &|v| naive::layer_norm(&v[0], &here, &b_here, 1e-5),
    )
}

fn activation(place: &Place, how: Gate) -> Result<Vec<Difference>> {
    let inputs = [(numbers(&[2, 5, 300], 2)? * 4.)?, numbers(&[2, 5, 300], 3)?];
    place.compare(&inputs, &[], &|v| gated(&v[0], &v[1], how), &|v| naive::gated(&v[0], &v[1], how))
}

fn rotation(place: &Place) -> Result<Vec<Difference>> {
    let (cos, sin) = (numbers(&[8, 50], 5)?, numbers(&[8, 50], 6)?);
    let positions = Tensor::new(&[[0u32, 1, 2, 3, 4], [7, 6, 5, 4, 3]], &Device::Cpu)?;
    let [c, s, p] = [&cos, &sin, &positions].map(|t| t.to_device(&place.device));
    let (c, s, p) = (c?, s?, p?);
    place.compare(&[numbers(&[2, 5, 3, 100], 2)?], &[], &|v| rope(&v[0], &c, &s, &p), &|v| {
        naive::rope(&v[0], &cos, &sin, &positions)
    })
}

fn loss(place: &Place, rows: usize, vocabulary: usize) -> Result<Vec<Difference>> {
    let (there, here) = place.frozen(&[vocabulary, 64], 1)?;
    let label = |i: usize| if i.is_multiple_of(4) { -100 } else { (i * 3 % vocabulary) as i64 };
    let labels: Vec<i64> = (0..rows).map(label).collect();
    place.compare(
        &[numbers(&[rows, 64], 5)?],
        &[],
        &|v| Ok(cross_entropy(&v[0], &there, &labels)?.0),
        &|v| Ok(naive::cross_entropy(&v[0], &here, &labels)?.0),
    )
}

/// Sizes that leave no tile whole, fewer queries than keys, groups of heads, packed rows and
/// padding: `[b, t, s, h, hkv, d]`.
pub(crate) fn attention_cases() -> [([usize; 6], Attention); 5] {
    let how = |d: usize| Attention { scale: 1. / (d as f32).sqrt(), ..Default::default() };
    [
        ([1, 70, 70, 2, 1, 64], how(64)),
        ([2, 33, 100, 2, 2, 64], Attention { starts: Some(vec![0, 70]), ..how(64) }),
        ([1, 129, 129, 2, 1, 64], Attention { segments: Some(vec![vec![40, 50]]), ..how(64) }),
        ([1, 66, 66, 2, 1, 128], Attention { window: Some(20), ..how(128) }),
        ([1, 600, 600, 4, 2, 64], how(64)),
    ]
}

fn attend(place: &Place, case: usize) -> Result<Vec<Difference>> {
    let ([b, t, s, h, hkv, d], how) = &attention_cases()[case];
    let (b, t, s, h, hkv, d) = (*b, *t, *s, *h, *hkv, *d);
    let inputs =
        [numbers(&[b, t, h, d], 1)?, numbers(&[b, s, hkv, d], 2)?, numbers(&[b, s, hkv, d], 3)?];
    place.compare(&inputs, &[], &|v| attention(&v[0], &v[1], &v[2], how), &|v| {
        naive::attention(&v[0], &v[1], &v[2], how)
    })
}
