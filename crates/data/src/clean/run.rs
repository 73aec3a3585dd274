//! A cleaning at work: the steps are repeated over the rows that they changed until none changes
//! any more.

use std::borrow::Cow;

use polars::prelude::*;
use rayon::prelude::*;
use tunebook_progress::{ProgressBar, interrupt};

use crate::clean::report::{Change, CleanReport, DroppedRow, EXAMPLES, StepReport, dropped_frame};
use crate::clean::rows::{CleaningRows, Drops};
use crate::clean::step::{CleaningStep, StepKind, Transform, Verdict};
use crate::clean::{Cleaning, boilerplate, conflicts, duplicates, empty, near_duplicates};
use crate::columns::{COMPLETION, MESSAGES, PROMPT};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::near::Likeness;
use crate::read::shape::RowShape;
use crate::turn::{turns_json, turns_of};

/// Passes over the rows. Every step shortens or settles what it changes, so this is far out of
/// reach.
const MAX_PASSES: usize = 16;
/// A progress bar is worth it from this number of rows on.
const BAR_ROWS: usize = 100_000;
/// Rows per thread between two looks at the stop flag.
const CHUNK_ROWS: usize = 16 << 10;

impl Dataset {
    /// Runs the steps of `cleaning` over all rows. The new set remembers what was changed
    /// ([`Dataset::report`]) and what was dropped ([`Dataset::dropped`]).
    ///
    /// # Errors
    /// The user pressed Stop.
    pub fn clean(&self, cleaning: &Cleaning) -> Result<Self> {
        run(self, cleaning)
    }
}

