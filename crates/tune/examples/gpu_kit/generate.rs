//! Part f: tokens a second of greedy answers at batch 1, 8 and 32, and of a long prompt.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use tunebook_models::{DType, Device, GenerationConfig, Model, default_dtype};

use crate::report::{Result, judged, tell};

/// Answers at a time.
const BATCHES: [usize; 3] = [1, 8, 32];

pub(crate) fn run(models: &[PathBuf], device: &Device, tiny: bool) -> Result<()> {
    if models.is_empty() {
        tell("generation", None, json!({"reason": "no model was given"}))?;
    }
    // On the CPU f16, which is as close as it comes to activations of 16 bits.
    let dtype = if device.is_cpu() { DType::F16 } else { default_dtype(device) };
    for path in models {
        let start = Instant::now();
        let model = Model::load_as(path, Some(dtype), device)?;
        let secs = start.elapsed().as_secs_f64();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        tell(
            &format!("{name} is loaded"),
            None,
            json!({"secs": secs, "dtype": format!("{dtype:?}"), "weights_mb": model.memory_bytes() as f64 / 1e6}),
        )?;
        for batch in BATCHES {
            judged(&format!("{name}, {batch} at a time"), speed(&model, batch, tiny))?;
        }
        judged(&format!("{name}, a long prompt"), prefill(&model, tiny))?;
    }
    Ok(())
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
