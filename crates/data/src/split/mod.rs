//! A hold-out that stays put: which side a row is on depends on its prompt and the seed, and on
//! nothing else.
//!
//! Hashing an id instead of shuffling rows means that appended rows never move old ones between
//! training and validation, so losses stay comparable while a set grows. The id is the prompt's
//! words (case, spaces and the punctuation of prose aside), so copies of one prompt are always on one side.

pub(crate) mod audit;
pub(crate) mod overlap;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use polars::prelude::*;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::error::{DataError, Result};
use crate::pipeline::{PipelineStep, SplitSide};
use crate::text::{counted, excerpt, thousands};
use crate::{key, near};

/// With fewer validation rows the validation loss is mostly noise.
const FEW_ROWS: usize = 30;
/// A number of validation rows is far from the one that was asked for from this difference on, and
/// from this part of it.
const FAR_ROWS: f64 = 2.0;
const FAR_SHARE: f64 = 0.25;

/// The settings of a split.
///
/// ```
/// use tunebook_data::Split;
/// let split = Split::holdout(0.12).seed(42).near_duplicates_together();
/// let by_customer = Split::holdout(0.12).group_by("customer");
/// let with_test = Split::holdout(0.12).test(0.1);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Split {
    /// The share of prompts held out for validation, between 0 and 1. The default is 0.12. It is the
    /// chance of each prompt: of few rows another share may be held out, which [`Splits::caution`]
    /// says.
    pub fraction: f64,
    /// Another seed holds out other prompts. The default is 42.
    pub seed: u64,
    /// Keeps prompts that are nearly the same on one side. The default is false: only prompts of
    /// the same words stay together.
    pub near_duplicates_together: bool,
    /// The share held out for a test at the very end ([`Splits::test`]). The default is 0: no test.
    pub test: f64,
    /// A column: rows of one value stay on one side (a customer, a document).
    pub group: Option<String>,
    /// A column: each of its values is held out in the same share.
    pub stratify: Option<String>,
    /// A column of times or numbers: the latest rows are held out.
    pub time: Option<String>,
}

impl Default for Split {
    fn default() -> Self {
        Self {
            fraction: 0.12,
            seed: 42,
            near_duplicates_together: false,
            test: 0.0,
            group: None,
            stratify: None,
            time: None,
        }
    }
}

impl Split {
    /// Holds out this fraction of the prompts for validation (10 to 15 % is usual). As each prompt
    /// is decided on its own, the share of a small set differs by a few rows.
    pub fn holdout(fraction: f64) -> Self {
        Self { fraction, ..Self::default() }
    }

    /// Chooses other prompts.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Keeps groups of near-duplicate prompts on one side: the side of the group's earliest row.
    /// Appended rows then move old ones only where they join two groups into one.
    #[must_use]
    pub fn near_duplicates_together(mut self) -> Self {
        self.near_duplicates_together = true;
        self
    }

    /// Holds out a further fraction for a test ([`Splits::test`]). The rows of validation stay the
    /// same.
    #[must_use]
    pub fn test(mut self, fraction: f64) -> Self {
        self.test = fraction;
        self
    }

    /// Keeps rows of one value in this column on one side, whatever their prompts; prompts of the
    /// same words still stay together.
    #[must_use]
    pub fn group_by(mut self, column: &str) -> Self {
        self.group = Some(column.to_owned());
        self
    }

    /// Holds out the same share of each value of this column, as exactly as its rows allow. Rows
    /// are counted in the order of the set, so rows that are appended move no old one; rows that
    /// are put in between do.
    #[must_use]
    pub fn stratify_by(mut self, column: &str) -> Self {
        self.stratify = Some(column.to_owned());
        self
    }

    /// Holds out the latest rows by this column (numbers, or texts that sort by time such as
    /// `2024-05-01`), as one will use the model on what comes later. Rows of one time stay
    /// together. Rows that are appended later move the border.
    #[must_use]
    pub fn by_time(mut self, column: &str) -> Self {
        self.time = Some(column.to_owned());
        self
    }

    /// Whether a row with this prompt is held out, if no other row decides for it.
    pub fn holds_out(&self, prompt: &str) -> bool {
        key::unit_interval(prompt, self.seed) < self.fraction
    }

