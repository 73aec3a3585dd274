//! Cleaning: named steps in order, each of which says what it changed and what it dropped.
//!
//! Cleaning what is clean changes nothing: the steps are repeated over the rows that they changed until none changes any
//! more, so the order in which they stand cannot leave half the work undone.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use polars::prelude::*;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tunebook_progress::{ProgressBar, interrupt};

use crate::dataset::{COMPLETION, Dataset, PROMPT};
use crate::error::Result;
use crate::text::{counted, excerpt, thousands};
use crate::{backticks, casing, html, key, near, whitespace};

/// How many before/after examples a step keeps.
const EXAMPLES: usize = 3;
/// How much of a text an example shows.
const EXAMPLE_CHARS: usize = 280;
/// Passes over the changed rows. Every step shortens or settles what it changes, so this is far out of reach.
const MAX_PASSES: usize = 16;
/// A progress bar is worth it from this number of rows on.
const BAR_ROWS: usize = 100_000;
/// Rows per thread between two looks at the stop flag.
const CHUNK_ROWS: usize = 16 << 10;

/// One step of a [`Cleaning`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Step {
    /// HTML becomes text: tags and comments go, `br`, `p` and lists become lines, entities become characters.
    StripHtml,
    /// Runs of spaces, trailing spaces, blank lines, odd line ends and invisible characters.
    NormalizeWhitespace,
    /// Markdown backticks that do not enclose code.
    StripBackticks,
    /// Texts all in capitals become sentences.
    RepairCasing,
    /// Rows whose prompt or completion is empty are dropped.
    DropEmpty,
    /// Rows that say the same as an earlier one (case, punctuation and spaces aside) are dropped; the first stays.
    DropDuplicates,
    /// Rows that say nearly the same as an earlier one are dropped; the first of a group stays. Nearly: a Jaccard similarity of
    /// 0.72 or more over the character 5-grams of prompt and completion.
    DropNearDuplicates,
}

impl Step {
    /// The step's name, as in the builder's method.
    pub fn name(self) -> &'static str {
        match self {
            Self::StripHtml => "strip_html",
            Self::NormalizeWhitespace => "normalize_whitespace",
            Self::StripBackticks => "strip_backticks",
            Self::RepairCasing => "repair_casing",
            Self::DropEmpty => "drop_empty",
            Self::DropDuplicates => "drop_duplicates",
            Self::DropNearDuplicates => "drop_near_duplicates",
        }
    }

    /// The function from text to text, for the steps that change texts.
    fn transform(self) -> Option<fn(&str) -> Cow<'_, str>> {
        match self {
            Self::StripHtml => Some(html::to_text),
            Self::NormalizeWhitespace => Some(whitespace::normalize),
            Self::StripBackticks => Some(backticks::strip),
            Self::RepairCasing => Some(casing::sentence_case),
            Self::DropEmpty | Self::DropDuplicates | Self::DropNearDuplicates => None,
        }
    }
}

/// The steps, in order. `Cleaning::default()` has none; add them one by one, or start from [`Cleaning::standard`].
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleaning {
    /// The steps, in the order in which they run.
    pub steps: Vec<Step>,
}

impl Cleaning {
    /// All steps, in the order that suits most sets.
    pub fn standard() -> Self {
        Self::default()
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

    /// Adds [`Step::DropNearDuplicates`].
    #[must_use]
    pub fn drop_near_duplicates(self) -> Self {
        self.step(Step::DropNearDuplicates)
    }

    /// Adds any step.
    #[must_use]
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

/// What a cleaning did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    step: Step,
    reason: String,
}

pub(crate) fn run(dataset: &Dataset, cleaning: &Cleaning) -> Result<Dataset> {
    let (prompts, completions) = dataset.pairs().map(|(p, c)| (Cow::Borrowed(p), Cow::Borrowed(c))).unzip();
    let mut work = Work {
        prompts,
        completions,
        alive: vec![true; dataset.len()],
        pending: vec![true; dataset.len()],
        touched: vec![false; dataset.len()],
        drops: Vec::new(),
    };
    let mut reports: Vec<StepReport> = Vec::new();
    let mut changed_by: Vec<Vec<bool>> = Vec::new();
    for &step in &cleaning.steps {
        reports.push(StepReport { step, changed: 0, dropped: 0, examples: Vec::new() });
        changed_by.push(vec![false; if step.transform().is_some() { dataset.len() } else { 0 }]);
    }
    let total = (dataset.len() * cleaning.steps.len()) as u64;
    let bar = (dataset.len() >= BAR_ROWS).then(|| ProgressBar::new("Cleaning", Some(total)).unit("row"));

    for pass in 0..MAX_PASSES {
        let mut next = vec![false; dataset.len()];
        for (report, changed_by) in reports.iter_mut().zip(&mut changed_by) {
            if let (Some(bar), 0) = (&bar, pass) {
                bar.message(report.step.name());
            }
            match report.step.transform() {
                Some(transform) => {
                    let advance = |rows: usize| {
                        if let (Some(bar), 0) = (&bar, pass) {
                            bar.advance(rows as u64);
                        }
                    };
                    for row in work.transform(transform, report, &advance)? {
                        changed_by[row] = true;
                        next[row] = true;
                    }
                }
                None => {
                    work.drop_rows(report)?;
                    if let (Some(bar), 0) = (&bar, pass) {
                        bar.advance(dataset.len() as u64);
                    }
                }
            }
        }
        if !next.contains(&true) {
            break;
        }
        // A row changed by an early step is looked at by the later ones in this pass; by all once more in the next.
        for (pending, next) in work.pending.iter_mut().zip(next) {
            *pending = next;
        }
    }
    for (report, changed_by) in reports.iter_mut().zip(changed_by) {
        report.changed = changed_by.iter().filter(|changed| **changed).count();
    }
    work.finish(dataset, reports)
}

/// The texts as they stand, borrowed from the data set where nothing has changed them.
struct Work<'a> {
    prompts: Vec<Cow<'a, str>>,
    completions: Vec<Cow<'a, str>>,
    /// Rows not dropped.
    alive: Vec<bool>,
    /// Rows that the pass looks at: those that the pass before changed.
    pending: Vec<bool>,
    /// Rows that any step has changed.
    touched: Vec<bool>,
    drops: Vec<Drop>,
}

