//! Runs on disk: a run that was stopped, or killed, goes on from its last checkpoint as if nothing had happened.
//!
//! A checkpoint is one folder, written under another name, flushed and then renamed, so that it is whole or not there:
//!
//! | file | holds |
//! |---|---|
//! | `trainer_state.json` | arguments, plan and the checksum of the next file |
//! | `training_state.safetensors` | trained tensors, AdamW's moments and the records, all exact |
//! | `adapter_config.json`, `adapter_model.safetensors` | the adapter for PEFT and `load_adapter` (an adapter not named `default` in its subfolder) |
//!
//! The order of the rows and the dropout masks follow from the seed and the step, so no generator's state is needed.
//!
//! ```no_run
//! use tunebook_models::{Device, Model};
//! use tunebook_tune::{Adapters, Example, Lora, Run, SaveStrategy, Trainer, TrainingArgs};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (train, validation): (Vec<Example>, Vec<Example>) = Default::default();
//! let args = TrainingArgs { save_strategy: SaveStrategy::Epoch, output_dir: Some("out/run".into()), ..Default::default() };
//! let model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
//! model.add_adapter("support", &Lora::default())?;
//! let trainer = Trainer::new(&model, &args);
//! let run = match Run::last_checkpoint("out/run")? {
//!     Some(run) => trainer.resume(&run, &train, &validation)?,
//!     None => trainer.fit(&train, &validation)?,
//! };
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::args::TrainingArgs;
use crate::atomic;
use crate::error::{Error, Result};
use crate::optim::AdamW;
use crate::peft::{self, AdapterFiles};
use crate::record::{EvalRecord, Plan, StepRecord};
use crate::step::RunState;
use crate::trainer::{Best, Run, StopReason};

const STATE_FILE: &str = "trainer_state.json";
const TENSORS_FILE: &str = "training_state.safetensors";
const VERSION: u32 = 1;
/// Before a checkpoint's number.
const FOLDER: &str = "checkpoint-";

/// `trainer_state.json`.
#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    adapter: String,
    step: usize,
    args: TrainingArgs,
    plan: Plan,
    stopped: Option<StopReason>,
    secs: f64,
    loaded_step: Option<usize>,
    /// The step of the weights under `best.`, if there are any.
    best_step: Option<usize>,
    /// The training set's fingerprint, in hexadecimal.
    data: String,
    /// Of `training_state.safetensors`.
    sha256: String,
}

impl Run {
    /// Writes the run to `dir`, which is replaced if it exists. [`Run::load`] reads it, and [`Trainer::resume`](crate::Trainer::resume) goes on.
    ///
    /// # Errors
    /// The folder cannot be written; what was there before is kept then.
    pub fn save(&self, dir: &str) -> Result<()> {
        self.write(Path::new(dir), None)
    }

    /// Reads a run that [`Run::save`] or a [`SaveStrategy`](crate::SaveStrategy) wrote.
    ///
    /// # Errors
    /// A file is missing, torn, changed, or of a later version.
    pub fn load(dir: &str) -> Result<Self> {
        Self::read(Path::new(dir))
    }

