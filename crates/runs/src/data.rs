//! What a run was trained on: where the rows came from, how they were cleaned and split, and hashes
//! of the rows themselves, by which a run is found again that has seen a row.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use polars::prelude::AnyValue;
use serde::{Deserialize, Serialize};
use tunebook_data::{Cleaning, CleaningStep, DataError, Dataset, Row, Split, Splits};

use crate::disk;
use crate::error::Result;

/// The data of a run, for [`Recorder::with_data`](crate::Recorder::with_data): a split as `&split`, a
/// training set as `&dataset`, or a training and a validation set as `(&train, &validation)`.
#[derive(Clone, Debug)]
pub struct RunData {
    train: Dataset,
    validation: Option<Dataset>,
    test: Option<Dataset>,
    /// Columns whose values identify rows.
    id_columns: Vec<String>,
}

impl From<&Splits> for RunData {
    fn from(splits: &Splits) -> Self {
        Self {
            validation: Some(splits.validation.clone()),
            test: splits.test.clone(),
            ..Self::from(&splits.train)
        }
    }
}

impl From<&Dataset> for RunData {
    fn from(train: &Dataset) -> Self {
        Self { train: train.clone(), validation: None, test: None, id_columns: Vec::new() }
    }
}

impl From<(&Dataset, &Dataset)> for RunData {
    fn from((train, validation): (&Dataset, &Dataset)) -> Self {
        Self { validation: Some(validation.clone()), ..Self::from(train) }
    }
}

impl From<&RunData> for RunData {
    fn from(data: &RunData) -> Self {
        data.clone()
    }
}

impl RunData {
    pub(crate) fn new(train: Dataset, validation: Option<Dataset>, test: Option<Dataset>) -> Self {
        Self { train, validation, test, id_columns: Vec::new() }
    }

    /// The training rows.
    pub fn train(&self) -> &Dataset {
        &self.train
    }

    /// The validation rows.
    pub fn validation(&self) -> Option<&Dataset> {
        self.validation.as_ref()
    }

    /// The test rows, which a run does not read.
    pub fn test(&self) -> Option<&Dataset> {
        self.test.as_ref()
    }

    /// The same with a column whose values are remembered as hashes beside the rows: a customer's
    /// number, by which [`Registry::adapters_touched_by_id`](crate::Registry::adapters_touched_by_id)
    /// finds all adapters that saw rows of this customer.
    ///
    /// # Errors
    /// The training set has no such column.
    pub fn with_id_column(mut self, column: &str) -> Result<Self> {
        let frame = self.train.frame();
        if frame.column(column).is_err() {
            let names: Vec<&str> = frame.columns().iter().map(|of| of.name().as_str()).collect();
            let found = format!("{names:?}");
            return Err(DataError::NoColumn { column: column.to_owned(), found }.into());
        }
        self.id_columns.push(column.to_owned());
        Ok(self)
    }

    /// The record, and the text of the file with the rows' ids.
    pub(crate) fn record(&self) -> (DataRecord, String) {
        let mut ids = BTreeSet::new();
        for index in 0..self.train.len() {
            ids.extend(self.train.row(index).map(|row| row_id(&row)));
        }
        let frame = self.train.frame();
        for column in &self.id_columns {
            let Ok(values) = frame.column(column) else { continue };
            for value in (0..values.len()).filter_map(|row| values.get(row).ok()) {
                match value {
                    AnyValue::Null => {}
                    AnyValue::String(text) => drop(ids.insert(value_id(column, text))),
                    other => drop(ids.insert(value_id(column, &other.to_string()))),
                }
            }
        }
        let mut text: String = ids.into_iter().flat_map(|id| [id, "\n".to_owned()]).collect();
        text.shrink_to_fit();
        let record = DataRecord {
            train: SetRecord::of(&self.train),
            validation: self.validation.as_ref().map(SetRecord::of),
            test: self.test.as_ref().map(SetRecord::of),
            rows: disk::sha256(text.as_bytes())[..32].to_owned(),
            id_columns: self.id_columns.clone(),
        };
        (record, text)
    }
}

/// What a run says of its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataRecord {
    /// The training set.
    pub train: SetRecord,
    /// The validation set.
    #[serde(default)]
    pub validation: Option<SetRecord>,
    /// The test set, which the run has not read.
    #[serde(default)]
    pub test: Option<SetRecord>,
    /// The name of the file with the ids of the training rows, in `rows/`.
    pub rows: String,
    /// The columns whose values are among these ids.
    #[serde(default)]
    pub id_columns: Vec<String>,
}

