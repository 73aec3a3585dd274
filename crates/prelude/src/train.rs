//! From a data set to a run.

use std::sync::Arc;

use tunebook_charts::{Figure, LossChart, LossPoint};
use tunebook_data::{Dataset, Splits};
use tunebook_evaluate::Diagnosis;
use tunebook_runs::{Samples, answer_measures, training_examples};
use tunebook_tune::{Example, ExampleSets, IntoSets, RunRecord};

use crate::live::Live;

/// The [`Kind`](IntoSets) of the data crate's sets: a [`Trainer`](tunebook_tune::Trainer) takes
/// `&split`, whose test it leaves alone, or the training rows alone as `&dataset`. While it trains
/// on them, the cell shows how far it is, the loss curve and the evaluations; Stop ends the run and
/// keeps everything up to the last whole step.
#[derive(Debug)]
pub struct DataSets;

impl IntoSets<DataSets> for &Splits {
    fn into_sets(self) -> ExampleSets {
        let samples = Samples::default();
        let sets = ExampleSets::new(self.train.examples(), self.validation.examples());
        let sets = live(sets, &samples);
        if self.validation.is_empty() {
            return sets;
        }
        let (train, validation) = (self.train.clone(), self.validation.clone());
        sets.judged_by(Box::new(move |args| answer_measures(args, &train, &validation, samples)))
    }
}

impl IntoSets<DataSets> for &Dataset {
    fn into_sets(self) -> ExampleSets {
        live(ExampleSets::new(self.examples(), Vec::new()), &Samples::default())
    }
}

fn live(sets: ExampleSets, samples: &Samples) -> ExampleSets {
    let samples = Arc::clone(samples);
    sets.observed_by(Box::new(|going_on| {
        let live = going_on.map_or_else(Live::new, Live::going_on);
        Box::new(live.with_samples(samples))
    }))
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
        training_examples(self)
    }
}

/// The loss of a run as a figure.
pub trait LossCurve {
    /// Training and validation loss over the steps, with the best step, the gap between them and
    /// the diagnosis in a sentence.
    fn loss_curve(&self) -> Figure;

    /// The losses that [`LossCurve::loss_curve`] draws, by step.
    fn loss_points(&self) -> Vec<LossPoint>;

    /// What the losses say: learning, overfitting and since which step, divergence, a plateau.
    fn diagnosis(&self) -> Diagnosis;
}

impl LossCurve for RunRecord {
    fn loss_curve(&self) -> Figure {
        let found = self.diagnosis();
        let (points, verdict) = (self.loss_points(), found.to_string());
        LossChart { points, verdict, gap: found.gap }.figure()
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

    fn diagnosis(&self) -> Diagnosis {
        Diagnosis::of(&self.steps, &self.evals)
    }
}
