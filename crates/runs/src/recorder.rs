//! A run as it is recorded: a callback of the trainer that writes the run's folder.
//!
//! Nothing here ends a run. Where a line cannot be written the run goes on, the user is told once
//! from where on something is missing, and the next line that can be written says how many are.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use tunebook_models::Model;
use tunebook_progress::stream;
use tunebook_tune::{
    Callback, EvalRecord, RunRecord, StepRecord, Strategy, answering_fingerprint, moved_before,
};

use crate::adapters::{self, Origin};
use crate::card::recorded_name;
use crate::data::{DataRecord, RunData};
use crate::disk::{self, LineFile};
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::registry::{ROWS, Registry};
use crate::summary::{Begin, End, FORMAT, LOG, Line, MANIFEST, Measured, RECIPE, Summary};

/// Steps are flushed to the disk at most so often: a killed process loses none, a machine without
/// power those of this time.
const FLUSH: Duration = Duration::from_secs(5);

/// Records a run: a [`Callback`] for
/// [`Trainer::with_callback`](tunebook_tune::Trainer::with_callback). Clones are the same recorder, so
/// that one can be kept and asked for the run's id. A trainer that trains again with the same recorder
/// records another run; one that resumes a run goes on in its folder.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Recording>>);

struct Recording {
    registry: Registry,
    name: String,
    data: Option<RunData>,
    parent: Option<String>,
    tags: Vec<String>,
    /// The recipe that the run is of.
    recipe: Option<Recipe>,
    /// The run's id.
    id: Option<String>,
    /// It is a run of an earlier process that goes on.
    going_on: bool,
    log: Option<LineFile>,
    flushed: Instant,
    /// Lines that could not be written since the last one that was.
    lost: usize,
    /// The line that says that the run goes on, while it could not be written: without it nobody knows
    /// of the rows.
    resume: Option<Vec<u8>>,
    adapter: Option<String>,
    /// From the beginning to the end of a run.
    model: Option<Model>,
    warnings: Vec<String>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let recording = self.lock();
        f.debug_struct("Recorder")
            .field("name", &recording.name)
            .field("id", &recording.id)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    pub(crate) fn new(registry: &Registry, name: &str) -> Self {
        Self(Arc::new(Mutex::new(Recording {
            registry: registry.clone(),
            name: name.to_owned(),
            data: None,
            parent: None,
            tags: Vec::new(),
            recipe: None,
            id: None,
            going_on: false,
            log: None,
            flushed: Instant::now(),
            lost: 0,
            resume: None,
            adapter: None,
            model: None,
            warnings: Vec::new(),
        })))
    }

