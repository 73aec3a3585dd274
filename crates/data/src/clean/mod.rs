//! Cleaning: named steps in order, each of which says what it changed and what it dropped.
//!
//! Cleaning what is clean changes nothing: the steps are repeated over the rows that they changed
//! until none changes any more, so the order in which they stand cannot leave half the work undone.

pub(crate) mod backticks;
pub(crate) mod boilerplate;
pub(crate) mod casing;
pub(crate) mod html;
pub(crate) mod language;
pub(crate) mod markdown;
pub(crate) mod mojibake;
pub(crate) mod pii;
pub(crate) mod quality;
pub(crate) mod step;
pub(crate) mod whitespace;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use polars::prelude::*;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tunebook_progress::{ProgressBar, interrupt};

use crate::clean::pii::Pii;
use crate::clean::quality::{Quality, Repetition};
use crate::clean::step::{Kind, Step, Survivor, Transform, Verdict};
use crate::dataset::{COMPLETION, Dataset, PROMPT};
use crate::error::Result;
use crate::near::Likeness;
use crate::near::shingles::Shingles;
use crate::read::shape;
use crate::read::shape::Shape;
use crate::text::{counted, excerpt, thousands};
use crate::{key, near};

/// How many before/after examples a step keeps.
const EXAMPLES: usize = 3;
/// How much of a text an example shows.
const EXAMPLE_CHARS: usize = 280;
/// Passes over the rows. Every step shortens or settles what it changes, so this is far out of
/// reach.
const MAX_PASSES: usize = 16;
/// A progress bar is worth it from this number of rows on.
const BAR_ROWS: usize = 100_000;
/// Rows per thread between two looks at the stop flag.
const CHUNK_ROWS: usize = 16 << 10;

/// The steps, in order. `Cleaning::default()` has none; add them one by one, or start from
/// [`Cleaning::standard`].
///
/// ```
/// use tunebook_data::{Cleaning, Dataset};
///
/// let raw = Dataset::from_rows(&[("<b>Hi</b>  there", "Hello!"), ("Bye", "")]);
/// let clean = raw.clean(&Cleaning::default().strip_html().normalize_whitespace().drop_empty())?;
/// assert_eq!(clean.rows()[0].prompt, "Hi there");
/// assert_eq!(clean.report().steps[2].dropped, 1);
/// assert_eq!(clean.dropped().height(), 1);
/// # Ok::<(), tunebook_data::DataError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cleaning {
    /// The steps, in the order in which they run.
    pub steps: Vec<Step>,
}

impl Cleaning {
    /// The steps that suit most sets, in that order.
    pub fn standard() -> Self {
        Self::default()
            .repair_mojibake()
            .normalize_unicode()
            .strip_html()
            .strip_backticks()
            .normalize_whitespace()
            .repair_casing()
            .drop_empty()
            .drop_duplicates()
    }

    /// Adds [`Step::StripHtml`].
    #[must_use]
    pub fn strip_html(self) -> Self {
        self.step(Step::StripHtml)
    }

    /// Adds [`Step::NormalizeWhitespace`].
    #[must_use]
    pub fn normalize_whitespace(self) -> Self {
        self.step(Step::NormalizeWhitespace)
    }

    /// Adds [`Step::StripBackticks`].
    #[must_use]
    pub fn strip_backticks(self) -> Self {
        self.step(Step::StripBackticks)
    }

    /// Adds [`Step::RepairCasing`].
    #[must_use]
    pub fn repair_casing(self) -> Self {
        self.step(Step::RepairCasing)
    }

    /// Adds [`Step::DropEmpty`].
    #[must_use]
    pub fn drop_empty(self) -> Self {
        self.step(Step::DropEmpty)
    }

    /// Adds [`Step::DropDuplicates`].
    #[must_use]
    pub fn drop_duplicates(self) -> Self {
        self.step(Step::DropDuplicates)
    }

    /// Adds [`Step::DropNearDuplicates`] at the usual threshold, 0.72; the first of a group stays.
    #[must_use]
    pub fn drop_near_duplicates(self) -> Self {
        self.step(Step::near_duplicates())
    }

