//! Forgetting: the loss of general text and the distance from the base's predictions.

use std::path::{Path, PathBuf};

use tunebook_evaluate::{
    EvalExample, EvaluationArgs, Forgetting, ForgettingArgs, evaluate_with, forgetting_with,
};
use tunebook_models::{DEFAULT_MODEL, DType, Device, Model, TokenizedText};
use tunebook_testing::Python;
use tunebook_tune::{Adapters as _, Full, FullTuning as _, Lora, Trainer, TrainingArgs};
use tunebook_tune::{EvalStrategy, Example};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/lora_tiny/model")
}

fn tuned() -> Model {
    let model = Model::load(tiny(), &Device::Cpu).unwrap();
    model.load_adapter(tiny().join("../final"), "other").unwrap();
    model
}

fn few() -> ForgettingArgs {
    let all = ForgettingArgs::default();
    ForgettingArgs {
        texts: all.texts[..6].to_vec(),
        // The tiny model's context has room for 64 tokens.
        prompts: ["Hi", "a cat", "one", "Who?"].map(str::to_owned).to_vec(),
        max_length: 40,
        max_new_tokens: 5,
    }
}

#[test]
fn the_base_has_forgotten_nothing_bit_for_bit() {
    let model = tuned();
    let found = forgetting_with(&model.base(), &model.base(), &few()).unwrap();
    assert_eq!((found.forgetting, found.p_value), (0.0, 1.0));
    let drift = found.drift.unwrap();
    assert_eq!((drift.kl, drift.agreement), (0.0, 1.0));
}

#[test]
fn an_adapter_is_measured_whatever_is_active() {
    let model = tuned();
    let adapter = model.with_adapter("other").unwrap();
    let found = forgetting_with(&adapter, &model.base(), &few()).unwrap();
    model.disable_adapters();
    assert_eq!(forgetting_with(&adapter, &model.base(), &few()).unwrap(), found);
    assert_ne!(found.forgetting, 0.0);
    assert!(found.drift.as_ref().unwrap().kl > 0.0);
    let text = found.to_string();
    assert!(text.starts_with("forgetting ") && text.contains("on 6 general texts"), "{text}");
    let again: Forgetting = serde_json::from_str(&serde_json::to_string(&found).unwrap()).unwrap();
    // JSON's numbers may differ in their last digit.
    assert_eq!(again.to_string(), found.to_string());
}

#[test]
fn the_strength_of_an_adapter_trades_what_it_learned_for_what_it_forgot() {
    let model = tuned();
    let found = |weight: f64| {
        let part = model.with_adapter_weights(&[("other", weight)]).unwrap();
        forgetting_with(&part, &model.base(), &few()).unwrap()
    };
    let none = found(0.0);
    assert_eq!((none.loss, none.forgetting), (none.base_loss, 0.0), "the base, bit for bit");
    let whole =
        forgetting_with(&model.with_adapter("other").unwrap(), &model.base(), &few()).unwrap();
    assert_eq!(found(1.0), whole, "the adapter, bit for bit");
    let divergences: Vec<f64> =
        [0.0, 0.25, 0.5, 1.0].map(|weight| found(weight).drift.unwrap().kl).into();
    assert!(divergences.is_sorted() && divergences[1] > 0.0, "{divergences:?}");
    let error = model.with_adapter_weights(&[("none", 1.0)]).unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
}

#[test]
fn answers_of_another_strength_are_not_taken_for_these() {
    let (model, folder) = (tuned(), tempfile::tempdir().unwrap());
    let rows =
        [EvalExample::new("Where is parcel 1?", "At the depot."), EvalExample::new("a", "b")];
    let args = EvaluationArgs {
        metrics: Vec::new(),
        output_dir: Some(folder.path().into()),
        ..EvaluationArgs::default()
    };
    let judged = |weight: f64| {
        let part = model.with_adapter_weights(&[("other", weight)]).unwrap();
        evaluate_with(&part, &rows, &args).unwrap()
    };
    let (half, whole) = (judged(0.5), judged(1.0));
    assert_ne!(half.fingerprint, whole.fingerprint);
    assert_ne!(half.value("loss"), whole.value("loss"));
    assert_ne!(half.active, whole.active);
}

