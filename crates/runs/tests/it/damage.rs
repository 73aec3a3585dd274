//! Registries that are damaged, or that somebody else has made: nothing outside them is touched, no
//! answer is wrong, and nothing that is needed is removed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tunebook_data::Row;
use tunebook_runs::{Error, GarbageArgs, Registry, Touched, row_id};

use crate::common::{copy, text};

/// A month before now, in seconds of Unix time.
pub(crate) fn month_ago() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_secs_f64() - 30.0 * 86400.0
}

/// A registry that is written line by line, without a model.
pub(crate) struct Hand {
    dir: TempDir,
    root: PathBuf,
}

impl Hand {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("registry");
        fs::create_dir_all(&root).unwrap();
        Self { dir, root }
    }

    pub(crate) fn open(&self) -> Registry {
        Registry::open(&self.root).unwrap()
    }

    pub(crate) fn add(&self, path: &str, line: &Value) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut text = fs::read_to_string(&path).unwrap_or_default();
        text.push_str(&format!("{line}\n"));
        fs::write(&path, text).unwrap();
    }

    /// The files of an adapter, a month old.
    pub(crate) fn adapter(&self, weights: &str, run: Option<&str>, parent: Option<&str>) -> String {
        let mut hash = Sha256::new();
        for part in [b"adapter_model.safetensors", weights.as_bytes()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let id: String = hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = self.root.join("adapters").join(&id);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("adapter_model.safetensors"), weights).unwrap();
        let mut touch = std::process::Command::new("touch");
        assert!(touch.args(["-d", "30 days ago"]).arg(&folder).status().unwrap().success());
        let line = json!({
            "kind": "saved", "config": "LoRA", "base_model": "m", "base": "b",
            "answering": [format!("f{weights}")], "bytes": 100, "run": run, "parent": parent,
            "at": month_ago(),
        });
        self.add(&format!("adapters/{id}.jsonl"), &line);
        id
    }

    pub(crate) fn log(&self, run: &str, line: &Value) {
        self.add(&format!("runs/{run}/log.jsonl"), line);
    }

    pub(crate) fn begin(&self, run: &str, name: &str, parent: Option<&str>, rows: Option<&str>) {
        let data = rows.map(|rows| self.data(rows));
        self.log(
            run,
            &json!({
                "kind": "begin", "format": 1, "run": run, "name": name, "started": month_ago(),
                "parent": parent, "data": data,
                "record": {
                    "base_model": "m", "strategy": "x", "metrics": [],
                    "fingerprints": {"base": "b", "dataset": "d", "train": "t"},
                    "plan": {"total_steps": 3}, "args": {"metric_for_best_model": "loss"},
                },
            }),
        );
    }

    /// Rows of these prompts, a word each.
    fn data(&self, prompts: &str) -> Value {
        let rows = prompts.split(' ').map(|prompt| row_id(&Row::new(prompt, "answer")));
        let text: String = rows.map(|id| id + "\n").collect();
        let hash: String =
            Sha256::digest(&text)[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        fs::create_dir_all(self.root.join("rows")).unwrap();
        fs::write(self.root.join("rows").join(format!("{hash}.txt")), text).unwrap();
        json!({
            "rows": hash,
            "train": {"source": "rows", "rows": 1, "fingerprint": "x", "cleanings": [[]]},
        })
    }

    pub(crate) fn end(&self, run: &str, adapter: Option<&str>) {
        if let Some(adapter) = adapter {
            self.log(run, &json!({"kind": "adapter", "adapter": adapter}));
        }
        let ended = month_ago();
        self.log(
            run,
            &json!({"kind": "end", "state": "finished", "steps": 3, "secs": 1.0, "ended": ended}),
        );
    }

    /// A run `twice` that was stopped and saved, went on, and was saved again: both adapters.
    pub(crate) fn twice(&self, run: &str, rows: Option<&str>) -> (String, String) {
        self.begin(run, "twice", None, rows);
        let [first, second] = ["first", "second"].map(|name| {
            let adapter = self.adapter(name, Some(run), None);
            self.end(run, Some(&adapter));
            adapter
        });
        (first, second)
    }

    /// A run that has ended, with an adapter.
    pub(crate) fn run(&self, run: &str, parent: Option<&str>, rows: Option<&str>) -> String {
        self.begin(run, &format!("run {run}"), parent, rows);
        let adapter = self.adapter(run, Some(run), parent);
        self.end(run, Some(&adapter));
        adapter
    }

    pub(crate) fn generation(&self, alias: &str, number: u64, adapter: &str) -> Value {
        let line = json!({
            "generation": number, "adapter": adapter, "kind": "forced",
            "previous": (number > 1).then(|| number - 1), "reason": "x", "at": month_ago(),
        });
        self.add(&format!("aliases/{alias}.jsonl"), &line);
        line
    }

    /// Two adapters, the second of which is served.
    fn served() -> (Self, String, String) {
        let hand = Self::new();
        let adapters = ["aaaaaaaaaaa1", "aaaaaaaaaaa2"].map(|run| hand.run(run, None, None));
        let [first, second] = adapters;
        hand.generation("support", 1, &first);
        hand.generation("support", 2, &second);
        hand.open().rebuild().unwrap();
        assert!(hand.link("support").ends_with(&second));
        (hand, first, second)
    }

    fn link(&self, alias: &str) -> PathBuf {
        fs::read_link(self.root.join("serving").join(alias)).unwrap()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(crate) fn is_there(&self, adapter: &str) -> bool {
        self.root.join("adapters").join(adapter).is_dir()
    }

    fn saw(&self, prompt: &str) -> Touched {
        self.open().adapters_touched_by(&Row::new(prompt, "answer")).unwrap()
    }
}

const DELETE: GarbageArgs = GarbageArgs { dry_run: false, min_age_secs: 86400.0, results: true };

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<String> =
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_registry_of_somebody_else_leads_nowhere_else() {
    let hand = Hand::new();
    let victim = hand.dir.path().join("victim");
    fs::create_dir_all(victim.join(".git")).unwrap();
    fs::write(victim.join("thesis.txt"), "years of work").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o700)).unwrap();
    let outside = victim.to_str().unwrap();
    for (alias, adapter) in [("a", outside), ("b", "../../victim"), ("c", "../../victim2")] {
        hand.generation(alias, 1, adapter);
    }
    // By a run, its rows and its parent.
    hand.begin("aaaaaaaaaaa1", "evil", Some(outside), None);
    hand.log("aaaaaaaaaaa1", &json!({"kind": "adapter", "adapter": outside}));
    hand.adapter("x", Some("../../victim"), Some(outside));
    let mut data = hand.data("a");
    data["rows"] = json!("../../victim/thesis");
    let begin = json!({
        "kind": "begin", "format": 1, "run": "x", "name": "x", "started": 1.0, "data": data,
        "record": {},
    });
    hand.log("aaaaaaaaaaa2", &begin);

    let registry = hand.open();
    assert_eq!(registry.runs().unwrap().height(), 2);
    registry.rebuild().unwrap();
    registry.why("aaaaaaaaaaa1").unwrap();
    hand.saw("a");
    assert!(registry.promote_forced("a", "run x", "x").is_err());
    assert!(registry.rollback("b").is_err());
    assert!(matches!(registry.gc(&DELETE), Err(Error::NotCollected { .. })));
    assert!(registry.adapter_folder("evil").is_err());
    let damaged = registry.verify().unwrap();
    assert!(damaged.iter().any(|of| of.problem.contains("no adapter's id")), "{damaged:?}");

    assert_eq!(names(&victim), [".git", "thesis.txt"]);
    assert_eq!(fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!hand.dir.path().join("victim2").exists());
    assert!(!hand.path("serving").exists() || names(&hand.path("serving")).is_empty());
}

