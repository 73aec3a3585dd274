//! The shapes of rows in files: the fields that are the prompt and the completion.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::columns::{COMPLETION, PROMPT, SYSTEM};
use crate::read::conversation::{
    LISTS, Side, conversation, history, is_messages, pair_after, pair_of_sides,
};
use crate::read::fields::{Field, kind};
use crate::text::excerpt;

/// A row with more fields than this is compared by sorting.
const FEW_FIELDS: usize = 16;

/// The shape of the rows in a file: the fields that become the prompt and the completion.
///
/// [`Dataset::read`](crate::Dataset::read) recognises the shape by the names of the first usable
/// row's fields, and says which one it took ([`Dataset::shape`](crate::Dataset::shape));
/// [`ReadOptions`](crate::ReadOptions) names one. Where no field has a name as it stands here, one
/// that differs in upper and lower case or in blanks at its ends counts (`Question`, `Answer`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum RowShape {
    /// `prompt` and `completion`: texts, or lists of messages as TRL has them, of which the
    /// completion bears the loss. Earlier turns in `history`, pairs of a question and its answer,
    /// make a conversation of the row, here and in the shapes of two texts below.
    PromptCompletion,
    /// `instruction`, `input` (may be missing or empty) and `output`, as in Stanford's Alpaca. The
    /// prompt is the instruction, a blank line and the input. Earlier turns in `history`, pairs of
    /// a question and its answer as in LLaMA-Factory, make a conversation of the row, as for
    /// [`RowShape::Messages`].
    Alpaca,
    /// `messages`: a list of `{"role", "content"}`, as OpenAI's chat format and ChatML.
    ///
    /// The completion is the last assistant's turn. With one user's turn before it, that is the
    /// prompt; of a longer conversation the earlier turns stand in the prompt, each after the name
    /// of its role, and the column `messages` keeps the turns themselves, which
    /// [`Dataset::conversations`](crate::Dataset::conversations) gives for training: the chat
    /// template sees each turn in its role ([`Role`](crate::Role)), a tool's, too. A system
    /// message goes into the column `system`. The `weight` (0 or 1) or `train` of a message is
    /// kept, too.
    ///
    /// Unreadable are rows with a role of another name, without an answer, or with a part of the
    /// answer beside the text (`tool_calls`, `reasoning_content`). Turns after the last answer and
    /// other keys of a message (`name`, `tool_call_id`) are left out.
    Messages,
    /// `conversations`: a list of `{"from", "value"}`, as ShareGPT. Pairs are made as for
    /// [`RowShape::Messages`].
    ShareGpt,
    /// `question` and `answer`.
    QuestionAnswer,
    /// `text` alone: the prompt is empty and the completion is the text.
    Text,
    /// Two columns by name.
    Columns {
        /// The column of the prompt.
        prompt: String,
        /// The column of the completion.
        completion: String,
    },
    /// Texts with the names of columns in braces, such as `"{question}\n\n{context}"`. A brace that
    /// is meant is doubled.
    Template {
        /// The prompt.
        prompt: String,
        /// The completion.
        completion: String,
    },
}

/// Further pairs of names for a prompt and a completion, without a shape of their own.
const PAIRS: [(&str, &str); 7] = [
    ("query", "response"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("question", "response"),
    ("input", "output"),
    ("source", "target"),
    ("user", "assistant"),
];

/// The names of the shapes of two texts.
const KNOWN_PAIRS: [(&str, &str); 2] = [(PROMPT, COMPLETION), ("question", "answer")];

/// The prompt and completion of a row.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    pub prompt: Cow<'a, str>,
    pub completion: Cow<'a, str>,
    /// Further columns, nulls left out.
    pub extras: Vec<(Cow<'a, str>, Value)>,
}

impl Pair<'_> {
    pub(crate) fn into_owned(self) -> Pair<'static> {
        Pair {
            prompt: Cow::Owned(self.prompt.into_owned()),
            completion: Cow::Owned(self.completion.into_owned()),
            extras: self
                .extras
                .into_iter()
                .map(|(key, value)| (Cow::Owned(key.into_owned()), value))
                .collect(),
        }
    }
}