    /// Looks at the settings without any rows.
    ///
    /// # Errors
    /// A fraction that is out of its range, by the field's name.
    pub fn validate(&self) -> Result<()> {
        if !(self.fraction > 0.0 && self.fraction < 1.0) {
            return Err(DataError::Setting {
                field: "fraction",
                value: self.fraction,
                expected: "the share held out, a number between 0 and 1, 0.12 for 12 %",
            });
        }
        if !(self.test >= 0.0 && self.test + self.fraction < 1.0) {
            return Err(DataError::Setting {
                field: "test",
                value: self.test,
                expected: "the share held out for a test, a number from 0 on that leaves something \
                           for training",
            });
        }
        Ok(())
    }

    /// # Errors
    /// Fractions out of range, or a setting that compares rows with each other.
    pub(crate) fn check_for_scan(&self) -> Result<()> {
        self.validate()?;
        let settings = [
            ("near_duplicates_together", self.near_duplicates_together),
            ("group", self.group.is_some()),
            ("stratify", self.stratify.is_some()),
            ("time", self.time.is_some()),
        ];
        match settings.into_iter().find(|(_, set)| *set) {
            Some((setting, _)) => Err(DataError::ScanSplit { setting }),
            None => Ok(()),
        }
    }

    fn apply(&self, dataset: &Dataset) -> Result<Splits> {
        let sides = self.sides(dataset)?;
        let with_test = self.test > 0.0;
        let step = |side| PipelineStep::Side { side, split: self.clone() };
        let [train, validation, test] = self.take(dataset, &sides, with_test, true, &step)?;
        Ok(Splits { train, validation, test: with_test.then_some(test) })
    }

    fn folds_of(&self, dataset: &Dataset, k: usize) -> Result<Vec<Splits>> {
        if k < 2 || k > dataset.len() {
            return Err(DataError::Setting {
                field: "the number of folds",
                value: k as f64,
                expected: "at least 2, and no more than there are rows",
            });
        }
        let folds: Vec<usize> = match &self.time {
            Some(_) => {
                return Err(DataError::Setting {
                    field: "the number of folds",
                    value: k as f64,
                    expected: "no split by time: a fold in the middle would be judged by rows from before it",
                });
            }
            None => self
                .checked_places(dataset)?
                .into_iter()
                .map(|place| ((place * k as f64) as usize).min(k - 1))
                .collect(),
        };
        (0..k)
            .map(|fold| {
                let sides: Vec<Side> = folds
                    .iter()
                    .map(|&of| if of == fold { Side::Validation } else { Side::Train })
                    .collect();
                let split = self.clone();
                let step = |side| PipelineStep::Fold { fold, folds: k, side, split: split.clone() };
                let [train, validation, _] = self.take(dataset, &sides, false, false, &step)?;
                Ok(Splits::new(train, validation))
            })
            .collect()
    }

    /// The rows of each side; `step` says how a side came about. `by_fraction`: the fraction says how
    /// many are held out, which folds do not heed.
    fn take(
        &self,
        dataset: &Dataset,
        sides: &[Side],
        with_test: bool,
        by_fraction: bool,
        step: &dyn Fn(SplitSide) -> PipelineStep,
    ) -> Result<[Dataset; 3]> {
        let rows = |side: Side| -> Vec<IdxSize> {
            sides
                .iter()
                .enumerate()
                .filter(|(_, of)| **of == side)
                .map(|(row, _)| row as IdxSize)
                .collect()
        };
        let (train, validation, test) =
            (rows(Side::Train), rows(Side::Validation), rows(Side::Test));
        for (side, rows, needed) in [
            ("training", &train, true),
            ("validation", &validation, true),
            ("test", &test, with_test),
        ] {
            if needed && rows.is_empty() {
                return Err(self.empty_side(dataset, side)?);
            }
        }
        let share = Share { rows: dataset.len(), held_out: validation.len() };
        let of = SideOf { split: self.clone(), share: by_fraction.then_some(share) };
        let of = Arc::new(of);
        let side = |rows: &[IdxSize], side: SplitSide| -> Result<Dataset> {
            Ok(dataset.take(rows)?.of_split(&of).after(dataset, Some(step(side))))
        };
        Ok([
            side(&train, SplitSide::Train)?,
            side(&validation, SplitSide::Validation)?,
            side(&test, SplitSide::Test)?,
        ])
    }

