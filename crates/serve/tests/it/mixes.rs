//! Weighted mixes of adapters, asked for by `model` or by llama.cpp's `lora`.

use serde_json::{Value, json};
use tunebook_models::Model;
use tunebook_serve::{Server, ServerConfig};
use tunebook_tune::{AdapterMix, FrozenAdapter};

use crate::support::*;

const PATH: &str = "/v1/completions";

fn part(server: &Server, name: &str) -> FrozenAdapter {
    server.adapter(name).unwrap()
}

/// The mix of a server's adapters, and a handle that answers with it.
fn offline(service: &Service, parts: &[(&str, f64)]) -> (String, Model) {
    let parts: Vec<_> =
        parts.iter().map(|(name, weight)| (part(&service.server, name), *weight)).collect();
    let mix = AdapterMix::new(&service.model, &parts).unwrap();
    (mix.fingerprint().to_owned(), service.model.with_overlay(mix.overlay()))
}

/// Serves the golden adapters `one` and `two`, and one of each type.
fn service() -> Service {
    let service = Service::with(&ServerConfig::default());
    for name in ["one", "two"] {
        service.server.swap(name, golden("weighted").join(name)).unwrap();
    }
    for case in ["dora", "ia3", "prompt", "prefix", "double-seq-bn", "adalora"] {
        let folder =
            ["final", "initial", ""].map(|part| golden("strategies").join(case).join(part));
        let folder = folder.into_iter().find(|f| f.join("adapter_config.json").is_file()).unwrap();
        service.server.swap(&case.replace('-', "_"), folder).unwrap();
    }
    service
}

#[test]
fn mixes_are_answered_as_offline_alone_and_in_company() {
    let service = service();
    let prompt = "A prompt of more than a page of the prefix cache, for all. ".repeat(2);
    let cases: [(&str, &[(&str, f64)]); 6] = [
        ("one:0.7+two:0.3", &[("one", 0.7), ("two", 0.3)]),
        ("dora:0.5+one:0.5", &[("dora", 0.5), ("one", 0.5)]),
        ("ia3:0.5+adalora:-2", &[("ia3", 0.5), ("adalora", -2.0)]),
        ("double_seq_bn:1.5", &[("double_seq_bn", 1.5)]),
        ("one+two", &[("one", 1.0), ("two", 1.0)]),
        (
            "double_seq_bn:0.5+ia3:0.5+dora:0.5",
            &[("double_seq_bn", 0.5), ("ia3", 0.5), ("dora", 0.5)],
        ),
    ];
    let expected = cases.map(|(_, parts)| {
        let (generation, handle) = offline(&service, parts);
        (generation, greedy(&handle, &prompt, 16))
    });
    // Each is something else.
    for (index, (generation, answer)) in expected.iter().enumerate() {
        for (other, text) in &expected[..index] {
            assert!(generation != other && answer.log_probabilities != text.log_probabilities);
        }
    }
    let check = |model: &str, (generation, expected): &(String, _)| {
        let answer = service.complete(&request(model, &prompt, 16));
        assert_eq!(answer["system_fingerprint"], generation.as_str(), "{model}");
        assert_is(&answer["choices"][0], expected);
        answer
    };
    for ((model, _), expected) in cases.iter().zip(&expected) {
        check(model, expected);
        let again = check(model, expected);
        let cached = &again["usage"]["prompt_tokens_details"]["cached_tokens"];
        assert!(cached.as_u64().unwrap() > 0, "{model}: the same mix is kept");
    }
    std::thread::scope(|scope| {
        for ((model, _), expected) in cases.iter().zip(&expected) {
            scope.spawn(|| check(model, expected));
        }
        scope.spawn(|| {
            let answer = service.complete(&request("two", &prompt, 16));
            let two = service.model.with_overlay(part(&service.server, "two").overlay());
            assert_is(&answer["choices"][0], &greedy(&two, &prompt, 16));
        });
    });
    // The order of the parts is of no account, and a mix has a card.
    let (a, b) = (&cases[0].0, "two:0.3+one:0.7");
    check(b, &expected[0]);
    let card = service.get_json(&format!("/v1/models/{a}"));
    assert_eq!(card["generation"], expected[0].0.as_str());
    assert_eq!(card["parent"], "model");
    let chunks = service.stream(PATH, &request(a, &prompt, 16));
    assert!(chunks.iter().all(|chunk| chunk["system_fingerprint"] == expected[0].0.as_str()));
    // Clients make mixes up, so they are counted together.
    assert!(service.server.metrics().contains("{model=\"adapter mix\"}"));
    assert!(!service.server.metrics().contains("0.7"));
}