    pub(crate) fn going_on(registry: &Registry, id: String) -> Self {
        let recorder = Self::new(registry, &id);
        {
            let mut recording = recorder.lock();
            (recording.id, recording.going_on) = (Some(id), true);
        }
        recorder
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the data, for [`Registry::why`] and [`Registry::adapters_touched_by`]: `&split`,
    /// `&dataset`, `(&train, &validation)`, or a [`RunData`] with an id column.
    #[must_use]
    pub fn with_data(self, data: impl Into<RunData>) -> Self {
        self.lock().data = Some(data.into());
        self
    }

    /// Names the adapter that the run goes on from, by id. Without it the adapter that is active when
    /// the run begins is looked for among those of the registry, by its answers.
    #[must_use]
    pub fn with_parent(self, adapter: &str) -> Self {
        self.lock().parent = Some(adapter.to_owned());
        self
    }

    /// Names the recipe that the run is of, so that it is recorded as it was written. A run that does
    /// something else than this recipe is recorded with its own.
    #[must_use]
    pub fn with_recipe(self, recipe: &Recipe) -> Self {
        self.lock().recipe = Some(recipe.clone());
        self
    }

    /// Adds a tag.
    #[must_use]
    pub fn with_tag(self, tag: &str) -> Self {
        self.lock().tags.push(tag.to_owned());
        self
    }

    /// The run's id; empty before a run has begun.
    pub fn id(&self) -> String {
        self.lock().id.clone().unwrap_or_default()
    }

    /// The id of the adapter that the run has trained; `None` before its end, or where none could be
    /// saved.
    pub fn adapter(&self) -> Option<String> {
        self.lock().adapter.clone()
    }

    /// The recipe of the run that is recorded: its data, model, strategy and arguments.
    ///
    /// # Errors
    /// No run has begun; the run does what no recipe can say, by name.
    pub fn recipe(&self) -> Result<Recipe> {
        let (registry, id) = {
            let recording = self.lock();
            (recording.registry.clone(), recording.id.clone())
        };
        match id {
            Some(id) => registry.recipe_in(&id),
            None => {
                let problem = "it has not begun".to_owned();
                Err(Error::NoRecipe { run: self.lock().name.clone(), problem })
            }
        }
    }

    /// What is not recorded, and why.
    pub fn warnings(&self) -> Vec<String> {
        self.lock().warnings.clone()
    }
}

impl Recording {
    /// Tells the user, once for each text.
    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            stream(&format!("registry: {warning}\n"));
            self.warnings.push(warning);
        }
    }

    /// Writes a line, and before it how many are missing.
    fn line(&mut self, line: &impl Serialize, flush: bool) {
        let Some(log) = &mut self.log else {
            self.lost += 1;
            return;
        };
        let flush = flush || self.flushed.elapsed() >= FLUSH;
        let lost = self.lost;
        let written = (|| -> std::io::Result<()> {
            if let Some(resume) = &self.resume {
                log.add(resume, true)?;
                self.resume = None;
                self.lost = self.lost.saturating_sub(1);
            }
            if self.lost > 0 {
                let problem = "they could not be written".to_owned();
                let missing = serde_json::to_vec(&Line::Missing { lines: self.lost, problem })?;
                log.add(&missing, false)?;
                // They are counted, whatever becomes of this line.
                self.lost = 0;
            }
            log.add(&serde_json::to_vec(line)?, flush)
        })();
        match written {
            Ok(()) => {
                if flush {
                    self.flushed = Instant::now();
                }
                if lost > 0 {
                    self.warn(format!(
                        "recorded again; {lost} lines of `{}` are missing",
                        self.name
                    ));
                }
            }
            Err(error) => {
                self.lost += 1;
                if self.lost == 1 {
                    let name = &self.name;
                    self.warn(format!(
                        "the run `{name}` goes on, and is not recorded from here on: {LOG} could not \
                         be written ({error}). What is there so far stays"
                    ));
                }
            }
        }
    }

    /// Makes the run's folder and writes its first line.
    fn begin(&mut self, run: &RunRecord, model: &Model) -> Result<()> {
        let root = self.registry.root().to_path_buf();
        if self.going_on || (run.plan.done_steps > 0 && self.id.is_some()) {
            let folder = self.registry.run_folder(self.id.as_deref().unwrap_or_default());
            self.log = None; // the lock of a run that has failed
            let before = Summary::read(&folder)?;
            self.parent.clone_from(&before.parent);
            self.log = Some(LineFile::own(&folder.join(LOG))?);
            let done_steps = run.plan.done_steps;
            let no_recipe = Self::amended(&folder, run);
            let data = self.other_data(&root, run, &before).map(Box::new);
            let train = Some(run.fingerprints.train.clone());
            let line = Line::Resume { at: disk::now(), done_steps, no_recipe, train, data };
            self.line(&line, true);
            if self.lost > 0 {
                self.resume = Some(serde_json::to_vec(&line)?);
            }
            self.going_on = false;
            return Ok(());
        }
        self.adapter = None;
        self.log = None;
        let id = disk::new_id()?;
        self.id = Some(id.clone());
        let data = self.data.clone().map(|data| data.record());
        if let Some((record, rows)) = &data {
            self.keep_rows(&root, record, rows);
        }
        self.registry.put_right();
        let parent = self.parent(run, model);
        self.parent.clone_from(&parent);
        let goes_on_from = match parent {
            Some(_) => None,
            None => moved_before(model).ok().flatten(),
        };
        let folder = self.registry.run_folder(&id);
        disk::create_dir(&folder)?;
        self.log = Some(LineFile::own(&folder.join(LOG))?);
        let no_recipe = self.keep_recipe(&folder, run, model).err();
        let mut record = serde_json::to_value(run)?;
        (record["steps"], record["evals"]) = (json!([]), json!([]));
        if let Some(base) = record["base_model"].as_str() {
            record["base_model"] = json!(recorded_name(base));
        }
        let begin = Begin {
            format: FORMAT,
            run: id,
            name: self.name.clone(),
            started: disk::now(),
            tags: self.tags.clone(),
            parent,
            data: data.map(|(record, _)| record),
            no_recipe,
            goes_on_from,
            later: Vec::new(),
            rows_unknown: false,
            record,
        };
        self.line(&Line::Begin(Box::new(begin)), true);
        self.registry.touch()
    }

    /// Writes the run's recipe beside its log.
    ///
    /// # Errors
    /// Why there is none.
    fn keep_recipe(&self, folder: &Path, run: &RunRecord, model: &Model) -> Result<(), String> {
        let made = Recipe::of_run(&self.name, run, self.data.as_ref(), model)?;
        let given = self.recipe.as_ref().filter(|given| given.describes(&made, run));
        let written = given.unwrap_or(&made).write(folder.join(RECIPE));
        written.map_err(|error| format!("it could not be written ({error})"))
    }

    /// Why a run that goes on is no more what its recipe says; `None`: it is.
    fn amended(folder: &Path, run: &RunRecord) -> Option<String> {
        let begin = Summary::read(folder).ok()?.begin?;
        let recipe = Recipe::read(folder.join(RECIPE)).ok()?;
        let steps = run.plan.done_steps;
        if !recipe.has_args(run) {
            return Some(format!("it went on after step {steps} with other arguments"));
        }
        let train = &begin.record["fingerprints"]["train"];
        (*train != run.fingerprints.train.as_str())
            .then(|| format!("it went on after step {steps} with other training rows"))
    }

    /// The data of a run that goes on, if its rows are others than before and are named.
    fn other_data(&mut self, root: &Path, run: &RunRecord, before: &Summary) -> Option<DataRecord> {
        if run.fingerprints.train == before.train {
            return None;
        }
        let (record, rows) = self.data.clone()?.record();
        // Rows that have changed under a name that has not: they are not those of the name.
        let last = before.begin.as_ref().and_then(|begin| begin.last_data());
        if last.is_some_and(|last| last.rows == record.rows) {
            let name = &self.name;
            self.warn(format!(
                "`{name}` goes on with other rows, and they are not named: record it on with them \
                 (`registry.record_on(id)?.with_data(&data)`)"
            ));
            return None;
        }
        self.keep_rows(root, &record, &rows);
        Some(record)
    }

    /// The ids of the training rows, once for all runs on the same rows.
    fn keep_rows(&mut self, root: &Path, record: &DataRecord, rows: &str) {
        let folder = root.join(ROWS);
        let path = folder.join(format!("{}.txt", record.rows));
        // One that was cut short or changed is written again.
        if disk::read(&path).is_ok_and(|found| found.as_deref() == Some(rows.as_bytes())) {
            return;
        }
        let written =
            disk::create_dir(&folder).and_then(|()| disk::write_whole(&path, rows.as_bytes()));
        if let Err(error) = written {
            let name = &self.name;
            self.warn(format!(
                "which rows `{name}` was trained on is not recorded ({error}): \
                 `adapters_touched_by` does not find its adapter"
            ));
        }
    }

    /// The adapter that the run goes on from: the one that is named, or the one that answers now.
    fn parent(&mut self, run: &RunRecord, model: &Model) -> Option<String> {
        if let Some(parent) = self.parent.take() {
            return match self.registry.resolve_adapter(&parent) {
                Ok(parent) => Some(parent),
                Err(error) => {
                    self.warn(format!("the parent is recorded as it was given: {error}"));
                    Some(parent)
                }
            };
        }
        let Strategy::Adapter(_) = &run.strategy else { return None };
        let fingerprint = answering_fingerprint(model).ok()?;
        self.registry.adapter_answering(&fingerprint).ok().flatten()
    }

    /// Saves the adapter and writes the last line, the manifest and the row of the index.
    fn end(&mut self, run: &RunRecord, state: &str, error: Option<String>) {
        if let Some(model) = self.model.take()
            && matches!(run.strategy, Strategy::Adapter(_))
            && state != "failed"
        {
            let (id, parent) = (self.id.clone(), self.parent.clone());
            let origin = Origin { run: id, parent, at: disk::now() };
            match adapters::save(self.registry.root(), &model, &run.adapter, origin) {
                Ok(adapter) => {
                    self.line(&Line::Adapter { adapter: adapter.clone() }, true);
                    self.adapter = Some(adapter);
                }
                Err(error) => {
                    let adapter = &run.adapter;
                    self.warn(format!(
                        "the adapter `{adapter}` is not in the registry ({error}); it is on the \
                         model: save it (`model.save_adapter`) or add it when there is room \
                         (`registry.add_adapter`)"
                    ));
                }
            }
        }
        self.line(
            &Line::End(End {
                state: state.to_owned(),
                steps: run.steps.len(),
                secs: run.secs,
                stopped: run.stopped,
                loaded_step: run.loaded_step,
                error,
                ended: disk::now(),
            }),
            true,
        );
        if self.log.take().is_some() {
            let written = self.manifest().and_then(|()| self.registry.touch());
            if let Err(error) = written {
                let name = &self.name;
                self.warn(format!("`{name}` is recorded without a manifest: {error}"));
            }
        }
        // The next run is another one.
        self.parent = None;
    }

    fn manifest(&self) -> Result<()> {
        let id = self.id.as_deref().unwrap_or_default();
        let folder = self.registry.run_folder(id);
        let mut files = serde_json::Map::new();
        for name in [LOG, RECIPE] {
            if let Some(bytes) = disk::read(&folder.join(name))? {
                let file = json!({ "bytes": bytes.len(), "sha256": disk::sha256(&bytes) });
                files.insert(name.to_owned(), file);
            }
        }
        let manifest: Value =
            json!({ "format": FORMAT, "run": id, "files": files, "adapter": self.adapter });
        disk::write_whole(&folder.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)
    }
}

