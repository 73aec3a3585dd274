//! Aliases: names whose adapter changes by promotion and comes back by rollback.
//!
//! `aliases/NAME.jsonl` has one line a generation, and none is ever changed. `serving/NAME` is a link
//! to the files of the last one, switched by one rename, for a server that watches `serving/`
//! (`tunebook serve --watch registry/serving`). The link follows the lines: should a process have been
//! killed between the two, the next change of anything puts it right, and `rebuild`. Where a line
//! cannot be read nobody knows what is served: nothing is switched then, and nothing collected.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tunebook_evaluate::{ComparedScore, Comparison, Verdict};
use tunebook_progress::printable;

use crate::adapters::{self, Kept};
use crate::data::short;
use crate::disk;
use crate::error::{Error, Result};
use crate::ids;
use crate::registry::{ALIAS, Registry};

/// The folder of all aliases.
pub(crate) const FOLDER: &str = "aliases";
/// The folder that a server watches.
pub(crate) const SERVING: &str = "serving";
/// The files of what is served, in there: a watching server follows no link out of its folder.
pub(crate) const FILES: &str = ".adapters";
/// The longest name in bytes: names of files have 255, and a few are for their endings.
const LONGEST: usize = 200;

/// How an adapter became a generation of an alias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromotionKind {
    /// By a paired evaluation that it won.
    Promoted,
    /// By somebody's word, without such an evaluation.
    Forced,
    /// It was served before, and came back.
    RolledBack,
}

impl PromotionKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Forced => "forced",
            Self::RolledBack => "rolled_back",
        }
    }
}

/// One generation of an alias.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct AliasGeneration {
    /// Counted from 1.
    pub generation: u64,
    /// The adapter.
    pub adapter: String,
    /// How it came.
    pub kind: PromotionKind,
    /// Of a promotion: the generation that a rollback goes to.
    #[serde(default)]
    pub previous: Option<u64>,
    /// Of a rollback: the generation that is back.
    #[serde(default)]
    pub restores: Option<u64>,
    /// Why it was forced.
    #[serde(default)]
    pub reason: Option<String>,
    /// The evaluation that it won.
    #[serde(default)]
    pub comparison: Option<ComparisonRecord>,
    /// When, in seconds of Unix time.
    pub at: f64,
}

/// A comparison without its rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparisonRecord {
    /// What was promoted, by the name that it had then.
    pub name: String,
    /// What it was compared with.
    pub other: String,
    /// The fingerprint of its answers.
    pub fingerprint: String,
    /// The other's.
    pub other_fingerprint: String,
    /// The scores of both.
    pub scores: Vec<ComparedScore>,
}

impl fmt::Display for ComparisonRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "against {}", printable(&self.other))?;
        for score in &self.scores {
            let ComparedScore { metric, value, other, adjusted_p_value, verdict, .. } = score;
            let name = printable(&metric.name);
            write!(f, "; {name} {value:.4}, was {other:.4}: {verdict} (p {adjusted_p_value:.3})")?;
        }
        Ok(())
    }
}

impl AliasGeneration {
    /// The generation that stands here, in its first form: of a rollback the one that it restores.
    fn first_form(&self) -> u64 {
        self.restores.unwrap_or(self.generation)
    }
}

impl fmt::Display for AliasGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}: adapter {}", self.generation, short(&self.adapter))?;
        match (self.kind, &self.comparison) {
            (PromotionKind::Promoted, Some(comparison)) => write!(f, ", promoted {comparison}"),
            (PromotionKind::Promoted, None) => f.write_str(", promoted"),
            (PromotionKind::Forced, _) => {
                let reason = printable(self.reason.as_deref().unwrap_or_default());
                write!(f, ", FORCED without a paired evaluation: {reason}")
            }
            (PromotionKind::RolledBack, _) => {
                write!(f, ", rolled back to generation {}", self.first_form())
            }
        }
    }
}

impl fmt::Debug for AliasGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The lines of an alias.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Those that can be read, in order.
    pub(crate) generations: Vec<AliasGeneration>,
    /// The length of the file.
    pub(crate) bytes: u64,
    /// What is wrong with the first line that is none of the generations.
    pub(crate) damage: Option<String>,
}

