//! What is judged: prompts with their right answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tunebook_models::Message;

use crate::Result;

/// What the model is asked with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvalPrompt {
    /// Turns for the chat template, up to the answer.
    Conversation(Vec<Message>),
    /// A text that is continued as it stands.
    Text(String),
}

/// One row to be judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvalExample {
    /// What the model is asked with. An empty text: nothing is asked, only the loss is measured.
    pub prompt: EvalPrompt,
    /// The right answers. The loss is that of the first.
    #[serde(default)]
    pub references: Vec<String>,
    /// The answers to choose from, of a question with its own
    /// ([`EvaluationArgs::labels`](crate::EvaluationArgs::labels) has those of all).
    #[serde(default)]
    pub choices: Vec<String>,
    /// Values by which rows can be grouped: a file's other columns.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
}

impl EvalExample {
    /// A question and its right answer.
    pub fn new(question: impl Into<String>, answer: impl Into<String>) -> Self {
        Self::conversation(vec![Message::user(question)], answer)
    }

    /// The answer that should follow some turns.
    pub fn conversation(messages: Vec<Message>, answer: impl Into<String>) -> Self {
        Self::of(EvalPrompt::Conversation(messages), vec![answer.into()])
    }

    /// The continuation that should follow a text, without a chat template.
    pub fn text(prompt: impl Into<String>, continuation: impl Into<String>) -> Self {
        Self::of(EvalPrompt::Text(prompt.into()), vec![continuation.into()])
    }

    fn of(prompt: EvalPrompt, references: Vec<String>) -> Self {
        Self { prompt, references, choices: Vec::new(), columns: BTreeMap::new() }
    }

    /// The same with the answers to choose from.
    #[must_use]
    pub fn with_choices<S: Into<String>>(self, choices: impl IntoIterator<Item = S>) -> Self {
        Self { choices: choices.into_iter().map(Into::into).collect(), ..self }
    }

    /// The same with a value to group by.
    #[must_use]
    pub fn with_column(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.columns.insert(name.into(), value.into());
        self
    }

    /// The last thing said before the answer.
    pub fn question(&self) -> &str {
        match &self.prompt {
            EvalPrompt::Conversation(turns) => turns.last().map_or("", |turn| &turn.content),
            EvalPrompt::Text(text) => text,
        }
    }

    /// What is asked and expected, without the columns beside it, as bytes to compare and to hash.
    pub(crate) fn asked(&self) -> Vec<u8> {
        serde_json::to_vec(&(&self.prompt, &self.references, &self.choices)).unwrap_or_default()
    }

    /// Whether there is something to answer.
    pub(crate) fn asks(&self) -> bool {
        match &self.prompt {
            EvalPrompt::Conversation(turns) => !turns.is_empty(),
            EvalPrompt::Text(text) => !text.is_empty(),
        }
    }
}

/// What [`evaluate`](crate::evaluate) takes rows from.
///
/// `Kind` is inferred; another crate may implement the trait for a type of a third one (a data set),
/// with a marker type of its own as the `Kind`.
pub trait IntoExamples<Kind> {
    /// The rows.
    ///
    /// # Errors
    /// They cannot be read.
    fn into_examples(self) -> Result<Vec<EvalExample>>;
}

/// The [`Kind`](IntoExamples) of a list of examples.
#[derive(Debug)]
pub struct List;

impl<T: AsRef<[EvalExample]> + ?Sized> IntoExamples<List> for &T {
    fn into_examples(self) -> Result<Vec<EvalExample>> {
        Ok(self.as_ref().to_vec())
    }
}
