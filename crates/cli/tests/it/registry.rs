//! `tunebook registry`, on registries that are written line by line.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use tunebook_models::{Device, Model};
use tunebook_runs::Registry;
use tunebook_tune::{Adapters as _, EvalStrategy, Example, Lora, Trainer, TrainingArgs};

use crate::golden;

/// The name of a file of rows that has none: the hash of nothing.
const NO_ROWS: &str = "e3b0c44298fc1c149afbf4c8996fb924";

/// A registry with two runs that have ended, each with an adapter's files.
fn registry() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (run, name, rate) in [("aaaa00000001", "one", 0.1), ("bbbb00000002", "two", 0.2)] {
        add_run(root.path(), run, name, rate, &[]);
    }
    root
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A run with these lines behind its first, and its adapter: its id.
fn add_run(root: &Path, run: &str, name: &str, rate: f64, lines: &[Value]) -> String {
    let begin = json!({
        "kind": "begin", "format": 1, "run": run, "name": name, "started": 1.0,
        "data": {
            "rows": NO_ROWS,
            "train": {"source": "tickets", "rows": 3, "fingerprint": run[..2].repeat(32), "cleanings": [[]]},
        },
        "record": {
            "base_model": "tiny", "args": {"learning_rate": rate, "seed": 7},
            "fingerprints": {"train": run[..2].repeat(8)}, "plan": {"total_steps": 2},
        },
    });
    put(root, &format!("rows/{NO_ROWS}.txt"), "");
    // The id is the hash of the files.
    let (file, weights) = ("adapter_model.safetensors", run);
    let adapter = id(file, weights);
    put(root, &format!("adapters/{adapter}/{file}"), weights);
    let saved = json!({
        "kind": "saved", "config": "LoRA r=4", "answering": [], "bytes": 12, "at": 1.0, "run": run,
    });
    put(root, &format!("adapters/{adapter}.jsonl"), &format!("{saved}\n"));
    let mut log = vec![begin];
    log.extend_from_slice(lines);
    log.push(json!({"kind": "adapter", "adapter": adapter}));
    log.push(json!({"kind": "end", "state": "finished", "steps": 2, "secs": 1.0, "ended": 2.0}));
    let log: String = log.iter().map(|line| format!("{line}\n")).collect();
    put(root, &format!("runs/{run}/log.jsonl"), &log);
    adapter
}

/// The id of an adapter of one file: the hash of its name and its bytes, each behind its length.
fn id(file: &str, bytes: &str) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("hashed");
    let mut hashed = Vec::new();
    for part in [file, bytes] {
        hashed.extend_from_slice(&(part.len() as u64).to_le_bytes());
        hashed.extend_from_slice(part.as_bytes());
    }
    fs::write(&path, hashed).unwrap();
    let output = Command::new("sha256sum").arg(&path).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..32].to_owned()
}