impl Callback for Recorder {
    fn on_begin(&mut self, run: &RunRecord, model: &Model) -> tunebook_tune::Result<()> {
        let mut recording = self.lock();
        recording.model = Some(model.clone());
        (recording.lost, recording.resume) = (0, None);
        if let Err(error) = recording.begin(run, model) {
            let name = &recording.name;
            let warning = match recording.log {
                Some(_) => format!("`{name}` is recorded, and not in the index: {error}"),
                None => format!("the run `{name}` goes on, and is not recorded: {error}"),
            };
            recording.warn(warning);
        }
        Ok(())
    }

    fn on_step(&mut self, record: &StepRecord) -> tunebook_tune::Result<()> {
        self.lock().line(&Measured::Step(record), false);
        Ok(())
    }

    fn on_eval(&mut self, record: &EvalRecord) -> tunebook_tune::Result<()> {
        self.lock().line(&Measured::Eval(record), true);
        Ok(())
    }

    fn on_save(&mut self, step: usize, folder: &Path) -> tunebook_tune::Result<()> {
        // Its name alone: the registry may be read on another machine.
        let folder = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.lock().line(&Line::Save { step, folder }, true);
        Ok(())
    }

    fn on_end(&mut self, run: &RunRecord) -> tunebook_tune::Result<()> {
        let state = if run.stopped.is_none() { "finished" } else { "stopped" };
        self.lock().end(run, state, None);
        Ok(())
    }

    fn on_fail(&mut self, run: &RunRecord, error: &tunebook_tune::Error) {
        self.lock().end(run, "failed", Some(error.to_string()));
    }
}
