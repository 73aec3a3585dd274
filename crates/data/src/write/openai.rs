//! The rules for chat fine-tuning files that OpenAI publishes, as far as a file alone can break
//! them.
//!
//! From the [fine-tuning guide](https://platform.openai.com/docs/guides/supervised-fine-tuning) and
//! the checks of the [cookbook](https://cookbook.openai.com/examples/chat_finetuning_data_prep):
//! one JSON object a line with a list `messages`; each message has a known `role` and a text
//! `content` (or a tool call); no other keys than those listed; at least one message of the
//! assistant, and the last one is; `weight` is 0 or 1; ten examples or more; 512 MB at most.

use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;

use crate::error::{DataError, Result};
use crate::text::excerpt;

/// The fewest examples that a job takes.
const MIN_EXAMPLES: usize = 10;
/// The largest file that can be uploaded.
const MAX_BYTES: usize = 512 << 20;
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];
const MESSAGE_KEYS: [&str; 9] = [
    "role",
    "content",
    "name",
    "weight",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "refusal",
    "audio",
];
const EXAMPLE_KEYS: [&str; 4] = ["messages", "tools", "parallel_tool_calls", "functions"];

/// A line that the provider would refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAiProblem {
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// The rule that it breaks.
    pub problem: String,
}

/// The violations of OpenAI's published rules in a chat fine-tuning file; empty if there is none.
///
/// # Errors
/// The file cannot be read.
pub fn validate_openai_chat(path: impl AsRef<Path>) -> Result<Vec<OpenAiProblem>> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|source| DataError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(problems(&bytes))
}

pub(crate) fn problems(bytes: &[u8]) -> Vec<OpenAiProblem> {
    let mut problems = Vec::new();
    let mut whole = |problem: String| problems.push(OpenAiProblem { line: 0, problem });
    let lines: Vec<(usize, &[u8])> = bytes
        .split(|&byte| byte == b'\n')
        .enumerate()
        .map(|(at, line)| (at + 1, line.trim_ascii()))
        .filter(|(_, line)| !line.is_empty())
        .collect();
    if lines.len() < MIN_EXAMPLES {
        whole(format!("expected at least {MIN_EXAMPLES} examples, found {}", lines.len()));
    }
    if bytes.len() > MAX_BYTES {
        whole(format!("expected at most {} MB, found {} MB", MAX_BYTES >> 20, bytes.len() >> 20));
    }
    let of_lines: Vec<OpenAiProblem> = lines
        .into_par_iter()
        .filter_map(|(line, text)| {
            example(text).err().map(|problem| OpenAiProblem { line, problem })
        })
        .collect();
    problems.extend(of_lines);
    problems
}

fn example(line: &[u8]) -> Result<(), String> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| format!("expected a JSON object: {error}"))?;
    let object = value.as_object().ok_or("expected a JSON object")?;
    if let Some(key) = object.keys().find(|key| !EXAMPLE_KEYS.contains(&key.as_str())) {
        return Err(format!(
            "expected only the keys {EXAMPLE_KEYS:?}, found \"{}\"",
            excerpt(key, 40)
        ));
    }
    let messages = object
        .get("messages")
        .and_then(Value::as_array)
        .filter(|messages| !messages.is_empty())
        .ok_or("expected a list \"messages\" with at least one message")?;
    for (at, message) in messages.iter().enumerate() {
        self::message(message).map_err(|problem| format!("messages[{at}]: {problem}"))?;
    }
    let role = |message: &Value| message["role"].as_str().map(str::to_owned);
    if !messages.iter().any(|message| role(message).as_deref() == Some("user")) {
        return Err("expected a message of the role \"user\", found none".to_owned());
    }
    match messages.last().and_then(role).as_deref() {
        Some("assistant") => Ok(()),
        last => Err(format!(
            "expected the last message to be the assistant's, found \"{}\"",
            last.unwrap_or("none")
        )),
    }
}

fn message(message: &Value) -> Result<(), String> {
    let object = message.as_object().ok_or("expected an object")?;
    if let Some(key) = object.keys().find(|key| !MESSAGE_KEYS.contains(&key.as_str())) {
        return Err(format!("\"{}\" is no key of a message", excerpt(key, 40)));
    }
    let role = object.get("role").and_then(Value::as_str).ok_or("expected a text \"role\"")?;
    if !ROLES.contains(&role) {
        return Err(format!("expected a role of {ROLES:?}, found \"{}\"", excerpt(role, 40)));
    }
    let calls = ["tool_calls", "function_call"]
        .iter()
        .any(|key| object.get(*key).is_some_and(|call| !call.is_null()));
    match object.get("content") {
        Some(Value::String(text)) if !text.trim().is_empty() || calls => {}
        Some(Value::Array(parts)) if !parts.is_empty() => {}
        None | Some(Value::Null) if calls && role == "assistant" => {}
        Some(Value::String(_)) => return Err("expected a \"content\" that is not empty".to_owned()),
        _ => return Err("expected a text \"content\"".to_owned()),
    }
    match object.get("weight") {
        None | Some(Value::Null) => Ok(()),
        Some(_) if role != "assistant" => {
            Err("only the assistant's messages may have a \"weight\"".to_owned())
        }
        Some(weight) if weight.as_i64() == Some(0) || weight.as_i64() == Some(1) => Ok(()),
        Some(weight) => Err(format!("expected a weight of 0 or 1, found {weight}")),
    }
}
