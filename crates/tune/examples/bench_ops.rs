//! Each fused operation beside its plain composition, at the shapes of SmolLM2-135M: milliseconds
//! forward and backward (the fused form on a tape), the least of several runs.
//!
//! `cargo run -p tunebook-tune --example bench_ops [ROWS LENGTH]`

#![allow(clippy::print_stdout)]

use std::time::Instant;

use candle_core::{Device, Result, Tensor, Var};
use tunebook_ops::{self as ops, Attention, Tape, naive};

/// Forward on variables, to be differentiated.
type Form<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;
/// A backward pass that is ready to run.
type Backward = Box<dyn FnOnce() -> Result<()>>;

fn main() -> Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let (b, t) = match numbers[..] {
        [b, t] => (b, t),
        _ => (4, 128),
    };
    let n = b * t;
    let device = Device::Cpu;
    let random = |shape: &[usize]| Tensor::randn(0f32, 0.5, shape, &device);
    println!("{b} x {t} tokens, {} threads", rayon::current_num_threads());
    println!("{:32} {:>18} {:>18}", "", "fused fwd + bwd", "plain fwd + bwd");

    for (name, out, inp) in [("linear 576 -> 576", 576, 576), ("linear 576 -> 1536", 1536, 576)] {
        let w = random(&[out, inp])?;
        let x = [random(&[n, inp])?];
        row(name, &x, &|v| ops::linear(&v[0], &w, None), &|v| naive::linear(&v[0], &w, None))?;
    }
    let w = random(&[576, 576])?;
    let inputs = [random(&[n, 576])?, random(&[8, 576])?, random(&[576, 8])?];
    row(
        "lora_linear 576 -> 576, r 8",
        &inputs,
        &|v| ops::lora_linear(&v[0], &w, None, &v[1], &v[2], 2., None),
        &|v| naive::lora_linear(&v[0], &w, None, &v[1], &v[2], 2., None),
    )?;
    let w = random(&[576])?;
    let x = [random(&[n, 576])?];
    row("rms_norm", &x, &|v| ops::rms_norm(&v[0], &w, 1e-5), &|v| {
        naive::rms_norm(&v[0], &w, 1e-5)
    })?;
    let pair = [random(&[n, 1536])?, random(&[n, 1536])?];
    row("swiglu", &pair, &|v| ops::swiglu(&v[0], &v[1]), &|v| naive::swiglu(&v[0], &v[1]))?;
    let (cos, sin) = (random(&[t, 32])?, random(&[t, 32])?);
    let positions = Tensor::arange(0u32, t as u32, &device)?.broadcast_as((b, t))?.contiguous()?;
    let q = [random(&[b, t, 9, 64])?];
    row("rope", &q, &|v| ops::rope(&v[0], &cos, &sin, &positions), &|v| {
        naive::rope(&v[0], &cos, &sin, &positions)
    })?;
    let how = Attention { scale: 0.125, ..Default::default() };
    let qkv = [random(&[b, t, 9, 64])?, random(&[b, t, 3, 64])?, random(&[b, t, 3, 64])?];
    row("attention", &qkv, &|v| ops::attention(&v[0], &v[1], &v[2], &how), &|v| {
        naive::attention(&v[0], &v[1], &v[2], &how)
    })?;
    let head = random(&[49152, 576])?;
    let labels: Vec<i64> = (0..n as i64).map(|i| i * 37 % 49152).collect();
    let hidden = [random(&[n, 576])?];
    row("cross_entropy", &hidden, &|v| Ok(ops::cross_entropy(&v[0], &head, &labels)?.0), &|v| {
        Ok(naive::cross_entropy(&v[0], &head, &labels)?.0)
    })
}

fn row(name: &str, inputs: &[Tensor], fused: Form, plain: Form) -> Result<()> {
    let [ff, fb] = measure(inputs, &|vars| {
        let tape = Tape::record();
        let y = fused(vars)?;
        let tape = tape.stop();
        let gradient = y.ones_like()?;
        Ok(Box::new(move || tape.backward(&y, &gradient).map(drop)))
    })?;
    let [pf, pb] = measure(inputs, &|vars| {
        let y = plain(vars)?;
        Ok(Box::new(move || y.backward().map(drop)))
    })?;
    println!("{name:32} {ff:>8.2} + {fb:>7.2} {pf:>8.2} + {pb:>7.2}");
    Ok(())
}

/// Milliseconds of the forward pass, and of the backward pass that it returns.
fn measure(inputs: &[Tensor], forward: &dyn Fn(&[Tensor]) -> Result<Backward>) -> Result<[f64; 2]> {
    let mut least = [f64::INFINITY; 2];
    for _ in 0..5 {
        let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
        let vars: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let start = Instant::now();
        let backward = forward(&vars)?;
        least[0] = least[0].min(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        backward()?;
        least[1] = least[1].min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(least)
}