#[test]
fn a_line_of_an_alias_that_cannot_be_read_changes_nothing() {
    let (hand, first, second) = Hand::served();
    let file = hand.path("aliases/support.jsonl");
    let whole = fs::read_to_string(&file).unwrap();
    let stands = |what: &str| {
        let registry = hand.open();
        registry.rebuild().unwrap();
        for refused in [
            registry.promote_forced("support", &first, "x").err(),
            registry.rollback("support").err(),
            registry.gc(&DELETE).err(),
            registry.gc(&GarbageArgs::default()).err(),
        ] {
            let refused = refused.unwrap_or_else(|| panic!("{what}: it was done")).to_string();
            assert!(refused.contains("support.jsonl"), "{what}: {refused}");
        }
        assert!(hand.link("support").ends_with(&second), "{what}");
        assert!(hand.is_there(&first) && hand.is_there(&second), "{what}");
        let damaged = registry.verify().unwrap();
        assert!(damaged.iter().any(|of| of.path.ends_with("support.jsonl")), "{what}: {damaged:?}");
        assert!(registry.why("support").is_ok(), "{what}");
    };
    let (first_line, second_line) = whole.split_once('\n').unwrap();
    for (what, text) in [
        ("a byte", whole.replacen("\"generation\":2", "\"generation\":x", 1)),
        ("torn", whole[..whole.len() - 20].to_owned()),
        (
            "of another version",
            format!("{first_line}\n{}", second_line.replace("forced", "canary")),
        ),
        ("garbage behind it", format!("{whole}garbage\n")),
        ("a line lost", whole.lines().skip(1).map(|line| format!("{line}\n")).collect()),
    ] {
        fs::write(&file, text).unwrap();
        stands(what);
    }
    // A whole line is lost at the end: only the link knows.
    let one = whole.lines().next().unwrap();
    fs::write(&file, format!("{one}\n")).unwrap();
    let registry = hand.open();
    registry.rebuild().unwrap();
    assert!(hand.link("support").ends_with(&second));
    assert!(registry.warnings().iter().any(|warning| warning.contains("lines are lost")));
    // A line without its end is a line.
    fs::write(&file, whole.trim_end()).unwrap();
    let registry = hand.open();
    assert_eq!(registry.alias("support").unwrap().adapter(), Some(second.as_str()));
    assert_eq!(registry.rollback("support").unwrap().generation, 3);
    assert!(hand.link("support").ends_with(&first));
}

