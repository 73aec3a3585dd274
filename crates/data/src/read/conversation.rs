//! Rows that are conversations: lists of turns, and earlier turns beside a question.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::columns::{MESSAGES, SYSTEM, TURNS};
use crate::read::fields::{Field, kind};
use crate::read::shape::{FoundKeys, Pair, push_extra};
use crate::text::excerpt;
use crate::turn::{Role, Turn, train_flag, turns_json};

/// The lists that hold a conversation.
pub(crate) const LISTS: [&str; 3] = ["messages", "conversations", "conversation"];
/// Keys of a message that hold a part of the answer beside its text.
const APART: [(&str, &str); 5] = [
    ("tool_calls", "the calls"),
    ("function_call", "the call"),
    ("reasoning_content", "the reasoning"),
    ("reasoning", "the reasoning"),
    ("thinking", "the reasoning"),
];

/// Whether a list is one of messages.
pub(crate) fn is_messages(list: &[Value]) -> bool {
    let is_message = |value: &Value| {
        value.as_object().is_some_and(|turn| turn.contains_key("role") || turn.contains_key("from"))
    };
    !list.is_empty() && list.iter().all(is_message)
}

/// The turns of a list of pairs.
pub(crate) fn history(pairs: &[Value]) -> Result<Vec<Turn>, String> {
    if is_messages(pairs) {
        return turns("history", pairs);
    }
    let mut turns = Vec::with_capacity(2 * pairs.len() + 2);
    for (at, pair) in pairs.iter().enumerate() {
        let texts: Option<Vec<&str>> =
            pair.as_array().and_then(|pair| pair.iter().map(Value::as_str).collect());
        let Some([question, answer]) = texts.as_deref() else {
            return Err(format!(
                "expected a question and its answer in history[{at}], found {}: \
                 rename \"history\" if it is no earlier conversation",
                kind(pair)
            ));
        };
        turns.push(Turn::new(Role::User, *question));
        turns.push(Turn::new(Role::Assistant, *answer));
    }
    Ok(turns)
}

/// The turns of a list of messages.
fn turns(list_name: &str, list: &[Value]) -> Result<Vec<Turn>, String> {
    list.iter().enumerate().map(|(at, turn)| message(&format!("{list_name}[{at}]"), turn)).collect()
}

/// One message, which stands at `place`.
fn message(place: &str, turn: &Value) -> Result<Turn, String> {
    let Some(turn) = turn.as_object() else {
        return Err(format!("expected an object in {place}, found {}", kind(turn)));
    };
    let name = turn.get("role").or_else(|| turn.get("from"));
    let Some(name) = name.and_then(Value::as_str) else {
        return Err(format!("expected a text \"role\" or \"from\" in {place}"));
    };
    let Some(role) = Role::of(name) else {
        return Err(format!(
            "expected one of the roles {} in {place}, found \"{}\"",
            Role::names(),
            excerpt(name, 40)
        ));
    };
    said_apart(place, turn)?;
    let content = turn.get("content").or_else(|| turn.get("value"));
    let Some(content) = content.and_then(content_text) else {
        let found = match content {
            None => "nothing".to_owned(),
            Some(Value::Array(parts)) => {
                let other = parts.iter().find(|part| part_text(part).is_none());
                let other = other.and_then(|part| part.get("type")?.as_str()).unwrap_or("no text");
                format!("a list with a part that is no text: {}", excerpt(other, 40))
            }
            Some(other) => kind(other).to_owned(),
        };
        return Err(format!("expected text in \"content\" of {place}, found {found}"));
    };
    let train = train_flag(turn).map_err(|reason| format!("{place}: {reason}"))?;
    Ok(Turn { role, content, train })
}

/// A part of the answer that stands beside the text would be lost, and the model would learn to
/// answer without it.
fn said_apart(place: &str, turn: &Map<String, Value>) -> Result<(), String> {
    let is_filled = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    };
    match APART.iter().find(|(key, _)| turn.get(*key).is_some_and(is_filled)) {
        None => Ok(()),
        Some((key, noun)) => Err(format!(
            "expected all of the answer in \"content\" of {place}, found \"{key}\" beside it: \
             write {noun} into \"content\" as the model's chat template does, or leave the key out"
        )),
    }
}

/// The turns without the system message in front, which joins `system`.
fn without_system(mut turns: Vec<Turn>, system: &mut Option<String>) -> Result<Vec<Turn>, String> {
    let front = turns.iter().take_while(|turn| turn.role == Role::System).count();
    for turn in turns.drain(..front) {
        if turn.train == Some(true) {
            return Err("expected no loss on the system message, found one: \
                        leave out its \"train\" or \"weight\""
                .to_owned());
        }
        *system = Some(match system.take() {
            Some(before) => format!("{before}\n\n{}", turn.content),
            None => turn.content,
        });
    }
    Ok(turns)
}

