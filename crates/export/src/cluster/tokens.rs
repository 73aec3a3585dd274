//! The rows of a run as files: readable, and as token ids with labels in the order of the steps.
//!
//! Both engines take ids as they are: TRL with `skip_prepare_dataset` rows of `input_ids` and `labels`
//! (-100 where no loss is), Axolotl with an empty `type` those and an `attention_mask`.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tunebook_data::{Dataset, TrainingText};
use tunebook_runs::training_examples;
use tunebook_tune::{RunRows, TokenizedExample, TokenizedSet, tokenize_example};

use super::error::Result;
use super::{Engine, Prepared};

/// The folder of the token files, in which `datasets` finds the two splits by their names.
pub(super) const FOLDER: &str = "data/tokens";

/// Rows as token ids, and which readable row each is; -1: a row that fills a step up.
pub(super) struct Tokens {
    pub(super) lines: String,
    pub(super) order: Vec<i64>,
    /// How often an engine goes through the lines.
    pub(super) passes: usize,
    /// What differs from the run here.
    pub(super) note: Option<String>,
}

/// The rows of all steps, one after the other.
///
/// The last step of an epoch may have fewer rows, and the engine would take the rest from the next one,
/// or on several cards from the first. TRL gets rows without labels, which add nothing to a loss;
/// Axolotl drops such rows, so that it gets one epoch's rows, as often as there are epochs.
pub(super) fn of_steps(rows: &RunRows, rows_per_step: usize, engine: Engine) -> Tokens {
    let before_the_last = rows.steps.split_last().map_or(&[][..], |(_, before)| before);
    let uneven = before_the_last.iter().any(|step| step.len() < rows_per_step);
    let mut tokens = Tokens { lines: String::new(), order: Vec::new(), passes: 1, note: None };
    let mut steps = rows.steps.as_slice();
    if uneven && engine == Engine::Axolotl {
        let epochs = rows.steps.len().div_ceil(rows.steps_per_epoch);
        steps = &rows.steps[..rows.steps_per_epoch];
        tokens.passes = epochs;
        tokens.note = Some(format!(
            "the rows of an epoch are no whole number of steps: Axolotl goes through the first epoch's \
             order {epochs} times, in place of an order for each epoch"
        ));
    }
    for step in steps {
        for row in step {
            for index in &rows.rows[*row] {
                let example = &rows.train.examples[*index];
                line(&mut tokens.lines, &example.ids, &example.labels, engine);
                tokens.order.push(example.row as i64);
            }
        }
        let filled = if engine == Engine::Trl { rows_per_step } else { step.len() };
        for _ in step.len()..filled {
            line(&mut tokens.lines, &[0, 0], &[-100, -100], engine);
            tokens.order.push(-1);
        }
    }
    tokens
}

/// A set in its own order.
pub(super) fn of_set(set: &[TokenizedExample], engine: Engine) -> Tokens {
    let mut tokens = Tokens { lines: String::new(), order: Vec::new(), passes: 1, note: None };
    for example in set {
        line(&mut tokens.lines, &example.ids, &example.labels, engine);
        tokens.order.push(example.row as i64);
    }
    tokens
}

/// The rows of each set that are longer than what is trained on: `training.max_length` cuts them off.
///
/// # Errors
/// A row that cannot be tokenised.
pub(super) fn cut(prepared: &Prepared) -> Result<Value> {
    let of = |set: &TokenizedSet, rows: &Dataset| -> Result<Vec<usize>> {
        let mut cut = Vec::new();
        if set.truncated == 0 {
            return Ok(cut);
        }
        let (rows, longest) = (training_examples(rows), set.longest());
        for example in set.examples.iter().filter(|example| example.ids.len() == longest) {
            if tokenize_example(&prepared.model, &rows[example.row])?.ids.len() > longest {
                cut.push(example.row);
            }
        }
        Ok(cut)
    };
    let mut all = json!({ "train": of(&prepared.rows.train, prepared.data.train())? });
    if let (Some(set), Some(rows)) = (&prepared.rows.validation, prepared.data.validation()) {
        all["validation"] = json!(of(set, rows)?);
    }
    Ok(all)
}

fn line(out: &mut String, ids: &[u32], labels: &[i64], engine: Engine) {
    // A String takes everything.
    let _ = write!(out, "{{\"input_ids\":{}", json!(ids));
    if engine == Engine::Axolotl {
        let _ = write!(out, ",\"attention_mask\":{}", json!(vec![1; ids.len()]));
    }
    let _ = writeln!(out, ",\"labels\":{}}}", json!(labels));
}

/// Rows as people and other programs read them: `messages`, or `text`.
pub(super) fn readable(rows: &Dataset) -> String {
    let mut out = String::new();
    for row in rows.conversations() {
        let row: Value = match row {
            TrainingText::Conversation(turns) => json!({ "messages": turns }),
            TrainingText::Text(text) => json!({ "text": text }),
        };
        let _ = writeln!(out, "{row}");
    }
    out
}
