//! Programs that were written for other servers, unchanged.

use std::fs;

use serde_json::{Value, json};
use tunebook_models::{DEFAULT_MODEL, Device, GenerationConfig, Message, Model};
use tunebook_serve::Serve;
use tunebook_testing::Python;

use crate::support::*;

/// This process' memory, in MB.
fn resident_megabytes() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

#[test]
#[ignore = "long"]
fn schemathesis_finds_no_answer_that_is_not_described() {
    let Some(python) = Python::peers("schemathesis") else { return };
    let root = adapter_root();
    let service = Service::with_adapters(root.path());
    let dir = tempfile::tempdir().unwrap();
    let fuzz = |seconds: &str| {
        let url = service.url("");
        python.run(
            "fuzz_http.py",
            &[url.as_str(), "model", seconds, dir.path().to_str().unwrap(), "one", "two"],
        );
        resident_megabytes()
    };
    // The caches of the first half are full by then.
    let (before, after) = (fuzz("45"), fuzz("45"));
    assert!(after < 1.1 * before + 10.0, "{before} MB, then {after} MB");
    // Adapters were loaded, asked and unloaded.
    let metrics = service.server.metrics();
    for (route, status) in [
        ("/v1/load_lora_adapter", 200),
        ("/v1/unload_lora_adapter", 200),
        ("/v1/chat/completions", 200),
        ("/v1/completions", 200),
    ] {
        let line = format!("route=\"{route}\",status=\"{status}\"");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    service.complete(&request("model", "Hello", 4));
}

#[test]
#[ignore = "long"]
fn openais_own_client_is_answered_in_all_its_ways() {
    let Some(python) = Python::peers("openai, pydantic") else { return };
    let model = Model::load(DEFAULT_MODEL, &Device::Cpu).unwrap();
    let server = model.serve("127.0.0.1:0").unwrap();
    let name = server.model_name();
    let text = python.run("openai_client.py", &[server.url().as_str(), name]);
    let found: Value = serde_json::from_str(&text).unwrap();
    let config = GenerationConfig { max_new_tokens: 24, ..Default::default() };
    let conversation = [vec![Message::user("Where is my parcel?")]];
    let expected = model.chat_completions(&conversation, &config).unwrap().remove(0).text;
    for way in ["whole", "asynchronous", "streamed"] {
        assert_eq!(found[way], expected.as_str(), "{way}");
    }
    assert_eq!(found["models"], json!([name]));
    assert_eq!([&found["usage"], &found["logprobs"]], [&json!(true), &json!(5)]);
    assert!(found["request_id"].as_str().unwrap().starts_with("req-"));
    // The client itself has read it into a type, with fields of three kinds.
    assert_eq!(found["parsed_finish_reason"], "stop", "{found}");
    assert!(found["parsed"]["days"].is_i64() && found["parsed"]["city"].is_string(), "{found}");
    assert_eq!(found["parsed"], found["parsed_streamed"]);
    let refusals = json!([
        ["NotFoundError", "model_not_found", "model"],
        ["BadRequestError", "invalid_value", "temperature"],
        ["BadRequestError", "unsupported_field", "tools"],
    ]);
    assert_eq!(found["refusals"], refusals);
}
