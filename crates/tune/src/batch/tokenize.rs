//! Tokenisation: examples as token ids and loss masks.
//!
//! The model's [`ChatTokenizer`](tunebook_models::ChatTokenizer) does it, which chat asks with, too.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tunebook_models::{Model, TokenizedText};
use tunebook_progress::{ProgressBar, interrupt, stream};

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
    let special = model.tokenizer().special_tokens();
    let written: Mutex<BTreeMap<usize, &str>> = Mutex::default();
    let tokenized = TokenizedSet::new(set, examples, context, max_length, &|row, example| {
        interrupt::check()?;
        if let Some(token) = special_in(example, &special) {
            written.lock().unwrap_or_else(PoisonError::into_inner).insert(row, token);
        }
        let tokenized = tokenize_example(model, example).map_err(|source| Error::Row {
            set,
            row,
            source: Box::new(source),
        })?;
        if let Some(bar) = &bar {
            bar.advance(1);
        }
        Ok(tokenized)
    });
    tell_special(set, &written.into_inner().unwrap_or_else(PoisonError::into_inner));
    tokenized
}

/// The first special token in the words of a conversation. A plain text may be rendered already.
fn special_in<'a>(example: &Example, special: &'a [String]) -> Option<&'a str> {
    let Example::Conversation(messages) = example else { return None };
    let found = |token: &&String| messages.iter().any(|message| message.content.contains(*token));
    special.iter().filter(|token| !token.trim().is_empty()).find(found).map(String::as_str)
}

/// Says that words of the data count as control tokens.
fn tell_special(set: &str, written: &BTreeMap<usize, &str>) {
    let Some((row, token)) = written.first_key_value() else { return };
    let more = match written.len() - 1 {
        0 => String::new(),
        1 => " and one more".to_owned(),
        more => format!(" and {more} more"),
    };
    stream(&format!(
        "note: row {row} of the {set} set{more} holds the special token `{token}` in its words, and is trained with it: \
         `strip_control_tokens` of a cleaning takes such tokens out\n"
    ));
}

/// The ids of one example as it is trained on, and which of them bear a loss.
///
/// # Errors
/// A chat template that refuses the conversation, or in whose text the assistant's words cannot be
/// found; a conversation of several turns for a model without a template; a tokenizer that refuses
/// the text; a token that the model's table lacks.
pub fn tokenize_example(model: &Model, example: &Example) -> Result<TokenizedText> {
    let tokenizer = model.chat_tokenizer();
    let tokenized = match example {
        Example::Conversation(messages) => tokenizer.tokenize_conversation(messages)?,
        Example::Text(text) => tokenizer.tokenize_text(text)?,
    };
    model.check_ids("text", &tokenized.ids)?;
    Ok(tokenized)
}
