//! What is measured, and how.

use std::path::PathBuf;
use std::sync::Arc;

use tunebook_models::GenerationConfig;

use crate::metric::{ExactMatch, TextMetric};
use crate::run::example::EvalExample;
use crate::{Error, Result};

/// The names of what is measured by itself.
const RESERVED: [&str; 5] = ["loss", "perplexity", "token_accuracy", "accuracy", "accuracy_norm"];

/// What an evaluation measures. The loss, perplexity and token accuracy of rows with a reference
/// always are.
#[derive(Clone)]
pub struct EvaluationArgs {
    /// Measures of generated answers. Default: [`ExactMatch`]. Empty: nothing is generated.
    pub metrics: Vec<Arc<dyn TextMetric>>,
    /// A closed set of answers. The likeliest is the model's answer, and nothing is generated. Of
    /// each row with references one must be a label, letter by letter. Default: none.
    pub labels: Vec<String>,
    /// Labels less likely than the likeliest by more than this, in nats, need not be scored to their
    /// ends; their probabilities count as those of their beginnings. Default: 7, a thousandth.
    pub label_margin: f64,
    /// Solved examples that stand before each prompt, as turns or as text; none of the rows that are
    /// judged. Default: none.
    pub few_shot: Vec<EvalExample>,
    /// How answers are generated. Default: greedily.
    pub generation: GenerationConfig,
    /// The most tokens of an answer; `None`: twice the longest reference's and 8, at most 512.
    /// Default: `None`.
    pub max_new_tokens: Option<usize>,
    /// Columns by whose values scores are given, too; `class` is the right answer and `length` a third
    /// of the rows by the tokens of their prompts, where no column has that name. Default: none.
    pub slices: Vec<String>,
    /// A column whose rows belong together and count as one for intervals and tests: a document, a
    /// customer, a cluster of near-duplicates. Default: none; rows that ask and expect the same count
    /// as one then.
    pub cluster: Option<String>,
    /// The most rows. The rows are cut into so many stretches of equal length and one is taken from
    /// each, always the same: rows that are sorted by class or date are judged in all their parts.
    /// Default: all.
    pub max_rows: Option<usize>,
    /// Of intervals. Default: 0.95.
    pub level: f64,
    /// Where answers are kept as they come, so that an evaluation goes on where it stopped; `None`:
    /// nowhere. Default: `out/evaluations`.
    pub output_dir: Option<PathBuf>,
}

impl Default for EvaluationArgs {
    fn default() -> Self {
        Self {
            metrics: vec![Arc::new(ExactMatch::default())],
            labels: Vec::new(),
            label_margin: 7.0,
            few_shot: Vec::new(),
            generation: GenerationConfig::default(),
            max_new_tokens: None,
            slices: Vec::new(),
            cluster: None,
            max_rows: None,
            level: 0.95,
            output_dir: Some(PathBuf::from("out/evaluations")),
        }
    }
}

impl std::fmt::Debug for EvaluationArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let metrics: Vec<String> = self.metrics.iter().map(|m| m.metric().name).collect();
        f.debug_struct("EvaluationArgs")
            .field("metrics", &metrics)
            .field("labels", &self.labels.len())
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl EvaluationArgs {
    /// Refuses values that cannot work.
    ///
    /// # Errors
    /// With the field, its value and the range.
    pub fn validate(&self) -> Result<()> {
        let refuse =
            |field, value: String, expected| Err(Error::Setting { field, value, expected });
        if !(self.level > 0.0 && self.level < 1.0) {
            return refuse("EvaluationArgs.level", self.level.to_string(), "between 0 and 1");
        }
        if self.max_rows == Some(0) {
            let expected = "at least 1, or None for all rows";
            return refuse("EvaluationArgs.max_rows", "0".into(), expected);
        }
        if self.max_new_tokens == Some(0) {
            return refuse("EvaluationArgs.max_new_tokens", "0".into(), "at least 1");
        }
        if self.label_margin.is_nan() || self.label_margin < 0.0 {
            let margin = self.label_margin.to_string();
            return refuse("EvaluationArgs.label_margin", margin, "at least 0");
        }
        if self.labels.len() == 1 {
            return refuse("EvaluationArgs.labels", "one label".into(), "at least two, or none");
        }
        let mut seen = std::collections::HashSet::new();
        if let Some(label) = self.labels.iter().find(|label| !seen.insert(*label)) {
            return refuse("EvaluationArgs.labels", format!("{label:?} twice"), "each label once");
        }
        if self.labels.iter().any(|label| label.trim().is_empty()) {
            return refuse("EvaluationArgs.labels", "an empty label".into(), "labels with text");
        }
        if self.generation.num_return_sequences != 1 {
            return refuse(
                "EvaluationArgs.generation.num_return_sequences",
                self.generation.num_return_sequences.to_string(),
                "1, since each row has one answer",
            );
        }
        let mut names = std::collections::HashSet::new();
        for metric in &self.metrics {
            let name = metric.metric().name;
            if RESERVED.contains(&name.as_str()) {
                return refuse(
                    "EvaluationArgs.metrics",
                    format!("a metric named `{name}`"),
                    "another name: this one is measured of every evaluation",
                );
            }
            if !names.insert(name.clone()) {
                let expected = "each name once (`metric.named(\"…\")` gives another)";
                return refuse("EvaluationArgs.metrics", format!("{name} twice"), expected);
            }
        }
        Ok(self.generation.validate()?)
    }
}
