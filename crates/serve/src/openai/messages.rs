//! The messages of a conversation.

use serde_json::{Value, json};
use tunebook_models::Message;

use crate::api_error::{ApiError, ApiResult};
use crate::fields::{Fields, shown};

/// The turns of `messages`.
///
/// # Errors
/// Something else than texts, by its place: `messages[2].content[0].type`.
pub(crate) fn read(value: Value) -> ApiResult<Vec<Message>> {
    let Value::Array(items) = value else {
        return Err(ApiError::value("messages", &shown(&value), "a list of messages"));
    };
    if items.is_empty() {
        return Err(ApiError::value("messages", "empty", "at least one message"));
    }
    let one = |(number, item): (usize, Value)| message(item, &format!("messages[{number}]"));
    items.into_iter().enumerate().map(one).collect()
}

fn message(item: Value, at: &str) -> ApiResult<Message> {
    let mut fields = Fields::of(item, at)?;
    let expected = "`system`, `developer`, `user` or `assistant`";
    let role = match fields.required_text("role", expected)?.as_str() {
        // OpenAI's newer name for the same.
        "developer" => "system".to_owned(),
        role @ ("system" | "user" | "assistant") => role.to_owned(),
        other => {
            let shown: String = other.chars().take(40).collect();
            return Err(ApiError::value(&fields.name("role"), &format!("`{shown}`"), expected));
        }
    };
    let name = fields.name("content");
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts
            .into_iter()
            .enumerate()
            .map(|(number, part)| text_of(part, &format!("{name}[{number}]")))
            .collect::<ApiResult<String>>()?,
        Some(other) => {
            return Err(ApiError::value(&name, &shown(&other), "a text or a list of texts"));
        }
        None => return Err(fields.missing("content", "a text or a list of texts")),
    };
    // As lm-evaluation-harness writes it.
    fields.neutral("type", &[json!("text")])?;
    fields.neutral("tool_calls", &[json!([])])?;
    fields.end()?;
    Ok(Message::new(role, content))
}

fn text_of(part: Value, at: &str) -> ApiResult<String> {
    let mut fields = Fields::of(part, at)?;
    let name = fields.name("type");
    match fields.required_text("type", "`text`")?.as_str() {
        "text" => {}
        other => {
            let shown: String = other.chars().take(40).collect();
            let message = format!("`{name}` is `{shown}`; only `text` is supported");
            return Err(ApiError::field("unsupported_field", name, message));
        }
    }
    let text = fields.required_text("text", "a text")?;
    fields.end()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_lists_of_texts_are_read() {
        let messages = read(json!([
            { "role": "developer", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
        ]));
        assert_eq!(messages.unwrap(), [Message::system("Be brief."), Message::user("ab")]);
    }

    #[test]
    fn what_is_not_text_is_refused_by_its_place() {
        for (messages, param) in [
            (json!("hello"), "messages"),
            (json!([]), "messages"),
            (json!([3]), "messages[0]"),
            (json!([{ "content": "a" }]), "messages[0].role"),
            (json!([{ "role": "tool", "content": "a" }]), "messages[0].role"),
            (json!([{ "role": "user" }]), "messages[0].content"),
            (json!([{ "role": "user", "content": 3 }]), "messages[0].content"),
            (json!([{ "role": "user", "content": "a", "name": "x" }]), "messages[0].name"),
            (
                json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]),
                "messages[0].content[0].type",
            ),
            (
                json!([{ "role": "user", "content": [{ "type": "text", "text": "a", "x": 1 }] }]),
                "messages[0].content[0].x",
            ),
        ] {
            let error = read(messages.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{messages}");
        }
    }
}
