//! Ten thousand runs of a thousand steps.

use std::fs;
use std::time::Instant;

use tunebook_runs::Registry;

use crate::common::*;

/// Seconds of the quickest of three.
fn secs(mut work: impl FnMut()) -> f64 {
    let mut once = || {
        let begun = Instant::now();
        work();
        begun.elapsed().as_secs_f64()
    };
    (0..3).map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// Copies of a run under other ids, names and learning rates, each with `steps` steps, and their
/// adapters' records.
fn fill(registry: &Registry, runs: usize, steps: usize) {
    let (id, adapter, _) = run(registry, "template");
    let root = registry.root();
    let log = fs::read_to_string(root.join("runs").join(&id).join("log.jsonl")).unwrap();
    let kept = fs::read_to_string(root.join("adapters").join(format!("{adapter}.jsonl"))).unwrap();
    let find = |kind: &str| {
        let start = format!("{{\"kind\":\"{kind}\"");
        log.lines().find(|line| line.starts_with(&start)).unwrap().to_owned()
    };
    let (begin, step, eval, end) = (find("begin"), find("step"), find("eval"), find("end"));
    let mut body = String::new();
    for number in 1..=steps {
        body.push_str(&step.replacen("\"step\":1", &format!("\"step\":{number}"), 1));
        body.push('\n');
        if number % 100 == 0 {
            body.push_str(&eval);
            body.push('\n');
        }
    }
    for number in 0..runs {
        let (new, saved) = (format!("{number:012x}"), format!("{number:032x}"));
        let begin = begin
            .replace(&id, &new)
            .replace("\"template\"", &format!("\"run {number}\""))
            .replace("\"learning_rate\":0.02", &format!("\"learning_rate\":0.0{}", number + 1));
        let folder = root.join("runs").join(&new);
        fs::create_dir(&folder).unwrap();
        let adapter_line = format!("{{\"kind\":\"adapter\",\"adapter\":\"{saved}\"}}");
        let text = format!("{begin}\n{body}{adapter_line}\n{end}\n");
        fs::write(folder.join("log.jsonl"), text).unwrap();
        let record = root.join("adapters").join(format!("{saved}.jsonl"));
        fs::write(record, kept.replace(&id, &new)).unwrap();
    }
}

fn measure(runs: usize, steps: usize) -> (f64, f64) {
    let (_dir, registry) = registry();
    fill(&registry, runs, steps);
    let begun = Instant::now();
    registry.rebuild().unwrap();
    let rebuilt = begun.elapsed().as_secs_f64();
    let table = secs(|| {
        let registry = Registry::open(registry.root()).unwrap();
        assert_eq!(registry.runs().unwrap().height(), runs + 1);
    });
    let names: Vec<String> = (0..50).map(|number| format!("run {}", number * runs / 50)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let compared = secs(|| {
        let compared = registry.compare(&names).unwrap();
        assert_eq!((compared.settings().height(), compared.metrics().height()), (1, 50));
    });
    let bytes = fs::metadata(registry.root().join("index.sqlite")).unwrap().len();
    println!(
        "{runs} runs of {steps} steps: runs() {table:.3} s, comparison of 50 {compared:.3} s, rebuild \
         {rebuilt:.1} s, index {:.1} MB",
        bytes as f64 / 1e6
    );
    (table, compared)
}

#[test]
fn a_table_of_hundreds_of_runs_is_quick() {
    let (table, compared) = measure(300, 50);
    assert!(table < 0.3 && compared < 1.0, "{table} s, {compared} s");
}

#[test]
#[ignore = "2 GB of files"]
fn a_table_of_ten_thousand_runs_takes_less_than_three_tenths_of_a_second() {
    let (table, compared) = measure(10_000, 1000);
    assert!(table < 0.3, "runs() took {table} s");
    assert!(compared < 1.0, "a comparison of 50 took {compared} s");
}