/// One set of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetRecord {
    /// Where the rows were read from; of a whole path the file's name.
    pub source: String,
    /// How many there are.
    pub rows: usize,
    /// Their fingerprint ([`Dataset::fingerprint`]).
    pub fingerprint: String,
    /// The steps of their cleaning. Empty: none is known.
    #[serde(default)]
    pub cleaning: Vec<CleaningStep>,
    /// How many rows the cleaning began with.
    #[serde(default)]
    pub rows_before_cleaning: usize,
    /// The settings of the split that they are a side of.
    #[serde(default)]
    pub split: Option<Split>,
}

impl SetRecord {
    fn of(set: &Dataset) -> Self {
        let report = set.report();
        Self {
            source: set.source().split(" + ").map(without_place).collect::<Vec<_>>().join(" + "),
            rows: set.len(),
            fingerprint: set.fingerprint(),
            rows_before_cleaning: report.rows_before,
            cleaning: report.steps.into_iter().map(|step| step.step).collect(),
            split: set.split_settings().cloned(),
        }
    }

    /// The cleaning's steps by name: `strip_html, drop_empty`.
    pub(crate) fn cleaning_names(&self) -> String {
        self.cleaning.iter().map(CleaningStep::name).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for SetRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, source, fingerprint, .. } = self;
        write!(f, "{rows} rows of {source}, fingerprint {}", short(fingerprint))
    }
}

/// A registry says nothing of the machine that it was written on.
pub(crate) fn without_place(source: &str) -> &str {
    let path = Path::new(source);
    let name = path.file_name().and_then(|name| name.to_str());
    if path.is_absolute() { name.unwrap_or(source) } else { source }
}

/// A hash cut to what a person compares.
pub(crate) fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// The id of a row: the first half of the SHA-256 of its two texts, as 32 hexadecimal digits.
pub fn row_id(row: &Row) -> String {
    let mut bytes = b"row\0".to_vec();
    bytes.extend_from_slice(&(row.prompt.len() as u64).to_le_bytes());
    bytes.extend_from_slice(row.prompt.as_bytes());
    bytes.extend_from_slice(row.completion.as_bytes());
    disk::sha256(&bytes)[..32].to_owned()
}

/// The id of a value of a column that identifies rows.
pub(crate) fn value_id(column: &str, value: &str) -> String {
    disk::sha256(format!("id\0{column}\0{value}").as_bytes())[..32].to_owned()
}

/// The ids of a row as it may stand in a training set that was cleaned by these steps: as it is, and
/// cleaned.
pub(crate) fn ids_after(row: &Row, steps: &[CleaningStep]) -> BTreeSet<String> {
    let mut ids = BTreeSet::from([row_id(row)]);
    let one = Dataset::from_rows(&[(&row.prompt, &row.completion)]);
    let cleaning = steps.iter().fold(Cleaning::default(), |all, step| all.step(step.clone()));
    if let Ok(cleaned) = one.clean(&cleaning) {
        ids.extend(cleaned.rows().iter().map(row_id));
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_found_as_it_was_before_its_cleaning() {
        let raw = Dataset::from_rows(&[("<p>Where is it?</p>", "On its  way."), ("a", "b")]);
        let clean = raw.clean(&Cleaning::standard()).unwrap();
        let (record, text) = RunData::from(&clean).record();
        let row = raw.row(0).unwrap();
        let found = ids_after(&row, &record.train.cleaning);
        assert!(found.iter().any(|id| text.contains(id.as_str())));
        assert!(!text.contains(&row_id(&row)), "the raw row is another one");
        assert_eq!(record.rows, disk::sha256(text.as_bytes())[..32]);
        let other = ids_after(&Row::new("Where was it?", "On its way."), &record.train.cleaning);
        assert!(other.iter().all(|id| !text.contains(id.as_str())));
    }

    #[test]
    fn a_split_is_remembered() {
        let rows: Vec<(String, String)> =
            (0..50).map(|i| (format!("question {i}"), format!("answer {i}"))).collect();
        let rows: Vec<(&str, &str)> = rows.iter().map(|(a, b)| (&a[..], &b[..])).collect();
        let settings = Split::holdout(0.2).seed(7);
        let split = Dataset::from_rows(&rows).split(&settings).unwrap();
        let (record, text) = RunData::from(&split).record();
        assert_eq!(record.train.split.as_ref(), Some(&settings));
        assert_eq!(record.validation.unwrap().split, Some(settings));
        assert_eq!(text.lines().count(), record.train.rows);
    }

    #[test]
    fn a_place_is_left_out() {
        assert_eq!(without_place("/home/me/tickets.csv"), "tickets.csv");
        assert_eq!(without_place("data/tickets.csv"), "data/tickets.csv");
    }
}
