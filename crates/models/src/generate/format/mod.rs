//! Answers in a given format: JSON, JSON of a schema, or text of a regular expression or a grammar.
//!
//! Before each token the grammar says which tokens may follow, and the sampler chooses among these
//! (<https://github.com/guidance-ai/llguidance>). The token that ends an answer is one of them
//! where the answer is whole.

mod keywords;
mod vocabulary;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::model::Model;
pub(crate) use vocabulary::FormatVocabulary;

/// Of a schema as JSON. What a format takes to compile grows faster than its text.
const MOST_SCHEMA_BYTES: usize = 128 << 10;
/// Of a grammar, or of all choices.
const MOST_TEXT_BYTES: usize = 32 << 10;
/// Of an expression. What it takes for a token grows as its square: a few megabytes for this much.
const MOST_REGEX_BYTES: usize = 4 << 10;
/// Of an expression in a schema, and of all of them.
const MOST_PATTERN_BYTES: usize = 2 << 10;
/// See [`MOST_PATTERN_BYTES`].
const MOST_PATTERNS_BYTES: usize = 16 << 10;
/// Schemas within a schema. Whoever compiles one goes as deep as they refer to each other.
const MOST_SCHEMAS: usize = 5000;
/// Choices. llguidance ends an answer that has more than 2000 ways to go on.
const MOST_CHOICES: usize = 1900;
/// Of the thread that compiles a grammar, for each schema: each may stand in the one before.
const STACK_BYTES_PER_SCHEMA: usize = 64 << 10;
/// The same without any.
const STACK_BYTES: usize = 8 << 20;
/// Between two parts of JSON. Without a limit a model may write blanks until its answer is full.
const WHITESPACE: &str = r"[ \n\r\t]{1,32}";

/// The format that an answer must have.
///
/// ```no_run
/// use serde_json::json;
/// use tunebook_models::{AnswerFormat, Device, GenerationConfig, Model};
/// let model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
/// let schema = json!({
///     "type": "object", "properties": { "name": { "type": "string" }, "age": { "type": "integer" } },
///     "required": ["name", "age"], "additionalProperties": false,
/// });
/// let format = Some(AnswerFormat::JsonSchema(schema));
/// let config = GenerationConfig { format, ..Default::default() };
/// let json = model.generate("Ada is 36 years old. As JSON: ", &config)?;
/// # Ok::<(), tunebook_models::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerFormat {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes (<https://json-schema.org>). Keywords that cannot be kept are
    /// refused.
    JsonSchema(Value),
    /// Text that a regular expression matches from end to end, in the syntax of the crate `regex`,
    /// without look-around.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a grammar in llguidance's variant of Lark
    /// (<https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>).
    Lark(String),
}

/// A format that is ready for a model's tokens. Clones share it.
#[derive(Clone)]
pub struct AnswerGrammar(Arc<Matcher>);

impl fmt::Debug for AnswerGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnswerGrammar")
    }
}

impl Model {
    /// Makes a format ready for this model's tokens, which takes milliseconds, with the first format
    /// of a model a fraction of a second more.
    /// [`GenerationRequest::with_grammar`](crate::GenerationRequest::with_grammar) answers by it.
    ///
    /// # Errors
    /// A schema, expression or grammar that cannot be kept, with the reason; a model without a
    /// token that ends an answer.
    pub fn answer_grammar(&self, format: &AnswerFormat) -> Result<AnswerGrammar> {
        let (grammar, schemas) = top_level(format).map_err(|problem| Error::Format { problem })?;
        let vocabulary = self.format_vocabulary()?;
        // As deep as the schema is, on a stack that is made for it.
        let lark = matches!(format, AnswerFormat::Lark(_));
        let compile = || vocabulary.compile(grammar, lark);
        let compiled = std::thread::scope(|scope| {
            let stack = STACK_BYTES + schemas * STACK_BYTES_PER_SCHEMA;
            let thread = std::thread::Builder::new().stack_size(stack);
            let compile = || catch_unwind(AssertUnwindSafe(compile));
            let Ok(running) = thread.spawn_scoped(scope, compile) else { return None };
            running.join().ok().and_then(std::result::Result::ok)
        });
        match compiled {
            Some(Ok(matcher)) => Ok(AnswerGrammar(Arc::new(matcher))),
            Some(Err(problem)) => Err(failed(&problem)),
            None => Err(failed("it could not be compiled")),
        }
    }
}

