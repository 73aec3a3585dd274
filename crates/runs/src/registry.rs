//! The registry: a folder of runs, adapters, evaluations and aliases, with an index beside them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polars::prelude::*;
use rusqlite::{Connection, OptionalExtension as _};
use tunebook_data::Row;
use tunebook_evaluate::{Comparison, Evaluation};
use tunebook_models::Model;
use tunebook_tune::RunRecord;

use crate::adapters::{self, Origin};
use crate::aliases::{self, Alias, AliasGeneration};
use crate::compare::{self, RunComparison};
use crate::disk;
use crate::error::{Error, Result};
use crate::evaluations;
use crate::garbage::{self, Garbage, GarbageArgs};
use crate::ids;
use crate::index::Index;
use crate::names;
use crate::recipe::Recipe;
use crate::recorder::Recorder;
use crate::summary::{self, FULL_TUNING, LOG, NOTES, RECIPE, Said, Summary};
use crate::table;
use crate::touched::{self, Touched};
use crate::verify::{self, DamagedFile};
use crate::why::{self, Why};

/// The folder of all runs.
pub(crate) const RUNS: &str = "runs";
/// The folder of the ids of training rows.
pub(crate) const ROWS: &str = "rows";
/// Names shown where one is not found.
const SHOWN: usize = 8;

/// What is looked for by a name, in the words of an error.
const RUN: &str = "run";
pub(crate) const ALIAS: &str = "alias";
const ANY: &str = "adapter, alias or run";

/// Names, and how they are shown.
const RUN_NAMES: &str =
    "SELECT name, name || ' (' || id || ')' FROM runs ORDER BY started DESC, id";
const ALIAS_NAMES: &str = "SELECT DISTINCT alias, alias || ' (alias)' FROM promotions";

/// What a name stands for, by id.
pub(crate) enum Named {
    Adapter(String),
    Run(String),
}

/// A folder that remembers runs. Cheap to clone; any number of processes may have it open.
///
/// ```no_run
/// use tunebook_models::{Device, Model};
/// use tunebook_runs::Registry;
/// use tunebook_tune::{Example, Trainer, TrainingArgs};
/// # fn f(model: Model, data: tunebook_data::Splits) -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::open("registry")?;
/// let record = registry.record("support v1").with_data(&data);
/// let trainer = Trainer::new(&model, &TrainingArgs::default()).with_callback(record.clone());
/// # let examples: Vec<Example> = Vec::new();
/// trainer.train(&examples)?;
/// println!("{}", registry.runs()?);
/// println!("{}", registry.why(&record.id())?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    root: PathBuf,
    index: Index,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({})", self.0.root.display())
    }
}

