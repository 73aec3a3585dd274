//! The assistant's turns in a rendered conversation.
//!
//! Three ways, the first that applies:
//! 1. `{% generation %}` tags, as `transformers` wants them for `assistant_only_loss`: their
//!    content, no more and no less.
//! 2. Beginnings: a turn reaches from the end of the conversation before it, rendered with the
//!    generation prompt, to the end of the conversation with it, if both begin the whole text.
//! 3. Marks: some templates write a turn otherwise once others follow (Qwen 3 and DeepSeek-R1 take
//!    earlier thoughts out, Phi-3 writes an end of text after the last turn). There the whole is
//!    rendered once more with marks at the ends of the messages' contents. A turn then begins where
//!    the text after the message before it departs from the generation prompt, and ends where the
//!    text after its content departs from the end of a last turn.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::text::chat_template::{BEGIN, ChatTemplate, END};
use crate::text::conversation::Message;

/// One turn of the assistant in the text of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Its first byte.
    pub(crate) start: usize,
    /// The byte after its last.
    pub(crate) end: usize,
    /// Whether it is trained on.
    pub(crate) train: bool,
}

impl Answer {
    pub(crate) fn bytes(&self) -> Range<usize> {
        self.start..self.end
    }
}

impl ChatTemplate {
    /// The text of a conversation in pieces: context (`false`), and the assistant's turns that are
    /// trained on (`true`), each from the end of the generation prompt to the end of the turn, the
    /// end-of-turn token included; or, where the template has `{% generation %}` tags, what stands
    /// between them.
    ///
    /// # Errors
    /// When the template refuses the conversation, or changes it so much that the assistant's words
    /// cannot be found.
    pub fn render_turns(&self, messages: &[Message]) -> Result<Vec<(String, bool)>> {
        let (text, answers) = self.answers(messages)?;
        let mut pieces: Vec<(String, bool)> = Vec::new();
        let mut put = |piece: &str, trained: bool| match pieces.last_mut() {
            _ if piece.is_empty() => {}
            Some((last, of)) if *of == trained => last.push_str(piece),
            _ => pieces.push((piece.to_owned(), trained)),
        };
        let mut done = 0;
        for answer in answers.iter().filter(|answer| answer.train) {
            put(&text[done..answer.start], false);
            put(&text[answer.bytes()], true);
            done = answer.end;
        }
        put(&text[done..], false);
        Ok(pieces)
    }

    /// The text of a conversation and the assistant's turns in it, in their order.
    pub(crate) fn answers(&self, messages: &[Message]) -> Result<(String, Vec<Answer>)> {
        if self.has_generation_tags() {
            return self.answers_by_tags(messages);
        }
        let text = self.render(messages, false)?;
        let turns: Vec<usize> =
            (0..messages.len()).filter(|at| messages[*at].is_assistant()).collect();
        let found = match self.by_beginnings(messages, &turns, &text) {
            Some(found) => found,
            None => self.by_marks(messages, &turns, &text)?,
        };
        let answers = turns.iter().zip(found).map(|(at, bytes)| Answer {
            start: bytes.start,
            end: bytes.end,
            train: messages[*at].train,
        });
        Ok((text, answers.collect()))
    }

    fn answers_by_tags(&self, messages: &[Message]) -> Result<(String, Vec<Answer>)> {
        if messages.iter().any(|message| message.content.contains([BEGIN, END])) {
            return Err(Error::ChatTemplate(
                "a message holds U+FDD0 or U+FDD1, which are no characters: take them out"
                    .to_owned(),
            ));
        }
        let marked = self.render_marked(messages)?;
        let (mut text, mut answers) = (String::with_capacity(marked.len()), Vec::new());
        for piece in marked.split_inclusive([BEGIN, END]) {
            let start = text.len();
            text.push_str(piece.trim_end_matches([BEGIN, END]));
            // A piece that ends with the closing mark is the assistant's.
            if piece.ends_with(END) {
                answers.push(Answer { start, end: text.len(), train: true });
            }
        }
        if messages.iter().any(|message| message.is_assistant() && !message.train) {
            let whose = self.owners(messages, &text, &answers).ok_or_else(|| {
                Error::ChatTemplate(
                    "it changes the contents of messages, so the turns that are not to be trained \
                     cannot be told from the others"
                        .to_owned(),
                )
            })?;
            for (answer, at) in answers.iter_mut().zip(whose) {
                answer.train = messages[at].train;
            }
        }
        Ok((text, answers))
    }

    /// For each stretch between tags the message that it belongs to: it may be a part of a turn,
    /// such as a thought before its content or an end of text behind it.
    fn owners(&self, messages: &[Message], text: &str, answers: &[Answer]) -> Option<Vec<usize>> {
        let marked = self.render(&with_marks(messages), false).ok()?;
        let marked = Marked::read(&marked).filter(|marked| marked.text == text)?;
        let owner = |answer: &Answer| {
            let next = (0..messages.len())
                .find(|at| marked.end_of(*at).is_some_and(|end| end >= answer.start))
                .unwrap_or(messages.len() - 1);
            (0..=next).rev().find(|at| messages[*at].is_assistant())
        };
        answers.iter().map(owner).collect()
    }

