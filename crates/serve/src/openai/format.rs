//! The format that answers must have: OpenAI's `response_format`, and vLLM's `structured_outputs`.

use serde_json::Value;
use tunebook_models::AnswerFormat;

use crate::api_error::{ApiError, ApiResult};
use crate::fields::{Fields, shown};

/// Longer names are refused by OpenAI.
const LONGEST_NAME: usize = 64;

/// The format, and the field that asks for it.
///
/// # Errors
/// A field that is none of a format, or both.
pub(crate) fn read(fields: &mut Fields) -> ApiResult<(Option<AnswerFormat>, &'static str)> {
    let by_openai = match fields.take("response_format") {
        Some(format) => response_format(format)?,
        None => None,
    };
    let by_vllm = fields.take("structured_outputs").map(structured_outputs).transpose()?;
    match (by_openai, by_vllm) {
        (Some(_), Some(_)) => {
            let message = "`structured_outputs` and `response_format` are given, expected one";
            Err(ApiError::field("invalid_value", "structured_outputs", message))
        }
        (None, Some(format)) => Ok((Some(format), "structured_outputs")),
        (format, None) => Ok((format, "response_format")),
    }
}

fn response_format(value: Value) -> ApiResult<Option<AnswerFormat>> {
    const EXPECTED: &str = "`text`, `json_object` or `json_schema`";
    let mut fields = Fields::of(value, "response_format")?;
    let format = match fields.required_text("type", EXPECTED)?.as_str() {
        "text" => None,
        "json_object" => Some(AnswerFormat::JsonObject),
        "json_schema" => {
            let schema = fields.take("json_schema");
            let schema = schema.ok_or_else(|| fields.missing("json_schema", "an object"))?;
            Some(AnswerFormat::JsonSchema(json_schema(schema)?))
        }
        other => {
            let shown = format!("`{}`", other.chars().take(40).collect::<String>());
            return Err(ApiError::value("response_format.type", &shown, EXPECTED));
        }
    };
    fields.end()?;
    Ok(format)
}

/// The schema within OpenAI's wrapping. It is kept with `strict` and without.
fn json_schema(value: Value) -> ApiResult<Value> {
    let mut fields = Fields::of(value, "response_format.json_schema")?;
    let name = fields.required_text("name", "a name for the schema")?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_plain) {
        let shown = format!("`{}`", name.chars().take(80).collect::<String>());
        let expected = "1 to 64 letters, digits, `_` and `-`";
        return Err(ApiError::value(&fields.name("name"), &shown, expected));
    }
    fields.text("description")?;
    fields.flag("strict")?;
    let at = fields.name("schema");
    let schema = match fields.take("schema") {
        Some(Value::Object(schema)) => Value::Object(schema),
        Some(other) => return Err(ApiError::value(&at, &shown(&other), "a JSON Schema")),
        None => return Err(fields.missing("schema", "a JSON Schema")),
    };
    fields.end()?;
    Ok(schema)
}