impl Registry {
    /// Opens the registry in a folder, which is made if need be. One that cannot be written to can be
    /// read. Nothing is changed in a folder that is there.
    ///
    /// # Errors
    /// There is no folder, and none can be made.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::open_in(folder.as_ref())
    }

    fn open_in(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            for folder in [RUNS, aliases::SERVING] {
                disk::create_dir(&root.join(folder))?;
            }
        }
        Ok(Self(Arc::new(Inner { root: root.to_path_buf(), index: Index::new(root) })))
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    pub(crate) fn index(&self) -> &Index {
        &self.0.index
    }

    pub(crate) fn run_folder(&self, run: &str) -> PathBuf {
        self.0.root.join(RUNS).join(ids::run_name(run))
    }

    /// Whether the folder holds a registry: at least one of the folders of runs, adapters, evaluations
    /// and aliases.
    pub fn is_there(&self) -> bool {
        is_registry(self.root())
    }

    /// Lets what is served follow the aliases, where a process was killed between the two. On a disk
    /// that cannot be written nothing changes, which is all one can do.
    pub(crate) fn put_right(&self) {
        let problems = aliases::put_right(self.root());
        let problems = problems.unwrap_or_else(|error| vec![error.to_string()]);
        problems.into_iter().for_each(|problem| self.index().warn(problem));
    }

    /// What was odd about the index: it was damaged, or cannot be written.
    pub fn warnings(&self) -> Vec<String> {
        self.0.index.warnings()
    }

    /// A callback that records a run under this name, for
    /// [`Trainer::with_callback`](tunebook_tune::Trainer::with_callback). Keep a clone of it, which
    /// knows the run's id.
    pub fn record(&self, name: &str) -> Recorder {
        Recorder::new(self, name)
    }

    /// A callback that records a run that goes on after its process has ended: in the folder of the
    /// run with this id or name.
    ///
    /// # Errors
    /// No such run.
    pub fn record_on(&self, run: &str) -> Result<Recorder> {
        Ok(Recorder::going_on(self, self.resolve_run(run)?))
    }

    /// All runs, the newest first: a polars frame. `adapter_files` says whether the files of a run's
    /// adapter are `present`, were `collected` as garbage, or are `missing`.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn runs(&self) -> Result<DataFrame> {
        table::runs(self)
    }

    /// The recipe of a run: its data, model, strategy and arguments, for
    /// [`Recipe::write`] and for `tunebook train`.
    ///
    /// # Errors
    /// No such run; one that does what no recipe can say, by name; one from before runs had recipes.
    pub fn recipe(&self, run: &str) -> Result<Recipe> {
        self.recipe_in(&self.resolve_run(run)?)
    }

    /// The recipe of the run with this id.
    pub(crate) fn recipe_in(&self, id: &str) -> Result<Recipe> {
        let folder = self.run_folder(id);
        let summary = Summary::read(&folder)?;
        let none = |problem: String| {
            Err(Error::NoRecipe { run: format!("{} ({id})", summary.name), problem })
        };
        if let Some(problem) = &summary.no_recipe {
            return none(problem.clone());
        }
        let path = folder.join(RECIPE);
        if !path.exists() {
            return none("it was recorded before runs had recipes".to_owned());
        }
        Recipe::read(path)
    }

    /// The newest run of this recipe that has not come to its end, by id.
    pub(crate) fn unfinished_of(&self, recipe: &Recipe) -> Result<Option<String>> {
        let text = recipe.to_yaml()?;
        let mut newest: Option<(f64, String)> = None;
        for id in disk::names(&self.root().join(RUNS))? {
            let folder = self.run_folder(&id);
            let found = disk::read(&folder.join(RECIPE))?;
            if found.as_deref() != Some(text.as_bytes()) || Summary::is_running(&folder) {
                continue;
            }
            let summary = Summary::read(&folder)?;
            let open = summary.state != "finished" && summary.no_recipe.is_none();
            if open && newest.as_ref().is_none_or(|(started, _)| *started <= summary.started) {
                newest = Some((summary.started, id));
            }
        }
        Ok(newest.map(|(_, id)| id))
    }

    /// The record of a run with all its steps and evaluations, for curves.
    ///
    /// # Errors
    /// No such run, or one whose first line is lost.
    pub fn run(&self, run: &str) -> Result<RunRecord> {
        let folder = self.run_folder(&self.resolve_run(run)?);
        summary::record(&folder)?.ok_or_else(|| Error::File {
            path: folder.join(LOG),
            problem: "has no line that says how the run began".to_owned(),
        })
    }

    /// Some runs side by side: what differs in their settings, and their metrics. Ids, beginnings of
    /// ids, or names.
    ///
    /// # Errors
    /// No such run.
    pub fn compare(&self, runs: &[&str]) -> Result<RunComparison> {
        compare::compare(self, None, runs)
    }

    /// The same beside a baseline, from which the metrics' differences are taken.
    ///
    /// # Errors
    /// No such run.
    pub fn compare_with(&self, baseline: &str, runs: &[&str]) -> Result<RunComparison> {
        compare::compare(self, Some(baseline), runs)
    }

    /// Where an adapter comes from: rows, their cleaning and split, base, parent adapter, run,
    /// evaluations, promotions. `what` is an adapter's id, a run's id or name, or an alias.
    ///
    /// # Errors
    /// Nothing of that name.
    pub fn why(&self, what: &str) -> Result<Why> {
        why::why(self, what)
    }

    /// The adapters that were trained on a row, or go on from one that was. The row is looked for as it
    /// is, and as each run's cleaning makes it.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn adapters_touched_by(&self, row: &Row) -> Result<Touched> {
        touched::by_row(self, row)
    }

    /// The adapters that were trained on rows with this value in an id column
    /// ([`RunData::with_id_column`](crate::RunData::with_id_column)), or go on from one that was.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn adapters_touched_by_id(&self, column: &str, value: &str) -> Result<Touched> {
        touched::by_id(self, column, value)
    }

    /// Adds a note to a run.
    ///
    /// # Errors
    /// No such run, or a file that cannot be written.
    pub fn note(&self, run: &str, text: &str) -> Result<()> {
        self.say(run, &Said::Note { text: text.to_owned(), at: disk::now() })
    }

    /// Adds a tag to a run. The adapter of a run with the tag `keep` is never garbage.
    ///
    /// # Errors
    /// No such run, or a file that cannot be written.
    pub fn tag(&self, run: &str, tag: &str) -> Result<()> {
        self.say(run, &Said::Tag { tag: tag.to_owned() })
    }

    /// Takes a tag away.
    ///
    /// # Errors
    /// No such run, or a file that cannot be written.
    pub fn untag(&self, run: &str, tag: &str) -> Result<()> {
        self.say(run, &Said::Untag { tag: tag.to_owned() })
    }

    fn say(&self, run: &str, line: &Said) -> Result<()> {
        let folder = self.run_folder(&self.resolve_run(run)?);
        disk::add_line(&folder.join(NOTES), line)?;
        self.follow();
        Ok(())
    }

    /// Adds an evaluation, and gives its id. It belongs to the adapter that has answered, by the
    /// fingerprint of its answers. Its scores and settings are kept, and none of the rows' texts.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add_evaluation(&self, evaluation: &Evaluation) -> Result<String> {
        let id = evaluations::add(self.root(), evaluation)?;
        self.follow();
        Ok(id)
    }

    /// Saves an adapter of a model that no recorded run has trained, and gives its id. The same adapter
    /// has the same id.
    ///
    /// # Errors
    /// No adapter of that name on the model, or files that cannot be written.
    pub fn add_adapter(&self, model: &Model, name: &str) -> Result<String> {
        let origin = Origin { run: None, parent: None, at: disk::now() };
        let id = adapters::save(self.root(), model, name, origin)?;
        self.follow();
        Ok(id)
    }

    /// The folder with an adapter's files, for
    /// [`load_adapter`](tunebook_tune::Adapters::load_adapter) and servers. An adapter's id or its
    /// beginning, an alias, or a run's id or name.
    ///
    /// # Errors
    /// No such adapter, or one whose files were collected as garbage.
    pub fn adapter_folder(&self, adapter: &str) -> Result<PathBuf> {
        let id = self.resolve_adapter(adapter)?;
        adapters::check(self.root(), &id)?;
        Ok(adapters::folder(self.root(), &id))
    }

    /// The folder in which each alias is a link to the files of its adapter: what a server watches
    /// (`tunebook serve --watch`, [`ServerConfig.watch`]).
    ///
    /// [`ServerConfig.watch`]: https://docs.rs/tunebook-serve
    pub fn serving_folder(&self) -> PathBuf {
        let folder = self.root().join(aliases::SERVING);
        let _ = disk::create_dir(&folder); // a server that cannot watch it says so
        folder
    }

    /// An alias as it is now; one without a generation if nothing was promoted to it.
    ///
    /// # Errors
    /// A name that cannot be used.
    pub fn alias(&self, name: &str) -> Result<Alias> {
        Alias::look(self, name)
    }

    /// All aliases as they are now. One whose file cannot be read is left out, with a word in
    /// [`Registry::warnings`].
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn aliases(&self) -> Result<Vec<Alias>> {
        let mut all = Vec::new();
        for name in aliases::names(self.root())? {
            match self.alias(&name) {
                Ok(alias) => all.push(alias),
                Err(error) => self.index().warn(error.to_string()),
            }
        }
        Ok(all)
    }

    /// [`Alias::promote`] of the alias as it is now.
    ///
    /// # Errors
    /// See there.
    pub fn promote(
        &self,
        alias: &str,
        adapter: &str,
        comparison: &Comparison,
    ) -> Result<AliasGeneration> {
        self.alias(alias)?.promote(adapter, comparison)
    }

    /// [`Alias::promote_forced`] of the alias as it is now.
    ///
    /// # Errors
    /// See there.
    pub fn promote_forced(
        &self,
        alias: &str,
        adapter: &str,
        reason: &str,
    ) -> Result<AliasGeneration> {
        self.alias(alias)?.promote_forced(adapter, reason)
    }

    /// [`Alias::rollback`] of the alias as it is now.
    ///
    /// # Errors
    /// See there.
    pub fn rollback(&self, alias: &str) -> Result<AliasGeneration> {
        self.alias(alias)?.rollback()
    }

    /// The adapters that are no longer needed: earlier states of runs that went on, and adapters of runs
    /// whose folders are gone. What a run or somebody has saved as a result stays, but for
    /// [`GarbageArgs::results`]. They are removed only if the arguments say so.
    ///
    /// # Errors
    /// Files that cannot be read or removed; an age that is no number. Where a line of an alias or of an
    /// adapter cannot be read nothing is collected ([`Error::NotCollected`]).
    pub fn gc(&self, args: &GarbageArgs) -> Result<Garbage> {
        garbage::collect(self, args)
    }

    /// What is damaged: files whose hashes are not those of their manifests, lines that cannot be
    /// read.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn verify(&self) -> Result<Vec<DamagedFile>> {
        verify::verify(self)
    }

    /// Makes the index again, from the files alone, and lets what is served follow the aliases.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn rebuild(&self) -> Result<()> {
        self.put_right();
        self.index().rebuild().map(drop)
    }

    /// All that the index holds, as text: of two indexes of the same files it is the same.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn dump(&self) -> Result<String> {
        self.index().dump()
    }

    /// Brings the index up to date after a change, for those who read it with other programs. The
    /// change is made, whatever becomes of the index: the next question tells.
    pub(crate) fn follow(&self) {
        let _ = self.touch();
    }

    /// Brings the index up to date.
    pub(crate) fn touch(&self) -> Result<()> {
        self.index().ask(|_| Ok(()))
    }

    /// The id of the run that is meant by an id, the beginning of one (four digits or more), or a name.
    ///
    /// # Errors
    /// None, or several: also where one run has the name and the id of another begins so.
    pub fn resolve_run(&self, run: &str) -> Result<String> {
        self.touch()?;
        self.run_now(run)
    }

    /// The same in the index as it is.
    pub(crate) fn run_now(&self, run: &str) -> Result<String> {
        let found = self.runs_named(run)?;
        self.one(RUN, "run", run, found)
    }

    /// The id of the adapter that is meant by an id, the beginning of one (four digits or more), an
    /// alias, or a run's id or name.
    ///
    /// # Errors
    /// None, or several; a run without an adapter.
    pub fn resolve_adapter(&self, adapter: &str) -> Result<String> {
        self.touch()?;
        match self.named(adapter)? {
            Named::Adapter(id) => Ok(id),
            Named::Run(run) => match self.adapter_of(&run)? {
                Some(id) => Ok(id),
                None => Err(self.no_adapter(&run)?),
            },
        }
    }

    /// An adapter by id, the beginning of one or an alias; else a run by id, the beginning of one or
    /// name. In the index as it is.
    ///
    /// # Errors
    /// None, or several.
    pub(crate) fn named(&self, what: &str) -> Result<Named> {
        let mut adapters = self.adapters_named(what)?;
        if adapters.is_empty() {
            let runs = self.runs_named(what)?;
            return self.one(ANY, "run", what, runs).map(Named::Run);
        }
        // The beginning of an adapter's id may be the name of a run.
        if is_beginning(what) && !adapters.iter().any(|id| id == what) {
            for run in self.runs_named(what)? {
                adapters.extend(self.adapter_of(&run)?);
            }
        }
        self.one(ANY, "adapter", what, once(adapters)).map(Named::Adapter)
    }

    fn runs_named(&self, run: &str) -> Result<Vec<String>> {
        self.index().look(|connection| {
            let mut found = begin_so(connection, "runs", run)?;
            if !found.iter().any(|id| id == run) {
                found.extend(texts(connection, "SELECT id FROM runs WHERE name = ?1", run)?);
            }
            Ok(once(found))
        })
    }

    fn adapters_named(&self, adapter: &str) -> Result<Vec<String>> {
        self.index().look(|connection| {
            let mut found = begin_so(connection, "adapters", adapter)?;
            if !found.iter().any(|id| id == adapter) {
                let sql = "SELECT adapter FROM promotions WHERE alias = ?1 \
                     ORDER BY generation DESC LIMIT 1";
                found.extend(texts(connection, sql, adapter)?);
            }
            Ok(once(found))
        })
    }

    /// The adapter that a run has trained, in the index as it is.
    pub(crate) fn adapter_of(&self, run: &str) -> Result<Option<String>> {
        self.index().look(|connection| {
            let sql = "SELECT adapter FROM runs WHERE id = ?1 AND adapter IS NOT NULL";
            Ok(texts(connection, sql, run)?.pop())
        })
    }

    /// Why a run has no adapter.
    fn no_adapter(&self, run: &str) -> Result<Error> {
        let summary = Summary::read(&self.run_folder(run))?;
        let problem = match summary.state.as_str() {
            _ if summary.strategy == FULL_TUNING => {
                "it has trained the model's own weights, which no registry holds".to_owned()
            }
            "finished" | "stopped" => "none was saved".to_owned(),
            state => format!("its state is `{state}`"),
        };
        Ok(Error::NoAdapter { run: format!("{} ({run})", summary.name), problem })
    }

    /// The only one that was found. `what` was looked for, `found` are runs or adapters.
    fn one(
        &self,
        what: &'static str,
        kind: &'static str,
        name: &str,
        mut found: Vec<String>,
    ) -> Result<String> {
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(self.not_found(what, name)?),
            _ => {
                found.truncate(SHOWN);
                Err(Error::Ambiguous { what: kind, name: name.to_owned(), found })
            }
        }
    }

    /// What to say of a name that nothing has: the names that are like it, or some that there are.
    pub(crate) fn not_found(&self, what: &'static str, name: &str) -> Result<Error> {
        let named = self.index().look(|connection| {
            let sql = match what {
                RUN => RUN_NAMES.to_owned(),
                ALIAS => ALIAS_NAMES.to_owned(),
                _ => format!("{ALIAS_NAMES} UNION ALL SELECT * FROM ({RUN_NAMES})"),
            };
            let mut rows = connection.prepare(&sql)?;
            let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let mut named: Vec<(String, String)> = rows.collect::<rusqlite::Result<_>>()?;
            // Adapters alone, which have no names.
            if named.is_empty() && what == ANY {
                let ids = texts(connection, "SELECT id FROM adapters WHERE id > ?1 LIMIT 8", "")?;
                named.extend(ids.into_iter().map(|id| (id.clone(), id)));
            }
            Ok(named)
        })?;
        let near = names::near(name, &named, SHOWN);
        let known = named.into_iter().take(SHOWN).map(|(_, label)| label).collect();
        Ok(Error::NotFound { what, name: name.to_owned(), near, known })
    }

    /// The adapter whose answers have this fingerprint.
    pub(crate) fn adapter_answering(&self, fingerprint: &str) -> Result<Option<String>> {
        self.index().ask(|connection| {
            let sql =
                "SELECT adapter FROM answering WHERE fingerprint = ?1 ORDER BY adapter LIMIT 1";
            connection.query_row(sql, [fingerprint], |row| row.get(0)).optional()
        })
    }
}

/// Whether a folder holds a registry.
pub(crate) fn is_registry(root: &Path) -> bool {
    [RUNS, adapters::FOLDER, evaluations::FOLDER, aliases::FOLDER]
        .iter()
        .any(|folder| root.join(folder).is_dir())
}

/// Each once, in order.
fn once(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids.dedup();
    ids
}

/// Whether a name may be the beginning of an id.
fn is_beginning(name: &str) -> bool {
    name.len() >= 4 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Ids that are this one, or begin so.
fn begin_so(connection: &Connection, table: &str, name: &str) -> rusqlite::Result<Vec<String>> {
    if !is_beginning(name) {
        return Ok(Vec::new());
    }
    // `g` comes after all digits.
    let sql = format!("SELECT id FROM {table} WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id");
    texts(connection, &sql, &name.to_ascii_lowercase())
}

/// The first column of all rows.
pub(crate) fn texts(
    connection: &Connection,
    sql: &str,
    parameter: &str,
) -> rusqlite::Result<Vec<String>> {
    let mut rows = connection.prepare(sql)?;
    rows.query_map([parameter], |row| row.get(0))?.collect()
}
