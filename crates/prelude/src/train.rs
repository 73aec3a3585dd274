//! From a data set to a run.

use tunebook_charts::{Figure, LossPoint};
use tunebook_data::{Dataset, Splits};
use tunebook_models::Message;
use tunebook_tune::{Example, Result, Run, RunRecord, Trainer, TrainingSummary};

use crate::live::Live;

/// Training on the two sides of a split, with a live display.
pub trait Train {
    /// Trains on `split.train` and evaluates on `split.validation`. While it runs, the cell shows
    /// where it stands, the loss curve and the evaluations; Stop ends the run and keeps everything
    /// up to the last whole step.
    ///
    /// # Errors
    /// As [`Trainer::fit`].
    fn train(&self, split: &Splits) -> Result<Run>;

    /// What training on this split will train and take, before it starts: parameters, memory, and
    /// the size of the adapter's file.
    ///
    /// # Errors
    /// As [`Trainer::summary`].
    fn training_summary(&self, split: &Splits) -> Result<TrainingSummary>;

    /// Goes on with a run that was stopped, on the same split.
    ///
    /// # Errors
    /// As [`Trainer::resume`].
    fn resume_training(&self, run: &Run, split: &Splits) -> Result<Run>;
}

impl Train for Trainer {
    fn train(&self, split: &Splits) -> Result<Run> {
        let (train, validation) = (split.train.examples(), split.validation.examples());
        self.observed(Live::new(), |trainer| trainer.fit(&train, &validation))
    }

    fn training_summary(&self, split: &Splits) -> Result<TrainingSummary> {
        self.summary(&split.train.examples())
    }

    fn resume_training(&self, run: &Run, split: &Splits) -> Result<Run> {
        let (train, validation) = (split.train.examples(), split.validation.examples());
        self.observed(Live::going_on(run), |trainer| trainer.resume(run, &train, &validation))
    }
}

/// The pairs of a data set as training examples.
pub trait Examples {
    /// All rows, in order. What a column `system` holds stands before the prompt. A row with a
    /// conversation of several turns in the column `messages` is that conversation, and every turn
    /// of the assistant is trained on.
    fn examples(&self) -> Vec<Example>;
}

impl Examples for Dataset {
    fn examples(&self) -> Vec<Example> {
        let frame = self.frame();
        let system = frame.column("system").ok().and_then(|column| column.str().ok());
        let told =
            |row: usize| system.and_then(|system| system.get(row)).filter(|told| !told.is_empty());
        let rows = self.rows().into_iter().enumerate();
        rows.map(|(at, row)| match (self.conversation(at), told(at)) {
            (Some(turns), told) => {
                let told = told.map(Message::system);
                let turns = turns.into_iter().map(|(role, content)| Message::new(role, content));
                Example::conversation(told.into_iter().chain(turns).collect())
            }
            (None, Some(told)) => Example::new(format!("{told}\n\n{}", row.prompt), row.completion),
            (None, None) => Example::new(row.prompt, row.completion),
        })
        .collect()
    }
}

/// The loss of a run as a figure.
pub trait LossCurve {
    /// Training and validation loss over the steps.
    fn loss_curve(&self) -> Figure;

    /// The losses that [`LossCurve::loss_curve`] draws, by step.
    fn loss_points(&self) -> Vec<LossPoint>;
}

impl LossCurve for RunRecord {
    fn loss_curve(&self) -> Figure {
        tunebook_charts::loss_curve(&self.loss_points())
    }

    fn loss_points(&self) -> Vec<LossPoint> {
        let train = self.steps.iter().map(|record| LossPoint {
            step: record.step,
            train: Some(record.loss),
            validation: None,
        });
        let validation = self.evals.iter().map(|record| LossPoint {
            step: record.step,
            train: None,
            validation: Some(record.loss),
        });
        let mut points: Vec<LossPoint> = train.chain(validation).collect();
        points.sort_by_key(|point| point.step);
        points
    }
}