#[test]
fn weights_of_zero_and_one_are_the_base_and_the_adapter() {
    let service = service();
    let ask = |model: &str| service.complete(&request(model, "Hello", 12));
    let same = |mix: &str, plain: &str| {
        let (mix, plain) = (ask(mix), ask(plain));
        assert_eq!(mix["system_fingerprint"], plain["system_fingerprint"]);
        assert_eq!(mix["choices"], plain["choices"]);
    };
    for name in ["one", "dora", "ia3", "double_seq_bn", "prompt", "prefix"] {
        same(&format!("{name}:0"), "model");
        same(&format!("{name}:1"), name);
        same(&format!("{name}:1.0+two:0"), name);
    }
}

#[test]
fn llama_cpps_field_is_the_same_mix() {
    let service = service();
    let names: Vec<Value> = service.get_json("/v1/models")["data"].as_array().unwrap().clone();
    let id = |name: &str| names.iter().position(|card| card["id"] == name).unwrap() - 1;
    let by_model = service.complete(&request("one:0.7+two:0.3", "Hello", 12));
    let with = |lora: Value| {
        let mut body = request("model", "Hello", 12);
        body["lora"] = lora;
        body
    };
    for lora in [
        json!([{ "id": "one", "scale": 0.7 }, { "id": "two", "scale": 0.3 }]),
        json!([{ "id": id("two"), "scale": 0.3 }, { "id": id("one"), "scale": 0.7 }]),
    ] {
        let answer = service.complete(&with(lora));
        assert_eq!(answer["system_fingerprint"], by_model["system_fingerprint"]);
        assert_eq!(answer["choices"], by_model["choices"]);
    }
    let none = service.complete(&with(json!([])));
    let base = service.complete(&request("model", "Hello", 12));
    assert_eq!(none["choices"], base["choices"]);
    for (lora, param) in [
        (json!("one"), "lora"),
        (json!([3]), "lora[0]"),
        (json!([{ "scale": 1 }]), "lora[0].id"),
        (json!([{ "id": 99, "scale": 1 }]), "lora[0].id"),
        (json!([{ "id": -1, "scale": 1 }]), "lora[0].id"),
        (json!([{ "id": "one" }]), "lora[0].scale"),
        (json!([{ "id": "one", "scale": 1000 }]), "lora[0].scale"),
        (json!([{ "id": "one", "scale": 1, "x": 1 }]), "lora[0].x"),
        (json!([{ "id": "prompt", "scale": 0.5 }]), "lora"),
        (json!([{ "id": "one", "scale": 1 }, { "id": "one", "scale": 1 }]), "lora"),
    ] {
        let refused = service.refusal(PATH, &with(lora.clone()));
        assert_eq!((refused.0, refused.2.as_str()), (400, param), "{lora}");
    }
    let mut body = with(json!([{ "id": "one", "scale": 1 }]));
    body["model"] = "two".into();
    assert_eq!(service.refusal(PATH, &body).2, "lora", "with the base only");
    let unknown = service.refusal(PATH, &with(json!([{ "id": "none", "scale": 1 }])));
    assert_eq!((unknown.0, unknown.1.as_str()), (404, "model_not_found"));
}

#[test]
fn what_cannot_be_mixed_is_refused_by_name() {
    let service = service();
    for (name, says) in [("prompt", "vectors before a text"), ("prefix", "vectors before a text")] {
        let body = request(&format!("one:0.5+{name}:0.5"), "Hello", 4);
        let (status, answer) = service.post(PATH, &body);
        let message = answer["error"]["message"].as_str().unwrap().to_owned();
        let refused = refusal(status, &answer);
        assert_eq!(refused, (400, "mix_refused".to_owned(), "model".to_owned()));
        assert!(message.contains(&format!("`{name}`")) && message.contains(says), "{message}");
    }
    let many: Vec<String> = (0..9).map(|i| format!("a{i}:1")).collect();
    for (model, status, code) in [
        ("one:0.5+none:0.5", 404, "model_not_found"),
        ("none:0.5", 404, "model_not_found"),
        ("one:x", 400, "invalid_value"),
        ("one:", 400, "invalid_value"),
        ("one:NaN", 400, "invalid_value"),
        ("one:inf", 400, "invalid_value"),
        ("one:1e9", 400, "invalid_value"),
        ("one:0.5+one:0.5", 400, "invalid_value"),
        ("one:0.5+model:0.5", 400, "invalid_value"),
        ("+", 404, "model_not_found"),
        (":1", 404, "model_not_found"),
        (&many.join("+"), 400, "invalid_value"),
    ] {
        let refused = service.refusal(PATH, &request(model, "Hello", 4));
        assert_eq!(
            (refused.0, refused.1.as_str(), refused.2.as_str()),
            (status, code, "model"),
            "{model}"
        );
    }
}