    /// The turns, if every earlier part of the conversation begins the whole text.
    fn by_beginnings(
        &self,
        messages: &[Message],
        turns: &[usize],
        text: &str,
    ) -> Option<Vec<Range<usize>>> {
        let mut found: Vec<Range<usize>> = Vec::with_capacity(turns.len());
        let begins = |part: String| text.starts_with(&part).then_some(part.len());
        for &at in turns {
            let start = begins(self.render(&messages[..at], true).ok()?)?;
            let end = match at + 1 == messages.len() {
                true => text.len(),
                false => begins(self.render(&messages[..=at], false).ok()?)?,
            };
            if start > end || found.last().is_some_and(|last| last.end > start) {
                return None;
            }
            found.push(start..end);
        }
        Some(found)
    }

    fn by_marks(
        &self,
        messages: &[Message],
        turns: &[usize],
        text: &str,
    ) -> Result<Vec<Range<usize>>> {
        let mut marked = with_marks(messages);
        // The beginning of the first message matters only where no message stands before a turn.
        let first = messages.len();
        if turns.first() == Some(&0) {
            let content = &mut marked[0].content;
            let blank = content.len() - content.trim_start().len();
            content.insert_str(blank, &mark(first));
        }
        let lost = |at: usize| {
            Error::ChatTemplate(format!(
                "it renders messages 0 to {at} differently once others follow, so the assistant's words cannot be told from what stands \
                 around them: train on the last answer alone (a prompt and a completion), or on a template with {{% generation %}} tags"
            ))
        };
        let whole = self.render(&marked, false).ok().and_then(|marked| Marked::read(&marked));
        let whole = whole.filter(|whole| whole.text == text).ok_or_else(|| lost(turns[0]))?;
        // What follows message `at` where the conversation ends with it.
        let after = |at: usize, add_generation_prompt: bool| {
            let part = self.render(&marked[..=at], add_generation_prompt).ok()?;
            let part = Marked::read(&part)?;
            Some(part.text[part.end_of(at)?..].to_owned())
        };
        let turn = |at: usize| -> Option<Range<usize>> {
            let content = whole.end_of(at)?;
            let start = match at.checked_sub(1) {
                Some(before) => {
                    let from = whole.end_of(before)?;
                    from + common(&text[from..], &after(before, true)?)
                }
                None => whole.end_of(first)?,
            };
            let end = match at + 1 == messages.len() {
                true => text.len(),
                false => content + common(&text[content..], &after(at, false)?),
            };
            (start <= content).then_some(start..end)
        };
        turns.iter().map(|at| turn(*at).ok_or_else(|| lost(*at))).collect()
    }
}

/// How many bytes two texts have in common at their beginnings. Where the second is not found
/// whole, a token's markup that is common by half is left out: `<|user|>` and `<|end|>` begin alike.
fn common(text: &str, other: &str) -> usize {
    if text.starts_with(other) {
        return other.len();
    }
    let pairs = text.char_indices().zip(other.chars());
    let same = pairs.take_while(|((_, a), b)| a == b).map(|((at, a), _)| at + a.len_utf8()).last();
    let same = &text[..same.unwrap_or(0)];
    match same.rfind(['<', '[']) {
        Some(open) if !same[open..].contains(['>', ']']) => open,
        _ => same.len(),
    }
}

// Marks of contents: the number of a message between the first two, its digits from `ZERO` on. As
// the marks of tags they are noncharacters of Unicode.
const OPEN: char = '\u{fde0}';
const CLOSE: char = '\u{fde1}';
const ZERO: u32 = 0xfde2;

fn mark(at: usize) -> String {
    let digits = at.to_string();
    let digit = |digit: u8| char::from_u32(ZERO + u32::from(digit - b'0')).unwrap_or(OPEN);
    std::iter::once(OPEN).chain(digits.bytes().map(digit)).chain([CLOSE]).collect()
}

/// The messages with a mark behind the last character of each content that is no blank: a template
/// may trim it, and does so as without the mark.
fn with_marks(messages: &[Message]) -> Vec<Message> {
    let mut marked = messages.to_vec();
    for (at, message) in marked.iter_mut().enumerate() {
        message.content.insert_str(message.content.trim_end().len(), &mark(at));
    }
    marked
}

/// A text without its marks, and where they stood.
struct Marked {
    text: String,
    ends: Vec<(usize, usize)>,
}

impl Marked {
    /// `None` where a mark is not whole.
    fn read(marked: &str) -> Option<Self> {
        let (mut text, mut ends) = (String::with_capacity(marked.len()), Vec::new());
        let mut pieces = marked.split(OPEN);
        text.push_str(pieces.next()?);
        for piece in pieces {
            let (digits, rest) = piece.split_once(CLOSE)?;
            let number = digits.chars().try_fold(0_usize, |number, digit| {
                let digit = u32::from(digit).checked_sub(ZERO).filter(|digit| *digit < 10)?;
                number.checked_mul(10)?.checked_add(digit as usize)
            })?;
            ends.push((number, text.len()));
            text.push_str(rest);
        }
        Some(Self { text, ends })
    }

