//! Part b: the fused kernels against the composed forms: values and gradients at small odd sizes
//! (against the CPU) and at the sizes of a 7B model (against the composed forms on the device),
//! with times and the fraction of what the card can do.

use std::rc::Rc;

use candle_core::{DType, Device, Tensor, Var};
use serde_json::{Value, json};
use tunebook_ops::cuda::checks::{CHECKS, Check, difference, tolerance};
use tunebook_ops::cuda::{Allowed, Kernel, allow, launches};
use tunebook_ops::{
    self as ops, Attention, Gate, Tape, cross_entropy, gated, layer_norm, lora_linear, rms_norm,
    rope,
};

use crate::clock;
use crate::operations::compared;
use crate::report::{Result, judged, judged_of};

const TYPES: [DType; 2] = [DType::F32, DType::BF16];

/// What the card can do, measured: copied bytes (read and written) and operations of a product of
/// matrices in bf16, a second.
struct Ceilings {
    bytes: f64,
    operations: f64,
}

/// What a card has at most: ten times those of today. Beyond, nothing was computed.
const MOST: Ceilings = Ceilings { bytes: 80e12, operations: 25e15 };

pub(crate) fn run(device: &Device, tiny: bool) -> Result<()> {
    let ceilings = ceilings(device, tiny)?;
    let figures =
        json!({"bytes_per_s": ceilings.bytes, "bf16_operations_per_s": ceilings.operations});
    let real = ceilings.bytes < MOST.bytes && ceilings.operations < MOST.operations;
    judged("ceilings", Ok((real, figures)))?;
    let sizes = if tiny { Sizes::TINY } else { Sizes::LARGE };
    for (comparison, of) in comparisons(&sizes) {
        let Comparison { name, kernel, dtype, .. } = &comparison;
        let found = match of {
            Of::Check(check) => {
                fused(device, *kernel, *dtype, [1, 1], || compared(check, device, *dtype)).map(
                    |((good, mut figures), launches)| {
                        figures["launches"] = launches;
                        (good, figures)
                    },
                )
            }
            Of::Work(work) => measured(&work, device, *dtype, &ceilings, tiny),
        };
        judged_of(name, &comparison.about(), found)?;
    }
    Ok(())
}

/// What a whole part has: `cargo xtask gpu-kit --read` holds a result against it.
pub(crate) fn plan() -> Vec<Value> {
    comparisons(&Sizes::LARGE).into_iter().map(|(comparison, _)| comparison.about()).collect()
}

/// One finding of a kernel in a number type.
struct Comparison {
    name: String,
    kernel: Kernel,
    dtype: DType,
    timed: bool,
}

impl Comparison {
    fn about(&self) -> Value {
        json!({
            "name": self.name,
            "kernel": self.kernel.name(),
            "dtype": format!("{:?}", self.dtype),
            "timed": self.timed,
        })
    }
}

