//! A card says what was recorded, nothing that is not to be told, and is one that the hub reads.

use std::process::Command;

use tunebook_runs::{Benchmark, CardArgs, License, ModelCard, Registry};
use tunebook_testing::Python;

use crate::common::{evaluation, model_with, registry, run, split, template};

/// The name of the run, which is nobody else's business.
const RUN: &str = "inhouse-trial";

fn args() -> CardArgs {
    CardArgs {
        repo: "owner/support".to_owned(),
        base_model: Some("owner/tiny-base".to_owned()),
        license: Some(License::new("apache-2.0")),
        ..Default::default()
    }
}

/// A registry with a run; with an evaluation of its adapter, if it is to have one.
fn recorded(evaluated: bool) -> (tempfile::TempDir, Registry) {
    let (dir, registry) = registry();
    let (_, _, model) = run(&registry, RUN);
    if evaluated {
        registry.add_evaluation(&evaluation(&model)).unwrap();
    }
    (dir, registry)
}

fn check_nothing_leaks(card: &ModelCard) {
    for (name, text) in card.files() {
        for private in
            ["Where is", "parcel", "depot", "customer", RUN, "lora_tiny", "golden", "/work"]
        {
            assert!(!text.contains(private), "{name} has `{private}`:\n{text}");
        }
        assert!(!text.contains("More Information"), "{text}");
    }
}

