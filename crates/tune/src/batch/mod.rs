//! From examples to batches: token ids with labels, truncation, shuffling, padding and the shift.
//!
//! Of a conversation only the assistant's turns bear a loss, of a text all of it: the labels of
//! everything else and of the padding are [`IGNORE`]. Rows are padded on the right; attention is causal and every
//! row stands alone, so neither padding nor another row can change a token's loss. The shift
//! (position i is labelled with token i + 1) happens in [`Batch::new`] and nowhere else.

pub(crate) mod collate;
pub(crate) mod example_sets;
pub(crate) mod packing;
pub(crate) mod run_rows;
pub(crate) mod tokenize;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use tunebook_models::{Message, TokenizedText};
use tunebook_ops::IGNORE;

use crate::error::{Error, Result};

/// One training example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Example {
    /// A conversation, rendered by the model's chat template. Every turn of the assistant is
    /// trained on, unless [`Message::train`] is `false`.
    Conversation(Vec<Message>),
    /// A text without roles, such as a conversation that is rendered already, or prose to go on
    /// pretraining with. All of it is trained on.
    Text(String),
}

impl Example {
    /// A question and its answer: one turn of the user, one of the assistant.
    pub fn new(prompt: impl Into<String>, completion: impl Into<String>) -> Self {
        Self::Conversation(vec![Message::user(prompt), Message::assistant(completion)])
    }

    /// A conversation.
    pub fn conversation(messages: Vec<Message>) -> Self {
        Self::Conversation(messages)
    }

    /// A text, trained on as it stands.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

/// One example as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedExample {
    /// Which example of its set it was, counted from 0.
    pub row: usize,
    /// The whole example's ids, the template's tokens included.
    pub ids: Vec<u32>,
    /// One label for each id, not shifted: the id itself where the model is trained to say it, else
    /// [`IGNORE`].
    pub labels: Vec<i64>,
}

impl TokenizedExample {
    /// How many tokens bear a loss. The first one of a row never does: nothing comes before it.
    pub fn label_tokens(&self) -> usize {
        self.labels.iter().skip(1).filter(|label| **label != IGNORE).count()
    }
}

/// An example's ids and loss mask, given its row.
pub(crate) type Tokenize<'a> = dyn Fn(usize, &Example) -> Result<TokenizedText> + 'a;

/// A set of examples as token ids, and what was lost on the way.
#[derive(Debug, Clone, Default)]
pub struct TokenizedSet {
    /// Those that bear a loss, in their order.
    pub examples: Vec<TokenizedExample>,
    /// How many were cut off at `max_length`.
    pub truncated: usize,
    /// Rows left out because no token of them bears a loss.
    pub without_labels: Vec<usize>,
}

impl TokenizedSet {
    /// Tokenises a set.
    ///
    /// # Errors
    /// No example; a `max_length` above `context`; examples longer than `context` while
    /// `max_length` is `None`; no token that bears a loss; what `tokenize` fails with.
    pub fn new(
        set: &'static str,
        examples: &[Example],
        context: usize,
        max_length: Option<usize>,
        tokenize: &Tokenize<'_>,
    ) -> Result<Self> {
        if examples.is_empty() {
            return Err(Error::NoExamples { set });
        }
        let limit = max_length.unwrap_or(context);
        if limit > context {
            return Err(Error::MaxLength { max_length: limit, context });
        }
        let mut tokenized = Self::default();
        let (mut longer, mut longest) = (0, (0, 0));
        for (row, example) in examples.iter().enumerate() {
            let TokenizedText { mut ids, loss_mask } = tokenize(row, example)?;
            let label = |(id, bears_loss): (&u32, bool)| match bears_loss {
                true => i64::from(*id),
                false => IGNORE,
            };
            let mut labels: Vec<i64> = ids.iter().zip(loss_mask).map(label).collect();
            if ids.len() > limit {
                longer += 1;
                if ids.len() > longest.1 {
                    longest = (row, ids.len());
                }
                ids.truncate(limit);
                labels.truncate(limit);
            }
            let example = TokenizedExample { row, ids, labels };
            if example.label_tokens() == 0 {
                tokenized.without_labels.push(row);
            } else {
                tokenized.examples.push(example);
            }
        }
        if longer > 0 && max_length.is_none() {
            return Err(Error::TooLong {
                set,
                count: longer,
                total: examples.len(),
                row: longest.0,
                tokens: longest.1,
                limit,
            });
        }
        if tokenized.examples.is_empty() {
            return Err(Error::NoLabels { set, max_length: limit });
        }
        tokenized.truncated = longer;
        Ok(tokenized)
    }

