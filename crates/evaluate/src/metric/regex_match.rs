//! Answers by a regular expression.

use regex::Regex;
use serde::{Deserialize, Serialize};
use tunebook_tune::Metric;

use super::{ExactMatch, Normalise, TextMetric, hit, mean, required};
use crate::{Error, Result};

/// The match that counts, where a pattern matches several times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occurrence {
    /// The first one.
    #[default]
    First,
    /// The last one: models often correct themselves.
    Last,
}

/// The share of answers in which a pattern finds a reference, or anything at all.
///
/// [`extract`](Self::extract) takes a part of the answer and compares it with the references, as
/// lm-evaluation-harness does with its `regex` filter: the pattern's first group that took part, or
/// the whole match if it has no groups. [`found`](Self::found) needs no references: an answer is a
/// hit if the pattern matches. The syntax is that of the [`regex`] crate.
///
/// ```
/// use tunebook_evaluate::metric::{Occurrence, RegexMatch, TextMetric};
///
/// let metric = RegexMatch::extract(r"answer is (\w+)")?.occurrence(Occurrence::Last);
/// let answer = "The answer is B. No, the answer is C.";
/// assert_eq!(metric.row_score(answer, &["C".into()])?, 1.0);
/// assert_eq!(RegexMatch::found(r"^\d{4}-\d\d-\d\d$")?.row_score("2024-02-30", &[])?, 1.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct RegexMatch {
    pattern: Regex,
    occurrence: Occurrence,
    /// The comparison of the extracted part; `None` if a match is enough.
    compare: Option<ExactMatch>,
}

impl RegexMatch {
    /// Compares what the pattern extracts with the references. An answer without a match is a miss.
    ///
    /// # Errors
    ///
    /// If the pattern is no regular expression.
    pub fn extract(pattern: &str) -> Result<Self> {
        let compare = Some(ExactMatch::default());
        Ok(Self { pattern: compile(pattern)?, occurrence: Occurrence::First, compare })
    }

    /// Asks whether the pattern matches anywhere in the answer.
    ///
    /// # Errors
    ///
    /// If the pattern is no regular expression.
    pub fn found(pattern: &str) -> Result<Self> {
        Ok(Self { pattern: compile(pattern)?, occurrence: Occurrence::First, compare: None })
    }

    /// The same with another choice among several matches. Default: the first.
    #[must_use]
    pub fn occurrence(self, occurrence: Occurrence) -> Self {
        Self { occurrence, ..self }
    }

    /// The same with other rules for the comparison of the extracted part with the references.
    #[must_use]
    pub fn normalise(self, normalise: Normalise) -> Self {
        Self { compare: self.compare.map(|_| ExactMatch { normalise }), ..self }
    }

    /// The part of the answer that counts.
    fn part<'a>(&self, answer: &'a str) -> Option<&'a str> {
        let mut matches = self.pattern.captures_iter(answer);
        let captures = match self.occurrence {
            Occurrence::First => matches.next(),
            Occurrence::Last => matches.last(),
        }?;
        let group = captures.iter().skip(1).flatten().next();
        group.or_else(|| captures.get(0)).map(|part| part.as_str())
    }
}

impl TextMetric for RegexMatch {
    fn metric(&self) -> Metric {
        Metric::higher_is_better("regex_match")
    }

    fn settings(&self) -> String {
        let pattern = self.pattern.as_str().escape_debug().to_string().replace('|', r"\x7c");
        let rules = self.compare.map_or_else(
            || "compare:no".to_owned(),
            |compare| {
                let occurrence = match self.occurrence {
                    Occurrence::First => "first",
                    Occurrence::Last => "last",
                };
                format!("match:{occurrence}|{}", compare.normalise.settings())
            },
        );
        format!("pattern:{pattern}|{rules}|version:1")
    }

    fn statistics(&self, answer: &str, references: &[String]) -> Result<Vec<f64>> {
        let Some(compare) = self.compare else {
            return Ok(hit(self.pattern.is_match(answer)));
        };
        let references = required(&self.metric(), answer, references)?;
        Ok(hit(self.part(answer).is_some_and(|part| compare.equals(part, references))))
    }

    fn score(&self, sums: &[f64]) -> f64 {
        mean(sums)
    }

    fn is_rate(&self) -> bool {
        true
    }

    fn needs_references(&self) -> bool {
        self.compare.is_some()
    }
}

fn compile(pattern: &str) -> Result<Regex> {
    Regex::new(pattern)
        .map_err(|error| Error::Pattern { pattern: pattern.to_owned(), reason: error.to_string() })
}
