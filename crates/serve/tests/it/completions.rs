//! `/v1/completions` and the tokenizer's routes.

use serde_json::{Value, json};
use tunebook_models::GenerationConfig;

use crate::support::*;

#[test]
fn a_completion_has_openais_shape_and_the_models_words() {
    let service = Service::start();
    let expected = greedy(&service.model, "Hello", 12);
    let answer = service.complete(&request("model", "Hello", 12));
    let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
    );
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!([&answer["object"], &answer["model"]], ["text_completion", "model"]);
    let generation = tunebook_tune::answering_fingerprint(&service.model.base()).unwrap();
    assert_eq!(answer["system_fingerprint"], generation);
    let choice = &answer["choices"][0];
    assert_is(choice, &expected);
    assert_eq!([&choice["index"], &choice["finish_reason"]], [&json!(0), &json!("length")]);
    let usage = &answer["usage"];
    let ids = service.model.tokenizer().encode_with_special_tokens("Hello").unwrap();
    assert_eq!(usage["prompt_tokens"], ids.len());
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(usage["total_tokens"], ids.len() + 12);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
}

#[test]
fn prompts_are_texts_or_ids_or_lists_of_either() {
    let service = Service::start();
    let ids = |text: &str| service.model.tokenizer().encode_with_special_tokens(text).unwrap();
    let texts = |prompt: Value| -> Vec<String> {
        let body = json!({ "model": "model", "prompt": prompt, "temperature": 0, "max_tokens": 8 });
        let answer = service.complete(&body);
        let choices = answer["choices"].as_array().unwrap();
        let numbers: Vec<u64> = choices.iter().map(|c| c["index"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
    };
    let alone = [greedy(&service.model, "One", 8).text, greedy(&service.model, "Two!", 8).text];
    assert_ne!(alone[0], alone[1]);
    assert_eq!(texts(json!("One")), alone[..1]);
    assert_eq!(texts(json!(ids("One"))), alone[..1]);
    assert_eq!(texts(json!(["One", "Two!"])), alone);
    assert_eq!(texts(json!([ids("One"), ids("Two!")])), alone);
}

#[test]
fn echo_has_the_models_log_likelihoods() {
    let service = Service::start();
    let ids = service.model.tokenizer().encode_with_special_tokens("The cat sat.").unwrap();
    // As lm-evaluation-harness asks.
    let body = json!({
        "model": "model", "prompt": [ids, ids[..5]], "temperature": 0, "max_tokens": 1,
        "logprobs": 1, "seed": 1234, "echo": true,
    });
    let answer = service.complete(&body);
    for (choice, ids) in answer["choices"].as_array().unwrap().iter().zip([&ids[..], &ids[..5]]) {
        let lists = &choice["logprobs"];
        let logs = lists["token_logprobs"].as_array().unwrap();
        let tops = lists["top_logprobs"].as_array().unwrap();
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(lists[list].as_array().unwrap().len(), ids.len() + 1, "{list}");
        }
        assert!(logs[0].is_null() && tops[0].is_null());
        let pair = (ids[..1].to_vec(), ids[1..].to_vec());
        let expected = service.model.log_likelihoods_of_ids(&[pair]).unwrap().remove(0);
        let found: Vec<f32> =
            logs[1..ids.len()].iter().map(|log| log.as_f64().unwrap() as f32).collect();
        assert_eq!(found, expected.tokens, "bit for bit");
        // lm-eval's own comparison for `is_greedy`, after each context.
        for context in 1..ids.len() {
            let most = |top: &Value| {
                let values = top.as_object().unwrap().values();
                values.map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max)
            };
            let greedy =
                (context..ids.len()).all(|at| logs[at].as_f64().unwrap() == most(&tops[at]));
            let pair = (ids[..context].to_vec(), ids[context..].to_vec());
            let expected = service.model.log_likelihoods_of_ids(&[pair]).unwrap().remove(0);
            assert_eq!(greedy, expected.is_greedy, "after {context}");
        }
    }
    assert!(answer["choices"][0]["text"].as_str().unwrap().starts_with("The cat sat."));
    // A prompt that is judged alone.
    let body =
        json!({ "model": "model", "prompt": ids, "max_tokens": 0, "logprobs": 0, "echo": true });
    let answer = service.complete(&body);
    assert_eq!(answer["choices"][0]["text"], "The cat sat.");
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), ids.len());
}