    /// The error of a side without a row.
    ///
    /// # Errors
    /// A column that does not exist.
    fn empty_side(&self, dataset: &Dataset, side: &'static str) -> Result<DataError> {
        let (fraction, rows) = (self.fraction, dataset.len());
        let unread = match dataset.first_rejects(1).first() {
            None => String::new(),
            Some(first) => format!(
                ", unreadable: {}, of which the first is line {}: {}",
                thousands(dataset.rejected().height()),
                first.line,
                first.reason
            ),
        };
        let few = |together: String, groups: usize, advice: &'static str| {
            let unread = unread.clone();
            Ok(DataError::FewGroups { side, fraction, together, groups, rows, unread, advice })
        };
        if let Some(column) = &self.time {
            let times = (0..rows).map(|row| column_text(dataset, column, row));
            let times = times.collect::<Result<HashSet<String>>>()?.len();
            let advice = "Use a column of finer times, another fraction, or split without the time (`by_time`, \
                 in a recipe `data.split.time`)";
            return few(format!("rows of one time in the column {column:?}"), times, advice);
        }
        let deciding = || -> Result<usize> {
            let prompts: Vec<&str> = dataset.id_texts().collect();
            Ok(self.deciding(dataset, &prompts)?.into_iter().collect::<HashSet<usize>>().len())
        };
        if let Some(column) = &self.group {
            let advice = "Use a column with more values, another fraction, another seed, or split \
                          without the group (`group_by`, in a recipe `data.split.group`)";
            return few(format!("rows of one value in the column {column:?}"), deciding()?, advice);
        }
        if self.near_duplicates_together {
            let advice = "Use more rows, another fraction, another seed, or split without \
                          `near_duplicates_together`";
            return few("prompts that are nearly the same".to_owned(), deciding()?, advice);
        }
        let prompts = dataset.distinct_prompts();
        Ok(DataError::EmptySide { side, fraction, seed: self.seed, rows, prompts, unread })
    }

    /// The side of each row.
    fn sides(&self, dataset: &Dataset) -> Result<Vec<Side>> {
        self.validate()?;
        self.check_columns(dataset)?;
        if let Some(column) = &self.time {
            return self.by_border(dataset, column);
        }
        Ok(self.places(dataset)?.into_iter().map(|place| self.side(place)).collect())
    }

    /// The side of a place in [0, 1).
    pub(crate) fn side(&self, place: f64) -> Side {
        if place < self.fraction {
            Side::Validation
        } else if place < self.fraction + self.test {
            Side::Test
        } else {
            Side::Train
        }
    }

    /// A caution where the share that was held out is far from the fraction.
    fn share_caution(&self, share: Share) -> Option<String> {
        let asked = self.fraction * share.rows as f64;
        let off = (share.held_out as f64 - asked).abs();
        if off < FAR_ROWS.max(FAR_SHARE * asked) {
            return None;
        }
        let percent = |part: f64| format!("{:.1} %", 100.0 * part);
        let why = if self.time.is_some() {
            "rows of one time stay together"
        } else if self.group.is_some() {
            "rows of one group stay together"
        } else if self.near_duplicates_together || self.stratify.is_some() {
            "rows of the same or nearly the same prompt stay together"
        } else {
            "the side of a row depends on a hash of its prompt, so that added rows move no old one. \
             Another `seed` holds out another number; `stratify` by a column holds out an even share"
        };
        Some(format!(
            "{} of {} ({}) are held out for validation, where {} was asked: {why}",
            thousands(share.held_out),
            counted(share.rows, "row"),
            percent(share.held_out as f64 / share.rows.max(1) as f64),
            percent(self.fraction),
        ))
    }

    /// # Errors
    /// A setting names a column that the rows do not have.
    fn check_columns(&self, dataset: &Dataset) -> Result<()> {
        let settings = [("group", &self.group), ("stratify", &self.stratify), ("time", &self.time)];
        for (setting, column) in settings {
            let Some(column) = column else { continue };
            if dataset.frame_ref().column(column).is_err() {
                let (setting, column) = (setting, column.clone());
                let (set, found) = (dataset.source().to_owned(), names(dataset.frame_ref()));
                return Err(DataError::SplitColumn { setting, column, set, found });
            }
        }
        Ok(())
    }

    fn checked_places(&self, dataset: &Dataset) -> Result<Vec<f64>> {
        self.check_columns(dataset)?;
        self.places(dataset)
    }

    /// A place in [0, 1) for each row: the same for rows that must stay together.
    fn places(&self, dataset: &Dataset) -> Result<Vec<f64>> {
        let prompts: Vec<&str> = dataset.id_texts().collect();
        let deciding = self.deciding(dataset, &prompts)?;
        let Some(column) = &self.stratify else {
            let place = |row: usize| match &self.group {
                // The group's name decides, so that a group stays where it is when its earliest row
                // goes.
                Some(column) if !self.near_duplicates_together => {
                    Ok(key::unit_interval(&column_text(dataset, column, row)?, self.seed))
                }
                _ => Ok(key::unit_interval(prompts[row], self.seed)),
            };
            return deciding.into_par_iter().with_min_len(1024).map(place).collect();
        };
        // The n-th unit of a stratum takes the n-th step of a sequence that fills [0, 1) evenly
        // (the golden ratio's multiples), from a start that the seed chooses.
        let mut places: HashMap<usize, f64> = HashMap::new();
        let mut counts: HashMap<String, usize> = HashMap::new();
        for &unit in &deciding {
            if places.contains_key(&unit) {
                continue;
            }
            let stratum = column_text(dataset, column, unit)?;
            let start = key::unit_interval(&stratum, self.seed);
            let count = counts.entry(stratum).or_default();
            places.insert(unit, (start + *count as f64 * 0.618_033_988_749_894_9).fract());
            *count += 1;
        }
        Ok(deciding.into_iter().map(|unit| places[&unit]).collect())
    }

    /// For each row the row that decides its side: the earliest row that it must stay with.
    fn deciding(&self, dataset: &Dataset, prompts: &[&str]) -> Result<Vec<usize>> {
        let mut pairs = Vec::new();
        let mut together = |first: usize, second: usize| {
            pairs.push(near::SimilarPair { first, second, similarity: 1.0 })
        };
        if self.group.is_some() || self.stratify.is_some() || self.near_duplicates_together {
            let mut same: HashMap<u128, usize> = HashMap::new();
            for (row, prompt) in prompts.iter().enumerate() {
                let first = *same.entry(key::text_hash(&key::normalized(prompt))).or_insert(row);
                if first != row {
                    together(first, row);
                }
            }
        }
        if let Some(column) = &self.group {
            let mut same: HashMap<String, usize> = HashMap::new();
            for row in 0..prompts.len() {
                let first = *same.entry(column_text(dataset, column, row)?).or_insert(row);
                if first != row {
                    together(first, row);
                }
            }
        }
        if self.near_duplicates_together {
            let clusters = near::clusters(prompts, near::Likeness::default())?.of;
            let joined = clusters.into_iter().enumerate().filter(|(row, of)| row != of);
            pairs.extend(joined.map(|(second, first)| near::SimilarPair {
                first,
                second,
                similarity: 1.0,
            }));
        }
        Ok(match pairs.is_empty() {
            true => (0..prompts.len()).collect(),
            false => near::groups(prompts.len(), &pairs),
        })
    }

    /// The latest rows are held out: first those for the test, before them those for validation.
    fn by_border(&self, dataset: &Dataset, column: &str) -> Result<Vec<Side>> {
        let frame = dataset.frame();
        let times = the_column(&frame, column)?;
        let options = SortOptions { nulls_last: false, ..Default::default() };
        let order: Vec<usize> =
            times.arg_sort(options).iter().flatten().map(|row| row as usize).collect();
        let rows = order.len();
        let mut sides = vec![Side::Train; rows];
        let time = |at: usize| times.get(order[at]).ok();
        // A border moves back to the first row of its time.
        let border = |share: f64| {
            let mut at = rows - (rows as f64 * share).round() as usize;
            while at > 0 && at < rows && time(at) == time(at - 1) {
                at -= 1;
            }
            at
        };
        let test = if self.test > 0.0 { border(self.test) } else { rows };
        let validation = border(self.test + self.fraction).min(test);
        for (at, &row) in order.iter().enumerate() {
            if at >= test {
                sides[row] = Side::Test;
            } else if at >= validation {
                sides[row] = Side::Validation;
            }
        }
        Ok(sides)
    }
}