impl fmt::Display for RowShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PromptCompletion => f.write_str("prompt/completion"),
            Self::Alpaca => f.write_str("Alpaca (instruction/input/output)"),
            Self::Messages => f.write_str("messages (role/content)"),
            Self::ShareGpt => f.write_str("ShareGPT (conversations of from/value)"),
            Self::QuestionAnswer => f.write_str("question/answer"),
            Self::Text => f.write_str("text (no prompt)"),
            Self::Columns { prompt, completion } => write!(f, "columns {prompt}/{completion}"),
            Self::Template { prompt, completion } => {
                write!(f, "template {:?} → {:?}", excerpt(prompt, 60), excerpt(completion, 60))
            }
        }
    }
}

/// The shapes in words, for messages.
pub(crate) const KNOWN: &str = "prompt/completion, instruction/input/output (Alpaca), messages, conversations (ShareGPT), \
     question/answer, query/response, input/output, text";

/// Whether a field's name is this one, upper and lower case and blanks at its ends aside.
fn is_like(key: &str, name: &str) -> bool {
    key.trim().eq_ignore_ascii_case(name)
}

/// The fields with the names that a shape asks for, where all of `required` are there or can be told
/// by one field each that is like them; else as they were.
fn renamed<'a>(
    mut fields: Vec<(Cow<'a, str>, Field<'a>)>,
    required: &[&str],
    further: &[&str],
) -> Vec<(Cow<'a, str>, Field<'a>)> {
    let has = |name: &str| fields.iter().any(|(key, _)| key == name);
    if required.iter().all(|name| has(name)) {
        return fields;
    }
    let like = |name: &str| {
        let mut places = fields.iter().enumerate().filter(|(_, (key, _))| is_like(key, name));
        places.next().filter(|_| places.next().is_none()).map(|(at, _)| at)
    };
    let mut renames = Vec::new();
    for (name, needed) in
        required.iter().map(|name| (name, true)).chain(further.iter().map(|name| (name, false)))
    {
        match like(name) {
            _ if has(name) => {}
            Some(at) => renames.push((at, (*name).to_owned())),
            None if needed => return fields,
            None => {}
        }
    }
    renames.into_iter().for_each(|(at, name)| fields[at].0 = Cow::Owned(name));
    fields
}

impl RowShape {
    /// The shape of a row with these fields, if it is a known one.
    pub(crate) fn recognise<'a>(
        fields: impl Iterator<Item = (&'a str, &'a Field<'a>)> + Clone,
    ) -> Option<Self> {
        let text = |is: fn(&str, &str) -> bool| {
            fields.clone().any(|(key, _)| is(key, "text")).then_some(Self::Text)
        };
        let exact: fn(&str, &str) -> bool = |key, name| key == name;
        Self::recognise_by(fields.clone(), exact)
            .or_else(|| Self::recognise_by(fields.clone(), is_like))
            .or_else(|| text(exact))
            .or_else(|| text(is_like))
    }

    /// The shape of a row that is more than a text, where `is` tells whether a key is a name.
    fn recognise_by<'a>(
        fields: impl Iterator<Item = (&'a str, &'a Field<'a>)> + Clone,
        is: fn(&str, &str) -> bool,
    ) -> Option<Self> {
        let has = |name: &str| fields.clone().any(|(key, _)| is(key, name));
        let turns = |name: &str| {
            fields.clone().find_map(|(key, field)| match field {
                Field::Other(Value::Array(turns)) if is(key, name) => Some(turns),
                _ => None,
            })
        };
        if has(PROMPT) && has(COMPLETION) {
            return Some(Self::PromptCompletion);
        }
        for name in LISTS {
            let Some(turns) = turns(name) else { continue };
            let first = turns.iter().find_map(Value::as_object);
            return Some(match first {
                Some(turn) if turn.contains_key("from") => Self::ShareGpt,
                _ => Self::Messages,
            });
        }
        if has("instruction") && has("output") {
            return Some(Self::Alpaca);
        }
        if has("question") && has("answer") {
            return Some(Self::QuestionAnswer);
        }
        for (prompt, completion) in PAIRS {
            if has(prompt) && has(completion) {
                return Some(Self::Columns {
                    prompt: prompt.to_owned(),
                    completion: completion.to_owned(),
                });
            }
        }
        None
    }

    /// Whether a template takes the column of this name; the other shapes take theirs away.
    pub(crate) fn fills(&self, column: &str) -> bool {
        let Self::Template { prompt, completion } = self else { return false };
        let has = |template: &str| {
            pieces(template)
                .unwrap_or_default()
                .iter()
                .any(|piece| matches!(piece, Piece::Name(name) if *name == column))
        };
        has(prompt) || has(completion)
    }

