//! lm-evaluation-harness against a server, unchanged (`local-completions`).

use std::path::Path;

use serde_json::{Value, json};
use tunebook_models::{DEFAULT_MODEL, Device, GenerationConfig, Model};
use tunebook_serve::Serve;
use tunebook_testing::Python;

const CHOICES: [&str; 3] = [" refund", " delivery", " password"];

fn prompts() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/support/tickets.jsonl");
    let text = std::fs::read_to_string(file).unwrap();
    let prompt = |line: &str| {
        let ticket: Value = serde_json::from_str(line).unwrap();
        format!("Message: {}\nTopic:", ticket["prompt"].as_str().unwrap())
    };
    text.lines().take(8).map(prompt).collect()
}

#[test]
#[ignore = "long"]
fn lm_eval_finds_the_models_own_log_likelihoods_and_answers() {
    let Some(python) = Python::peers("lm_eval, tenacity") else { return };
    let model = Model::load(DEFAULT_MODEL, &Device::Cpu).unwrap();
    let server = model.serve("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let prompts = prompts();
    let row = |prompt: &String| json!({ "prompt": prompt, "choices": CHOICES, "answer": 0 });
    let rows: String = prompts.iter().map(|prompt| format!("{}\n", row(prompt))).collect();
    std::fs::write(&file, rows).unwrap();
    let target = format!("{}={}/completions", server.model_name(), server.url());
    let ask = |kind: &str| -> Value {
        let words = [&target, file.to_str().unwrap(), dir.path().to_str().unwrap(), kind, "4"];
        let text = python.run("lm_eval_run.py", &words);
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    };
    let found = ask("choice");
    for (prompt, row) in prompts.iter().zip(found["rows"].as_array().unwrap()) {
        let pairs: Vec<(&str, &str)> = CHOICES.iter().map(|c| (prompt.as_str(), *c)).collect();
        let expected = model.log_likelihoods(&pairs).unwrap();
        for (found, expected) in row.as_array().unwrap().iter().zip(expected) {
            // lm-eval writes it as a text where it filters answers.
            let found = found.as_f64().or_else(|| found.as_str()?.parse().ok()).unwrap();
            assert!((found - expected.sum).abs() < 1e-3, "{found} and {}", expected.sum);
        }
    }
    let found = ask("generate");
    for (prompt, row) in prompts.iter().zip(found["rows"].as_array().unwrap()) {
        let config = GenerationConfig {
            max_new_tokens: 12,
            stop: vec!["\n".to_owned()],
            ..Default::default()
        };
        assert_eq!(row[0], model.generate(prompt, &config).unwrap().as_str());
    }
    assert!(server.stop());
}
