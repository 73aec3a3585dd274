//! Answers in a format: whatever the weights, an answer that ended by itself has it.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunebook_models::{
    AnswerFormat, Completion, Device, EngineConfig, Error, FinishReason, GenerationConfig,
    GenerationEngine, GenerationRequest, Model,
};

use crate::support::golden;

/// The 2-layer Llama whose tokens are bytes, with a longer context.
fn model() -> Model {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden("lora_tiny/model")).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = 4096.into();
    fs::write(&path, config.to_string()).unwrap();
    Model::load(dir.path(), &Device::Cpu).unwrap()
}

fn sampled(format: AnswerFormat) -> GenerationConfig {
    GenerationConfig {
        temperature: 1.0,
        num_return_sequences: 8,
        max_new_tokens: 700,
        format: Some(format),
        ..Default::default()
    }
}

/// The answers to a short prompt that ended by themselves, of which there must be some.
fn ended(model: &Model, config: &GenerationConfig) -> Vec<String> {
    let prompt = model.tokenizer().encode_with_special_tokens("As JSON: ").unwrap();
    let answers = model.completions(&[prompt], config).unwrap();
    let is_end = |answer: &Completion| match &answer.finish_reason {
        FinishReason::Stop => true,
        FinishReason::Length => false,
        other => panic!("{other:?}: {}", answer.text),
    };
    let ended: Vec<String> =
        answers.iter().filter(|answer| is_end(answer)).map(|answer| answer.text.clone()).collect();
    assert!(!ended.is_empty(), "none has ended: {:?}", config.format);
    ended
}

