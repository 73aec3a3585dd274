//! Runs on disk: a run that was stopped, or killed, goes on from its last checkpoint as if nothing
//! had happened.
//!
//! A checkpoint is one folder, written under another name, flushed and then renamed, so that it is
//! whole or not there:
//!
//! | file | holds |
//! |---|---|
//! | `trainer_state.json` | the [`RunRecord`] and the checksum of the next file |
//! | `training_state.safetensors` | trained tensors, AdamW's moments, AdaLoRA's importances and ranks, what the tensors were before the first step where the run needs it, and the records, all exact |
//! | `adapter_config.json`, `adapter_model.safetensors` | the adapter for PEFT and `load_adapter` (an adapter not named `default` in its subfolder) |
//!
//! The order of the rows and the dropout masks follow from the seed and the step, so no generator's
//! state is needed.
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
//!     Some(run) => trainer.resume(&run, (&train, &validation))?,
//!     None => trainer.train((&train, &validation))?,
//! };
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tunebook_models::tensor_file::{self, Data, Entry};
use tunebook_progress::interrupt;

use crate::error::{Error, Result};
use crate::files::peft::{self, AdapterFiles};
use crate::files::{atomic, folder};
use crate::record::run_record::RunRecord;
use crate::record::{EvalRecord, StepRecord};
use crate::train::loss_scale::LossScale;
use crate::train::optim::{AdamW, Saved};
use crate::train::regularisation::Start;
use crate::train::run::{Best, Run};
use crate::train::step::RunState;
use crate::train::trained::Weights;

const STATE_FILE: &str = "trainer_state.json";
const TENSORS_FILE: &str = "training_state.safetensors";
const VERSION: u32 = 3;
/// Before a checkpoint's number.
pub(crate) const FOLDER: &str = "checkpoint-";

/// `trainer_state.json`.
#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    /// The run's own number, which all its checkpoints share.
    #[serde(default)]
    run: String,
    /// Of `training_state.safetensors`.
    sha256: String,
    /// The other files that were written with this one, relative to its folder.
    #[serde(default)]
    files: Vec<String>,
    /// The step of the weights under `best.`, if there are any.
    best_step: Option<usize>,
    /// The names of the evaluations' metrics, in the order of their columns.
    metric_columns: Vec<String>,
    /// The loss scale, its count and what it skipped.
    loss_scale: Option<LossScale>,
    record: RunRecord,
}

/// The part of [`State`] that says whose folder it is.
#[derive(Deserialize)]
pub(crate) struct Head {
    #[serde(rename = "version")]
    _version: u32,
    #[serde(rename = "sha256")]
    _sha256: String,
    #[serde(default)]
    pub(crate) run: String,
    #[serde(default)]
    files: Vec<String>,
}

/// Whose run a folder holds.
///
/// # Errors
/// It has no state of a run.
pub(crate) fn head(folder: &Path) -> Result<Head> {
    let path = folder.join(STATE_FILE);
    serde_json::from_slice(&atomic::read(&path)?).map_err(|error| Error::Checkpoint {
        path,
        problem: format!("expected the state of a run, found {error}"),
    })
}

/// The files that were written into a run's folder, relative to it.
///
/// # Errors
/// It has no state of a run.
pub(crate) fn own_files(folder: &Path) -> Result<Vec<String>> {
    let mut files = head(folder)?.files;
    files.retain(|file| file != TENSORS_FILE);
    files.extend([TENSORS_FILE, STATE_FILE].map(str::to_owned));
    Ok(files)
}

