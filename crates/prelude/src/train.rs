//! From a data set to a run.

use tunebook_charts::{Figure, LossPoint};
use tunebook_data::{Dataset, Splits, TrainingText, Turn};
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

/// The rows of a data set as training examples.
pub trait Examples {
    /// All rows, in order, as [`Dataset::conversations`] gives them. Of a conversation every turn of
    /// the assistant is trained on, but those that the file exempts (`"weight": 0`); a plain text
    /// is trained on as it stands.
    fn examples(&self) -> Vec<Example>;
}

impl Examples for Dataset {
    fn examples(&self) -> Vec<Example> {
        self.conversations().into_iter().map(example).collect()
    }
}

fn example(text: TrainingText) -> Example {
    match text {
        TrainingText::Text(text) => Example::text(text),
        TrainingText::Conversation(turns) => {
            Example::conversation(turns.into_iter().map(message).collect())
        }
    }
}

fn message(turn: Turn) -> Message {
    let train = turn.train != Some(false);
    Message { train, ..Message::new(turn.role.as_str(), turn.content) }
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
