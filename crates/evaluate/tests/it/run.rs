//! Evaluations of a tiny model: what is measured, what is kept, what is refused.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tunebook_evaluate::metric::{Contains, EditDistance, ExactMatch, TextMetric, metric_fn};
use tunebook_evaluate::{
    AnswerEnd, EvalExample, Evaluation, EvaluationArgs, Verdict, evaluate, evaluate_with,
};
use tunebook_models::{Device, GenerationConfig, Message, Model};
use tunebook_tune::{Adapters as _, PrefixTuning, PromptTuning};

fn model() -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/lora_tiny/model");
    Model::load(folder, &Device::Cpu).unwrap()
}

fn rows(count: usize) -> Vec<EvalExample> {
    let row = |row: usize| {
        let question = format!("Where is parcel {row}?");
        EvalExample::new(question, format!("At depot {}.", row % 7))
            .with_column("depot", (row % 7).to_string())
    };
    (0..count).map(row).collect()
}

fn in_memory() -> EvaluationArgs {
    EvaluationArgs { output_dir: None, max_new_tokens: Some(12), ..Default::default() }
}

fn with_adapter(model: &Model) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/lora_tiny/final");
    model.load_adapter(folder, "other").unwrap();
    model.with_adapter("other").unwrap()
}

#[test]
fn losses_and_answers_are_the_models() {
    let model = model();
    let rows = rows(9);
    let args = EvaluationArgs {
        metrics: vec![Arc::new(ExactMatch::default()), Arc::new(EditDistance::default())],
        slices: vec!["depot".to_owned()],
        ..in_memory()
    };
    let found = evaluate_with(&model, &rows, &args).unwrap();
    let texts: Vec<_> = rows
        .iter()
        .map(|row| {
            let turns = [Message::user(row.question()), Message::assistant(&row.references[0])];
            model.chat_tokenizer().tokenize_conversation(&turns).unwrap()
        })
        .collect();
    let losses = model.text_losses(&texts).unwrap();
    let (sum, tokens) = losses.iter().fold((0.0, 0), |(s, n), l| (s + l.sum, n + l.tokens));
    assert_eq!(found.value("loss").unwrap(), sum / tokens as f64);
    assert!((found.value("perplexity").unwrap() - (sum / tokens as f64).exp()).abs() < 1e-9);
    let config = GenerationConfig { max_new_tokens: 12, ..Default::default() };
    let questions: Vec<String> = rows.iter().map(|row| row.question().to_owned()).collect();
    let answers = model.chat_batch(&questions, &config).unwrap();
    for (row, answer) in found.rows.iter().zip(&answers) {
        assert_eq!(row.answer.as_ref().unwrap(), answer);
    }
    let distance = EditDistance::default();
    let statistics: Vec<Vec<f64>> = rows
        .iter()
        .zip(&answers)
        .map(|(row, answer)| distance.statistics(answer, &row.references).unwrap())
        .collect();
    let expected = distance.score(&tunebook_evaluate::metric::sums(&statistics));
    assert_eq!(found.value("edit_distance"), Some(expected));
    // An untrained model does not end its answers, and that is said.
    assert_eq!(found.cut_answers(), found.ends.get(&AnswerEnd::Length).copied().unwrap_or(0));
    assert_eq!(found.ends.values().sum::<usize>(), 9);
    assert_eq!(found.slices.len(), 7);
    assert!(found.slices[0].scores.iter().all(|score| score.rows <= 2));
    let signature = &found.score("exact_match").unwrap().signature;
    for part in ["nrefs:1", "max_new_tokens:12", "generation:greedy", "template:", "n:9"] {
        assert!(signature.contains(part), "{part}: {signature}");
    }
    assert_eq!(model.text_losses(&[]).unwrap(), []);
}