    /// Where the content of message `at` ends, if it stands in the text once.
    fn end_of(&self, at: usize) -> Option<usize> {
        let mut found = self.ends.iter().filter(|(number, _)| *number == at);
        let (_, end) = found.next()?;
        found.next().is_none().then_some(*end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> [Message; 4] {
        [Message::user("a"), Message::assistant("b"), Message::user("c"), Message::assistant("d")]
    }

    fn pieces(template: &str, messages: &[Message]) -> Vec<(String, bool)> {
        ChatTemplate::new(template).unwrap().render_turns(messages).unwrap()
    }

    fn expected(pieces: &[(&str, bool)]) -> Vec<(String, bool)> {
        pieces.iter().map(|(text, trained)| ((*text).to_owned(), *trained)).collect()
    }

    const PLAIN: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

    #[test]
    fn every_turn_of_the_assistant_is_its_own_piece() {
        assert_eq!(
            pieces(PLAIN, &conversation()),
            expected(&[
                ("<user>a</><assistant>", false),
                ("b</>", true),
                ("<user>c</><assistant>", false),
                ("d</>", true)
            ])
        );
        // A template that takes earlier answers away cannot be cut so.
        let forgetful = "{% for m in messages %}{% if loop.last or m.role == 'user' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let error = ChatTemplate::new(forgetful)
            .unwrap()
            .render_turns(&conversation())
            .unwrap_err()
            .to_string();
        assert!(error.contains("differently once others follow"), "{error}");
    }

    #[test]
    fn a_turn_that_is_not_to_be_trained_is_context() {
        let mut messages = conversation();
        messages[1].train = false;
        let context = "<user>a</><assistant>b</><user>c</><assistant>";
        assert_eq!(pieces(PLAIN, &messages), expected(&[(context, false), ("d</>", true)]));
        let tags = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</>{% endgeneration %}{% else %}{{ m.content }}</>{% endif %}{% endfor %}";
        assert_eq!(pieces(tags, &messages), expected(&[(context, false), ("d</>", true)]));
    }

    #[test]
    fn earlier_turns_may_be_written_otherwise_than_the_last() {
        // Qwen 3 writes a thought into the last answer only.
        let thinks = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        assert_eq!(
            pieces(thinks, &conversation()),
            expected(&[
                ("<user>a</><assistant>", false),
                ("b</>", true),
                ("<user>c</><assistant>", false),
                ("<think></think>d</>", true)
            ])
        );
        // Phi-3 writes an end of text after the last; DeepSeek-R1 asks with a thought's beginning.
        let ends = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n<think>\n{% else %}<|endoftext|>{% endif %}";
        let mut messages = conversation();
        messages[1].content = " <b> \n".to_owned();
        assert_eq!(
            pieces(ends, &messages),
            expected(&[
                ("<|user|>\na<|end|>\n<|assistant|>\n", false),
                ("<b><|end|>\n", true),
                ("<|user|>\nc<|end|>\n<|assistant|>\n", false),
                ("d<|end|>\n<|endoftext|>", true)
            ])
        );
    }

    #[test]
    fn the_assistant_may_speak_first() {
        let default = "{% if messages %}{% if messages[0].role != 'system' %}<system>default</>{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}";
        assert_eq!(
            pieces(default, &[Message::assistant(" a"), Message::user("b")]),
            expected(&[
                ("<system>default</><assistant> ", false),
                ("a</>", true),
                ("<user>b</>", false)
            ])
        );
    }

    #[test]
    fn generation_tags_say_which_words_are_the_assistants() {
        let template = "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n<u>{{ m.content }}\n    {%- else %}\n<a>\n        {% generation %}\n{{ m.content }}</a>\n        {% endgeneration %}\n    {%- endif %}\n{%- endfor %}";
        let found = pieces(template, &conversation());
        let whole: String = found.iter().map(|(text, _)| text.as_str()).collect();
        let rendered = ChatTemplate::new(template).unwrap().render(&conversation(), true).unwrap();
        assert_eq!(whole, rendered);
        let trained: Vec<&str> =
            found.iter().filter(|(_, trained)| *trained).map(|(text, _)| text.as_str()).collect();
        assert_eq!(trained, ["b</a>\n", "d</a>\n"]);
    }

    #[test]
    fn half_of_a_tokens_markup_is_not_common() {
        assert_eq!(common("<|end|>\n<|user|>", "<|end|>\n<|endoftext|>"), "<|end|>\n".len());
        assert_eq!(common(" <|end|>", " <|return|>"), 1);
        assert_eq!(common("</s>\n", "</s>"), 4);
        assert_eq!(common("é", "è"), 0);
    }

    #[test]
    fn marks_are_read_back() {
        let text = format!("a{}b{}", mark(0), mark(120));
        let marked = Marked::read(&text).unwrap();
        assert_eq!((marked.text.as_str(), &marked.ends[..]), ("ab", &[(0, 1), (120, 2)][..]));
        assert!(Marked::read(&text[..text.len() - 3]).is_none(), "a mark that is cut");
    }
}
