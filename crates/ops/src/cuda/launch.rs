//! Launching the kernels. Never run on a GPU yet.

use std::cell::RefCell;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t;
use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, Gemm, GemmConfig};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage,
    Tensor, WithDType, bail,
};
use half::bf16;

use super::count::count_launch;
use super::geometry::{
    ATTENTION_ROWS, ATTENTION_THREADS, ByColumns, ELEMENT_THREADS, ROW_THREADS, element_blocks,
};
use super::proven::is_used;
use super::{Attended, Kernel, gate_kernel};
use crate::Gate;
use crate::attention::Sizes;

const ROWS: &str = include_str!(concat!(env!("OUT_DIR"), "/rows.ptx"));
const ELEMENTS: &str = include_str!(concat!(env!("OUT_DIR"), "/elements.ptx"));
const ATTENTION: &str = include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"));

/// A type that the kernels come in.
trait Number: CudaDType + DeviceRepr + WithDType {
    const NAME: &'static str;
}

impl Number for f32 {
    const NAME: &'static str = "f32";
}

impl Number for bf16 {
    const NAME: &'static str = "bf16";
}

/// The device, when the kernel is used for the tensors' type and all are there in it.
fn device(kernel: Kernel, tensors: &[&Tensor]) -> Option<CudaDevice> {
    let first = tensors.first()?;
    let fits = |t: &&Tensor| t.dtype() == first.dtype() && t.device().same_device(first.device());
    match first.device() {
        Device::Cuda(device) if is_used(kernel, first.dtype()) && tensors.iter().all(fits) => {
            Some(device.clone())
        }
        _ => None,
    }
}

/// Lets `read` see a contiguous tensor's numbers on the device.
fn with<T: CudaDType, R>(
    tensor: &Tensor,
    read: impl FnOnce(CudaView<T>) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cuda(storage), Some((from, to))) = (&*storage, layout.contiguous_offsets())
    else {
        bail!(
            "expected a contiguous tensor on a GPU, found {:?} on {:?}",
            layout.stride(),
            tensor.device()
        )
    };
    read(storage.as_cuda_slice::<T>()?.slice(from..to))
}

