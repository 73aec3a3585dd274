//! Answers that are JSON.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tunebook_tune::Metric;

use super::{TextMetric, hit, mean, yes_no};
use crate::Result;

/// The share of answers that are one JSON value (RFC 8259), white space around it aside.
///
/// Needs no references. Values nested deeper than 128 levels count as invalid.
///
/// ```
/// use tunebook_evaluate::metric::{JsonValid, TextMetric};
///
/// assert_eq!(JsonValid::default().row_score(r#"{"name": "Ada"}"#, &[])?, 1.0);
/// assert_eq!(JsonValid::default().row_score("{name: 'Ada'}", &[])?, 0.0);
/// let fenced = JsonValid { fenced: true };
/// assert_eq!(fenced.row_score("```json\n[1, 2]\n```", &[])?, 1.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JsonValid {
    /// Accept an answer that is one Markdown code block with JSON in it. Default: no.
    pub fenced: bool,
}

impl TextMetric for JsonValid {
    fn metric(&self) -> Metric {
        Metric::higher_is_better("json_valid")
    }

    fn settings(&self) -> String {
        format!("fenced:{}|version:1", yes_no(self.fenced))
    }

    fn statistics(&self, answer: &str, _references: &[String]) -> Result<Vec<f64>> {
        // By its syntax alone: a number beyond all doubles is JSON, too.
        let text = inner(answer, self.fenced);
        Ok(hit(serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()))
    }

    fn score(&self, sums: &[f64]) -> f64 {
        mean(sums)
    }

    fn is_rate(&self) -> bool {
        true
    }

    fn needs_references(&self) -> bool {
        false
    }
}

/// The JSON value that an answer is.
pub(super) fn parse(answer: &str, fenced: bool) -> Option<Value> {
    serde_json::from_str(inner(answer, fenced)).ok()
}

fn inner(answer: &str, fenced: bool) -> &str {
    let inner = if fenced { unfence(answer) } else { None };
    inner.unwrap_or(answer)
}

/// The inside of the Markdown code block that the whole text is.
fn unfence(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("```")?.strip_suffix("```")?;
    inner.split_once('\n').map(|(_language, inner)| inner)
}