    /// The fields under the names that this shape asks for.
    fn named<'a>(&self, fields: Vec<(Cow<'a, str>, Field<'a>)>) -> Vec<(Cow<'a, str>, Field<'a>)> {
        const BESIDE: [&str; 2] = ["history", SYSTEM];
        match self {
            Self::PromptCompletion => renamed(fields, &[PROMPT, COMPLETION], &BESIDE),
            Self::QuestionAnswer => renamed(fields, &["question", "answer"], &BESIDE),
            Self::Columns { prompt, completion } => renamed(fields, &[prompt, completion], &BESIDE),
            Self::Alpaca => {
                renamed(fields, &["instruction", "output"], &["input", "history", SYSTEM])
            }
            Self::Text => renamed(fields, &["text"], &[]),
            Self::Messages | Self::ShareGpt => {
                let has = |name: &&&str| fields.iter().any(|(key, _)| key == **name);
                let like = |name: &&&str| fields.iter().any(|(key, _)| is_like(key, name));
                match (LISTS.iter().find(has), LISTS.iter().find(like)) {
                    (None, Some(name)) => renamed(fields, &[name], &[SYSTEM]),
                    _ => fields,
                }
            }
            Self::Template { .. } => fields,
        }
    }

    /// The pair of a row, or the reason why there is none: what was expected, and what was found.
    pub(crate) fn pair<'a>(
        &self,
        fields: Vec<(Cow<'a, str>, Field<'a>)>,
    ) -> Result<Pair<'a>, String> {
        if let Some(key) = repeated(&fields) {
            return Err(format!("expected each key once, found \"{}\" twice", excerpt(key, 40)));
        }
        let fields = self.named(fields);
        match self {
            Self::PromptCompletion => columns(fields, PROMPT, COMPLETION),
            Self::QuestionAnswer => columns(fields, "question", "answer"),
            Self::Columns { prompt, completion } => columns(fields, prompt, completion),
            Self::Text => text(fields),
            Self::Alpaca => alpaca(fields),
            Self::Messages | Self::ShareGpt => conversation(fields),
            Self::Template { prompt, completion } => template(fields, prompt, completion),
        }
    }
}

fn repeated<'a>(fields: &'a [(Cow<'_, str>, Field<'_>)]) -> Option<&'a str> {
    if fields.len() <= FEW_FIELDS {
        return fields
            .iter()
            .enumerate()
            .find(|(i, (key, _))| fields[..*i].iter().any(|(before, _)| before == key))
            .map(|(_, (key, _))| key.as_ref());
    }
    let mut keys: Vec<&str> = fields.iter().map(|(key, _)| key.as_ref()).collect();
    keys.sort_unstable();
    keys.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

fn columns<'a>(
    fields: Vec<(Cow<'a, str>, Field<'a>)>,
    prompt_name: &str,
    completion_name: &str,
) -> Result<Pair<'a>, String> {
    let (mut prompt, mut completion) = (None, None);
    let mut earlier = Vec::new();
    let mut extras: Vec<(Cow<str>, Value)> = Vec::new();
    let mut keys = FoundKeys::default();
    // One column may serve as both.
    let twice = (prompt_name == completion_name).then_some(prompt_name);
    // Columns that were named are all that is asked for.
    let has_history =
        KNOWN_PAIRS.iter().chain(&PAIRS).any(|pair| pair == &(prompt_name, completion_name));
    for (key, field) in fields {
        keys.see(&key);
        let slot = if key == prompt_name {
            &mut prompt
        } else if key == completion_name {
            &mut completion
        } else if let ("history", Field::Other(Value::Array(pairs))) = (key.as_ref(), &field)
            && has_history
        {
            earlier = history(pairs)?;
            continue;
        } else {
            push_extra(&mut extras, key, field);
            continue;
        };
        match field {
            Field::Text(text) => *slot = Some(Side::Text(text)),
            Field::Other(Value::Array(turns)) if twice.is_none() && is_messages(&turns) => {
                *slot = Some(Side::Turns(turns));
            }
            Field::Other(value @ (Value::Array(_) | Value::Object(_))) => {
                return Err(format!(
                    "expected text in \"{key}\", found {}: make it a text, or each of its values a row",
                    kind(&value)
                ));
            }
            Field::Other(value) => {
                return Err(format!("expected text in \"{key}\", found {}", kind(&value)));
            }
        }
    }
    if let (Some(_), Some(Side::Text(text))) = (twice, &prompt) {
        completion = Some(Side::Text(text.clone()));
    }
    match (prompt, completion) {
        (Some(Side::Text(prompt)), Some(Side::Text(completion))) => {
            Ok(pair_after(earlier, prompt, completion, extras))
        }
        (Some(prompt), Some(completion)) if earlier.is_empty() => {
            pair_of_sides([prompt_name, completion_name], [prompt, completion], extras)
        }
        (Some(_), Some(_)) => Err(format!(
            "expected a text in \"{prompt_name}\" beside \"history\", found a list of messages: \
             put all turns into one list \"messages\""
        )),
        (prompt, _) => {
            let missing = if prompt.is_none() { prompt_name } else { completion_name };
            Err(format!(
                "expected the keys \"{prompt_name}\" and \"{completion_name}\": \"{missing}\" is missing, found {keys}"
            ))
        }
    }
}

