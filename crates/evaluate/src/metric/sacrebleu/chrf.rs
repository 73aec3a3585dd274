//! chrF and chrF++.

use std::collections::HashMap;
use std::hash::Hash;

use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use super::{SACREBLEU_VERSION, case};
use crate::Result;
use crate::metric::{TextMetric, python, required, yes_no};

/// What a precision or recall without n-grams is, if [`Chrf::eps_smoothing`] is on.
const EPSILON: f64 = 1e-16;

/// chrF, from 0 to 100: the F-score of n-grams of characters, and of words for chrF++ (Popović
/// 2015, <https://aclanthology.org/W15-3049>, and 2017, <https://aclanthology.org/W17-4770>), as
/// sacreBLEU computes it.
///
/// ```text
/// 100 · (1 + β²) · P · R / (β² · P + R)
/// P, R = means over orders of matched / answer's and matched / reference's n-grams
/// ```
///
/// Of several references the one with the best score counts. Needs no tokenizer, so it suits
/// languages without spaces between words.
///
/// ```
/// use tunebook_evaluate::metric::{Chrf, TextMetric};
///
/// assert_eq!(Chrf::default().metric().name, "chrf");
/// assert_eq!(Chrf::plus_plus().metric().name, "chrf++");
/// let score = Chrf::default().row_score("a translation", &["the translations".into()])?;
/// assert!((70.0..85.0).contains(&score), "{score}");
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Chrf {
    /// The longest n-grams of characters. Default: 6.
    pub char_order: usize,
    /// The longest n-grams of words: 0 for chrF, 2 for chrF++. Default: 0.
    pub word_order: usize,
    /// The weight of recall: so many times as important as precision. Default: 2.
    pub beta: u32,
    /// Lower-case answers and references. Default: no.
    pub lowercase: bool,
    /// Count white space among the characters. Default: no.
    pub whitespace: bool,
    /// Average the F-scores of all orders, as `chrF++.py`, NLTK and Moses do, in place of precision
    /// and recall of the orders that both texts have. Default: no.
    pub eps_smoothing: bool,
}

impl Default for Chrf {
    fn default() -> Self {
        Self {
            char_order: 6,
            word_order: 0,
            beta: 2,
            lowercase: false,
            whitespace: false,
            eps_smoothing: false,
        }
    }
}

impl Chrf {
    /// chrF++: n-grams of one and two words count, too.
    #[must_use]
    pub fn plus_plus() -> Self {
        Self { word_order: 2, ..Self::default() }
    }

    /// The number of orders, of characters and of words.
    fn orders(&self) -> usize {
        self.char_order + self.word_order
    }
}

impl TextMetric for Chrf {
    fn metric(&self) -> Metric {
        let beta = if self.beta == 2 { String::new() } else { self.beta.to_string() };
        Metric::higher_is_better(format!("chrf{beta}{}", "+".repeat(self.word_order)))
    }

    fn settings(&self) -> String {
        format!(
            "case:{}|eff:{}|nc:{}|nw:{}|space:{}|version:{SACREBLEU_VERSION}",
            case(self.lowercase),
            yes_no(!self.eps_smoothing),
            self.char_order,
            self.word_order,
            yes_no(self.whitespace),
        )
    }

    /// For each order, of characters and then of words: n-grams of the answer, of the reference,
    /// of both.
    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        let references = required(&self.metric(), answer, references)?;
        let answer = Text::new(self, answer);
        let mut best: Option<(f64, Vec<f64>)> = None;
        for reference in references {
            let statistics = answer.beside(&Text::new(self, reference), self);
            let score = self.score(&statistics);
            if best.as_ref().is_none_or(|(best, _)| score > *best) {
                best = Some((score, statistics));
            }
        }
        Ok(best.map(|(_, statistics)| statistics).unwrap_or_default())
    }

    fn score(&self, sums: &[f64]) -> f64 {
        let factor = f64::from(self.beta) * f64::from(self.beta);
        let (mut smoothed, mut precisions, mut recalls, mut orders) = (0.0, 0.0, 0.0, 0.0);
        for order in sums.chunks_exact(3) {
            let (answer, reference, both) = (order[0], order[1], order[2]);
            let precision = if answer > 0.0 { both / answer } else { EPSILON };
            let recall = if reference > 0.0 { both / reference } else { EPSILON };
            let weighted = factor * precision + recall;
            smoothed += if weighted > 0.0 {
                (1.0 + factor) * precision * recall / weighted
            } else {
                EPSILON
            };
            if answer > 0.0 && reference > 0.0 {
                precisions += precision;
                recalls += recall;
                orders += 1.0;
            }
        }
        if self.eps_smoothing {
            return 100.0 * smoothed / self.orders().max(1) as f64;
        }
        if precisions + recalls == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precisions / orders, recalls / orders);
        100.0 * ((1.0 + factor) * precision * recall / (factor * precision + recall))
    }
}

/// A text as characters and, for chrF++, as words.
struct Text {
    characters: Vec<char>,
    words: Vec<String>,
}

impl Text {
    fn new(chrf: &Chrf, text: &str) -> Self {
        let lower = chrf.lowercase.then(|| text.to_lowercase());
        let text = lower.as_deref().unwrap_or(text);
        let kept = |character: &char| chrf.whitespace || !python::is_space(*character);
        let words = if chrf.word_order > 0 { words(text) } else { Vec::new() };
        Self { characters: text.chars().filter(kept).collect(), words }
    }

    /// The statistics of this answer and a reference.
    fn beside(&self, reference: &Self, chrf: &Chrf) -> Vec<f64> {
        let mut statistics = Vec::with_capacity(3 * chrf.orders());
        for n in 1..=chrf.char_order {
            statistics.extend(matches(&self.characters, &reference.characters, n));
        }
        for n in 1..=chrf.word_order {
            statistics.extend(matches(&self.words, &reference.words, n));
        }
        statistics
    }
}

/// The words of a text, one punctuation mark apart at the end or else at the start of each: `(hi)`
/// becomes `(hi` and `)`.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for word in python::split(text) {
        let (mut first, mut last) = (word.chars(), word.chars());
        match (first.next(), last.next_back()) {
            (Some(_), Some(mark)) if !last.as_str().is_empty() && python::is_punctuation(mark) => {
                words.extend([last.as_str().to_owned(), mark.to_string()]);
            }
            (Some(mark), Some(_)) if !last.as_str().is_empty() && python::is_punctuation(mark) => {
                words.extend([mark.to_string(), first.as_str().to_owned()]);
            }
            _ => words.push(word.to_owned()),
        }
    }
    words
}

/// The n-grams of the answer (none if the reference has none), of the reference, of both.
fn matches<T: Eq + Hash>(answer: &[T], reference: &[T], n: usize) -> [f64; 3] {
    let (answer, reference) = (answer.windows(n), reference.windows(n));
    let in_reference = reference.len();
    let in_answer = if in_reference == 0 { 0 } else { answer.len() };
    let mut left: HashMap<&[T], usize> = HashMap::with_capacity(in_reference);
    for ngram in reference {
        *left.entry(ngram).or_default() += 1;
    }
    let mut both = 0;
    for ngram in answer {
        if let Some(count) = left.get_mut(ngram).filter(|count| **count > 0) {
            *count -= 1;
            both += 1;
        }
    }
    [in_answer as f64, in_reference as f64, f64::from(both)]
}