    /// Adds [`Step::DropNearDuplicates`] with a threshold between 0 and 1, and the row of a group
    /// that stays.
    #[must_use]
    pub fn drop_near_duplicates_at(self, threshold: f64, keep: Survivor) -> Self {
        self.step(Step::DropNearDuplicates { threshold, keep, shingles: Shingles::default() })
    }

    /// Adds [`Step::DropNearDuplicates`] with the shingles that are compared: `Shingles::Words(5)`
    /// for long documents.
    #[must_use]
    pub fn drop_near_duplicates_by(
        self,
        shingles: Shingles,
        threshold: f64,
        keep: Survivor,
    ) -> Self {
        self.step(Step::DropNearDuplicates { threshold, keep, shingles })
    }

    /// Adds [`Step::RepairMojibake`].
    #[must_use]
    pub fn repair_mojibake(self) -> Self {
        self.step(Step::RepairMojibake)
    }

    /// Adds [`Step::NormalizeUnicode`].
    #[must_use]
    pub fn normalize_unicode(self) -> Self {
        self.step(Step::NormalizeUnicode)
    }

    /// Adds [`Step::StripMarkdown`].
    #[must_use]
    pub fn strip_markdown(self) -> Self {
        self.step(Step::StripMarkdown)
    }

    /// Adds [`Step::TidyMarkdown`].
    #[must_use]
    pub fn tidy_markdown(self) -> Self {
        self.step(Step::TidyMarkdown)
    }

    /// Adds [`Step::StripBoilerplate`] for lines that this share of the rows has.
    #[must_use]
    pub fn strip_boilerplate(self, min_share: f64) -> Self {
        self.step(Step::StripBoilerplate { min_share })
    }

    /// Adds [`Step::MaskPii`] for all kinds.
    #[must_use]
    pub fn mask_pii(self) -> Self {
        self.step(Step::MaskPii { kinds: Pii::ALL.to_vec() })
    }

    /// Adds [`Step::DropShort`].
    #[must_use]
    pub fn drop_short(self, min_words: usize) -> Self {
        self.step(Step::DropShort { min_words })
    }

    /// Adds [`Step::DropLong`].
    #[must_use]
    pub fn drop_long(self, max_chars: usize) -> Self {
        self.step(Step::DropLong { max_chars })
    }

    /// Adds [`Step::KeepLanguages`], by codes such as `"en"` or `"deu"`.
    #[must_use]
    pub fn keep_languages(self, languages: &[&str]) -> Self {
        self.step(Step::KeepLanguages {
            languages: languages.iter().map(|name| (*name).to_owned()).collect(),
        })
    }

    /// Adds [`Step::DropLowQuality`]: [`Quality::gopher`], [`Quality::fineweb`], [`Quality::pairs`]
    /// or bounds of your own.
    #[must_use]
    pub fn drop_low_quality(self, rules: Quality) -> Self {
        self.step(Step::DropLowQuality(rules))
    }

    /// Adds [`Step::DropRepetitive`] with Gopher's bounds.
    #[must_use]
    pub fn drop_repetitive(self) -> Self {
        self.step(Step::DropRepetitive(Repetition::default()))
    }

    /// Adds [`Step::ResolveConflicts`].
    #[must_use]
    pub fn resolve_conflicts(self, keep: Survivor) -> Self {
        self.step(Step::ResolveConflicts { keep })
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.steps.iter().try_for_each(Step::check)
    }

    /// Adds any step.
    #[must_use]
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

/// What a cleaning did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CleanReport {
    /// Rows before.
    pub rows_before: usize,
    /// Rows after.
    pub rows_after: usize,
    /// Rows that stayed and that at least one step changed.
    pub rows_changed: usize,
    /// The steps, in order.
    pub steps: Vec<StepReport>,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step.
    pub step: Step,
    /// Rows whose prompt or completion it changed.
    pub changed: usize,
    /// Rows it dropped.
    pub dropped: usize,
    /// The first few of them.
    pub examples: Vec<Example>,
}

