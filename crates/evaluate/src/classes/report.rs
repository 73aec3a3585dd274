//! The per-class report.

use serde::{Deserialize, Serialize};

use super::{check_rows, labels_of, places};
use crate::Result;

/// Precision, recall and F1 of each class, and their means. All shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassReport {
    /// One row for each label.
    pub classes: Vec<ClassScores>,
    /// The share of rows whose prediction is right, whatever their label.
    pub accuracy: f64,
    /// The mean over labels, each with the same weight.
    pub macro_average: ClassAverage,
    /// The mean over labels, each weighted by its rows.
    pub weighted_average: ClassAverage,
    /// The number of rows.
    pub rows: u64,
}

/// The scores of one label.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassScores {
    /// The label.
    pub label: String,
    /// The share of rows with this prediction that have this label; 0 if it is never predicted.
    pub precision: f64,
    /// The share of rows with this label that are predicted so; 0 if no row has it.
    pub recall: f64,
    /// The harmonic mean of both; 0 if both are 0.
    pub f1: f64,
    /// The number of rows with this label.
    pub support: u64,
}

/// The means of labels' scores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassAverage {
    /// The mean of the precisions.
    pub precision: f64,
    /// The mean of the recalls.
    pub recall: f64,
    /// The mean of the F1 scores.
    pub f1: f64,
}

/// The per-class report of predicted labels, equal to scikit-learn's
/// `classification_report(output_dict=True, zero_division=0)`.
///
/// The table has the labels that are given, in their order, or all that occur, sorted. A prediction
/// that is none of them, such as an answer that names no label, is a miss of its row's label.
///
/// ```
/// use tunebook_evaluate::classes::class_report;
///
/// let truth = ["cat", "cat", "dog", "dog"];
/// let predicted = ["cat", "dog", "dog", "dog"];
/// let report = class_report(&truth, &predicted, None)?;
/// assert_eq!(report.accuracy, 0.75);
/// assert_eq!((report.classes[0].label.as_str(), report.classes[0].recall), ("cat", 0.5));
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
///
/// If there are no rows, or not as many predictions as true labels.
pub fn class_report<S: AsRef<str>>(
    truth: &[S],
    predicted: &[S],
    labels: Option<&[S]>,
) -> Result<ClassReport> {
    check_rows("predicted", truth.len(), predicted.len())?;
    let labels = labels_of(truth, predicted, labels);
    let places = places(&labels);
    let mut support = vec![0_u64; labels.len()];
    let mut guessed = vec![0_u64; labels.len()];
    let mut hits = vec![0_u64; labels.len()];
    let mut right = 0_u64;
    for (truth, predicted) in truth.iter().zip(predicted) {
        let (truth, predicted) = (truth.as_ref(), predicted.as_ref());
        right += u64::from(truth == predicted);
        if let Some(&place) = places.get(predicted) {
            guessed[place] += 1;
        }
        if let Some(&place) = places.get(truth) {
            support[place] += 1;
            hits[place] += u64::from(truth == predicted);
        }
    }
    let share = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
    let classes: Vec<ClassScores> = labels
        .iter()
        .enumerate()
        .map(|(place, label)| ClassScores {
            label: label.clone(),
            precision: share(hits[place], guessed[place]),
            recall: share(hits[place], support[place]),
            f1: share(2 * hits[place], guessed[place] + support[place]),
            support: support[place],
        })
        .collect();
    Ok(ClassReport {
        accuracy: share(right, truth.len() as u64),
        macro_average: average(&classes, |_| 1.0),
        weighted_average: average(&classes, |class| class.support as f64),
        rows: truth.len() as u64,
        classes,
    })
}

/// The weighted mean of classes' scores; 0 without weight.
fn average(classes: &[ClassScores], weight: impl Fn(&ClassScores) -> f64) -> ClassAverage {
    let total: f64 = classes.iter().map(&weight).sum();
    let mean = |score: fn(&ClassScores) -> f64| {
        let sum: f64 = classes.iter().map(|class| weight(class) * score(class)).sum();
        if total == 0.0 { 0.0 } else { sum / total }
    };
    ClassAverage {
        precision: mean(|class| class.precision),
        recall: mean(|class| class.recall),
        f1: mean(|class| class.f1),
    }
}
