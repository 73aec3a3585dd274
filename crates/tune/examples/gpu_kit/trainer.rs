//! Part c: the trainer on a device. What must hold for every run, a run of twenty steps against
//! PEFT's losses (`tests/golden/lora_tiny`) in f32 and bf16, and notebook 00's steps.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};
use tunebook_models::{Device, GenerationConfig, Model};
use tunebook_ops::cuda::checks::difference;
use tunebook_ops::cuda::{Allowed, Kernel, Launches, allow, allowed, launches};
use tunebook_tune::{
    Adapters, Batch, EvalStrategy, Example, Full, FullTuning, Lora, Run, SaveStrategy, Stepper,
    TokenizedExample, Trainer, TrainingArgs,
};

use crate::report::{Result, judged};

#[derive(Deserialize)]
struct Golden {
    rows: Vec<Row>,
    micro_batches: Vec<Vec<Vec<usize>>>,
    warmup_steps: usize,
    learning_rate: f64,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Row {
    ids: Vec<u32>,
    labels: Vec<i64>,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    grad_norm: f64,
}

/// The tiny model with its golden run, and where to compute.
struct Tiny<'a> {
    folder: PathBuf,
    device: &'a Device,
    golden: Golden,
}

pub(crate) fn run(kit: &Path, models: &[PathBuf], device: &Device) -> Result<()> {
    let folder = kit.join("golden/lora_tiny");
    let golden = serde_json::from_slice(&std::fs::read(folder.join("run.json"))?)?;
    let tiny = Tiny { folder, device, golden };
    judged("golden run, F32", tiny.golden_run(DType::F32, 1e-3))?;
    judged("golden run, BF16", tiny.golden_run(DType::BF16, 5e-2))?;
    let fused =
        |dtype, allowed| with_kernels(device, dtype, &tiny, || tiny.golden_run(dtype, allowed));
    judged("golden run with the fused kernels, F32", fused(DType::F32, 1e-3))?;
    judged("golden run with the fused kernels, BF16", fused(DType::BF16, 5e-2))?;
    for dtype in [DType::F32, DType::BF16] {
        judged(&format!("gradients are the CPU's, {dtype:?}"), tiny.gradients(dtype))?;
        judged(
            &format!("blocks run again give the same losses, {dtype:?}"),
            tiny.run_again(dtype),
        )?;
        judged(&format!("one seed is one run, {dtype:?}"), tiny.repeated(dtype))?;
        judged(&format!("merged is unmerged, {dtype:?}"), tiny.merged(dtype))?;
        judged(&format!("full fine-tuning lowers the loss, {dtype:?}"), tiny.full(dtype))?;
    }
    judged("micro-batches are one large batch", tiny.micro_batches())?;
    judged("f16 with a loss scale", tiny.half())?;
    judged("resumed is never stopped", tiny.resumed())?;
    let first = tiny.folder.join("model");
    for model in std::iter::once(&first).chain(models) {
        let name = model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        judged(&format!("notebook 00's steps, {name}"), notebook(model, device))?;
        let fused = with_all(device, || notebook(model, device)).map(|(found, made)| {
            let ((good, mut figures), launched) = (found, made);
            figures["launches"] = json!(launched.0);
            // The random model has heads of 64, which attention's kernels are for.
            let attends = figures["dtype"] != "BF16"
                || !name.starts_with("llama-tiny")
                || launched.missing(Kernel::Attention, DType::BF16, 1, 1).is_none();
            (good && (device.is_cpu() || attends), figures)
        });
        judged(&format!("notebook 00's steps with the fused kernels, {name}"), fused)?;
    }
    Ok(())
}

/// With all kernels: what came of it, and what was launched.
fn with_all<T>(device: &Device, work: impl FnOnce() -> Result<T>) -> Result<(T, Launches)> {
    let (before, chosen) = (launches(), allowed());
    allow(Allowed::All);
    let found = work();
    allow(chosen);
    let made = launches().since(&before);
    if !device.is_cpu() && made.0.is_empty() {
        return Err("no kernel was launched".into());
    }
    Ok((found?, made))
}

