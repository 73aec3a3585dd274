//! `/v1/chat/completions`.

use serde_json::{Value, json};
use tunebook_models::{GenerationConfig, Message};

use crate::support::*;

const PATH: &str = "/v1/chat/completions";

fn body(extra: Value) -> Value {
    let mut body = json!({
        "model": "model", "messages": [{ "role": "user", "content": "Where is it?" }], "temperature": 0,
        "max_completion_tokens": 24,
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[test]
fn an_answer_has_openais_shape_and_the_models_words() {
    let service = Service::start();
    let conversation = [vec![Message::user("Where is it?")]];
    let config = GenerationConfig { max_new_tokens: 24, top_logprobs: 3, ..Default::default() };
    let expected = service.model.chat_completions(&conversation, &config).unwrap().remove(0);
    let answer = service.answer(PATH, &body(json!({ "logprobs": true, "top_logprobs": 3 })));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][0];
    let message = json!({ "role": "assistant", "content": expected.text, "refusal": null });
    assert_eq!(choice["message"], message);
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), expected.ids.len());
    for (entry, log) in content.iter().zip(&expected.log_probabilities) {
        assert_eq!(entry["logprob"].as_f64().unwrap() as f32, *log);
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(entry["top_logprobs"][0]["logprob"], entry["logprob"], "greedy");
    }
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), expected.text);
    // The answers of one request are numbered, and their seeds differ.
    let several = body(json!({ "n": 3, "temperature": 1.3, "seed": 3 }));
    let answer = service.answer(PATH, &several);
    let texts: Vec<&Value> =
        answer["choices"].as_array().unwrap().iter().map(|c| &c["message"]["content"]).collect();
    assert_eq!(texts.len(), 3);
    assert_ne!(texts[0], texts[1]);
    assert_eq!(service.answer(PATH, &several)["choices"], answer["choices"], "the same seed");
}

#[test]
fn a_stream_joined_is_the_whole_answer() {
    let service = Service::start();
    let asked = body(json!({ "n": 2, "temperature": 0.9, "seed": 1, "logprobs": true }));
    let whole = service.answer(PATH, &asked);
    let chunks = service.stream(PATH, &asked);
    for choice in whole["choices"].as_array().unwrap() {
        let own: Vec<&Value> = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0])
            .filter(|own| own["index"] == choice["index"])
            .collect();
        assert_eq!(own[0]["delta"], json!({ "role": "assistant", "content": "" }));
        let text: String = own.iter().filter_map(|own| own["delta"]["content"].as_str()).collect();
        assert_eq!(choice["message"]["content"], text);
        let (last, before) = own.split_last().unwrap();
        assert_eq!(
            [&last["finish_reason"], &last["delta"]],
            [&choice["finish_reason"], &json!({})]
        );
        assert!(before.iter().all(|own| own["finish_reason"].is_null()));
        let scores: Vec<&Value> =
            own.iter().filter_map(|own| own["logprobs"]["content"].as_array()).flatten().collect();
        let expected = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(scores, expected.iter().collect::<Vec<_>>());
    }
}

#[test]
fn a_conversation_that_goes_on_is_not_computed_again() {
    let service = Service::start();
    let first = "x".repeat(200);
    let turn = |content: &str| json!({ "role": "user", "content": content });
    let ask = |messages: Value| service.answer(PATH, &body(json!({ "messages": messages })));
    let cached = |answer: &Value| {
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let answer = ask(json!([turn(&first)]));
    assert_eq!(cached(&answer), 0);
    let messages = json!([turn(&first), { "role": "assistant", "content": "y" }, turn("z")]);
    assert!(cached(&ask(messages)) >= 192);
}

#[test]
fn wrong_requests_get_400_and_the_field() {
    let service = Service::start();
    let user = json!({ "role": "user", "content": "a" });
    for (extra, code, param) in [
        (json!({ "messages": null }), "missing_field", "messages"),
        (json!({ "messages": [] }), "invalid_value", "messages"),
        (
            json!({ "messages": [user, { "role": "robot", "content": "a" }] }),
            "invalid_value",
            "messages[1].role",
        ),
        (json!({ "tools": [{ "type": "function" }] }), "unsupported_field", "tools"),
        (json!({ "response_format": { "type": "json" } }), "invalid_value", "response_format.type"),
        (json!({ "top_logprobs": 2 }), "invalid_value", "top_logprobs"),
        (json!({ "max_completion_tokens": 0 }), "invalid_value", "max_completion_tokens"),
        (json!({ "echo": true }), "unsupported_field", "echo"),
        (
            json!({ "messages": [{ "role": "user", "content": "a".repeat(3000) }] }),
            "context_length_exceeded",
            "messages",
        ),
    ] {
        let found = service.refusal(PATH, &body(extra.clone()));
        assert_eq!(found, (400, code.to_owned(), param.to_owned()), "{extra}");
    }
    // What asks for nothing is no reason to refuse.
    service.answer(PATH, &body(json!({
        "tools": [], "response_format": { "type": "text" }, "presence_penalty": 0, "logprobs": null,
        "store": false, "user": "me", "max_tokens": 3,
    })));
}