#[test]
fn a_card_says_what_was_recorded() {
    let (_dir, registry) = recorded(true);
    let args = CardArgs { tags: vec!["parcels-and-more".to_owned()], ..args() };
    let card = registry.card(RUN, &CardArgs { tags: Vec::new(), ..args.clone() }).unwrap();
    check_nothing_leaks(&card);
    let text = card.readme();
    for expected in [
        "license: \"apache-2.0\"",
        "base_model: \"owner/tiny-base\"",
        "base_model_relation: \"adapter\"",
        "library_name: \"peft\"",
        "pipeline_tag: \"text-generation\"",
        "- \"lora\"",
        "model-index:",
        "# support",
        "model.load_adapter(\"owner/support\", \"default\")?;",
        "30 % of the prompts for validation; seed 3",
        "strip\\_html",
        "| `learning_rate` | 0.02 |",
        "95 %",
        "6 of 6 steps",
        "The scores hold for rows like the 24 that were judged",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
    assert_eq!(card.files().len(), 1, "there is no benchmark");
    assert!(registry.card(RUN, &args).unwrap().readme().contains("- \"parcels-and-more\""));
}

#[test]
fn a_card_says_what_is_not_known() {
    let (_dir, registry) = recorded(false);
    let card = registry.card(RUN, &args()).unwrap();
    check_nothing_leaks(&card);
    assert!(!card.readme().contains("model-index"));
    assert!(card.readme().contains("Its answers were not evaluated"));
    assert!(card.readme().contains("has named no other use"));
    let merged = registry.card(RUN, &CardArgs { merged: true, ..args() }).unwrap();
    check_nothing_leaks(&merged);
    assert!(merged.readme().contains("library_name: \"transformers\""));
    assert!(merged.readme().contains("base_model_relation: \"finetune\""));
}

/// A run that another engine did, as `tunebook import-run` records it.
#[test]
fn an_imported_run_is_the_engines() {
    use tunebook_tune::{Callback as _, StopReason};
    let (_dir, registry) = registry();
    let model = model_with("support");
    let mut record = template(&model);
    record.device = "trl".to_owned();
    record.stopped = Some(StopReason::Interrupted);
    record.steps.iter_mut().for_each(|step| step.secs = 0.0);
    let mut recorder = registry.record("brought-back").with_data(&split());
    recorder.on_begin(&record, &model).unwrap();
    record.steps.iter().try_for_each(|step| recorder.on_step(step)).unwrap();
    recorder.on_end(&record).unwrap();
    let card = registry.card("brought-back", &args()).unwrap();
    let text = card.readme();
    for expected in [
        "rows with TRL, on what tunebook has prepared.",
        "with TRL, in f32; exported to it and recorded from its log by tunebook",
        "- \"trl\"",
        "The run ended before its last step, why is not on record, after",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
    for wrong in ["by hand", "tokens/s", "on trl", "rows with tunebook"] {
        assert!(!text.contains(wrong), "`{wrong}` in\n{text}");
    }
}

#[test]
fn what_a_card_must_have_is_asked_for() {
    let (_dir, registry) = recorded(true);
    let fails = |args: CardArgs| registry.card(RUN, &args).unwrap_err().to_string();
    let error = fails(CardArgs { base_model: None, ..args() });
    assert!(error.contains("--base-model owner/name") && !error.contains("lora_tiny"), "{error}");
    let error = registry.card(RUN, &CardArgs { license: None, ..args() }).unwrap_err();
    assert!(error.is_about_the_license() && error.to_string().contains("--license"), "{error}");
    let error = fails(CardArgs { license: Some(License::new("Apache 2")), ..args() });
    assert!(error.contains("`Apache 2`") && error.contains("apache-2.0"), "{error}");
    let error = fails(CardArgs { datasets: vec!["data/x/y".to_owned()], ..args() });
    assert!(error.contains("`data/x/y`"), "{error}");
    let benchmark = Benchmark {
        dataset: "openai/gsm8k".to_owned(),
        task: "main".to_owned(),
        metric: "rouge_l".to_owned(),
    };
    let error = fails(CardArgs { benchmark: Some(benchmark), ..args() });
    assert!(error.contains("no recorded evaluation has `rouge_l`"), "{error}");
    let error = registry.card("nothing", &args()).unwrap_err().to_string();
    assert!(error.contains("`nothing`"), "{error}");
}

/// Python's `huggingface_hub` reads it as it was meant, strange words included.
#[test]
fn the_hubs_own_library_reads_it() {
    let Some(python) = Python::peers("huggingface_hub, yaml") else { return };
    let (dir, registry) = recorded(true);
    let strange = "a: [b] # \"c\"\n---\n\u{85}\u{7}no";
    let args = CardArgs {
        languages: vec!["no".to_owned(), "en".to_owned()],
        datasets: vec!["openai/gsm8k".to_owned()],
        tags: vec![strange.to_owned()],
        intended_use: Some("---\nlicense: mit\n---\nTrials.".to_owned()),
        benchmark: Some(Benchmark {
            dataset: "openai/gsm8k".to_owned(),
            task: "main".to_owned(),
            metric: "loss".to_owned(),
        }),
        ..args()
    };
    let card = registry.card(RUN, &args).unwrap();
    for (name, text) in card.files() {
        let path = dir.path().join("card").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let script = "
import glob, json, sys, yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
card = ModelCard.load('card/README.md')
data = card.data
results = [[r.metric_type, r.metric_value, r.metric_name, r.task_type] for r in data.eval_results]
[path] = glob.glob('card/.eval_results/*.yaml')
[entry] = parse_eval_result_entries(yaml.safe_load(open(path)))
print(json.dumps([data.language, data.license, data.base_model, data.library_name,
    data.pipeline_tag, data.datasets, data.tags, data.model_name, results,
    [entry.dataset_id, entry.task_id, entry.value, entry.notes], path, 'More Information' in card.text]))
";
    let mut command: Command = python.command();
    let output = command.args(["-c", script]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let metrics = read[8].as_array().unwrap();
    let loss = metrics.iter().find(|result| result[0] == "loss").unwrap();
    assert!(loss[2].as_str().unwrap().starts_with("loss (95 % interval "), "{loss}");
    assert_eq!(loss[3], "text-generation");
    assert_eq!(read[9][2], loss[1]);
    let expected = serde_json::json!([
        ["no", "en"],
        "apache-2.0",
        "owner/tiny-base",
        "peft",
        "text-generation",
        ["openai/gsm8k"],
        ["tunebook", "lora", strange],
        "support",
    ]);
    assert_eq!(read.as_array().unwrap()[..8], *expected.as_array().unwrap());
    assert_eq!(read[9][0], "openai/gsm8k");
    assert_eq!(read[10], "card/.eval_results/gsm8k_main.yaml");
    assert_eq!(read[11], false);
}
