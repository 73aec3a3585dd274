//! The task that the benches train on: the intent of a message of banking77, among all of its intents.

use tunebook_evaluate::{EvalExample, EvaluationArgs};
use tunebook_models::Message;
use tunebook_tune::Example;

/// What stands before each message. Short, since each row pays for it.
const INSTRUCTION: &str = "Name the intent.";

fn asked(text: &str) -> Vec<Message> {
    vec![Message::system(INSTRUCTION), Message::user(text)]
}

/// A message with its intent, to be trained on.
pub(crate) fn answered(text: &str, intent: &str) -> Example {
    let mut turns = asked(text);
    turns.push(Message::assistant(intent));
    Example::conversation(turns)
}

/// The same to be judged.
pub(crate) fn question(text: &str, intent: &str) -> EvalExample {
    EvalExample::conversation(asked(text), intent)
}

/// Which of these intents is the likeliest.
pub(crate) fn accuracy(intents: impl IntoIterator<Item = String>) -> EvaluationArgs {
    EvaluationArgs {
        metrics: Vec::new(),
        labels: intents.into_iter().collect(),
        // The likeliest is asked for, not how likely the others are.
        label_margin: 0.0,
        output_dir: None,
        ..Default::default()
    }
}