/// The grammar of a format, and how many schemas it has, one within another.
fn top_level(format: &AnswerFormat) -> std::result::Result<(TopLevelGrammar, usize), String> {
    let by_schema = |mut schema: Value| {
        if let Value::Object(keywords) = &mut schema {
            let options = json!({ "whitespace_pattern": WHITESPACE });
            keywords.insert("x-guidance".to_owned(), options);
        }
        TopLevelGrammar::from_json_schema(schema)
    };
    let (bytes, most) = match format {
        AnswerFormat::JsonObject => (0, 0),
        AnswerFormat::JsonSchema(schema) => (schema.to_string().len(), MOST_SCHEMA_BYTES),
        AnswerFormat::Regex(text) => (text.len(), MOST_REGEX_BYTES),
        AnswerFormat::Lark(text) => (text.len(), MOST_TEXT_BYTES),
        AnswerFormat::Choice(texts) => (texts.iter().map(String::len).sum(), MOST_TEXT_BYTES),
    };
    if bytes > most {
        return Err(format!("it has {bytes} bytes, expected at most {most}"));
    }
    let mut schemas = 0;
    let grammar = match format {
        AnswerFormat::JsonObject => by_schema(json!({ "type": "object" })),
        AnswerFormat::JsonSchema(schema) => {
            let size = keywords::check(schema, "#")?;
            schemas = size.schemas;
            for (what, found, most) in [
                ("schemas", schemas, MOST_SCHEMAS),
                ("bytes in one pattern", size.longest_pattern, MOST_PATTERN_BYTES),
                ("bytes in its patterns", size.patterns, MOST_PATTERNS_BYTES),
            ] {
                if found > most {
                    return Err(format!(
                        "the schema holds {found} {what}, expected at most {most}"
                    ));
                }
            }
            by_schema(schema.clone())
        }
        AnswerFormat::Regex(regex) => TopLevelGrammar::from_regex(regex),
        AnswerFormat::Choice(texts) if texts.len() > MOST_CHOICES => {
            let found = texts.len();
            return Err(format!("there are {found} choices, expected at most {MOST_CHOICES}"));
        }
        AnswerFormat::Choice(texts) if texts.iter().all(String::is_empty) => {
            return Err("there is no text to choose".to_owned());
        }
        AnswerFormat::Choice(texts) => {
            // Lark writes texts as JSON does, but for a character that JSON leaves as it is.
            let literal = |text: &String| json!(text).to_string().replace('\u{7f}', r"\u007f");
            let texts: Vec<String> = texts.iter().map(literal).collect();
            TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
        }
        AnswerFormat::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
    };
    Ok((grammar, schemas))
}

/// The first lines of what llguidance says.
fn failed(problem: &str) -> Error {
    const MOST_CHARACTERS: usize = 400;
    let problem = problem.split("<non-verbose/>").next().unwrap_or_default();
    let problem = problem.split("<backtrace>").next().unwrap_or_default();
    if problem.starts_with("NoExtension") {
        let problem = "no answer is of this format, or none that the model has tokens for";
        return Error::Format { problem: problem.to_owned() };
    }
    let mut short: String = problem.trim().chars().take(MOST_CHARACTERS).collect();
    if short.len() < problem.trim().len() {
        short.push('…');
    }
    Error::Format { problem: short }
}

/// How far an answer has come in its format. Clones share what they have found out of the format's
/// expressions.
#[derive(Clone)]
pub(super) struct FormatState(Matcher);

impl FormatState {
    pub(super) fn new(grammar: &AnswerGrammar) -> Self {
        Self(grammar.0.deep_clone())
    }

    /// Rules out the tokens that may not follow: their logits become −∞.
    ///
    /// # Errors
    /// What the grammar asks for cannot be computed within its limits, or no token can follow.
    pub(super) fn rule_out(&mut self, logits: &mut [f32]) -> Result<()> {
        let mask = self.0.compute_mask().map_err(|error| failed(&error.to_string()))?;
        let words = mask.as_slice().iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word & (1 << bit) == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    /// Takes the next token. `true`: the answer is whole, and nothing can follow.
    ///
    /// # Errors
    /// The token may not follow.
    pub(super) fn take(&mut self, id: u32) -> Result<bool> {
        self.0.consume_token(id).map_err(|error| failed(&error.to_string()))?;
        Ok(self.0.is_stopped())
    }
}
