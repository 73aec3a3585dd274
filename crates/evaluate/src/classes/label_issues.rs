//! Labels that are probably wrong, by confident learning (Northcutt et al. 2021,
//! <https://doi.org/10.1613/jair.1.12125>).

use serde::{Deserialize, Serialize};

use super::check_rows;
use super::probability::check;
use crate::run::evaluation::Evaluation;
use crate::{Error, Result};

/// Differences of probabilities below which two are one, as cleanlab has it.
const SAME: f64 = 1e-6;

/// A row whose label is probably wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelIssue {
    /// The row's number, from 0.
    pub row: usize,
    /// The label that it has, by its place.
    pub given: usize,
    /// The likelier one.
    pub suggested: usize,
    /// The probability of the label that it has.
    pub confidence: f64,
    /// The probability of the likelier one.
    pub suggested_confidence: f64,
}

/// The rows whose label is probably wrong, the least likely label first. Equal to cleanlab's
/// `find_label_issues(filter_by="confident_learning", return_indices_ranked_by="self_confidence")`.
///
/// `probabilities` has a row for each example and a column for each class, `given` the column of the
/// label that the example has. A label is likely where its probability reaches the mean that it has
/// among the rows that are labelled with it; a row is an issue when other labels are likely and its
/// own is not the likeliest.
///
/// Probabilities of rows that the model was trained on say less, for it may have learned wrong labels
/// by heart: ask it early in its training, or for rows that it has not seen.
///
/// ```
/// use tunebook_evaluate::classes::label_issues;
/// let sure = |cat: f64| vec![cat, 1.0 - cat];
/// let rows = [sure(0.9), sure(0.8), sure(0.1), sure(0.2), sure(0.05)];
/// let issues = label_issues(&rows, &[0, 0, 1, 1, 0])?; // the last is called a cat
/// assert_eq!((issues.len(), issues[0].row, issues[0].suggested), (1, 4, 1));
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
/// No rows, another number of labels than rows, a label that has no column, or rows that are no
/// probabilities.
pub fn label_issues(probabilities: &[Vec<f64>], given: &[usize]) -> Result<Vec<LabelIssue>> {
    check_rows("probabilities", given.len(), probabilities.len())?;
    check(probabilities, given)?;
    let thresholds = thresholds(probabilities, given);
    let issue = |(row, (of, &given)): (usize, (&Vec<f64>, &usize))| {
        let likely = |class: &usize| of[*class] >= thresholds[*class] - SAME;
        let mut all = (0..of.len()).filter(likely);
        let (first, second) = (all.next()?, all.next());
        let best = likeliest(of);
        let suggested = if second.is_some() { best } else { first };
        // Where the label is as likely as any, nothing speaks against it.
        let own = of[best] - of[given] < SAME;
        (suggested != given && !own).then(|| LabelIssue {
            row,
            given,
            suggested,
            confidence: of[given],
            suggested_confidence: of[suggested],
        })
    };
    let mut issues: Vec<LabelIssue> =
        probabilities.iter().zip(given).enumerate().filter_map(issue).collect();
    issues.sort_by(|a, b| a.confidence.total_cmp(&b.confidence).then(a.row.cmp(&b.row)));
    Ok(issues)
}

impl Evaluation {
    /// The rows whose reference is probably the wrong label, the least likely first, by
    /// [`label_issues`]. Places are those of [`EvaluationArgs::labels`](crate::EvaluationArgs::labels).
    ///
    /// Give the evaluation a `label_margin` at which the probabilities of all labels are known
    /// (the default will do).
    ///
    /// # Errors
    /// An evaluation without labels, or one whose rows have no reference.
    pub fn label_issues(&self) -> Result<Vec<LabelIssue>> {
        let labels = self.classification.as_ref().map(|classes| &classes.confusion.labels);
        let none = || Error::Setting {
            field: "EvaluationArgs.labels",
            value: "empty".to_owned(),
            expected: "the labels that rows are judged by, to find wrong ones among their references",
        };
        let labels = labels.ok_or_else(none)?;
        let place = |text: &String| labels.iter().position(|label| label == text);
        let known = self.rows.iter().filter(|row| row.probabilities.len() == labels.len());
        let rows: Vec<_> =
            known.filter_map(|row| Some((row, row.references.iter().find_map(place)?))).collect();
        let probabilities: Vec<Vec<f64>> =
            rows.iter().map(|(row, _)| row.probabilities.clone()).collect();
        let given: Vec<usize> = rows.iter().map(|(_, given)| *given).collect();
        let mut issues = label_issues(&probabilities, &given)?;
        issues.iter_mut().for_each(|issue| issue.row = rows[issue.row].0.row);
        Ok(issues)
    }
}

/// For each class the mean of its probability among the rows that are labelled with it.
fn thresholds(probabilities: &[Vec<f64>], given: &[usize]) -> Vec<f64> {
    let classes = probabilities.first().map_or(0, Vec::len);
    let mut sums = vec![(0.0, 0_usize); classes];
    for (of, given) in probabilities.iter().zip(given) {
        sums[*given].0 += of[*given];
        sums[*given].1 += 1;
    }
    let mean = |(sum, rows): (f64, usize)| match rows {
        // No row has it, so none is a measure of it.
        0 => f64::INFINITY,
        rows => (sum / rows as f64).max(2.0 * SAME),
    };
    sums.into_iter().map(mean).collect()
}

/// Of equals the first.
fn likeliest(of: &[f64]) -> usize {
    (0..of.len()).fold(0, |best, class| if of[class] > of[best] { class } else { best })
}