#[test]
fn a_score_that_is_no_number_is_read() {
    let (hand, _, second) = Hand::served();
    let mut third = hand.generation("support", 3, &hand.adapter("three", None, None));
    let file = hand.path("aliases/support.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    let metric = json!({"name": "perplexity", "higher_is_better": false});
    third["comparison"] = json!({
        "name": "a", "other": "b", "fingerprint": "f", "other_fingerprint": "g",
        "scores": [{
            "metric": metric, "value": null, "other": 2.0, "difference": null,
            "interval": {"low": null, "high": null, "level": 0.95}, "test": "none",
            "p_value": null, "adjusted_p_value": null, "smallest_difference": null,
            "verdict": "no_difference_shown", "units": 3,
        }],
    });
    let lines: Vec<&str> = text.lines().take(2).collect();
    fs::write(&file, format!("{}\n{third}\n", lines.join("\n"))).unwrap();
    let evaluation = json!({
        "id": "e1", "fingerprint": format!("f{}", "aaaaaaaaaaa2"), "model": "m", "active": "a",
        "settings": {}, "rows": 1, "planned_rows": 1, "at": 1.0,
        "scores": [{
            "metric": metric, "value": null, "interval": null, "rows": 1, "clusters": null,
            "signature": "s",
        }],
    });
    hand.add("evaluations/e1.json", &evaluation);
    let registry = hand.open();
    let alias = registry.alias("support").unwrap();
    assert_eq!(alias.generation(), 3);
    assert!(alias.history()[2].comparison.as_ref().unwrap().scores[0].value.is_nan());
    assert_eq!(registry.why(&second).unwrap().links[0].evaluations.len(), 1);
    registry.compare(&["aaaaaaaaaaa1", "aaaaaaaaaaa2"]).unwrap();
    assert_eq!(registry.warnings(), Vec::<String>::new());
    assert_eq!(registry.rollback("support").unwrap().adapter, second);
}

#[test]
fn what_is_collected_is_decided_by_the_files() {
    let (hand, first, second) = Hand::served();
    let kept = hand.run("aaaaaaaaaaa3", None, None);
    hand.add("runs/aaaaaaaaaaa3/notes.jsonl", &json!({"kind": "tag", "tag": "keep"}));
    let child = hand.run("aaaaaaaaaaa4", None, None);
    let lost = hand.adapter("lost", None, None);
    hand.open().runs().unwrap();
    // Somebody writes to the index, or a file was changed and is as long as before.
    let index = Connection::open(hand.path("index.sqlite")).unwrap();
    for sql in ["DELETE FROM promotions", "DELETE FROM tags", "DELETE FROM origins"] {
        index.execute(sql, []).unwrap();
    }
    drop(index);
    let file = hand.path("aliases/support.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(&first, &child)).unwrap();
    let done = hand.open().gc(&DELETE).unwrap();
    let removed: Vec<&str> = done.items.iter().map(|item| item.adapter.as_str()).collect();
    let mut expected = [first.as_str(), &lost];
    expected.sort_unstable();
    assert_eq!(removed, expected, "{done}");
    assert!(hand.is_there(&second) && hand.is_there(&kept) && hand.is_there(&child));
    assert!(!hand.is_there(&lost));
}

#[test]
fn nothing_is_collected_while_a_parent_may_be_lost() {
    let hand = Hand::new();
    let parent = hand.run("aaaaaaaaaaa1", None, None);
    let child = hand.run("aaaaaaaaaaa2", Some(&parent), None);
    hand.generation("support", 1, &child);
    let file = hand.path(&format!("adapters/{child}.jsonl"));
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, whole.replacen("saved", "sa\u{0}ved", 1)).unwrap();
    let error = hand.open().gc(&DELETE).unwrap_err().to_string();
    assert!(error.contains("may name a parent") && hand.is_there(&parent), "{error}");
    fs::write(&file, whole).unwrap();
    assert!(hand.open().gc(&DELETE).unwrap().items.is_empty());
    // An alias that cannot be opened at all, and a run.
    for path in ["aliases/other.jsonl", "runs/aaaaaaaaaaa3/log.jsonl"] {
        fs::create_dir_all(hand.path(path)).unwrap();
        assert!(matches!(hand.open().gc(&DELETE), Err(Error::NotCollected { .. })), "{path}");
        fs::remove_dir_all(hand.path(path)).unwrap();
    }
    // A copy that somebody has made of an alias names adapters, too.
    let other = hand.adapter("other", None, None);
    hand.generation("support (1)", 1, &other);
    assert!(hand.open().gc(&DELETE).unwrap().items.is_empty());
    fs::remove_file(hand.path("aliases/support (1).jsonl")).unwrap();
    assert_eq!(hand.open().gc(&DELETE).unwrap().items.len(), 1);
}

#[test]
fn all_adapters_of_a_kept_run_stay() {
    let hand = Hand::new();
    // Stopped, saved, gone on and saved again; of the other the line with the adapter is lost.
    let (first, second) = hand.twice("aaaaaaaaaaa1", None);
    hand.begin("aaaaaaaaaaa2", "lost", None, None);
    let third = hand.adapter("third", Some("aaaaaaaaaaa2"), None);
    let other = hand.run("aaaaaaaaaaa3", None, None);
    for run in ["aaaaaaaaaaa1", "aaaaaaaaaaa2"] {
        hand.open().tag(run, "keep").unwrap();
    }
    // A line that cannot be read may be the tag.
    let fourth = hand.run("aaaaaaaaaaa4", None, None);
    fs::write(hand.path("runs/aaaaaaaaaaa4/notes.jsonl"), "{\"kind\":\"tag\",\"ta").unwrap();
    hand.open().gc(&DELETE).unwrap();
    for adapter in [first, second, third, fourth] {
        assert!(hand.is_there(&adapter), "{adapter}");
    }
    assert!(!hand.is_there(&other));
}

#[test]
fn an_age_is_a_number_and_the_clock_may_have_been_wrong() {
    let hand = Hand::new();
    let adapter = hand.run("aaaaaaaaaaa1", None, None);
    for min_age_secs in [f64::NAN, -1.0, f64::NEG_INFINITY] {
        let error = hand.open().gc(&GarbageArgs { min_age_secs, ..DELETE }).unwrap_err();
        assert!(error.to_string().contains("min_age_secs"), "{error}");
    }
    // Saved in 1970, by its clock, and just now.
    fs::write(hand.path(&format!("adapters/{adapter}/x")), "").unwrap();
    fs::remove_file(hand.path(&format!("adapters/{adapter}/x"))).unwrap();
    assert!(hand.open().gc(&DELETE).unwrap().items.is_empty());
    assert!(hand.is_there(&adapter));
}

#[test]
fn hidden_files_beside_an_adapter_stay() {
    let hand = Hand::new();
    let adapter = hand.adapter("one", None, None);
    let mine = hand.path(&format!("adapters/{adapter}/.notes"));
    fs::write(&mine, "mine").unwrap();
    let args = GarbageArgs { min_age_secs: 0.0, ..DELETE };
    let done = hand.open().gc(&args).unwrap();
    assert!(done.items[0].left.as_ref().unwrap().contains(".notes"), "{done}");
    assert!(mine.exists());
}

#[test]
fn the_database_of_another_program_is_put_aside() {
    let database = |path: &Path| {
        let _ = fs::remove_file(path);
        let connection = Connection::open(path).unwrap();
        connection.execute_batch("CREATE TABLE notes (id, text)").unwrap();
        connection.execute("INSERT INTO notes VALUES (1, 'my only note')", []).unwrap();
        drop(connection);
        fs::read(path).unwrap()
    };
    for what in ["a database", "a text", "a link"] {
        let hand = Hand::new();
        hand.run("aaaaaaaaaaa1", None, None);
        let (index, outside) = (hand.path("index.sqlite"), hand.dir.path().join("outside"));
        let mine = match what {
            "a database" => database(&index),
            "a text" => b"a text of somebody who has called it so".repeat(20),
            _ => database(&outside),
        };
        match what {
            "a text" => fs::write(&index, &mine).unwrap(),
            "a link" => symlink(&outside, &index).unwrap(),
            _ => {}
        }
        let registry = hand.open();
        assert_eq!(registry.runs().unwrap().height(), 1, "{what}");
        let warnings = registry.warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("index.sqlite.aside-"), "{warnings:?}");
        let aside = names(&hand.root).into_iter().find(|name| name.contains(".aside-")).unwrap();
        assert_eq!(fs::read(hand.path(&aside)).unwrap(), mine, "{what}");
        if what == "a link" {
            assert_eq!(fs::read(outside).unwrap(), mine);
        }
        // And from then on it is as always.
        let registry = hand.open();
        assert_eq!(registry.runs().unwrap().height(), 1);
        assert_eq!(registry.warnings(), Vec::<String>::new());
    }
}

