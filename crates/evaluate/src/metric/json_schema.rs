//! Answers that obey a JSON schema.

use serde_json::Value;
use tunebook_tune::Metric;

use super::json_valid::parse;
use super::{TextMetric, hit, mean, yes_no};
use crate::{Error, Result};

/// The share of answers that are JSON and obey a schema (<https://json-schema.org>).
///
/// The draft is the one that `$schema` names, else 2020-12. Needs no references. The schema is read
/// once and must be complete: nothing is fetched from the network or from files, so a `$ref` must
/// point into the schema itself or at a draft's own meta-schema.
///
/// ```
/// use tunebook_evaluate::metric::{JsonSchema, TextMetric};
///
/// let metric = JsonSchema::new(
///     r#"{"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}"#,
/// )?;
/// assert_eq!(metric.row_score(r#"{"city": "Oslo"}"#, &[])?, 1.0);
/// assert_eq!(metric.row_score(r#"{"city": 5}"#, &[])?, 0.0);
/// assert_eq!(metric.row_score("Oslo", &[])?, 0.0);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct JsonSchema {
    schema: Value,
    validator: jsonschema::Validator,
    fenced: bool,
}

impl JsonSchema {
    /// Checks answers against a schema, given as JSON.
    ///
    /// # Errors
    ///
    /// If the text is no JSON, no schema of its draft, or refers to something outside itself.
    pub fn new(schema: &str) -> Result<Self> {
        let refuse = |reason: String| Error::Schema { reason };
        let schema: Value =
            serde_json::from_str(schema).map_err(|error| refuse(error.to_string()))?;
        let validator = jsonschema::options()
            .with_retriever(NoRetriever)
            .build(&schema)
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Self { schema, validator, fenced: false })
    }

    /// The same, and accepts an answer that is one Markdown code block with JSON in it.
    #[must_use]
    pub fn fenced(self) -> Self {
        Self { fenced: true, ..self }
    }
}

impl TextMetric for JsonSchema {
    fn metric(&self) -> Metric {
        Metric::higher_is_better("json_schema")
    }

    fn settings(&self) -> String {
        let schema = self.schema.to_string().replace('|', r"\u007c");
        format!("schema:{schema}|fenced:{}|version:1", yes_no(self.fenced))
    }

    fn statistics(&self, answer: &str, _references: &[String]) -> Result<Vec<f64>> {
        let value = parse(answer, self.fenced);
        Ok(hit(value.is_some_and(|value| self.validator.is_valid(&value))))
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

/// Refuses whatever a schema refers to outside itself.
struct NoRetriever;

impl jsonschema::Retrieve for NoRetriever {
    fn retrieve(
        &self,
        uri: &jsonschema::Uri<String>,
    ) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        Err(format!("`{uri}` lies outside the schema; put its content under `$defs`").into())
    }
}