    /// The longest first: batches of similar length, least padding, and a run that does not fit
    /// fails at once.
    pub fn by_length(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.examples.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(self.examples[*index].ids.len()));
        order
    }

    /// A hash, in hexadecimal, that changes with the examples or their order (FNV-1a over ids and labels).
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut mix = |value: u64| hash = (hash ^ value).wrapping_mul(0x0000_0100_0000_01b3);
        for example in &self.examples {
            mix(example.ids.len() as u64);
            example.ids.iter().for_each(|id| mix(u64::from(*id)));
            example.labels.iter().for_each(|label| mix(*label as u64));
        }
        format!("{hash:016x}")
    }

    /// How many tokens the longest example has.
    pub fn longest(&self) -> usize {
        self.examples.iter().map(|example| example.ids.len()).max().unwrap_or(0)
    }
}

/// Rows that go through the model together.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids, padded on the right, `[b, t]` u32.
    pub ids: Tensor,
    /// For each position of `ids`, row by row, the token that follows it, or [`IGNORE`]: `b·t` of
    /// them.
    pub labels: Vec<i64>,
    /// For each row the lengths of the examples packed into it; `None`: each row is one example.
    pub segments: Option<Vec<Vec<usize>>>,
    /// Which examples these are.
    pub rows: Vec<usize>,
    /// Tokens without the padding.
    pub tokens: usize,
    /// Positions that bear a loss.
    pub label_tokens: usize,
}

impl Batch {
    /// Pads to the longest row with `pad_id` and shifts the labels.
    pub fn new(examples: &[&TokenizedExample], pad_id: u32, device: &Device) -> Result<Self> {
        let rows: Vec<Vec<&TokenizedExample>> =
            examples.iter().map(|example| vec![*example]).collect();
        Ok(Self { segments: None, ..Self::packed(&rows, pad_id, device)? })
    }