#[test]
fn an_index_of_the_version_before_is_made_again() {
    let hand = Hand::new();
    hand.run("aaaaaaaaaaa1", None, None);
    hand.open().runs().unwrap();
    let index = Connection::open(hand.path("index.sqlite")).unwrap();
    index.execute_batch("PRAGMA application_id = 0; PRAGMA user_version = 1").unwrap();
    index.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); DELETE FROM runs").unwrap();
    index.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(index);
    let registry = hand.open();
    assert_eq!(registry.runs().unwrap().height(), 1);
    assert_eq!(registry.warnings(), Vec::<String>::new());
    assert!(names(&hand.root).iter().all(|name| !name.contains(".aside-")));
}

#[test]
fn a_question_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let registry = Registry::open(dir.path()).unwrap();
    assert!(!registry.is_there());
    assert_eq!(registry.runs().unwrap().height(), 0);
    assert!(registry.aliases().unwrap().is_empty() && registry.verify().unwrap().is_empty());
    registry.gc(&GarbageArgs::default()).unwrap();
    assert!(registry.why("x").is_err());
    assert_eq!(names(dir.path()), ["notes.txt"]);
    // What is copied there later is seen.
    let hand = Hand::new();
    hand.run("aaaaaaaaaaa1", None, None);
    copy(&hand.path("runs"), dir.path());
    assert_eq!(registry.runs().unwrap().height(), 1);
    assert!(dir.path().join("index.sqlite").exists());
}

