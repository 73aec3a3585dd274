//! What a run was trained on: where the rows came from, how they were cleaned and split, and hashes
//! of the rows themselves, by which a run is found again that has seen a row.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use polars::prelude::{Column, DataType};
use serde::{Deserialize, Serialize};
use tunebook_data::{Cleaning, CleaningStep, DataError, DataSummary, Dataset, Row, Split, Splits};

use crate::disk;
use crate::error::{Error, Result};

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

    /// Which rows and columns of the files are used, how many rows each set has, and what is wrong with
    /// them.
    pub fn summary(&self) -> DataSummary {
        DataSummary::of(self.train(), self.validation(), self.test())
    }

    /// The same with a column whose values are remembered as hashes beside the rows: a customer's
    /// number, by which [`Registry::adapters_touched_by_id`](crate::Registry::adapters_touched_by_id)
    /// finds all adapters that saw rows of this customer. A whole number is looked for by its digits,
    /// without a decimal point.
    ///
    /// # Errors
    /// The training set has no such column, or one that holds something else than text, categories,
    /// whole numbers or booleans: of times and fractions nobody knows how they are written.
    pub fn with_id_column(mut self, column: &str) -> Result<Self> {
        let frame = self.train.frame();
        let Ok(values) = frame.column(column) else {
            let names: Vec<&str> = frame.columns().iter().map(|of| of.name().as_str()).collect();
            let found = format!("{names:?}");
            return Err(DataError::NoColumn { column: column.to_owned(), found }.into());
        };
        id_texts(values)
            .map_err(|problem| Error::IdColumn { column: column.to_owned(), problem })?;
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
            let texts = frame.column(column).map_err(|error| error.to_string()).and_then(id_texts);
            let texts = texts.unwrap_or_default(); // looked at by `with_id_column`
            ids.extend(texts.iter().map(|text| value_id(column, text)));
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
    /// The steps of their last cleaning. Empty: none is known.
    #[serde(default)]
    pub cleaning: Vec<CleaningStep>,
    /// All cleanings of all parts ([`Dataset::cleanings`]). `None`: recorded by a version that named the
    /// last one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleanings: Option<Vec<Vec<Cleaning>>>,
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
            cleanings: Some(set.cleanings()),
            rows_before_cleaning: report.rows_before,
            cleaning: report.steps.into_iter().map(|step| step.step).collect(),
            split: set.split_settings().cloned(),
        }
    }

    /// The ways by which its rows may have been cleaned; `None`: it is put together of parts, and does
    /// not say how these were cleaned.
    pub(crate) fn ways(&self) -> Option<Vec<Vec<Cleaning>>> {
        match &self.cleanings {
            Some(ways) => Some(ways.clone()),
            None if self.source.contains(" + ") => None,
            None => Some(vec![vec![Cleaning { steps: self.cleaning.clone() }]]),
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

/// The values of a column that identifies rows, as they are asked for.
///
/// # Errors
/// What the column holds, if that is nothing to ask for.
fn id_texts(values: &Column) -> Result<Vec<String>, String> {
    let found = values.dtype();
    let whole = |number: f64| {
        // Beyond it neighbours are the same number.
        let sure = number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0;
        if sure { Ok(format!("{}", number as i64)) } else { Err(format!("it holds {number}")) }
    };
    let failed = |error: polars::error::PolarsError| error.to_string();
    if found.is_float() {
        let numbers = values.cast(&DataType::Float64).map_err(failed)?;
        let numbers = numbers.f64().map_err(failed)?;
        return numbers.iter().flatten().filter(|number| !number.is_nan()).map(whole).collect();
    }
    let is_text = matches!(found, DataType::String | DataType::Boolean | DataType::Null)
        || found.is_categorical()
        || found.is_enum();
    if !is_text && !found.is_integer() {
        return Err(format!("its type is {found}"));
    }
    let texts = values.cast(&DataType::String).map_err(failed)?;
    let texts = texts.str().map_err(failed)?;
    Ok(texts.iter().flatten().map(str::to_owned).collect())
}

/// The ids of a row as it may stand in a training set that was cleaned in this way: as it is, and after
/// each cleaning. `None`: it cannot be cleaned so.
pub(crate) fn ids_after(row: &Row, way: &[Cleaning]) -> Option<BTreeSet<String>> {
    let mut ids = BTreeSet::from([row_id(row)]);
    let mut one = Dataset::from_rows(&[(&row.prompt, &row.completion)]);
    for cleaning in way {
        one = one.clean(cleaning).ok()?;
        ids.extend(one.rows().iter().map(row_id));
    }
    Some(ids)
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
        let way = &record.train.ways().unwrap()[0];
        let found = ids_after(&row, way).unwrap();
        assert!(found.iter().any(|id| text.contains(id.as_str())));
        assert!(!text.contains(&row_id(&row)), "the raw row is another one");
        assert_eq!(record.rows, disk::sha256(text.as_bytes())[..32]);
        let other = ids_after(&Row::new("Where was it?", "On its way."), way).unwrap();
        assert!(other.iter().all(|id| !text.contains(id.as_str())));
    }

    #[test]
    fn an_id_is_found_whatever_the_type_of_its_column() {
        let rows = Dataset::from_rows(&[("a", "1"), ("b", "2")]);
        let with = |column: Column| {
            let mut frame = rows.frame();
            frame.with_column(column).unwrap();
            RunData::from(&Dataset::from_frame(frame).unwrap()).with_id_column("id")
        };
        let text = |values: &[&str]| Column::new("id".into(), values);
        let categories = DataType::from_categories(polars::prelude::Categories::global());
        for (column, value) in [
            (text(&["x", "4711"]), "4711"),
            (text(&["x", "4711"]).cast(&categories).unwrap(), "4711"),
            (Column::new("id".into(), [4711_i64, 2]), "4711"),
            (Column::new("id".into(), [1e15, f64::NAN]), "1000000000000000"),
            (Column::new("id".into(), [4711.0_f32, 2.0]), "4711"),
            (Column::new("id".into(), [Some(true), None]), "true"),
        ] {
            let named = format!("{column:?}");
            let (_, text) = with(column).unwrap().record();
            assert!(text.contains(&value_id("id", value)), "{named}");
        }
        let time = DataType::Datetime(polars::prelude::TimeUnit::Milliseconds, None);
        for column in [
            Column::new("id".into(), [0.5, 1.0]),
            Column::new("id".into(), [1e300, 1.0]),
            Column::new("id".into(), [1_i64, 2]).cast(&time).unwrap(),
        ] {
            let error = with(column).unwrap_err().to_string();
            assert!(error.contains("the column `id` cannot identify rows"), "{error}");
        }
    }

    #[test]
    fn rows_are_found_as_they_were_before_any_cleaning_of_any_part() {
        let row = |text: &str| Dataset::from_rows(&[(text, "answer")]);
        let html = Cleaning::default().strip_html();
        let spaces = Cleaning::default().normalize_whitespace();
        let twice = row("<i>one</i>  two").clean(&html).unwrap().clean(&spaces).unwrap();
        let replayed = row("<b>three</b>").clean(&html).unwrap();
        let all = twice.with_replay(&replayed, 0.5, 1).unwrap().concat(&row("four")).unwrap();
        let (record, text) = RunData::from(&all).record();
        let found = |prompt: &str| {
            let row = Row::new(prompt, "answer");
            let ways = record.train.ways().unwrap();
            let mut ids = ways.iter().flat_map(|way| ids_after(&row, way).unwrap());
            ids.any(|id| text.contains(&id))
        };
        for prompt in ["<i>one</i>  two", "one  two", "one two", "<b>three</b>", "three", "four"] {
            assert!(found(prompt), "{prompt}");
        }
        assert!(!found("<b>five</b>"));
        let old = SetRecord { cleanings: None, source: "a + b".into(), ..record.train.clone() };
        assert_eq!(old.ways(), None, "of a time when the parts' cleanings were lost");
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