/// What is compared: with the CPU, or with the composed form at a size of a 7B model.
enum Of {
    Check(&'static Check),
    Work(Rc<Work>),
}

fn comparisons(sizes: &Sizes) -> Vec<(Comparison, Of)> {
    let mut all = Vec::new();
    for check in CHECKS {
        let Some(kernel) = check.kernel else { continue };
        for dtype in TYPES.into_iter().filter(|dtype| kernel.takes(*dtype)) {
            let name = format!("{}, {dtype:?}", check.name);
            all.push((Comparison { name, kernel, dtype, timed: false }, Of::Check(check)));
        }
    }
    for work in works(sizes).into_iter().map(Rc::new) {
        let kernel = work.kernel;
        for dtype in TYPES.into_iter().filter(|dtype| kernel.takes(*dtype)) {
            let name = format!("{} of {}, {dtype:?}", kernel.name(), work.size);
            all.push((Comparison { name, kernel, dtype, timed: true }, Of::Work(Rc::clone(&work))));
        }
    }
    all
}

/// With the kernels: what came of it and what was launched. On a GPU so many passes forward and
/// backward have to be the kernel's.
fn fused<T>(
    device: &Device,
    kernel: Kernel,
    dtype: DType,
    [forward, backward]: [u64; 2],
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Value)> {
    allow(Allowed::All);
    let before = launches();
    let found = work();
    allow(Allowed::None);
    let made = launches().since(&before);
    match made.missing(kernel, dtype, forward, backward) {
        Some(missing) if !device.is_cpu() => {
            let also = found.err().map_or_else(String::new, |error| format!("; {error}"));
            Err(format!("{missing}{also}").into())
        }
        _ => Ok((found?, json!(made.0))),
    }
}

fn ceilings(device: &Device, tiny: bool) -> Result<Ceilings> {
    let (bytes, side) = if tiny { (1 << 20, 256) } else { (4 << 30, 8192) };
    // Random, here and below: a card is faster on zeros.
    let source = Tensor::rand(0f32, 1., bytes / 4, device)?;
    let secs = clock::seconds(device, 3, || {
        source.copy()?;
        Ok(())
    })?;
    drop(source);
    let matrix = || -> Result<Tensor> {
        Ok(Tensor::randn(0f32, 1., (side, side), device)?.to_dtype(DType::BF16)?)
    };
    let (a, b) = (matrix()?, matrix()?);
    let product = clock::seconds(device, if tiny { 1 } else { 5 }, || {
        a.matmul(&b)?;
        Ok(())
    })?;
    Ok(Ceilings {
        bytes: 2. * bytes as f64 / secs,
        operations: 2. * (side as f64).powi(3) / product,
    })
}

/// Sizes of a step of a 7B model.
struct Sizes {
    /// Tokens.
    rows: usize,
    hidden: usize,
    ffn: usize,
    vocabulary: usize,
    /// Rows of a batch, tokens of each, heads and key heads of attention.
    attention: [usize; 4],
}

impl Sizes {
    const LARGE: Self = Self {
        rows: 8192,
        hidden: 4096,
        ffn: 11008,
        vocabulary: 32000,
        attention: [4, 2048, 32, 8],
    };
    const TINY: Self =
        Self { rows: 24, hidden: 64, ffn: 160, vocabulary: 96, attention: [2, 12, 2, 1] };
}

type Form = Box<dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>>;
/// A form on the tensors that it does not train: those come from the list.
type Bound = Box<dyn Fn(&[Tensor]) -> Form>;

/// One operation at one size.
struct Work {
    kernel: Kernel,
    size: String,
    /// Shapes of the inputs with gradients; the second and later ones of LoRA are f32 masters.
    inputs: Vec<Vec<usize>>,
    /// Shapes of frozen tensors.
    frozen: Vec<Vec<usize>>,
    masters: bool,
    form: Bound,
    /// Numbers that have to be read and written at least, forward and backward.
    numbers: f64,
    /// Operations of products, forward and backward; 0 where memory is all there is to it.
    operations: f64,
}

fn works(sizes: &Sizes) -> Vec<Work> {
    let Sizes { rows, hidden, ffn, vocabulary, attention: [b, t, h, hkv] } = *sizes;
    let row = vec![rows, hidden];
    let cells = |numbers: usize| numbers as f64;
    let mut works = vec![
        Work {
            kernel: Kernel::RmsNorm,
            size: format!("{rows} x {hidden}"),
            inputs: vec![row.clone()],
            frozen: vec![vec![hidden]],
            masters: false,
            form: Box::new(|f| {
                let w = f[0].clone();
                Box::new(move |v| rms_norm(&v[0], &w, 1e-5))
            }),
            numbers: 5. * cells(rows * hidden),
            operations: 0.,
        },
        Work {
            kernel: Kernel::LayerNorm,
            size: format!("{rows} x {hidden}"),
            inputs: vec![row],
            frozen: vec![vec![hidden]; 2],
            masters: false,
            form: Box::new(|f| {
                let (w, b) = (f[0].clone(), f[1].clone());
                Box::new(move |v| layer_norm(&v[0], &w, &b, 1e-5))
            }),
            numbers: 5. * cells(rows * hidden),
            operations: 0.,
        },
        Work {
            kernel: Kernel::Gated,
            size: format!("{rows} x {ffn}"),
            inputs: vec![vec![rows, ffn]; 2],
            frozen: Vec::new(),
            masters: false,
            form: Box::new(|_| Box::new(|v| gated(&v[0], &v[1], Gate::Silu))),
            numbers: 8. * cells(rows * ffn),
            operations: 0.,
        },
        Work {
            kernel: Kernel::CrossEntropy,
            size: format!("{rows} x {vocabulary}, hidden {hidden}"),
            inputs: vec![vec![rows, hidden]],
            frozen: vec![vec![vocabulary, hidden]],
            masters: false,
            form: Box::new(move |f| {
                let head = f[0].clone();
                let labels: Vec<i64> =
                    (0..rows as i64).map(|i| i * 37 % vocabulary as i64).collect();
                Box::new(move |v| Ok(cross_entropy(&v[0], &head, &labels)?.0))
            }),
            numbers: 0.,
            operations: 4. * cells(rows * vocabulary) * cells(hidden),
        },
        Work {
            kernel: Kernel::LowRank,
            size: format!("{rows} x {hidden} -> {hidden}, rank 16"),
            inputs: vec![vec![rows, hidden], vec![16, hidden], vec![hidden, 16]],
            frozen: vec![vec![hidden, hidden]],
            masters: true,
            form: Box::new(|f| {
                let w = f[0].clone();
                Box::new(move |v| lora_linear(&v[0], &w, None, &v[1], &v[2], 2., None))
            }),
            numbers: 0.,
            operations: 4. * cells(rows * hidden) * cells(hidden)
                + 6. * cells(rows * 16) * cells(2 * hidden),
        },
    ];
    for d in [64, 128] {
        works.push(Work {
            kernel: Kernel::Rope,
            size: format!("{b} x {t}, {h} heads of {d}"),
            inputs: vec![vec![b, t, h, d]],
            frozen: vec![vec![t, d / 2]; 2],
            masters: false,
            form: Box::new(move |f| {
                // Angles are f32 whatever the tensors are.
                let (cos, sin) = (f[0].to_dtype(DType::F32), f[1].to_dtype(DType::F32));
                let device = f[0].device().clone();
                Box::new(move |v| {
                    let positions = Tensor::arange(0u32, t as u32, &device)?
                        .broadcast_as((b, t))?
                        .contiguous()?;
                    match (&cos, &sin) {
                        (Ok(cos), Ok(sin)) => rope(&v[0], cos, sin, &positions),
                        _ => candle_core::bail!("no angles"),
                    }
                })
            }),
            numbers: 4. * cells(b * t * h * d),
            operations: 0.,
        });
        works.push(Work {
            kernel: Kernel::Attention,
            size: format!("{b} x {t}, {h} heads of {d}, {hkv} key heads"),
            inputs: vec![vec![b, t, h, d], vec![b, t, hkv, d], vec![b, t, hkv, d]],
            frozen: Vec::new(),
            masters: false,
            form: Box::new(move |_| {
                let how = Attention { scale: 1. / (d as f32).sqrt(), ..Default::default() };
                Box::new(move |v| ops::attention(&v[0], &v[1], &v[2], &how))
            }),
            numbers: 0.,
            // Two products forward and five backward over half of the pairs.
            operations: 7. * cells(b * h * t) * cells(t) * cells(d),
        });
    }
    works
}

/// A pass forward, and one backward if it is asked for: the value and the gradients.
fn pass(form: &Form, inputs: &[Tensor], dy: Option<&Tensor>) -> Result<Vec<Tensor>> {
    let tape = Tape::record();
    let y = form(inputs)?;
    let tape = tape.stop();
    let Some(dy) = dy else { return Ok(vec![y]) };
    let mut gradients = tape.backward(&y, dy)?;
    let mut all = vec![y];
    for input in inputs {
        all.push(gradients.remove(input)?.ok_or("an input has no gradient")?);
    }
    Ok(all)
}

fn measured(
    work: &Work,
    device: &Device,
    dtype: DType,
    ceilings: &Ceilings,
    tiny: bool,
) -> Result<(bool, Value)> {
    let random = |shape: &Vec<usize>, dtype: DType| -> Result<Tensor> {
        Ok(Tensor::randn(0f32, 0.5, shape.as_slice(), device)?.to_dtype(dtype)?)
    };
    let inputs: Vec<Tensor> = work
        .inputs
        .iter()
        .enumerate()
        .map(|(i, shape)| {
            let dtype = if work.masters && i > 0 { DType::F32 } else { dtype };
            Ok(Var::from_tensor(&random(shape, dtype)?)?.as_tensor().clone())
        })
        .collect::<Result<_>>()?;
    let frozen: Vec<Tensor> =
        work.frozen.iter().map(|shape| random(shape, dtype)).collect::<Result<_>>()?;
    let form = (work.form)(&frozen);
    let y = form(&inputs)?;
    // A loss is differentiated as it is: a random factor might be nearly 0.
    let dy = match y.rank() {
        0 => y.ones_like()?,
        _ => Tensor::randn(0f32, 1., y.dims(), device)?.to_dtype(y.dtype())?,
    };
    drop(y);

    allow(Allowed::None);
    let composed = pass(&form, &inputs, Some(&dy))?;
    let (found, launched) =
        fused(device, work.kernel, dtype, [1, 1], || pass(&form, &inputs, Some(&dy)))?;
    let mut worst = 0f32;
    for (found, right) in found.iter().zip(&composed) {
        let difference = difference(found, right)?;
        // Not `max`, which would drop a NaN.
        if difference.is_nan() || difference > worst {
            worst = difference;
        }
    }
    drop((found, composed));
    let allowed = tolerance(dtype);

    let times = if tiny { 1 } else { 5 };
    let time =
        |dy: Option<&Tensor>| clock::seconds(device, times, || pass(&form, &inputs, dy).map(drop));
    let composed = [time(None)?, time(Some(&dy))?];
    // The CPU has no kernels: what is measured there says only that this runs.
    let fused = match device.is_cpu() {
        true => None,
        false => {
            let passes = clock::runs(times);
            let of = |dy: Option<&Tensor>, passes| -> Result<f64> {
                Ok(fused(device, work.kernel, dtype, passes, || time(dy))?.0)
            };
            Some([of(None, [passes, 0])?, of(Some(&dy), [passes, passes])?])
        }
    };
    let best = fused.unwrap_or(composed)[1];
    let fraction = match work.operations > 0. {
        true => work.operations / best / ceilings.operations,
        false => work.numbers * dtype.size_in_bytes() as f64 / best / ceilings.bytes,
    };
    let figures = json!({
        "launches": launched,
        "difference": worst,
        "allowed": allowed,
        "composed_forward_ms": composed[0] * 1e3,
        "composed_ms": composed[1] * 1e3,
        "fused_forward_ms": fused.map(|fused| fused[0] * 1e3),
        "fused_ms": fused.map(|fused| fused[1] * 1e3),
        "faster": fused.map(|fused| composed[1] / fused[1]),
        "fraction_of_ceiling": fraction,
        "ceiling": if work.operations > 0. { "bf16 products" } else { "bandwidth" },
    });
    Ok((worst <= allowed, figures))
}
