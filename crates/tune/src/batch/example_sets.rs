//! The examples of a run, from whatever a caller has them in.

use std::fmt;

use tunebook_models::Model;

use crate::batch::Example;
use crate::record::callback::Callback;
use crate::record::metric::Metric;
use crate::train::args::TrainingArgs;
use crate::train::run::Run;
use crate::train::trainer::MeasureResult;

/// Makes the callback that watches one run; the argument is the run that goes on, if one does.
pub type Observer = Box<dyn FnOnce(Option<&Run>) -> Box<dyn Callback>>;

/// Makes the measures that [`TrainingArgs::eval_metrics`](crate::TrainingArgs::eval_metrics) names.
pub type Judge = Box<dyn FnOnce(&TrainingArgs) -> std::result::Result<Vec<Measured>, String>>;

/// A metric and the function that measures it.
pub type Measured = (Metric, Measure);

/// A function that measures a model; see [`Trainer::with_metric`](crate::Trainer::with_metric).
pub type Measure = Box<dyn Fn(&Model) -> MeasureResult + Send + Sync>;

/// The examples of a run.
#[derive(Default)]
pub struct ExampleSets {
    /// The examples to train on.
    pub train: Vec<Example>,
    /// The examples to evaluate on. Empty: nothing is evaluated.
    pub validation: Vec<Example>,
    /// A callback for each run on these sets, besides the trainer's own; `None`: no other.
    pub observer: Option<Observer>,
    /// Measures answers on the validation set; `None`: only the loss can be measured.
    pub judge: Option<Judge>,
}

impl ExampleSets {
    /// A training and a validation set, which may be empty.
    pub fn new(train: Vec<Example>, validation: Vec<Example>) -> Self {
        Self { train, validation, observer: None, judge: None }
    }

    /// The same with a callback for each run on these sets.
    #[must_use]
    pub fn observed_by(self, observer: Observer) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// The same with a judge of answers on the validation set.
    #[must_use]
    pub fn judged_by(self, judge: Judge) -> Self {
        Self { judge: Some(judge), ..self }
    }
}

impl fmt::Debug for ExampleSets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExampleSets")
            .field("train", &self.train)
            .field("validation", &self.validation)
            .finish_non_exhaustive()
    }
}

/// What a [`Trainer`](crate::Trainer) takes examples from: a training set as `&examples`, a training
/// and a validation set as `(&train, &validation)`, or [`ExampleSets`].
///
/// `Kind` is inferred. It lets another crate implement the trait for a type of a third one (a split
/// of a data set), with a marker type of its own as the `Kind`.
pub trait IntoSets<Kind> {
    /// The examples.
    fn into_sets(self) -> ExampleSets;
}

/// The [`Kind`](IntoSets) of a training set alone.
#[derive(Debug)]
pub struct OneSet;

/// The [`Kind`](IntoSets) of a training and a validation set.
#[derive(Debug)]
pub struct TwoSets;

impl<T: AsRef<[Example]> + ?Sized> IntoSets<OneSet> for &T {
    fn into_sets(self) -> ExampleSets {
        ExampleSets::new(self.as_ref().to_vec(), Vec::new())
    }
}

impl<T, V> IntoSets<TwoSets> for (&T, &V)
where
    T: AsRef<[Example]> + ?Sized,
    V: AsRef<[Example]> + ?Sized,
{
    fn into_sets(self) -> ExampleSets {
        ExampleSets::new(self.0.as_ref().to_vec(), self.1.as_ref().to_vec())
    }
}

impl IntoSets<Self> for ExampleSets {
    fn into_sets(self) -> ExampleSets {
        self
    }
}