/// The exit code, standard output and standard error.
fn ask(root: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tunebook"));
    let output = command.args(["registry", "--registry"]).arg(root).args(arguments).output();
    let output = output.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn told(root: &Path, arguments: &[&str]) -> String {
    let (code, told, error) = ask(root, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {error}");
    told
}

/// Standard error of a command that fails.
fn refused(root: &Path, arguments: &[&str]) -> String {
    let (code, told, error) = ask(root, arguments);
    assert!(code == Some(1) && told.is_empty(), "{arguments:?}: {told}{error}");
    error
}

#[test]
fn a_registry_is_looked_at() {
    let root = registry();
    for (arguments, words) in [
        (&["rebuild"][..], &["2 runs"][..]),
        (&["runs"], &["aaaa00000001", "one", "finished", "two"]),
        (&["runs", "--all"], &["base_model", "tiny", "adapter_files", "present"]),
        (&["why", "two"], &["run         bbbb00000002", "promotion   none"]),
        (&["gc"], &["0 adapters", "dry run", "2 stay"]),
        (&["verify"], &["as they were written"]),
    ] {
        let told = told(root.path(), arguments);
        assert!(words.iter().all(|word| told.contains(word)), "{arguments:?}: {told}");
    }
    let log = root.path().join("runs/bbbb00000002/log.jsonl");
    let whole = fs::read_to_string(&log).unwrap();
    fs::write(&log, &whole[..whole.len() - 2]).unwrap();
    let (code, told, _) = ask(root.path(), &["verify"]);
    assert!(code == Some(1) && told.contains("1 lines cannot be read"), "{told}");
    let error = refused(root.path(), &["gc", "--min-age-days", "nan", "--delete"]);
    assert!(error.contains("`min_age_secs` is NaN"), "{error}");
    // A name of somebody else says nothing to the terminal.
    let name = json!("evil\n\u{1b}[31m").to_string();
    fs::write(&log, whole.replace("\"two\"", &name)).unwrap();
    let (code, told, _) = ask(root.path(), &["runs"]);
    assert!(code == Some(0) && told.contains("evil\\n\\u{1b}[31m"), "{told}");
    // In a folder that is none nothing is made.
    let other = tempfile::tempdir().unwrap();
    let error = refused(other.path(), &["runs"]);
    assert!(error.contains("is no registry"), "{error}");
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
    refused(Path::new("/none"), &["runs"]);
    assert!(!Path::new("/none").exists());
}

#[test]
fn results_are_collected_only_if_they_are_asked_for_and_not_kept() {
    let root = registry();
    let root = root.path();
    let dry = told(root, &["gc", "--min-age-days", "0"]);
    assert_eq!(dry, "0 adapters, 0.0 MB, would be removed (dry run); 2 stay\n");
    let dry = told(root, &["gc", "--min-age-days", "0", "--results"]);
    assert!(dry.contains("the result of `one` (aaaa00000001)"), "{dry}");
    assert!(dry.contains("2 adapters") && dry.contains("0 stay"), "{dry}");

    assert_eq!(told(root, &["tag", "one", "keep", "good"]), "aaaa00000001, tags: good, keep\n");
    assert_eq!(told(root, &["tag", "one", "good", "--remove"]), "aaaa00000001, tags: keep\n");
    let done = told(root, &["gc", "--min-age-days", "0", "--results", "--delete"]);
    assert!(done.ends_with("1 adapter, 0.0 MB, was removed; 1 stays\n"), "{done}");
    let runs = told(root, &["runs"]);
    let line = |name: &str| runs.lines().find(|line| line.contains(name)).unwrap();
    assert!(line("two").contains(" (collected)") && !line("one").contains('('), "{runs}");
    assert!(line("one").contains("keep"), "{runs}");

    told(root, &["note", "one", "for the depot"]);
    assert!(told(root, &["why", "one"]).contains("note        for the depot"));
    assert_eq!(ask(root, &["note", "one", ""]).0, Some(2));
    assert_eq!(ask(root, &["tag", "one"]).0, Some(2));
    refused(root, &["tag", "three", "keep"]);
}

#[test]
fn an_alias_is_set_with_a_reason_and_goes_back() {
    let root = registry();
    let root = root.path();
    let error = refused(root, &["rollback", "support", "--from", "3"]);
    assert_eq!(error, "error: no alias `support` in this registry; there are none yet\n");
    let error = refused(root, &["promote", "one", "--to", "support"]);
    assert!(error.contains("comparison") && error.contains("--force REASON"), "{error}");
    assert!(!root.join("aliases").exists());
    let error = refused(root, &["promote", "one", "--to", "support", "--force", " "]);
    assert!(error.contains("no reason is given"), "{error}");

    let first = told(root, &["promote", "one", "--to", "support", "--force", "the first"]);
    assert!(first.starts_with("support, generation 1: adapter ") && first.contains("FORCED"));
    told(root, &["promote", "bbbb00000002", "--to", "support", "--force", "a drill"]);
    assert!(told(root, &["runs"]).contains("support@2"));
    let error = refused(root, &["rollback", "support", "--from", "1"]);
    assert!(error.contains("is at generation 2, expected 1"), "{error}");
    let back = told(root, &["rollback", "support", "--from", "2"]);
    assert!(back.contains("generation 3") && back.contains("rolled back to generation 1"));
    let error = refused(root, &["rollback", "support"]);
    assert!(error.contains("at generation 3, and there is none before it"), "{error}");
    assert!(root.join("serving/support").is_dir());
}

#[test]
fn names_are_said_to_be_ambiguous_or_like_others() {
    let root = registry();
    let root = root.path();
    add_run(root, "cccc00000003", "two", 0.3, &[]);
    for command in ["why", "recipe", "show", "compare"] {
        let error = refused(root, &[command, "two"]);
        assert!(error.contains("any of these runs: bbbb00000002, cccc00000003"), "{error}");
    }
    let error = refused(root, &["why", "on"]);
    assert!(error.contains("no adapter, alias or run `on`"), "{error}");
    assert!(error.contains("did you mean one (aaaa00000001)?"), "{error}");
    // `push` asks the same.
    let push = |what: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunebook"));
        command.args(["push", what, "--to", "me/x", "--dry-run", "--registry"]).arg(root);
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    let error = push("two");
    assert!(error.contains("any of these runs: bbbb00000002, cccc00000003"), "{error}");
    let error = push("onee");
    assert!(error.contains("did you mean one (aaaa00000001)?"), "{error}");
}

#[test]
fn a_comparison_is_of_what_was_set() {
    let root = registry();
    let root = root.path();
    let short = told(root, &["compare", "one", "two"]);
    let names: Vec<&str> =
        short.lines().map(|line| line.split(' ').next().unwrap()).take(3).collect();
    assert_eq!(names, ["setting", "args.learning_rate", "data.train.fingerprint"], "{short}");
    assert!(short.contains("aaaaaaaaaaaa") && !short.contains("aaaaaaaaaaaaa"), "{short}");
    assert!(short.contains("settings are the same, and 1 more differ (--all)"), "{short}");
    let all = told(root, &["compare", "one", "two", "--all"]);
    assert!(all.contains("fingerprints.train") && !all.contains("(--all)"), "{all}");
    let same = told(root, &["compare", "one"]);
    assert!(same.starts_with("strategy and arguments are the same"), "{same}");
}

#[test]
fn a_run_is_shown_with_its_curve() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let model = Model::load(golden("lora_tiny/model"), &Device::Cpu).unwrap();
    model.add_adapter("support", &Lora { r: 4, lora_alpha: 16.0, ..Default::default() }).unwrap();
    let registry = Registry::open(root).unwrap();
    let args = TrainingArgs {
        max_steps: Some(30),
        eval_strategy: EvalStrategy::Steps(15),
        ..Default::default()
    };
    let record = registry.record("depot");
    let trainer = Trainer::new(&model, &args).with_callback(record.clone());
    let rows = vec![Example::new("Where is it?", "At the depot."); 4];
    trainer.train((&rows, &rows)).unwrap();
    registry.note("depot", "look here").unwrap();
    let (run, adapter) = (record.id(), record.adapter().unwrap());

    let shown = told(root, &["show", "depot"]);
    for words in [
        &*format!("run         {run}, \"depot\", finished, 30 of 30 steps"),
        "strategy    LoRA r=4",
        &format!("adapter     {}, its files are below", &adapter[..12]),
        "note        look here",
        "step  loss",
        "validation loss",
        "lines of 30 steps (--all)",
        &format!("runs/{run}/log.jsonl"),
        &format!("adapters/{adapter}/adapter_model.safetensors"),
    ] {
        assert!(shown.contains(words), "no `{words}`: {shown}");
    }
    let curve = |shown: &str| -> Vec<String> {
        let lines = shown.lines().skip_while(|line| !line.starts_with("step ")).skip(1);
        lines.take_while(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    let found = registry.run("depot").unwrap();
    let few = curve(&shown);
    assert!(few.len() < 20, "{shown}");
    assert!(few.iter().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let expected =
            [format!("{:.4}", found.steps[14].loss), format!("{:.4}", found.evals[0].loss)];
        words[0] == "15" && words[1] == expected[0] && words[3] == expected[1]
    }));
    let all = told(root, &["show", &run[..6], "--all"]);
    assert_eq!(curve(&all).len(), 30, "{all}");
    assert!(all.contains("grad_norm"));

    told(root, &["gc", "--min-age-days", "0", "--results", "--delete"]);
    assert!(told(root, &["show", "depot"]).contains("its files were collected as garbage"));
}