/// A golden run with all kernels, of which each that the model has an operation for must be launched
/// in every step, forward and backward.
fn with_kernels(
    device: &Device,
    dtype: DType,
    tiny: &Tiny,
    work: impl FnOnce() -> Result<(bool, Value)>,
) -> Result<(bool, Value)> {
    // Heads of 8 are none for attention's kernels.
    const KERNELS: [Kernel; 5] =
        [Kernel::RmsNorm, Kernel::Rope, Kernel::Gated, Kernel::CrossEntropy, Kernel::LowRank];
    let ((good, mut figures), made) = with_all(device, work)?;
    let steps = tiny.golden.steps.len() as u64;
    let missing: Vec<String> =
        KERNELS.iter().filter_map(|kernel| made.missing(*kernel, dtype, steps, steps)).collect();
    figures["launches"] = json!(made.0);
    if device.is_cpu() {
        return Ok((good, figures));
    }
    figures["missing"] = json!(missing);
    Ok((good && missing.is_empty(), figures))
}

fn pairs(count: usize) -> Vec<Example> {
    (0..count).map(|i| Example::new(format!("{i}"), format!("{} {}", i * 7 % 11, i * 3))).collect()
}

fn lora() -> Lora {
    Lora {
        r: 3,
        lora_alpha: 5.0,
        target_modules: "all-linear".into(),
        init_lora_weights: false,
        ..Default::default()
    }
}

fn losses(run: &Run) -> Vec<f64> {
    run.steps.iter().map(|step| step.loss).collect()
}

/// The largest relative difference; NaN if a number is none.
fn apart(found: &[f64], right: &[f64]) -> f64 {
    if found.len() != right.len() || found.is_empty() {
        return f64::NAN;
    }
    let each = found.iter().zip(right).map(|(a, b)| ((a - b) / b).abs());
    each.fold(0.0, |worst, next| if next.is_nan() || next > worst { next } else { worst })
}