fn schemas() -> Vec<Value> {
    let short = json!({ "type": "string", "maxLength": 6 });
    let person = json!({
        "type": "object",
        "properties": { "name": short, "age": { "type": "integer", "minimum": 0, "maximum": 130 } },
        "required": ["name", "age"], "additionalProperties": false,
    });
    vec![
        person.clone(),
        json!({
            "type": "object", "properties": { "who": person, "tags": { "type": "array", "items": short } },
            "required": ["who"], "additionalProperties": false,
        }),
        json!({ "enum": ["red", "green", 3, null, true, { "a": 1 }, [1, 2]] }),
        json!({ "const": "só — 日本" }),
        json!({ "type": "array", "items": { "type": "boolean" }, "minItems": 2, "maxItems": 5 }),
        json!({ "type": "array", "items": { "type": "integer" }, "minItems": 3, "maxItems": 3 }),
        json!({
            "type": "array", "prefixItems": [{ "type": "string" }, { "type": "null" }], "items": false,
            "minItems": 2,
        }),
        json!({
            "$defs": { "leaf": { "type": "object", "properties": { "v": { "type": "integer" } }, "required": ["v"] } },
            "type": "object", "properties": { "l": { "$ref": "#/$defs/leaf" }, "r": { "$ref": "#/$defs/leaf" } },
            "required": ["l", "r"], "additionalProperties": false,
        }),
        // A tree, of any depth.
        json!({
            "$defs": { "node": {
                "type": "object",
                "properties": { "v": { "type": "boolean" }, "next": { "anyOf": [{ "$ref": "#/$defs/node" }, { "type": "null" }] } },
                "required": ["v", "next"], "additionalProperties": false,
            } },
            "$ref": "#/$defs/node",
        }),
        json!({ "type": "object", "additionalProperties": { "type": "integer" } }),
        json!({
            "type": "object", "properties": { "a": { "type": "integer" } },
            "additionalProperties": { "type": "boolean" },
        }),
        json!({ "type": "object", "patternProperties": { "^x-": short }, "additionalProperties": false }),
        json!({ "type": "integer", "minimum": -5, "maximum": 17 }),
        json!({ "type": "integer", "exclusiveMinimum": 0, "multipleOf": 7, "maximum": 1000 }),
        json!({ "type": "number", "minimum": 0.5, "exclusiveMaximum": 2.25 }),
        json!({ "type": "number" }),
        json!({ "type": "string", "minLength": 3, "maxLength": 9 }),
        json!({ "type": "string" }),
        json!({ "type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$" }),
        json!({ "type": "string", "format": "date" }),
        json!({ "type": "string", "format": "uuid" }),
        json!({ "type": ["string", "null"], "maxLength": 4 }),
        json!({ "anyOf": [{ "type": "integer" }, { "type": "array", "items": { "type": "integer" } }] }),
        json!({ "oneOf": [{ "type": "string", "maxLength": 3 }, { "type": "boolean" }] }),
        json!({ "allOf": [
            { "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] },
            { "type": "object", "properties": { "b": { "type": "boolean" } }, "required": ["b"] },
        ], "type": "object", "properties": { "a": {}, "b": {} }, "additionalProperties": false }),
        json!({ "type": "object", "properties": {
            "a \"quoted\" key\n": { "type": "null" }, "ключ": { "type": "boolean" },
        }, "required": ["a \"quoted\" key\n", "ключ"], "additionalProperties": false }),
        json!({ "type": "object", "properties": { "a": short, "b": short, "c": short }, "additionalProperties": false }),
    ]
}

#[test]
fn answers_of_any_weights_are_of_their_schema() {
    let model = model();
    for schema in schemas() {
        let validator = jsonschema::validator_for(&schema).unwrap();
        let config = sampled(AnswerFormat::JsonSchema(schema.clone()));
        for text in ended(&model, &config) {
            let value: Value = match serde_json::from_str(&text) {
                Ok(value) => value,
                // JSON has numbers of any size, and not every reader has.
                Err(error) if error.to_string().starts_with("number out of range") => continue,
                Err(error) => panic!("{error}: {text:?} of {schema}"),
            };
            let errors: Vec<String> =
                validator.iter_errors(&value).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{errors:?}: {text} of {schema}");
        }
    }
}

#[test]
fn any_object_expressions_choices_and_grammars_are_kept() {
    let model = model();
    for text in ended(&model, &sampled(AnswerFormat::JsonObject)) {
        assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
    }
    let regex = r"(?i:yes|no), [0-9]{1,3}(\.[0-9])? °C";
    let whole = regex::Regex::new(&format!("^(?:{regex})$")).unwrap();
    for text in ended(&model, &sampled(AnswerFormat::Regex(regex.to_owned()))) {
        assert!(whole.is_match(&text), "{text}");
    }
    let choices = ["refund", "a \"quoted\" one\n", "né", "\u{7f}\\", "refunds"].map(str::to_owned);
    for text in ended(&model, &sampled(AnswerFormat::Choice(choices.to_vec()))) {
        assert!(choices.contains(&text), "{text}");
    }
    let sums = "start: term (\"+\" term)*\nterm: NUMBER | \"(\" start \")\"\nNUMBER: /[1-9]/";
    for text in ended(&model, &sampled(AnswerFormat::Lark(sums.to_owned()))) {
        let open = text.matches('(').count();
        assert_eq!(open, text.matches(')').count(), "{text}");
        assert!(text.chars().all(|c| "()+123456789".contains(c)), "{text}");
    }
}

#[test]
fn as_many_choices_as_are_taken_are_kept() {
    let model = model();
    let choices: Vec<String> = (0..1900).map(|number| format!("{number}")).collect();
    for text in ended(&model, &sampled(AnswerFormat::Choice(choices.clone()))) {
        assert!(choices.contains(&text), "{text}");
    }
    let more = (0..1901).map(|number| format!("{number}")).collect();
    let error = model.answer_grammar(&AnswerFormat::Choice(more)).unwrap_err().to_string();
    assert!(error.contains("1901 choices, expected at most 1900"), "{error}");
}

#[test]
fn others_in_the_batch_say_the_same_bits() {
    let model = model();
    let plain = GenerationConfig { max_new_tokens: 40, ignore_eos: true, ..Default::default() };
    let format = Some(AnswerFormat::JsonSchema(schemas().remove(1)));
    let formed = GenerationConfig { max_new_tokens: 60, format, ..Default::default() };
    // The plain requests' tokens and bits, by their number.
    let said = |with_format: bool| {
        let mut engine = GenerationEngine::new(&model, EngineConfig::default());
        let mut ids = Vec::new();
        for number in 0..3u32 {
            if with_format {
                engine.insert(GenerationRequest::new([7 + number], &formed)).unwrap();
            }
            ids.push(engine.insert(GenerationRequest::new([50 + number, 60], &plain)).unwrap());
        }
        let mut said = vec![Vec::new(); ids.len()];
        while !engine.is_empty() {
            for event in engine.step() {
                if let Some(at) = ids.iter().position(|id| *id == event.id) {
                    said[at].push((event.token, event.log_probability.to_bits()));
                }
            }
        }
        said
    };
    assert_eq!(said(false), said(true));
}

#[test]
fn an_answer_is_cut_by_its_limit_and_by_a_stop_text() {
    let model = model();
    let schema = json!({ "type": "array", "items": { "type": "integer" }, "minItems": 40 });
    let config = GenerationConfig {
        max_new_tokens: 20,
        format: Some(AnswerFormat::JsonSchema(schema)),
        ..Default::default()
    };
    let prompt = model.tokenizer().encode("x").unwrap();
    let cut = model.completions(std::slice::from_ref(&prompt), &config).unwrap().remove(0);
    assert_eq!((cut.ids.len(), &cut.finish_reason), (20, &FinishReason::Length));
    assert!(cut.text.starts_with('['), "{}", cut.text);
    let stop = cut.text.chars().nth(5).unwrap().to_string();
    let config = GenerationConfig { stop: vec![stop.clone()], ..config };
    let stopped = model.completions(&[prompt], &config).unwrap().remove(0);
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    assert_eq!(stopped.text, cut.text.split(&stop).next().unwrap());
}

#[test]
fn an_answer_ends_where_nothing_can_follow() {
    let model = model();
    let format = Some(AnswerFormat::Choice(vec!["yes".to_owned()]));
    let config = GenerationConfig { format, ..Default::default() };
    let prompt = model.tokenizer().encode("x").unwrap();
    let answer = model.completions(&[prompt], &config).unwrap().remove(0);
    assert_eq!((answer.text.as_str(), answer.finish_reason), ("yes", FinishReason::Stop));
    // No token more was computed than the text has.
    assert_eq!((answer.ids.len(), answer.usage.completion_tokens), (3, 3));
}

#[test]
fn formats_that_cannot_be_kept_are_refused_with_the_reason() {
    let model = model();
    let schema = |schema: Value| AnswerFormat::JsonSchema(schema);
    let nested = |depth: usize| {
        (0..depth)
            .fold(json!({ "type": "null" }), |inner, _| json!({ "properties": { "a": inner } }))
    };
    for (format, says) in [
        (schema(json!({ "type": "array", "uniqueItems": true })), "`uniqueItems` (at `#`)"),
        (
            schema(json!({ "properties": { "a": { "if": {}, "then": {} } } })),
            "`if` (at `#/properties/a`)",
        ),
        (schema(json!({ "type": "string", "format": "color" })), "color"),
        (schema(json!({ "type": "text" })), "text"),
        (
            schema(json!({ "$ref": "https://127.0.0.1:1/schema.json" })),
            "https://127.0.0.1:1/schema.json",
        ),
        (schema(json!({ "$ref": "#/$defs/none" })), "none"),
        (schema(json!({ "type": "integer", "minimum": 5, "maximum": 4 })), ""),
        (schema(json!({ "type": "string", "pattern": "(?=a)b" })), ""),
        (
            schema(
                json!({ "oneOf": [{ "type": "string" }, { "type": "string", "maxLength": 3 }] }),
            ),
            "oneOf",
        ),
        (schema(json!({ "x-guidance": { "lenient": true }, "not": {} })), "`"),
        (schema(json!(3)), "a number, expected a schema"),
        (AnswerFormat::Regex("(".to_owned()), ""),
        (AnswerFormat::Regex("a?".repeat(10_000)), "20000 bytes, expected at most 4096"),
        (AnswerFormat::Lark("a".repeat(40_000)), "40000 bytes, expected at most 32768"),
        (schema(json!({ "pattern": "a?".repeat(2000) })), "4000 bytes in one pattern"),
        (
            schema(json!({ "anyOf": vec![json!({ "pattern": "a?".repeat(1000) }); 9] })),
            "18000 bytes in its patterns, expected at most 16384",
        ),
        (AnswerFormat::Lark(format!("start: /{}/", "a?".repeat(10_000))), "too big"),
        (schema(json!({ "type": "integer", "maximum": 1e19 })), "`#/maximum` is"),
        (schema(json!({ "const": 9_007_199_254_740_993_u64 })), "`#/const` is 9007199254740993"),
        (schema(json!({ "type": "object", "minProperties": 2 })), "`#/minProperties` is 2"),
        (AnswerFormat::Choice(vec!["a".repeat(100); 400]), "40000 bytes"),
        (schema(json!({ "const": "a".repeat(200_000) })), "expected at most 131072"),
        (AnswerFormat::Choice(Vec::new()), "no text to choose"),
        (AnswerFormat::Lark("start: other".to_owned()), "other"),
    ] {
        let shown: String = format!("{format:?}").chars().take(200).collect();
        let error = model.answer_grammar(&format).map(|_| shown.clone()).unwrap_err().to_string();
        assert!(error.starts_with("the answer's format cannot be kept: "), "{error}");
        assert!(error.contains(says) && error.len() < 600, "{shown}: {error}");
        // Where the engine makes it ready, it says the same.
        let config = GenerationConfig { format: Some(format), ..Default::default() };
        let mut engine = GenerationEngine::new(&model, EngineConfig::default());
        let refused = engine.insert(GenerationRequest::new([5u32], &config)).unwrap_err();
        assert_eq!(refused.to_string(), error);
    }
    // As deep as JSON is read.
    model.answer_grammar(&schema(nested(60))).unwrap();
}

#[test]
fn formats_beyond_all_measure_do_no_harm() {
    let model = model();
    let letters: String = (0..40).map(|_| "(a|b|c|d)*(ab|cd)?").collect();
    for format in [
        AnswerFormat::JsonSchema(json!({ "type": "string", "minLength": 100_000_000 })),
        AnswerFormat::JsonSchema(
            json!({ "type": "array", "items": { "type": "null" }, "minItems": 10_000_000 }),
        ),
        AnswerFormat::Regex("(a{1000}){1000}".to_owned()),
        AnswerFormat::Regex("(.*a.{20}){3}".to_owned()),
        AnswerFormat::Regex(letters),
        AnswerFormat::Lark("start: a\na: \"x\" a | a \"x\" | \"\"".to_owned()),
        AnswerFormat::Lark(
            (0..1200).fold("start: T0".to_owned(), |text, number| {
                format!("{text}\nT{number}: T{} \"x\"", number + 1)
            }) + "\nT1200: \"a\"",
        ),
        AnswerFormat::JsonSchema(json!({ "enum": (0..9000).collect::<Vec<u32>>() })),
        AnswerFormat::JsonSchema(json!({ "type": "number", "minimum": 1e308, "maximum": 1e308 })),
        AnswerFormat::JsonSchema(json!({ "$ref": "#" })),
    ] {
        let begun = Instant::now();
        let config =
            GenerationConfig { num_return_sequences: 1, max_new_tokens: 60, ..sampled(format) };
        let answer = model.completions(&[vec![5]], &config);
        let told = match &answer {
            Ok(answers) => {
                matches!(answers[0].finish_reason, FinishReason::Length | FinishReason::Stop)
            }
            Err(Error::Format { problem }) => problem.len() < 600,
            Err(_) => false,
        };
        assert!(told, "{answer:?}");
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{:?}: {:?}",
            begun.elapsed(),
            config.format
        );
    }
}