/// The generations of an alias.
///
/// # Errors
/// The file cannot be read. A damaged line is no error here.
pub(crate) fn history(root: &Path, alias: &str) -> Result<History> {
    let bytes = disk::read(&path(root, alias))?.unwrap_or_default();
    let mut history = History { bytes: bytes.len() as u64, ..History::default() };
    // The last line may be whole without its end: a copy that was edited.
    for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        let expected = history.generations.last().map_or(1, |last| last.generation + 1);
        let problem = match serde_json::from_slice::<AliasGeneration>(line) {
            Err(error) => format!("cannot be read ({error})"),
            Ok(next) if !ids::is_adapter(&next.adapter) => {
                format!("names `{}`, which is no adapter's id", printable(&next.adapter))
            }
            Ok(next) => {
                let found = next.generation;
                history.generations.push(next);
                if found == expected {
                    continue;
                }
                format!("is generation {found}, expected {expected}")
            }
        };
        history.damage.get_or_insert(format!("its line {} {problem}", at + 1));
    }
    Ok(history)
}

/// # Errors
/// There is damage.
fn undamaged(root: &Path, alias: &str, damage: Option<&String>) -> Result<()> {
    let Some(damage) = damage else { return Ok(()) };
    let problem = format!(
        "{damage}. What `{alias}` stands for is not certain: it is not changed, and no adapter is \
         collected. Bring the file back from a copy; delete the line only if a process was killed \
         while it wrote it"
    );
    Err(Error::File { path: path(root, alias), problem })
}

/// All adapters that are or were a generation of any alias, whatever the name of its file.
///
/// # Errors
/// A file that cannot be read whole.
pub(crate) fn referred(root: &Path) -> Result<BTreeSet<String>> {
    let mut referred = BTreeSet::new();
    for file in disk::names(&root.join(FOLDER))? {
        if let Some(alias) = file.strip_suffix(".jsonl") {
            let history = history(root, alias)?;
            undamaged(root, alias, history.damage.as_ref())?;
            referred.extend(history.generations.into_iter().map(|of| of.adapter));
        }
    }
    Ok(referred)
}

/// What is wrong with the name of an alias.
fn name_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name.len() > LONGEST {
        Some("is longer than 200 bytes")
    } else if !name.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_') {
        Some("has a character that cannot stand in a folder's name on every system")
    } else {
        None
    }
}

fn path(root: &Path, alias: &str) -> PathBuf {
    root.join(FOLDER).join(format!("{alias}.jsonl"))
}

/// An alias as it was when it was looked at. A change is made only if it is still so (compare-and-swap):
/// of two people who change one alias at once, the second is told.
#[derive(Clone)]
pub struct Alias {
    registry: Registry,
    name: String,
    history: Vec<AliasGeneration>,
    damage: Option<String>,
}