/// A tensor of what a kernel wrote.
fn tensor<T: CudaDType>(
    values: CudaSlice<T>,
    shape: impl Into<Shape>,
    device: &CudaDevice,
) -> Tensor {
    let storage = Storage::Cuda(T::wrap_cuda_slice(values, device.clone()));
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

fn uninit<T: DeviceRepr>(device: &CudaDevice, n: usize) -> Result<CudaSlice<T>> {
    // SAFETY: every kernel writes all of its output.
    unsafe { device.alloc::<T>(n) }
}

/// Launches kernel `$name` of a module with these arguments, references all.
macro_rules! launch {
    ($device:expr, $module:expr, $name:expr, $grid:expr, $threads:expr, [$($arg:expr),* $(,)?]) => {{
        let (module, source): (&str, &str) = $module;
        let function = $device.get_or_load_custom_func(&$name, module, source)?;
        let mut arguments = function.builder();
        $(arguments.arg($arg);)*
        let (x, y, z): (usize, usize, usize) = $grid;
        let config = LaunchConfig {
            grid_dim: (x as u32, y as u32, z as u32),
            block_dim: ($threads as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are those of the kernel's signature, and the grid covers its
        // buffers and no more.
        unsafe { arguments.launch(config) }.w()?;
        count_launch(&$name);
    }};
}

const ROW_KERNELS: (&str, &str) = ("tunebook_rows", ROWS);
const ELEMENT_KERNELS: (&str, &str) = ("tunebook_elements", ELEMENTS);
const ATTENTION_KERNELS: (&str, &str) = ("tunebook_attention", ATTENTION);

/// Calls a function for the type of the tensors.
macro_rules! of_type {
    ($dtype:expr, $function:ident($($arg:expr),*)) => {
        match $dtype {
            DType::F32 => $function::<f32>($($arg),*),
            _ => $function::<bf16>($($arg),*),
        }
    };
}

/// See [`crate::rms_norm`].
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Option<Tensor>> {
    let Some(device) = device(Kernel::RmsNorm, &[x, w]) else { return Ok(None) };
    of_type!(x.dtype(), rms_norm_of(&device, x, w, eps as f32)).map(Some)
}

fn rms_norm_of<T: Number>(device: &CudaDevice, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    let n = w.elem_count();
    let mut y = uninit::<T>(device, x.elem_count())?;
    let width = n as i32;
    with::<T, _>(x, |x_values| {
        with::<T, _>(w, |w_values| {
            let name = format!("rms_norm_{}", T::NAME);
            let grid = (x.elem_count() / n, 1, 1);
            launch!(
                device,
                ROW_KERNELS,
                name,
                grid,
                ROW_THREADS,
                [&mut y, &x_values, &w_values, &width, &eps]
            );
            Ok(())
        })
    })?;
    Ok(tensor(y, x.shape(), device))
}

/// The gradient of `x`.
pub fn rms_norm_backward(x: &Tensor, w: &Tensor, dy: &Tensor, eps: f64) -> Result<Option<Tensor>> {
    norm(Kernel::RmsNorm, "rms_norm_backward", [x, w, dy], eps)
}

/// See [`crate::layer_norm`].
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Option<Tensor>> {
    norm(Kernel::LayerNorm, "layer_norm", [x, w, b], eps)
}

/// The gradient of `x`.
pub fn layer_norm_backward(
    x: &Tensor,
    w: &Tensor,
    dy: &Tensor,
    eps: f64,
) -> Result<Option<Tensor>> {
    norm(Kernel::LayerNorm, "layer_norm_backward", [x, w, dy], eps)
}

/// A kernel over the rows of `x` that reads `w` and one tensor more.
fn norm(kernel: Kernel, name: &str, inputs: [&Tensor; 3], eps: f64) -> Result<Option<Tensor>> {
    let Some(device) = device(kernel, &inputs) else { return Ok(None) };
    of_type!(inputs[0].dtype(), norm_of(&device, name, inputs, eps as f32)).map(Some)
}

fn norm_of<T: Number>(
    device: &CudaDevice,
    kernel: &str,
    [x, w, third]: [&Tensor; 3],
    eps: f32,
) -> Result<Tensor> {
    let n = w.elem_count();
    let mut out = uninit::<T>(device, x.elem_count())?;
    let width = n as i32;
    with::<T, _>(x, |x_values| {
        with::<T, _>(w, |w_values| {
            with::<T, _>(third, |third| {
                let name = format!("{kernel}_{}", T::NAME);
                let grid = (x.elem_count() / n, 1, 1);
                let module = ROW_KERNELS;
                launch!(
                    device,
                    module,
                    name,
                    grid,
                    ROW_THREADS,
                    [&mut out, &x_values, &w_values, &third, &width, &eps]
                );
                Ok(())
            })
        })
    })?;
    Ok(tensor(out, x.shape(), device))
}

/// See [`crate::gated`].
pub fn gated(gate: &Tensor, up: &Tensor, how: Gate) -> Result<Option<Tensor>> {
    let Some(device) = device(Kernel::Gated, &[gate, up]) else { return Ok(None) };
    of_type!(gate.dtype(), gated_of(&device, gate, up, how)).map(Some)
}

fn gated_of<T: Number>(
    device: &CudaDevice,
    gate: &Tensor,
    up: &Tensor,
    how: Gate,
) -> Result<Tensor> {
    let count = gate.elem_count();
    let mut y = uninit::<T>(device, count)?;
    let n = count as i64;
    with::<T, _>(gate, |gate| {
        with::<T, _>(up, |up| {
            let name = format!("{}_{}", gate_kernel(how), T::NAME);
            let grid = (element_blocks(count), 1, 1);
            launch!(device, ELEMENT_KERNELS, name, grid, ELEMENT_THREADS, [&mut y, &gate, &up, &n]);
            Ok(())
        })
    })?;
    Ok(tensor(y, gate.shape(), device))
}

/// The gradients of `gate` and `up`.
pub fn gated_backward(
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    how: Gate,
) -> Result<Option<[Tensor; 2]>> {
    let Some(device) = device(Kernel::Gated, &[gate, up, dy]) else { return Ok(None) };
    of_type!(gate.dtype(), gated_backward_of(&device, gate, up, dy, how)).map(Some)
}

fn gated_backward_of<T: Number>(
    device: &CudaDevice,
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    how: Gate,
) -> Result<[Tensor; 2]> {
    let count = gate.elem_count();
    let (mut dgate, mut dup) = (uninit::<T>(device, count)?, uninit::<T>(device, count)?);
    let n = count as i64;
    with::<T, _>(gate, |gate| {
        with::<T, _>(up, |up| {
            with::<T, _>(dy, |dy| {
                let name = format!("{}_backward_{}", gate_kernel(how), T::NAME);
                let grid = (element_blocks(count), 1, 1);
                let module = ELEMENT_KERNELS;
                launch!(
                    device,
                    module,
                    name,
                    grid,
                    ELEMENT_THREADS,
                    [&mut dgate, &mut dup, &gate, &up, &dy, &n]
                );
                Ok(())
            })
        })
    })?;
    Ok([tensor(dgate, gate.shape(), device), tensor(dup, gate.shape(), device)])
}

/// See [`crate::rope`]; `x` is `[b, t, h, d]`, and a `direction` of −1 turns back.
pub fn rope(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    positions: &Tensor,
    direction: f32,
) -> Result<Option<Tensor>> {
    let angles_fit =
        [cos, sin].iter().all(|angles| angles.dtype() == DType::F32 && angles.device().is_cuda());
    let Some(device) = device(Kernel::Rope, &[x]).filter(|_| angles_fit) else { return Ok(None) };
    of_type!(x.dtype(), rope_of(&device, x, cos, sin, positions, direction)).map(Some)
}

fn rope_of<T: Number>(
    device: &CudaDevice,
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    positions: &Tensor,
    direction: f32,
) -> Result<Tensor> {
    let (_, _, h, d) = x.dims4()?;
    let count = x.elem_count() / 2;
    let mut y = uninit::<T>(device, x.elem_count())?;
    let (heads, half, pairs) = (h as i32, (d / 2) as i32, count as i64);
    with::<T, _>(x, |x| {
        with::<f32, _>(cos, |cos| {
            with::<f32, _>(sin, |sin| {
                with::<u32, _>(positions, |positions| {
                    let name = format!("rope_{}", T::NAME);
                    let grid = (element_blocks(count), 1, 1);
                    let module = ELEMENT_KERNELS;
                    launch!(
                        device,
                        module,
                        name,
                        grid,
                        ELEMENT_THREADS,
                        [&mut y, &x, &cos, &sin, &positions, &heads, &half, &pairs, &direction]
                    );
                    Ok(())
                })
            })
        })
    })?;
    Ok(tensor(y, x.shape(), device))
}

/// The sizes and the scale as the attention kernels take them.
fn numbers(sizes: Sizes) -> [i32; 4] {
    [sizes.t as i32, sizes.s as i32, sizes.h as i32, sizes.hkv as i32]
}

/// The first keys on the device; nothing when every query sees the very first.
fn first_keys(device: &CudaDevice, first: Option<&[usize]>) -> Result<Option<CudaSlice<i32>>> {
    let Some(first) = first else { return Ok(None) };
    let first: Vec<i32> = first.iter().map(|first| *first as i32).collect();
    device.clone_htod(&first).map(Some)
}

/// See [`crate::attention`]: the result and each query's logarithm of its softmax's
/// denominator, `[b, h, t]`.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    first: Option<&[usize]>,
    scale: f32,
    sizes: Sizes,
) -> Result<Option<(Tensor, Tensor)>> {
    let Sizes { b, t, h, d, .. } = sizes;
    let fits = d == 64 || d == 128;
    let Some(device) = device(Kernel::Attention, &[q, k, v]).filter(|_| fits) else {
        return Ok(None);
    };
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let mut y = uninit::<bf16>(&device, b * t * h * d)?;
    let mut log_sums = uninit::<f32>(&device, b * h * t)?;
    let firsts = first_keys(&device, first)?;
    let [nt, ns, nh, nhkv] = numbers(sizes);
    with::<bf16, _>(&q, |q| {
        with::<bf16, _>(&k, |k| {
            with::<bf16, _>(&v, |v| {
                let name = format!("attention_{d}");
                let grid = (t.div_ceil(ATTENTION_ROWS), h, b);
                let (null, module) = (0u64, ATTENTION_KERNELS);
                match &firsts {
                    Some(firsts) => launch!(
                        device,
                        module,
                        name,
                        grid,
                        ATTENTION_THREADS,
                        [&mut y, &mut log_sums, &q, &k, &v, firsts, &nt, &ns, &nh, &nhkv, &scale]
                    ),
                    None => launch!(
                        device,
                        module,
                        name,
                        grid,
                        ATTENTION_THREADS,
                        [&mut y, &mut log_sums, &q, &k, &v, &null, &nt, &ns, &nh, &nhkv, &scale]
                    ),
                }
                Ok(())
            })
        })
    })?;
    Ok(Some((tensor(y, (b, t, h * d), &device), tensor(log_sums, (b, h, t), &device))))
}

/// The gradients of queries, keys and values.
pub fn attention_backward(attended: Attended, dy: &Tensor) -> Result<Option<[Tensor; 3]>> {
    let Attended { inputs: [q, k, v], y, log_sums, first, scale, sizes } = attended;
    let Sizes { b, t, s, h, hkv, d } = sizes;
    let Some(device) = device(Kernel::Attention, &[q, k, v, y, dy]) else { return Ok(None) };
    let (shapes, [q, k, v]) =
        ([q, k, v].map(Tensor::shape), [q.contiguous()?, k.contiguous()?, v.contiguous()?]);
    let mut along = uninit::<f32>(&device, b * h * t)?;
    let mut dq = uninit::<bf16>(&device, q.elem_count())?;
    let (mut dk, mut dv) =
        (uninit::<bf16>(&device, k.elem_count())?, uninit::<bf16>(&device, v.elem_count())?);
    let firsts = first_keys(&device, first)?;
    let [nt, ns, nh, nhkv] = numbers(sizes);
    let (rows, null, module) = ((b * t * h) as i32, 0u64, ATTENTION_KERNELS);
    with::<bf16, _>(y, |y| {
        with::<bf16, _>(dy, |dy| {
            let name = format!("attention_dots_{d}");
            let grid = ((b * t * h).div_ceil(ATTENTION_THREADS / 32), 1, 1);
            launch!(
                device,
                module,
                name,
                grid,
                ATTENTION_THREADS,
                [&mut along, &y, &dy, &nt, &nh, &rows]
            );
            Ok(())
        })
    })?;
    with::<bf16, _>(&q, |q| {
        with::<bf16, _>(&k, |k| {
            with::<bf16, _>(&v, |v| {
                with::<bf16, _>(dy, |dy| {
                    with::<f32, _>(log_sums, |log_sums| {
                        let (of_queries, of_keys) =
                            (format!("attention_queries_{d}"), format!("attention_keys_{d}"));
                        let query_grid = (t.div_ceil(ATTENTION_ROWS), h, b);
                        let key_grid = (s.div_ceil(ATTENTION_ROWS), hkv, b);
                        let threads = ATTENTION_THREADS;
                        match &firsts {
                            Some(firsts) => {
                                launch!(
                                    device,
                                    module,
                                    of_queries,
                                    query_grid,
                                    threads,
                                    [
                                        &mut dq, &q, &k, &v, &dy, &log_sums, &along, firsts, &nt,
                                        &ns, &nh, &nhkv, &scale
                                    ]
                                );
                                launch!(
                                    device,
                                    module,
                                    of_keys,
                                    key_grid,
                                    threads,
                                    [
                                        &mut dk, &mut dv, &q, &k, &v, &dy, &log_sums, &along,
                                        firsts, &nt, &ns, &nh, &nhkv, &scale
                                    ]
                                );
                            }
                            None => {
                                launch!(
                                    device,
                                    module,
                                    of_queries,
                                    query_grid,
                                    threads,
                                    [
                                        &mut dq, &q, &k, &v, &dy, &log_sums, &along, &null, &nt,
                                        &ns, &nh, &nhkv, &scale
                                    ]
                                );
                                launch!(
                                    device,
                                    module,
                                    of_keys,
                                    key_grid,
                                    threads,
                                    [
                                        &mut dk, &mut dv, &q, &k, &v, &dy, &log_sums, &along,
                                        &null, &nt, &ns, &nh, &nhkv, &scale
                                    ]
                                );
                            }
                        }
                        Ok(())
                    })
                })
            })
        })
    })?;
    Ok(Some([
        tensor(dq, shapes[0], &device),
        tensor(dk, shapes[1], &device),
        tensor(dv, shapes[2], &device),
    ]))
}

/// The loss of each row of a chunk of logits, `[c]`, which are overwritten by their gradient.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Option<Tensor>> {
    let Some(device) = device(Kernel::CrossEntropy, &[logits]) else { return Ok(None) };
    of_type!(logits.dtype(), cross_entropy_of(&device, logits, targets)).map(Some)
}

fn cross_entropy_of<T: Number>(
    device: &CudaDevice,
    logits: &Tensor,
    targets: &Tensor,
) -> Result<Tensor> {
    let (rows, vocabulary) = logits.dims2()?;
    let losses = RefCell::new(uninit::<f32>(device, rows)?);
    let width = vocabulary as i32;
    logits.inplace_op1(&InPlace(|storage: &mut CudaStorage, layout: &Layout| {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("cross_entropy: expected contiguous logits")
        };
        let mut values = storage.as_cuda_slice_mut::<T>()?.slice_mut(from..to);
        with::<u32, _>(targets, |targets| {
            let name = format!("cross_entropy_{}", T::NAME);
            let mut losses = losses.borrow_mut();
            let (losses, grid, module) = (&mut *losses, (rows, 1, 1), ROW_KERNELS);
            launch!(
                device,
                module,
                name,
                grid,
                ROW_THREADS,
                [&mut values, losses, &targets, &width]
            );
            Ok(())
        })
    }))?;
    Ok(tensor(losses.into_inner(), rows, device))
}

