//! What would make a number wrong without a word: answers of another model, rows that count twice,
//! intervals of no width, things compared that are not alike.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tunebook_evaluate::metric::{
    Bleu, ExactMatch, JsonValid, NumericAnswer, RegexMatch, TextMetric, TokenF1, metric_fn,
};
use tunebook_evaluate::{
    Comparison, EvalExample, Evaluation, EvaluationArgs, Verdict, evaluate_with,
};
use tunebook_models::{Device, Message, Model};
use tunebook_tune::{
    Adapters as _, EvalStrategy, Example, Full, FullTuning as _, Trainer, TrainingArgs,
    answering_fingerprint,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/lora_tiny/model")
}

fn model() -> Model {
    Model::load(folder(), &Device::Cpu).unwrap()
}

/// The base with an adapter.
fn other(model: &Model) -> Model {
    let folder = folder().join("../final");
    model.load_adapter(folder, "other").unwrap();
    model.with_adapter("other").unwrap()
}

fn rows(count: usize) -> Vec<EvalExample> {
    let row = |row: usize| EvalExample::new(format!("Where is parcel {row}?"), "At the depot.");
    (0..count).map(row).collect()
}

fn args(metrics: Vec<Arc<dyn TextMetric>>) -> EvaluationArgs {
    EvaluationArgs { metrics, output_dir: None, max_new_tokens: Some(6), ..Default::default() }
}

fn judged(model: &Model, rows: &[EvalExample], args: &EvaluationArgs) -> Evaluation {
    evaluate_with(model, rows, args).unwrap()
}

fn error(rows: &[EvalExample], args: &EvaluationArgs) -> String {
    evaluate_with(&model(), rows, args).unwrap_err().to_string()
}

/// A measure whose value is a digit that the question holds: what a model says does not matter.
fn constant(value: f64) -> Arc<dyn TextMetric> {
    Arc::new(metric_fn("constant", true, move |_: &str, _: &str| value))
}

#[test]
fn full_fine_tuning_is_judged_anew_in_the_same_folder() {
    let kept = tempfile::tempdir().unwrap();
    let model = model();
    let args = EvaluationArgs { output_dir: Some(kept.path().into()), ..args(vec![]) };
    let before = judged(&model, &rows(4), &args);
    model.unfreeze(&Full::default()).unwrap();
    let examples: Vec<Example> = (0..8)
        .map(|row| {
            let question = Message::user(format!("Where is parcel {row}?"));
            Example::conversation(vec![question, Message::assistant("At the depot.")])
        })
        .collect();
    let training = TrainingArgs {
        max_steps: Some(6),
        learning_rate: 1e-2,
        eval_strategy: EvalStrategy::No,
        ..Default::default()
    };
    let steps = training.max_steps;
    // It is asked within the run, too, which makes a fingerprint known.
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (watched, of) = (Arc::clone(&seen), model.clone());
    Trainer::new(&model, &training)
        .with_callback(move |_: &tunebook_tune::StepRecord| {
            watched.lock().unwrap().push(answering_fingerprint(&of).unwrap());
        })
        .train(&examples)
        .unwrap();
    let seen = seen.lock().unwrap();
    let different: std::collections::BTreeSet<&String> = seen.iter().collect();
    assert_eq!(Some(different.len()), steps, "a fingerprint a step");
    let after = judged(&model, &rows(4), &args);
    let fresh = judged(&model, &rows(4), &EvaluationArgs { output_dir: None, ..args });
    assert_ne!(after.fingerprint, before.fingerprint);
    assert_eq!(after.value("loss"), fresh.value("loss"));
    assert_ne!(after.value("loss"), before.value("loss"));
}