    /// The same of rows that hold several examples each, end to end. None of them sees another.
    pub fn packed(rows: &[Vec<&TokenizedExample>], pad_id: u32, device: &Device) -> Result<Self> {
        let tokens = |row: &Vec<&TokenizedExample>| {
            row.iter().map(|example| example.ids.len()).sum::<usize>()
        };
        let longest = rows.iter().map(tokens).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(rows.len() * longest);
        let mut labels = Vec::with_capacity(rows.len() * longest);
        for row in rows {
            let from = ids.len();
            for example in row {
                ids.extend_from_slice(&example.ids);
                labels.extend(example.labels.iter().skip(1)); // position i predicts token i + 1
                labels.resize(ids.len(), IGNORE);
            }
            ids.resize(from + longest, pad_id);
            labels.resize(from + longest, IGNORE);
        }
        let examples = || rows.iter().flatten();
        let lengths =
            |row: &Vec<&TokenizedExample>| row.iter().map(|example| example.ids.len()).collect();
        Ok(Self {
            ids: Tensor::from_vec(ids, (rows.len(), longest), device)?,
            label_tokens: labels.iter().filter(|label| **label != IGNORE).count(),
            labels,
            segments: Some(rows.iter().map(lengths).collect()),
            rows: examples().map(|example| example.row).collect(),
            tokens: examples().map(|example| example.ids.len()).sum(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One id per byte; the completion ends in 0.
    fn bytes(_: usize, example: &Example) -> Result<TokenizedText> {
        let Example::Conversation(messages) = example else { unreachable!() };
        let [prompt, completion] = &messages[..] else { unreachable!() };
        let prompt = prompt.content.bytes();
        let loss_mask = prompt.clone().map(|_| false);
        let loss_mask = loss_mask.chain(completion.content.bytes().map(|_| true)).chain([true]);
        let ids = prompt.chain(completion.content.bytes()).chain([0]);
        Ok(TokenizedText { ids: ids.map(u32::from).collect(), loss_mask: loss_mask.collect() })
    }

    fn set(
        pairs: &[(&str, &str)],
        context: usize,
        max_length: Option<usize>,
    ) -> Result<TokenizedSet> {
        let examples: Vec<_> =
            pairs.iter().map(|(prompt, completion)| Example::new(*prompt, *completion)).collect();
        TokenizedSet::new("training", &examples, context, max_length, &bytes)
    }

    #[test]
    fn labels_are_the_completion_shifted_by_one() {
        let set = set(&[("ab", "c"), ("a", "")], 16, None).unwrap();
        let rows: Vec<_> = set.examples.iter().collect();
        let batch = Batch::new(&rows, 9, &Device::Cpu).unwrap();
        assert_eq!(batch.ids.to_vec2::<u32>().unwrap(), [[97, 98, 99, 0], [97, 0, 9, 9]]);
        assert_eq!(batch.labels, [IGNORE, 99, 0, IGNORE, 0, IGNORE, IGNORE, IGNORE]);
        assert_eq!((batch.tokens, batch.label_tokens, batch.rows), (6, 3, vec![0, 1]));
    }

    #[test]
    fn every_label_is_the_next_id() {
        let set = set(&[("prompt", "completion"), ("x", "a longer completion")], 64, None).unwrap();
        let rows: Vec<_> = set.examples.iter().collect();
        let batch = Batch::new(&rows, 1, &Device::Cpu).unwrap();
        let ids: Vec<u32> = batch.ids.flatten_all().unwrap().to_vec1().unwrap();
        let mut seen = 0;
        for (position, label) in
            batch.labels.iter().enumerate().filter(|(_, label)| **label != IGNORE)
        {
            assert_eq!(*label, i64::from(ids[position + 1]));
            seen += 1;
        }
        assert_eq!(seen, batch.label_tokens);
    }

    #[test]
    fn too_long_is_an_error_unless_a_length_is_given() {
        let pairs = [("ab", "cdef"), ("abcdef", "g"), ("a", "b")];
        let error = set(&pairs, 6, None).unwrap_err().to_string();
        assert!(
            error.contains("2 of 3 examples") && error.contains("row 1 with 8 tokens"),
            "{error}"
        );
        let cut = set(&pairs, 6, Some(6)).unwrap();
        assert_eq!(cut.truncated, 2);
        assert_eq!(cut.without_labels, [1], "its completion was cut off whole");
        assert_eq!(
            cut.examples.iter().map(|e| (e.row, e.ids.len(), e.label_tokens())).collect::<Vec<_>>(),
            [(0, 6, 4), (2, 3, 2)]
        );
    }

    #[test]
    fn nothing_to_learn_is_an_error() {
        assert!(matches!(set(&[], 8, None), Err(Error::NoExamples { .. })));
        assert!(matches!(set(&[("abcdef", "g")], 8, Some(4)), Err(Error::NoLabels { .. })));
    }

    #[test]
    fn packed_rows_hold_examples_end_to_end_and_predict_within_each() {
        let set = set(&[("ab", "c"), ("a", ""), ("x", "y")], 16, None).unwrap();
        let [first, second, third] = &set.examples[..] else { unreachable!() };
        let batch = Batch::packed(&[vec![first, second], vec![third]], 9, &Device::Cpu).unwrap();
        let ids = batch.ids.to_vec2::<u32>().unwrap();
        assert_eq!(ids, [[97, 98, 99, 0, 97, 0], [120, 121, 0, 9, 9, 9]]);
        let i = IGNORE;
        // The last token of an example predicts nothing, least of all the first of the next.
        assert_eq!(batch.labels, [i, 99, 0, i, 0, i, 121, 0, i, i, i, i]);
        assert_eq!(batch.segments, Some(vec![vec![4, 2], vec![3]]));
        assert_eq!((batch.tokens, batch.label_tokens, batch.rows), (9, 5, vec![0, 1, 2]));
    }
}