    /// The last whole checkpoint in `output_dir`; `None` if there is none.
    ///
    /// # Errors
    /// The folder is there and cannot be read, or none of its checkpoints can be.
    pub fn last_checkpoint(output_dir: &str) -> Result<Option<Self>> {
        let mut failure = None;
        for (_, folder) in checkpoints(Path::new(output_dir))?.into_iter().rev() {
            match Self::read(&folder) {
                Ok(run) => return Ok(Some(run)),
                Err(error) => failure = failure.or(Some(error)), // an older one may be whole
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Writes `output_dir/checkpoint-STEP` with the adapter beside the state, then removes the oldest beyond `limit`.
    pub(crate) fn write_checkpoint(
        &self,
        output_dir: &Path,
        limit: Option<usize>,
        files: &AdapterFiles,
    ) -> Result<PathBuf> {
        let folder = folder(output_dir, self.steps.len());
        self.write(&folder, Some(files))?;
        remove_unfinished(output_dir)?;
        if let Some(limit) = limit {
            let all = checkpoints(output_dir)?;
            for (_, old) in all.iter().rev().skip(limit.max(1)) {
                fs::remove_dir_all(old).map_err(io("remove", old))?;
            }
        }
        Ok(folder)
    }

    fn write(&self, folder: &Path, adapter: Option<&AdapterFiles>) -> Result<()> {
        let tensors = self.tensors()?;
        let state = State {
            version: VERSION,
            adapter: self.adapter.clone(),
            step: self.state.steps,
            args: self.args.clone(),
            plan: self.plan.clone(),
            stopped: self.stopped,
            secs: self.secs,
            loaded_step: self.loaded_step,
            best_step: self.best.as_ref().map(|best| best.step),
            data: format!("{:016x}", self.data),
            sha256: sha256(&tensors),
        };
        let json = serde_json::to_string_pretty(&state)? + "\n";

        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let parent = match folder.parent() {
            Some(parent) if parent != Path::new("") => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let temporary = parent.join(format!(".{name}.{}.tmp", std::process::id()));
        let replaced = parent.join(format!(".{name}.{}.old", std::process::id()));
        let written = (|| {
            remove_if_there(&temporary)?;
            atomic::write_files(&temporary, &[(TENSORS_FILE, &tensors), (STATE_FILE, json.as_bytes())])?;
            if let Some(adapter) = adapter {
                adapter.write(&peft::folder(&temporary, &self.adapter))?;
            }
            atomic::sync_folder(&temporary)?;
            if folder.exists() {
                remove_if_there(&replaced)?;
                fs::rename(folder, &replaced).map_err(io("replace", folder))?;
            }
            fs::rename(&temporary, folder).map_err(io("write", folder))?;
            atomic::sync_folder(&parent)?;
            remove_if_there(&replaced)
        })();
        if written.is_err() {
            // Best effort: the error that matters is the one returned.
            let _ = fs::remove_dir_all(&temporary);
            if !folder.exists() && replaced.exists() {
                let _ = fs::rename(&replaced, folder);
            }
        }
        written
    }

    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE_FILE);
        let problem = |path: &Path, problem: String| Error::Checkpoint { path: path.to_path_buf(), problem };
        let state: State = serde_json::from_slice(&atomic::read(&path)?)
            .map_err(|error| problem(&path, format!("expected the state of a run, found {error}")))?;
        if state.version != VERSION {
            return Err(problem(&path, format!("is of version {}, expected {VERSION}", state.version)));
        }
        let tensors_path = folder.join(TENSORS_FILE);
        let bytes = atomic::read(&tensors_path)?;
        let found = sha256(&bytes);
        if found != state.sha256 {
            let said =
                format!("has the checksum {found}, expected {}: it is torn or was changed", state.sha256);
            return Err(problem(&tensors_path, said));
        }
        let damaged = |what: String| problem(&tensors_path, what);
        let tensors = Tensors(SafeTensors::deserialize(&bytes)?);
        let data = u64::from_str_radix(&state.data, 16)
            .map_err(|_| problem(&path, "`data` is no number".to_owned()))?;
        let steps = tensors.rows("records.steps")?.map(step_record).collect::<Option<Vec<_>>>();
        let evals = tensors.rows("records.evals")?.map(eval_record).collect::<Option<Vec<_>>>();
        let (Some(steps), Some(evals)) = (steps, evals) else {
            return Err(damaged("its records have another number of columns than expected".to_owned()));
        };
        if steps.len() != state.step {
            return Err(damaged(format!("holds {} steps, expected {}", steps.len(), state.step)));
        }
        let best = match state.best_step {
            Some(step) => {
                Some(Arc::new(Best { step, weights: tensors.group("best.")?.into_iter().collect() }))
            }
            None => None,
        };
        Ok(Self {
            best,
            loaded_step: state.loaded_step,
            adapter: state.adapter,
            plan: state.plan,
            steps,
            evals,
            stopped: state.stopped,
            secs: state.secs,
            state: Arc::new(RunState {
                steps: state.step,
                optimizer: AdamW::restored(
                    state.args.adamw(),
                    state.step as u64,
                    tensors.group("optimizer.")?,
                ),
                weights: tensors.group("weights.")?.into_iter().collect(),
            }),
            args: state.args,
            data,
        })
    }

    /// `training_state.safetensors`.
    fn tensors(&self) -> Result<Vec<u8>> {
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        let f32s = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        for (name, values) in &self.state.weights {
            tensors.push((format!("weights.{name}"), Dtype::F32, vec![values.len()], f32s(values)));
        }
        for (name, values) in self.best.iter().flat_map(|best| &best.weights) {
            tensors.push((format!("best.{name}"), Dtype::F32, vec![values.len()], f32s(values)));
        }
        for (name, values) in self.state.optimizer.state()? {
            tensors.push((format!("optimizer.{name}"), Dtype::F32, vec![values.len()], f32s(&values)));
        }
        let mut records = |name: &str, rows: Vec<Vec<f64>>, columns: usize| {
            let bytes = rows.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
            tensors.push((name.to_owned(), Dtype::F64, vec![rows.len(), columns], bytes));
        };
        records("records.steps", self.steps.iter().map(step_row).collect(), STEP_COLUMNS);
        records("records.evals", self.evals.iter().map(eval_row).collect(), EVAL_COLUMNS);
        let mut views = Vec::with_capacity(tensors.len());
        for (name, dtype, shape, bytes) in &tensors {
            views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?));
        }
        Ok(safetensors::serialize(views, Some(HashMap::new()))?)
    }
}

