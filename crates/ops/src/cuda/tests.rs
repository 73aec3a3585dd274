//! The kernels' sources as C++ on the CPU against the plain compositions, and the kernels
//! themselves where there is a GPU (`gpu_…`).
//!
//! Buffers have a fence of NaN on both sides: a read beyond them shows in the result, a write in
//! the fence.

use std::ffi::{CString, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::{DType, Device, Result, Tensor, Var};
use half::bf16;

use super::checks::{self, CHECKS, Check, attention_cases};
use super::geometry::{
    ATTENTION_ROWS, ATTENTION_THREADS, ELEMENT_THREADS, ROW_THREADS, element_blocks,
};
use crate::tests::numbers;
use crate::{Gate, naive};

/// The kernels as a library, compiled once; `None` without a C++ compiler.
fn library() -> Option<usize> {
    static LIBRARY: OnceLock<Option<usize>> = OnceLock::new();
    *LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("kernels.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cuda/kernels/cpu.cpp");
        let compiled = std::process::Command::new("c++")
            .args(["-std=c++17", "-O1", "-shared", "-fPIC", source, "-o"])
            .arg(&file)
            .output();
        let Ok(compiled) = compiled else {
            #[allow(clippy::print_stderr)] // the tests' screen shows it
            {
                eprintln!(
                    "skipped: the kernels' sources on the CPU, as there is no C++ compiler `c++`"
                );
            }
            return None;
        };
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let path = CString::new(file.to_str().expect("a path")).expect("a path");
        // SAFETY: a library that was just made from our own sources.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "the library does not load");
        Some(handle as usize)
    })
}

/// The library has one set of threads: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A function of the library, of the type that it is assigned to.
fn function<F: Copy>(name: &str) -> Option<F> {
    let name = CString::new(name).expect("a name");
    // SAFETY: `library` is a handle of dlopen's.
    let address = unsafe { libc::dlsym(library()? as *mut c_void, name.as_ptr()) };
    assert!(!address.is_null() && size_of::<F>() == size_of::<*mut c_void>());
    // SAFETY: the callers name the function's own signature.
    Some(unsafe { std::mem::transmute_copy(&address) })
}

const FENCE: usize = 512;

/// Numbers of one of the kernels' types, fenced.
#[derive(Clone)]
enum Buffer {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Buffer {
    fn of(tensor: &Tensor) -> Self {
        let flat = tensor.flatten_all().expect("a tensor");
        match tensor.dtype() {
            DType::BF16 => {
                let fence = [bf16::NAN; FENCE];
                Self::Bf16(
                    [&fence, flat.to_vec1::<bf16>().expect("bf16").as_slice(), &fence].concat(),
                )
            }
            _ => {
                let fence = [f32::NAN; FENCE];
                Self::F32([&fence, flat.to_vec1::<f32>().expect("f32").as_slice(), &fence].concat())
            }
        }
    }

    /// Not written yet.
    fn like(tensor: &Tensor) -> Self {
        Self::of(&(tensor.ones_like().expect("ones") * f64::NAN).expect("NaN"))
    }

    fn at(&mut self) -> *mut c_void {
        match self {
            Self::F32(values) => values[FENCE..].as_mut_ptr().cast(),
            Self::Bf16(values) => values[FENCE..].as_mut_ptr().cast(),
        }
    }