#[test]
fn another_configuration_answers_for_itself() {
    let print = |file: &str, from: &str, to: &str| {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(folder()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let path = dir.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        answering_fingerprint(&Model::load(dir.path(), &Device::Cpu).unwrap()).unwrap()
    };
    let own = answering_fingerprint(&model()).unwrap();
    assert_eq!(print("config.json", "\"rms_norm_eps\"", "\"rms_norm_eps\""), own);
    let text = std::fs::read_to_string(folder().join("config.json")).unwrap();
    let line = text.lines().find(|line| line.contains("rope_theta")).unwrap();
    let (name, _) = line.split_once(':').unwrap();
    let comma = if line.trim_end().ends_with(',') { "," } else { "" };
    assert_ne!(print("config.json", line, &format!("{name}: 77.0{comma}")), own);
    let text = std::fs::read_to_string(folder().join("generation_config.json")).unwrap();
    let line = text.lines().find(|line| line.contains("eos_token_id")).unwrap();
    let (name, _) = line.split_once(':').unwrap();
    let comma = if line.trim_end().ends_with(',') { "," } else { "" };
    assert_ne!(print("generation_config.json", line, &format!("{name}: 5{comma}")), own);
}

#[test]
fn rows_that_belong_together_count_as_one() {
    let model = model();
    let tuned = other(&model);
    let base = model.base();
    let of_customers: Vec<EvalExample> = rows(40)
        .into_iter()
        .zip(0..)
        .map(|(r, at)| r.with_column("customer", (at % 4).to_string()))
        .collect();
    let clustered = EvaluationArgs { cluster: Some("customer".into()), ..args(vec![]) };
    let (one, two) =
        (judged(&base, &of_customers, &clustered), judged(&tuned, &of_customers, &clustered));
    let compared = two.compare(&one).unwrap();
    assert!(compared.scores.iter().all(|score| score.units == 4 && score.clustered));
    assert!(
        compared.scores.iter().all(|score| score.verdict == Verdict::TooFewRows),
        "{compared:?}"
    );
    let apart = judged(&tuned, &of_customers, &args(vec![]));
    let refused = apart.compare(&one).unwrap_err().to_string();
    assert!(refused.contains("cluster") && refused.contains("customer"), "{refused}");
    // A slip in the name is no column.
    let typo = EvaluationArgs { cluster: Some("custmer".into()), ..args(vec![]) };
    assert!(error(&of_customers, &typo).contains("`custmer`"));
    assert!(two.compare_clustered(&one, "typo").unwrap_err().to_string().contains("`typo`"));
    // Copies of one row are one row.
    let copies = vec![rows(1)[0].clone(); 50];
    let hit: Arc<dyn TextMetric> = Arc::new(RegexMatch::found(".").unwrap());
    let found = judged(&base, &copies, &args(vec![hit]));
    let score = found.score("regex_match").unwrap();
    assert_eq!((score.rows, score.clusters), (50, Some(1)));
    assert!(score.interval.is_none());
    assert_eq!(found.rows[7].same_as, Some(0));
}

#[test]
fn an_interval_has_a_width() {
    let model = model();
    let named = |count: usize, clusters: usize| -> Vec<EvalExample> {
        let rows = rows(count).into_iter().zip(0..);
        rows.map(|(row, at)| row.with_column("c", (at % clusters).to_string())).collect()
    };
    let clustered = |metric| EvaluationArgs { cluster: Some("c".into()), ..args(vec![metric]) };
    let none: Arc<dyn TextMetric> = Arc::new(RegexMatch::found("\u{1F980}").unwrap());
    let found = judged(&model, &named(12, 4), &clustered(none));
    let interval = found.score("regex_match").unwrap().interval.unwrap();
    assert!(interval.low == 0.0 && interval.high > 0.4, "four customers: {interval:?}");
    found.require("regex_match.high <= 0.1").unwrap_err();
    let found = judged(&model, &rows(12), &args(vec![constant(0.25)]));
    assert!(found.score("constant").unwrap().interval.is_none());
    let refused = found.require("constant.low >= 0.2").unwrap_err().to_string();
    assert!(refused.contains("no interval"), "{refused}");
}

#[test]
fn unlike_things_are_not_compared() {
    let model = model();
    let mut some = rows(12);
    some[3].references.clear();
    let wide: Arc<dyn TextMetric> = Arc::new(RegexMatch::found(r"\w").unwrap());
    let number: Arc<dyn TextMetric> = Arc::new(RegexMatch::extract(r"(\d+)").unwrap());
    let one = judged(&model, &some, &args(vec![wide]));
    let two = judged(&model, &some, &args(vec![number]));
    let refused = one.compare(&two).unwrap_err().to_string();
    assert!(refused.contains("`regex_match`"), "{refused}");
    assert!(one.score("loss").unwrap().signature.contains("loss|nrefs"), "{:?}", one.score("loss"));
    assert!(one.score("loss").unwrap().signature.contains("tokenizer:"));
    // A setting that differs is named; the seed of greedy answers is none.
    let with = |change: fn(&mut EvaluationArgs)| {
        let mut args = args(vec![Arc::new(ExactMatch::default())]);
        change(&mut args);
        judged(&model, &rows(3), &args)
    };
    let plain = with(|_| ());
    let stop = with(|args| args.generation.stop = vec!["x".into()]);
    let refused = stop.compare(&plain).unwrap_err().to_string();
    assert!(refused.contains("`stop`") && refused.contains("not set"), "{refused}");
    with(|args| args.generation.seed = 77).compare(&plain).unwrap();
    let labels = |margin: f64| EvaluationArgs {
        labels: vec!["At the depot.".into(), "Lost.".into()],
        label_margin: margin,
        ..args(vec![])
    };
    let (near, far) = (labels(0.0), labels(f64::INFINITY));
    let refused = judged(&model, &rows(3), &near).compare(&judged(&model, &rows(3), &far));
    assert!(refused.unwrap_err().to_string().contains("label_margin"));
    // Columns beside the rows are no part of what is asked.
    let columns: Vec<EvalExample> =
        rows(3).into_iter().map(|row| row.with_column("length", "short")).collect();
    let exact = args(vec![Arc::new(ExactMatch::default())]);
    judged(&model, &columns, &exact).compare(&plain).unwrap();
}

#[test]
fn solved_examples_are_neither_judged_nor_lost() {
    let shown = EvaluationArgs { few_shot: vec![rows(5)[2].clone()], ..args(vec![]) };
    let refused = error(&rows(5), &shown);
    assert!(refused.contains("few_shot") && refused.contains("row 2"), "{refused}");
    let texts = EvaluationArgs { few_shot: vec![EvalExample::text("1+1=", "2")], ..args(vec![]) };
    let refused = error(&rows(5), &texts);
    assert!(refused.contains("a text") && refused.contains("a conversation"), "{refused}");
}

#[test]
fn names_are_told_apart() {
    for name in ["loss", "perplexity", "accuracy"] {
        let own = args(vec![Arc::new(metric_fn(name, true, |_: &str, _: &str| 0.25))]);
        assert!(error(&rows(2), &own).contains(&format!("`{name}`")));
    }
    let both: Vec<Arc<dyn TextMetric>> = vec![
        Arc::new(ExactMatch::default()),
        Arc::new(ExactMatch::normalised()),
        Arc::new(NumericAnswer::default().named("number")),
        Arc::new(NumericAnswer { tolerance: 0.5 }.named("near")),
    ];
    let question = [EvalExample::new("7?", "7"), EvalExample::new("8?", "8")];
    let found = judged(&model(), &question, &args(both));
    for name in ["exact_match", "exact_match_normalised", "number", "near"] {
        assert!(found.score(name).unwrap().signature.starts_with(name));
    }
    assert!(error(&rows(2), &args(vec![constant(1.0), constant(2.0)])).contains("named"));
}

#[test]
fn few_rows_and_equal_rows_prove_nothing() {
    let model = model();
    let tuned = other(&model);
    let f1: Arc<dyn TextMetric> = Arc::new(TokenF1::default());
    let exact = args(vec![f1]);
    let compared = |count| {
        judged(&tuned, &rows(count), &exact)
            .compare(&judged(&model.base(), &rows(count), &exact))
            .unwrap()
    };
    let few = compared(4);
    assert!(few.scores.iter().all(|score| score.verdict == Verdict::TooFewRows), "{few:?}");
    let same =
        compared(12).scores.into_iter().find(|score| score.metric.name == "token_f1").unwrap();
    assert!(same.difference == 0.0 && same.smallest_difference.is_none(), "{same:?}");
    // One row: no interval, and the record can be read back.
    let one = compared(1);
    assert!(one.scores.iter().all(|score| score.interval.is_none()));
    let json = serde_json::to_string(&one).unwrap();
    let read: Comparison = serde_json::from_str(&json).unwrap();
    assert_eq!(read.scores, one.scores);
}

#[test]
fn a_gate_is_for_the_rows_that_were_to_be_judged() {
    let model = model();
    let long = "word ".repeat(model.config().max_position_embeddings);
    let mut some = rows(10);
    some[4] = EvalExample::new(long, "x");
    let any: Arc<dyn TextMetric> = Arc::new(RegexMatch::found("(?s).*").unwrap());
    let found = judged(&model, &some, &args(vec![any]));
    let refused = found.require("regex_match >= 0.99").unwrap_err().to_string();
    assert!(refused.contains("9 of 10 rows") && refused.contains("row 4"), "{refused}");
    let unanswered: Vec<EvalExample> =
        rows(3).into_iter().map(|row| EvalExample { references: Vec::new(), ..row }).collect();
    let refused = error(&unanswered, &args(vec![Arc::new(ExactMatch::default())]));
    assert!(
        refused.contains("no row has one") && refused.contains("without_references"),
        "{refused}"
    );
    let length = metric_fn("length", false, |answer: &str, _: &str| answer.len() as f64);
    let found = judged(&model, &unanswered, &args(vec![Arc::new(length.without_references())]));
    assert_eq!(found.score("length").map(|score| score.rows), Some(3));
}

#[test]
fn slices_are_columns_classes_and_lengths() {
    let mut some = rows(6);
    some[0].references = vec!["Lost.".into()];
    some[1] = EvalExample::new("Where is my parcel now?", "Lost.");
    let sliced = EvaluationArgs { slices: vec!["class".into(), "length".into()], ..args(vec![]) };
    let found = judged(&model(), &some, &sliced);
    let of = |column: &str| -> Vec<(String, usize)> {
        let slices = found.slices.iter().filter(|slice| slice.column == column);
        slices.map(|slice| (slice.value.clone(), slice.scores[0].rows)).collect()
    };
    assert_eq!(of("class"), [("At the depot.".to_owned(), 4), ("Lost.".to_owned(), 2)]);
    let lengths = of("length");
    assert_eq!(lengths.len(), 3);
    assert!(lengths.iter().all(|(value, rows)| value.ends_with("tokens") && *rows == 2));
}

#[test]
fn each_row_has_its_own_score() {
    let metrics: Vec<Arc<dyn TextMetric>> = vec![Arc::new(Bleu::default())];
    let found = judged(&model(), &rows(3), &args(metrics));
    for row in &found.rows {
        let answer = row.answer.as_ref().unwrap();
        let bleu = Bleu::default().row_score(answer, &row.references).unwrap();
        assert_eq!(row.scores["bleu"], bleu);
        assert!((row.scores["perplexity"] - row.scores["loss"].exp()).abs() < 1e-9);
    }
}

#[test]
fn numbers_and_json_are_what_their_standards_say() {
    let near = |tolerance: f64, answer: &str, reference: &str| {
        NumericAnswer { tolerance }.row_score(answer, &[reference.to_owned()])
    };
    assert_eq!(near(0.1, "1.1", "1.0").unwrap(), 1.0);
    assert_eq!(near(0.1, "1.2", "1.0").unwrap(), 0.0);
    assert_eq!(near(0.0, "1e400", "1e500").unwrap_or(0.0), 0.0);
    assert!(near(f64::NAN, "1", "1").unwrap_err().to_string().contains("tolerance"));
    for text in [r#"{"x": 1e999}"#, r#""\ud800""#] {
        assert_eq!(JsonValid::default().row_score(text, &[]).unwrap(), 1.0, "{text}");
    }
    let one = [EvalExample::new("1+1?", "2").with_choices(["2"])];
    assert!(error(&one, &args(vec![])).contains("at least two"));
}
