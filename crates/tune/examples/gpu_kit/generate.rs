//! Part f: greedy answers of the tiny model against the CPU's; tokens a second at batch 1, 8 and
//! 32, and of a long prompt.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Tensor;
use serde_json::{Value, json};
use tunebook_models::{DType, Device, GenerationConfig, Model, default_dtype};
use tunebook_ops::cuda::checks::difference;

use crate::report::{Result, judged, tell};

/// Answers at a time.
const BATCHES: [usize; 3] = [1, 8, 32];

pub(crate) fn run(kit: &Path, models: &[PathBuf], device: &Device, tiny: bool) -> Result<()> {
    judged("answers are the CPU's", answers(&kit.join("golden/lora_tiny/model"), device))?;
    if models.is_empty() {
        tell("generation", None, json!({"reason": "no model was given"}))?;
    }
    // On the CPU f16, which is as close as it comes to activations of 16 bits.
    let dtype = if device.is_cpu() { DType::F16 } else { default_dtype(device) };
    for path in models {
        let start = Instant::now();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let model = match Model::load_as(path, Some(dtype), device) {
            Ok(model) => model,
            Err(error) => {
                judged(&format!("{name} is loaded"), Err(error.into()))?;
                continue;
            }
        };
        let secs = start.elapsed().as_secs_f64();
        tell(
            &format!("{name} is loaded"),
            None,
            json!({"secs": secs, "dtype": format!("{dtype:?}"), "weights_mb": model.memory_bytes() as f64 / 1e6}),
        )?;
        judged(&format!("{name}, logits are numbers"), numbers(&model))?;
        for batch in BATCHES {
            judged(&format!("{name}, {batch} at a time"), speed(&model, batch, tiny))?;
        }
        judged(&format!("{name}, a long prompt"), prefill(&model, tiny))?;
    }
    Ok(())
}

/// The tokens that the CPU gives, in f32, and logits near its own in the type of a default run.
fn answers(path: &Path, device: &Device) -> Result<(bool, Value)> {
    let load = |dtype, device: &Device| Model::load_as(path, Some(dtype), device);
    let (right, there) = (load(DType::F32, &Device::Cpu)?, load(DType::F32, device)?);
    let prompts = prompts(&right, 5, 12);
    let config = GenerationConfig {
        max_new_tokens: 8,
        batch_size: prompts.len(),
        ignore_eos: true,
        ..Default::default()
    };
    let expected = right.generate_ids(&prompts, &config)?;
    if expected.iter().flatten().all(|id| *id == expected[0][0]) {
        return Err("the CPU's answers are one token: nothing was compared".into());
    }
    let found = there.generate_ids(&prompts, &config)?;
    let narrow = load(if device.is_cpu() { DType::F16 } else { default_dtype(device) }, device)?;
    let logits = |model: &Model, device: &Device| -> Result<Tensor> {
        Ok(model.forward(&Tensor::new(prompts.clone(), device)?)?)
    };
    let off = difference(&logits(&narrow, device)?, &logits(&right, &Device::Cpu)?)?;
    Ok((
        found == expected && off <= 5e-2,
        json!({"tokens": found, "expected": expected, "difference": off, "allowed": 5e-2}),
    ))
}

/// Whether logits are numbers, and not the same everywhere.
fn numbers(model: &Model) -> Result<(bool, Value)> {
    let logits = model.forward(&Tensor::new(prompts(model, 1, 8), model.device())?)?;
    // NaN where one is none; an error where they are all the same.
    let off = difference(&logits, &logits)?;
    Ok((off == 0.0, json!({"difference": off})))
}

/// Ids that no row shares a beginning with, so that nothing that was computed is kept.
fn prompts(model: &Model, rows: usize, tokens: usize) -> Vec<Vec<u32>> {
    let vocabulary = model.config().vocab_size;
    let id =
        |row: usize, at: usize| (3 + (row * 7919 + at * 104_729 + 17) % (vocabulary - 3)) as u32;
    (0..rows).map(|row| (0..tokens).map(|at| id(row, at)).collect()).collect()
}

fn timed(model: &Model, prompts: &[Vec<u32>], new: usize) -> Result<(f64, usize)> {
    let config = GenerationConfig {
        max_new_tokens: new,
        batch_size: prompts.len(),
        ignore_eos: true,
        ..Default::default()
    };
    let start = Instant::now();
    let answers = model.generate_ids(prompts, &config)?;
    Ok((start.elapsed().as_secs_f64(), answers.iter().map(Vec::len).sum()))
}

/// The time of many new tokens less that of one.
fn speed(model: &Model, rows: usize, tiny: bool) -> Result<(bool, Value)> {
    let new = if tiny { 5 } else { 65 };
    let prompts = prompts(model, rows, if tiny { 8 } else { 32 });
    timed(model, &prompts, 2)?; // loads kernels
    let (one, _) = timed(model, &prompts, 1)?;
    let (secs, tokens) = timed(model, &prompts, new)?;
    let per_s = (rows * (new - 1)) as f64 / (secs - one).max(1e-9);
    Ok((
        tokens == rows * new,
        json!({"tokens_per_s": per_s, "secs": secs, "first_token_secs": one}),
    ))
}

fn prefill(model: &Model, tiny: bool) -> Result<(bool, Value)> {
    let tokens = if tiny { 24 } else { 1024 };
    let prompts = prompts(model, 2, tokens);
    timed(model, &prompts[..1], 1)?;
    let (secs, made) = timed(model, &prompts[1..], 1)?;
    Ok((made == 1, json!({"tokens_per_s": tokens as f64 / secs, "secs": secs})))
}
