//! The same rows in lm-evaluation-harness (its `hf` backend): log-likelihoods, scores and time.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tunebook_evaluate::metric::ExactMatch;
use tunebook_evaluate::{EvalExample, EvaluationArgs, evaluate_with};
use tunebook_models::{DEFAULT_MODEL, DType, Device, GenerationConfig, Model};
use tunebook_testing::Python;

/// A ticket's message with the topic to be named.
struct Row {
    prompt: String,
    choices: Vec<String>,
    answer: usize,
}

/// The first rows of the help desk's tickets, asked for their topic in two ways.
fn rows(count: usize) -> Vec<Row> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/support/tickets.jsonl");
    let text = std::fs::read_to_string(file).unwrap();
    let tickets: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let topic = |ticket: &Value| format!(" {}", ticket["topic"].as_str().unwrap());
    let mut choices: Vec<String> = tickets.iter().map(topic).collect();
    choices.sort();
    choices.dedup();
    let asked = |word: &str| -> Vec<Row> {
        let row = |ticket: &Value| Row {
            prompt: format!("Message: {}\n{word}:", ticket["prompt"].as_str().unwrap()),
            answer: choices.iter().position(|choice| *choice == topic(ticket)).unwrap(),
            choices: choices.clone(),
        };
        tickets.iter().map(row).collect()
    };
    asked("Topic").into_iter().chain(asked("Category")).take(count).collect()
}

/// The rows after some solved ones, which all have in common (few-shot).
fn after_examples(rows: Vec<Row>, count: usize) -> Vec<Row> {
    let solved = rows.iter().rev().take(count);
    let solved: String =
        solved.map(|row| format!("{}{}\n\n", row.prompt, row.choices[row.answer])).collect();
    let asked = |row: Row| Row { prompt: format!("{solved}{}", row.prompt), ..row };
    rows.into_iter().map(asked).collect()
}

/// The base model as a folder that transformers loads, its weights in f32.
fn saved(folder: &Path) -> Model {
    let model = Model::load_as(DEFAULT_MODEL, Some(DType::F32), &Device::Cpu).unwrap();
    model.save_pretrained(folder.join("model")).unwrap();
    model
}

fn lm_eval(python: &Python, folder: &Path, rows: &[Row], kind: &str, batch: usize) -> Value {
    let file = folder.join("rows.jsonl");
    let mut out = std::fs::File::create(&file).unwrap();
    for Row { prompt, choices, answer } in rows {
        writeln!(out, "{}", json!({"prompt": prompt, "choices": choices, "answer": answer}))
            .unwrap();
    }
    let model = folder.join("model");
    let batch = batch.to_string();
    let words = [model.to_str(), file.to_str(), folder.to_str(), Some(kind), Some(&batch)];
    let text = python.run("lm_eval_run.py", &words.map(Option::unwrap));
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn examples(rows: &[Row], choose: bool) -> Vec<EvalExample> {
    let example = |row: &Row| {
        let example = EvalExample::text(&row.prompt, &row.choices[row.answer]);
        if choose { example.with_choices(row.choices.iter().cloned()) } else { example }
    };
    rows.iter().map(example).collect()
}

fn args() -> EvaluationArgs {
    EvaluationArgs {
        metrics: vec![Arc::new(ExactMatch::default())],
        output_dir: None,
        max_new_tokens: Some(12),
        generation: GenerationConfig { stop: vec!["\n".to_owned()], ..Default::default() },
        ..Default::default()
    }
}

#[test]
#[ignore = "needs lm_eval; minutes"]
fn choices_have_lm_evals_log_likelihoods_and_scores() {
    let Some(python) = Python::peers("lm_eval, torch, transformers") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (model, rows) = (saved(folder.path()), rows(200));
    let theirs = lm_eval(&python, folder.path(), &rows, "choice", 16);
    let pairs: Vec<(&str, &str)> = rows
        .iter()
        .flat_map(|row| row.choices.iter().map(|choice| (&*row.prompt, choice.as_str())))
        .collect();
    let ours = model.log_likelihoods(&pairs).unwrap();
    let mut most: f64 = 0.0;
    for (row, (ours, theirs)) in
        ours.chunks(rows[0].choices.len()).zip(theirs["rows"].as_array().unwrap()).enumerate()
    {
        for (at, ours) in ours.iter().enumerate() {
            let theirs = theirs[at].as_f64().unwrap();
            most = most.max((ours.sum - theirs).abs());
            assert!(
                (ours.sum - theirs).abs() < 1e-3,
                "row {row}, choice {at}: {} {theirs}",
                ours.sum
            );
        }
    }
    let found = evaluate_with(&model, &examples(&rows, true), &args()).unwrap();
    println!(
        "largest difference {most:.1e}; accuracy {:?} {:?}, lm_eval {}",
        found.value("accuracy"),
        found.value("accuracy_norm"),
        theirs["results"]
    );
    assert_eq!(found.value("accuracy"), theirs["results"]["acc"].as_f64());
    assert_eq!(found.value("accuracy_norm"), theirs["results"]["acc_norm"].as_f64());
}

/// How many times as fast as lm-eval we answer these rows; `None` without it.
fn speed_of_answers(rows: &[Row]) -> Option<f64> {
    let python = Python::peers("lm_eval, torch, transformers")?;
    let folder = tempfile::tempdir().unwrap();
    let model = saved(folder.path());
    let examples = examples(rows, false);
    let found = evaluate_with(&model, &examples, &args()).unwrap();
    let theirs = lm_eval(&python, folder.path(), rows, "generate", 32);
    let mut different = 0;
    for (ours, theirs) in found.rows.iter().zip(theirs["rows"].as_array().unwrap()) {
        let (ours, theirs) = (ours.answer.as_deref().unwrap(), theirs[0].as_str().unwrap());
        different += usize::from(ours.trim() != theirs.trim());
    }
    let secs = theirs["secs"].as_f64().unwrap();
    println!(
        "{different} of {} answers differ; {:.1} s, lm_eval {secs:.1} s, {:.2} x; {:?} {}",
        rows.len(),
        found.secs,
        secs / found.secs,
        found.value("exact_match"),
        theirs["results"]
    );
    // Sums in another order decide near ties otherwise.
    assert!(different * 100 <= rows.len(), "{different} answers differ");
    if different == 0 {
        assert_eq!(found.value("exact_match"), theirs["results"]["exact_match"].as_f64());
    }
    Some(secs / found.secs)
}

#[test]
#[ignore = "needs lm_eval; minutes"]
fn answers_are_lm_evals_and_come_faster() {
    speed_of_answers(&rows(500));
}

/// What all rows begin with goes through the model once.
#[test]
#[ignore = "needs lm_eval; minutes"]
fn answers_after_examples_are_lm_evals_and_come_three_times_as_fast() {
    let speed = speed_of_answers(&after_examples(rows(200), 5));
    assert!(speed.is_none_or(|speed| speed >= 3.0), "{speed:?}");
}