/// `y [n, out] += left [n, k] · right`, in place, with `right` `[k, out]`, or `[out, k]` to be read
/// transposed. Answers whether it was done.
pub fn add_product(
    y: &Tensor,
    left: &Tensor,
    right: &Tensor,
    right_transposed: bool,
) -> Result<bool> {
    let contiguous = [left, right].iter().all(|tensor| tensor.is_contiguous());
    if device(Kernel::LowRank, &[y, left, right]).filter(|_| contiguous).is_none() {
        return Ok(false);
    }
    of_type!(y.dtype(), add_product_of(y, left, right, right_transposed)).map(|()| true)
}

fn add_product_of<T: Number + Factor>(
    y: &Tensor,
    left: &Tensor,
    right: &Tensor,
    right_transposed: bool,
) -> Result<()>
where
    CudaBlas: Gemm<T>,
{
    let ((n, out), k) = (y.dims2()?, left.dim(1)?);
    let how = ByColumns::of(n, out, k, right_transposed);
    let config = GemmConfig {
        transa: if how.transposed {
            cublasOperation_t::CUBLAS_OP_T
        } else {
            cublasOperation_t::CUBLAS_OP_N
        },
        transb: cublasOperation_t::CUBLAS_OP_N,
        m: how.m as i32,
        n: how.n as i32,
        k: how.k as i32,
        alpha: T::ONE,
        lda: how.lda as i32,
        ldb: how.ldb as i32,
        beta: T::ONE,
        ldc: how.ldc as i32,
    };
    y.inplace_op1(&InPlace(|storage: &mut CudaStorage, layout: &Layout| {
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("add_product: expected a contiguous sum")
        };
        let blas = storage.device().cublas_handle();
        let mut sum = storage.as_cuda_slice_mut::<T>()?.slice_mut(from..to);
        with::<T, _>(right, |right| {
            // SAFETY: the sizes are those of the three matrices.
            with::<T, _>(left, |left| unsafe { blas.gemm(config, &right, &left, &mut sum) }.w())
        })?;
        count_launch("add_product");
        Ok(())
    }))
}

/// The number that a product is multiplied with.
trait Factor {
    const ONE: Self;
}

impl Factor for f32 {
    const ONE: Self = 1.;
}

impl Factor for bf16 {
    const ONE: Self = bf16::ONE;
}

/// Writes into a tensor's buffer on the device.
struct InPlace<F>(F);

impl<F: Fn(&mut CudaStorage, &Layout) -> Result<()>> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "in place"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("this operation is for GPUs")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        (self.0)(storage, layout)
    }
}