/// One text before and after a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The row's index in the set before the cleaning.
    pub row: usize,
    /// The column.
    pub column: String,
    /// The text before the step, cut to the part around the change.
    pub before: String,
    /// The text after it; for a dropped row, nothing.
    pub after: Option<String>,
    /// For a dropped row: why.
    pub reason: Option<String>,
}

impl CleanReport {
    pub(crate) fn untouched(rows: usize) -> Self {
        Self { rows_before: rows, rows_after: rows, rows_changed: 0, steps: Vec::new() }
    }

    /// Rows that were dropped, by all steps together.
    pub fn rows_dropped(&self) -> usize {
        self.rows_before - self.rows_after
    }
}

impl fmt::Display for CleanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} before, {} after: {} changed, {} dropped",
            counted(self.rows_before, "row"),
            thousands(self.rows_after),
            thousands(self.rows_changed),
            thousands(self.rows_dropped())
        )?;
        for step in &self.steps {
            write!(
                f,
                "\n{:<21} {:>8} changed {:>8} dropped",
                step.step.name(),
                thousands(step.changed),
                thousands(step.dropped)
            )?;
            for example in &step.examples {
                write!(
                    f,
                    "\n    row {} {}: {:?}",
                    example.row,
                    example.column,
                    excerpt(&example.before, 70)
                )?;
                match (&example.after, &example.reason) {
                    (Some(after), _) => write!(f, "\n      → {:?}", excerpt(after, 70))?,
                    (None, Some(reason)) => write!(f, "\n      dropped: {reason}")?,
                    (None, None) => {}
                }
            }
        }
        Ok(())
    }
}

/// A row that goes, and why.
pub(crate) struct Drop {
    row: usize,
    step: &'static str,
    reason: String,
}

pub(crate) fn run(dataset: &Dataset, cleaning: &Cleaning) -> Result<Dataset> {
    cleaning.check()?;
    let rows = dataset.len();
    let (prompts, completions) =
        dataset.pairs().map(|(p, c)| (Cow::Borrowed(p), Cow::Borrowed(c))).unzip();
    let mut work = Work {
        plain_text: *dataset.shape() == Shape::Text,
        prompts,
        completions,
        alive: vec![true; rows],
        pending: vec![true; rows],
        touched: vec![false; rows],
        drops: Vec::new(),
        keys: Vec::new(),
        changes: 1,
        dropped: 1,
        again: false,
    };
    let mut steps: Vec<Progress> =
        cleaning.steps.iter().map(|step| Progress::new(step, rows)).collect();
    let total = (rows * cleaning.steps.len()) as u64;
    let bar = (rows >= BAR_ROWS).then(|| ProgressBar::new("Cleaning", Some(total)).unit("row"));

    for pass in 0..MAX_PASSES {
        let mut next = vec![false; rows];
        let before = work.dropped;
        let mut changed_now = false;
        for step in &mut steps {
            if let (Some(bar), 0) = (&bar, pass) {
                bar.message(step.report.step.name());
            }
            let advance = |rows: usize| {
                if let (Some(bar), 0) = (&bar, pass) {
                    bar.advance(rows as u64);
                }
            };
            match &step.kind {
                Kind::Text(transform) => {
                    for row in work.transform(transform, &mut step.report, &advance)? {
                        step.changed[row] = true;
                        next[row] = true;
                        changed_now = true;
                    }
                }
                Kind::Row(verdict) => {
                    let drops = work.judge(verdict)?;
                    work.drop_rows(drops, &mut step.report);
                    advance(rows);
                }
                Kind::Set => {
                    // Nothing to do again unless a text has changed, or for some steps a row has
                    // gone.
                    let again = step.looks_at_all(work.again);
                    let state = (work.changes, if again { work.dropped } else { 0 });
                    // Whether rows are alike is judged on texts that have settled: so the order of
                    // the steps does not matter, and a stream of blocks gives the same rows as the
                    // whole set.
                    let compares = !matches!(
                        step.report.step,
                        Step::DropEmpty | Step::StripBoilerplate { .. }
                    );
                    let unsettled = changed_now && pass + 1 < MAX_PASSES;
                    if step.seen != state && !(compares && unsettled) {
                        for row in work.of_set(&mut step.report)? {
                            step.changed[row] = true;
                            next[row] = true;
                            changed_now = true;
                        }
                        // What the step itself has dropped it looks at once more; what it has
                        // changed, too.
                        step.seen = state;
                    }
                    if pass == 0 {
                        advance(rows);
                    }
                }
            }
        }
        // A row changed by an early step is looked at by the later ones in this pass; by all once
        // more in the next. The last pass changes and drops nothing, so a second cleaning finds
        // nothing to do either.
        let settled = !next.contains(&true)
            && (work.dropped == before || !steps.iter().any(|step| step.looks_at_all(work.again)));
        if settled {
            break;
        }
        work.pending = next;
    }
    let transforms: Vec<&Transform> = steps
        .iter()
        .filter_map(|step| match &step.kind {
            Kind::Text(transform) => Some(transform),
            _ => None,
        })
        .collect();
    let conversations = work.conversations(dataset, &transforms);
    let reports = steps.into_iter().map(Progress::finish).collect();
    work.finish(dataset, reports, conversations)
}

