//! From data sets to evaluations, reports and comparisons of strategies, on a tiny model.

use std::path::Path;

use tunebook::prelude::*;

const EVIL: &str = "<script>1";

fn model() -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/lora_tiny/model");
    Model::load(folder, &Device::Cpu).expect("a model")
}

fn dataset(rows: usize) -> Dataset {
    let pairs: Vec<(String, String)> = (0..rows)
        .map(|row| (format!("Where is parcel {row}?"), ["At the depot.", "Lost."][row % 2].into()))
        .collect();
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect();
    Dataset::from_rows(&pairs)
}

fn split() -> Splits {
    Splits::new(dataset(12), dataset(6))
}

fn judged() -> EvaluationArgs {
    EvaluationArgs { output_dir: None, max_new_tokens: Some(6), ..Default::default() }
}

fn lora() -> Lora {
    Lora { r: 2, target_modules: ["q_proj", "v_proj"].into(), ..Default::default() }
}

fn short() -> TrainingArgs {
    TrainingArgs { max_steps: Some(4), batch_size: 2, learning_rate: 1e-2, ..Default::default() }
}

#[test]
fn a_data_set_and_its_file_are_judged_alike() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("rows.jsonl");
    let lines = [
        r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."},{"role":"user","content":"Bye"},{"role":"assistant","content":"Goodbye."}],"kind":"chat","n":3}"#,
        r#"{"messages":[{"role":"user","content":"Where?"},{"role":"assistant","content":"Here."}],"kind":"place","n":null}"#,
    ];
    std::fs::write(&file, lines.join("\n")).expect("written");
    let data = Dataset::read(&file).expect("read");
    let rows = (&data).into_examples().expect("rows");
    assert_eq!(rows[0].question(), "Bye");
    assert_eq!(rows[0].references, ["Goodbye."]);
    let EvalPrompt::Conversation(turns) = &rows[0].prompt else { panic!("a conversation") };
    let roles: Vec<&str> = turns.iter().map(|turn| turn.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    assert_eq!(rows[0].columns.get("kind").map(String::as_str), Some("chat"));
    assert_eq!(rows[0].columns.get("n").map(String::as_str), Some("3"));
    assert!(!rows[1].columns.contains_key("n"));
    assert_eq!(rows, file.as_path().into_examples().expect("rows"));
    assert_eq!(rows, file.to_str().expect("UTF-8").into_examples().expect("rows"));
    let missing = evaluate(&model(), "no/such/file.jsonl").unwrap_err().to_string();
    assert!(missing.contains("no/such/file.jsonl"), "{missing}");

    let texts = dir.path().join("texts.jsonl");
    std::fs::write(&texts, r#"{"text":"The depot is in Leeds."}"#).expect("written");
    let found = evaluate_with(&model(), texts.as_path(), &judged()).expect("judged");
    assert_eq!(found.score("loss").map(|score| score.rows), Some(1));
    assert!(found.rows[0].answer.is_none(), "a plain text asks nothing");
}

/// What a run measures while it trains is what `evaluate` measures afterwards.
#[test]
fn answers_are_judged_while_a_run_trains() {
    let (model, split) = (model(), split());
    model.add_adapter("a", lora()).expect("added");
    let args = TrainingArgs {
        eval_strategy: EvalStrategy::Steps(2),
        eval_metrics: vec!["accuracy".into(), "chrf".into()],
        eval_metrics_rows: Some(4),
        metric_for_best_model: "accuracy".into(),
        ..short()
    };
    let run = Trainer::new(&model, &args).train(&split).expect("trained");
    let names: Vec<&str> = run.metrics.iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(names, ["loss", "accuracy", "chrf"]);
    assert_eq!(run.evals.len(), 2);
    let labels = vec!["At the depot.".to_owned(), "Lost.".to_owned()];
    let args = EvaluationArgs {
        metrics: vec![tunebook::evaluation::metric::named("chrf").expect("a metric")],
        labels,
        max_rows: Some(4),
        ..judged()
    };
    let after = evaluate_with(&model, &split.validation, &args).expect("judged");
    let last = run.evals.last().expect("an evaluation");
    assert_eq!(last.metric("accuracy"), after.value("accuracy"));
    assert_eq!(last.metric("chrf"), after.value("chrf"));

    // A rare class may be in the validation set alone.
    let rare = Splits::new(dataset(12), Dataset::from_rows(&[("Where is it?", "Sold.")]));
    let args = TrainingArgs { eval_metrics: vec!["accuracy".into()], ..short() };
    let run = Trainer::new(&model, &args).train(&rare).expect("trained");
    assert!(run.evals[0].metric("accuracy").is_some_and(|value| (0.0..=1.0).contains(&value)));

    let wrong = TrainingArgs { eval_metrics: vec!["exact".into()], ..short() };
    let refused = Trainer::new(&model, &wrong).train(&split).unwrap_err().to_string();
    assert!(refused.contains("exact_match"), "{refused}");
}

#[test]
fn tables_and_charts_have_what_was_found_and_no_markup_of_data() {
    let data = Dataset::from_rows(&[(EVIL, "Yes."), ("Is it?", EVIL), ("Or not?", "Yes.")]);
    let args = EvaluationArgs { labels: vec![EVIL.to_owned(), "Yes.".to_owned()], ..judged() };
    let found = evaluate_with(&model(), &data, &args).expect("judged");
    let tables =
        [found.score_table(), found.worst_rows("loss"), found.class_table().expect("classes")];
    for table in &tables {
        assert!(!table.html().contains("<script"), "{}", table.html());
    }
    assert_eq!(tables[1].len(), 3);
    let losses: Vec<f64> = found.rows.iter().map(|row| row.statistics["loss"][0]).collect();
    assert_eq!(losses.len(), 3);
    assert!(tables[2].text().contains("accuracy"), "{}", tables[2].text());
    for figure in [found.confusion_chart(), found.reliability_chart()] {
        let figure = figure.expect("a figure");
        assert!(!figure.svg().contains("<script"));
    }
    let plain = evaluate_with(&model(), &data, &judged()).expect("judged");
    assert!(plain.class_table().is_none() && plain.confusion_chart().is_none());
}

#[test]
fn a_turn_that_is_not_trained_is_no_reference() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("rows.jsonl");
    let line = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"good"},{"role":"user","content":"no"},{"role":"assistant","content":"BAD","weight":0}]}"#;
    std::fs::write(&file, line).expect("written");
    let rows = file.as_path().into_examples().expect("rows");
    assert_eq!((rows[0].question(), &rows[0].references[..]), ("a", &["good".to_owned()][..]));
}

