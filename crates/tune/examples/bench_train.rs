//! Our side of `cargo xtask bench train`: answers each `step` on standard input with the seconds
//! that it took, and `end` with the peak memory. The step is [`Stepper::step`], which is what
//! [`Trainer`](tunebook_tune::Trainer) calls.
//!
//! `bench_train MODEL IDS [--device=cpu|cuda] [--dtype=f32|bf16] [--method=lora|adapter|full]
//! [--rank=8] [--targets=q,v|all-linear] [--budget-mb=N] [--base=stored|nf4] [--naive]
//! [--checkpointing]`
//!
//! On a GPU a step ends when the device has done its work.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use bench::{Result, cpu_secs, peak_rss_mb};
use half::bf16;
use serde_json::{Value, json};
use tunebook_models::{BestDevice, Config, DType, Device, Model, Quantization};
use tunebook_ops::cpu::gemm::{Mat, product, product_by_vectors};
use tunebook_ops::cpu::half::{HalfMat, Right, Term, sum_of_products};
use tunebook_ops::{self as ops, profile};
use tunebook_tune::{
    Adapters, Batch, Bottleneck, BottleneckInit, Full, FullTuning, Lora, Stepper, TokenizedExample,
    TrainingArgs,
};

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_train: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for.
struct Options {
    paths: Vec<String>,
    cuda: bool,
    naive: bool,
    method: String,
    rank: usize,
    all_linear: bool,
    dtype: DType,
    base: Option<Quantization>,
    budget_bytes: Option<u64>,
    checkpointing: bool,
}

impl Options {
    fn read(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            paths: Vec::new(),
            cuda: false,
            naive: false,
            method: "lora".to_owned(),
            rank: 8,
            all_linear: false,
            dtype: DType::F32,
            base: None,
            budget_bytes: None,
            checkpointing: false,
        };
        for argument in arguments {
            if !argument.starts_with("--") {
                options.paths.push(argument);
                continue;
            }
            match argument.split_once('=').unwrap_or((&argument, "")) {
                ("--naive", "") => options.naive = true,
                ("--checkpointing", "") => options.checkpointing = true,
                ("--device", device @ ("cpu" | "cuda")) => options.cuda = device == "cuda",
                ("--dtype", "f32") => options.dtype = DType::F32,
                ("--dtype", "bf16") => options.dtype = DType::BF16,
                ("--method", method @ ("lora" | "adapter" | "full")) => {
                    options.method = method.to_owned()
                }
                ("--rank", rank) => options.rank = rank.parse()?,
                ("--targets", "q,v") => options.all_linear = false,
                ("--targets", "all-linear") => options.all_linear = true,
                ("--base", "stored") => options.base = Some(Quantization::Stored),
                ("--base", "nf4") => options.base = Some(Quantization::Nf4),
                ("--budget-mb", megabytes) => {
                    options.budget_bytes = Some((megabytes.parse::<f64>()? * 1e6) as u64);
                }
                ("--threads", _) => {} // rayon reads RAYON_NUM_THREADS
                _ => return Err(format!("cannot do {argument}").into()),
            }
        }
        Ok(options)
    }

    /// Makes the model trainable as asked.
    fn prepare(&self, model: &Model) -> Result<()> {
        match self.method.as_str() {
            "full" => {
                model.unfreeze(&Full::default())?;
            }
            // AdapterHub's other start changes the first loss by chance, and equal work could not
            // be told.
            "adapter" => {
                let config =
                    Bottleneck { init_weights: BottleneckInit::MamAdapter, ..Bottleneck::seq_bn() };
                model.add_adapter("bench", config)?;
            }
            _ => {
                let qv = ["q_proj", "v_proj"].into();
                let config = Lora {
                    r: self.rank,
                    lora_alpha: 2.0 * self.rank as f64,
                    lora_dropout: 0.0,
                    target_modules: if self.all_linear { "all-linear".into() } else { qv },
                    ..Default::default()
                };
                model.add_adapter("bench", &config)?;
            }
        }
        Ok(())
    }
}