#[test]
fn a_linked_file_is_not_written_to() {
    let (hand, ..) = Hand::served();
    let (outside, file) = (hand.dir.path().join("outside"), hand.path("aliases/support.jsonl"));
    fs::rename(&file, &outside).unwrap();
    symlink(&outside, &file).unwrap();
    let before = fs::read(&outside).unwrap();
    assert!(hand.open().rollback("support").is_err());
    assert_eq!(fs::read(&outside).unwrap(), before);
}

fn ids(touched: &Touched) -> Vec<&str> {
    let mut ids: Vec<&str> = touched.adapters.iter().map(|of| of.adapter.as_str()).collect();
    ids.sort_unstable();
    ids
}

fn sorted<'a>(ids: &[&'a String]) -> Vec<&'a str> {
    let mut ids: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn all_adapters_of_a_run_and_their_children_saw_its_rows() {
    let hand = Hand::new();
    let (first, second) = hand.twice("aaaaaaaaaaa1", Some("one"));
    let child = hand.run("aaaaaaaaaaa2", Some(&first), Some("two"));
    let grandchild = hand.run("aaaaaaaaaaa3", Some(&child), Some("three"));
    let touched = hand.saw("one");
    assert_eq!(ids(&touched), sorted(&[&first, &second, &child, &grandchild]), "{touched}");
    assert!(touched.unknown.is_empty() && touched.unknown_adapters.is_empty(), "{touched}");
    let touched = hand.saw("three");
    assert_eq!(ids(&touched), [grandchild.as_str()], "{touched}");
    assert!(touched.unknown.is_empty() && touched.unknown_adapters.is_empty(), "{touched}");
}