impl Tiny<'_> {
    fn model(&self, dtype: DType) -> Result<Model> {
        Ok(Model::load_as(self.folder.join("model"), Some(dtype), self.device)?)
    }

    fn with_adapter(&self, dtype: DType) -> Result<Model> {
        let model = self.model(dtype)?;
        model.add_adapter("a", lora())?;
        Ok(model)
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        self.batch_on(self.device, indices)
    }

    fn batch_on(&self, device: &Device, indices: &[usize]) -> Result<Batch> {
        let rows: Vec<TokenizedExample> = indices
            .iter()
            .map(|&row| TokenizedExample {
                row,
                ids: self.golden.rows[row].ids.clone(),
                labels: self.golden.rows[row].labels.clone(),
            })
            .collect();
        Ok(Batch::new(&rows.iter().collect::<Vec<_>>(), 0, device)?)
    }

    fn golden_run(&self, dtype: DType, allowed: f64) -> Result<(bool, Value)> {
        let model = self.model(dtype)?;
        model.load_adapter(self.folder.join("initial"), "default")?;
        let args = TrainingArgs {
            learning_rate: self.golden.learning_rate,
            warmup_steps: Some(self.golden.warmup_steps),
            gradient_accumulation_steps: 2,
            ..Default::default()
        };
        let mut stepper = Stepper::new(&model, &args, self.golden.steps.len())?;
        let (mut found, mut norms) = (Vec::new(), Vec::new());
        for groups in &self.golden.micro_batches {
            let batches: Vec<Batch> =
                groups.iter().map(|rows| self.batch(rows)).collect::<Result<_>>()?;
            let outcome = stepper.step(&batches)?;
            found.push(outcome.loss);
            norms.push(outcome.grad_norm);
        }
        let right: Vec<f64> = self.golden.steps.iter().map(|step| step.loss).collect();
        let right_norms: Vec<f64> = self.golden.steps.iter().map(|step| step.grad_norm).collect();
        let (loss, norm) = (apart(&found, &right), apart(&norms, &right_norms));
        // Norms move more than losses do, and further from the start.
        let good = loss <= allowed && norm <= 4.0 * allowed;
        Ok((
            good,
            json!({"steps": found.len(), "loss_difference": loss, "norm_difference": norm, "allowed": allowed, "losses": found}),
        ))
    }

    /// Those of the CPU in f32, which all are there.
    fn gradients(&self, dtype: DType) -> Result<(bool, Value)> {
        let found = self.gradients_on(self.device, dtype)?;
        let right = self.gradients_on(&Device::Cpu, DType::F32)?;
        if found.len() != right.len() || right.is_empty() {
            return Err(format!("{} gradients, expected {}", found.len(), right.len()).into());
        }
        let allowed = if dtype == DType::F32 { 5e-3 } else { 0.1 };
        let (mut worst, mut wrong) = (0f32, Vec::new());
        for ((name, found), (_, right)) in found.iter().zip(&right) {
            let off = difference(found, right)?;
            if off > allowed || off.is_nan() {
                wrong.push(name);
            }
            worst = worst.max(off);
        }
        Ok((
            wrong.is_empty(),
            json!({"tensors": found.len(), "difference": worst, "allowed": allowed, "wrong": wrong}),
        ))
    }

    fn gradients_on(&self, device: &Device, dtype: DType) -> Result<Vec<(String, Tensor)>> {
        let model = Model::load_as(self.folder.join("model"), Some(dtype), device)?;
        model.add_adapter("a", lora())?;
        let stepper = Stepper::new(&model, &TrainingArgs::default(), 1)?;
        let (_, gradients) = stepper.gradients(&[self.batch_on(device, &[0, 1, 2])?])?;
        let all = stepper.parameters().iter().zip(gradients.iter());
        all.map(|(parameter, gradient)| {
            let name = parameter.name.clone();
            let gradient = gradient.ok_or_else(|| format!("{name} has no gradient"))?.clone();
            Ok((name, gradient))
        })
        .collect()
    }

    fn trained(&self, dtype: DType, args: &TrainingArgs) -> Result<(Vec<f64>, Model)> {
        let model = self.with_adapter(dtype)?;
        let run = Trainer::new(&model, args).train(&pairs(12))?;
        Ok((losses(&run), model))
    }

    fn args(&self) -> TrainingArgs {
        TrainingArgs { max_steps: Some(6), learning_rate: 1e-2, ..Default::default() }
    }

    fn run_again(&self, dtype: DType) -> Result<(bool, Value)> {
        let (kept, _) = self.trained(dtype, &self.args())?;
        let args = TrainingArgs { gradient_checkpointing: true, ..self.args() };
        let (again, _) = self.trained(dtype, &args)?;
        Ok(same(&again, &kept))
    }

    fn repeated(&self, dtype: DType) -> Result<(bool, Value)> {
        let (first, _) = self.trained(dtype, &self.args())?;
        let (second, _) = self.trained(dtype, &self.args())?;
        Ok(same(&second, &first))
    }

    fn merged(&self, dtype: DType) -> Result<(bool, Value)> {
        let (_, model) = self.trained(dtype, &self.args())?;
        let ids = Tensor::new(&[[1u32, 20, 30, 40]], self.device)?;
        let unmerged = model.forward(&ids)?;
        model.merge_adapter("a")?;
        let found = difference(&model.forward(&ids)?, &unmerged)?;
        let base = difference(&model.base().forward(&ids)?, &unmerged)?;
        let allowed = if dtype == DType::F32 { 2e-3 } else { 3e-2 };
        Ok((
            found <= allowed && base > found,
            json!({"difference": found, "allowed": allowed, "difference_of_the_base": base}),
        ))
    }

    fn full(&self, dtype: DType) -> Result<(bool, Value)> {
        // On the CPU weights in bf16 are not trained; f16 has masters in f32 as bf16 has on a GPU.
        let stands_in = self.device.is_cpu() && dtype == DType::BF16;
        let model = self.model(if stands_in { DType::F16 } else { dtype })?;
        model.unfreeze(&Full::default())?;
        let args = TrainingArgs { max_steps: Some(12), learning_rate: 3e-3, ..self.args() };
        let run = Trainer::new(&model, &args).train(&pairs(12))?;
        Ok(lowered(&losses(&run)))
    }

    fn micro_batches(&self) -> Result<(bool, Value)> {
        let args = |batch_size, gradient_accumulation_steps| TrainingArgs {
            batch_size,
            gradient_accumulation_steps,
            ..self.args()
        };
        let (one, _) = self.trained(DType::F32, &args(6, 1))?;
        let (parts, _) = self.trained(DType::F32, &args(2, 3))?;
        let found = apart(&parts, &one);
        Ok((found <= 1e-3, json!({"difference": found, "allowed": 1e-3})))
    }

    fn half(&self) -> Result<(bool, Value)> {
        let args = TrainingArgs { fp16: true, fp16_init_scale: 1024.0, ..self.args() };
        let (half, _) = self.trained(DType::F16, &args)?;
        let (full, _) = self.trained(DType::F32, &args)?;
        let found = apart(&half, &full);
        Ok((found <= 2e-2, json!({"difference": found, "allowed": 2e-2})))
    }

    fn resumed(&self) -> Result<(bool, Value)> {
        let folder = Scratch::new("resumed")?;
        let args = TrainingArgs {
            save_strategy: SaveStrategy::Steps(3),
            eval_strategy: EvalStrategy::No,
            output_dir: Some(folder.0.clone()),
            ..self.args()
        };
        let (whole, _) = self.trained(DType::F32, &args)?;
        let from = Run::load(folder.0.join("checkpoint-3"))?;
        let model = self.with_adapter(DType::F32)?;
        let other = TrainingArgs { save_strategy: SaveStrategy::No, output_dir: None, ..args };
        let run = Trainer::new(&model, &other).resume(&from, &pairs(12))?;
        Ok(same(&losses(&run), &whole))
    }
}

