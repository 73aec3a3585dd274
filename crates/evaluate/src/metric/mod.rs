//! Text metrics: how good an answer is, given references.
//!
//! A [`TextMetric`] turns a row into a few numbers, its *sufficient statistics*, and the sums of
//! these over rows into a score. An accuracy is `[hits, rows]`; BLEU is lengths, matches and totals
//! by order. So a score of any rows, and of any resample of them
//! ([`Bootstrap`](crate::statistics::Bootstrap)), needs the texts once.
//!
//! | metric | score | statistics of a row |
//! |---|---|---|
//! | [`ExactMatch`], [`Contains`], [`RegexMatch`], [`NumericAnswer`] | 0 to 1 | hit, 1 |
//! | [`JsonValid`], [`JsonSchema`] | 0 to 1 | hit, 1 |
//! | [`TokenF1`] | 0 to 1 | F1, 1 |
//! | [`Bleu`] | 0 to 100 | lengths, matches and totals by order |
//! | [`Chrf`] | 0 to 100 | n-grams of the answer, of the reference, of both, by order |
//! | [`Ter`] | 0 and up, lower is better | edits, length of the reference |
//! | [`Rouge`] | 0 to 1 | precision, recall, F1, 1 |
//! | [`EditDistance`] | 0 to 1, lower is better | distance, 1 |
//! | [`DistinctN`] | 0 to 1 | different n-grams, n-grams |
//! | [`metric_fn`] | the closure's | value, 1 |

mod closure;
mod contains;
mod distinct;
mod edit_distance;
mod exact_match;
mod json_schema;
mod json_valid;
mod named;
mod normalise;
mod numeric_answer;
mod python;
mod regex_match;
mod renamed;
mod rouge;
mod sacrebleu;
mod token_f1;

use tunebook_tune::Metric;

use crate::{Error, Result};

pub use closure::{MetricFn, metric_fn};
pub use contains::Contains;
pub use distinct::DistinctN;
pub use edit_distance::EditDistance;
pub use exact_match::ExactMatch;
pub use json_schema::JsonSchema;
pub use json_valid::JsonValid;
pub use named::{NAMES, named};
pub use normalise::Normalise;
pub use numeric_answer::NumericAnswer;
pub use regex_match::{Occurrence, RegexMatch};
pub use renamed::Renamed;
pub use rouge::{Rouge, RougeKind};
pub use sacrebleu::bleu::{Bleu, Smoothing};
pub use sacrebleu::chrf::Chrf;
pub use sacrebleu::ter::Ter;
pub use sacrebleu::tokenizer::BleuTokenizer;
pub use token_f1::TokenF1;

/// A measure of answers against references that adds up over rows.
///
/// ```
/// use tunebook_evaluate::metric::{self, Bleu, TextMetric};
///
/// let bleu = Bleu::default();
/// let rows = [
///     bleu.statistics("The cat sat on the mat.", &["The cat sat on a mat.".into()])?,
///     bleu.statistics("It rains today.", &["It rains today.".into()])?,
/// ];
/// let score = bleu.score(&metric::sums(&rows));
/// assert!((63.40..63.41).contains(&score), "{score}");
/// assert_eq!(
///     bleu.signature(Some(1)),
///     "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
/// );
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
pub trait TextMetric: Send + Sync {
    /// Its name, its unit and the direction in which it improves.
    fn metric(&self) -> Metric;

    /// The settings that its scores depend on, as sacreBLEU writes them, and the version of the
    /// metric last: `case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0`.
    fn settings(&self) -> String;

    /// The sufficient statistics of one row. Their number is the same for each row.
    ///
    /// # Errors
    ///
    /// If the row has no reference and the metric needs one, or one that it cannot compare with; if
    /// a closure panics or its value is not finite.
    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>>;

    /// The score of the [`sums`] of rows' statistics.
    fn score(&self, sums: &[f64]) -> f64;

    /// Whether each row is a hit or a miss, that is, its statistics are `[0 or 1, 1]`. Such scores
    /// have [Wilson intervals](crate::statistics::wilson) and
    /// [McNemar's test](crate::statistics::mcnemar).
    fn is_rate(&self) -> bool {
        false
    }

    /// Whether a row must have a reference.
    fn needs_references(&self) -> bool {
        true
    }

    /// The signature that belongs to every score: the number of references of each row (`None`: it
    /// varies) and the [settings](Self::settings). Scores with different signatures are not
    /// comparable.
    fn signature(&self, references: Option<usize>) -> String {
        signature(references, &self.settings())
    }

    /// The same under another name, so that two settings of one metric can stand side by side.
    ///
    /// ```
    /// use tunebook_evaluate::metric::{NumericAnswer, TextMetric};
    ///
    /// let near = NumericAnswer { tolerance: 0.5, ..NumericAnswer::default() }.named("near");
    /// assert_eq!((near.metric().name.as_str(), near.row_score("7.2", &["7".into()])?), ("near", 1.0));
    /// # Ok::<(), tunebook_evaluate::Error>(())
    /// ```
    fn named(self, name: &str) -> Renamed<Self>
    where
        Self: Sized,
    {
        Renamed::new(name.to_owned(), self)
    }

    /// The score of one row.
    ///
    /// # Errors
    ///
    /// As [`statistics`](Self::statistics).
    fn row_score(&self, answer: &str, references: &[String]) -> Result<f64> {
        Ok(self.score(&self.statistics(answer, references)?))
    }
}

/// The sums of rows' statistics, which [`TextMetric::score`] takes. No rows give no sums.
///
/// ```
/// assert_eq!(tunebook_evaluate::metric::sums(&[vec![1.0, 1.0], vec![0.0, 1.0]]), [1.0, 2.0]);
/// ```
#[must_use]
pub fn sums(rows: &[Vec<f64>]) -> Vec<f64> {
    let mut sums = vec![0.0; rows.first().map_or(0, Vec::len)];
    for row in rows {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
    sums
}

/// See [`TextMetric::signature`].
pub(crate) fn signature(references: Option<usize>, settings: &str) -> String {
    let references = references.map_or_else(|| "var".to_owned(), |count| count.to_string());
    format!("nrefs:{references}|{settings}")
}

/// The references, of which there is at least one.
fn required<'r>(metric: &Metric, answer: &str, references: &'r [String]) -> Result<&'r [String]> {
    if references.is_empty() {
        return Err(Error::NoReference { metric: metric.name.clone(), answer: answer.to_owned() });
    }
    Ok(references)
}

/// The statistics of a row that is a hit or a miss.
pub(crate) fn hit(hit: bool) -> Vec<f64> {
    vec![f64::from(u8::from(hit)), 1.0]
}

/// The mean of rows whose statistics are `[value, 1]`; 0 without rows.
pub(crate) fn mean(sums: &[f64]) -> f64 {
    match sums {
        [total, rows, ..] if *rows > 0.0 => total / rows,
        _ => 0.0,
    }
}

/// `yes` or `no`, as sacreBLEU's signatures write a setting.
fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}