    /// The numbers, after a look at the fence.
    fn values(&self) -> Vec<f32> {
        let all: Vec<f32> = match self {
            Self::F32(values) => values.clone(),
            Self::Bf16(values) => values.iter().map(|value| value.to_f32()).collect(),
        };
        let end = all.len() - FENCE;
        assert!(
            all[..FENCE].iter().chain(&all[end..]).all(|v| v.is_nan()),
            "written beyond the buffer"
        );
        all[FENCE..end].to_vec()
    }
}

/// As the kit compares.
fn close(what: &str, got: &[f32], right: &Tensor, tolerance: f32) {
    assert_eq!(got.len(), right.elem_count(), "{what}");
    let found = Tensor::new(got, &Device::Cpu).and_then(|got| got.reshape(right.shape()));
    let found = found.and_then(|found| checks::difference(&found, right)).expect(what);
    assert!(found <= tolerance, "{what}: {found}, allowed {tolerance}");
}

/// The tolerance of a type: bf16 keeps 8 bits, and the kernels round what they give (attention also
/// its weights).
fn tolerance(dtype: DType) -> f32 {
    if dtype == DType::BF16 { 0.012 } else { 2e-5 }
}

/// `form` and the gradients of all `vars` under `Σ y ∘ dy`, in f32.
fn oracle(
    vars: &[&Tensor],
    dy: &Tensor,
    form: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> (Tensor, Vec<Tensor>) {
    oracle_in(DType::F32, vars, dy, form)
}

fn oracle_in(
    dtype: DType,
    vars: &[&Tensor],
    dy: &Tensor,
    form: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> (Tensor, Vec<Tensor>) {
    let run = || -> Result<_> {
        let vars: Vec<Var> = vars
            .iter()
            .map(|v| Var::from_tensor(&v.to_device(&Device::Cpu)?.to_dtype(dtype)?))
            .collect::<Result<_>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = form(&tensors)?;
        let dy = dy.to_device(&Device::Cpu)?.to_dtype(dtype)?.reshape(y.shape())?;
        let grads = y.mul(&dy)?.sum_all()?.backward()?;
        Ok((y, tensors.iter().map(|t| grads.get(t).expect("a gradient").clone()).collect()))
    };
    run().expect("the plain form")
}

const TYPES: [DType; 2] = [DType::F32, DType::BF16];

#[test]
fn normalisation_kernels() -> Result<()> {
    let _alone = alone();
    type Forward = extern "C" fn(i32, *mut c_void, *mut c_void, *mut c_void, i32, i32, f32, u32);
    type Backward =
        extern "C" fn(i32, *mut c_void, *mut c_void, *mut c_void, *mut c_void, i32, i32, f32, u32);
    let (Some(forward), Some(backward)) =
        (function::<Forward>("cpu_rms_norm"), function::<Backward>("cpu_rms_norm_backward"))
    else {
        return Ok(());
    };
    for dtype in TYPES {
        for n in [8, 257, 600] {
            let rows = 3;
            let [x, w, dy] = [(rows, 1), (1, 2), (rows, 3)]
                .map(|(rows, seed)| numbers(&[rows, n], seed).to_dtype(dtype));
            let (x, w, dy) = (x?, w?.get(0)?, dy?);
            let (right, gradients) =
                oracle(&[&x, &w], &dy, |v| naive::rms_norm(&v[0], &v[1], 1e-5));
            let (mut y, mut dx) = (Buffer::like(&x), Buffer::like(&x));
            let [mut x, mut w, mut dy] = [&x, &w, &dy].map(Buffer::of);
            let wide = i32::from(dtype == DType::F32);
            forward(wide, y.at(), x.at(), w.at(), rows as i32, n as i32, 1e-5, ROW_THREADS as u32);
            close("value", &y.values(), &right, tolerance(dtype));
            let threads = ROW_THREADS as u32;
            backward(wide, dx.at(), x.at(), w.at(), dy.at(), rows as i32, n as i32, 1e-5, threads);
            close("gradient", &dx.values(), &gradients[0], tolerance(dtype));
        }
    }
    Ok(())
}

/// Rows far from zero, where a variance taken as the mean of squares less the square of the mean
/// would be lost.
#[test]
fn layer_norm_kernels() -> Result<()> {
    let _alone = alone();
    type P = *mut c_void;
    type Pass = extern "C" fn(i32, P, P, P, P, i32, i32, f32, u32);
    let (Some(forward), Some(backward)) =
        (function::<Pass>("cpu_layer_norm"), function::<Pass>("cpu_layer_norm_backward"))
    else {
        return Ok(());
    };
    for dtype in TYPES {
        for n in [8, 257, 600] {
            let rows = 3;
            let x = (numbers(&[rows, n], 1) + if dtype == DType::F32 { 300. } else { 3. })?
                .to_dtype(dtype)?;
            let [w, b] = [2, 3].map(|seed| numbers(&[n], seed).to_dtype(dtype));
            let (w, b, dy) = (w?, b?, numbers(&[rows, n], 4).to_dtype(dtype)?);
            let plain = |v: &[Tensor]| naive::layer_norm(&v[0], &v[1], &v[2], 1e-5);
            // In f64: the plain form in f32 loses as many digits as the kernel.
            let (right, gradients) = oracle_in(DType::F64, &[&x, &w, &b], &dy, plain);
            let [mut y, mut dx] = [&x; 2].map(Buffer::like);
            let [mut x, mut w, mut b, mut dy] = [&x, &w, &b, &dy].map(Buffer::of);
            let (wide, threads) = (i32::from(dtype == DType::F32), ROW_THREADS as u32);
            // A mean in f32 is right to 2⁻²⁴ of 300, the deviations are of size 1.
            let tolerance = tolerance(dtype).max(1e-4);
            forward(wide, y.at(), x.at(), w.at(), b.at(), rows as i32, n as i32, 1e-5, threads);
            close("value", &y.values(), &right, tolerance);
            backward(wide, dx.at(), x.at(), w.at(), dy.at(), rows as i32, n as i32, 1e-5, threads);
            close("gradient", &dx.values(), &gradients[0], tolerance);
        }
    }
    Ok(())
}

#[test]
fn gated_activation_kernels() -> Result<()> {
    let _alone = alone();
    type Forward = extern "C" fn(i32, *mut c_void, *mut c_void, *mut c_void, i64, u32, u32);
    type Backward = extern "C" fn(
        i32,
        *mut c_void,
        *mut c_void,
        *mut c_void,
        *mut c_void,
        *mut c_void,
        i64,
        u32,
        u32,
    );
    for how in [Gate::Silu, Gate::Gelu, Gate::GeluTanh] {
        let kernel = format!("cpu_{}", super::gate_kernel(how));
        let (Some(forward), Some(backward)) =
            (function::<Forward>(&kernel), function::<Backward>(&format!("{kernel}_backward")))
        else {
            return Ok(());
        };
        for (dtype, n) in TYPES.into_iter().flat_map(|dtype| [1, 256, 700].map(|n| (dtype, n))) {
            let gate = (numbers(&[n], 1) * 6.)?.to_dtype(dtype)?;
            let [up, dy] = [2, 3].map(|seed| numbers(&[n], seed).to_dtype(dtype));
            let (up, dy) = (up?, dy?);
            let (right, gradients) =
                oracle(&[&gate, &up], &dy, |v| naive::gated(&v[0], &v[1], how));
            let [mut y, mut dgate, mut dup] = [&gate; 3].map(Buffer::like);
            let [mut gate, mut up, mut dy] = [&gate, &up, &dy].map(Buffer::of);
            let (wide, blocks) = (i32::from(dtype == DType::F32), element_blocks(n) as u32);
            let threads = ELEMENT_THREADS as u32;
            forward(wide, y.at(), gate.at(), up.at(), n as i64, blocks, threads);
            close(&format!("value of {how:?}"), &y.values(), &right, tolerance(dtype));
            let n = n as i64;
            backward(wide, dgate.at(), dup.at(), gate.at(), up.at(), dy.at(), n, blocks, threads);
            close(
                &format!("{how:?}, gradient of gate"),
                &dgate.values(),
                &gradients[0],
                tolerance(dtype),
            );
            close(
                &format!("{how:?}, gradient of up"),
                &dup.values(),
                &gradients[1],
                tolerance(dtype),
            );
        }
    }
    Ok(())
}

#[test]
fn rotation_kernel() -> Result<()> {
    let _alone = alone();
    type Rope = extern "C" fn(
        i32,
        *mut c_void,
        *mut c_void,
        *mut c_void,
        *mut c_void,
        *const u32,
        i32,
        i32,
        i64,
        f32,
        u32,
        u32,
    );
    let Some(rope) = function::<Rope>("cpu_rope") else { return Ok(()) };
    let (b, t, h, half) = (2, 5, 3, 10);
    let (cos, sin) = (numbers(&[16, half], 5), numbers(&[16, half], 6));
    let positions: Vec<u32> = (0..(b * t) as u32).map(|i| i * 5 % 16).collect();
    let at = Tensor::from_vec(positions.clone(), (b, t), &Device::Cpu)?;
    for dtype in TYPES {
        let x = numbers(&[b, t, h, 2 * half], 1).to_dtype(dtype)?;
        let dy = numbers(&[b, t, h, 2 * half], 2).to_dtype(dtype)?;
        let (right, gradients) = oracle(&[&x], &dy, |v| naive::rope(&v[0], &cos, &sin, &at));
        for (input, direction, right) in [(&x, 1., &right), (&dy, -1., &gradients[0])] {
            let mut y = Buffer::like(input);
            let pairs = b * t * h * half;
            rope(
                i32::from(dtype == DType::F32),
                y.at(),
                Buffer::of(input).at(),
                Buffer::of(&cos).at(),
                Buffer::of(&sin).at(),
                positions.as_ptr(),
                h as i32,
                half as i32,
                pairs as i64,
                direction,
                element_blocks(pairs) as u32,
                ELEMENT_THREADS as u32,
            );
            close("turned", &y.values(), right, tolerance(dtype));
        }
    }
    Ok(())
}

#[test]
fn cross_entropy_kernel() -> Result<()> {
    let _alone = alone();
    type Loss = extern "C" fn(i32, *mut c_void, *mut c_void, *const u32, i32, i32, u32);
    let Some(loss) = function::<Loss>("cpu_cross_entropy") else { return Ok(()) };
    for dtype in TYPES {
        for vocabulary in [3usize, 1000] {
            let labels = [2u32, 0, vocabulary as u32 - 1];
            let logits = (numbers(&[3, vocabulary], 1) * 8.)?.to_dtype(dtype)?;
            let identity = Tensor::eye(vocabulary, DType::F32, &Device::Cpu)?;
            let targets: Vec<i64> = labels.iter().map(|label| i64::from(*label)).collect();
            let (right, gradients) = oracle(&[&logits], &Tensor::new(1f32, &Device::Cpu)?, |v| {
                Ok(naive::cross_entropy(&v[0], &identity, &targets)?.0)
            });
            let mut losses = Buffer::like(&Tensor::zeros(3, DType::F32, &Device::Cpu)?);
            let mut logits = Buffer::of(&logits);
            let wide = i32::from(dtype == DType::F32);
            let threads = ROW_THREADS as u32;
            loss(wide, logits.at(), losses.at(), labels.as_ptr(), 3, vocabulary as i32, threads);
            close("loss", &[losses.values().iter().sum()], &right, 1e-5);
            close("gradient", &logits.values(), &gradients[0], tolerance(dtype));
        }
    }
    Ok(())
}

#[test]
fn attention_kernels() -> Result<()> {
    let _alone = alone();
    type P = *mut c_void;
    type Forward =
        extern "C" fn(i32, P, P, P, P, P, *const i32, i32, i32, i32, i32, i32, f32, u32, u32);
    type Dots = extern "C" fn(i32, P, P, P, i32, i32, i32, u32, u32);
    type Queries =
        extern "C" fn(i32, P, P, P, P, P, P, P, *const i32, i32, i32, i32, i32, i32, f32, u32, u32);
    type Keys = extern "C" fn(
        i32,
        P,
        P,
        P,
        P,
        P,
        P,
        P,
        P,
        *const i32,
        i32,
        i32,
        i32,
        i32,
        i32,
        f32,
        u32,
        u32,
    );
    let Some(forward) = function::<Forward>("cpu_attention") else { return Ok(()) };
    let (Some(dots), Some(queries), Some(keys)) = (
        function::<Dots>("cpu_attention_dots"),
        function::<Queries>("cpu_attention_queries"),
        function::<Keys>("cpu_attention_keys"),
    ) else {
        return Ok(());
    };
    for ([b, t, s, h, hkv, d], how) in attention_cases().into_iter().take(4) {
        let [q, k, v, dy] = [(t, h, 1), (s, hkv, 2), (s, hkv, 3), (t, h, 4)]
            .map(|(n, heads, seed)| numbers(&[b, n, heads, d], seed).to_dtype(DType::BF16));
        let (q, k, v, dy) = ((q? * 4.)?, k?, v?, dy?);
        let (right, gradients) =
            oracle(&[&q, &k, &v], &dy, |x| naive::attention(&x[0], &x[1], &x[2], &how));
        let first: Vec<i32> =
            how.first_keys(b, t, s)?.into_iter().map(|first| first as i32).collect();
        let plain = first.iter().all(|first| *first == 0);
        let firsts = if plain { std::ptr::null() } else { first.as_ptr() };
        let [mut y, mut dq] = [&q; 2].map(Buffer::like);
        let [mut dk, mut dv] = [&k; 2].map(Buffer::like);
        let of_queries = Tensor::zeros((b, h, t), DType::F32, &Device::Cpu)?;
        let [mut log_sums, mut along] = [&of_queries; 2].map(Buffer::like);
        let [mut q, mut k, mut v, mut dy] = [&q, &k, &v, &dy].map(Buffer::of);
        let [nb, nt, ns, nh, nhkv, nd] = [b, t, s, h, hkv, d].map(|n| n as i32);
        let (scale, threads) = (how.scale, ATTENTION_THREADS as u32);
        let query_blocks = t.div_ceil(ATTENTION_ROWS) as u32;
        let (py, pq, pk, pv, pdy) = (y.at(), q.at(), k.at(), v.at(), dy.at());
        let sums = log_sums.at();
        forward(
            nd,
            py,
            sums,
            pq,
            pk,
            pv,
            firsts,
            nb,
            nt,
            ns,
            nh,
            nhkv,
            scale,
            query_blocks,
            threads,
        );
        let tolerance = tolerance(DType::BF16);
        close("value", &y.values(), &right, tolerance);
        let warps = ATTENTION_THREADS / 32;
        let rows = b * t * h;
        let dotted = along.at();
        dots(nd, dotted, py, pdy, nt, nh, rows as i32, rows.div_ceil(warps) as u32, threads);
        queries(
            nd,
            dq.at(),
            pq,
            pk,
            pv,
            pdy,
            sums,
            dotted,
            firsts,
            nb,
            nt,
            ns,
            nh,
            nhkv,
            scale,
            query_blocks,
            threads,
        );
        close("gradient of q", &dq.values(), &gradients[0], tolerance);
        let key_blocks = s.div_ceil(ATTENTION_ROWS) as u32;
        keys(
            nd,
            dk.at(),
            dv.at(),
            pq,
            pk,
            pv,
            pdy,
            sums,
            dotted,
            firsts,
            nb,
            nt,
            ns,
            nh,
            nhkv,
            scale,
            key_blocks,
            threads,
        );
        close("gradient of k", &dk.values(), &gradients[1], tolerance);
        close("gradient of v", &dv.values(), &gradients[2], tolerance);
    }
    Ok(())
}

/// The comparisons that a GPU is put through, on the CPU: in f32 its fused forms, in the other types
/// the composed ones.
#[test]
fn every_check_passes_on_the_cpu() -> Result<()> {
    for check in CHECKS {
        for dtype in checks::TYPES {
            hold(check, dtype, check.run(&Device::Cpu, dtype)?);
        }
    }
    Ok(())
}

/// A check that cannot fail would prove nothing.
#[test]
fn a_wrong_number_is_a_large_difference() -> Result<()> {
    let right = numbers(&[100], 1);
    let off = |by: f64| checks::difference(&right.affine(1., by)?, &right);
    assert!(off(0.)? == 0. && off(0.1)? > 0.09, "{} {}", off(0.)?, off(0.1)?);
    // Late rows that are a hundred times smaller than the first, as attention's: nothing in their
    // place is no small difference.
    let first = (numbers(&[16, 64], 2) * 100.)?;
    let late = numbers(&[2000, 64], 3);
    let right_rows = Tensor::cat(&[&first, &late], 0)?;
    let found = Tensor::cat(&[&first, &(&late * 0.)?], 0)?;
    let found = checks::difference(&found, &right_rows)?;
    assert!(found > 0.5, "{found}");
    // Whatever agrees with nothing at all was not compared.
    let zeros = right.zeros_like()?;
    for nothing in [zeros.clone(), (&zeros + 3.)?, zeros.narrow(0, 0, 0)?, zeros.get(0)?] {
        assert!(checks::difference(&nothing, &nothing).is_err(), "{nothing}");
    }
    let mut values = right.to_vec1::<f32>()?;
    values[50] = f32::NAN;
    let found = checks::difference(&Tensor::new(values, &Device::Cpu)?, &right)?;
    let difference = checks::Difference { of: "value".to_owned(), found, allowed: 1. };
    assert!(!difference.is_small(), "a NaN passes");
    Ok(())
}

fn hold(check: &Check, dtype: DType, differences: Vec<checks::Difference>) {
    assert!(differences.len() > 1, "{check:?}: no gradient");
    for difference in differences {
        assert!(difference.is_small(), "{check:?} in {dtype:?}: {difference:?}");
    }
}

/// On a GPU. Never run yet: no machine with one was at hand.
#[cfg(feature = "cuda")]
mod gpu {
    use super::super::{Allowed, allow, launches};
    use super::*;

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn gpu_composed_operations() -> Result<()> {
        let _alone = alone();
        let gpu = Device::new_cuda_with_stream(0)?;
        let before = launches();
        allow(Allowed::None);
        for check in CHECKS {
            for dtype in checks::TYPES {
                hold(check, dtype, check.run(&gpu, dtype)?);
            }
        }
        assert_eq!(launches(), before, "a kernel took part");
        allow(Allowed::Proven);
        Ok(())
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn gpu_kernels() -> Result<()> {
        let _alone = alone();
        let gpu = Device::new_cuda_with_stream(0)?;
        allow(Allowed::All);
        for check in CHECKS {
            let Some(kernel) = check.kernel else { continue };
            for dtype in checks::TYPES.into_iter().filter(|dtype| kernel.takes(*dtype)) {
                let before = launches();
                hold(check, dtype, check.run(&gpu, dtype)?);
                let missing = launches().since(&before).missing(kernel, dtype, 1, 1);
                assert_eq!(missing, None, "{check:?} in {dtype:?}");
            }
        }
        allow(Allowed::Proven);
        Ok(())
    }
}
