//! Examples as the model's token ids, through its chat template.

use tunebook_models::{ChatTemplate, Message, Model};
use tunebook_progress::{ProgressBar, interrupt};

use crate::batch::{Example, TokenizedSet};
use crate::error::{Error, Result};

/// What padding is filled with: any id will do, for no token that bears a loss ever sees it.
pub(crate) const PAD_ID: u32 = 0;

/// From this many examples on, a progress bar is drawn.
const BAR_EXAMPLES: usize = 2_000;

/// Tokenises a set of examples.
///
/// The prompt, with the template's opening of the answer, is tokenised by itself, as it is when the model is asked; the rest of
/// the rendered conversation is what it shall say, the end of the turn included. A model without a chat template is shown the prompt as it
/// is, and shall say the completion and the end of the text.
///
/// # Errors
/// As [`TokenizedSet::new`]; a template that fails, or that does not render a prompt as the beginning of the conversation; a
/// request to stop.
pub(crate) fn tokenize(
    model: &Model,
    set: &'static str,
    examples: &[Example],
    max_length: Option<usize>,
) -> Result<TokenizedSet> {
    // Virtual tokens take their part of it.
    let context = model.config().max_position_embeddings.saturating_sub(model.positions_before());
    let bar = (examples.len() >= BAR_EXAMPLES).then(|| {
        ProgressBar::new(format!("Tokenising the {set} set"), Some(examples.len() as u64)).unit("row")
    });
    TokenizedSet::new(set, examples, context, max_length, &|row, example| {
        interrupt::check()?;
        let ids = match model.chat_template() {
            Some(template) => conversation(model, template, set, row, example),
            None => plain(model, example),
        }?;
        if let Some(bar) = &bar {
            bar.advance(1);
        }
        Ok(ids)
    })
}

/// The ids of one example as it is trained on, in two parts: what the model is shown, and what it shall say.
///
/// # Errors
/// A template that fails, or that does not render a prompt as the beginning of the conversation.
pub fn encode_example(model: &Model, example: &Example) -> Result<(Vec<u32>, Vec<u32>)> {
    match model.chat_template() {
        Some(template) => conversation(model, template, "example", 0, example),
        None => plain(model, example),
    }
}

fn conversation(
    model: &Model,
    template: &ChatTemplate,
    set: &'static str,
    row: usize,
    example: &Example,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let conversation = [Message::user(&example.prompt), Message::assistant(&example.completion)];
    let shown = template.render(&conversation[..1], true)?;
    let whole = template.render(&conversation, false)?;
    let Some(said) = whole.strip_prefix(&shown) else {
        let at = whole.bytes().zip(shown.bytes()).take_while(|(a, b)| a == b).count();
        return Err(Error::TemplateNotPrefix { set, row, at });
    };
    Ok((model.tokenizer().encode(&shown)?, model.tokenizer().encode(said)?))
}

fn plain(model: &Model, example: &Example) -> Result<(Vec<u32>, Vec<u32>)> {
    let tokenizer = model.tokenizer();
    let shown = tokenizer.encode_with_special_tokens(&example.prompt)?;
    let mut said = tokenizer.encode(&example.completion)?;
    said.extend(tokenizer.eos_id());
    Ok((shown, said))
}