/// The pair of a row with a list of messages.
pub(crate) fn conversation<'a>(fields: Vec<(Cow<'a, str>, Field<'a>)>) -> Result<Pair<'a>, String> {
    let mut list = None;
    let mut system = None;
    let mut extras = Vec::new();
    let mut keys = FoundKeys::default();
    for (key, field) in fields {
        keys.see(&key);
        match field {
            Field::Other(Value::Array(turns))
                if list.is_none() && LISTS.contains(&key.as_ref()) =>
            {
                list = Some((key, turns));
            }
            field if LISTS.contains(&key.as_ref()) && list.is_none() => {
                return Err(format!("expected a list in \"{key}\", found {}", field.kind()));
            }
            Field::Text(text) if key == SYSTEM => system = Some(text.into_owned()),
            field => push_extra(&mut extras, key, field),
        }
    }
    let Some((list_name, list)) = list else {
        return Err(format!("expected a list \"messages\" or \"conversations\", found {keys}"));
    };
    let mut said = without_system(turns(&list_name, &list)?, &mut system)?;
    let Some(last) = said.iter().rposition(|turn| turn.role == Role::Assistant) else {
        return Err(format!("expected an assistant's turn in \"{list_name}\", found none"));
    };
    if last == 0 {
        return Err(format!(
            "expected a user's turn before the assistant's in \"{list_name}\", found none"
        ));
    }
    said.truncate(last + 1);
    if let Some(system) = system {
        extras.push((Cow::Borrowed(SYSTEM), Value::String(system)));
    }
    Ok(pair_of(said, extras))
}

/// A prompt or a completion as it stands in a row.
pub(crate) enum Side<'a> {
    Text(Cow<'a, str>),
    Turns(Vec<Value>),
}

/// The pair of a prompt and a completion of which one at least is a list of messages. As TRL has
/// it, the completion bears the loss: an earlier answer does where it says so itself.
pub(crate) fn pair_of_sides<'a>(
    names: [&str; 2],
    [prompt, completion]: [Side<'a>; 2],
    mut extras: Vec<(Cow<'a, str>, Value)>,
) -> Result<Pair<'a>, String> {
    let mut said = match prompt {
        Side::Text(text) => vec![Turn::new(Role::User, text)],
        Side::Turns(list) => turns(names[0], &list)?,
    };
    for turn in said.iter_mut().filter(|turn| turn.role == Role::Assistant) {
        turn.train = turn.train.or(Some(false));
    }
    match completion {
        Side::Text(text) => said.push(Turn::new(Role::Assistant, text)),
        Side::Turns(list) => said.extend(turns(names[1], &list)?),
    }
    let mut system = None;
    if let Some(at) = extras.iter().position(|(key, _)| key == SYSTEM) {
        system = extras.remove(at).1.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    }
    let said = without_system(said, &mut system)?;
    if said.len() < 2 || said.last().is_none_or(|turn| turn.role != Role::Assistant) {
        return Err(format!(
            "expected a turn in \"{}\" and an assistant's as the last in \"{}\", found another order",
            names[0], names[1]
        ));
    }
    if let Some(system) = system {
        extras.push((Cow::Borrowed(SYSTEM), Value::String(system)));
    }
    Ok(pair_of(said, extras))
}

/// The pair of a question and its answer, with the turns before them.
pub(crate) fn pair_after<'a>(
    mut earlier: Vec<Turn>,
    prompt: Cow<'a, str>,
    completion: Cow<'a, str>,
    mut extras: Vec<(Cow<'a, str>, Value)>,
) -> Pair<'a> {
    if earlier.is_empty() {
        return Pair { prompt, completion, extras };
    }
    // An empty system message is none.
    extras.retain(|(key, value)| key != SYSTEM || value.as_str() != Some(""));
    earlier.push(Turn::new(Role::User, prompt));
    earlier.push(Turn::new(Role::Assistant, completion));
    pair_of(earlier, extras)
}

/// The pair of a conversation whose last turn is the answer.
fn pair_of<'a>(mut said: Vec<Turn>, mut extras: Vec<(Cow<'a, str>, Value)>) -> Pair<'a> {
    let last = said.len() - 1;
    // A prompt and a completion say all of one question and its answer, unless another role than the
    // user's asks, or the file says that another turn than the answer bears the loss.
    let flagged = said.iter().any(|turn| turn.bears_loss() != (turn.role == Role::Assistant));
    if last > 1 || flagged || said[0].role != Role::User {
        extras.push((Cow::Borrowed(TURNS), Value::from(said.len())));
        extras.push((Cow::Borrowed(MESSAGES), Value::String(turns_json(&said))));
    }
    let completion = std::mem::take(&mut said[last].content);
    let prompt = match &mut said[..last] {
        [only] if only.role == Role::User => std::mem::take(&mut only.content),
        earlier => {
            let turns: Vec<String> = earlier
                .iter()
                .map(|turn| format!("{}: {}", turn.role.label(), turn.content))
                .collect();
            turns.join("\n\n")
        }
    };
    Pair { prompt: Cow::Owned(prompt), completion: Cow::Owned(completion), extras }
}

/// Plain text, or the texts of a list of parts.
fn content_text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts: Option<Vec<&str>> = parts.iter().map(part_text).collect();
            texts.map(|texts| texts.join("\n"))
        }
        _ => None,
    }
}

fn part_text(part: &Value) -> Option<&str> {
    part.as_str().or_else(|| part.get("text")?.as_str())
}