#[test]
fn a_report_is_one_page_that_needs_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = model();
    let split = Splits::new(
        Dataset::from_rows(&[(EVIL, "Yes."), ("Is it?", EVIL)]),
        Dataset::from_rows(&[("Or not?", EVIL)]),
    );
    model.add_adapter("a", lora()).expect("added");
    let args = TrainingArgs { eval_strategy: EvalStrategy::Epoch, ..short() };
    let run = Trainer::new(&model, &args).train(&split).expect("trained");
    let base = evaluate_with(&model.base(), &split.validation, &judged()).expect("judged");
    let tuned = evaluate_with(&model, &split.validation, &judged()).expect("judged");
    let report = Report::new(format!("About {EVIL}"))
        .part("Data", &split)
        .part("Model", &model)
        .part("Training", run.record())
        .part("Evaluation", &tuned)
        .part(EVIL, &tuned.compare(&base).expect("compared"))
        .figure("Loss", &run.loss_curve());
    let path = dir.path().join("new/report.html");
    report.write(&path).expect("written");
    let page = std::fs::read_to_string(&path).expect("read");
    assert_eq!(page, report.html());
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script"), "markup of data");
    for foreign in ["src=\"http", "href=\"http", "url(http", "@import"] {
        assert!(!page.contains(foreign), "the page needs {foreign}");
    }
    let json = std::fs::read(path.with_extension("json")).expect("read");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(json["sections"].as_array().map(Vec::len), Some(6));
    assert_eq!(json["sections"][2]["content"]["adapter"], "a");
    let names: Vec<_> = std::fs::read_dir(dir.path().join("new"))
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names.len(), 2, "nothing temporary stays: {names:?}");
}

#[test]
fn strategies_are_trained_and_judged_on_the_same_rows() {
    let (shared, whole, split) = (model(), model(), split());
    let before = evaluate_with(&shared, &split.validation, &judged()).expect("judged");
    shared.add_adapter("earlier", lora()).expect("added");
    let earlier = Trainer::new(&shared, &short()).train(&split).expect("trained");
    // A Stop of back then does not end the comparison of today.
    let earlier = RunRecord { stopped: Some(StopReason::Interrupted), ..earlier.record().clone() };
    let found = compare_strategies(
        &split,
        [
            Candidate::train("lora", &shared, lora(), &short()),
            Candidate::train("full", &whole, Full::default(), &short()),
            Candidate::trained("by hand", &shared, &earlier),
            Candidate::untouched(&shared),
        ],
        &judged(),
    )
    .expect("compared");
    let [lora, full, by_hand, untouched] = &found.results[..] else { panic!("four results") };
    assert_eq!(untouched.evaluation.scores, before.scores);
    assert!(untouched.costs.is_none() && untouched.file_bytes == 0);
    // The same adapter, seed and rows.
    assert_eq!(lora.evaluation.scores, by_hand.evaluation.scores);
    assert_ne!(lora.evaluation.scores, before.scores);
    assert_ne!(full.evaluation.scores, before.scores);
    assert_eq!(full.costs.as_ref().map(|costs| costs.share()), Some(1.0));
    assert_eq!(full.file_bytes, whole.memory_bytes());
    assert!(by_hand.tokens_per_sec().is_some_and(|speed| speed > 0.0));
    assert_eq!(found.table().len(), 4);
    assert_eq!(found.charts().len(), 4);
    let error = found.score_chart("accuracy").unwrap_err().to_string();
    assert!(error.contains("exact_match"), "{error}");
}

#[test]
fn a_comparison_that_would_spoil_a_model_is_refused_before_it_trains() {
    let model = model();
    let full = Candidate::train("full", &model, Full::default(), &short());
    let found = compare_strategies(&split(), [Candidate::untouched(&model), full], &judged());
    let error = found.unwrap_err().to_string();
    assert!(error.contains("`full`") && error.contains("Model::load"), "{error}");
    // A run of the whole model has changed what would be called untouched.
    let whole = self::model();
    whole.unfreeze(&Full::default()).expect("unfrozen");
    let run = Trainer::new(&whole, &short()).train(&split()).expect("trained");
    let both = [Candidate::untouched(&whole), Candidate::trained("full", &whole, &run)];
    let error = compare_strategies(&split(), both, &judged()).unwrap_err().to_string();
    assert!(error.contains("untouched") || error.contains("whose weights"), "{error}");
    compare_strategies(&split(), [Candidate::trained("full", &whole, &run)], &judged())
        .expect("alone");
    let twice = || Candidate::train("a", &model, lora(), &short());
    let error = compare_strategies(&split(), [twice(), twice()], &judged()).unwrap_err();
    assert!(error.to_string().contains("`a` twice"), "{error}");
    assert!(model.adapters().is_empty());
}