#[test]
fn full_fine_tuning_is_measured_against_the_base_loaded_once_more() {
    let (base, model) = (Model::load(tiny(), &Device::Cpu).unwrap(), tuned());
    model.delete_adapter("other").unwrap();
    model.unfreeze(&Full::default()).unwrap();
    let rows: Vec<Example> =
        (0..16).map(|row| Example::new(format!("parcel {row}"), "depot")).collect();
    let args = TrainingArgs {
        epochs: 4,
        learning_rate: 3e-2,
        eval_strategy: EvalStrategy::No,
        output_dir: None,
        ..TrainingArgs::default()
    };
    Trainer::new(&model, &args).train(&rows).unwrap();
    let found = forgetting_with(&model, &base, &few()).unwrap();
    assert!(found.forgetting > 0.1 && found.p_value < 0.05, "{found}");
}

#[test]
fn bad_input_is_refused_with_what_is_expected() {
    let model = tuned();
    let error = |args: ForgettingArgs| {
        forgetting_with(&model, &model.base(), &args).unwrap_err().to_string()
    };
    let none = error(ForgettingArgs { texts: Vec::new(), ..few() });
    assert!(none.contains("`ForgettingArgs.texts` is empty, expected at least one text"), "{none}");
    let short = error(ForgettingArgs { texts: vec![String::new()], ..few() });
    assert!(short.contains("without two tokens"), "{short}");
    let cut = error(ForgettingArgs { max_length: 1, ..few() });
    assert!(cut.contains("`ForgettingArgs.max_length` is 1"), "{cut}");
    let silent = ForgettingArgs { prompts: Vec::new(), ..few() };
    assert!(forgetting_with(&model, &model.base(), &silent).unwrap().drift.is_none());
}

#[test]
fn the_numbers_are_those_of_peft_and_torch() {
    let Some(python) = Python::peers("torch, peft, transformers") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = Model::load_as(DEFAULT_MODEL, Some(DType::F32), &Device::Cpu).unwrap();
    model.save_pretrained(folder.path().join("model")).unwrap();
    let lora = Lora { target_modules: ["q_proj", "v_proj"].into(), ..Lora::default() };
    model.add_adapter("odd", &lora).unwrap();
    let rows: Vec<Example> = (0..8)
        .map(|row| Example::new(format!("Where is parcel {row}?"), "At the depot."))
        .collect();
    let args = TrainingArgs {
        epochs: 3,
        learning_rate: 3e-3,
        eval_strategy: EvalStrategy::No,
        output_dir: None,
        ..TrainingArgs::default()
    };
    Trainer::new(&model, &args).train(&rows).unwrap();
    let adapter = model.save_adapter("odd", folder.path()).unwrap();
    let args = ForgettingArgs { prompts: Vec::new(), max_length: 64, ..ForgettingArgs::default() };
    let found = forgetting_with(&model, &model.base(), &args).unwrap();
    let texts = folder.path().join("texts.json");
    std::fs::write(&texts, serde_json::to_string(&args.texts).unwrap()).unwrap();
    let base = folder.path().join("model");
    let words = [base.to_str(), adapter.to_str(), texts.to_str(), Some("64")].map(Option::unwrap);
    let peer: serde_json::Value =
        serde_json::from_str(python.run("forgetting.py", &words).trim()).unwrap();
    let near = |name: &str, own: f64| {
        let peer = peer[name].as_f64().unwrap();
        assert!((own - peer).abs() < 1e-4, "{name}: {own} and {peer}");
    };
    near("base", found.base_loss);
    near("tuned", found.loss);
    assert_eq!(peer["tokens"], found.tokens);
    let whole = |text: &String| {
        let mut ids = model.tokenizer().encode_with_special_tokens(text).unwrap();
        ids.truncate(64);
        TokenizedText { loss_mask: vec![true; ids.len()], ids }
    };
    let texts: Vec<TokenizedText> = args.texts.iter().map(whole).collect();
    let found = model.divergences(&model.base(), &texts).unwrap();
    let (sum, tokens) = found.iter().fold((0.0, 0), |(s, t), d| (s + d.sum, t + d.tokens));
    near("kl", sum / tokens as f64);
    println!("{peer}");
}

#[test]
fn the_texts_that_come_along_are_many_and_different() {
    let ForgettingArgs { texts, prompts, .. } = ForgettingArgs::default();
    assert_eq!((texts.len(), prompts.len()), (40, 20));
    let different: std::collections::BTreeSet<&String> = texts.iter().chain(&prompts).collect();
    assert_eq!(different.len(), 60);
    assert!(texts.iter().all(|text| text.len() > 200));
}
