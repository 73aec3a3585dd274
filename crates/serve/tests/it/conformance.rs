//! The HTTP interface by example: `tests/golden/serve/conformance.json` holds requests with their
//! answers, and what of an answer differs from run to run is masked. `TUNEBOOK_UPDATE=1` writes the
//! answers of this run into the file, for review.
//!
//! Each answer is checked against the description at `/openapi.json`, too.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Map, Value, json};

use crate::support::*;

/// Asks, and answers with the status, the content type and the answer: JSON, the chunks of a stream
/// or a text.
fn ask(service: &Service, case: &Value) -> (u16, String, Value) {
    let (method, path) = case["request"].as_str().unwrap().split_once(' ').unwrap();
    let body = match (&case["body"], &case["raw"]) {
        (Value::Null, Value::String(raw)) => raw.clone(),
        (Value::Null, _) => String::new(),
        (body, _) => body.to_string(),
    };
    let kind = case["content_type"].as_str().unwrap_or("application/json");
    let path = path.replace("{model}", "model");
    let request = ureq::http::Request::builder().method(method).uri(service.url(&path));
    let mut response = match method {
        "POST" => service.agent().run(request.header("content-type", kind).body(body).unwrap()),
        _ => service.agent().run(request.body(()).unwrap()),
    }
    .unwrap();
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    let text = response.body_mut().read_to_string().unwrap();
    let answer = match kind.as_str() {
        "application/json" => serde_json::from_str(&text).unwrap(),
        "text/event-stream" => {
            let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
            data.map(|data| serde_json::from_str::<Value>(data).unwrap_or_else(|_| data.into()))
                .collect()
        }
        _ => text.into(),
    };
    (response.status().as_u16(), kind, answer)
}

/// Masks ids, times, generations and log-probabilities.
fn masked(value: &Value, key: &str) -> Value {
    match (key, value) {
        ("created", _) => "<time>".into(),
        ("system_fingerprint" | "generation" | "replaced", Value::String(_)) => {
            "<generation>".into()
        }
        ("id", Value::String(id)) if id.contains("cmpl-") => {
            format!("{}-<id>", id.split('-').next().unwrap()).into()
        }
        ("root" | "adapter", Value::String(text)) if text.starts_with('/') => "<folder>".into(),
        // One token is there, whatever machine computes it.
        (_, Value::Number(number)) if number.is_f64() => "<number>".into(),
        (_, Value::String(text)) => masked_text(text).into(),
        (_, Value::Array(items)) => items.iter().map(|item| masked(item, key)).collect(),
        (_, Value::Object(map)) => {
            let entry = |(key, value): (&String, &Value)| (key.clone(), masked(value, key));
            Value::Object(map.iter().map(entry).collect::<Map<_, _>>())
        }
        _ => value.clone(),
    }
}

/// Messages name generations.
fn masked_text(text: &str) -> String {
    let is_hex = |word: &str| word.len() == 32 && word.chars().all(|c| c.is_ascii_hexdigit());
    let words = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    words
        .map(|word| {
            let plain = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            match is_hex(plain) {
                true => word.replace(plain, "<generation>"),
                false => word.to_owned(),
            }
        })
        .collect()
}

/// The description's problems with an answer.
fn problems(
    description: &Value,
    case: &Value,
    status: u16,
    kind: &str,
    answer: &Value,
) -> Vec<String> {
    let (method, path) = case["request"].as_str().unwrap().split_once(' ').unwrap();
    let path = if path.starts_with("/v1/models/") { "/v1/models/{model}" } else { path };
    let operation = &description["paths"][path][method.to_lowercase()];
    if operation.is_null() {
        // What nobody describes is refused.
        return if matches!(status, 404 | 405) { vec![] } else { vec![format!("{status}")] };
    }
    let content = &operation["responses"][status.to_string()]["content"];
    let kind = kind.split(';').next().unwrap();
    if content[kind].is_null() {
        return vec![format!("{status} as {kind} is not described for {method} {path}")];
    }
    let mut schema = match (kind, path) {
        ("text/event-stream", "/v1/chat/completions") => {
            json!({ "$ref": "#/components/schemas/Envelope_ChatChunkChoice" })
        }
        ("text/event-stream", _) => json!({ "$ref": "#/components/schemas/Envelope_TextChoice" }),
        _ => content[kind]["schema"].clone(),
    };
    schema["components"] = description["components"].clone();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let parts = match answer {
        Value::Array(chunks) => &chunks[..chunks.len() - 1],
        whole => std::slice::from_ref(whole),
    };
    let errors = parts.iter().flat_map(|part| validator.iter_errors(part));
    errors.map(|error| format!("{error} at {}", error.instance_path())).collect()
}

