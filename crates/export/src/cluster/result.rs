//! What an engine has left of a run: the state of its trainer, and the adapter.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::error::{Error, Result, refuse};
use super::{Manifest, OUT, STATE};

/// The adapter's tensors in PEFT's format.
const TENSORS: &str = "adapter_model.safetensors";

/// What `transformers` writes of a run.
#[derive(Debug, Deserialize)]
pub(super) struct TrainerState {
    pub(super) global_step: usize,
    #[serde(default)]
    max_steps: Option<usize>,
    #[serde(default)]
    pub(super) best_global_step: Option<usize>,
    #[serde(default)]
    pub(super) log_history: Vec<BTreeMap<String, Value>>,
}

/// A run that an engine has made.
#[derive(Debug)]
pub(super) struct EngineResult {
    pub(super) state: TrainerState,
    pub(super) state_path: PathBuf,
    /// The folder of the adapter; `None` of full fine-tuning.
    pub(super) adapter: Option<PathBuf>,
    /// Whether the engine came to its end, where it writes what it has trained once more.
    pub(super) ended: bool,
}

impl EngineResult {
    /// Finds the run of this export.
    ///
    /// # Errors
    /// None is there, it is of another export, or its files are not of one run.
    pub(super) fn find(folder: &Path, manifest: &Manifest, is_adapter: bool) -> Result<Self> {
        let out = folder.join(manifest.out());
        let checkpoints = checkpoints(&out).map_err(|_| missing(folder, &out))?;
        let steps = manifest.total_steps;
        if let Some((step, path)) = checkpoints.last().filter(|(step, _)| *step > steps) {
            let problem = format!(
                "it is of step {step}, and the run has {steps}: another run's. Move it away"
            );
            return Err(refuse(path, problem));
        }
        let at_the_end = Some((None, out.join(STATE)));
        let at_checkpoints = checkpoints.iter().rev();
        let at_checkpoints = at_checkpoints.map(|(step, path)| (Some(*step), path.join(STATE)));
        let found = at_the_end.into_iter().chain(at_checkpoints).find(|(_, path)| path.is_file());
        let Some((checkpoint, path)) = found else {
            let problem = format!(
                "there is no {STATE} in it or in its `checkpoint-…`: the run wrote no whole checkpoint"
            );
            return Err(refuse(&out, problem));
        };
        let state = TrainerState::read(&path)?;
        state.check(&path, checkpoint, checkpoints.last().map(|(step, _)| *step), steps)?;
        let holds = |path: &PathBuf| path.join(TENSORS).is_file();
        let of_state = path.parent().map(Path::to_path_buf);
        let adapter = [Some(out.clone()), of_state].into_iter().flatten().find(holds);
        if is_adapter && adapter.is_none() {
            let problem = format!(
                "there is no {TENSORS} in it or beside {}: bring the adapter, or, if it was saved in \
                 shards, merge them first",
                path.display()
            );
            return Err(refuse(&out, problem));
        }
        let ended = holds(&out) || out.join("config.json").is_file();
        let adapter = adapter.filter(|_| is_adapter);
        Ok(Self { state, state_path: path, adapter, ended })
    }
}

impl TrainerState {
    fn read(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        // Python's JSON has three words for numbers that are none in JSON.
        let mut text = String::from_utf8_lossy(&fs::read(path).map_err(io)?).into_owned();
        for word in ["NaN", "Infinity", "-Infinity"] {
            text = text.replace(&format!(": {word}"), &format!(": \"{word}\""));
        }
        serde_json::from_str(&text)
            .map_err(|error| refuse(path, format!("it is no state of a trainer: {error}")))
    }

    /// Holds the steps against the checkpoint that it lies in, the last one, and the export.
    fn check(
        &self,
        path: &Path,
        checkpoint: Option<usize>,
        last: Option<usize>,
        steps: usize,
    ) -> Result<()> {
        let found = self.global_step;
        let problem = if found > steps || self.max_steps.is_some_and(|most| most != steps) {
            let most = self.max_steps.unwrap_or(steps);
            format!("it is of step {found} of {most}, and the run has {steps} steps")
        } else if found == 0 {
            "no step was taken".to_owned()
        } else if checkpoint.is_some_and(|step| step != found) {
            format!("it is of step {found}, which its folder is not")
        } else if let Some(last) = last.filter(|last| *last > found) {
            format!("it is of step {found}, and there is a checkpoint of step {last}")
        } else {
            return Ok(());
        };
        Err(refuse(path, format!("{problem}: it is not the state of this run")))
    }
}

/// A number of a log; `None`: it is not there, or none.
pub(super) fn number(entry: &BTreeMap<String, Value>, key: &str) -> Option<f64> {
    match entry.get(key)? {
        Value::String(word) => match word.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        other => other.as_f64(),
    }
}

/// The checkpoints in a folder by their steps, the last one at the end.
fn checkpoints(out: &Path) -> std::io::Result<Vec<(usize, PathBuf)>> {
    let step = |path: &Path| -> Option<usize> {
        path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok()
    };
    let paths = fs::read_dir(out)?.flatten().map(|entry| entry.path());
    let mut found: Vec<_> = paths.filter_map(|path| Some((step(&path)?, path))).collect();
    found.sort();
    Ok(found)
}

fn missing(folder: &Path, out: &Path) -> Error {
    let others = fs::read_dir(folder.join(OUT)).into_iter().flatten().flatten();
    let mut others: Vec<String> =
        others.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    others.sort();
    let problem = match others.as_slice() {
        [] => "it is not there: bring the folder that the engine wrote here".to_owned(),
        others => format!(
            "it is not there. `{OUT}` has {}, of which nothing says that it is this export's: an engine \
             writes to the `output_dir` of train.yaml, a folder for each export",
            others.join(", ")
        ),
    };
    refuse(out, problem)
}