#[test]
fn a_stream_joined_is_the_whole_answer() {
    let service = Service::start();
    for body in [
        json!({ "model": "model", "prompt": "Hello", "temperature": 0, "max_tokens": 20, "logprobs": 2 }),
        json!({ "model": "model", "prompt": ["a", "b"], "temperature": 1, "seed": 7, "n": 2, "max_tokens": 20 }),
        json!({ "model": "model", "prompt": "abc", "temperature": 0, "max_tokens": 9, "echo": true, "logprobs": 1 }),
    ] {
        let whole = service.complete(&body);
        let mut asked = body.clone();
        asked["stream_options"] = json!({ "include_usage": true });
        let mut chunks = service.stream("/v1/completions", &asked);
        let last = chunks.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
        assert!(chunks.iter().all(|chunk| chunk["usage"].is_null()));
        assert!(chunks.iter().all(|c| c["system_fingerprint"] == whole["system_fingerprint"]));
        for choice in whole["choices"].as_array().unwrap() {
            let own: Vec<&Value> = chunks
                .iter()
                .map(|chunk| &chunk["choices"][0])
                .filter(|own| own["index"] == choice["index"])
                .collect();
            let text: String = own.iter().map(|own| own["text"].as_str().unwrap()).collect();
            assert_eq!(choice["text"], text);
            let (last, before) = own.split_last().unwrap();
            assert_eq!(last["finish_reason"], choice["finish_reason"]);
            assert!(before.iter().all(|own| own["finish_reason"].is_null()));
            for list in ["tokens", "token_logprobs", "text_offset"] {
                let lists = own.iter().filter_map(|own| own["logprobs"][list].as_array());
                let joined: Vec<&Value> = lists.flatten().collect();
                let expected = choice["logprobs"][list].as_array();
                assert_eq!(joined, expected.into_iter().flatten().collect::<Vec<_>>(), "{list}");
            }
        }
    }
    // Without the wish there is no usage.
    let body = json!({ "model": "model", "prompt": "Hello", "temperature": 0, "max_tokens": 3 });
    let chunks = service.stream("/v1/completions", &body);
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[test]
fn sampling_is_the_models_own() {
    let service = Service::start();
    let prompt = service.model.tokenizer().encode_with_special_tokens("Once").unwrap();
    for (extra, config) in [
        (
            json!({ "temperature": 0.8, "seed": 11 }),
            GenerationConfig { temperature: 0.8, seed: 11, ..Default::default() },
        ),
        (
            json!({ "temperature": 1.0, "seed": 5, "top_p": 0.5, "top_k": 9, "min_p": 0.01 }),
            GenerationConfig {
                temperature: 1.0,
                seed: 5,
                top_p: 0.5,
                top_k: 9,
                min_p: 0.01,
                ..Default::default()
            },
        ),
        (
            json!({ "temperature": 0, "logit_bias": { "70": 100 } }),
            GenerationConfig { logit_bias: [(70, 100.0)].into(), ..Default::default() },
        ),
        (
            json!({ "temperature": 0, "repetition_penalty": 1.7 }),
            GenerationConfig { repetition_penalty: 1.7, ..Default::default() },
        ),
    ] {
        let config = GenerationConfig { max_new_tokens: 16, ..config };
        let expected =
            service.model.completions(std::slice::from_ref(&prompt), &config).unwrap().remove(0);
        let mut body = json!({ "model": "model", "prompt": "Once", "max_tokens": 16 });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = service.complete(&body);
        assert_eq!(answer["choices"][0]["text"], expected.text.as_str(), "{extra}");
    }
    // Without a seed, two answers differ.
    let body = json!({ "model": "model", "prompt": "Once", "max_tokens": 32, "temperature": 1.5 });
    let text = || service.complete(&body)["choices"][0]["text"].clone();
    assert_ne!(text(), text());
}

#[test]
fn a_stop_text_ends_the_answer_and_never_shows() {
    let service = Service::start();
    let whole = greedy(&service.model, "Hello", 40).text;
    let printable: Vec<char> =
        whole.chars().filter(|c| *c != char::REPLACEMENT_CHARACTER).collect();
    let (_, stop) = printable.windows(2).enumerate().nth(printable.len() / 2).unwrap();
    let stop: String = stop.iter().collect();
    let Some(at) = whole.find(&stop) else { panic!("`{stop}` is not in `{whole}`") };
    let body = json!({
        "model": "model", "prompt": "Hello", "temperature": 0, "max_tokens": 40, "stop": [stop, "never said"],
    });
    let answer = service.complete(&body);
    assert_eq!(answer["choices"][0]["text"], whole[..at]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let chunks = service.stream("/v1/completions", &body);
    let text: String =
        chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, whole[..at]);
}

#[test]
fn wrong_requests_get_400_and_the_field() {
    let service = Service::start();
    let with = |extra: Value| {
        let mut body = json!({ "model": "model", "prompt": "a" });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    for (body, status, code, param) in [
        (json!({ "prompt": "a" }), 400, "missing_field", "model"),
        (json!({ "model": "model" }), 400, "missing_field", "prompt"),
        (with(json!({ "model": "other" })), 404, "model_not_found", "model"),
        (with(json!({ "model": "model@ffff" })), 404, "model_not_found", "model"),
        (with(json!({ "model": 3 })), 400, "invalid_value", "model"),
        (with(json!({ "prompt": "" })), 400, "invalid_value", "prompt"),
        (with(json!({ "prompt": [] })), 400, "invalid_value", "prompt"),
        (with(json!({ "prompt": [[5], []] })), 400, "invalid_value", "prompt[1]"),
        (with(json!({ "prompt": [1, 99_999] })), 400, "invalid_value", "prompt"),
        (with(json!({ "prompt": [1, "a"] })), 400, "invalid_value", "prompt[1]"),
        (with(json!({ "prompt": vec![5; 2048] })), 400, "context_length_exceeded", "prompt"),
        (with(json!({ "prompt": vec![5; 100_000] })), 400, "context_length_exceeded", "prompt"),
        (with(json!({ "prompt": vec!["a"; 129] })), 400, "too_many_choices", "prompt"),
        (with(json!({ "temperature": -1 })), 400, "invalid_value", "temperature"),
        (with(json!({ "temperature": "hot" })), 400, "invalid_value", "temperature"),
        (with(json!({ "top_p": 0 })), 400, "invalid_value", "top_p"),
        (with(json!({ "max_tokens": 0 })), 400, "invalid_value", "max_tokens"),
        (with(json!({ "max_tokens": -4 })), 400, "invalid_value", "max_tokens"),
        (with(json!({ "n": 0 })), 400, "invalid_value", "n"),
        (with(json!({ "n": 1000 })), 400, "invalid_value", "n"),
        (with(json!({ "logprobs": 21 })), 400, "invalid_value", "logprobs"),
        (with(json!({ "logit_bias": { "x": 1 } })), 400, "invalid_value", "logit_bias"),
        (with(json!({ "logit_bias": { "1": 1000 } })), 400, "invalid_value", "logit_bias"),
        (with(json!({ "logit_bias": { "99999": 1 } })), 400, "invalid_value", "logit_bias"),
        (with(json!({ "stop": [""] })), 400, "invalid_value", "stop"),
        (with(json!({ "stop": 3 })), 400, "invalid_value", "stop"),
        (with(json!({ "stream": "yes" })), 400, "invalid_value", "stream"),
        (with(json!({ "stream_options": {} })), 400, "invalid_value", "stream_options"),
        (with(json!({ "suffix": "b" })), 400, "unsupported_field", "suffix"),
        (with(json!({ "best_of": 4 })), 400, "unsupported_field", "best_of"),
        (with(json!({ "presence_penalty": 0.5 })), 400, "unsupported_field", "presence_penalty"),
        (with(json!({ "guided_regex": "a*" })), 400, "unsupported_field", "guided_regex"),
    ] {
        let mut shown = body.to_string();
        shown.truncate(200);
        let found = service.refusal("/v1/completions", &body);
        assert_eq!(found, (status, code.to_owned(), param.to_owned()), "{shown}");
    }
    // Nothing of it has harmed anybody; a limit beyond the context is the context.
    let answer =
        service.complete(&with(json!({ "max_tokens": u64::MAX, "user": "me", "seed": -1 })));
    assert!(["stop", "length"].contains(&answer["choices"][0]["finish_reason"].as_str().unwrap()));
}

#[test]
fn the_tokenizer_is_a_service() {
    let service = Service::start();
    let tokenizer = service.model.tokenizer();
    let body = json!({ "prompt": "Hello", "add_special_tokens": false });
    let answer = service.answer("/tokenize", &body);
    assert_eq!(answer["tokens"], json!(tokenizer.encode("Hello").unwrap()));
    assert_eq!([&answer["count"], &answer["max_model_len"]], [&json!(5), &json!(2048)]);
    let back = service.answer("/detokenize", &json!({ "tokens": answer["tokens"] }));
    assert_eq!(back, json!({ "prompt": "Hello" }));
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    let answer = service.answer("/tokenize", &json!({ "messages": messages }));
    let asked = [tunebook_models::Message::user("Hi")];
    let ids = service.model.chat_tokenizer().tokenize_prompt(&asked).unwrap();
    assert_eq!(answer["tokens"], json!(ids));
    let info = service.get_json("/tokenizer_info");
    assert_eq!([&info["eos_token"], &info["bos_token"]], ["<|im_end|>", "<|im_start|>"]);
    assert!(info["chat_template"].as_str().unwrap().contains("im_start"));
    let refused = service.refusal("/detokenize", &json!({ "tokens": [1, 99_999] }));
    assert_eq!(refused, (400, "invalid_value".to_owned(), "tokens".to_owned()));
    assert_eq!(service.refusal("/tokenize", &json!({})).1, "missing_field");
}
