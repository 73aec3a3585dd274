//! A run's records as JSON lines, written as they come: `{"kind":"step",…}`, `{"kind":"eval",…}`.
//! Polars' `read_ndjson`, pandas and `jq` read it; so does a second terminal with `tail -f`.
//!
//! ```no_run
//! # use tunebook_tune::{RunLog, Trainer, TrainingArgs};
//! # fn f(model: tunebook_models::Model) -> Result<(), tunebook_tune::Error> {
//! let trainer = Trainer::new(&model, &TrainingArgs::default()).with_callback(RunLog::append("out/run.jsonl")?);
//! # Ok(())
//! # }
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::record::callback::Callback;
use crate::record::run_record::{RunRecord, StopReason};
use crate::record::{EvalRecord, Plan, StepRecord};

/// Writes a run's records to a file, one JSON object a line.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    file: File,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line<'a> {
    Start(&'a Plan),
    Step(&'a StepRecord),
    Eval(&'a EvalRecord),
    Save { step: usize, folder: &'a Path },
    End { steps: usize, secs: f64, stopped: Option<StopReason> },
}

impl RunLog {
    /// Opens `path`, whose folder is made if need be, and writes behind what is there: a resumed
    /// run goes on in the same file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn append(path: impl AsRef<Path>) -> Result<Self> {
        Self::append_to(path.as_ref().to_owned())
    }

    fn append_to(path: PathBuf) -> Result<Self> {
        if let Some(folder) = path.parent() {
            let made = std::fs::create_dir_all(folder);
            made.map_err(|source| Error::Io {
                action: "create",
                path: folder.to_path_buf(),
                source,
            })?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file =
            file.map_err(|source| Error::Io { action: "open", path: path.clone(), source })?;
        Ok(Self { path, file })
    }

    fn line(&mut self, line: &Line<'_>) -> Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        // One write: a reader never sees half a line.
        let written = self.file.write_all(&bytes);
        written.map_err(|source| Error::Io { action: "write", path: self.path.clone(), source })
    }
}

impl Callback for RunLog {
    fn on_start(&mut self, plan: &Plan) -> Result<()> {
        self.line(&Line::Start(plan))
    }

    fn on_step(&mut self, record: &StepRecord) -> Result<()> {
        self.line(&Line::Step(record))
    }

    fn on_eval(&mut self, record: &EvalRecord) -> Result<()> {
        self.line(&Line::Eval(record))
    }

    fn on_save(&mut self, step: usize, folder: &Path) -> Result<()> {
        self.line(&Line::Save { step, folder })
    }

    fn on_end(&mut self, run: &RunRecord) -> Result<()> {
        self.line(&Line::End { steps: run.steps.len(), secs: run.secs, stopped: run.stopped })
    }
}
