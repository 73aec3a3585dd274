//! Classifiers: answers from a closed set of labels.
//!
//! [`class_report`] and [`confusion`] compare predicted labels with the true ones; [`reliability`],
//! [`brier_score`] and [`log_loss`] ask whether a classifier's probabilities can be believed. These
//! equal scikit-learn's, for which a label that is never predicted or never true counts 0
//! (`zero_division=0`). [`label_issues`] finds labels that are probably wrong, as cleanlab does.

mod confusion;
mod label_issues;
mod probability;
mod reliability;
mod report;

use std::collections::{BTreeSet, HashMap};

use crate::{Error, Result};

pub use confusion::{Confusion, confusion};
pub use label_issues::{LabelIssue, label_issues};
pub use probability::{brier_score, log_loss};
pub use reliability::{Reliability, ReliabilityBin, reliability};
pub use report::{ClassAverage, ClassReport, ClassScores, class_report};

/// The labels of a table: those given, or all that occur, sorted.
fn labels_of<S: AsRef<str>>(truth: &[S], predicted: &[S], given: Option<&[S]>) -> Vec<String> {
    if let Some(given) = given {
        return given.iter().map(|label| label.as_ref().to_owned()).collect();
    }
    let all: BTreeSet<&str> = truth.iter().chain(predicted).map(AsRef::as_ref).collect();
    all.into_iter().map(str::to_owned).collect()
}

/// The place of each label.
fn places(labels: &[String]) -> HashMap<&str, usize> {
    labels.iter().enumerate().map(|(place, label)| (label.as_str(), place)).collect()
}

/// Checks that there are as many predictions as true labels, and at least one.
fn check_rows(what: &'static str, truth: usize, predicted: usize) -> Result<()> {
    if truth != predicted {
        return Err(Error::Lengths {
            left_name: "truth",
            left: truth,
            right_name: what,
            right: predicted,
        });
    }
    if truth == 0 {
        return Err(Error::TooFewRows { what: "a classifier's report", needed: 1, found: 0 });
    }
    Ok(())
}
