//! `tunebook export RECIPE`, `tunebook plan`, `tunebook import-run`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::golden;

fn tunebook(dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunebook"));
    command.current_dir(dir).args(words).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn recipe(dir: &Path, rows: usize) {
    let rows = (0..rows)
        .map(|i| format!("{{\"prompt\": \"Where is {i}?\", \"completion\": \"At {i}.\"}}\n"));
    fs::write(dir.join("tickets.jsonl"), rows.collect::<String>()).unwrap();
    let model = fs::canonicalize(golden("lora_tiny/model")).unwrap();
    let recipe = format!(
        "data: {{path: tickets.jsonl, split: {{fraction: 0.3}}}}\n\
         model: {{name_or_path: {:?}}}\n\
         strategy: {{type: lora, adapter_name: support, r: 2}}\n\
         training: {{max_steps: 4}}\n",
        model.display().to_string()
    );
    fs::write(dir.join("small.yaml"), recipe).unwrap();
}

#[test]
fn a_recipe_is_planned_exported_and_what_does_not_map_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    recipe(dir, 20);
    let plan = tunebook(dir, &["plan", "small.yaml", "--gpu", "L4", "training.max_steps=3"]);
    let said = text(&plan.stdout);
    assert!(plan.status.success(), "{}", text(&plan.stderr));
    assert!(
        said.contains(" 3 steps, ") && said.contains("\nL4 ") && !said.contains("H100"),
        "{said}"
    );

    let done = tunebook(dir, &["export", "small.yaml", "--to", "trl", "--out", "there"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(text(&done.stdout), "there\n");
    assert!(text(&done.stderr).contains("trl sft --config train.yaml"), "{}", text(&done.stderr));
    let lines = fs::read_to_string(dir.join("there/data/tokens/train.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 16);
    // Again, in the same place; and not over what somebody has changed.
    let again = || tunebook(dir, &["export", "small.yaml", "--to", "axolotl", "--out", "there"]);
    assert!(again().status.success());
    fs::write(dir.join("there/train.yaml"), "base_model: mine\n").unwrap();
    let kept = again();
    assert_eq!(kept.status.code(), Some(1));
    assert!(text(&kept.stderr).contains("train.yaml was changed since"), "{}", text(&kept.stderr));

    // Nothing came back yet.
    let back = tunebook(dir, &["import-run", "there"]);
    assert_eq!(back.status.code(), Some(1));
    let said = text(&back.stderr);
    assert!(said.contains("train.yaml: `adam_beta1` is not there, and was 0.9"), "{said}");
    let done = tunebook(dir, &["export", "small.yaml", "--to", "trl", "--out", "fresh"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let back = tunebook(dir, &["import-run", "fresh"]);
    assert!(text(&back.stderr).contains("bring the folder that the engine wrote"));
    assert!(!dir.join("registry").exists(), "a registry was made for nothing");

    // Another recipe of the same name has another folder.
    fs::create_dir(dir.join("b")).unwrap();
    fs::copy(dir.join("small.yaml"), dir.join("b/small.yaml")).unwrap();
    let other = tunebook(dir, &["export", "b/small.yaml", "--to", "trl", "--out", "fresh"]);
    assert_eq!(other.status.code(), Some(1));
    let said = text(&other.stderr);
    assert!(said.contains("it is the export of ") && said.contains("/small.yaml"), "{said}");

    for (words, expected) in [
        (&["export", "small.yaml"][..], "name what the recipe is exported to"),
        (&["export", "small.yaml", "--to", "trl", "--gpus", "3"], "`--gpus: 3`"),
        (&["export", "small.yaml", "--to", "trl", "--accelerate", "zero3"], "`--gpus: 8`"),
        (&["export", "a.ipynb", "--to", "trl"], "--to takes a recipe"),
        (&["plan", "small.yaml", "--gpu", "H99"], "no card `H99` is known"),
    ] {
        let refused = tunebook(dir, words);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn the_data_goes_to_a_provider_with_a_price() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    recipe(dir, 40);
    fs::write(
        dir.join("prices.toml"),
        "currency = \"EUR\"\n[hosted.small]\nper_million_tokens = 1000.0\n",
    )
    .unwrap();
    let words = ["export", "small.yaml", "--to", "openai", "--prices", "prices.toml"];
    let said = text(&tunebook(dir, &words).stderr);
    assert!(said.contains("`training.max_steps: 4`") && said.contains("has 7 steps"), "{said}");
    let small = fs::read_to_string(dir.join("small.yaml")).unwrap();
    fs::write(dir.join("small.yaml"), small.replace("max_steps: 4", "epochs: 1")).unwrap();
    let done = tunebook(dir, &words);
    let said = text(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert_eq!(text(&done.stdout), "out/export/small\n");
    assert!(said.contains("\nsmall: ") && said.contains(" EUR\n"), "{said}");
    let job = fs::read_to_string(dir.join("out/export/small/job.json")).unwrap();
    assert!(job.contains("\"model\": \"small\""), "{job}");

    recipe(dir, 20); // six of them held out
    let few = tunebook(dir, &words);
    let said = text(&few.stderr);
    assert_eq!(few.status.code(), Some(1), "{said}");
    assert!(said.contains("the file of the validation set: expected at least 10"), "{said}");
}