#[test]
fn what_goes_on_from_the_unknown_is_not_known() {
    let hand = Hand::new();
    let by_hand = hand.adapter("by hand", None, None);
    let gone = hand.adapter("of a run that is not here", Some("bbbbbbbbbbbb"), None);
    let known = hand.run("aaaaaaaaaaa1", None, Some("one"));
    hand.run("aaaaaaaaaaa2", Some(&by_hand), Some("one"));
    let child = hand.run("aaaaaaaaaaa3", Some(&by_hand), Some("two"));
    hand.run("aaaaaaaaaaa4", Some(&child), Some("two"));
    hand.run("aaaaaaaaaaa5", Some(&"0".repeat(32)), Some("two"));
    hand.run("aaaaaaaaaaa6", Some(&known), Some("two"));
    hand.run("aaaaaaaaaaa7", None, None);
    let touched = hand.saw("three");
    assert!(touched.adapters.is_empty(), "{touched}");
    let unknown: Vec<&str> = touched.unknown.iter().map(|(id, _)| &id[11..]).collect();
    assert_eq!(unknown, ["2", "3", "4", "5", "7"], "{touched}");
    let adapters: Vec<&str> = touched.unknown_adapters.iter().map(String::as_str).collect();
    assert_eq!(adapters, sorted(&[&by_hand, &gone]), "{touched}");
    // Who saw it is not listed twice.
    let touched = hand.saw("one");
    assert!(touched.unknown.iter().all(|(id, _)| !id.ends_with(['1', '2', '6'])), "{touched}");
    // By hand what a run has trained is the run's.
    hand.adapter("aaaaaaaaaaa1", None, None);
    assert_eq!(ids(&hand.saw("one")).len(), 3);
    assert_eq!(hand.saw("three").unknown.len(), 5);
}

#[test]
fn rows_of_which_a_word_is_lost_are_not_known() {
    let lines = |hand: &Hand, line: Value| {
        hand.begin("aaaaaaaaaaa1", "x", None, Some("one"));
        hand.log("aaaaaaaaaaa1", &line);
        let adapter = hand.adapter("x", Some("aaaaaaaaaaa1"), None);
        hand.end("aaaaaaaaaaa1", Some(&adapter));
    };
    let resume = |train: Value, data: Value| json!({"kind": "resume", "at": 1.0, "done_steps": 1, "train": train, "data": data});
    let step = json!({"kind": "step", "step": 1, "loss": "broken"});
    for (what, line, known) in [
        ("a damaged step", step, true),
        ("a damaged line", json!({"kind": "resu"}), false),
        ("the same rows", resume(json!("t"), Value::Null), true),
        ("other rows", resume(json!("u"), Value::Null), false),
        ("of the version before", resume(Value::Null, Value::Null), false),
    ] {
        let hand = Hand::new();
        lines(&hand, line);
        let touched = hand.saw("two");
        assert!(touched.adapters.is_empty(), "{what}: {touched}");
        assert_eq!(touched.unknown.is_empty(), known, "{what}: {touched}");
        assert_eq!(hand.saw("one").adapters.len(), 1, "{what}");
    }
    // Other rows that are named.
    let hand = Hand::new();
    let other = hand.data("two");
    lines(&hand, resume(json!("u"), other));
    assert_eq!(hand.saw("two").adapters.len(), 1);
    let touched = hand.saw("three");
    assert!(touched.adapters.is_empty() && touched.unknown.is_empty(), "{touched}");
    let why = hand.open().why("x").unwrap();
    assert_eq!((why.links[0].later_data.len(), why.links[0].rows_unknown), (1, false));
    // A file of rows that was cut short, and one that is gone.
    let rows = hand.data("two")["rows"].as_str().unwrap().to_owned();
    let file = hand.path(&format!("rows/{rows}.txt"));
    fs::write(&file, "").unwrap();
    for _ in 0..2 {
        let touched = hand.saw("two");
        assert!(touched.adapters.is_empty() && touched.unknown.len() == 1, "{touched}");
        let _ = fs::remove_file(&file);
    }
}

#[test]
fn parts_whose_cleaning_was_not_recorded_are_not_known() {
    let hand = Hand::new();
    let mut data = hand.data("one");
    data["train"] = json!({"source": "a + b", "rows": 1, "fingerprint": "x"});
    hand.begin("aaaaaaaaaaa1", "x", None, None);
    let file = hand.path("runs/aaaaaaaaaaa1/log.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"data\":null", &format!("\"data\":{data}"))).unwrap();
    let adapter = hand.adapter("x", Some("aaaaaaaaaaa1"), None);
    hand.end("aaaaaaaaaaa1", Some(&adapter));
    assert_eq!(hand.saw("one").adapters.len(), 1);
    assert_eq!(hand.saw("two").unknown.len(), 1);
}