#[test]
fn a_mix_follows_its_parts() {
    let service = service();
    let prompt = "A long prompt that fills several pages of the cache. ".repeat(4);
    let ask = || service.complete(&request("a:0.7+two:0.3", &prompt, 16));
    let mut generations = Vec::new();
    for folder in ["weighted/one", "weighted/two", "weighted/one"] {
        service.server.swap("a", golden(folder)).unwrap();
        let (generation, handle) = offline(&service, &[("a", 0.7), ("two", 0.3)]);
        for _ in 0..2 {
            let answer = ask();
            assert_eq!(answer["system_fingerprint"], generation.as_str());
            assert_is(&answer["choices"][0], &greedy(&handle, &prompt, 16));
        }
        generations.push(generation);
    }
    assert!(generations[0] != generations[1] && generations[0] == generations[2]);
    // A generation of a part can be asked for, or nothing.
    let a = part(&service.server, "a").fingerprint().to_owned();
    let exact = format!("a@{}:0.7+two:0.3", &a[..8]);
    let answer = service.complete(&request(&exact, &prompt, 4));
    assert_eq!(answer["system_fingerprint"], generations[0].as_str());
    let refused = service.refusal(PATH, &request("a@ffffffff:0.7+two:0.3", "Hello", 4));
    assert_eq!(refused.0, 404);
    service.server.remove("a").unwrap();
    assert_eq!(service.refusal(PATH, &request("a:0.7+two:0.3", "Hello", 4)).0, 404);
}

/// One generation may have several names, as clients of several people do.
#[test]
fn a_mix_has_the_name_that_it_is_asked_for_by() {
    let service = service();
    service.server.swap("uno", golden("weighted").join("one")).unwrap();
    for (model, other) in [("one:0.5", "uno:0.5"), ("one:0.7+two:0.3", "two:0.3+uno:0.7")] {
        let answers = [model, other].map(|model| service.complete(&request(model, "Hello", 4)));
        assert_eq!([&answers[0]["model"], &answers[1]["model"]], [model, other]);
        assert_eq!(answers[0]["system_fingerprint"], answers[1]["system_fingerprint"]);
        assert_eq!(service.get_json(&format!("/v1/models/{other}"))["id"], other);
    }
    // One adapter with the weight 1 is that adapter: its turn in the queue and its counts, too.
    let counts = || {
        let metrics = service.server.metrics();
        let of = |label: &str| metrics.contains(&format!("{{model=\"{label}\"}}"));
        (of("uno"), of("adapter mix"))
    };
    assert_eq!(counts(), (false, true));
    let answer = service.complete(&request("uno:1+two:0", "Hello", 4));
    assert_eq!((answer["model"].as_str(), counts()), (Some("uno"), (true, true)));
}

#[test]
fn nobody_forgets_anothers_mix_for_a_look() {
    let service = service();
    let prompt = "A prompt of more than a page of the prefix cache, for all. ".repeat(2);
    let ask = || service.complete(&request("one:0.7+two:0.3", &prompt, 4));
    let first = ask();
    for number in 0..40 {
        let model = format!("one:0.7{number}");
        let card = service.get_json(&format!("/v1/models/{model}"));
        assert_eq!(card["id"], model.trim_end_matches('0'), "{card}");
        let tokens = service.answer("/tokenize", &json!({ "model": model, "prompt": "Hello" }));
        assert!(tokens["count"].as_u64().unwrap() > 0);
    }
    let again = ask();
    let cached = &again["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(cached.as_u64().unwrap() > 0, "it is kept");
    assert_eq!(first["choices"], again["choices"]);
    // What there is not is told all the same.
    let unknown = json!({ "model": "one:0.5+none:0.5", "prompt": "Hello" });
    assert_eq!(service.refusal("/tokenize", &unknown).0, 404);
    assert_eq!(service.get("/v1/models/one:0.5+none:0.5").0, 404);
    assert_eq!(service.get("/v1/models/one:0.5+prefix:0.5").0, 400);
}
