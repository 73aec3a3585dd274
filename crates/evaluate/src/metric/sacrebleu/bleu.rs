//! BLEU.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use super::tokenizer::BleuTokenizer;
use super::{SACREBLEU_VERSION, case};
use crate::Result;
use crate::metric::{TextMetric, python, required, yes_no};

/// The treatment of orders without a match in [`Bleu`] (Chen and Cherry 2014,
/// <https://aclanthology.org/W14-3346>).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Smoothing {
    /// The first order without a match counts as half a match, the next one as a quarter, …
    #[default]
    Exp,
    /// An order without a match counts as so many matches. sacreBLEU's default: 0.1.
    Floor(f64),
    /// So much is added to matches and totals of the orders from 2. sacreBLEU's default: 1.
    AddK(f64),
    /// An order without a match makes the score 0.
    None,
}

/// BLEU, from 0 to 100: how many n-grams of the answer occur in the references (Papineni et al.
/// 2002, <https://aclanthology.org/P02-1040>), as sacreBLEU computes it.
///
/// ```text
/// 100 · BP · exp(Σ log pₙ / N),  pₙ = matched / all n-grams of the answers, n = 1 … N
/// BP = 1 if the answers are longer than their references, else exp(1 - references / answers)
/// ```
///
/// The logarithms are of sums over all rows: the score of a set is not the mean of its rows'
/// scores. For scores of single rows turn [`effective_order`](Self::effective_order) on, else an
/// answer of less than four tokens gets 0.
///
/// ```
/// use tunebook_evaluate::metric::{Bleu, BleuTokenizer, TextMetric};
///
/// let bleu = Bleu { effective_order: true, ..Default::default() };
/// assert!(bleu.row_score("Hello, world!", &["Hello, world!".into()])? > 99.99);
/// let thai = Bleu { tokenizer: BleuTokenizer::Char, ..Default::default() };
/// assert!(thai.row_score("สวัสดีครับ", &["สวัสดีค่ะ".into()])? > 60.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bleu {
    /// Default: 13a.
    pub tokenizer: BleuTokenizer,
    /// Default: exponential.
    pub smoothing: Smoothing,
    /// Leave out the orders for which the answers are too short. Default: no.
    pub effective_order: bool,
    /// Lower-case answers and references. Default: no.
    pub lowercase: bool,
    /// The longest n-grams, in tokens; 0 counts as 1. Default: 4.
    pub max_order: usize,
}

impl Default for Bleu {
    fn default() -> Self {
        Self {
            tokenizer: BleuTokenizer::default(),
            smoothing: Smoothing::default(),
            effective_order: false,
            lowercase: false,
            max_order: 4,
        }
    }
}

impl Bleu {
    fn orders(&self) -> usize {
        self.max_order.max(1)
    }

    fn tokenized(&self, text: &str) -> String {
        let lower = self.lowercase.then(|| text.to_lowercase());
        let text = python::rstrip(lower.as_deref().unwrap_or(text));
        self.tokenizer.apply(text).into_owned()
    }
}

impl TextMetric for Bleu {
    fn metric(&self) -> Metric {
        Metric::higher_is_better("bleu")
    }

    fn settings(&self) -> String {
        let smooth = match self.smoothing {
            Smoothing::Exp => "exp".to_owned(),
            Smoothing::Floor(value) => format!("floor[{value:.2}]"),
            Smoothing::AddK(value) => format!("add-k[{value:.2}]"),
            Smoothing::None => "none".to_owned(),
        };
        // sacreBLEU's signature is silent about the order; it stands here where it is not 4.
        let order = match self.orders() {
            4 => String::new(),
            order => format!("order:{order}|"),
        };
        format!(
            "case:{}|eff:{}|tok:{}|smooth:{smooth}|{order}version:{SACREBLEU_VERSION}",
            case(self.lowercase),
            yes_no(self.effective_order),
            self.tokenizer.name(),
        )
    }

    /// Length of the answer, of the reference of the closest length, matched n-grams by order, all
    /// n-grams by order.
    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        let references = required(&self.metric(), answer, references)?;
        let orders = self.orders();
        let answer = self.tokenized(answer);
        let tokens: Vec<_> = python::split(&answer).collect();
        let references: Vec<_> = references.iter().map(|text| self.tokenized(text)).collect();
        let references: Vec<Vec<_>> =
            references.iter().map(|text| python::split(text).collect()).collect();

        let length = tokens.len();
        let closest = references.iter().map(Vec::len).min_by_key(|&of| (length.abs_diff(of), of));
        let mut matched = vec![0.0; orders];
        let mut totals = vec![0.0; orders];
        for n in 1..=orders {
            let mut most: HashMap<&[&str], usize> = HashMap::new();
            for reference in &references {
                for (ngram, count) in counts(reference, n) {
                    let most = most.entry(ngram).or_default();
                    *most = count.max(*most);
                }
            }
            for (ngram, count) in counts(&tokens, n) {
                totals[n - 1] += count as f64;
                matched[n - 1] += most.get(ngram).map_or(0, |&most| count.min(most)) as f64;
            }
        }
        let mut statistics = vec![length as f64, closest.unwrap_or_default() as f64];
        statistics.append(&mut matched);
        statistics.append(&mut totals);
        Ok(statistics)
    }

    fn score(&self, sums: &[f64]) -> f64 {
        let orders = self.orders();
        if sums.len() != 2 + 2 * orders {
            return 0.0;
        }
        let (lengths, counts) = sums.split_at(2);
        let (matched, totals) = counts.split_at(orders);
        let (answers, references) = (lengths[0], lengths[1]);
        if matched.iter().all(|&matched| matched == 0.0) {
            return 0.0;
        }
        // Without a token in the answers nothing matched, so the quotient exists.
        let brevity = if answers < references { (1.0 - references / answers).exp() } else { 1.0 };

        let mut precisions = vec![0.0; orders];
        let mut order = orders;
        let mut halves = 1.0;
        for (n, precision) in precisions.iter_mut().enumerate() {
            let add = match self.smoothing {
                Smoothing::AddK(value) if n > 0 => value,
                _ => 0.0,
            };
            let (matched, total) = (matched[n] + add, totals[n] + add);
            if total == 0.0 {
                break;
            }
            if self.effective_order {
                order = n + 1;
            }
            *precision = match self.smoothing {
                _ if matched != 0.0 => 100.0 * matched / total,
                Smoothing::Exp => {
                    halves *= 2.0;
                    100.0 / (halves * total)
                }
                Smoothing::Floor(value) => 100.0 * value / total,
                Smoothing::AddK(_) | Smoothing::None => 0.0,
            };
        }
        let logarithms: f64 = precisions[..order].iter().map(|precision| precision.ln()).sum();
        brevity * (logarithms / order as f64).exp()
    }
}

/// The n-grams of the tokens, each with its number.
fn counts<'t>(tokens: &'t [&'t str], n: usize) -> HashMap<&'t [&'t str], usize> {
    let mut counts = HashMap::new();
    for ngram in tokens.windows(n) {
        *counts.entry(ngram).or_default() += 1;
    }
    counts
}
