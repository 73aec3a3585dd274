//! ROUGE.

mod lcs;
mod porter;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use super::{TextMetric, mean, required, yes_no};
use crate::Result;

/// The version of Google's rouge-score whose scores [`Rouge`] reproduces.
const ROUGE_SCORE_VERSION: &str = "0.1.2";

/// The overlap that [`Rouge`] measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RougeKind {
    /// N-grams of so many words: ROUGE-1, ROUGE-2. 0 counts as 1.
    #[serde(rename = "n")]
    N(usize),
    /// The longest common subsequence of words, line breaks ignored.
    L,
    /// The union of the longest common subsequences of each line of the reference with all lines of
    /// the answer. Sentences must stand on lines of their own.
    Lsum,
}

/// ROUGE, from 0 to 1: the words of the answer that are in the reference (Lin 2004,
/// <https://aclanthology.org/W04-1013>), as Google's rouge-score computes it, with the same text
/// normalisation and NLTK's Porter stemmer.
///
/// The score is the mean F1 of rows; of several references the one with the best F1 counts. Only
/// the letters a to z and digits make words: a text in Thai or Cyrillic has none and scores 0, even
/// against itself. Use [`Chrf`](super::Chrf) for such languages.
///
/// ```
/// use tunebook_evaluate::metric::{Rouge, TextMetric};
///
/// let reference = ["The parcels were shipped on Monday.".to_owned()];
/// let score = Rouge::n(1).row_score("The parcel was shipped.", &reference)?;
/// assert_eq!(score, 0.4);
/// let stemmed = Rouge { stemmer: true, ..Rouge::n(1) };
/// assert!((stemmed.row_score("The parcel was shipped.", &reference)? - 0.6).abs() < 1e-9);
/// assert_eq!(Rouge::lsum().metric().name, "rougeLsum");
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rouge {
    /// The overlap that counts.
    pub kind: RougeKind,
    /// Reduce English words to their stems. Default: no.
    #[serde(default)]
    pub stemmer: bool,
}

impl Rouge {
    /// ROUGE-n, over n-grams.
    #[must_use]
    pub fn n(n: usize) -> Self {
        Self { kind: RougeKind::N(n.max(1)), stemmer: false }
    }

    /// ROUGE-L, over the longest common subsequence.
    #[must_use]
    pub fn l() -> Self {
        Self { kind: RougeKind::L, stemmer: false }
    }

    /// ROUGE-Lsum, over the longest common subsequences of lines.
    #[must_use]
    pub fn lsum() -> Self {
        Self { kind: RougeKind::Lsum, stemmer: false }
    }

    /// Precision, recall and F1.
    fn scores(&self, answer: &str, reference: &str) -> [f64; 3] {
        let words = |text: &str| words(text, self.stemmer);
        match self.kind {
            RougeKind::N(n) => ngrams(&words(answer), &words(reference), n.max(1)),
            RougeKind::L => {
                let (answer, reference) = (words(answer), words(reference));
                let common = lcs::length(&reference, &answer);
                scores(common, answer.len(), reference.len())
            }
            RougeKind::Lsum => {
                let lines = |text: &str| -> Vec<_> {
                    text.split('\n').filter(|line| !line.is_empty()).map(words).collect()
                };
                let (answer, reference) = (lines(answer), lines(reference));
                let size = |lines: &[Vec<String>]| lines.iter().map(Vec::len).sum();
                scores(lcs::union(&reference, &answer), size(&answer), size(&reference))
            }
        }
    }
}

impl TextMetric for Rouge {
    fn metric(&self) -> Metric {
        Metric::higher_is_better(match self.kind {
            RougeKind::N(n) => format!("rouge{}", n.max(1)),
            RougeKind::L => "rougeL".to_owned(),
            RougeKind::Lsum => "rougeLsum".to_owned(),
        })
    }

    fn settings(&self) -> String {
        let split = if self.kind == RougeKind::Lsum { "split:newline|" } else { "" };
        format!("tok:default|stem:{}|{split}version:{ROUGE_SCORE_VERSION}", yes_no(self.stemmer))
    }

    /// F1, 1, precision, recall.
    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        let mut best = [0.0, 0.0, -1.0];
        for reference in required(&self.metric(), answer, references)? {
            let scores = self.scores(answer, reference);
            if scores[2] > best[2] {
                best = scores;
            }
        }
        let [precision, recall, f1] = best;
        Ok(vec![f1, 1.0, precision, recall])
    }

    fn score(&self, sums: &[f64]) -> f64 {
        mean(sums)
    }
}

/// Precision, recall and F1 of so many matches. 0 where a text is empty.
fn scores(matches: usize, answer: usize, reference: usize) -> [f64; 3] {
    let precision = matches as f64 / answer.max(1) as f64;
    let recall = matches as f64 / reference.max(1) as f64;
    let f1 = match precision + recall {
        0.0 => 0.0,
        sum => 2.0 * precision * recall / sum,
    };
    [precision, recall, f1]
}

fn ngrams(answer: &[String], reference: &[String], n: usize) -> [f64; 3] {
    let mut left: HashMap<&[String], usize> = HashMap::new();
    for ngram in reference.windows(n) {
        *left.entry(ngram).or_default() += 1;
    }
    let mut matches = 0;
    for ngram in answer.windows(n) {
        if let Some(count) = left.get_mut(ngram).filter(|count| **count > 0) {
            *count -= 1;
            matches += 1;
        }
    }
    scores(matches, answer.windows(n).len(), reference.windows(n).len())
}

/// The words of a text: runs of a to z and 0 to 9 after lower-casing. Words of more than three
/// letters are stemmed.
fn words(text: &str, stemmer: bool) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|character: char| !character.is_ascii_alphanumeric());
    let words = words.filter(|word| !word.is_empty());
    words
        .map(|word| match stemmer && word.len() > 3 {
            true => porter::stem(word),
            false => word.to_owned(),
        })
        .collect()
}