#[test]
fn losses_that_come_with_answers_are_the_models_behind_virtual_tokens_too() {
    let model = model();
    let prompt = PromptTuning { num_virtual_tokens: 5, ..Default::default() };
    let prefix = PrefixTuning { num_virtual_tokens: 3, ..Default::default() };
    model.add_adapter("prompt", &prompt).unwrap();
    model.add_adapter("prefix", &prefix).unwrap();
    let rows: Vec<EvalExample> = rows(12).into_iter().chain(rows(3)).collect();
    for name in ["prompt", "prefix"] {
        let model = model.with_adapter(name).unwrap();
        let with = |metrics: Vec<Arc<dyn TextMetric>>| {
            let args = EvaluationArgs { metrics, ..in_memory() };
            evaluate_with(&model, &rows, &args).unwrap()
        };
        // Without a metric nothing is generated, and losses have passes of their own.
        let (answered, alone) = (with(vec![Arc::new(ExactMatch::default())]), with(Vec::new()));
        assert!(answered.rows.iter().all(|row| row.answer.is_some()));
        for (a, b) in answered.rows.iter().zip(&alone.rows) {
            let loss = |row: &tunebook_evaluate::RowResult| row.scores["loss"];
            assert!((loss(a) - loss(b)).abs() < 1e-5 * loss(b), "{name}: {} {}", loss(a), loss(b));
        }
        assert_eq!(answered.value("token_accuracy"), alone.value("token_accuracy"));
    }
}