fn run(dataset: &Dataset, cleaning: &Cleaning) -> Result<Dataset> {
    cleaning.check()?;
    let rows = dataset.len();
    let mut work = Work {
        rows: CleaningRows::new(dataset.pairs(), *dataset.shape() == RowShape::Text),
        pending: vec![true; rows],
        touched: vec![false; rows],
        drops: Vec::new(),
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
                StepKind::Text(transform) => {
                    for row in work.transform(transform, &mut step.report, &advance)? {
                        step.changed[row] = true;
                        next[row] = true;
                        changed_now = true;
                    }
                }
                StepKind::Row(verdict) => {
                    let drops = work.judge(verdict)?;
                    work.drop_rows(drops, &mut step.report);
                    advance(rows);
                }
                StepKind::Set => {
                    // Nothing to do again unless a text has changed, or for some steps a row has
                    // gone.
                    let again = step.looks_at_all(work.again);
                    let state = (work.changes, if again { work.dropped } else { 0 });
                    // Whether rows are alike is judged on texts that have settled: so the order of
                    // the steps does not matter, and a stream of blocks gives the same rows as the
                    // whole set.
                    let compares = !matches!(
                        step.report.step,
                        CleaningStep::DropEmpty | CleaningStep::StripBoilerplate { .. }
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
            StepKind::Text(transform) => Some(transform),
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
    kind: StepKind<'s>,
    report: StepReport,
    changed: Vec<bool>,
    /// The state of the set that the step has seen last.
    seen: (usize, usize),
}

impl<'s> Progress<'s> {
    fn new(step: &'s CleaningStep, rows: usize) -> Self {
        let kind = step.kind();
        let changes = matches!(kind, StepKind::Text(_))
            || matches!(step, CleaningStep::StripBoilerplate { .. });
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
            CleaningStep::DropNearDuplicates { .. } => incomplete,
            CleaningStep::StripBoilerplate { .. } => true,
            _ => false,
        }
    }

    fn finish(mut self) -> StepReport {
        self.report.changed = self.changed.iter().filter(|changed| **changed).count();
        self.report
    }
}

/// The rows, and the state of the passes over them.
struct Work<'a> {
    rows: CleaningRows<'a>,
    /// Rows that the pass looks at: the rows that the pass before changed.
    pending: Vec<bool>,
    /// Rows that any step has changed.
    touched: Vec<bool>,
    drops: Vec<DroppedRow>,
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
        let (alive, pending) = (&self.rows.alive, &self.pending);
        let rows = self
            .rows
            .prompts
            .par_chunks_mut(CHUNK_ROWS)
            .zip(self.rows.completions.par_chunks_mut(CHUNK_ROWS))
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
                            changes.examples.push(Change::changed(row, column, text, &after));
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
            self.rows.changed(row);
        }
        self.changes += rows.len();
    }

    /// The pending rows that must go.
    fn judge(&self, verdict: &Verdict<'_>) -> Result<Drops> {
        let chunks: Vec<Drops> = (0..self.rows.alive.len())
            .into_par_iter()
            .step_by(CHUNK_ROWS)
            .map(|start| {
                interrupt::check()?;
                let rows = start..self.rows.alive.len().min(start + CHUNK_ROWS);
                let judged = rows.filter(|&row| self.rows.alive[row] && self.pending[row]);
                Ok(judged
                    .filter_map(|row| {
                        Some((row, verdict(&self.rows.prompts[row], &self.rows.completions[row])?))
                    })
                    .collect())
            })
            .collect::<Result<_>>()?;
        Ok(chunks.concat())
    }

    /// Runs a step that looks at all rows together; returns the rows that it changed.
    fn of_set(&mut self, report: &mut StepReport) -> Result<Vec<usize>> {
        interrupt::check()?;
        let drops = match &report.step {
            CleaningStep::StripBoilerplate { min_share } => {
                let changed =
                    boilerplate::strip(&mut self.rows.completions, &self.rows.alive, *min_share);
                let mut rows = Vec::with_capacity(changed.len());
                for (row, before) in changed {
                    if report.examples.len() < EXAMPLES {
                        report.examples.push(Change::changed(
                            row,
                            COMPLETION,
                            &before,
                            &self.rows.completions[row],
                        ));
                    }
                    rows.push(row);
                }
                self.note_changes(&rows);
                return Ok(rows);
            }
            CleaningStep::DropEmpty => empty::drops(&self.rows),
            CleaningStep::DropNearDuplicates { threshold, keep, shingles } => {
                let likeness = Likeness { threshold: *threshold, shingles: *shingles };
                let (drops, complete) = near_duplicates::drops(&self.rows, likeness, *keep)?;
                self.again |= !complete;
                drops
            }
            CleaningStep::ResolveConflicts { keep } => conflicts::drops(&mut self.rows, *keep),
            _ => duplicates::drops(&mut self.rows),
        };
        self.drop_rows(drops, report);
        Ok(Vec::new())
    }

    fn drop_rows(&mut self, drops: Drops, report: &mut StepReport) {
        self.dropped += drops.len();
        for (row, reason) in drops {
            self.rows.alive[row] = false;
            report.dropped += 1;
            if report.examples.len() < EXAMPLES {
                let (column, text) = match self.rows.plain_text {
                    true => (COMPLETION, &self.rows.completions[row]),
                    false => (PROMPT, &self.rows.prompts[row]),
                };
                report.examples.push(Change::dropped(row, column, text, &reason));
            }
            self.drops.push(DroppedRow { row, step: report.step.name(), reason });
        }
    }

    /// The column with whole conversations, if there is one that the steps change: each turn is
    /// cleaned as the texts are, and the last one is the completion.
    fn conversations(
        &self,
        dataset: &Dataset,
        transforms: &[&Transform<'_>],
    ) -> Option<StringChunked> {
        let before = dataset.frame_ref().column(MESSAGES).ok()?.str().ok()?;
        if !self.touched.contains(&true) {
            return None;
        }
        let after: Vec<Option<Cow<str>>> = (0..self.rows.alive.len())
            .into_par_iter()
            .map(|row| {
                let text = before.get(row)?;
                let turns = if self.touched[row] { turns_of(text) } else { None };
                let Some(mut turns) = turns else { return Some(Cow::Borrowed(text)) };
                for turn in &mut turns {
                    turn.content = settled(&turn.content, transforms);
                }
                if let Some(last) = turns.last_mut() {
                    last.content = self.rows.completions[row].to_string();
                }
                Some(Cow::Owned(turns_json(&turns)))
            })
            .collect();
        Some(StringChunked::from_iter_options(MESSAGES.into(), after.into_iter()))
    }

    fn finish(
        mut self,
        dataset: &Dataset,
        steps: Vec<StepReport>,
        conversations: Option<StringChunked>,
    ) -> Result<Dataset> {
        let report = CleanReport {
            rows_before: dataset.len(),
            rows_after: self.rows.alive.iter().filter(|alive| **alive).count(),
            rows_changed: self
                .touched
                .iter()
                .zip(&self.rows.alive)
                .filter(|(touched, alive)| **touched && **alive)
                .count(),
            steps,
        };
        let mut frame = dataset.frame();
        if self.touched.contains(&true) {
            for (name, texts) in
                [(PROMPT, &self.rows.prompts), (COMPLETION, &self.rows.completions)]
            {
                let column =
                    StringChunked::from_iter_values(name.into(), texts.iter().map(|text| &**text));
                frame.with_column(column.into_column())?;
            }
        }
        if let Some(conversations) = conversations {
            frame.with_column(conversations.into_column())?;
        }
        if report.rows_dropped() > 0 {
            frame = frame.filter(&BooleanChunked::from_slice("alive".into(), &self.rows.alive))?;
        }
        self.drops.sort_by_key(|drop| drop.row);
        let dropped = dropped_frame(&dataset.frame(), &self.drops)?;
        Ok(dataset.with_cleaning(frame, report, dropped))
    }
}

struct Changes {
    rows: Vec<usize>,
    examples: Vec<Change>,
}
