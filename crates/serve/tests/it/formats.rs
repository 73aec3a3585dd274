//! `response_format` and `structured_outputs`.

use serde_json::{Value, json};
use tunebook_serve::ServerConfig;

use crate::support::*;

const CHAT: &str = "/v1/chat/completions";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "ok": { "type": "boolean" },
            "name": { "type": "string", "maxLength": 8 },
            "list": { "type": "array", "items": { "enum": ["a", 1, null] }, "maxItems": 4 },
        },
        "required": ["ok", "name", "list"],
        "additionalProperties": false,
    })
}

fn body(model: &str, extra: Value) -> Value {
    let format = json!({ "type": "json_schema", "json_schema": {
        "name": "answer", "strict": true, "schema": schema(),
    } });
    let mut body = json!({
        "model": model, "messages": [{ "role": "user", "content": "Where is it?" }], "n": 4,
        "temperature": 1, "seed": 1, "max_completion_tokens": 300, "response_format": format,
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// Whether a text is of the schema, which those that ended by themselves must be.
fn check(text: &str, finish_reason: &Value) -> bool {
    let ended = finish_reason == "stop";
    let value = serde_json::from_str::<Value>(text);
    if ended {
        let value = value.unwrap_or_else(|error| panic!("{error}: {text}"));
        jsonschema::validate(&schema(), &value).unwrap_or_else(|error| panic!("{error}: {text}"));
    }
    ended
}

#[test]
fn answers_of_the_base_and_of_adapters_have_the_format_whole_and_streamed() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let load = json!({ "lora_name": "one", "lora_path": "one" });
    service.answer("/v1/load_lora_adapter", &load);
    for model in ["model", "one"] {
        let asked = body(model, json!({}));
        let whole = service.answer(CHAT, &asked);
        let choices = whole["choices"].as_array().unwrap();
        let ended = choices
            .iter()
            .filter(|c| check(c["message"]["content"].as_str().unwrap(), &c["finish_reason"]));
        assert!(ended.count() > 0, "{whole}");
        let chunks = service.stream(CHAT, &asked);
        for choice in choices {
            let own = chunks.iter().map(|chunk| &chunk["choices"][0]);
            let own: Vec<&Value> = own.filter(|own| own["index"] == choice["index"]).collect();
            let text: String =
                own.iter().filter_map(|own| own["delta"]["content"].as_str()).collect();
            assert_eq!(choice["message"]["content"], text);
            assert_eq!(own.last().unwrap()["finish_reason"], choice["finish_reason"]);
        }
    }
    // A stop text and a limit cut it all the same.
    let cut = service.answer(CHAT, &body("model", json!({ "n": 1, "stop": "\"name" })));
    let choice = &cut["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert!(!choice["message"]["content"].as_str().unwrap().contains("name"));
    let cut = service.answer(CHAT, &body("model", json!({ "n": 1, "max_completion_tokens": 5 })));
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_format_that_cannot_be_kept_is_the_requests_fault() {
    let service = Service::with(&ServerConfig::default());
    let format = |schema: Value| {
        let format =
            json!({ "type": "json_schema", "json_schema": { "name": "a", "schema": schema } });
        body("model", json!({ "response_format": format }))
    };
    let (status, answer) = service.post(CHAT, &format(json!({ "not": { "type": "null" } })));
    let refused = refusal(status, &answer);
    assert_eq!(refused, (400, "format_refused".to_owned(), "response_format".to_owned()));
    assert!(answer["error"]["message"].as_str().unwrap().contains("`not`"), "{answer}");
    let mut asked = body("model", json!({ "structured_outputs": { "regex": "(" } }));
    asked["response_format"] = Value::Null;
    let refused = service.refusal(CHAT, &asked);
    assert_eq!(refused, (400, "format_refused".to_owned(), "structured_outputs".to_owned()));
    // Some show only while they are kept.
    let endless = json!({ "$ref": "#" });
    let refused = service.refusal(CHAT, &format(endless.clone()));
    assert_eq!(refused, (400, "format_refused".to_owned(), "response_format".to_owned()));
    let mut asked = body("model", json!({ "structured_outputs": { "json": endless } }));
    asked["response_format"] = Value::Null;
    let refused = service.refusal(CHAT, &asked);
    assert_eq!(refused, (400, "format_refused".to_owned(), "structured_outputs".to_owned()));
    // The server goes on.
    service.answer(CHAT, &body("model", json!({})));
}