fn text<'a>(fields: Vec<(Cow<'a, str>, Field<'a>)>) -> Result<Pair<'a>, String> {
    let mut found = None;
    let mut extras = Vec::new();
    let mut keys = FoundKeys::default();
    for (key, field) in fields {
        keys.see(&key);
        match field {
            Field::Text(text) if key == "text" => found = Some(text),
            Field::Other(value) if key == "text" => {
                return Err(format!("expected text in \"text\", found {}", kind(&value)));
            }
            field => push_extra(&mut extras, key, field),
        }
    }
    match found {
        Some(completion) => Ok(Pair { prompt: Cow::Borrowed(""), completion, extras }),
        None => Err(format!("expected the key \"text\", found {keys}")),
    }
}

fn alpaca<'a>(fields: Vec<(Cow<'a, str>, Field<'a>)>) -> Result<Pair<'a>, String> {
    let (mut instruction, mut input, mut output) = (None, None, None);
    let mut earlier = Vec::new();
    let mut extras = Vec::new();
    let mut keys = FoundKeys::default();
    for (key, field) in fields {
        keys.see(&key);
        let slot = match key.as_ref() {
            "instruction" => &mut instruction,
            "input" => &mut input,
            "output" => &mut output,
            "history" => match field {
                Field::Other(Value::Array(pairs)) => {
                    earlier = history(&pairs)?;
                    continue;
                }
                field => {
                    push_extra(&mut extras, key, field);
                    continue;
                }
            },
            _ => {
                push_extra(&mut extras, key, field);
                continue;
            }
        };
        match field {
            Field::Text(text) => *slot = Some(text),
            Field::Other(Value::Null) if key == "input" => {}
            Field::Other(value) => {
                return Err(format!("expected text in \"{key}\", found {}", kind(&value)));
            }
        }
    }
    let (Some(instruction), Some(completion)) = (instruction, output) else {
        return Err(format!("expected the keys \"instruction\" and \"output\", found {keys}"));
    };
    let prompt = match input.filter(|input| !input.trim().is_empty()) {
        Some(input) => Cow::Owned(format!("{instruction}\n\n{input}")),
        None => instruction,
    };
    Ok(pair_after(earlier, prompt, completion, extras))
}

fn template<'a>(
    fields: Vec<(Cow<'a, str>, Field<'a>)>,
    prompt: &str,
    completion: &str,
) -> Result<Pair<'a>, String> {
    let prompt = fill(prompt, &fields)?;
    let completion = fill(completion, &fields)?;
    let mut extras = Vec::new();
    for (key, field) in fields {
        push_extra(&mut extras, key, field);
    }
    Ok(Pair { prompt: Cow::Owned(prompt), completion: Cow::Owned(completion), extras })
}

/// A text of a template: literal pieces, and the names between braces.
fn fill(template: &str, fields: &[(Cow<'_, str>, Field<'_>)]) -> Result<String, String> {
    let mut out = String::with_capacity(template.len() + 64);
    for piece in pieces(template)? {
        match piece {
            Piece::Literal(text) => out.push_str(text),
            Piece::Name(name) => match fields.iter().find(|(key, _)| key == name) {
                Some((_, Field::Text(text))) => out.push_str(text),
                Some((_, Field::Other(Value::Null))) | None => {
                    let mut keys = FoundKeys::default();
                    fields.iter().for_each(|(key, _)| keys.see(key));
                    return Err(format!("expected \"{name}\" for the template, found {keys}"));
                }
                Some((_, Field::Other(value))) => out.push_str(&value.to_string()),
            },
        }
    }
    Ok(out)
}