impl Alias {
    /// # Errors
    /// A name that cannot be used.
    pub(crate) fn look(registry: &Registry, name: &str) -> Result<Self> {
        if let Some(problem) = name_problem(name) {
            return Err(Error::Name { what: "alias", name: name.to_owned(), problem });
        }
        let History { generations, damage, .. } = history(registry.root(), name)?;
        Ok(Self { registry: registry.clone(), name: name.to_owned(), history: generations, damage })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of its generation; 0 before the first promotion.
    pub fn generation(&self) -> u64 {
        self.history.last().map_or(0, |last| last.generation)
    }

    /// The adapter that it stands for.
    pub fn adapter(&self) -> Option<&str> {
        self.history.last().map(|last| last.adapter.as_str())
    }

    /// All its generations, the first first.
    pub fn history(&self) -> &[AliasGeneration] {
        &self.history
    }

    /// Lets the alias stand for another adapter, if a comparison on the same rows says that it is
    /// better: at least one score better, none worse. The comparison must be of this adapter's
    /// answers with those of the adapter that it takes the place of; for the first generation the
    /// other may be any, as a rule the base. `adapter` is an id, the beginning of one, or a run's id
    /// or name.
    ///
    /// # Errors
    /// A comparison that shows no such thing or is of other models, an alias that somebody has changed
    /// meanwhile or whose file is damaged, an adapter whose files are gone, or files that cannot be
    /// written. The alias stays as it is then, but for [`Error::NotServed`].
    pub fn promote(&self, adapter: &str, comparison: &Comparison) -> Result<AliasGeneration> {
        self.whole()?;
        let adapter = self.registry.resolve_adapter(adapter)?;
        self.check_better(&adapter, comparison)?;
        let comparison = ComparisonRecord {
            name: comparison.name.clone(),
            other: comparison.other.clone(),
            fingerprint: comparison.fingerprint.clone(),
            other_fingerprint: comparison.other_fingerprint.clone(),
            scores: comparison.scores.clone(),
        };
        self.change(AliasGeneration {
            generation: self.generation() + 1,
            adapter,
            kind: PromotionKind::Promoted,
            previous: self.history.last().map(AliasGeneration::first_form),
            restores: None,
            reason: None,
            comparison: Some(comparison),
            at: disk::now(),
        })
    }

    /// The same without an evaluation, for a reason that the registry keeps and tells.
    ///
    /// # Errors
    /// No reason; else as [`Alias::promote`].
    pub fn promote_forced(&self, adapter: &str, reason: &str) -> Result<AliasGeneration> {
        self.whole()?;
        let adapter = self.registry.resolve_adapter(adapter)?;
        if reason.trim().is_empty() {
            return Err(self.refuse(&adapter, "no reason is given".into(), "Say why"));
        }
        self.check_other(&adapter)?;
        self.change(AliasGeneration {
            generation: self.generation() + 1,
            adapter,
            kind: PromotionKind::Forced,
            previous: self.history.last().map(AliasGeneration::first_form),
            restores: None,
            reason: Some(reason.to_owned()),
            comparison: None,
            at: disk::now(),
        })
    }

    /// Goes back to the generation before. Once more goes one further back.
    ///
    /// # Errors
    /// There is no such alias, or no generation before; else as [`Alias::promote`].
    pub fn rollback(&self) -> Result<AliasGeneration> {
        self.whole()?;
        if self.history.is_empty() {
            self.registry.touch()?;
            return Err(self.registry.not_found(ALIAS, &self.name)?);
        }
        let numbered = |number: u64| self.history.iter().find(|of| of.generation == number);
        let before = self
            .history
            .last()
            .and_then(|last| numbered(last.first_form()))
            .and_then(|standing| numbered(standing.previous?));
        let Some(before) = before else {
            let (alias, generation) = (self.name.clone(), self.generation());
            return Err(Error::NothingBefore { alias, generation });
        };
        self.change(AliasGeneration {
            generation: self.generation() + 1,
            adapter: before.adapter.clone(),
            kind: PromotionKind::RolledBack,
            previous: None,
            restores: Some(before.generation),
            reason: None,
            comparison: None,
            at: disk::now(),
        })
    }

    /// # Errors
    /// A line of its file cannot be read.
    fn whole(&self) -> Result<()> {
        undamaged(self.registry.root(), &self.name, self.damage.as_ref())
    }

    fn refuse(&self, adapter: &str, problem: String, advice: &'static str) -> Error {
        let (alias, adapter) = (self.name.clone(), short(adapter).to_owned());
        Error::Refused { alias, adapter, problem, advice }
    }

    fn check_other(&self, adapter: &str) -> Result<()> {
        match self.adapter() == Some(adapter) {
            true => Err(self.refuse(adapter, "it stands for this adapter already".into(), "")),
            false => Ok(()),
        }
    }

    fn check_better(&self, adapter: &str, comparison: &Comparison) -> Result<()> {
        self.check_other(adapter)?;
        let root = self.registry.root();
        if !Kept::read(root, adapter)?.answering.contains(&comparison.fingerprint) {
            let problem = format!(
                "the comparison is of `{}`, whose answers have the fingerprint {}, and not of this \
                 adapter",
                comparison.name,
                short(&comparison.fingerprint)
            );
            let advice = "Evaluate the adapter, and what is served, on the same rows";
            return Err(self.refuse(adapter, problem, advice));
        }
        if let Some(served) = self.history.last()
            && !Kept::read(root, &served.adapter)?.answering.contains(&comparison.other_fingerprint)
        {
            let problem = format!(
                "the comparison is with `{}`, and not with generation {}, the adapter {}",
                comparison.other,
                served.generation,
                short(&served.adapter)
            );
            let advice = "Compare with what is served";
            return Err(self.refuse(adapter, problem, advice));
        }
        let of = |verdict: Verdict| -> Vec<&str> {
            let scores = comparison.scores.iter().filter(|score| score.verdict == verdict);
            scores.map(|score| score.metric.name.as_str()).collect()
        };
        let (better, worse) = (of(Verdict::Better), of(Verdict::Worse));
        let problem = match (better.as_slice(), worse.as_slice()) {
            ([], []) => format!("the rows show no difference ({comparison:?})"),
            (_, [_, ..]) => format!("it is worse in {} ({comparison:?})", worse.join(", ")),
            ([_, ..], []) => return Ok(()),
        };
        let advice = "Evaluate on more rows, or force it for a reason (`promote_forced`)";
        Err(self.refuse(adapter, problem, advice))
    }

    /// Adds a generation, if the alias is as it was, and switches what is served.
    fn change(&self, next: AliasGeneration) -> Result<AliasGeneration> {
        let root = self.registry.root();
        self.registry.put_right();
        let _store = adapters::lock(root)?;
        let now = history(root, &self.name)?;
        undamaged(root, &self.name, now.damage.as_ref())?;
        let found = now.generations.last().map_or(0, |last| last.generation);
        if found != self.generation() {
            let expected = self.generation();
            return Err(Error::Conflict { alias: self.name.clone(), expected, found });
        }
        // What can fail of the switch is done before it is decided.
        provide(root, &next.adapter)?;
        let link = Link::new(root, &self.name, &next.adapter)?;
        disk::create_dir(&root.join(FOLDER))?;
        disk::add_line(&path(root, &self.name), &next)?;
        let served = link.put();
        self.registry.follow();
        if let Err(source) = served {
            let (alias, generation) = (self.name.clone(), next.generation);
            return Err(Error::NotServed { alias, generation, source: Box::new(source) });
        }
        Ok(next)
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.history.last() {
            None => write!(f, "{}: nothing was promoted yet", self.name)?,
            Some(last) => write!(f, "{}, {last}", self.name)?,
        }
        match &self.damage {
            None => Ok(()),
            Some(damage) => write!(f, "; its file is damaged: {damage}"),
        }
    }
}

impl fmt::Debug for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Puts the files of an adapter where a server finds them: as other names of the same files, or as
/// copies where the file system has no such names.
///
/// # Errors
/// The adapter's files are gone or others, or cannot be written there.
fn provide(root: &Path, adapter: &str) -> Result<()> {
    adapters::check(root, adapter)?;
    let all = root.join(SERVING).join(FILES);
    disk::create_dir(&all)?;
    if fs::symlink_metadata(&all).map_err(disk::io("read", &all))?.is_symlink() {
        let problem = "is a link: expected a folder of the registry".to_owned();
        return Err(Error::File { path: all, problem });
    }
    let folder = all.join(adapter);
    if is_provided(&folder, adapter) {
        return Ok(());
    }
    let temporary = all.join(format!(".{}.tmp", disk::new_id()?));
    let filled = (|| {
        disk::create_dir(&temporary)?;
        let from = adapters::folder(root, adapter);
        for name in disk::names(&from)? {
            let (old, new) = (from.join(&name), temporary.join(&name));
            fs::hard_link(&old, &new)
                .or_else(|_| fs::copy(&old, &new).map(drop))
                .map_err(disk::io("write", &new))?;
        }
        if fs::symlink_metadata(&folder).is_ok() {
            // What somebody has changed or put there is put aside, not removed.
            let changed = all.join(format!(".{adapter}.{}.changed", disk::new_id()?));
            fs::rename(&folder, &changed).map_err(disk::io("replace", &folder))?;
        }
        fs::rename(&temporary, &folder).map_err(disk::io("write", &folder))
    })();
    if filled.is_err() {
        let _ = fs::remove_dir_all(&temporary); // the error that matters is the one returned
    }
    filled
}

/// Whether a folder holds the files of this adapter.
fn is_provided(folder: &Path, adapter: &str) -> bool {
    folder.is_dir() && adapters::content(folder).is_ok_and(|found| found.0 == adapter)
}

/// A link to an adapter that is provided, on its way to `serving/ALIAS`.
struct Link {
    temporary: PathBuf,
    link: PathBuf,
}

impl Link {
    /// # Errors
    /// Something else than a link has the name, or no link can be made.
    fn new(root: &Path, alias: &str, adapter: &str) -> Result<Self> {
        let serving = root.join(SERVING);
        let link = serving.join(alias);
        if fs::symlink_metadata(&link).is_ok_and(|found| !found.is_symlink()) {
            let problem = "is no link, as the registry makes them: move it elsewhere".to_owned();
            return Err(Error::File { path: link, problem });
        }
        let temporary = serving.join(format!(".{}.tmp", disk::new_id()?));
        let target = Path::new(FILES).join(adapter);
        std::os::unix::fs::symlink(&target, &temporary).map_err(disk::io("write", &temporary))?;
        Ok(Self { temporary, link })
    }