/// Whether losses are the same. Bit for bit is told; a GPU may add up in another order.
fn same(found: &[f64], right: &[f64]) -> (bool, Value) {
    let difference = apart(found, right);
    (
        difference <= 1e-5,
        json!({"bit_for_bit": found == right, "difference": difference, "allowed": 1e-5}),
    )
}

fn lowered(losses: &[f64]) -> (bool, Value) {
    let good = match losses {
        [first, .., last] => last < first && losses.iter().all(|loss| loss.is_finite()),
        _ => false,
    };
    (good, json!({"losses": losses}))
}

/// Load, LoRA, a few steps, an answer, save, and the same answer from a model that was loaded anew.
fn notebook(path: &Path, device: &Device) -> Result<(bool, Value)> {
    let model = Model::load(path, device)?;
    let lora = Lora {
        r: 8,
        lora_alpha: 32.0,
        lora_dropout: 0.1,
        target_modules: ["q_proj", "v_proj"].into(),
        ..Default::default()
    };
    model.add_adapter("support", &lora)?;
    let args = TrainingArgs {
        batch_size: 4,
        learning_rate: 3e-3,
        max_steps: Some(12),
        eval_strategy: EvalStrategy::Steps(6),
        ..Default::default()
    };
    // Two rows again and again: twelve steps must show in the loss.
    let rows: Vec<Example> = pairs(2).into_iter().cycle().take(24).collect();
    let run = Trainer::new(&model, &args).train((&rows, &rows[..2]))?;
    let (good, mut figures) = lowered(&losses(&run));

    let config = GenerationConfig { max_new_tokens: 8, ignore_eos: true, ..Default::default() };
    let prompt = [vec![1u32, 20, 30, 40]];
    let answer = model.generate_ids(&prompt, &config)?;
    let folder = Scratch::new("saved")?;
    let saved = model.save_adapter("support", &folder.0)?;
    drop(model);
    let again = Model::load(path, device)?;
    again.load_adapter(&saved, "support")?;
    let same = again.generate_ids(&prompt, &config)? == answer;
    figures["dtype"] = json!(format!("{:?}", again.dtype()));
    figures["the_same_answer_after_loading"] = json!(same);
    Ok((good && same, figures))
}

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("gpu-kit-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
