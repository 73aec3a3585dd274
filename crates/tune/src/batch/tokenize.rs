//! Tokenisation: examples as token ids and loss masks.
//!
//! The model's [`ChatTokenizer`](tunebook_models::ChatTokenizer) does it, which chat asks with, too.

use tunebook_models::{Model, TokenizedText};
use tunebook_progress::{ProgressBar, interrupt};

use crate::batch::{Example, TokenizedSet};
use crate::error::{Error, Result};

/// The id that short rows are padded with. Any will do: no token that bears a loss ever sees it.
pub(crate) const PAD_ID: u32 = 0;

/// From this many examples on, a progress bar is drawn.
const BAR_EXAMPLES: usize = 2_000;

/// Tokenises a set of examples.
///
/// # Errors
/// As [`TokenizedSet::new`]; as [`tokenize_example`], with the row; a request to stop.
pub(crate) fn tokenize(
    model: &Model,
    set: &'static str,
    examples: &[Example],
    max_length: Option<usize>,
) -> Result<TokenizedSet> {
    // Virtual tokens take their part of it.
    let context = model.config().max_position_embeddings.saturating_sub(model.positions_before());
    let bar = (examples.len() >= BAR_EXAMPLES).then(|| {
        ProgressBar::new(format!("Tokenising the {set} set"), Some(examples.len() as u64))
            .unit("row")
    });
    TokenizedSet::new(set, examples, context, max_length, &|row, example| {
        interrupt::check()?;
        let tokenized = tokenize_example(model, example).map_err(|source| Error::Row {
            set,
            row,
            source: Box::new(source),
        })?;
        if let Some(bar) = &bar {
            bar.advance(1);
        }
        Ok(tokenized)
    })
}

/// The ids of one example as it is trained on, and which of them bear a loss.
///
/// # Errors
/// A chat template that refuses the conversation, or in whose text the assistant's words cannot be
/// found; a conversation of several turns for a model without a template; a tokenizer that refuses
/// the text.
pub fn tokenize_example(model: &Model, example: &Example) -> Result<TokenizedText> {
    let tokenizer = model.chat_tokenizer();
    Ok(match example {
        Example::Conversation(messages) => tokenizer.tokenize_conversation(messages)?,
        Example::Text(text) => tokenizer.tokenize_text(text)?,
    })
}
