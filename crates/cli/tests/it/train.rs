//! `tunebook train`, and `tunebook registry recipe`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn tunebook(dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunebook"));
    command.current_dir(dir).args(words).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn recipe(dir: &Path) -> String {
    let rows = (0..20)
        .map(|i| format!("{{\"prompt\": \"Where is {i}?\", \"completion\": \"At {i}.\"}}\n"));
    fs::write(dir.join("tickets.jsonl"), rows.collect::<String>()).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/lora_tiny/model");
    format!(
        "data: {{path: tickets.jsonl, split: {{fraction: 0.3}}}}\n\
         model: {{name_or_path: {:?}}}\n\
         strategy: {{type: lora, adapter_name: support, r: 2}}\n\
         training: {{max_steps: 2}}\n",
        model.display().to_string()
    )
}

#[test]
fn a_recipe_is_trained_recorded_and_printed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("small.yaml"), recipe(dir)).unwrap();
    let words = ["train", "small.yaml", "training.learning_rate=1e-3", "--registry", "registry"];
    let done = tunebook(dir, &words);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let said = text(&done.stdout);
    assert!(said.contains("support: 2 of 2 steps"), "{said}");
    assert!(said.contains("written to out/support"), "{said}");
    assert!(dir.join("out/support/adapter_config.json").is_file());
    assert!(text(&done.stderr).contains("step 2/2, loss "), "{}", text(&done.stderr));
    let used = "20 rows of tickets.jsonl: 20 used as prompt/completion\n";
    assert!(text(&done.stderr).starts_with(used), "{}", text(&done.stderr));

    let printed = tunebook(dir, &["registry", "--registry", "registry", "recipe", "small"]);
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    let printed = text(&printed.stdout);
    assert!(printed.contains("\n  learning_rate: 0.001\n"), "{printed}");
    assert!(printed.contains("\n  path: tickets.jsonl\n"), "{printed}");

    // The whole recipe gives the same run, under the same name.
    fs::write(dir.join("whole.yaml"), &printed).unwrap();
    let again = tunebook(dir, &["train", "whole.yaml", "--registry", "again", "name=small"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    let losses = |said: &str| {
        said.split(", ").find(|part| part.contains("training loss")).map(str::to_owned)
    };
    assert_eq!(losses(&text(&again.stdout)), losses(&said));
}

#[test]
fn a_wrong_recipe_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("wrong.yaml"), recipe(dir).replace("max_steps", "max_step")).unwrap();
    let done = tunebook(dir, &["train", "wrong.yaml"]);
    assert_eq!(done.status.code(), Some(1));
    let expected = "error: `wrong.yaml`, line 4, `training.max_step`: there is no key `max_step` here; did \
                    you mean `max_steps`?\n";
    assert_eq!(text(&done.stderr), expected);
}

#[test]
fn rows_beside_the_recipe_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("recipes");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("small.yaml"), recipe(&folder)).unwrap();
    let done = tunebook(dir.path(), &["train", "recipes/small.yaml"]);
    assert_eq!(done.status.code(), Some(1));
    let said = text(&done.stderr);
    assert!(said.contains("`tickets.jsonl` lies in the recipe's own, recipes"), "{said}");
}

fn started(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunebook"));
    command.current_dir(dir).args(words).env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// `tunebook train … 2>&1 | true`, `tunebook plan … | head -1`.
#[test]
fn a_reader_who_has_gone_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("small.yaml"), recipe(dir)).unwrap();
    for words in [&["train", "small.yaml"][..], &["plan", "small.yaml"]] {
        let mut command = started(dir, words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        assert_eq!(child.wait().unwrap().code(), Some(0), "{words:?}");
    }
    assert!(dir.join("out/support/adapter_config.json").is_file());
    // What is asked for and does not arrive is a failure.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = started(dir, &["plan", "small.yaml"]);
    let done = command.stdout(full).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let said = text(&done.stderr);
    assert!(said.contains("error: standard output is not whole"), "{said}");
}

/// A machine that is taken back sends SIGTERM, some senders more than one.
#[test]
fn a_signal_ends_a_run_after_a_whole_step_and_what_is_trained_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let long = recipe(dir).replace("max_steps: 2", "max_steps: 1000000");
    fs::write(dir.join("long.yaml"), long).unwrap();
    for signal in ["-TERM", "-HUP", "-INT"] {
        let out = format!("out{signal}");
        let mut command = started(dir, &["train", "long.yaml", "--out", &out]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut lines = lines.map(Result::unwrap);
        assert!(lines.by_ref().any(|line| line.starts_with("step ")), "{signal}");
        let times = if signal == "-INT" { 1 } else { 3 };
        for _ in 0..times {
            let id = child.id().to_string();
            assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        }
        let left: Vec<String> = lines.collect();
        let done = child.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(130), "{signal}: {left:?}");
        assert!(
            left.iter().any(|line| line.contains("the recipe wants no checkpoints")),
            "{left:?}"
        );
        let said = text(&done.stdout);
        assert!(said.contains("stopped on request after step"), "{signal}: {said}");
        assert!(dir.join(&out).join("support/adapter_model.safetensors").is_file(), "{signal}");
    }
}

#[test]
fn what_another_recipe_has_trained_stays_unless_it_is_to_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("small.yaml"), recipe(dir)).unwrap();
    assert!(tunebook(dir, &["train", "small.yaml"]).status.success());
    let other = ["train", "small.yaml", "strategy.r=4"];
    let done = tunebook(dir, &other);
    assert_eq!(done.status.code(), Some(1));
    let said = text(&done.stderr);
    assert!(said.contains("holds the adapter of another recipe"), "{said}");
    assert!(!said.contains("step "), "{said}");
    let done = tunebook(dir, &[&other[..], &["--overwrite"]].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    let config = fs::read_to_string(dir.join("out/support/adapter_config.json")).unwrap();
    assert!(config.contains("\"r\": 4"), "{config}");
}