#[test]
fn every_damage_is_found() {
    let damage = |file: &dyn Fn(&Hand, &str) -> String, harm: &dyn Fn(&Path)| {
        let hand = Hand::new();
        hand.begin("aaaaaaaaaaa1", "x", None, Some("one"));
        let adapter = hand.adapter("x", Some("aaaaaaaaaaa1"), None);
        hand.end("aaaaaaaaaaa1", Some(&adapter));
        let log = fs::read(hand.path("runs/aaaaaaaaaaa1/log.jsonl")).unwrap();
        let hash: String = Sha256::digest(&log).iter().map(|byte| format!("{byte:02x}")).collect();
        let files = json!({"log.jsonl": {"bytes": log.len(), "sha256": hash}});
        hand.add("runs/aaaaaaaaaaa1/manifest.json", &json!({"files": files}));
        hand.generation("support", 1, &adapter);
        let evaluation = json!({
            "id": "e1", "fingerprint": "f", "model": "m", "active": "a", "settings": {}, "rows": 1,
            "planned_rows": 1, "at": 1.0, "scores": [],
        });
        hand.add("evaluations/e1.json", &evaluation);
        let registry = hand.open();
        registry.rebuild().unwrap();
        assert_eq!(registry.verify().unwrap(), []);
        let name = file(&hand, &adapter);
        harm(&hand.path(&name));
        let found = registry.verify().unwrap();
        assert!(!found.is_empty(), "{name}");
        name
    };
    let cut = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    let remove = |path: &Path| match path.is_dir() {
        true => fs::remove_dir_all(path).unwrap(),
        false => fs::remove_file(path).unwrap(),
    };
    let garbage = |path: &Path| {
        let mut text = fs::read_to_string(path).unwrap();
        text.push_str("garbage\n");
        fs::write(path, text).unwrap();
    };
    let rows = |hand: &Hand, _: &str| format!("rows/{}", names(&hand.path("rows"))[0]);
    let fixed = |name: &'static str| move |_: &Hand, _: &str| name.to_owned();
    damage(&rows, &cut);
    damage(&rows, &remove);
    damage(&fixed("runs/aaaaaaaaaaa1/log.jsonl"), &cut);
    damage(&fixed("runs/aaaaaaaaaaa1/manifest.json"), &cut);
    damage(&fixed("evaluations/e1.json"), &cut);
    damage(&fixed("aliases/support.jsonl"), &garbage);
    damage(&fixed("serving/support"), &remove);
    damage(&|_, id| format!("adapters/{id}.jsonl"), &garbage);
    damage(&|_, id| format!("adapters/{id}"), &remove);
    let file = "adapter_model.safetensors";
    damage(&|_, id| format!("adapters/{id}/{file}"), &cut);
    damage(&|_, id| format!("serving/.adapters/{id}/{file}"), &|path| {
        fs::remove_file(path).unwrap();
        fs::write(path, "other").unwrap();
    });
}

#[test]
fn what_cannot_be_switched_is_not_decided() {
    let (hand, first, second) = Hand::served();
    let link = hand.path("serving/support");
    fs::remove_file(&link).unwrap();
    fs::create_dir_all(link.join("mine")).unwrap();
    let error = hand.open().rollback("support").unwrap_err().to_string();
    assert!(error.contains("is no link"), "{error}");
    assert_eq!(hand.open().alias("support").unwrap().generation(), 2);
    fs::remove_dir_all(&link).unwrap();
    assert_eq!(hand.open().rollback("support").unwrap().adapter, first);
    assert_eq!(names(&hand.path("serving")), [".adapters", "support"]);
    // What somebody has changed among the provided files is put aside.
    let provided = hand.path(&format!("serving/.adapters/{second}"));
    fs::write(provided.join("mine.txt"), "mine").unwrap();
    hand.open().promote_forced("support", &second, "x").unwrap();
    let all = names(&hand.path("serving/.adapters"));
    let aside = all.iter().find(|name| name.ends_with(".changed")).unwrap();
    assert!(hand.path(&format!("serving/.adapters/{aside}/mine.txt")).exists());
    let long = "x".repeat(201);
    let error = hand.open().promote_forced(&long, &first, "x").unwrap_err();
    assert!(matches!(error, Error::Name { .. }), "{error}");
    hand.open().promote_forced(&long[..200], &first, "x").unwrap();
}

#[test]
fn one_odd_entry_costs_itself_alone() {
    let (hand, ..) = Hand::served();
    fs::create_dir_all(hand.path("runs/aaaaaaaaaaa9/log.jsonl")).unwrap();
    fs::create_dir_all(hand.path("evaluations/e.json")).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(hand.path("aliases/pipe.jsonl")).status();
    assert!(pipe.unwrap().success());
    fs::copy(hand.path("aliases/support.jsonl"), hand.path("aliases/support (1).jsonl")).unwrap();
    let registry = hand.open();
    assert_eq!(registry.runs().unwrap().height(), 2);
    assert_eq!(registry.warnings().len(), 3, "{:?}", registry.warnings());
    assert_eq!(registry.aliases().unwrap().len(), 1);
    assert!(registry.why("support").is_ok());
    assert!(registry.rollback("support").is_ok());
    assert!(!registry.verify().unwrap().is_empty());
}

