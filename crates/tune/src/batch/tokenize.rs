//! Examples as the model's token ids, through its chat template.

use tunebook_models::{ChatTemplate, Message, Model};
use tunebook_progress::{ProgressBar, interrupt};

use crate::batch::{Example, Span, TokenizedSet};
use crate::error::{Error, Result};

/// What padding is filled with: any id will do, for no token that bears a loss ever sees it.
pub(crate) const PAD_ID: u32 = 0;

/// From this many examples on, a progress bar is drawn.
const BAR_EXAMPLES: usize = 2_000;

/// Tokenises a set of examples.
///
/// The prompt, with the template's opening of the answer, is tokenised by itself, as it is when the
/// model is asked; the rest of the rendered conversation is what it shall say, the end of the turn
/// included. A model without a chat template is shown the prompt as it is, and shall say the
/// completion and the end of the text. Of a conversation every turn of the assistant is what it
/// shall say ([`ChatTemplate::render_turns`]).
///
/// # Errors
/// As [`TokenizedSet::new`]; a template that fails, or that does not render a prompt as the
/// beginning of the conversation; a request to stop.
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

/// The ids of one example as it is trained on: what the model is shown, and what it shall say.
///
/// # Errors
/// A template that fails, or that does not render a prompt as the beginning of the conversation; a
/// conversation for a model without a chat template.
pub fn encode_example(model: &Model, example: &Example) -> Result<Vec<Span>> {
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
) -> Result<Vec<Span>> {
    let span = |text: &str, said| Ok(Span { ids: model.tokenizer().encode(text)?, said });
    if !example.conversation.is_empty() {
        let pieces = template.render_turns(&example.conversation)?;
        return pieces.iter().map(|(text, said)| span(text, *said)).collect();
    }
    let conversation = [Message::user(&example.prompt), Message::assistant(&example.completion)];
    let shown = template.render(&conversation[..1], true)?;
    let whole = template.render(&conversation, false)?;
    let Some(said) = whole.strip_prefix(&shown) else {
        let at = whole.bytes().zip(shown.bytes()).take_while(|(a, b)| a == b).count();
        return Err(Error::TemplateNotPrefix { set, row, at });
    };
    Ok(vec![span(&shown, false)?, span(said, true)?])
}

fn plain(model: &Model, example: &Example) -> Result<Vec<Span>> {
    if !example.conversation.is_empty() {
        return Err(Error::NoChatTemplate);
    }
    let tokenizer = model.tokenizer();
    let shown = tokenizer.encode_with_special_tokens(&example.prompt)?;
    let mut said = tokenizer.encode(&example.completion)?;
    said.extend(tokenizer.eos_id());
    Ok(vec![Span { ids: shown, said: false }, Span { ids: said, said: true }])
}
