//! Examples as the model sees them: their tokens, those that bear a loss and the special ones told
//! apart. They are the tokens and the loss mask of training.

use std::fmt;

use tunebook_models::{Message, Model};
use tunebook_progress::escape_html;
use tunebook_tune::{Example, Result, tokenize_example};

/// One token of an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenToken {
    /// Its id.
    pub id: u32,
    /// Its text; of a part of a character, how the vocabulary writes it.
    pub text: String,
    /// Whether the model is trained to say it.
    pub trained: bool,
    /// Whether it is a special token, such as the end of a turn.
    pub special: bool,
    /// Whether it lies beyond the length that was asked for, so that training would not see it.
    pub cut: bool,
}

/// An example as the model sees it.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// The tokens, in order.
    pub tokens: Vec<SeenToken>,
}

/// Looks at an example with the model's eyes.
pub trait See {
    /// The tokens of a pair, through the chat template, with at most `max_length` of them in sight.
    ///
    /// # Errors
    /// A template that fails; a tokenizer that refuses the text.
    fn see(&self, prompt: &str, completion: &str, max_length: usize) -> Result<Seen>;

    /// The tokens of a conversation: every turn of the assistant is trained on, unless it is
    /// [`Message::untrained`].
    ///
    /// # Errors
    /// As [`See::see`]; a template in whose text the assistant's words cannot be found.
    fn see_conversation(&self, messages: &[Message], max_length: usize) -> Result<Seen>;

    /// The tokens of an example of any kind, such as one of `set.examples()`.
    ///
    /// # Errors
    /// As [`See::see_conversation`].
    fn see_example(&self, example: &Example, max_length: usize) -> Result<Seen>;
}

impl See for Model {
    fn see(&self, prompt: &str, completion: &str, max_length: usize) -> Result<Seen> {
        self.see_example(&Example::new(prompt, completion), max_length)
    }

    fn see_conversation(&self, messages: &[Message], max_length: usize) -> Result<Seen> {
        self.see_example(&Example::conversation(messages.to_vec()), max_length)
    }

    fn see_example(&self, example: &Example, max_length: usize) -> Result<Seen> {
        let tokenizer = self.tokenizer();
        let tokenized = tokenize_example(self, example)?;
        let ids = tokenized.ids.into_iter().zip(tokenized.loss_mask);
        let tokens = ids.enumerate().map(|(at, (id, trained))| {
            let text = tokenizer.decode(&[id])?;
            let special = !text.is_empty() && tokenizer.decode_text(&[id])?.is_empty();
            let text = match text.contains('\u{fffd}') {
                true => tokenizer.id_to_token(id).unwrap_or(text),
                false => text,
            };
            Ok(SeenToken { id, text, trained, special, cut: at >= max_length })
        });
        Ok(Seen { tokens: tokens.collect::<Result<_>>()? })
    }
}

impl Seen {
    /// Tokens that are trained on and in sight.
    pub fn trained_tokens(&self) -> usize {
        self.tokens.iter().filter(|token| token.trained && !token.cut).count()
    }

    fn summary(&self) -> String {
        let cut = self.tokens.iter().filter(|token| token.cut).count();
        let mut text =
            format!("{} tokens, {} of them trained", self.tokens.len(), self.trained_tokens());
        if cut > 0 {
            text.push_str(&format!("; {cut} cut off"));
        }
        if self.trained_tokens() == 0 {
            text.push_str(". Nothing is left to learn from: the whole completion is cut away");
        }
        text
    }

    /// The tokens in colour: what is shown in grey, what is trained in blue, special ones framed,
    /// those cut off struck out.
    pub(crate) fn html(&self) -> String {
        let mut html = format!(
            "<p style=\"margin:0.4em 0\">{} <span style=\"background:#e8e8e8;color:#222\">shown</span> \
             <span style=\"background:#bcd7f5;color:#10243a\">trained</span> \
             <span style=\"border:1px solid #b3541e\">special</span></p><div style=\"font-family:monospace;white-space:pre-wrap;line-height:1.7\">",
            escape_html(&self.summary())
        );
        for token in &self.tokens {
            let ground = if token.trained {
                "background:#bcd7f5;color:#10243a"
            } else {
                "background:#e8e8e8;color:#222"
            };
            let frame = if token.special { ";border:1px solid #b3541e" } else { "" };
            let cut = if token.cut { ";text-decoration:line-through;opacity:0.5" } else { "" };
            let text = escape_html(&token.text).replace('\n', "⏎\n");
            html.push_str(&format!(
                "<span title=\"{}\" style=\"{ground}{frame}{cut};border-radius:3px;margin-right:1px\">{text}</span>",
                token.id
            ));
        }
        html.push_str("</div>");
        html
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.summary())?;
        let text = |trained: bool| -> String {
            self.tokens
                .iter()
                .filter(|token| token.trained == trained && !token.cut)
                .map(|token| token.text.as_str())
                .collect()
        };
        writeln!(f, "shown:   {:?}", text(false))?;
        write!(f, "trained: {:?}", text(true))
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(cut: bool) -> Seen {
        let token = |text: &str, trained, special| SeenToken {
            id: 7,
            text: text.to_owned(),
            trained,
            special,
            cut: cut && trained,
        };
        Seen {
            tokens: vec![
                token("<|im_start|>", false, true),
                token("<script>", false, false),
                token("yes\n", true, false),
            ],
        }
    }

    #[test]
    fn markup_stays_text_and_masks_are_told_apart() {
        let html = seen(false).html();
        assert!(html.contains("&lt;script&gt;") && !html.contains("<script"), "{html}");
        assert!(html.contains("&lt;|im_start|&gt;") && html.contains("yes⏎"), "{html}");
        assert_eq!(
            seen(false).to_string(),
            "3 tokens, 1 of them trained\nshown:   \"<|im_start|><script>\"\ntrained: \"yes\\n\""
        );
    }

    #[test]
    fn a_completion_that_is_cut_away_is_said() {
        assert!(seen(true).to_string().contains("the whole completion is cut away"));
    }
}
