//! Whether an export's folder is as it was written: what an engine read from it is what the run was.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::error::{Error, Result, refuse};
use super::{INITIAL, Manifest, SETTINGS, STATE};
use crate::folder::sum;

/// Settings that change neither what is trained nor on what: how the run is watched, and where its memory
/// goes.
const FREE: [&str; 14] = [
    "attn_implementation",
    "dataloader_num_workers",
    "dataset_processes",
    "eval_batch_size",
    "eval_steps",
    "gradient_checkpointing",
    "logging_dir",
    "per_device_eval_batch_size",
    "report_to",
    "run_name",
    "save_steps",
    "save_total_limit",
    "use_tensorboard",
    "use_wandb",
];

/// Those of them that which evaluation is the best depends on, where its weights are loaded.
const WATCHED: [&str; 5] = [
    "eval_batch_size",
    "eval_steps",
    "per_device_eval_batch_size",
    "save_steps",
    "save_total_limit",
];

/// Files that are not held against the manifest: an engine reads nothing of the run from them, or, of
/// `train.yaml` and the first state, only in part.
pub(super) fn is_free(name: &str) -> bool {
    ["requirements.txt", "sky.yaml", "verify.py", SETTINGS].contains(&name) || name == first_state()
}

fn first_state() -> String {
    format!("{INITIAL}/{STATE}")
}

/// What was changed and does not matter, a sentence each.
///
/// # Errors
/// A file or a setting that another run was made of.
pub(super) fn unchanged(folder: &Path, manifest: &Manifest) -> Result<Vec<String>> {
    for (name, expected) in &manifest.files {
        let path = folder.join(name);
        if sum(&exported(&path)?) != *expected {
            return Err(refuse(
                &path,
                "it was changed since it was exported, so that nobody knows what the run saw: export and \
                 train again",
            ));
        }
    }
    if manifest.files.keys().any(|name| name.starts_with(INITIAL)) {
        let path = folder.join(first_state());
        let state: Value = serde_json::from_slice(&exported(&path)?).unwrap_or_default();
        if state["global_step"] != 0 || state["log_history"] != serde_json::json!([]) {
            return Err(refuse(
                &path,
                "it is not the state before the first step any more, so that the run did not begin there: \
                 export and train again",
            ));
        }
    }
    settings(folder, manifest)
}

/// `train.yaml`, setting by setting.
fn settings(folder: &Path, manifest: &Manifest) -> Result<Vec<String>> {
    let path = folder.join(SETTINGS);
    let text = exported(&path)?;
    let then = blocks(&tunebook_runs::to_yaml(&manifest.settings));
    let now = blocks(&String::from_utf8_lossy(&text));
    let mut notes = Vec::new();
    let keys: std::collections::BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    for key in keys {
        let (then, now) = (then.get(key), now.get(key));
        if then == now {
            continue;
        }
        let said = |value: Option<&String>| value.map_or("not there", String::as_str).to_owned();
        let change = format!("`{key}` is {}, and was {} in the export", said(now), said(then));
        // A run that goes on from its own checkpoint.
        let own = manifest.out().to_string_lossy().into_owned();
        let goes_on = key == "resume_from_checkpoint"
            && now.is_some_and(|now| now.trim_matches(['"', '\'']).starts_with(&own));
        let loads_best = manifest.settings["load_best_model_at_end"] == true;
        let free = (FREE.contains(&key.as_str()) || key.starts_with("wandb_"))
            && !(loads_best && WATCHED.contains(&key.as_str()));
        if goes_on || free {
            notes.push(format!("{SETTINGS}: {change}"));
        } else {
            let problem = format!(
                "{change}: the registry would say that another run was made. Change the recipe, export and \
                 train again"
            );
            return Err(refuse(&path, problem));
        }
    }
    Ok(notes)
}

/// The settings of a file by their names, each with its text. The files are flat, so that no parser is
/// needed: whatever reads differently was changed.
fn blocks(text: &str) -> BTreeMap<String, String> {
    let mut blocks: BTreeMap<String, String> = BTreeMap::new();
    let mut key = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let mut rest = line;
        if !line.starts_with([' ', '\t', '-']) {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (key, rest) = (name.trim().to_owned(), value);
        }
        let block = blocks.entry(key.clone()).or_default();
        if !block.is_empty() {
            block.push(' ');
        }
        block.push_str(rest.trim());
    }
    blocks
}

/// A file that the export has written.
fn exported(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            refuse(path, "the export wrote it, and it is not there any more: bring it back")
        }
        _ => Error::Io { path: path.to_owned(), source },
    })
}
