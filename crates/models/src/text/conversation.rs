//! Conversations as token ids and loss masks: one way for training, evaluation and chat.
//!
//! A conversation is rendered by the chat template and tokenised **as one text**, as
//! `transformers`' `apply_chat_template(.., tokenize=True)` does. So the tokens of what is asked
//! (the conversation up to the generation prompt) begin the tokens of what is trained, with
//! byte-level and SentencePiece tokenizers alike.
//!
//! **Loss mask.** The template says which characters are the assistant's
//! ([`ChatTemplate::render_turns`]); a token bears a loss if it holds one of them. A token that
//! holds characters of both sides of the border, such as line breaks at the end of the generation
//! prompt merged with those that begin an answer, belongs to the answer, as with
//! `return_assistant_tokens_mask=True`. (Of a last character that is several tokens, `transformers`
//! marks the first token only, here all of them are marked.)
//!
//! **System messages.** Where a template refuses the role (Gemma, Mistral), the message is put
//! before the first user's with an empty line between, as Gemma 3's template does it itself.
//!
//! **End of an answer.** Where the text of the last answer holds none of the tokens that end a
//! generation, the model's end token is appended and bears a loss.
//!
//! **Models without a chat template** see a question as it stands, then the answer and the end
//! token; a longer conversation is refused. **Plain texts** are tokenised as they are, with the end
//! token once; all their tokens bear a loss.
//!
//! ```
//! # fn example(model: &tunebook_models::Model) -> tunebook_models::Result<()> {
//! use tunebook_models::Message;
//! let conversation = [Message::user("Where is it?"), Message::assistant("At the depot.")];
//! let trained = model.chat_tokenizer().tokenize_conversation(&conversation)?;
//! let asked = model.chat_tokenizer().tokenize_prompt(&conversation[..1])?;
//! assert!(trained.ids.starts_with(&asked));
//! assert!(trained.loss_mask[asked.len()..].iter().all(|bears_loss| *bears_loss));
//! # Ok(())
//! # }
//! ```

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::text::chat_template::ChatTemplate;
use crate::text::tokenizer::{Token, Tokenizer};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or another role that the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Whether an assistant's turn is trained on; other roles never are. Default `true`; `false`
    /// is OpenAI's `"weight": 0`.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub train: bool,
}

fn yes() -> bool {
    true
}

impl Message {
    /// A turn of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), train: true }
    }

    /// The instructions that a conversation stands under.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// A turn of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// The same turn, not trained on.
    #[must_use]
    pub fn untrained(self) -> Self {
        Self { train: false, ..self }
    }

    pub(crate) fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }
}

/// Token ids and which of them bear a loss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizedText {
    /// The ids.
    pub ids: Vec<u32>,
    /// For each id whether the model is trained to say it. Not shifted.
    pub loss_mask: Vec<bool>,
}

impl TokenizedText {
    fn new(tokens: &[Token], trained: &[Range<usize>]) -> Self {
        Self {
            ids: tokens.iter().map(|token| token.id).collect(),
            loss_mask: tokens.iter().map(|token| is_in(token, trained)).collect(),
        }
    }

    fn push(&mut self, id: u32) {
        self.ids.push(id);
        self.loss_mask.push(true);
    }

    /// The end token after a text, which some tokenizers write themselves.
    fn end_with(&mut self, id: Option<u32>) {
        match id {
            Some(id) if self.ids.last() == Some(&id) => {
                if let Some(last) = self.loss_mask.last_mut() {
                    *last = true;
                }
            }
            Some(id) => self.push(id),
            None => {}
        }
    }
}

/// Whether a token holds a byte of one of the ranges. Blanks that a byte-level tokenizer leaves
/// out of its offsets make a token without bytes; it stands where it ends.
fn is_in(token: &Token, ranges: &[Range<usize>]) -> bool {
    let Range { start, end } = token.bytes;
    ranges.iter().any(|range| match start < end {
        true => start < range.end && end > range.start,
        false => range.start < end && end <= range.end,
    })
}

/// The chat side of a model: its tokenizer, chat template and end tokens together.
#[derive(Clone, Copy, Debug)]
pub struct ChatTokenizer<'a> {
    name: &'a str,
    tokenizer: &'a Tokenizer,
    chat_template: Option<&'a ChatTemplate>,
    end_ids: &'a [u32],
}

impl<'a> ChatTokenizer<'a> {
    /// Of the model `name`, for errors. Any of `end_ids` ends an answer.
    pub fn new(
        name: &'a str,
        tokenizer: &'a Tokenizer,
        chat_template: Option<&'a ChatTemplate>,
        end_ids: &'a [u32],
    ) -> Self {
        Self { name, tokenizer, chat_template, end_ids }
    }

