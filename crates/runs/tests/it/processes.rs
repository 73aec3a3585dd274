//! Several processes write at once, and one is killed in the middle of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tunebook_runs::Registry;
use tunebook_tune::{Adapters as _, Callback as _, Lora};

use crate::common::*;

const FOLDER: &str = "TUNEBOOK_TEST_REGISTRY";
const SECS: &str = "TUNEBOOK_TEST_SECS";

fn start(folder: &Path, secs: f64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::writer", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .env(SECS, secs.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The other process: runs without end, and after every line that was written a word of it.
#[test]
#[ignore = "a process that another test starts"]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let secs: f64 = std::env::var(SECS).unwrap().parse().unwrap();
    let registry = Registry::open(folder).unwrap();
    let model = model_with("support");
    let template = template(&model);
    let mut ended = template.clone();
    ended.steps = (0..40).map(|at| template.steps[at % template.steps.len()].clone()).collect();
    model.add_adapter("other", Lora::default()).unwrap();
    let other = registry.add_adapter(&model, "other").unwrap();
    model.set_adapter("support").unwrap();
    let begun = Instant::now();
    let mut number = 0;
    while begun.elapsed().as_secs_f64() < secs {
        let mut record = registry.record(&format!("run {number}")).with_data(&split());
        record.on_begin(&template, &model).unwrap();
        let id = record.id();
        println!("begin {id}");
        for at in 0..40 {
            let mut step = template.steps[at % template.steps.len()].clone();
            step.step = at + 1;
            record.on_step(&step).unwrap();
            println!("step {id} {}", at + 1);
        }
        record.on_eval(&template.evals[0]).unwrap();
        record.on_end(&ended).unwrap();
        println!("end {id}");
        registry.note(&id, "a note").unwrap();
        println!("note {id}");
        let adapter = [record.adapter().unwrap(), other.clone()][number % 2].clone();
        // Somebody else may be quicker, or it stands already.
        let promoted = registry.promote_forced("support", &adapter, "drill").is_ok();
        if promoted || registry.rollback("support").is_ok() {
            println!("promoted {id}");
        }
        let runs = registry.runs().unwrap();
        assert!(runs.height() > number);
        assert_eq!(record.warnings(), Vec::<String>::new());
        assert_eq!(registry.warnings(), Vec::<String>::new());
        number += 1;
    }
    println!("done {number}");
}

/// What a process has said of its runs.
#[derive(Default)]
struct Told {
    steps: BTreeMap<String, i64>,
    ended: Vec<String>,
    notes: Vec<String>,
    promotions: usize,
    done: bool,
}

impl Told {
    fn hear(&mut self, line: &str) {
        // The harness of the tests writes before the first word.
        let words: Vec<&str> = line.split_whitespace().collect();
        let words = match words.iter().position(|word| *word == "begin") {
            Some(at) => &words[at..],
            None => &words[..],
        };
        match words {
            ["begin", id] => drop(self.steps.insert((*id).to_owned(), 0)),
            ["step", id, number] => {
                if let Ok(number) = number.parse() {
                    self.steps.insert((*id).to_owned(), number);
                }
            }
            ["end", id] => self.ended.push((*id).to_owned()),
            ["note", id] => self.notes.push((*id).to_owned()),
            ["promoted", _] => self.promotions += 1,
            ["done", _] => self.done = true,
            _ => {}
        }
    }
}