#[test]
fn schemas_that_refer_to_each_other_in_a_long_chain_do_no_harm() {
    let model = model();
    let chain = |length: usize, link: fn(Value) -> Value| {
        let mut defs = serde_json::Map::new();
        for number in 0..length {
            let next = json!({ "$ref": format!("#/$defs/d{}", number + 1) });
            defs.insert(format!("d{number}"), link(next));
        }
        defs.insert(format!("d{length}"), json!({ "type": "null" }));
        AnswerFormat::JsonSchema(json!({ "$defs": defs, "$ref": "#/$defs/d0" }))
    };
    model.answer_grammar(&chain(3500, |next| next)).unwrap();
    model.answer_grammar(&chain(2400, |next| json!({ "items": next }))).unwrap();
    model.answer_grammar(&chain(2000, |next| json!({ "properties": { "a": next } }))).unwrap();
    model
        .answer_grammar(&chain(1800, |next| json!({ "patternProperties": { "a": next } })))
        .unwrap();
    for link in [
        |next| json!({ "allOf": [next], "minItems": 1 }),
        |next| json!({ "anyOf": [next, { "type": "array" }] }),
        |next| json!({ "oneOf": [next, false], "minItems": 1 }),
    ] {
        // Whether it can be kept or not.
        let _ = model.answer_grammar(&chain(1600, link));
    }
    let error = model.answer_grammar(&chain(2600, |next| json!({ "items": next }))).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("expected at most 5000"), "{error}");
}