enum Piece<'a> {
    Literal(&'a str),
    Name(&'a str),
}

fn pieces(template: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        pieces.push(Piece::Literal(&rest[..at]));
        let after = &rest[at + 1..];
        if after.starts_with(&rest[at..=at]) {
            pieces.push(Piece::Literal(&rest[at..=at]));
            rest = &after[1..];
        } else if let (true, Some(end)) = (rest[at..].starts_with('{'), after.find('}')) {
            pieces.push(Piece::Name(after[..end].trim()));
            rest = &after[end + 1..];
        } else {
            return Err(format!(
                "the template has a brace without its partner: {:?}",
                excerpt(template, 60)
            ));
        }
    }
    pieces.push(Piece::Literal(rest));
    Ok(pieces)
}

/// Whether a template can be filled at all; the reason if not.
pub(crate) fn check_template(template: &str) -> Result<(), String> {
    pieces(template).map(drop)
}

pub(crate) fn push_extra<'a>(
    extras: &mut Vec<(Cow<'a, str>, Value)>,
    key: Cow<'a, str>,
    field: Field<'a>,
) {
    // The two columns have their own names; another key of such a name would be a second one.
    let key = if key == PROMPT || key == COMPLETION {
        Cow::Owned(format!("original_{key}"))
    } else {
        key
    };
    match field {
        Field::Other(Value::Null) => {}
        field => extras.push((key, field.into_value())),
    }
}

/// The first few keys of a row, for a message.
#[derive(Default)]
pub(crate) struct FoundKeys {
    shown: Vec<String>,
    more: bool,
}

impl FoundKeys {
    pub(crate) fn see(&mut self, key: &str) {
        if self.shown.len() < 8 {
            self.shown.push(format!("\"{}\"", excerpt(key, 40)));
        } else {
            self.more = true;
        }
    }
}