    /// One rename, so that `serving/ALIAS` always leads to an adapter.
    fn put(self) -> Result<()> {
        fs::rename(&self.temporary, &self.link).map_err(disk::io("write", &self.link))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary); // of no use, or renamed
    }
}

/// The adapter that `serving/ALIAS` points to.
pub(crate) fn served(root: &Path, alias: &str) -> Option<String> {
    let target = fs::read_link(root.join(SERVING).join(alias)).ok()?;
    target.file_name()?.to_str().map(str::to_owned)
}

/// All aliases by name. A file of another name, as `support (1).jsonl`, is no alias.
pub(crate) fn names(root: &Path) -> Result<Vec<String>> {
    let files = disk::names(&root.join(FOLDER))?;
    let names = files.iter().filter_map(|file| file.strip_suffix(".jsonl"));
    Ok(names.filter(|name| name_problem(name).is_none()).map(str::to_owned).collect())
}

/// The adapter that `serving/ALIAS` ought to lead to, and does not; `Err`: nobody can say.
pub(crate) fn unserved(root: &Path, alias: &str) -> Result<Option<String>> {
    let history = history(root, alias)?;
    undamaged(root, alias, history.damage.as_ref())?;
    let Some(last) = history.generations.last() else { return Ok(None) };
    let served = served(root, alias);
    if served.as_ref() == Some(&last.adapter) {
        return Ok(None);
    }
    if let Some(served) = served
        && !history.generations.iter().any(|of| of.adapter == served)
    {
        let problem = format!(
            "`{SERVING}/{alias}` leads to the adapter {}, of which it has no line: lines are lost, \
             or the link is somebody else's. Bring the file back, or remove the link",
            printable(short(&served))
        );
        return Err(Error::File { path: path(root, alias), problem });
    }
    Ok(Some(last.adapter.clone()))
}