/// Also a part of the GPU kit's program.
pub(crate) fn run(arguments: impl Iterator<Item = String>) -> Result<()> {
    let options = Options::read(arguments)?;
    let [model, ids] = options.paths.as_slice() else { return Err("needs MODEL and IDS".into()) };
    ops::compose(options.naive);
    let device = if options.cuda { Device::gpu(0)? } else { Device::Cpu };
    let batches: Vec<Vec<Vec<u32>>> = serde_json::from_slice(&std::fs::read(ids)?)?;
    let model = match options.base {
        Some(base) => Model::load_quantized(model, base, &device)?,
        None => Model::load_as(model, Some(options.dtype), &device)?,
    };
    options.prepare(&model)?;
    let wait = || device.synchronize();
    // A constant rate from the first step, as the peer's.
    let args = TrainingArgs {
        learning_rate: 2e-4,
        lr_scheduler: tunebook_tune::LrScheduler::Constant,
        warmup_ratio: 0.0,
        memory_budget: options.budget_bytes,
        gradient_checkpointing: options.checkpointing,
        ..Default::default()
    };
    let mut stepper = Stepper::new(&model, &args, batches.len())?;
    let mut answer = std::io::stdout();
    writeln!(answer, "{}", json!({"ready": true}))?;
    let mut step = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let reply = match line.trim() {
            "step" => {
                let rows: Vec<TokenizedExample> =
                    batches[step % batches.len()].iter().map(|ids| whole_row(ids)).collect();
                let batch = Batch::new(&rows.iter().collect::<Vec<_>>(), 0, &device)?;
                step += 1;
                wait()?;
                let (start, cpu) = (Instant::now(), cpu_secs()?);
                let outcome = stepper.step(&[batch])?;
                wait()?;
                json!({
                    "secs": start.elapsed().as_secs_f64(),
                    "cpu_secs": cpu_secs()? - cpu,
                    "loss": outcome.loss,
                })
            }
            "sgemm" => sgemm(
                model.config(),
                batches[0].len() * batches[0][0].len(),
                options.dtype == DType::BF16,
            ),
            "end" => {
                // One more step with the clock in every operation, which the others are spared.
                let peak = peak_rss_mb()?;
                let rows: Vec<TokenizedExample> =
                    batches[0].iter().map(|ids| whole_row(ids)).collect();
                let batch = Batch::new(&rows.iter().collect::<Vec<_>>(), 0, &device)?;
                profile::start();
                let start = Instant::now();
                stepper.step(&[batch])?;
                let whole = start.elapsed().as_secs_f64();
                let parts = parts(whole);
                json!({
                    "peak_rss_mb": peak,
                    "base_weights_mb": model.memory_bytes() as f64 / 1e6,
                    // Of a GPU the host's clock says only when work was handed over.
                    "profile_secs": if device.is_cpu() { parts } else { Value::Null },
                    "versions": {"tunebook": env!("CARGO_PKG_VERSION"), "candle": "0.11"},
                })
            }
            other => return Err(format!("was asked `{other}`; knows step, sgemm, end").into()),
        };
        writeln!(answer, "{reply}")?;
        answer.flush()?;
        if line.trim() == "end" {
            break;
        }
    }
    Ok(())
}

/// Every position labelled.
fn whole_row(ids: &[u32]) -> TokenizedExample {
    TokenizedExample {
        row: 0,
        ids: ids.to_vec(),
        labels: ids.iter().map(|&id| i64::from(id)).collect(),
    }
}

fn parts(whole: f64) -> Value {
    let mut rest = whole;
    let mut parts = serde_json::Map::new();
    for ((operation, pass), time) in profile::stop() {
        rest -= time.as_secs_f64();
        parts.insert(format!("{operation} {pass}"), json!(time.as_secs_f64()));
    }
    parts.insert("everything else".to_owned(), json!(rest));
    parts.insert("step".to_owned(), json!(whole));
    Value::Object(parts)
}