#[test]
fn labels_are_chosen_by_their_likelihood() {
    let model = model();
    let labels: Vec<String> = (0..7).map(|depot| format!("At depot {depot}.")).collect();
    let args = EvaluationArgs { metrics: Vec::new(), labels: labels.clone(), ..in_memory() };
    let rows = rows(14);
    let pruned = evaluate_with(&model, &rows, &args).unwrap();
    let whole = EvaluationArgs { label_margin: f64::INFINITY, ..args };
    let exact = evaluate_with(&model, &rows, &whole).unwrap();
    for (pruned, exact) in pruned.rows.iter().zip(&exact.rows) {
        assert_eq!(pruned.answer, exact.answer);
        assert_eq!(exact.probabilities.len(), 7);
        assert!((exact.probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert_eq!(pruned.end, Some(AnswerEnd::Chosen));
    }
    let right = exact.rows.iter().filter(|row| row.answer.as_ref() == row.references.first());
    assert_eq!(exact.value("accuracy").unwrap(), right.count() as f64 / 14.0);
    let classes = exact.classification.as_ref().unwrap();
    assert_eq!(classes.report.rows, 14);
    assert_eq!(classes.confusion.labels, labels);
    assert!(exact.score("accuracy_norm").is_none(), "labels are told apart by their end");
    // Questions with their own choices.
    let own: Vec<EvalExample> = rows
        .iter()
        .map(|row| {
            let prompt = format!("{} Answer:", row.question());
            let right = format!(" {}", row.references[0]);
            EvalExample::text(prompt, right.clone()).with_choices([right, " no".to_owned()])
        })
        .collect();
    let found = evaluate_with(&model, &own, &EvaluationArgs { metrics: Vec::new(), ..in_memory() });
    let found = found.unwrap();
    for (row, example) in found.rows.iter().zip(&own) {
        let pairs: Vec<(&str, &str)> =
            example.choices.iter().map(|choice| (example.question(), choice.as_str())).collect();
        let sums = model.log_likelihoods(&pairs).unwrap();
        let likelier = usize::from(sums[1].sum > sums[0].sum);
        assert_eq!(row.answer.as_deref(), Some(pairs[likelier].1));
        let normed = |at: usize| sums[at].sum / pairs[at].1.chars().count() as f64;
        let hit = row.statistics["accuracy_norm"][0];
        assert_eq!(hit == 1.0, normed(0) >= normed(1));
    }
}

#[test]
fn references_that_are_no_label_are_refused() {
    let model = model();
    let asked = |texts: [&str; 3]| {
        texts.map(|text| EvalExample::new(format!("Do you like {text}?"), text)).to_vec()
    };
    let labels = |labels: [&str; 2]| EvaluationArgs {
        metrics: Vec::new(),
        labels: labels.map(str::to_owned).into(),
        ..in_memory()
    };
    let error = |rows: &[EvalExample], args: &EvaluationArgs| {
        evaluate_with(&model, rows, args).unwrap_err().to_string()
    };
    let found = error(&asked(["Good", "Bad ", "Good"]), &labels(["good", "bad"]));
    for part in ["3 of 3 rows", "EvaluationArgs.labels", "row 0, \"Good\"", "\"good\"", "upper"] {
        assert!(found.contains(part), "{part}: {found}");
    }
    // One is enough: it could never be judged right.
    let some = asked(["good", "bad", "neutral"]);
    let found = error(&some, &labels(["good", "bad"]));
    for part in ["1 of 3 rows", "row 2, \"neutral\"", "\"good\", \"bad\"", "leave these rows out"] {
        assert!(found.contains(part), "{part}: {found}");
    }
    let own: Vec<EvalExample> =
        some.iter().map(|row| row.clone().with_choices(["good", "bad"])).collect();
    assert!(error(&own, &in_memory()).contains("EvalExample.choices"));
    // Several right answers, of which one is a label; no reference at all.
    let mut right = some;
    right[2].references.push("bad".to_owned());
    right[1].references.clear();
    let found = evaluate_with(&model, &right, &labels(["good", "bad"])).unwrap();
    let report = &found.classification.as_ref().unwrap().report;
    assert_eq!(report.rows, 2);
    assert_eq!(report.classes.iter().map(|class| class.support).sum::<u64>(), 2);
}

#[test]
fn fewer_rows_are_spread_over_all() {
    let model = model();
    let args = |most| EvaluationArgs { metrics: Vec::new(), max_rows: Some(most), ..in_memory() };
    let numbers = |count: usize, most: usize| -> Vec<usize> {
        let found = evaluate_with(&model, &rows(count), &args(most)).unwrap();
        assert_eq!(found.planned_rows, count.min(most));
        let all = rows(count);
        assert!(found.rows.iter().all(|row| row.question == all[row.row].question()));
        found.rows.iter().map(|row| row.row).collect()
    };
    // Sorted by class: each quarter of the rows is judged.
    let found = numbers(40, 4);
    assert_eq!(found.iter().map(|row| row / 10).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(found, numbers(40, 4));
    // Taking turns: not all of one kind.
    let turns: std::collections::BTreeSet<usize> = found.iter().map(|row| row % 2).collect();
    assert_eq!(turns.len(), 2, "{found:?}");
    assert_eq!(numbers(7, 7), numbers(7, 8));
    assert_eq!(numbers(7, 6).len(), 6);
    // Errors name the row by its place among all.
    let mut with_bad = rows(40);
    for row in &mut with_bad {
        row.references = vec!["b".to_owned()];
    }
    let labels = vec!["a".to_owned(), "c".to_owned()];
    let error = evaluate_with(&model, &with_bad, &EvaluationArgs { labels, ..args(4) });
    let error = error.unwrap_err().to_string();
    assert!(error.contains(&format!("row {}, ", found[0])), "{error}");
}

#[test]
fn loss_and_perplexity_are_one_test_and_mcnemars_is_the_exact_one() {
    let model = model();
    let base = model.base();
    let other = with_adapter(&model);
    // Short answers, which fit into the context as references.
    let args = EvaluationArgs { max_new_tokens: Some(4), ..in_memory() };
    // Seven rows have the answers of one model, which the other does not give, as their references.
    let mut rows = rows(40);
    let answers = |model: &Model| -> Vec<String> {
        let said = evaluate_with(model, &rows, &args).unwrap();
        said.rows.into_iter().map(|row| row.answer.unwrap().trim().to_owned()).collect()
    };
    let (ours, theirs) = (answers(&other), answers(&base));
    let mut won = 0;
    for ((row, ours), theirs) in rows.iter_mut().zip(ours).zip(theirs) {
        let right = |answer: &str| {
            ExactMatch::default().statistics(answer, std::slice::from_ref(&ours)).unwrap()[0] > 0.5
        };
        let wins = won < 7 && right(&ours) && !right(&theirs);
        won += usize::from(wins);
        row.references = vec![if wins { ours } else { "none of these".to_owned() }];
    }
    let judged = |model: &Model| evaluate_with(model, &rows, &args).unwrap();
    let compared = judged(&other).compare(&judged(&base)).unwrap();
    assert_eq!((won, compared.newly_right["exact_match"].len()), (7, 7));
    let score = |name: &str| compared.scores.iter().find(|s| s.metric.name == name).unwrap();
    // `statsmodels.stats.contingency_tables.mcnemar([[0, 7], [0, 33]], exact=True).pvalue`
    let own = score("exact_match");
    assert_eq!(own.test, "McNemar, mid-p");
    assert!((own.p_value - 0.0078125).abs() < 1e-12, "{}", own.p_value);
    assert_eq!(compared.tests(), compared.scores.len() - 1);
    assert_eq!(score("perplexity").adjusted_p_value, score("loss").adjusted_p_value);
    let mut p_values: Vec<f64> = compared.scores.iter().map(|score| score.p_value).collect();
    p_values.remove(1);
    let adjusted = tunebook_evaluate::statistics::holm(&p_values);
    let names: Vec<&str> = compared.scores.iter().map(|s| s.metric.name.as_str()).collect();
    assert_eq!(names, ["loss", "perplexity", "token_accuracy", "exact_match"]);
    assert_eq!(score("loss").adjusted_p_value, adjusted[0]);
    assert_eq!(own.adjusted_p_value, adjusted[2]);
}

#[test]
fn a_second_call_generates_nothing_again() {
    let folder = tempfile::tempdir().unwrap();
    // An adapter that is loaded later becomes the active one.
    let loaded = model();
    let model = loaded.base();
    let args = EvaluationArgs { output_dir: Some(folder.path().into()), ..in_memory() };
    let first = evaluate_with(&model, &rows(40), &args).unwrap();
    let file = || {
        let files: Vec<PathBuf> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        std::fs::read(&files[0]).unwrap()
    };
    let kept = file();
    // Another metric, and fewer rows.
    let changed = EvaluationArgs { metrics: vec![Arc::new(Contains::default())], ..args.clone() };
    let second = evaluate_with(&model, &rows(30), &changed).unwrap();
    assert_eq!(file(), kept);
    assert_eq!(second.rows[3].answer, first.rows[3].answer);
    assert!(second.score("exact_match").is_none());
    // More tokens are another question.
    let longer = EvaluationArgs { max_new_tokens: Some(13), ..args.clone() };
    evaluate_with(&model, &rows(1), &longer).unwrap();
    assert!(file().len() > kept.len());
    // Another adapter is another file, by content and not by name.
    let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    evaluate_with(&with_adapter(&loaded), &rows(2), &args).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    // A line that a killed process left unfinished is cut off; the file's lines stay whole.
    let mut torn = std::fs::read(&path).unwrap();
    let whole = torn.len();
    torn.extend_from_slice(b"{\"kind\":\"answer\",\"key\":\"ab");
    std::fs::write(&path, torn).unwrap();
    let again = evaluate_with(&model, &rows(40), &args).unwrap();
    assert_eq!(again.to_json().unwrap(), first.to_json().unwrap());
    assert_eq!(std::fs::read(&path).unwrap().len(), whole);
}

/// Run by the next test in a process of its own.
#[test]
#[ignore = "a part of `a_killed_evaluation_goes_on_where_it_stopped`"]
fn child() {
    let Ok(folder) = std::env::var("TUNEBOOK_EVALUATE_CHILD") else { return };
    let json = long(Path::new(&folder)).to_json().unwrap();
    std::fs::write(Path::new(&folder).join("result.json"), json).unwrap();
}

fn long(folder: &Path) -> Evaluation {
    let args = EvaluationArgs {
        output_dir: Some(folder.join("answers")),
        max_new_tokens: Some(48),
        labels: Vec::new(),
        ..Default::default()
    };
    evaluate_with(&model(), &rows(600), &args).unwrap()
}

#[test]
fn a_killed_evaluation_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    for folder in [&whole, &killed] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let start = |folder: &Path| {
        Command::new(std::env::current_exe().unwrap())
            .args(["run::child", "--exact", "--ignored"])
            .env("TUNEBOOK_EVALUATE_CHILD", folder)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let begun = std::time::Instant::now();
    assert!(start(&whole).wait().unwrap().success());
    let time = begun.elapsed();
    let mut random = tunebook_testing::Random::new(3);
    let mut unfinished = 0;
    for _ in 0..20 {
        let mut child = start(&killed);
        std::thread::sleep(time.mul_f64(random.unit() / 3.0).max(Duration::from_millis(1)));
        child.kill().unwrap();
        child.wait().unwrap();
        unfinished += usize::from(!killed.join("result.json").exists());
    }
    assert!(unfinished >= 5, "killed while it worked: {unfinished}");
    assert!(start(&killed).wait().unwrap().success());
    let read = |folder: &Path| std::fs::read_to_string(folder.join("result.json")).unwrap();
    assert_eq!(read(&killed), read(&whole), "byte for byte");
}

#[test]
fn models_are_compared_on_the_same_rows_with_the_same_settings() {
    let model = model();
    let other = with_adapter(&model);
    let base = model.base();
    let one = evaluate_with(&base, &rows(40), &in_memory()).unwrap();
    let same = evaluate_with(&base, &rows(40), &in_memory()).unwrap();
    let equal = same.compare(&one).unwrap();
    // The same adapter, trained in between.
    let mut later = one.clone();
    later.fingerprint = "0123456789abcdef".to_owned();
    let trained = later.compare(&one).unwrap();
    assert_eq!(trained.name, format!("{} (01234567)", one.active));
    assert_eq!(trained.other, format!("{} ({})", one.active, &one.fingerprint[..8]));
    for score in &equal.scores {
        assert_eq!(score.difference, 0.0);
        assert_eq!(score.verdict, Verdict::NoDifferenceShown, "{}", score.metric.name);
        assert_eq!(score.p_value, 1.0);
    }
    let two = evaluate_with(&other, &rows(40), &in_memory()).unwrap();
    let compared = two.compare(&one).unwrap();
    let loss = &compared.scores[0];
    assert_eq!(loss.metric.name, "loss");
    assert!(
        (loss.difference - (two.value("loss").unwrap() - one.value("loss").unwrap())).abs() < 1e-12
    );
    assert!(loss.interval.unwrap().contains(loss.difference));
    let expected = if loss.difference < 0.0 { Verdict::Better } else { Verdict::Worse };
    assert_eq!(loss.verdict, expected, "40 rows of one kind show it: {loss:?}");
    assert_eq!(compared.most_changed.len(), 40);
    // Clusters count as one.
    let clustered = two.compare_clustered(&one, "depot").unwrap();
    assert_eq!(clustered.scores[0].units, 7);
    // Other settings or rows are refused by name.
    let longer = EvaluationArgs { max_new_tokens: Some(20), ..in_memory() };
    let longer = evaluate_with(&base, &rows(40), &longer).unwrap();
    let error = longer.compare(&one).unwrap_err().to_string();
    assert!(error.contains("max_new_tokens") && error.contains("20 and 12"), "{error}");
    let fewer = evaluate_with(&base, &rows(39), &in_memory()).unwrap();
    let error = fewer.compare(&one).unwrap_err().to_string();
    assert!(error.contains("rows"), "{error}");
    let few = evaluate_with(&base, &rows(3), &in_memory()).unwrap();
    let other_few = evaluate_with(&other, &rows(3), &in_memory()).unwrap();
    let compared = other_few.compare(&few).unwrap();
    assert!(compared.scores.iter().all(|score| score.verdict != Verdict::Better));
}

#[test]
fn a_gate_fails_with_what_was_found() {
    let found = evaluate_with(&model(), &rows(20), &in_memory()).unwrap();
    found.require("loss > 0").unwrap().require("exact_match <= 1").unwrap();
    found.require("exact_match.low >= 0").unwrap();
    let error = found.require("exact_match >= 0.88").unwrap_err().to_string();
    assert!(error.contains("exact_match >= 0.88") && error.contains("0.0000"), "{error}");
    for (condition, part) in [
        ("accuracy >= 0.5", "exact_match"),
        ("exact_match", "expected"),
        ("exact_match >= much", "expected"),
        ("exact_match >= nan", "expected"),
    ] {
        let error = found.require(condition).unwrap_err().to_string();
        assert!(error.contains(part), "{condition}: {error}");
    }
}

#[test]
fn bad_input_is_refused_by_its_place_and_answers_are_kept() {
    let model = model();
    let error = evaluate(&model, &Vec::<EvalExample>::new()).unwrap_err().to_string();
    assert!(error.contains("no rows"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let kept = |metric: Arc<dyn TextMetric>| EvaluationArgs {
        metrics: vec![metric],
        output_dir: Some(folder.path().into()),
        ..in_memory()
    };
    let panics = metric_fn("own", true, |_: &str, reference: &str| {
        assert!(!reference.contains('3'), "no threes");
        1.0
    });
    let error = evaluate_with(&model, &rows(10), &kept(Arc::new(panics))).unwrap_err().to_string();
    assert!(
        error.contains("row 3") && error.contains("own") && error.contains("no threes"),
        "{error}"
    );
    let text = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let lines = std::fs::read_to_string(text).unwrap();
    assert_eq!(lines.matches("\"kind\":\"answer\"").count(), 10, "answers are kept");
    // A row without a reference is answered, and counts in no score that needs one.
    let mut some = rows(5);
    some[2].references.clear();
    let found = evaluate_with(&model, &some, &in_memory()).unwrap();
    assert_eq!(found.score("exact_match").unwrap().rows, 4);
    assert!(found.rows[2].answer.is_some());
    // A prompt that does not fit is left out with its reason.
    let context = model.config().max_position_embeddings;
    let mut long = rows(3);
    long.push(EvalExample::new("x".repeat(context + 1), "y"));
    let found = evaluate_with(&model, &long, &in_memory()).unwrap();
    let reason = found.rows[3].left_out.as_ref().unwrap();
    assert!(reason.contains(&context.to_string()), "{reason}");
    assert_eq!(found.score("loss").unwrap().rows, 3);
    // Arguments.
    for (args, part) in [
        (EvaluationArgs { level: 1.0, ..in_memory() }, "level"),
        (EvaluationArgs { labels: vec!["a".into()], ..in_memory() }, "labels"),
        (EvaluationArgs { labels: vec!["a".into(), "a".into()], ..in_memory() }, "twice"),
        (EvaluationArgs { max_new_tokens: Some(0), ..in_memory() }, "max_new_tokens"),
        (EvaluationArgs { max_rows: Some(0), ..in_memory() }, "`EvaluationArgs.max_rows` is 0"),
        (EvaluationArgs { slices: vec!["nothing".into()], ..in_memory() }, "nothing"),
    ] {
        let error = evaluate_with(&model, &rows(3), &args).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn solved_examples_stand_before_each_prompt() {
    let model = model();
    let shots = vec![EvalExample::new("a", "b")];
    let args = EvaluationArgs { few_shot: shots.clone(), ..in_memory() };
    let row = EvalExample::new("e", "f");
    let found = evaluate_with(&model, std::slice::from_ref(&row), &args).unwrap();
    let mut turns = Vec::new();
    for shot in &shots {
        turns.push(Message::user(shot.question()));
        turns.push(Message::assistant(&shot.references[0]));
    }
    turns.push(Message::user(row.question()));
    let asked = model.chat_tokenizer().tokenize_prompt(&turns).unwrap();
    assert_eq!(found.rows[0].prompt_tokens, asked.len());
    assert_eq!(found.settings["few_shot"], "1");
}

/// Rows are judged some at a time, and each would have the adapter of another.
#[test]
fn a_handle_with_an_adapter_for_each_text_is_refused() {
    let mixed = model().with_adapter_names(&["__base__"; 4]).unwrap();
    let error = evaluate_with(&mixed, &rows(4), &in_memory()).unwrap_err().to_string();
    assert!(error.contains("`with_adapter`"), "{error}");
}
