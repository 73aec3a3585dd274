//! The text that a model is trained on, for each row of a data set.

use polars::prelude::*;
use serde::{Deserialize, Serialize};

use crate::columns::{COMPLETION, MESSAGES, PROMPT, SYSTEM, TURNS};
use crate::dataset::Dataset;
use crate::read::shape::RowShape;
use crate::turn::{Role, Turn, turns_of};

/// The text of one row for training.
///
/// ```
/// use tunebook_data::{Dataset, Role, TrainingText, Turn};
///
/// let dataset = Dataset::from_rows(&[("Where is my parcel?", "On its way."), ("", "A text.")]);
/// assert_eq!(
///     dataset.conversations(),
///     [
///         TrainingText::Conversation(vec![
///             Turn::new(Role::User, "Where is my parcel?"),
///             Turn::new(Role::Assistant, "On its way."),
///         ]),
///         TrainingText::Text("A text.".to_owned()),
///     ]
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainingText {
    /// Turns for a chat template, at least one of them the assistant's. A system message is the
    /// first one.
    Conversation(Vec<Turn>),
    /// A text that is trained as it stands, without a chat template: every token bears a loss.
    Text(String),
}

impl Dataset {
    /// The text of every row for training, in the order of the rows.
    ///
    /// - A row whose column `messages` holds the turns of a conversation (which reading fills, and
    ///   cleaning keeps up to date) gives these turns.
    /// - Any other row gives its prompt as the user's turn and its completion as the assistant's.
    /// - A text in the column `system` becomes the system turn in front of either.
    /// - A row without a prompt is a plain text ([`TrainingText::Text`]), unless there is a system
    ///   text and the file was not one of plain texts ([`RowShape::Text`]): then the assistant's
    ///   turn follows the system's.
    pub fn conversations(&self) -> Vec<TrainingText> {
        let columns = TextColumns::of(self);
        (0..self.len()).map(|row| columns.training_text(row)).collect()
    }

    /// The text of the row with this index (from 0) for training, as [`Dataset::conversations`]
    /// gives it.
    pub fn conversation(&self, index: usize) -> Option<TrainingText> {
        (index < self.len()).then(|| TextColumns::of(self).training_text(index))
    }
}

/// The columns that a training text is made of.
struct TextColumns<'a> {
    prompts: &'a StringChunked,
    completions: &'a StringChunked,
    system: Option<&'a StringChunked>,
    /// The turns as JSON, and their number.
    messages: Option<(&'a StringChunked, &'a Int64Chunked)>,
}

impl<'a> TextColumns<'a> {
    fn of(dataset: &'a Dataset) -> Self {
        let column = |name: &str| dataset.frame_ref().column(name).ok();
        let text = |name: &str| column(name).and_then(|column| column.str().ok());
        let turns = column(TURNS).and_then(|column| column.i64().ok());
        Self {
            prompts: dataset.text(PROMPT),
            completions: dataset.text(COMPLETION),
            // Plain texts may have a column of that name, but nobody is spoken to.
            system: text(SYSTEM).filter(|_| *dataset.shape() != RowShape::Text),
            messages: text(MESSAGES).zip(turns),
        }
    }

    fn training_text(&self, row: usize) -> TrainingText {
        let system = self.system.and_then(|system| system.get(row));
        let system = system.filter(|text| !text.trim().is_empty());
        let mut turns: Vec<Turn> =
            system.map(|text| Turn::new(Role::System, text)).into_iter().collect();
        if let Some(conversation) = self.turns(row) {
            turns.extend(conversation);
            return TrainingText::Conversation(turns);
        }
        let prompt = self.prompts.get(row).unwrap_or_default();
        let completion = self.completions.get(row).unwrap_or_default();
        if prompt.is_empty() && turns.is_empty() {
            return TrainingText::Text(completion.to_owned());
        }
        if !prompt.is_empty() {
            turns.push(Turn::new(Role::User, prompt));
        }
        turns.push(Turn::new(Role::Assistant, completion));
        TrainingText::Conversation(turns)
    }

    /// The turns in the column `messages`, if it is the one that reading makes: a file's own column
    /// of that name lacks the number of turns.
    fn turns(&self, row: usize) -> Option<Vec<Turn>> {
        let (messages, counts) = self.messages?;
        let (text, count) = (messages.get(row)?, counts.get(row)?);
        turns_of(text).filter(|turns| turns.len() as i64 == count)
    }
}