/// Arithmetic speed of the products that a step consists of (`x · wᵀ` forward, `dy · w` backward),
/// by candle's matrix product (the `gemm` crate), by ours with f32's multiplications, and by ours
/// as it is.
fn sgemm(config: &Config, m: usize, with_half: bool) -> Value {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    );
    let layers = config.num_hidden_layers;
    // [out, in] and how often
    let shapes = [
        (q, hidden, layers),
        (kv, hidden, 2 * layers),
        (hidden, q, layers),
        (ffn, hidden, 2 * layers),
        (hidden, ffn, layers),
        (config.vocab_size, hidden, 1),
    ];
    let macs: usize = shapes.iter().map(|(out, inp, count)| out * inp * count).sum();
    let flops_per_token = 4 * macs;
    let numbers =
        |n: usize| -> Vec<f32> { (0..n).map(|i| (i % 251) as f32 / 251. - 0.5).collect() };
    let (mut theirs, mut own, mut default, mut half) = (0., 0., 0., 0.);
    for (out, inp, count) in shapes {
        let (x, w, dy) = (numbers(m * inp), numbers(out * inp), numbers(m * out));
        let (mut y, mut dx) = (vec![0f32; m * out], vec![0f32; m * inp]);
        let repeats = if out * inp > 10_000_000 { 1 } else { 4 };
        theirs += count as f64
            * best(repeats, || {
                gemm_crate(m, out, inp, &mut y, &x, (inp, 1), &w, (1, inp));
                gemm_crate(m, inp, out, &mut dx, &dy, (out, 1), &w, (inp, 1));
            });
        own += count as f64
            * best(repeats, || {
                y = product_by_vectors(Mat::new(&x, m, inp), Mat::new(&w, out, inp).t());
                dx = product_by_vectors(Mat::new(&dy, m, out), Mat::new(&w, out, inp));
            });
        default += count as f64
            * best(repeats, || {
                y = product(Mat::new(&x, m, inp), Mat::new(&w, out, inp).t());
                dx = product(Mat::new(&dy, m, out), Mat::new(&w, out, inp));
            });
        if with_half {
            let w: Vec<bf16> = w.iter().map(|value| bf16::from_f32(*value)).collect();
            let w = HalfMat::new(&w, out, inp);
            half += count as f64
                * best(repeats, || {
                    let term = |a, b| Term { a, b: Right::Half(b), alpha: 1. };
                    y = sum_of_products(&[term(Mat::new(&x, m, inp), w.t())], None);
                    dx = sum_of_products(&[term(Mat::new(&dy, m, out), w)], None);
                });
        }
    }
    let gflops = |secs: f64| (flops_per_token * m) as f64 / secs / 1e9;
    let (theirs, own) = (gflops(theirs), gflops(own));
    json!({
        "gemm_crate": theirs,
        "own": own,
        // What sgemm is: f32's own multiplications. Where products take another way, `default` is
        // how fast that is.
        "f32": own.max(theirs),
        "default": gflops(default),
        "bf16": with_half.then(|| gflops(half)),
        "flops_per_token": flops_per_token,
    })
}

fn best(repeats: usize, mut work: impl FnMut()) -> f64 {
    (0..repeats)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// `c = a · b` by the `gemm` crate; strides are (row, column).
#[allow(clippy::too_many_arguments)]
fn gemm_crate(
    m: usize,
    n: usize,
    k: usize,
    c: &mut [f32],
    a: &[f32],
    sa: (usize, usize),
    b: &[f32],
    sb: (usize, usize),
) {
    assert!(c.len() == m * n && a.len() == m * k && b.len() == k * n);
    // SAFETY: the buffers hold matrices of these shapes.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            sa.1 as isize,
            sa.0 as isize,
            b.as_ptr(),
            sb.1 as isize,
            sb.0 as isize,
            0.,
            1.,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}
