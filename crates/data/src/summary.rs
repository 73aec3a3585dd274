//! The data of a run in a few lines, for people who look before they train: which rows and columns of
//! the files are used and which are not, how many rows each side has, and what is wrong with them.

use std::collections::{HashMap, HashSet};
use std::fmt;

use rayon::prelude::*;

use crate::dataset::Dataset;
use crate::key;
use crate::read::report::ReadReport;
use crate::split;
use crate::text::{counted, thousands};

/// The data of a run in a few lines.
///
/// ```
/// use tunebook_data::{DataSummary, Dataset, Split};
/// let rows: Vec<String> = (0..40).map(|n| format!("Question {n}")).collect();
/// let rows: Vec<(&str, &str)> = rows.iter().map(|row| (row.as_str(), "Yes.")).collect();
/// let split = Dataset::from_rows(&rows).split(&Split::holdout(0.2))?;
/// println!("{}", DataSummary::of(&split.train, Some(&split.validation), None));
/// # Ok::<(), tunebook_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataSummary {
    /// The files with their used and unreadable rows, the steps, the sides.
    pub lines: Vec<String>,
    /// Labels that are left out, few validation rows or another share than was asked for, validation
    /// rows that are training rows, too.
    pub cautions: Vec<String>,
}

impl DataSummary {
    /// The sides of a run.
    pub fn of(train: &Dataset, validation: Option<&Dataset>, test: Option<&Dataset>) -> Self {
        let sides: Vec<&Dataset> = [Some(train), validation, test].into_iter().flatten().collect();
        let mut reports: Vec<ReadReport> = Vec::new();
        for report in sides.iter().flat_map(|side| side.read_reports()) {
            if !reports.contains(&report) {
                reports.push(report);
            }
        }
        let mut lines: Vec<String> = reports.iter().map(ReadReport::to_string).collect();
        let report = train.report();
        if !report.steps.is_empty() {
            lines.push(format!(
                "cleaned: {} changed, {} dropped",
                counted(report.rows_changed, "row"),
                thousands(report.rows_dropped())
            ));
        }
        let read: usize = reports.iter().map(|report| report.rows).sum();
        let used: usize = sides.iter().map(|side| side.len()).sum();
        let left_out = match read.saturating_sub(used) {
            0 => String::new(),
            rows => format!(", {} left out by the recipe's steps", thousands(rows)),
        };
        let held_out = match validation {
            None => "none to validate".to_owned(),
            Some(rows) => format!("{} to validate", thousands(rows.len())),
        };
        let test = test.map(|rows| format!(", {} to test", thousands(rows.len())));
        lines.push(format!(
            "{} to train, {held_out}{}{left_out}",
            counted(train.len(), "row"),
            test.unwrap_or_default()
        ));
        let mut cautions: Vec<String> = reports.iter().filter_map(ReadReport::caution).collect();
        if let Some(validation) = validation {
            cautions.extend(split::cautions(validation));
            cautions.extend(leak(train, validation));
        }
        Self { lines, cautions }
    }
}

/// The caution that validation rows are known from training, if any are. Only the same words count
/// here, which costs a hash for each row; [`Splits::audit`](crate::Splits::audit) looks for more.
fn leak(train: &Dataset, validation: &Dataset) -> Option<String> {
    let hash = |text: &str| key::text_hash(&key::normalized(text));
    let prompts = |set: &Dataset| -> Vec<u128> {
        let texts: Vec<&str> = set.id_texts().collect();
        texts.into_par_iter().with_min_len(1024).map(hash).collect()
    };
    let held_out = prompts(validation);
    let wanted: HashSet<u128> = held_out.iter().copied().collect();
    // The answers of training to the prompts that are held out.
    let mut answers: HashMap<u128, HashSet<u128>> = HashMap::new();
    for (prompt, (_, completion)) in prompts(train).into_iter().zip(train.pairs()) {
        if wanted.contains(&prompt) {
            answers.entry(prompt).or_default().insert(hash(completion));
        }
    }
    let (mut asked, mut answered) = (0, 0);
    for (prompt, (_, completion)) in held_out.into_iter().zip(validation.pairs()) {
        let Some(known) = answers.get(&prompt) else { continue };
        asked += 1;
        answered += usize::from(known.contains(&hash(completion)));
    }
    (asked > 0).then(|| {
        format!(
            "{} of {} have the words of a training row's prompt, {} of its answer, too: the loss on \
             them is too good to be true. Hold rows out with `split`, or keep them out of training \
             with the step `without_overlap`",
            thousands(asked),
            counted(validation.len(), "validation row"),
            thousands(answered)
        )
    })
}

impl fmt::Display for DataSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))?;
        self.cautions.iter().try_for_each(|caution| write!(f, "\ncaution: {caution}"))
    }
}