impl Run {
    /// Writes the run to `dir`, a folder of its own: a run that was saved there before is replaced.
    /// [`Run::load`] reads it, and [`Trainer::resume`](crate::Trainer::resume) goes on.
    ///
    /// # Errors
    /// `dir` holds anything that this crate did not write with a run, or cannot be written; what
    /// was there before is kept then.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.write(dir.as_ref(), None)
    }

    /// Reads a run that [`Run::save`] or a [`SaveStrategy`](crate::SaveStrategy) wrote.
    ///
    /// # Errors
    /// A file is missing, torn, changed, or of a later version.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        Self::read(dir.as_ref())
    }

    /// The last whole checkpoint in `output_dir`; `None` if there is none.
    ///
    /// # Errors
    /// The folder is there and cannot be read, or none of its checkpoints can be.
    pub fn last_checkpoint(output_dir: impl AsRef<Path>) -> Result<Option<Self>> {
        Self::last_in(output_dir.as_ref())
    }

    fn last_in(output_dir: &Path) -> Result<Option<Self>> {
        let mut failure = None;
        for (_, folder) in checkpoints(output_dir)?.into_iter().rev() {
            match Self::read(&folder) {
                Ok(run) => return Ok(Some(run)),
                Err(error) => failure = failure.or(Some(error)), // an older one may be whole
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Writes the run's files into a folder that takes the place of the run's folder that may be
    /// there.
    pub(crate) fn write(&self, folder: &Path, adapter: Option<&AdapterFiles>) -> Result<()> {
        let state = |sha256: String, files: Vec<String>| State {
            version: VERSION,
            run: self.id.clone(),
            sha256,
            files,
            best_step: self.best.as_ref().map(|best| best.step),
            metric_columns: self.metric_names(),
            loss_scale: self.state.loss_scale,
            record: self.record.clone(),
        };
        folder::replace(folder, &own_files, |temporary| {
            let checksum = self.write_tensors(&temporary.join(TENSORS_FILE))?;
            if let Some(adapter) = adapter {
                adapter.write_as(&peft::folder(temporary, &self.adapter), &self.adapter)?;
            }
            let files = folder::files(temporary)?;
            let json = serde_json::to_string_pretty(&state(checksum, files))? + "\n";
            atomic::write_files(temporary, &[(STATE_FILE, json.as_bytes())])
        })
    }

    fn read(folder: &Path) -> Result<Self> {
        let found = folder::standing(folder);
        let folder = found.as_deref().unwrap_or(folder);
        let path = folder.join(STATE_FILE);
        let problem =
            |path: &Path, problem: String| Error::Checkpoint { path: path.to_path_buf(), problem };
        let state: State = serde_json::from_slice(&atomic::read(&path)?).map_err(|error| {
            problem(&path, format!("expected the state of a run, found {error}"))
        })?;
        if state.version != VERSION {
            return Err(problem(
                &path,
                format!("is of version {}, expected {VERSION}", state.version),
            ));
        }
        let tensors_path = folder.join(TENSORS_FILE);
        let bytes = atomic::read(&tensors_path)?;
        let found = sha256(&bytes);
        if found != state.sha256 {
            let said = format!(
                "has the checksum {found}, expected {}: it is torn or was changed",
                state.sha256
            );
            return Err(problem(&tensors_path, said));
        }
        let damaged = |what: String| problem(&tensors_path, what);
        let tensors = Tensors(SafeTensors::deserialize(&bytes)?);
        let mut record = state.record;
        let (ranks, taken) = (record.plan.rank_modules.len(), record.steps.len());
        let steps = tensors.rows("records.steps")?;
        let steps = steps.map(|row| step_record(row, ranks)).collect::<Option<Vec<_>>>();
        let evals = tensors
            .rows("records.evals")?
            .map(|row| eval_record(row, &state.metric_columns))
            .collect::<Option<Vec<_>>>();
        let (Some(mut steps), Some(evals)) = (steps, evals) else {
            return Err(damaged(
                "its records have another number of columns than expected".to_owned(),
            ));
        };
        if steps.len() != taken {
            return Err(damaged(format!("holds {} steps, expected {taken}", steps.len())));
        }
        for (exact, step) in steps.iter_mut().zip(record.steps) {
            (exact.memory_bytes, exact.rows) = (step.memory_bytes, step.rows);
        }
        if let Ok(kls) = tensors.rows("records.kl") {
            for (step, kl) in steps.iter_mut().zip(kls.flatten()) {
                step.kl = (!kl.is_nan()).then_some(kl);
            }
        }
        (record.steps, record.evals) = (steps, evals); // exact, unlike those of the JSON
        let best =
            state.best_step.map(|step| Arc::new(Best { step, weights: tensors.weights("best.") }));
        let skipped = state.loss_scale.map_or(0, |scale| scale.skipped()).min(taken);
        let optimizer = AdamW::restored(
            record.args.adamw(),
            (taken - skipped) as u64,
            tensors.saved("optimizer."),
        );
        let start = tensors.saved("start.").f32s;
        let id = state.run;
        let state = RunState {
            steps: taken,
            optimizer: Arc::new(optimizer),
            weights: tensors.weights("weights."),
            scheduled: (ranks > 0).then(|| Arc::new(tensors.saved("scheduled."))),
            loss_scale: state.loss_scale,
            start: (!start.is_empty()).then(|| Start::saved(start)).transpose()?,
        };
        Ok(Self { id, record, best, state: Arc::new(state) })
    }

    /// `training_state.safetensors`, tensor by tensor; returns its checksum.
    fn write_tensors(&self, path: &Path) -> Result<String> {
        let rows = |rows: Vec<Vec<f64>>| rows.concat();
        let steps = rows(self.steps.iter().map(step_row).collect());
        let names = self.metric_names();
        let evals = rows(self.evals.iter().map(|eval| eval_row(eval, &names)).collect());
        let mut entries = self.state.weights.entries("weights.")?;
        if let Some(best) = &self.best {
            entries.extend(best.weights.entries("best.")?);
        }
        entries.extend(self.state.optimizer.entries("optimizer."));
        if let Some(start) = &self.state.start {
            entries.extend(start.entries("start."));
        }
        let scheduled = self.state.scheduled.as_deref();
        for (name, values) in scheduled.iter().flat_map(|saved| &saved.f32s) {
            entries.push(Entry::new(
                format!("scheduled.{name}"),
                &[values.len()],
                Data::F32(values),
            ));
        }
        for (name, bytes) in scheduled.iter().flat_map(|saved| &saved.bytes) {
            entries.push(Entry::new(format!("scheduled.{name}"), &[bytes.len()], Data::U8(bytes)));
        }
        let shape = [self.steps.len(), STEP_COLUMNS + self.plan.rank_modules.len()];
        entries.push(Entry::new("records.steps", &shape, Data::F64(&steps)));
        // Columns that other runs do not have.
        let kls: Vec<f64> = self.steps.iter().map(|step| step.kl.unwrap_or(f64::NAN)).collect();
        if kls.iter().any(|kl| !kl.is_nan()) {
            entries.push(Entry::new("records.kl", &[kls.len(), 1], Data::F64(&kls)));
        }
        let shape = [self.evals.len(), EVAL_COLUMNS + names.len()];
        entries.push(Entry::new("records.evals", &shape, Data::F64(&evals)));

        let file = fs::File::create(path).map_err(io("create", path))?;
        let mut out = Hashing { out: BufWriter::with_capacity(1 << 20, file), hash: Sha256::new() };
        // A large one takes long: Stop is acknowledged meanwhile, and the checkpoint still written
        // whole.
        let goes_on = || {
            interrupt::requested();
            Ok(())
        };
        let written = tensor_file::write_while(&mut out, &entries, &[], &goes_on);
        let written = written.and_then(|()| out.out.flush());
        written.and_then(|()| out.out.get_ref().sync_all()).map_err(io("write", path))?;
        Ok(hex(&out.hash.finalize()))
    }

    /// The names of all metrics of this run, in order.
    fn metric_names(&self) -> Vec<String> {
        let names: BTreeSet<&String> =
            self.evals.iter().flat_map(|eval| eval.metrics.keys()).collect();
        names.into_iter().cloned().collect()
    }
}

/// A writer that keeps the checksum of what goes through.
struct Hashing {
    out: BufWriter<fs::File>,
    hash: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

// The records as rows of f64: JSON would not give every number back bit for bit.
const STEP_COLUMNS: usize = 10;
const EVAL_COLUMNS: usize = 5;

/// The ranks follow, in the order of their modules.
fn step_row(r: &StepRecord) -> Vec<f64> {
    let mut row = vec![
        r.step as f64,
        r.epoch,
        r.loss,
        r.learning_rate,
        r.grad_norm,
        r.tokens as f64,
        r.label_tokens as f64,
        r.secs,
        r.loss_scale.unwrap_or(f64::NAN),
        f64::from(u8::from(r.skipped)),
    ];
    row.extend(r.ranks.iter().map(|rank| *rank as f64));
    row
}

fn step_record(row: Vec<f64>, ranks: usize) -> Option<StepRecord> {
    let (fixed, of_modules) = row.split_at_checked(STEP_COLUMNS)?;
    let &[
        step,
        epoch,
        loss,
        learning_rate,
        grad_norm,
        tokens,
        label_tokens,
        secs,
        loss_scale,
        skipped,
    ] = fixed
    else {
        return None;
    };
    if of_modules.len() != ranks {
        return None;
    }
    Some(StepRecord {
        step: step as usize,
        epoch,
        loss,
        learning_rate,
        grad_norm,
        loss_scale: (!loss_scale.is_nan()).then_some(loss_scale),
        skipped: skipped != 0.0,
        kl: None, // a tensor of its own
        tokens: tokens as usize,
        label_tokens: label_tokens as usize,
        secs,
        // Whole numbers, which JSON keeps.
        memory_bytes: None,
        rows: Vec::new(),
        ranks: of_modules.iter().map(|rank| *rank as usize).collect(),
    })
}

/// The metrics follow, in the order of their names; NaN where an evaluation lacks one.
fn eval_row(r: &EvalRecord, names: &[String]) -> Vec<f64> {
    let mut row = vec![r.step as f64, r.epoch, r.loss, r.label_tokens as f64, r.secs];
    row.extend(names.iter().map(|name| r.metrics.get(name).copied().unwrap_or(f64::NAN)));
    row
}

fn eval_record(row: Vec<f64>, names: &[String]) -> Option<EvalRecord> {
    let (fixed, metrics) = row.split_at_checked(EVAL_COLUMNS)?;
    let &[step, epoch, loss, label_tokens, secs] = fixed else { return None };
    if metrics.len() != names.len() {
        return None;
    }
    let metrics =
        names.iter().cloned().zip(metrics.iter().copied()).filter(|(_, value)| !value.is_nan());
    let (step, label_tokens) = (step as usize, label_tokens as usize);
    Some(EvalRecord { step, epoch, loss, label_tokens, secs, metrics: metrics.collect() })
}

struct Tensors<'a>(SafeTensors<'a>);

impl Tensors<'_> {
    /// The f32 tensors and the bytes whose names begin with `prefix`, by the rest of the name.
    fn saved(&self, prefix: &str) -> Saved {
        let mut saved = Saved::default();
        for (name, view) in self.0.tensors() {
            let Some(rest) = name.strip_prefix(prefix) else { continue };
            match view.dtype() {
                Dtype::F32 => {
                    let values = view
                        .data()
                        .chunks_exact(4)
                        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                    saved.f32s.insert(rest.to_owned(), values.collect());
                }
                Dtype::U8 => drop(saved.bytes.insert(rest.to_owned(), view.data().to_vec())),
                _ => {}
            }
        }
        saved
    }

    fn weights(&self, prefix: &str) -> Weights {
        Weights::Copied(self.saved(prefix).f32s.into_iter().collect())
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

/// The checkpoints of a folder by their step. One that a kill left under the name it has while it
/// is replaced counts, too.
pub(crate) fn checkpoints(output_dir: &Path) -> Result<BTreeMap<usize, PathBuf>> {
    let mut found = BTreeMap::new();
    let step = |name: &str| name.strip_prefix(FOLDER).and_then(|step| step.parse().ok());
    for entry in folder::entries(output_dir)? {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(step) = step(name) {
            found.insert(step, entry.path());
        } else if let Some(step) = folder::name_of_replaced(name).and_then(step) {
            found.entry(step).or_insert_with(|| entry.path());
        }
    }
    Ok(found)
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