/// A text after all steps that work on texts, repeated until none changes it any more.
fn settled(text: &str, transforms: &[&Transform<'_>]) -> String {
    let mut text = Cow::Borrowed(text);
    for _ in 0..MAX_PASSES {
        let mut changed = false;
        for transform in transforms {
            if let Cow::Owned(after) = transform(&text) {
                text = Cow::Owned(after);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    text.into_owned()
}

/// A step and how far it is.
struct Progress<'s> {
    kind: Kind<'s>,
    report: StepReport,
    changed: Vec<bool>,
    /// The state of the set that the step has seen last.
    seen: (usize, usize),
}

impl<'s> Progress<'s> {
    fn new(step: &'s Step, rows: usize) -> Self {
        let kind = step.kind();
        let changes =
            matches!(kind, Kind::Text(_)) || matches!(step, Step::StripBoilerplate { .. });
        Self {
            kind,
            report: StepReport { step: step.clone(), changed: 0, dropped: 0, examples: Vec::new() },
            changed: vec![false; if changes { rows } else { 0 }],
            seen: (0, 0),
        }
    }

    /// Whether rows that go can make it act again.
    fn looks_at_all(&self, incomplete: bool) -> bool {
        match self.report.step {
            Step::DropNearDuplicates { .. } => incomplete,
            Step::StripBoilerplate { .. } => true,
            _ => false,
        }
    }

    fn finish(mut self) -> StepReport {
        self.report.changed = self.changed.iter().filter(|changed| **changed).count();
        self.report
    }
}

/// The texts as they stand, borrowed from the data set where nothing has changed them.
struct Work<'a> {
    /// The rows have no prompts.
    plain_text: bool,
    prompts: Vec<Cow<'a, str>>,
    completions: Vec<Cow<'a, str>>,
    /// Rows not dropped.
    alive: Vec<bool>,
    /// Rows that the pass looks at: those that the pass before changed.
    pending: Vec<bool>,
    /// Rows that any step has changed.
    touched: Vec<bool>,
    drops: Vec<Drop>,
    /// The words of each row's pair and of its prompt, as far as they are known: a change of the
    /// row forgets them.
    keys: Vec<Option<(u128, u128)>>,
    /// Grows with every changed row.
    changes: usize,
    /// Grows with every dropped row.
    dropped: usize,
    /// Some rows were not compared with each other: after rows have gone they have to be.
    again: bool,
}

impl Work<'_> {
    /// Applies `transform` to both texts of every pending row, and returns the rows that it
    /// changed.
    fn transform(
        &mut self,
        transform: &Transform<'_>,
        report: &mut StepReport,
        advance: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<usize>> {
        let (alive, pending) = (&self.alive, &self.pending);
        let rows = self
            .prompts
            .par_chunks_mut(CHUNK_ROWS)
            .zip(self.completions.par_chunks_mut(CHUNK_ROWS))
            .enumerate();
        let changes: Vec<Changes> = rows
            .map(|(chunk, (prompts, completions))| {
                interrupt::check()?;
                let mut changes = Changes { rows: Vec::new(), examples: Vec::new() };
                for (i, (prompt, completion)) in
                    prompts.iter_mut().zip(completions.iter_mut()).enumerate()
                {
                    let row = chunk * CHUNK_ROWS + i;
                    if !(alive[row] && pending[row]) {
                        continue;
                    }
                    let mut changed = false;
                    for (column, text) in [(PROMPT, prompt), (COMPLETION, completion)] {
                        let Cow::Owned(after) = transform(text) else { continue };
                        if changes.examples.len() < EXAMPLES {
                            changes.examples.push(Example::changed(row, column, text, &after));
                        }
                        *text = Cow::Owned(after);
                        changed = true;
                    }
                    if changed {
                        changes.rows.push(row);
                    }
                }
                advance(prompts.len());
                Ok(changes)
            })
            .collect::<Result<_>>()?;
        let mut rows = Vec::new();
        for changes in changes {
            rows.extend(changes.rows);
            let room = EXAMPLES.saturating_sub(report.examples.len());
            report.examples.extend(changes.examples.into_iter().take(room));
        }
        self.note_changes(&rows);
        Ok(rows)
    }

    fn note_changes(&mut self, rows: &[usize]) {
        for &row in rows {
            self.touched[row] = true;
            // Later steps of this pass see it, whatever the pass before did.
            self.pending[row] = true;
            if let Some(key) = self.keys.get_mut(row) {
                *key = None;
            }
        }
        self.changes += rows.len();
    }

    /// The pending rows that must go.
    fn judge(&self, verdict: &Verdict<'_>) -> Result<Vec<(usize, String)>> {
        let chunks: Vec<Vec<(usize, String)>> = (0..self.alive.len())
            .into_par_iter()
            .step_by(CHUNK_ROWS)
            .map(|start| {
                interrupt::check()?;
                let rows = start..self.alive.len().min(start + CHUNK_ROWS);
                let judged = rows.filter(|&row| self.alive[row] && self.pending[row]);
                Ok(judged
                    .filter_map(|row| {
                        Some((row, verdict(&self.prompts[row], &self.completions[row])?))
                    })
                    .collect())
            })
            .collect::<Result<_>>()?;
        Ok(chunks.concat())
    }

    /// A step that looks at all rows together; returns those that it changed.
    fn of_set(&mut self, report: &mut StepReport) -> Result<Vec<usize>> {
        interrupt::check()?;
        let drops = match &report.step {
            Step::StripBoilerplate { min_share } => {
                let changed = boilerplate::strip(&mut self.completions, &self.alive, *min_share);
                let mut rows = Vec::with_capacity(changed.len());
                for (row, before) in changed {
                    if report.examples.len() < EXAMPLES {
                        report.examples.push(Example::changed(
                            row,
                            COMPLETION,
                            &before,
                            &self.completions[row],
                        ));
                    }
                    rows.push(row);
                }
                self.note_changes(&rows);
                return Ok(rows);
            }
            Step::DropEmpty => self.empty_rows(),
            Step::DropNearDuplicates { threshold, keep, shingles } => self.near_duplicate_rows(
                Likeness { threshold: *threshold, shingles: *shingles },
                *keep,
            )?,
            Step::ResolveConflicts { keep } => self.conflicting_rows(*keep),
            _ => self.duplicate_rows(),
        };
        self.drop_rows(drops, report);
        Ok(Vec::new())
    }

    fn drop_rows(&mut self, drops: Vec<(usize, String)>, report: &mut StepReport) {
        self.dropped += drops.len();
        for (row, reason) in drops {
            self.alive[row] = false;
            report.dropped += 1;
            if report.examples.len() < EXAMPLES {
                report.examples.push(Example {
                    row,
                    column: if self.plain_text { COMPLETION } else { PROMPT }.into(),
                    before: excerpt(
                        if self.plain_text { &self.completions[row] } else { &self.prompts[row] },
                        EXAMPLE_CHARS,
                    ),
                    after: None,
                    reason: Some(reason.clone()),
                });
            }
            self.drops.push(Drop { row, step: report.step.name(), reason });
        }
    }

    fn empty_rows(&self) -> Vec<(usize, String)> {
        let empty = |text: &str| text.chars().all(char::is_whitespace);
        let reason = |row: usize| match (empty(&self.prompts[row]), empty(&self.completions[row])) {
            (_, true) if self.plain_text => Some("the text is empty".to_owned()),
            _ if self.plain_text => None,
            (true, true) => Some("prompt and completion are empty".to_owned()),
            (true, false) => Some("the prompt is empty".to_owned()),
            (false, true) => Some("the completion is empty".to_owned()),
            (false, false) => None,
        };
        (0..self.alive.len())
            .filter(|&row| self.alive[row])
            .filter_map(|row| Some((row, reason(row)?)))
            .collect()
    }

    /// The words of the pair and of the prompt of every row that stays.
    fn row_keys(&mut self) -> &[Option<(u128, u128)>] {
        self.keys.resize(self.alive.len(), None);
        let (alive, prompts, completions) = (&self.alive, &self.prompts, &self.completions);
        self.keys.par_iter_mut().enumerate().with_min_len(1024).for_each(|(row, key)| {
            if alive[row] && key.is_none() {
                let prompt = key::normalized(&prompts[row]);
                *key = Some((
                    key::pair_hash(&prompt, &key::normalized(&completions[row])),
                    key::text_hash(&prompt),
                ));
            }
        });
        &self.keys
    }

    fn duplicate_rows(&mut self) -> Vec<(usize, String)> {
        self.row_keys();
        let mut first: HashMap<u128, usize, key::Identity> =
            HashMap::with_capacity_and_hasher(self.keys.len(), key::Identity);
        let mut drops = Vec::new();
        for (row, key) in self.keys.iter().enumerate() {
            let (Some((key, _)), true) = (key, self.alive[row]) else { continue };
            let kept = *first.entry(*key).or_insert(row);
            if kept != row {
                let same = self.prompts[kept] == self.prompts[row]
                    && self.completions[kept] == self.completions[row];
                let how = if same { "the same as" } else { "the same words as" };
                drops.push((row, format!("{how} row {kept}")));
            }
        }
        drops
    }

    fn conflicting_rows(&mut self, keep: Survivor) -> Vec<(usize, String)> {
        self.row_keys();
        let mut groups: HashMap<u128, Vec<usize>, key::Identity> = HashMap::default();
        for (row, key) in self.keys.iter().enumerate() {
            // Texts without a prompt answer nothing.
            if let (Some((_, prompt)), true, false) =
                (key, self.alive[row], self.prompts[row].is_empty())
            {
                groups.entry(*prompt).or_default().push(row);
            }
        }
        let mut drops = Vec::new();
        for rows in groups.values() {
            let pair = |row: usize| self.keys[row].map(|key| key.0);
            if rows.iter().all(|&row| pair(row) == pair(rows[0])) {
                continue;
            }
            let kept = keep.of(rows, |row| self.completions[row].chars().count());
            for &row in rows.iter().filter(|&&row| Some(row) != kept) {
                let why = match kept {
                    Some(kept) if pair(kept) == pair(row) => {
                        format!("the same words as row {kept}")
                    }
                    Some(kept) => {
                        format!("row {kept}, {}, answers the same prompt otherwise", keep.word())
                    }
                    None => format!("{} rows answer this prompt in different ways", rows.len()),
                };
                drops.push((row, why));
            }
        }
        drops.sort_unstable();
        drops
    }

    fn near_duplicate_rows(
        &mut self,
        likeness: Likeness,
        keep: Survivor,
    ) -> Result<Vec<(usize, String)>> {
        let rows: Vec<usize> = (0..self.alive.len()).filter(|&row| self.alive[row]).collect();
        let texts: Vec<Cow<str>> = rows
            .par_iter()
            .with_min_len(1024)
            .map(|&row| match &*self.prompts[row] {
                "" => Cow::Borrowed(&*self.completions[row]),
                prompt => Cow::Owned(format!("{prompt}\n{}", self.completions[row])),
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
        let clusters = near::clusters(&texts, likeness)?;
        // Then no two of the rows that stay are alike, and there is nothing to look for once more.
        self.again |= !clusters.complete;
        // The members of each cluster, in the order of the set.
        let mut members: Vec<Vec<usize>> = Vec::new();
        let mut places: HashMap<usize, usize> = HashMap::new();
        for (text, &of) in clusters.of.iter().enumerate().filter(|(text, of)| *text != **of) {
            let at = *places.entry(of).or_insert(members.len());
            if at == members.len() {
                members.push(vec![of]);
            }
            members[at].push(text);
        }
        let reason = |group: &[usize], kept: Option<usize>, text: usize| {
            let Some(kept) = kept else {
                return format!("{} rows say nearly the same", group.len());
            };
            let similarity = clusters
                .known
                .get(&(kept.min(text) as u32, kept.max(text) as u32))
                .copied()
                .unwrap_or_else(|| near::similarity(texts[kept], texts[text], likeness.shingles));
            let which = match keep {
                Survivor::First => String::new(),
                _ => format!(", {}", keep.word()),
            };
            match similarity >= likeness.threshold {
                true => format!("{:.0} % like row {}{which}", 100.0 * similarity, rows[kept]),
                // Like a row in between, which is like the one that stays.
                false => {
                    format!(
                        "in the group of row {}{which}, {:.0} % like it",
                        rows[kept],
                        100.0 * similarity
                    )
                }
            }
        };
        let (rows, reason) = (&rows, &reason);
        let mut drops: Vec<(usize, String)> = members
            .par_iter()
            .flat_map_iter(|group| {
                let kept = keep.of(group, |text| self.completions[rows[text]].chars().count());
                let going = group.iter().copied().filter(move |&text| Some(text) != kept);
                going.map(move |text| (rows[text], reason(group, kept, text)))
            })
            .collect();
        drops.par_sort_unstable();
        Ok(drops)
    }

    /// The column with whole conversations, if there is one that the steps change: each turn is
    /// cleaned as the texts are, and the last one is the completion.
    fn conversations(
        &self,
        dataset: &Dataset,
        transforms: &[&Transform<'_>],
    ) -> Option<StringChunked> {
        let before = dataset.frame_ref().column(shape::MESSAGES).ok()?.str().ok()?;
        if !self.touched.contains(&true) {
            return None;
        }
        let after: Vec<Option<Cow<str>>> = (0..self.alive.len())
            .into_par_iter()
            .map(|row| {
                let text = before.get(row)?;
                let turns = if self.touched[row] { shape::turns_of(text) } else { None };
                let Some(mut turns) = turns else { return Some(Cow::Borrowed(text)) };
                turns.iter_mut().for_each(|(_, said)| *said = settled(said, transforms));
                if let Some((_, said)) = turns.last_mut() {
                    *said = self.completions[row].to_string();
                }
                Some(Cow::Owned(shape::messages_text(&turns)))
            })
            .collect();
        Some(StringChunked::from_iter_options(shape::MESSAGES.into(), after.into_iter()))
    }

    fn finish(
        mut self,
        dataset: &Dataset,
        steps: Vec<StepReport>,
        conversations: Option<StringChunked>,
    ) -> Result<Dataset> {
        let report = CleanReport {
            rows_before: dataset.len(),
            rows_after: self.alive.iter().filter(|alive| **alive).count(),
            rows_changed: self
                .touched
                .iter()
                .zip(&self.alive)
                .filter(|(touched, alive)| **touched && **alive)
                .count(),
            steps,
        };
        let mut frame = dataset.frame();
        if self.touched.contains(&true) {
            for (name, texts) in [(PROMPT, &self.prompts), (COMPLETION, &self.completions)] {
                let column =
                    StringChunked::from_iter_values(name.into(), texts.iter().map(|text| &**text));
                frame.with_column(column.into_column())?;
            }
        }
        if let Some(conversations) = conversations {
            frame.with_column(conversations.into_column())?;
        }
        if report.rows_dropped() > 0 {
            frame = frame.filter(&BooleanChunked::from_slice("alive".into(), &self.alive))?;
        }
        self.drops.sort_by_key(|drop| drop.row);
        let dropped = dropped_frame(&dataset.frame(), &self.drops)?;
        Ok(dataset.with_cleaning(frame, report, dropped))
    }
}

/// The rows whose prompt stands with different completions.
pub(crate) fn conflicts(dataset: &Dataset) -> Result<DataFrame> {
    let mut groups: Vec<(Vec<usize>, Vec<u128>)> = Vec::new();
    let mut places: HashMap<u128, usize> = HashMap::new();
    for (row, (prompt, completion)) in
        dataset.pairs().enumerate().filter(|(_, pair)| !pair.0.is_empty())
    {
        let at = *places.entry(key::text_hash(&key::normalized(prompt))).or_insert(groups.len());
        if at == groups.len() {
            groups.push((Vec::new(), Vec::new()));
        }
        groups[at].0.push(row);
        groups[at].1.push(key::text_hash(&key::normalized(completion)));
    }
    groups.retain(|(_, answers)| answers.iter().any(|answer| *answer != answers[0]));
    let rows: Vec<IdxSize> =
        groups.iter().flat_map(|group| group.0.iter().map(|&row| row as IdxSize)).collect();
    let numbers: Vec<i64> =
        groups.iter().enumerate().flat_map(|(at, group)| vec![at as i64; group.0.len()]).collect();
    let taken = dataset
        .frame()
        .select([PROMPT, COMPLETION])?
        .take(&IdxCa::from_slice("row".into(), &rows))?;
    let mut columns = vec![
        Column::new("group".into(), numbers),
        Column::new("row".into(), rows.iter().map(|&row| i64::from(row)).collect::<Vec<_>>()),
    ];
    columns.extend(taken.columns().iter().cloned());
    Ok(DataFrame::new(rows.len(), columns)?)
}

struct Changes {
    rows: Vec<usize>,
    examples: Vec<Example>,
}

impl Example {
    fn changed(row: usize, column: &str, before: &str, after: &str) -> Self {
        let (before, after) = around_the_change(before, after);
        Self { row, column: column.to_owned(), before, after: Some(after), reason: None }
    }
}

/// Both texts, cut to the neighbourhood of the first character in which they differ.
fn around_the_change(before: &str, after: &str) -> (String, String) {
    let same: usize = before
        .chars()
        .zip(after.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum();
    let start = before[..same].char_indices().rev().nth(60).map_or(0, |(at, _)| at);
    let cut = |text: &str| {
        let mut shown = String::from(if start > 0 { "…" } else { "" });
        shown.extend(text[start..].chars().take(EXAMPLE_CHARS));
        if text[start..].chars().nth(EXAMPLE_CHARS).is_some() {
            shown.push('…');
        }
        shown
    };
    (cut(before), cut(after))
}

/// The dropped rows as they were in `frame`, with the row, the step and the reason in front.
pub(crate) fn dropped_frame(frame: &DataFrame, drops: &[Drop]) -> Result<DataFrame> {
    let rows: Vec<IdxSize> = drops.iter().map(|drop| drop.row as IdxSize).collect();
    let taken = frame.take(&IdxCa::from_slice("row".into(), &rows))?;
    let rows: Vec<i64> = drops.iter().map(|drop| drop.row as i64).collect();
    let steps = StringChunked::from_iter_values("step".into(), drops.iter().map(|drop| drop.step));
    let reasons = StringChunked::from_iter_values(
        "reason".into(),
        drops.iter().map(|drop| drop.reason.as_str()),
    );
    let mut columns =
        vec![Column::new("row".into(), rows), steps.into_column(), reasons.into_column()];
    for column in taken.columns() {
        let name = column.name().as_str();
        if !["row", "step", "reason"].contains(&name) {
            columns.push(column.clone());
        } else {
            columns.push(column.clone().with_name(format!("original_{name}").into()));
        }
    }
    Ok(DataFrame::new(drops.len(), columns)?)
}
