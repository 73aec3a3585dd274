//! lm-evaluation-harness against a server, unchanged (`local-completions`, `local-chat-completions`),
//! and its own backend `hf` on the same rows.

use std::path::Path;

use serde_json::{Value, json};
use tunebook_models::{DEFAULT_MODEL, Device, GenerationConfig, Message, Model};
use tunebook_serve::Serve;
use tunebook_testing::Python;

const ROWS: usize = 200;
const CHOICES: [&str; 3] = [" refund", " delivery", " password"];

/// Messages to the help desk, asked for their topic.
fn prompts() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/support/tickets.jsonl");
    let text = std::fs::read_to_string(file).unwrap();
    let prompt = |line: &str| {
        let ticket: Value = serde_json::from_str(line).unwrap();
        format!("Message: {}\nTopic:", ticket["prompt"].as_str().unwrap())
    };
    text.lines().take(ROWS).map(prompt).collect()
}

fn rows(found: &Value) -> &Vec<Value> {
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows.len(), ROWS);
    rows
}

/// lm-eval writes a number as a text where it filters answers.
fn number(value: &Value) -> f64 {
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).unwrap()
}

#[test]
#[ignore = "long"]
fn lm_eval_finds_what_its_own_backend_finds() {
    let Some(python) = Python::peers("lm_eval, tenacity, torch, transformers") else { return };
    let model = Model::load(DEFAULT_MODEL, &Device::Cpu).unwrap();
    let server = model.serve("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (file, folder) = (dir.path().join("rows.jsonl"), dir.path().join("model"));
    model.save_pretrained(&folder).unwrap();
    let prompts = prompts();
    let row = |prompt: &String| json!({ "prompt": prompt, "choices": CHOICES, "answer": 0 });
    let text: String = prompts.iter().map(|prompt| format!("{}\n", row(prompt))).collect();
    std::fs::write(&file, text).unwrap();
    let ask = |target: &str, kind: &str| -> Value {
        let words = [target, file.to_str().unwrap(), dir.path().to_str().unwrap(), kind, "8"];
        let text = python.run("lm_eval_run.py", &words);
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    };
    let target = |path: &str| format!("{}={}{path}", server.model_name(), server.url());
    let hf = folder.to_str().unwrap();

    let [served, own] = [target("/completions").as_str(), hf].map(|target| ask(target, "choice"));
    let mut most: f64 = 0.0;
    for ((prompt, served), own) in prompts.iter().zip(rows(&served)).zip(rows(&own)) {
        for (at, choice) in CHOICES.iter().enumerate() {
            let [served, own] = [served, own].map(|row| number(&row[at]));
            most = most.max((served - own).abs());
            assert!((served - own).abs() < 1e-3, "{prompt:?}{choice}: {served} and {own}");
        }
    }
    println!("{} log-likelihoods, at most {most:.1e} apart", ROWS * CHOICES.len());
    assert_eq!(served["results"], own["results"]);

    let config =
        GenerationConfig { max_new_tokens: 12, stop: vec!["\n".to_owned()], ..Default::default() };
    let completion = |prompt: &String| model.generate(prompt, &config).unwrap();
    let chat =
        |prompt: &String| model.chat_with(&[Message::user(prompt.as_str())], &config).unwrap();
    for (kind, path, expected) in [
        ("generate", "/completions", prompts.iter().map(completion).collect::<Vec<_>>()),
        ("chat", "/chat/completions", prompts.iter().map(chat).collect()),
    ] {
        let [served, own] = [target(path).as_str(), hf].map(|target| ask(target, kind));
        let mut equal = 0;
        for ((expected, served), own) in expected.iter().zip(rows(&served)).zip(rows(&own)) {
            assert_eq!(served[0], expected.as_str(), "{kind}");
            equal += usize::from(served[0] == own[0]);
        }
        println!("{kind}: {equal} of {ROWS} answers are those of its own backend");
        // Where two tokens are as likely, rounding decides.
        assert!(equal * 100 >= ROWS * 97, "{kind}: {equal} of {ROWS}");
    }
    assert!(server.stop());
}