impl Work<'_> {
    /// Applies `transform` to both texts of every pending row, and returns the rows that it changed.
    fn transform(
        &mut self,
        transform: fn(&str) -> Cow<'_, str>,
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
                for (i, (prompt, completion)) in prompts.iter_mut().zip(completions.iter_mut()).enumerate() {
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
        for &row in &rows {
            self.touched[row] = true;
            // Later steps of this pass see it, whatever the pass before did.
            self.pending[row] = true;
        }
        Ok(rows)
    }

    fn drop_rows(&mut self, report: &mut StepReport) -> Result<()> {
        interrupt::check()?;
        let drops = match report.step {
            Step::DropEmpty => self.empty_rows(),
            Step::DropNearDuplicates => self.near_duplicate_rows()?,
            _ => self.duplicate_rows(),
        };
        for (row, reason) in drops {
            self.alive[row] = false;
            report.dropped += 1;
            if report.examples.len() < EXAMPLES {
                report.examples.push(Example {
                    row,
                    column: PROMPT.into(),
                    before: excerpt(&self.prompts[row], EXAMPLE_CHARS),
                    after: None,
                    reason: Some(reason.clone()),
                });
            }
            self.drops.push(Drop { row, step: report.step, reason });
        }
        Ok(())
    }

    fn empty_rows(&self) -> Vec<(usize, String)> {
        let empty = |text: &str| text.chars().all(char::is_whitespace);
        let reason = |row: usize| match (empty(&self.prompts[row]), empty(&self.completions[row])) {
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

    fn duplicate_rows(&self) -> Vec<(usize, String)> {
        let keys: Vec<Option<u128>> = (0..self.alive.len())
            .into_par_iter()
            .map(|row| {
                self.alive[row].then(|| {
                    key::pair_hash(
                        &key::normalized(&self.prompts[row]),
                        &key::normalized(&self.completions[row]),
                    )
                })
            })
            .collect();
        let mut first: HashMap<u128, usize> = HashMap::with_capacity(keys.len());
        let mut drops = Vec::new();
        for (row, key) in keys.into_iter().enumerate() {
            let Some(key) = key else { continue };
            let kept = *first.entry(key).or_insert(row);
            if kept != row {
                let same = self.prompts[kept] == self.prompts[row]
                    && self.completions[kept] == self.completions[row];
                let how = if same { "the same as" } else { "the same words as" };
                drops.push((row, format!("{how} row {kept}")));
            }
        }
        drops
    }

    fn near_duplicate_rows(&self) -> Result<Vec<(usize, String)>> {
        let rows: Vec<usize> = (0..self.alive.len()).filter(|&row| self.alive[row]).collect();
        let texts: Vec<String> =
            rows.iter().map(|&row| format!("{}\n{}", self.prompts[row], self.completions[row])).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let pairs = near::pairs(&texts, near::THRESHOLD, &|_, _| true)?;
        let groups = near::groups(texts.len(), &pairs);
        let drops = groups.iter().enumerate().filter(|(text, group)| text != *group).map(|(text, &group)| {
            let percent = 100.0 * near::similarity(texts[group], texts[text]);
            let how = match percent >= 100.0 * near::THRESHOLD {
                true => format!("{percent:.0} % like row {}", rows[group]),
                // Like a row in between, which is like the one that stays.
                false => format!("in the group of row {}, {percent:.0} % like it", rows[group]),
            };
            (rows[text], how)
        });
        Ok(drops.collect())
    }

    fn finish(mut self, dataset: &Dataset, steps: Vec<StepReport>) -> Result<Dataset> {
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
                let column = StringChunked::from_iter_values(name.into(), texts.iter().map(|text| &**text));
                frame.with_column(column.into_column())?;
            }
        }
        if report.rows_dropped() > 0 {
            frame = frame.filter(&BooleanChunked::from_slice("alive".into(), &self.alive))?;
        }
        self.drops.sort_by_key(|drop| drop.row);
        let dropped = dropped_frame(&dataset.frame(), &self.drops)?;
        Ok(dataset.with_cleaning(frame, report, dropped))
    }
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
    let same: usize =
        before.chars().zip(after.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
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
    let steps = StringChunked::from_iter_values("step".into(), drops.iter().map(|drop| drop.step.name()));
    let reasons =
        StringChunked::from_iter_values("reason".into(), drops.iter().map(|drop| drop.reason.as_str()));
    let mut columns = vec![Column::new("row".into(), rows), steps.into_column(), reasons.into_column()];
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