// The records as rows of f64: JSON would not give every number back bit for bit.
const STEP_COLUMNS: usize = 8;
const EVAL_COLUMNS: usize = 5;

fn step_row(r: &StepRecord) -> Vec<f64> {
    vec![
        r.step as f64,
        r.epoch,
        r.loss,
        r.learning_rate,
        r.grad_norm,
        r.tokens as f64,
        r.label_tokens as f64,
        r.secs,
    ]
}

fn step_record(row: Vec<f64>) -> Option<StepRecord> {
    let [step, epoch, loss, learning_rate, grad_norm, tokens, label_tokens, secs] = row.try_into().ok()?;
    let (step, tokens, label_tokens) = (step as usize, tokens as usize, label_tokens as usize);
    Some(StepRecord { step, epoch, loss, learning_rate, grad_norm, tokens, label_tokens, secs })
}

fn eval_row(r: &EvalRecord) -> Vec<f64> {
    vec![r.step as f64, r.epoch, r.loss, r.label_tokens as f64, r.secs]
}

fn eval_record(row: Vec<f64>) -> Option<EvalRecord> {
    let [step, epoch, loss, label_tokens, secs] = row.try_into().ok()?;
    Some(EvalRecord { step: step as usize, epoch, loss, label_tokens: label_tokens as usize, secs })
}

struct Tensors<'a>(SafeTensors<'a>);

impl Tensors<'_> {
    /// The f32 tensors whose names begin with `prefix`, by the rest of the name.
    fn group(&self, prefix: &str) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut group = BTreeMap::new();
        for (name, view) in self.0.tensors() {
            if let Some(rest) = name.strip_prefix(prefix) {
                let values =
                    view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                group.insert(rest.to_owned(), values.collect());
            }
        }
        Ok(group)
    }

    fn rows(&self, name: &str) -> Result<impl Iterator<Item = Vec<f64>>> {
        let view = self.0.tensor(name)?;
        let columns = view.shape().last().copied().unwrap_or(0).max(1);
        let values: Vec<f64> = view
            .data()
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect();
        Ok(values.chunks_exact(columns).map(<[f64]>::to_vec).collect::<Vec<_>>().into_iter())
    }
}

/// Where the checkpoint of a step is.
pub(crate) fn folder(output_dir: &Path, step: usize) -> PathBuf {
    output_dir.join(format!("{FOLDER}{step}"))
}

/// What a killed run of this folder left half written.
fn remove_unfinished(output_dir: &Path) -> Result<()> {
    for entry in fs::read_dir(output_dir).map_err(io("read", output_dir))? {
        let entry = entry.map_err(io("read", output_dir))?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(&format!(".{FOLDER}")) && name.ends_with(".tmp"))
        {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// The checkpoints of a folder by their step.
fn checkpoints(output_dir: &Path) -> Result<BTreeMap<usize, PathBuf>> {
    let entries = match fs::read_dir(output_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(io("read", output_dir)(error)),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(io("read", output_dir))?;
        let name = entry.file_name();
        let step =
            name.to_str().and_then(|name| name.strip_prefix(FOLDER)).and_then(|step| step.parse().ok());
        if let Some(step) = step {
            found.insert(step, entry.path());
        }
    }
    Ok(found)
}

fn remove_if_there(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", folder)(error)),
        _ => Ok(()),
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