    /// The text of a conversation. With `add_generation_prompt` it ends where the assistant's
    /// answer begins.
    ///
    /// # Errors
    /// When there is no chat template, or it refuses the conversation.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.template()?;
        with_system_role(messages, |messages| template.render(messages, add_generation_prompt))
    }

    /// The ids that the model is asked with: the conversation and the generation prompt.
    ///
    /// # Errors
    /// As [`ChatTokenizer::render`]; when the tokenizer refuses the text.
    pub fn tokenize_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        // The template itself writes the token that begins a text.
        self.tokenizer.encode(&self.render(messages, true)?)
    }

    /// A conversation as it is trained on: every turn of the assistant bears a loss, unless
    /// [`Message::train`] is `false`.
    ///
    /// # Errors
    /// As [`ChatTokenizer::render`]; when the assistant's words cannot be found in the text
    /// ([`ChatTemplate::render_turns`]); a conversation of more than question and answer for a
    /// model without a chat template.
    pub fn tokenize_conversation(&self, messages: &[Message]) -> Result<TokenizedText> {
        let Some(template) = self.chat_template else {
            return self.tokenize_pair(messages);
        };
        let (text, answers) = with_system_role(messages, |messages| template.answers(messages))?;
        let tokens = self.tokenizer.tokenize(&text, false)?;
        let trained: Vec<Range<usize>> =
            answers.iter().filter(|answer| answer.train).map(|answer| answer.bytes()).collect();
        let mut tokenized = TokenizedText::new(&tokens, &trained);
        let last = messages.last().is_some_and(|last| last.is_assistant() && last.train);
        if let Some(answer) = answers.last()
            && last
        {
            let rest = answer.start..text.len();
            let ends = |token: &Token| {
                self.end_ids.contains(&token.id) && is_in(token, std::slice::from_ref(&rest))
            };
            if !tokens.iter().any(ends) {
                self.end_id().into_iter().for_each(|id| tokenized.push(id));
            }
        }
        Ok(tokenized)
    }

    /// A text as it is trained on, such as a conversation that is rendered already or a piece of
    /// prose: as it stands, and the end token once. Every token bears a loss. A first token that
    /// the text has already is not doubled.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn tokenize_text(&self, text: &str) -> Result<TokenizedText> {
        let mut tokens = self.tokenizer.tokenize(text, true)?;
        if let [first, second, ..] = &tokens[..]
            && Some(first.id) == self.tokenizer.bos_id()
            && first.id == second.id
            && first.bytes.is_empty()
        {
            tokens.remove(0);
        }
        let mut tokenized = TokenizedText {
            loss_mask: vec![true; tokens.len()],
            ids: tokens.into_iter().map(|token| token.id).collect(),
        };
        tokenized.end_with(self.end_id());
        Ok(tokenized)
    }

    /// Question, answer and end token as one text, without markup.
    fn tokenize_pair(&self, messages: &[Message]) -> Result<TokenizedText> {
        let folded = with_system_folded(messages);
        let (question, answer) = match folded.as_deref().unwrap_or(messages) {
            [answer] => ("", answer),
            [question, answer] if !question.is_assistant() => (question.content.as_str(), answer),
            _ => return Err(self.no_template()),
        };
        if !answer.is_assistant() {
            return Err(self.no_template());
        }
        let text = format!("{question}{}", answer.content);
        let trained = question.len()..text.len();
        let tokens = self.tokenizer.tokenize(&text, true)?;
        let mut tokenized = TokenizedText::new(&tokens, &[trained]);
        tokenized.end_with(self.end_id());
        if !answer.train {
            tokenized.loss_mask.fill(false);
        }
        Ok(tokenized)
    }

    /// The tokenizer's token for the end of a text, or the model's, where the tokenizer names none.
    fn end_id(&self) -> Option<u32> {
        self.tokenizer.eos_id().or(self.end_ids.first().copied())
    }

    fn template(&self) -> Result<&'a ChatTemplate> {
        self.chat_template.ok_or_else(|| self.no_template())
    }

    fn no_template(&self) -> Error {
        Error::NoChatTemplate { model: self.name.to_owned() }
    }
}

/// `render` of the messages; where the template refuses them, and would take them with the system
/// message folded into the first user's, of these. The one place where it is decided.
fn with_system_role<T>(
    messages: &[Message],
    render: impl Fn(&[Message]) -> Result<T>,
) -> Result<T> {
    render(messages).or_else(|refusal| match with_system_folded(messages) {
        Some(folded) => render(&folded).map_err(|_| refusal),
        None => Err(refusal),
    })
}

/// The messages with the leading system message put before the user's that follows it.
fn with_system_folded(messages: &[Message]) -> Option<Vec<Message>> {
    match messages {
        [system, user, rest @ ..] if system.role == "system" && user.role == "user" => {
            let content = match system.content.is_empty() {
                true => user.content.clone(),
                false => format!("{}\n\n{}", system.content, user.content),
            };
            Some(std::iter::once(Message::user(content)).chain(rest.iter().cloned()).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_message_goes_to_the_first_user_where_its_role_is_refused() {
        let refuses = |messages: &[Message]| match messages.iter().any(|m| m.role == "system") {
            true => Err(Error::ChatTemplate("no system".to_owned())),
            false => Ok(messages.iter().map(|m| m.content.clone()).collect::<Vec<_>>()),
        };
        let system = Message::system("Be brief.");
        let asked = [system.clone(), Message::user("a"), Message::assistant("b")];
        assert_eq!(with_system_role(&asked, refuses).unwrap(), ["Be brief.\n\na", "b"]);
        let late = [Message::user("a"), system.clone()];
        assert_eq!(
            with_system_role(&late, refuses).unwrap_err().to_string(),
            "chat template: no system"
        );
        assert!(with_system_role(&[system], refuses).is_err(), "nothing to put it before");
    }

    #[test]
    fn a_message_is_stored_with_its_flag_only_where_it_says_something() {
        let json = |message| serde_json::to_string(&message).unwrap();
        assert_eq!(json(Message::user("a")), r#"{"role":"user","content":"a"}"#);
        let untrained = Message::assistant("b").untrained();
        assert_eq!(json(untrained.clone()), r#"{"role":"assistant","content":"b","train":false}"#);
        assert_eq!(serde_json::from_str::<Message>(&json(untrained.clone())).unwrap(), untrained);
    }
}