#[test]
fn every_answer_is_the_one_in_the_table_and_as_described() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let file = golden("serve/conformance.json");
    let text = fs::read_to_string(&file).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 60, "{}", cases.len());
    let description = service.get_json("/openapi.json");
    let mut wrong = Vec::new();
    let mut new = Vec::new();
    for case in &cases {
        let (status, kind, answer) = ask(&service, case);
        for problem in problems(&description, case, status, &kind, &answer) {
            wrong.push(format!("{}: {problem}", case["name"]));
        }
        let found = (json!(status), masked(&answer, ""));
        if (&found.0, &found.1) != (&case["status"], &case["answer"]) {
            wrong.push(format!("{}: found {} {}", case["name"], found.0, found.1));
        }
        let mut case = case.clone();
        case["status"] = found.0;
        case["answer"] = found.1;
        new.push(case);
    }
    if std::env::var_os("TUNEBOOK_UPDATE").is_some() {
        fs::write(&file, serde_json::to_string_pretty(&new).unwrap() + "\n").unwrap();
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// A value that a described field accepts, for one request of its own.
fn value_of(schema: &Value, schemas: &Value) -> Value {
    if let Some(name) = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
        return value_of(&schemas[name], schemas);
    }
    if let Some(value) = schema["enum"].as_array().and_then(|values| values.first()) {
        return value.clone();
    }
    if !schema["const"].is_null() {
        return schema["const"].clone();
    }
    for several in ["oneOf", "anyOf", "allOf"] {
        if let Some(parts) = schema[several].as_array() {
            let first = parts.iter().find(|part| part["type"] != "null");
            return value_of(first.unwrap(), schemas);
        }
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds[0].as_str(),
        kind => kind.as_str(),
    };
    match kind {
        Some("integer") => (schema["minimum"].as_i64().unwrap_or(0).max(0)).into(),
        Some("number") => schema["maximum"].as_f64().unwrap_or(1.0).into(),
        Some("boolean") => false.into(),
        Some("string") if schema["maxLength"] == 0 => "".into(),
        Some("string") => "a".into(),
        Some("array") if schema["maxItems"] == 0 => json!([]),
        Some("array") => json!([value_of(&schema["items"], schemas)]),
        Some("object") => {
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            let names = required.iter().map(|name| name.as_str().unwrap());
            names
                .map(|name| (name.to_owned(), value_of(&schema["properties"][name], schemas)))
                .collect()
        }
        _ => Value::Null,
    }
}

#[test]
fn requests_have_the_described_fields_and_no_others() {
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let description = service.get_json("/openapi.json");
    let schemas = &description["components"]["schemas"];
    let user = json!([{ "role": "user", "content": "a" }]);
    for (path, body) in [
        ("/v1/chat/completions", json!({ "model": "model", "messages": user, "max_tokens": 1 })),
        ("/v1/completions", json!({ "model": "model", "prompt": "a", "max_tokens": 1 })),
        ("/tokenize", json!({ "prompt": "a" })),
        ("/detokenize", json!({ "tokens": [42] })),
        ("/v1/load_lora_adapter", json!({ "lora_name": "a", "lora_path": "none" })),
        ("/v1/unload_lora_adapter", json!({ "lora_name": "a" })),
    ] {
        let schema = &description["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            ["schema"];
        let name = schema["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
        let request = &schemas[name];
        assert_eq!(request["additionalProperties"], false, "{name}");
        for (field, schema) in request["properties"].as_object().unwrap() {
            let mut body = body.clone();
            if body[field].is_null() {
                body[field] = match field.as_str() {
                    "base_model_name" => "model".into(),
                    _ => value_of(schema, schemas),
                };
            }
            let (_, answer) = service.post(path, &body);
            assert_ne!(answer["error"]["code"], "unsupported_field", "{path}: {field}: {body}");
        }
        let mut body = body.clone();
        body["none"] = 1.into();
        let refusal = service.refusal(path, &body);
        assert_eq!(refusal, (400, "unsupported_field".to_owned(), "none".to_owned()), "{path}");
    }
}

#[test]
fn every_path_is_described_and_the_page_needs_nothing_from_elsewhere() {
    let service = Service::start();
    let description = service.get_json("/openapi.json");
    assert!(description["openapi"].as_str().unwrap().starts_with("3.2"));
    let described: BTreeSet<&str> =
        description["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    for path in &described {
        for method in description["paths"][path].as_object().unwrap().keys() {
            let case =
                json!({ "request": format!("{} {path}", method.to_uppercase()), "body": {} });
            let (status, _, answer) = ask(&service, &case);
            let code = &answer["error"]["code"];
            assert!(code != "unknown_path" && code != "wrong_method", "{status} {method} {path}");
        }
    }
    // The server counts requests by path: it knows the same ones.
    service.get("/v1/models/model");
    let metrics = service.get("/metrics").1;
    for path in described.iter().filter(|path| !path.contains('{')) {
        assert!(metrics.contains(&format!("\"{path}\"")), "{path}: {metrics}");
    }
    let (status, page) = service.get("/docs");
    assert_eq!(status, 200);
    assert!(
        page.contains("openapi.json") && !page.contains("http://") && !page.contains("https://")
    );
}