impl Dataset {
    /// Divides the rows into training and validation, and a test if the split has one:
    /// `Split::holdout(0.12).test(0.1)`.
    ///
    /// # Errors
    /// A fraction is out of its range, or one side would have no row.
    pub fn split(&self, split: &Split) -> Result<Splits> {
        split.apply(self)
    }

    /// Divides the rows into `k` parts by the rules of `split` (its fractions aside), and gives `k`
    /// splits, each with another part held out.
    ///
    /// # Errors
    /// Fewer than two folds, more than rows, a part without a row, or a split by time.
    pub fn folds(&self, k: usize, split: &Split) -> Result<Vec<Splits>> {
        split.folds_of(self, k)
    }
}

/// The split that a set is a side of.
#[derive(Debug)]
pub(crate) struct SideOf {
    pub split: Split,
    /// What became of the fraction; `None` for a fold, which does not heed it.
    pub share: Option<Share>,
}

/// What a split held out for validation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// Rows before the split.
    pub rows: usize,
    pub held_out: usize,
}

/// Cautions about a validation side.
pub(crate) fn cautions(validation: &Dataset) -> Vec<String> {
    let rows = validation.len();
    let few = (rows < FEW_ROWS).then(|| {
        format!(
            "{} for validation: the loss on so few is mostly chance. Prefer {FEW_ROWS} or more",
            counted(rows, "row")
        )
    });
    let of = validation.side_of();
    let share = of.and_then(|of| of.split.share_caution(of.share?));
    few.into_iter().chain(share).collect()
}

