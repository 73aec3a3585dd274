//! The prompts of a completion: a text, ids, or a list of either.

use serde_json::Value;

use crate::adapters::Served;
use crate::api_error::{ApiError, ApiResult};
use crate::app::{App, refused};
use crate::fields::shown;

const EXPECTED: &str = "a text, a list of token ids, or a list of texts or of lists of token ids";

/// One prompt as it was given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// The prompts of `prompt`.
///
/// # Errors
/// Something else, by its place: `prompt[2]`.
pub(crate) fn read(value: Value) -> ApiResult<Vec<Prompt>> {
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(ApiError::value("prompt", &shown(&other), EXPECTED)),
    };
    match items.first() {
        None => Err(ApiError::value("prompt", "an empty list", EXPECTED)),
        Some(Value::Number(_)) => Ok(vec![Prompt::Ids(ids_of(&Value::Array(items), "prompt")?)]),
        Some(_) => {
            let one = |(number, item): (usize, Value)| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                other => ids_of(&other, &format!("prompt[{number}]")).map(Prompt::Ids),
            };
            items.into_iter().enumerate().map(one).collect()
        }
    }
}

/// Token ids.
pub(crate) fn ids_of(value: &Value, at: &str) -> ApiResult<Vec<u32>> {
    let Value::Array(items) = value else {
        return Err(ApiError::value(at, &shown(value), "a list of token ids"));
    };
    let id = |(number, item): (usize, &Value)| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| ApiError::value(&format!("{at}[{number}]"), &shown(item), "a token id"))
    };
    items.iter().enumerate().map(id).collect()
}

/// The ids of prompts, and with `echo` their texts. `special`: a text gets the tokens that the
/// tokenizer adds.
///
/// # Errors
/// A prompt that is empty or too long, or an id outside the vocabulary, by its place.
pub(crate) fn tokenize(
    app: &App,
    served: &Served,
    prompts: Vec<Prompt>,
    special: bool,
    echo: bool,
) -> ApiResult<(Vec<Vec<u32>>, Vec<String>)> {
    let several = prompts.len() > 1;
    let tokenizer = app.model.tokenizer();
    let (mut ids, mut texts) = (Vec::new(), Vec::new());
    for (number, prompt) in prompts.into_iter().enumerate() {
        let at = if several { format!("prompt[{number}]") } else { "prompt".to_owned() };
        let (tokens, text) = match prompt {
            Prompt::Text(text) => {
                check_size(app, room(app, served), &at, &text)?;
                let tokens = match special {
                    true => tokenizer.encode_with_special_tokens(&text),
                    false => tokenizer.encode(&text),
                };
                (tokens.map_err(|error| refused(&at, &error))?, text)
            }
            Prompt::Ids(ids) => {
                check_length(app, served, &at, ids.len())?;
                app.model.check_ids("prompt", &ids).map_err(|error| refused(&at, &error))?;
                let text = if echo { tokenizer.decode(&ids) } else { Ok(String::new()) };
                (ids, text.map_err(|error| refused(&at, &error))?)
            }
        };
        if tokens.is_empty() {
            return Err(ApiError::value(&at, "empty", "at least one token"));
        }
        check_length(app, served, &at, tokens.len())?;
        ids.push(tokens);
        if echo {
            texts.push(text);
        }
    }
    Ok((ids, texts))
}

/// How many tokens a prompt may have, so that there is room for one more.
pub(crate) fn room(app: &App, served: &Served) -> usize {
    let limit = app.config.limits.max_prompt_tokens.unwrap_or(usize::MAX);
    let context = app.model.config().max_position_embeddings;
    context.saturating_sub(served.overlay.positions_before() + 1).min(limit)
}

/// # Errors
/// A prompt that leaves no room for a token, or is longer than the server's limit.
pub(crate) fn check_length(
    app: &App,
    served: &Served,
    param: &str,
    tokens: usize,
) -> ApiResult<()> {
    let room = room(app, served);
    if tokens > room {
        let message =
            format!("the prompt has {tokens} tokens, expected at most {room}; shorten it");
        return Err(ApiError::field("context_length_exceeded", param, message));
    }
    Ok(())
}

/// Before a text is tokenised, which takes hundreds of bytes of memory for each of its own.
///
/// # Errors
/// A text that cannot have as few tokens as there is room for, each as long as they come.
pub(crate) fn check_size(app: &App, room: usize, param: &str, text: &str) -> ApiResult<()> {
    let most = room.saturating_mul(app.longest_token_bytes);
    if text.len() > most {
        let message = format!(
            "the text has {} bytes, more than {room} tokens can have ({most}); shorten it",
            text.len()
        );
        return Err(ApiError::field("context_length_exceeded", param, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_forms_are_read() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (value, prompts) in [
            (json!("a"), vec![text("a")]),
            (json!([1, 2]), vec![Prompt::Ids(vec![1, 2])]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([[1], [2, 3]]), vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]),
        ] {
            assert_eq!(read(value).unwrap(), prompts);
        }
        for (value, param) in [
            (json!({}), "prompt"),
            (json!([]), "prompt"),
            (json!([1, -2]), "prompt[1]"),
            (json!([1, 2.5]), "prompt[1]"),
            (json!([1, 4_294_967_296u64]), "prompt[1]"),
            (json!(["a", 3]), "prompt[1]"),
            (json!([[1], ["a"]]), "prompt[1][0]"),
        ] {
            assert_eq!(read(value.clone()).unwrap_err().param.as_deref(), Some(param), "{value}");
        }
    }
}
