//! The data of a recipe.

use serde::{Deserialize, Serialize};
use tunebook_data::{
    DataError, Dataset, Pipeline, PipelineStep, ReadOptions, RowShape, Split, SplitSide, Splits,
};

use crate::data::{RunData, without_place};
use crate::error::Result;

/// Where a run's rows come from, and what is done to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// A file, a folder, a pattern, or a data set of the hub (`owner/name`).
    pub path: String,
    /// How the rows become prompts and completions: `messages`, `alpaca`, `columns: {prompt: …,
    /// completion: …}` … Default none: it is recognised.
    #[serde(default)]
    pub shape: Option<RowShape>,
    /// Which files of a folder or of a repository, as a pattern. Default none.
    #[serde(default)]
    pub files: Option<String>,
    /// What is done to all rows before the split, in order. Default nothing.
    #[serde(default)]
    pub steps: Vec<PipelineStep>,
    /// How rows are held out. Default none: all rows are trained on.
    #[serde(default)]
    pub split: Option<Split>,
    /// What is done to the training rows after the split, in order. Default nothing.
    #[serde(default)]
    pub train_steps: Vec<PipelineStep>,
    /// What is done to the validation rows after the split, in order. Default nothing.
    #[serde(default)]
    pub validation_steps: Vec<PipelineStep>,
    /// Validation rows from a file of their own, where there is no `split`. Default none.
    #[serde(default)]
    pub validation: Option<Pipeline>,
}

impl DataRecipe {
    /// The rows of a file, as they are read.
    pub fn new(path: &str) -> Self {
        Self::of_train(&Pipeline::new(path, &ReadOptions::default()))
    }

    /// Reads the rows and does the steps.
    ///
    /// # Errors
    /// Those of reading, cleaning and splitting.
    pub fn load(&self) -> Result<RunData> {
        let all = self.all_rows().run()?;
        let [train, validation, test] = match &self.split {
            Some(split) => {
                let Splits { train, validation, test } = all.split(split)?;
                [Some(train), Some(validation), test]
            }
            None => [Some(all), self.validation.as_ref().map(Pipeline::run).transpose()?, None],
        };
        let steps = |rows: Option<Dataset>, steps: &[PipelineStep]| -> Result<Option<Dataset>> {
            let run = |rows: Dataset| steps.iter().try_fold(rows, |rows, step| step.run(&rows));
            Ok(rows.map(run).transpose()?)
        };
        let validation = steps(validation, &self.validation_steps)?;
        let train = steps(train, &self.train_steps)?;
        Ok(RunData::new(train.unwrap_or_else(|| Dataset::from_rows(&[])), validation, test))
    }

    /// How each set comes about, on its own: the training and the validation set.
    pub(crate) fn pipelines(&self) -> (Pipeline, Option<Pipeline>) {
        let side = |side: SplitSide, split: &Split| {
            self.all_rows().with(PipelineStep::Side { side, split: split.clone() })
        };
        let then = |pipeline: Pipeline, steps: &[PipelineStep]| {
            steps.iter().cloned().fold(pipeline, Pipeline::with)
        };
        let (train, validation) = match &self.split {
            Some(split) => {
                (side(SplitSide::Train, split), Some(side(SplitSide::Validation, split)))
            }
            None => (self.all_rows(), self.validation.clone()),
        };
        let validation = validation.map(|rows| then(rows, &self.validation_steps));
        (then(train, &self.train_steps), validation)
    }

    /// The recipe of a run's rows.
    ///
    /// # Errors
    /// The set whose rows do not come from a file by known steps.
    pub(crate) fn of(data: &RunData) -> Result<Self, String> {
        let pipeline = |what: &str, rows: &Dataset| {
            rows.pipeline().cloned().ok_or_else(|| {
                format!(
                    "how the {what} rows came about is not known: they are of `{}`, and no file with \
                     named steps gives them",
                    without_place(rows.source())
                )
            })
        };
        let train = pipeline("training", data.train())?;
        let Some(validation) = data.validation() else { return Ok(Self::of_train(&train)) };
        let validation = pipeline("validation", validation)?;
        let split = train.steps.iter().enumerate().rev().find_map(|(at, step)| match step {
            PipelineStep::Side { side: SplitSide::Train, split } => {
                let held_out =
                    PipelineStep::Side { side: SplitSide::Validation, split: split.clone() };
                let same = train.path == validation.path
                    && train.shape == validation.shape
                    && train.files == validation.files
                    && validation.steps.len() > at
                    && validation.steps[..at] == train.steps[..at]
                    && validation.steps[at] == held_out;
                same.then(|| (at, split.clone()))
            }
            _ => None,
        });
        Ok(match split {
            None => Self { validation: Some(validation), ..Self::of_train(&train) },
            Some((at, split)) => Self {
                steps: train.steps[..at].to_vec(),
                split: Some(split),
                train_steps: train.steps[at + 1..].to_vec(),
                validation_steps: validation.steps[at + 1..].to_vec(),
                ..Self::of_train(&train)
            },
        })
    }

    fn of_train(train: &Pipeline) -> Self {
        let Pipeline { path, shape, files, steps } = train.clone();
        Self {
            path,
            shape,
            files,
            steps,
            split: None,
            train_steps: Vec::new(),
            validation_steps: Vec::new(),
            validation: None,
        }
    }

    /// The rows before the split.
    fn all_rows(&self) -> Pipeline {
        let Self { path, shape, files, steps, .. } = self.clone();
        Pipeline { path, shape, files, steps }
    }

    /// The keys to a value that cannot be used, and why.
    pub(super) fn problem(&self) -> Option<(Vec<&'static str>, String)> {
        match self.split.as_ref().map(Split::validate) {
            None | Some(Ok(())) => {}
            Some(Err(DataError::Setting { field, value, expected })) => {
                let problem = format!("is {value}, expected {expected}");
                return Some((vec!["split", field], problem));
            }
            Some(Err(other)) => return Some((vec!["split"], other.to_string())),
        }
        self.contradiction().map(|(key, problem)| (vec![key], problem.to_owned()))
    }

    /// A key whose value does not go with the others, and why.
    fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        if self.split.is_some() && self.validation.is_some() {
            let problem = "there is a `split`, which holds rows out: leave one of the two out";
            return Some(("validation", problem));
        }
        if self.split.is_none() && self.validation.is_none() && !self.validation_steps.is_empty() {
            let problem = "there are no validation rows: give `split` or `validation`";
            return Some(("validation_steps", problem));
        }
        None
    }
}
