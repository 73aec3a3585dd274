//! The `judge` bench: how much better a model answers after training, on messages that it has not
//! seen.
//!
//! The data are the customer messages of `$TUNEBOOK_DATA/banking77/train.csv`, whose 77 intents are
//! the answers to choose from. `crates/evaluate/examples/bench_judge.rs` divides them by intent,
//! judges SmolLM2-135M on the held-out part, trains a LoRA on the others and judges it again.
//! `banking77-slice` takes 1,500 messages and minutes, `banking77-full` all of them and about an
//! hour. Accuracies have 95 % Wilson intervals.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::bench::rows::{row, write};
use crate::bench::side::number;
use crate::bench::{self, machine};
use crate::error::{Error, Result};
use crate::setup::Setup;

/// Names of the cases, and how the program calls their size.
const CASES: [(&str, &str); 2] = [("banking77-slice", "slice"), ("banking77-full", "full")];

/// Runs the cases, the slice alone when none is named; with `json`, writes the rows there, and the
/// machine and results next to them (`NAME.about.json`).
///
/// # Errors
/// An unknown case, no data, or a program that fails.
pub(crate) fn run(setup: &Setup, cases: &[String], json: Option<&Path>) -> Result<()> {
    let chosen = choose(cases)?;
    let Some(folder) = std::env::var_os("TUNEBOOK_DATA") else {
        return Err(Error::Other(
            "set TUNEBOOK_DATA to the folder that holds banking77/train.csv".to_owned(),
        ));
    };
    let data = Path::new(&folder).join("banking77/train.csv");
    bench::build(setup, "tunebook-evaluate", "bench_judge")?;
    let (mut rows, mut about) = (Vec::new(), Vec::new());
    for (name, size) in chosen {
        println!("{name}");
        let result = judge(setup, &data, size)?;
        for when in ["before", "after"] {
            let mut row = row(
                name,
                &format!("accuracy_{when}"),
                number(&result, &format!("accuracy_{when}"))?,
                None,
            );
            row["interval"] = result[format!("interval_{when}")].clone();
            println!(
                "  accuracy {when:6} {:.4}   95 % interval {}",
                row["ours"].as_f64().unwrap_or_default(),
                row["interval"]
            );
            rows.push(row);
        }
        println!(
            "  {} held-out rows: {}",
            result["rows"],
            result["verdict"].as_str().unwrap_or("-")
        );
        about.push(json!({"case": name, "result": result}));
        if let Some(path) = json {
            write(path, &Value::Array(rows.clone()))?;
            let about =
                json!({"machine": machine::machine(), "threads": bench::THREADS, "cases": about});
            write(&path.with_extension("about.json"), &about)?;
        }
    }
    Ok(())
}

fn choose(names: &[String]) -> Result<Vec<(&'static str, &'static str)>> {
    if names.is_empty() {
        return Ok(vec![CASES[0]]);
    }
    let find = |name: &String| {
        CASES.into_iter().find(|(case, _)| case == name).ok_or_else(|| {
            let known = CASES.map(|(case, _)| case).join(", ");
            Error::Usage(format!("there is no case `{name}`; there are: {known}"))
        })
    };
    names.iter().map(find).collect()
}

/// The last line of the program, which has the result; the lines before are shown as they come.
fn judge(setup: &Setup, data: &Path, size: &str) -> Result<Value> {
    let mut command = bench::program(setup, "bench_judge");
    command.arg(setup.base_model_file()).arg(data).arg(size).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(Error::io("start", Path::new("bench_judge")))?;
    let mut last = Value::Null;
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).lines() {
            let line = line.map_err(Error::io("read", Path::new("bench_judge")))?;
            let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
            if value.get("accuracy_after").is_none() {
                println!("  {value}");
            }
            last = value;
        }
    }
    let status = child.wait().map_err(Error::io("wait for", Path::new("bench_judge")))?;
    if !status.success() || last.get("accuracy_after").is_none() {
        return Err(Error::Other(format!("bench_judge ended early: {status}")));
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slice_is_judged_unless_cases_are_named() {
        assert_eq!(choose(&[]).ok(), Some(vec![CASES[0]]));
        assert_eq!(choose(&["banking77-full".to_owned()]).ok(), Some(vec![CASES[1]]));
        let error = choose(&["full".to_owned()]).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("`full`") && error.contains("banking77-slice"), "{error}");
    }
}