#[test]
fn ids_times_and_counts_of_others_are_shown() {
    let hand = Hand::new();
    hand.run("abc", None, None);
    hand.run("ééééé", None, None);
    for (number, started) in [1e15, 1e300, -1e13].into_iter().enumerate() {
        let run = format!("aaaaaaaaaaa{number}");
        let begin = json!({
            "kind": "begin", "format": 1, "run": run, "name": run, "started": started, "record": {},
        });
        hand.log(&run, &begin);
        for _ in 0..2 {
            hand.log(&run, &json!({"kind": "missing", "lines": u64::MAX, "problem": "x"}));
        }
    }
    let registry = hand.open();
    assert!(registry.runs().unwrap().to_string().contains("abc"));
    registry.compare(&["run abc", "run ééééé", "aaaaaaaaaaa1"]).unwrap();
    registry.why("aaaaaaaaaaa0").unwrap().to_string();
}

#[test]
fn metrics_may_have_any_name() {
    let hand = Hand::new();
    for (run, loss) in [("aaaaaaaaaaa1", 0.5), ("aaaaaaaaaaa2", 0.25)] {
        hand.begin(run, "setting", None, None);
        let metrics = json!({"run": 0.3, "best loss": 7.0, "Δ loss": 1.0});
        let eval = json!({
            "kind": "eval", "step": 1, "epoch": 1.0, "loss": loss, "label_tokens": 3, "secs": 0.1,
            "metrics": metrics,
        });
        hand.log(run, &eval);
        hand.end(run, None);
    }
    let compared = hand.open().compare_with("aaaaaaaaaaa1", &["aaaaaaaaaaa2"]).unwrap();
    let metrics = compared.metrics();
    let number = |name: &str| metrics.column(name).unwrap().f64().unwrap().get(1).unwrap();
    assert_eq!(text(&metrics, "run", 0), "setting (aaaaaa)");
    assert_eq!((number("run (2)"), number("loss")), (0.3, 0.25));
    let mut both = [number("best loss"), number("best loss (2)")];
    both.sort_by(f64::total_cmp);
    assert_eq!(both, [0.25, 7.0]);
}

#[test]
fn a_name_that_looks_like_an_id_is_not_taken_for_another_run() {
    let hand = Hand::new();
    hand.begin("beef00000001", "x", None, None);
    let one = hand.adapter("one", Some("beef00000001"), None);
    hand.end("beef00000001", Some(&one));
    hand.begin("aaaaaaaaaaa2", "beef", None, None);
    hand.end("aaaaaaaaaaa2", None);
    hand.begin("aaaaaaaaaaa3", "beef00000001", None, None);
    // The beginning of an adapter's id as an alias, and as a run's name.
    hand.generation(&one[..6], 1, &hand.adapter("two", None, None));
    let registry = hand.open();
    assert!(matches!(registry.resolve_run("beef"), Err(Error::Ambiguous { .. })));
    assert_eq!(registry.resolve_run("beef0").unwrap(), "beef00000001");
    assert_eq!(registry.resolve_run("beef00000001").unwrap(), "beef00000001", "an id is an id");
    assert!(matches!(registry.resolve_adapter(&one[..6]), Err(Error::Ambiguous { .. })));
    assert_eq!(registry.resolve_adapter(&one[..7]).unwrap(), one);
    assert_eq!(registry.resolve_adapter(&one).unwrap(), one);
    hand.begin("aaaaaaaaaaa4", &one[..8], None, None);
    let three = hand.adapter("three", Some("aaaaaaaaaaa4"), None);
    hand.end("aaaaaaaaaaa4", Some(&three));
    assert!(matches!(registry.resolve_adapter(&one[..8]), Err(Error::Ambiguous { .. })));
}

#[test]
fn names_say_nothing_to_a_terminal() {
    let hand = Hand::new();
    let evil = "evil\naaaaaaaaaaa9  promoted\x1b[31m\x1b]0;pwn\x07\u{202e}ltr";
    hand.begin("aaaaaaaaaaa1", evil, None, Some("one"));
    let adapter = hand.adapter("one", Some("aaaaaaaaaaa1"), None);
    hand.end("aaaaaaaaaaa1", Some(&adapter));
    let registry = hand.open();
    registry.note("aaaaaaaaaaa1", evil).unwrap();
    registry.promote_forced("support", &adapter, evil).unwrap();
    for said in [
        registry.why("support").unwrap().to_string(),
        hand.saw("one").to_string(),
        registry.alias("support").unwrap().to_string(),
        registry.resolve_run("none").unwrap_err().to_string(),
    ] {
        assert!(said.contains("evil\\naaaa"), "{said}");
        assert!(!said.contains(['\x1b', '\x07', '\u{202e}']), "{said}");
    }
}
