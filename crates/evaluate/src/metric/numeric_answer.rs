//! Answers that are numbers.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use super::{TextMetric, hit, mean, required};
use crate::{Error, Result};

/// A number: digits, in groups of three or not, with a fraction or not, and an exponent.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+")
        .expect("the pattern is a constant")
});

/// What stands before the answer in the solutions of GSM8K.
const GSM8K: &str = "####";

/// The share of answers whose number equals that of one of their references.
///
/// The number of a text is the first one after the last `####`, as in the solutions of GSM8K, or
/// the last one where there is no `####`. Thousands may be separated by commas (1,000 = 1000), and
/// signs of currencies and of per cent are ignored (`$5` = `5`, `50%` = `50`). A hyphen between a
/// letter or digit and a number is no minus: the number of `3-4` is 4. An answer without a number
/// is a miss. Fractions (`1/2`) and written numbers (`two`) are not understood.
///
/// Without a tolerance, numbers are compared digit by digit, however long they are: 7.0 = 7.
///
/// ```
/// use tunebook_evaluate::metric::{NumericAnswer, TextMetric};
///
/// let references = ["48 / 2 = 24, and 48 + 24 = 72.\n#### 72".to_owned()];
/// let metric = NumericAnswer::default();
/// assert_eq!(metric.row_score("She has sold 72 clips in all.", &references)?, 1.0);
/// assert_eq!(metric.row_score("72 clips in 2 months", &references)?, 0.0);
/// assert_eq!(metric.row_score("It costs $1,000.00.", &["1000".into()])?, 1.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NumericAnswer {
    /// The largest difference that counts as equal, in the unit of the numbers. Default: 0.
    pub tolerance: f64,
}

impl TextMetric for NumericAnswer {
    fn metric(&self) -> Metric {
        Metric::higher_is_better("numeric_answer")
    }

    fn settings(&self) -> String {
        format!("number:last|tolerance:{}|version:1", self.tolerance)
    }

    /// # Errors
    ///
    /// If there is no reference, or one holds no number.
    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        let metric = self.metric();
        if !(self.tolerance >= 0.0 && self.tolerance.is_finite()) {
            return Err(Error::Setting {
                field: "NumericAnswer.tolerance",
                value: self.tolerance.to_string(),
                expected: "a number, at least 0",
            });
        }
        let number = Number::of(answer);
        let mut equal = false;
        for reference in required(&metric, answer, references)? {
            let Some(expected) = Number::of(reference) else {
                return Err(Error::Reference {
                    metric: metric.name,
                    reference: reference.clone(),
                    problem: "holds no number",
                });
            };
            equal |= number.as_ref().is_some_and(|found| found.equals(&expected, self.tolerance));
        }
        Ok(hit(equal))
    }

    fn score(&self, sums: &[f64]) -> f64 {
        mean(sums)
    }

    fn is_rate(&self) -> bool {
        true
    }
}

/// The number of a text.
struct Number {
    value: f64,
    /// Sign, digits and fraction without needless zeros; `None` with an exponent.
    digits: Option<String>,
}

impl Number {
    fn of(text: &str) -> Option<Self> {
        let (text, found) = match text.rfind(GSM8K) {
            Some(place) => {
                let text = &text[place + GSM8K.len()..];
                (text, NUMBER.find(text)?)
            }
            None => (text, NUMBER.find_iter(text).last()?),
        };
        let negative = is_negative(&text[..found.start()]);
        let plain = found.as_str().replace(',', "");
        // A number beyond all doubles is compared digit by digit, and with an exponent not at all.
        let value: f64 = plain
            .parse()
            .ok()
            .filter(|value: &f64| value.is_finite() || !plain.contains(['e', 'E']))?;
        let value = if negative { -value } else { value };
        let digits = (!plain.contains(['e', 'E'])).then(|| {
            let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
            let whole = whole.trim_start_matches('0');
            let fraction = fraction.trim_end_matches('0');
            let sign =
                if negative && !(whole.is_empty() && fraction.is_empty()) { "-" } else { "" };
            format!("{sign}{whole}.{fraction}")
        });
        Some(Self { value, digits })
    }

    fn equals(&self, other: &Self, tolerance: f64) -> bool {
        match (&self.digits, &other.digits) {
            (Some(left), Some(right)) if left == right => true,
            (Some(_), Some(_)) if tolerance == 0.0 => false,
            // 1.1 is within 0.1 of 1, though its double is a little more.
            _ => {
                let apart = (self.value - other.value).abs();
                self.value == other.value
                    || apart <= tolerance + 4.0 * f64::EPSILON * self.value.abs().max(1.0)
            }
        }
    }
}

/// The signs of currencies that may stand between a minus and its number.
const CURRENCIES: [char; 6] = ['$', '€', '£', '¥', '₹', '฿'];

/// Whether a minus belongs to the number that follows this text.
fn is_negative(before: &str) -> bool {
    let before = before.trim_end_matches(CURRENCIES);
    let Some(before) = before.strip_suffix(['-', '\u{2212}']) else { return false };
    let before = before.trim_end_matches(CURRENCIES);
    !before.ends_with(|character: char| character.is_alphanumeric() || character == ')')
}
