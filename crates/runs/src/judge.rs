//! Answers judged while a run trains: the metrics of
//! [`TrainingArgs::eval_metrics`](tunebook_tune::TrainingArgs::eval_metrics).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tunebook_data::Dataset;
use tunebook_evaluate::metric::named;
use tunebook_evaluate::{EvalExample, Evaluation, EvaluationArgs, evaluate_with};
use tunebook_models::Model;
use tunebook_progress::interrupt::Interrupted;
use tunebook_progress::quiet;
use tunebook_tune::{Measured, Metric, TrainingArgs, answering_fingerprint};

use crate::examples::evaluation_examples;

/// The most different answers of a split that are labels.
const MOST_LABELS: usize = 500;
/// Answers that are shown.
const SAMPLES: usize = 3;

/// Questions, right answers and the model's, of the latest evaluation.
pub type Samples = Arc<Mutex<Vec<[String; 3]>>>;

/// Judges answers to the rows of a validation set.
struct Judge {
    examples: Vec<EvalExample>,
    args: EvaluationArgs,
    /// The last evaluation, by the fingerprint of what answered: several metrics ask for it.
    last: Mutex<Option<(String, Evaluation)>>,
    samples: Samples,
}

/// The measures of answers that the arguments name
/// ([`TrainingArgs::eval_metrics`](tunebook_tune::TrainingArgs::eval_metrics)), for
/// [`ExampleSets::judged_by`](tunebook_tune::ExampleSets::judged_by). `samples` gets some answers of each
/// evaluation.
///
/// # Errors
/// What can be measured instead.
pub fn answer_measures(
    args: &TrainingArgs,
    train: &Dataset,
    validation: &Dataset,
    samples: Samples,
) -> Result<Vec<Measured>, String> {
    let mut evaluation = EvaluationArgs {
        metrics: Vec::new(),
        max_rows: args.eval_metrics_rows,
        output_dir: None,
        ..EvaluationArgs::default()
    };
    let mut metrics = Vec::new();
    for name in &args.eval_metrics {
        if name == "accuracy" {
            evaluation.labels = labels(train, validation)?;
            metrics.push(Metric::higher_is_better("accuracy"));
        } else {
            let metric = named(name).ok_or_else(|| {
                format!("accuracy or one of {}", tunebook_evaluate::metric::NAMES.join(", "))
            })?;
            metrics.push(metric.metric());
            evaluation.metrics.push(metric);
        }
    }
    let examples = evaluation_examples(validation);
    let judge = Arc::new(Judge { examples, args: evaluation, last: Mutex::default(), samples });
    let measure = |metric: Metric| -> Measured {
        let (judge, name) = (Arc::clone(&judge), metric.name.clone());
        (metric, Box::new(move |model| judge.value(model, &name)))
    };
    Ok(metrics.into_iter().map(measure).collect())
}

/// The different answers of a split. A rare one may stand in the validation set alone.
fn labels(train: &Dataset, validation: &Dataset) -> Result<Vec<String>, String> {
    let mut labels: BTreeSet<String> = BTreeSet::new();
    for part in [train, validation] {
        let examples = evaluation_examples(part);
        labels.extend(examples.into_iter().flat_map(|example| example.references));
    }
    match labels.len() {
        2..=MOST_LABELS => Ok(labels.into_iter().collect()),
        count => Err(format!(
            "`accuracy` of a split with 2 to {MOST_LABELS} different answers, which are its \
             labels; this one has {count}. For free answers take exact_match or rougeL"
        )),
    }
}

impl Judge {
    fn value(
        &self,
        model: &Model,
        name: &str,
    ) -> Result<f64, Box<dyn std::error::Error + Send + Sync>> {
        let fingerprint = answering_fingerprint(model)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(known, _)| *known != fingerprint) {
            let found = quiet(|| evaluate_with(model, &self.examples, &self.args))?;
            if found.stopped {
                // A value of some of the rows is none: the next run evaluates again.
                return Err(Box::new(Interrupted));
            }
            let samples = found.rows.iter().filter_map(|row| {
                let reference = row.references.first().cloned().unwrap_or_default();
                Some([row.question.clone(), reference, row.answer.clone()?])
            });
            *self.samples.lock().unwrap_or_else(PoisonError::into_inner) =
                samples.take(SAMPLES).collect();
            *last = Some((fingerprint, found));
        }
        let value = last.as_ref().and_then(|(_, found)| found.value(name));
        Ok(value.unwrap_or(f64::NAN))
    }
}
