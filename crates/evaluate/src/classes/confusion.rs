//! The confusion table.

use serde::{Deserialize, Serialize};

use super::{check_rows, labels_of, places};
use crate::Result;

/// How often each label is predicted for each true label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// The labels of rows and columns.
    pub labels: Vec<String>,
    /// Numbers of rows of the data: `counts[truth][predicted]`.
    pub counts: Vec<Vec<u64>>,
    /// For each true label, the predictions that are none of the labels.
    pub other: Vec<u64>,
}

/// The confusion table of predicted labels, equal to scikit-learn's `confusion_matrix`.
///
/// The table has the labels that are given, in their order, or all that occur, sorted. Rows whose
/// true label is none of them are left out; predictions that are none of them are counted in
/// [`Confusion::other`].
///
/// ```
/// use tunebook_evaluate::classes::confusion;
///
/// let table = confusion(&["a", "a", "b"], &["a", "b", "?"], Some(&["a", "b"]))?;
/// assert_eq!(table.counts, [[1, 1], [0, 0]]);
/// assert_eq!(table.other, [0, 1]);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
///
/// If there are no rows, or not as many predictions as true labels.
pub fn confusion<S: AsRef<str>>(
    truth: &[S],
    predicted: &[S],
    labels: Option<&[S]>,
) -> Result<Confusion> {
    check_rows("predicted", truth.len(), predicted.len())?;
    let labels = labels_of(truth, predicted, labels);
    let places = places(&labels);
    let mut counts = vec![vec![0; labels.len()]; labels.len()];
    let mut other = vec![0; labels.len()];
    for (truth, predicted) in truth.iter().zip(predicted) {
        let Some(&row) = places.get(truth.as_ref()) else { continue };
        match places.get(predicted.as_ref()) {
            Some(&column) => counts[row][column] += 1,
            None => other[row] += 1,
        }
    }
    Ok(Confusion { counts, other, labels })
}