impl fmt::Display for FoundKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shown.is_empty() {
            return f.write_str("no key at all");
        }
        write!(f, "only {}{}", self.shown.join(", "), if self.more { ", …" } else { "" })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::columns::{MESSAGES, TURNS};
    use crate::read::fields::Fields;
    use crate::turn::Role;

    fn read(line: &str) -> (Option<RowShape>, Result<(String, String), String>) {
        let fields: Fields = serde_json::from_str(line).unwrap();
        let shape = RowShape::recognise(fields.0.iter().map(|(key, field)| (key.as_ref(), field)));
        let pair = shape.clone().unwrap_or(RowShape::PromptCompletion).pair(fields.0);
        (shape, pair.map(|pair| (pair.prompt.into_owned(), pair.completion.into_owned())))
    }

    #[test]
    fn every_usual_shape_is_recognised() {
        let pair = |p: &str, c: &str| Ok((p.to_owned(), c.to_owned()));
        for (line, shape, expected) in [
            (
                r#"{"completion":"b","prompt":"a","text":"x"}"#,
                RowShape::PromptCompletion,
                pair("a", "b"),
            ),
            (
                r#"{"instruction":"Do","input":"it","output":"done"}"#,
                RowShape::Alpaca,
                pair("Do\n\nit", "done"),
            ),
            (
                r#"{"instruction":"Do","input":"","output":"done"}"#,
                RowShape::Alpaca,
                pair("Do", "done"),
            ),
            (
                r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
                RowShape::Messages,
                pair("a", "b"),
            ),
            (
                r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"},{"role":"user","content":"e"}]}"#,
                RowShape::Messages,
                pair("User: a\n\nAssistant: b\n\nUser: c", "d"),
            ),
            (
                r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#,
                RowShape::ShareGpt,
                pair("a", "b"),
            ),
            (r#"{"question":"a","answer":"b"}"#, RowShape::QuestionAnswer, pair("a", "b")),
            (
                r#"{"query":"a","response":"b"}"#,
                RowShape::Columns { prompt: "query".into(), completion: "response".into() },
                pair("a", "b"),
            ),
            (r#"{"text":"a","id":1}"#, RowShape::Text, pair("", "a")),
            // Names as spreadsheets have them.
            (r#"{"Question":"a"," ANSWER ":"b"}"#, RowShape::QuestionAnswer, pair("a", "b")),
            (
                r#"{"Prompt":"a","Completion":"b","text":"x"}"#,
                RowShape::PromptCompletion,
                pair("a", "b"),
            ),
            (
                r#"{"Instruction":"Do","Input":"it","Output":"done"}"#,
                RowShape::Alpaca,
                pair("Do\n\nit", "done"),
            ),
            (
                r#"{"Messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
                RowShape::Messages,
                pair("a", "b"),
            ),
            (
                r#"{"Query":"a","response":"b"}"#,
                RowShape::Columns { prompt: "query".into(), completion: "response".into() },
                pair("a", "b"),
            ),
            (r#"{"Text":"a"}"#, RowShape::Text, pair("", "a")),
            (
                r#"{"question":"a","Question":"x","answer":"b"}"#,
                RowShape::QuestionAnswer,
                pair("a", "b"),
            ),
        ] {
            assert_eq!(read(line), (Some(shape), expected), "{line}");
        }
        assert_eq!(read(r#"{"body":"a"}"#).0, None);
        // Two of one name are none.
        let error = read(r#"{"Question":"a","QUESTION":"x","Answer":"b"}"#).1.unwrap_err();
        assert!(error.contains("\"question\" is missing"), "{error}");
        // Names that were given are found as well, and the other columns keep theirs.
        let given = RowShape::Columns { prompt: "mail".into(), completion: "topic".into() };
        let fields: Fields =
            serde_json::from_str(r#"{"Mail":"a","Topic":"b","Prompt":"c"}"#).unwrap();
        let pair = given.pair(fields.0).unwrap();
        assert_eq!((pair.prompt.as_ref(), pair.completion.as_ref()), ("a", "b"));
        assert_eq!(pair.extras[0].0, "Prompt");
    }

    #[test]
    fn the_history_of_an_alpaca_row_is_a_conversation() {
        let fields = |history: &str| {
            let line = format!(
                r#"{{"instruction":"c","input":"","output":"d","system":"s","history":{history}}}"#
            );
            serde_json::from_str::<serde_json::Map<String, Value>>(&line).unwrap();
            let fields: Fields = serde_json::from_str(&line).unwrap();
            RowShape::Alpaca.pair(fields.0).map(Pair::into_owned)
        };
        let pair = fields(r#"[["a","b"]]"#).unwrap();
        assert_eq!(pair.prompt, "User: a\n\nAssistant: b\n\nUser: c");
        assert_eq!(pair.completion, "d");
        let value = |name: &str| pair.extras.iter().find(|(key, _)| key == name).unwrap().1.clone();
        assert_eq!((value(SYSTEM), value(TURNS)), ("s".into(), 4.into()));
        let turns = crate::turn::turns_of(value(MESSAGES).as_str().unwrap()).unwrap();
        assert_eq!(turns.len(), 4);
        assert!(turns.iter().all(|turn| turn.bears_loss() == (turn.role == Role::Assistant)));
        assert_eq!(fields("[]").unwrap().prompt, "c");
        assert_eq!(fields("null").unwrap().prompt, "c");
        assert!(fields(r#"[["a"]]"#).unwrap_err().contains("history[0]"));
    }

    #[test]
    fn a_conversation_that_makes_no_pair_says_why() {
        for (line, reason) in [
            (r#"{"messages":[]}"#, "expected an assistant's turn in \"messages\", found none"),
            (
                r#"{"messages":[{"role":"assistant","content":"b"}]}"#,
                "expected a user's turn before the assistant's",
            ),
            (r#"{"messages":[{"role":"wizard","content":"b"}]}"#, "found \"wizard\""),
            (
                r#"{"messages":[{"role":"user","content":null}]}"#,
                "expected text in \"content\" of messages[0], found null",
            ),
            (r#"{"messages":["hi"]}"#, "expected an object in messages[0], found text"),
            (
                r#"{"messages":[{"content":"b"}]}"#,
                "expected a text \"role\" or \"from\" in messages[0]",
            ),
        ] {
            let error = read(line).1.unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn a_template_takes_any_column() {
        let fields = || {
            let fields: Fields =
                serde_json::from_str(r#"{"q":"a","n":3,"c":"{x}","nil":null}"#).unwrap();
            fields.0
        };
        let shape =
            |prompt: &str| RowShape::Template { prompt: prompt.into(), completion: "{c}".into() };
        let pair = shape("{{{q}}} {n}").pair(fields()).unwrap();
        assert_eq!((pair.prompt.as_ref(), pair.completion.as_ref()), ("{a} 3", "{x}"));
        assert!(
            shape("{nil}")
                .pair(fields())
                .unwrap_err()
                .contains("expected \"nil\" for the template")
        );
        assert!(
            check_template("open {q").is_err()
                && check_template("{q}}").is_err()
                && check_template("{{").is_ok()
        );
    }
}