/// The side that a row is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Train,
    Validation,
    Test,
}

fn the_column<'a>(frame: &'a DataFrame, column: &str) -> Result<&'a Column> {
    frame
        .column(column)
        .map_err(|_| DataError::NoColumn { column: column.to_owned(), found: names(frame) })
}

fn names(frame: &DataFrame) -> String {
    let names: Vec<&str> = frame.get_column_names().iter().map(|name| name.as_str()).collect();
    format!("{names:?}")
}

fn column_text(dataset: &Dataset, column: &str, row: usize) -> Result<String> {
    Ok(match the_column(dataset.frame_ref(), column)?.get(row)? {
        AnyValue::String(text) => text.to_owned(),
        other => other.to_string(),
    })
}

/// The sides of a split.
#[derive(Clone)]
pub struct Splits {
    /// The training rows.
    pub train: Dataset,
    /// The validation rows, for the choice of settings.
    pub validation: Dataset,
    /// The test rows, for the final evaluation only.
    pub test: Option<Dataset>,
}

impl Splits {
    /// Two sides, without a test.
    pub fn new(train: Dataset, validation: Dataset) -> Self {
        Self { train, validation, test: None }
    }

    /// One side.
    ///
    /// # Errors
    /// A test, where the split has none.
    pub fn side(self, side: SplitSide) -> Result<Dataset> {
        match (side, self.test) {
            (SplitSide::Train, _) => Ok(self.train),
            (SplitSide::Validation, _) => Ok(self.validation),
            (SplitSide::Test, Some(test)) => Ok(test),
            (SplitSide::Test, None) => Err(DataError::Setting {
                field: "the test fraction",
                value: 0.0,
                expected: "a number above 0, as the test side is asked for",
            }),
        }
    }

    /// Each side with its name, in the order `train`, `validation`, `test`.
    pub fn sides(&self) -> Vec<(&'static str, &Dataset)> {
        let mut sides = vec![("train", &self.train), ("validation", &self.validation)];
        sides.extend(self.test.as_ref().map(|test| ("test", test)));
        sides
    }

    /// A warning when the validation side is too small for a meaningful loss, or its share of the
    /// rows far from the fraction that was asked for.
    pub fn caution(&self) -> Option<String> {
        let cautions = cautions(&self.validation);
        (!cautions.is_empty()).then(|| cautions.join(". "))
    }
}

impl fmt::Display for Splits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.sides().iter().map(|(_, side)| side.len()).sum::<usize>().max(1);
        for (name, side) in self.sides() {
            let share = 100.0 * side.len() as f64 / total as f64;
            writeln!(f, "{name:<10} {:>12} ({share:.1} %)", counted(side.len(), "row"))?;
        }
        if let Some(caution) = self.caution() {
            writeln!(f, "{caution}")?;
        }
        let first = self.validation.row(0).map(|row| excerpt(&row.prompt, 70)).unwrap_or_default();
        write!(f, "held out, for example: {first}")
    }
}

impl fmt::Debug for Splits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