/// Holds the registry against what was said.
fn check(folder: &Path, told: &[Told]) {
    let registry = Registry::open(folder).unwrap();
    let runs = registry.runs().unwrap();
    let ids = runs.column("id").unwrap().str().unwrap();
    let column = |name: &str, row: usize| {
        runs.column(name).unwrap().i64().unwrap().get(row).unwrap_or_default()
    };
    let rows: BTreeMap<&str, usize> =
        ids.iter().enumerate().filter_map(|(row, id)| Some((id?, row))).collect();
    for told in told {
        for (id, steps) in &told.steps {
            let row = rows[id.as_str()];
            assert!(
                column("steps", row) >= *steps,
                "{id}: {} of {steps} steps",
                column("steps", row)
            );
        }
        for id in &told.ended {
            let row = rows[id.as_str()];
            assert_eq!(text(&runs, "state", row), "finished");
            assert_eq!((column("damaged", row), column("missing", row)), (0, 0));
        }
        for id in &told.notes {
            assert_eq!(column("notes", rows[id.as_str()]), 1);
        }
    }
    for row in 0..runs.height() {
        assert!(column("damaged", row) <= 1, "more than the line that was torn");
    }
    let before = registry.dump().unwrap();
    registry.rebuild().unwrap();
    assert_eq!(registry.dump().unwrap(), before);
}

fn three_write(secs: f64) {
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<Child> = (0..3).map(|_| start(dir.path(), secs)).collect();
    let told: Vec<Told> = std::thread::scope(|scope| {
        let readers = children.into_iter().map(|child| {
            scope.spawn(move || {
                let done = child.wait_with_output().unwrap();
                let error = String::from_utf8_lossy(&done.stderr);
                let mut told = Told::default();
                String::from_utf8_lossy(&done.stdout).lines().for_each(|line| told.hear(line));
                assert!(done.status.success() && told.done, "{error}");
                told
            })
        });
        let readers: Vec<_> = readers.collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    check(dir.path(), &told);
    let registry = Registry::open(dir.path()).unwrap();
    let promoted: usize = told.iter().map(|told| told.promotions).sum();
    assert_eq!(registry.alias("support").unwrap().history().len(), promoted);
    let runs = registry.runs().unwrap().height();
    assert_eq!(runs, told.iter().map(|told| told.steps.len()).sum::<usize>());
    assert_eq!(registry.verify().unwrap(), []);
    let lines: i64 = told.iter().flat_map(|told| told.steps.values()).sum();
    println!("{runs} runs, {lines} steps, {promoted} promotions in {secs} s by 3 processes");
}

#[test]
fn three_processes_write_and_nothing_is_lost() {
    three_write(3.0);
}

#[test]
#[ignore = "a minute"]
fn three_processes_write_for_a_minute_and_nothing_is_lost() {
    three_write(60.0);
}

/// Kills a writer so often, at other moments each time; all write into one registry.
fn killed(times: u32) {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    let mut torn = 0;
    for round in 0..times {
        let mut child = start(dir.path(), 600.0);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut told = Told::default();
        // It has begun; from here on any moment will do.
        for line in lines.by_ref().map_while(Result::ok) {
            told.hear(&line);
            if !told.steps.is_empty() {
                break;
            }
        }
        assert!(!told.steps.is_empty(), "round {round}: the writer has ended");
        std::thread::sleep(Duration::from_micros(u64::from(round * 7919 % 120) * 1000 + 137));
        child.kill().unwrap();
        lines.map_while(Result::ok).for_each(|line| told.hear(&line));
        child.wait().unwrap();
        all.push(told);
        let runs = Registry::open(dir.path()).unwrap().runs().unwrap();
        torn = runs.column("damaged").unwrap().i64().unwrap().iter().flatten().sum();
        if round % 10 == 0 || round + 1 == times {
            check(dir.path(), &all);
        }
    }
    let registry = Registry::open(dir.path()).unwrap();
    let runs = registry.runs().unwrap();
    let states = runs.column("state").unwrap().str().unwrap();
    let unfinished = states.iter().flatten().filter(|state| *state == "unfinished").count();
    assert!(unfinished > 0, "a killed run is seen");
    assert!(states.iter().flatten().all(|state| state != "running"));
    println!(
        "killed {times} times: {} runs, {unfinished} unfinished, {torn} torn lines",
        runs.height()
    );
}

#[test]
fn a_killed_writer_loses_nothing_that_it_has_written() {
    killed(5);
}

#[test]
#[ignore = "fifty processes"]
fn fifty_killed_writers_lose_nothing_that_they_have_written() {
    killed(50);
}