fn structured_outputs(value: Value) -> ApiResult<AnswerFormat> {
    const EXPECTED: &str = "one of `json`, `json_object`, `regex`, `choice` and `grammar`";
    let mut fields = Fields::of(value, "structured_outputs")?;
    let at = fields.name("json");
    let json = match fields.take("json") {
        None => None,
        // Some clients send it as a text.
        Some(Value::String(text)) => Some(serde_json::from_str(&text).map_err(|error| {
            ApiError::value(&at, &format!("no JSON ({error})"), "a JSON Schema")
        })?),
        Some(schema) => Some(schema),
    };
    let object = fields.flag("json_object")?.filter(|object| *object);
    let regex = fields.text("regex")?;
    let grammar = fields.text("grammar")?;
    let at = fields.name("choice");
    let choice = match fields.take("choice") {
        None => None,
        Some(Value::Array(items)) => {
            let text = |item: &Value| item.as_str().map(str::to_owned);
            let texts: Option<Vec<String>> = items.iter().map(text).collect();
            let wrong = || ApiError::value(&at, "a list with other things", "a list of texts");
            Some(texts.ok_or_else(wrong)?)
        }
        Some(other) => return Err(ApiError::value(&at, &shown(&other), "a list of texts")),
    };
    fields.end()?;
    let mut given = [
        json.map(AnswerFormat::JsonSchema),
        object.map(|_| AnswerFormat::JsonObject),
        regex.map(AnswerFormat::Regex),
        choice.map(AnswerFormat::Choice),
        grammar.map(AnswerFormat::Lark),
    ]
    .into_iter()
    .flatten();
    match (given.next(), given.next()) {
        (Some(format), None) => Ok(format),
        (None, _) => Err(ApiError::value("structured_outputs", "empty", EXPECTED)),
        (Some(_), Some(_)) => {
            Err(ApiError::value("structured_outputs", "of several formats", EXPECTED))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(body: Value) -> ApiResult<(Option<AnswerFormat>, &'static str)> {
        read(&mut Fields::of(body, "").unwrap())
    }

    #[test]
    fn formats_of_both_kinds_are_read() {
        let schema = json!({ "type": "integer" });
        let wrapped = json!({ "type": "json_schema", "json_schema": {
            "name": "n", "description": "d", "strict": true, "schema": schema,
        } });
        let by_schema = Some(AnswerFormat::JsonSchema(schema.clone()));
        for (body, format, field) in [
            (json!({}), None, "response_format"),
            (json!({ "response_format": { "type": "text" } }), None, "response_format"),
            (
                json!({ "response_format": { "type": "json_object" } }),
                Some(AnswerFormat::JsonObject),
                "response_format",
            ),
            (json!({ "response_format": wrapped }), by_schema.clone(), "response_format"),
            (
                json!({ "structured_outputs": { "json": schema } }),
                by_schema.clone(),
                "structured_outputs",
            ),
            (
                json!({ "structured_outputs": { "json": schema.to_string() } }),
                by_schema,
                "structured_outputs",
            ),
            (
                json!({ "structured_outputs": { "choice": ["a", "b"] } }),
                Some(AnswerFormat::Choice(vec!["a".to_owned(), "b".to_owned()])),
                "structured_outputs",
            ),
        ] {
            assert_eq!(of(body).unwrap(), (format, field));
        }
    }

    #[test]
    fn what_is_no_format_is_refused_by_its_place() {
        let named = |name: &str| json!({ "type": "json_schema", "json_schema": { "name": name, "schema": {} } });
        for (body, param) in [
            (json!({ "response_format": "json" }), "response_format"),
            (json!({ "response_format": {} }), "response_format.type"),
            (json!({ "response_format": { "type": "xml" } }), "response_format.type"),
            (json!({ "response_format": { "type": "text", "x": 1 } }), "response_format.x"),
            (
                json!({ "response_format": { "type": "json_schema" } }),
                "response_format.json_schema",
            ),
            (json!({ "response_format": named("a b") }), "response_format.json_schema.name"),
            (
                json!({ "response_format": named(&"a".repeat(65)) }),
                "response_format.json_schema.name",
            ),
            (
                json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "a" } } }),
                "response_format.json_schema.schema",
            ),
            (json!({ "structured_outputs": {} }), "structured_outputs"),
            (
                json!({ "structured_outputs": { "regex": "a", "json_object": true } }),
                "structured_outputs",
            ),
            (json!({ "structured_outputs": { "choice": [1] } }), "structured_outputs.choice"),
            (json!({ "structured_outputs": { "json": "{" } }), "structured_outputs.json"),
            (
                json!({ "structured_outputs": { "regex": "a" }, "response_format": named("a") }),
                "structured_outputs",
            ),
        ] {
            let error = of(body.clone()).unwrap_err();
            assert_eq!(
                error.param.as_deref().map(|p| p.trim_start_matches('.')),
                Some(param),
                "{body}"
            );
        }
    }
}