/// Lets every link lead to the last generation of its alias. Gives what stands in the way.
pub(crate) fn put_right(root: &Path) -> Result<Vec<String>> {
    let names = names(root)?;
    let is_wrong = |alias: &&String| !matches!(unserved(root, alias), Ok(None));
    let wrong: Vec<&String> = names.iter().filter(is_wrong).collect();
    if wrong.is_empty() {
        return Ok(Vec::new());
    }
    let _store = adapters::lock(root)?; // a promotion that goes on is waited for
    let mut problems = Vec::new();
    for alias in wrong {
        let switched = unserved(root, alias).and_then(|adapter| match adapter {
            None => Ok(()),
            Some(adapter) => {
                provide(root, &adapter)?;
                Link::new(root, alias, &adapter)?.put()
            }
        });
        problems.extend(switched.err().map(|error| error.to_string()));
    }
    Ok(problems)
}

/// Removes the provided files of adapters that no alias stands for.
pub(crate) fn tidy_served(root: &Path) -> Result<()> {
    let serving = root.join(SERVING);
    let mut now = Vec::new();
    for alias in names(root)? {
        now.extend(served(root, &alias));
    }
    for name in disk::names(&serving.join(FILES))? {
        if !now.contains(&name) {
            let folder = serving.join(FILES).join(&name);
            // What is not the files of this adapter, and them alone, is not ours.
            let alone = || adapters::unhashed(&folder).is_ok_and(|found| found.is_none());
            if is_provided(&folder, &name) && alone() {
                fs::remove_dir_all(&folder).map_err(disk::io("remove", &folder))?;
            }
        }
    }
    Ok(())
}
