//! The rows of a data set as examples: to train on, and to be judged by.

use polars::prelude::{Column, DataType};
use tunebook_data::{Dataset, TrainingText, Turn};
use tunebook_evaluate::{EvalExample, EvalPrompt};
use tunebook_models::Message;
use tunebook_tune::Example;

/// All rows as training examples, in order, as [`Dataset::conversations`] gives them. Of a conversation
/// every turn of the assistant is trained on, but those that the file exempts (`"weight": 0`); a plain
/// text is trained on as it stands.
pub fn training_examples(data: &Dataset) -> Vec<Example> {
    let example = |text: TrainingText| match text {
        TrainingText::Text(text) => Example::text(text),
        TrainingText::Conversation(turns) => {
            Example::conversation(turns.into_iter().map(message).collect())
        }
    };
    data.conversations().into_iter().map(example).collect()
}

/// All rows as questions with right answers, in order. The last turn of the assistant is the right
/// answer, what stands before it is asked; of a plain text only the loss can be measured.
pub fn evaluation_examples(data: &Dataset) -> Vec<EvalExample> {
    let columns = columns(data);
    let row = |(row, text): (usize, TrainingText)| {
        let mut example = evaluation_example(text);
        for (name, values) in &columns {
            if let Some(value) = &values[row] {
                example.columns.insert(name.clone(), value.clone());
            }
        }
        example
    };
    data.conversations().into_iter().enumerate().map(row).collect()
}

/// A turn as the tokenizer takes it.
pub fn message(turn: Turn) -> Message {
    let train = turn.train != Some(false);
    Message { train, ..Message::new(turn.role.as_str(), turn.content) }
}

fn evaluation_example(text: TrainingText) -> EvalExample {
    match text {
        TrainingText::Text(text) => EvalExample::text("", text),
        TrainingText::Conversation(turns) => {
            let mut messages: Vec<Message> = turns.into_iter().map(message).collect();
            // One that training would learn, too.
            let is_answer = |message: &Message| message.role == "assistant" && message.train;
            let last = messages.iter().rposition(is_answer);
            let answer = last.map(|last| {
                messages.truncate(last + 1);
                messages.pop().map(|message| message.content).unwrap_or_default()
            });
            let mut example = EvalExample::conversation(messages, "");
            example.references = answer.into_iter().collect();
            if let EvalPrompt::Conversation(turns) = &mut example.prompt {
                turns.iter_mut().for_each(|turn| turn.train = false);
            }
            example
        }
    }
}

/// The columns that are not the texts themselves, as text.
fn columns(data: &Dataset) -> Vec<(String, Vec<Option<String>>)> {
    const TEXTS: [&str; 5] = ["prompt", "completion", "messages", "turns", "system"];
    let texts = |column: &Column| -> Option<(String, Vec<Option<String>>)> {
        let name = column.name().to_string();
        let is_value = column.dtype().is_primitive() || column.dtype().is_string();
        if TEXTS.contains(&name.as_str()) || !is_value {
            return None;
        }
        let text = column.cast(&DataType::String).ok()?;
        let values = text.str().ok()?.iter().map(|value| value.map(str::to_owned)).collect();
        Some((name, values))
    };
    data.frame().columns().iter().filter_map(texts).collect()
}
