//! The `data` bench: cleaning, exact and near-duplicates compared with Python's `datasets` and
//! `datatrove`, and the memory of a stream.
//!
//! The files are made of the real data that `TUNEBOOK_DATA` names (see
//! `crates/data/examples/bench_data.rs`). Both sides run one after the other on the same file and
//! with as many processes or threads as there are cores; each is a process of its own.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bench::peer;
use crate::bench::rows::{row, write};
use crate::bench::side::number;
use crate::error::{Error, Result};
use crate::process;
use crate::setup::Setup;

const CASES: [&str; 3] = ["clean-1m", "minhash-100k", "stream-large"];
const ROWS: usize = 1_000_000;
const DOCUMENTS: usize = 100_000;
/// The streamed file, if the disk has room for it and for its output.
const STREAM_BYTES: u64 = 5_000_000_000;
const SMALLER_STREAM_BYTES: u64 = 1_000_000_000;
const RUNS: usize = 3;

/// Runs the cases; with `json`, writes the rows there, and the machine, versions and every run
/// next to them (`NAME.about.json`).
///
/// # Errors
/// An unknown case, no data, or a side that fails or does not do the same work.
pub(crate) fn run(setup: &Setup, cases: &[String], json: Option<&Path>) -> Result<()> {
    if let Some(unknown) = cases.iter().find(|case| !CASES.contains(&case.as_str())) {
        return Err(Error::Usage(format!(
            "there is no case `{unknown}`; there are: {}",
            CASES.join(", ")
        )));
    }
    let Some(data) =
        std::env::var_os("TUNEBOOK_DATA").map(PathBuf::from).filter(|data| data.is_dir())
    else {
        return Err(Error::Other(
            "set TUNEBOOK_DATA to the folder that holds banking77/train.csv and gsm8k/train.jsonl"
                .to_owned(),
        ));
    };
    println!("building our side");
    let mut build = process::cargo(&setup.root);
    process::run(
        build.args(["build", "--quiet", "--package", "tunebook-data", "--example", "bench_data"]),
        "building the bench",
    )?;
    let bench = Bench { setup, data, folder: setup.target.join("tunebook/bench-data") };
    std::fs::create_dir_all(&bench.folder).map_err(Error::io("create", &bench.folder))?;
    let wanted = |case: &str| cases.is_empty() || cases.iter().any(|name| name == case);
    let (mut rows, mut about) = (Vec::new(), Vec::new());
    for case in CASES.into_iter().filter(|case| wanted(case)) {
        let (of_case, runs) = match case {
            "clean-1m" => bench.clean(case)?,
            "minhash-100k" => bench.minhash(case)?,
            _ => bench.stream(case)?,
        };
        for row in &of_case {
            let of = |key: &str| {
                row[key].as_f64().map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
            };
            println!(
                "  {case:14} {:18} ours {:>12}   peer {:>12}   ratio {:>7}",
                row["metric"].as_str().unwrap_or_default(),
                of("ours"),
                of("peer"),
                of("ratio")
            );
        }
        rows.extend(of_case);
        about.push(json!({"case": case, "runs": runs}));
    }
    if let Some(path) = json {
        write(path, &Value::Array(rows))?;
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        write(&path.with_extension("about.json"), &json!({"cores": cores, "cases": about}))?;
    }
    Ok(())
}

struct Bench<'s> {
    setup: &'s Setup,
    data: PathBuf,
    folder: PathBuf,
}

type Measured = (Vec<Value>, Value);

impl Bench<'_> {
    fn ours(&self, words: &[&str]) -> Result<Value> {
        let program = self.setup.target.join(&self.setup.triple).join("debug/examples/bench_data");
        let mut command = process::command(&program);
        command.args(words);
        answer(&process::capture(&mut command, "our side of the bench")?)
    }

    fn peer(&self, which: &str, file: &str) -> Result<Value> {
        let python = peer::python(self.setup)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        let mut command = process::command(&python);
        command.arg(self.setup.root.join("tests/peers/bench_data.py")).args([which, file, &cores]);
        command.arg(self.folder.join("peer"));
        answer(&process::capture(&mut command, "the peer's side of the bench")?)
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// Our side several times, the peer once in between. The median of our runs counts: the best
    /// one against a single run of the peer would be unfair.
    fn both(&self, which: &str, file: &str, more: &[&str]) -> Result<(Value, Value, Vec<Value>)> {
        let words: Vec<&str> = [which, file].into_iter().chain(more.iter().copied()).collect();
        let mut runs = vec![self.ours(&words)?];
        let peer = self.peer(which, file)?;
        for _ in 1..RUNS {
            runs.push(self.ours(&words)?);
        }
        Ok((median(&runs), peer, runs))
    }

    fn clean(&self, case: &str) -> Result<Measured> {
        let file = self.file("rows.jsonl");
        let data = self.data.to_string_lossy().into_owned();
        println!("{case}: making {ROWS} rows");
        self.ours(&["rows", &data, &ROWS.to_string(), &file])?;
        let (ours, peer, runs) = self.both("clean", &file, &[])?;
        // The two clean alike, so they must keep alike.
        let (kept, theirs) = (number(&ours, "kept")?, number(&peer, "kept")?);
        if (kept - theirs).abs() > 0.005 * theirs {
            return Err(Error::Other(format!(
                "we keep {kept} rows, the peer {theirs}: this would compare two different things"
            )));
        }
        let speed = |side: &Value, secs: f64| -> Result<f64> { Ok(number(side, "rows")? / secs) };
        let with_reading =
            |side: &Value| -> Result<f64> { Ok(secs(side) + number(side, "read_secs")?) };
        let _ = std::fs::remove_file(&file);
        Ok((
            vec![
                row(
                    case,
                    "rows_per_s",
                    speed(&ours, secs(&ours))?,
                    Some(speed(&peer, secs(&peer))?),
                ),
                row(
                    case,
                    "rows_per_s_with_reading",
                    speed(&ours, with_reading(&ours)?)?,
                    Some(speed(&peer, with_reading(&peer)?)?),
                ),
                row(
                    case,
                    "peak_rss_mb",
                    number(&ours, "peak_rss_mb")?,
                    Some(number(&peer, "peak_rss_mb")?),
                ),
            ],
            json!({"ours": runs, "peer": peer}),
        ))
    }

    fn minhash(&self, case: &str) -> Result<Measured> {
        let file = self.file("documents.jsonl");
        let data = self.data.to_string_lossy().into_owned();
        println!("{case}: making {DOCUMENTS} documents");
        self.ours(&["documents", &data, &DOCUMENTS.to_string(), &file])?;
        // The same threshold and shingles of 5 words, as datatrove has them; each side reads the
        // file and writes what it keeps.
        let out = self.file("kept.jsonl");
        let (ours, peer, runs) = self.both("minhash", &file, &["words", &out])?;
        // The default of a notebook: shingles of 5 characters, four to five times as many.
        let by_chars = (0..RUNS)
            .map(|_| self.ours(&["minhash", &file, "chars", &out]))
            .collect::<Result<Vec<_>>>()?;
        let chars = median(&by_chars);
        let documents = DOCUMENTS as f64;
        for file in [&file, &out] {
            let _ = std::fs::remove_file(file);
        }
        Ok((
            vec![
                row(
                    case,
                    "documents_per_s",
                    documents / secs(&ours),
                    Some(documents / secs(&peer)),
                ),
                row(
                    case,
                    "documents_per_s_by_chars",
                    documents / secs(&chars),
                    Some(documents / secs(&peer)),
                ),
                row(case, "kept", number(&ours, "kept")?, Some(number(&peer, "kept")?)),
                row(
                    case,
                    "peak_rss_mb",
                    number(&ours, "peak_rss_mb")?,
                    Some(number(&peer, "peak_rss_mb")?),
                ),
            ],
            json!({"ours": runs, "ours_by_chars": by_chars, "peer": peer}),
        ))
    }

    fn stream(&self, case: &str) -> Result<Measured> {
        let data = self.data.to_string_lossy().into_owned();
        let folder = self.file("stream");
        // What is read and what is written from it.
        let bytes = if free_bytes(&self.folder) > 3 * STREAM_BYTES {
            STREAM_BYTES
        } else {
            SMALLER_STREAM_BYTES
        };
        println!("{case}: {:.0} GB, made on the fly and deleted afterwards", bytes as f64 / 1e9);
        let ours = self.ours(&["stream", &data, &bytes.to_string(), &folder])?;
        Ok((
            vec![
                row(case, "peak_rss_mb", number(&ours, "peak_rss_mb")?, None),
                row(case, "rows_per_s", number(&ours, "rows")? / secs(&ours), None),
                row(
                    case,
                    "profile_rows_per_s",
                    number(&ours, "rows")? / number(&ours, "profile_secs")?,
                    None,
                ),
            ],
            ours,
        ))
    }
}

/// The last line is the answer; progress bars stand before it.
fn answer(output: &str) -> Result<Value> {
    let line = output.lines().rfind(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(line)
        .map_err(|_| Error::Other(format!("the bench's process answered `{}`", output.trim())))
}

/// The run whose time is in the middle.
fn median(runs: &[Value]) -> Value {
    let mut sorted = runs.to_vec();
    sorted.sort_by(|a, b| secs(a).total_cmp(&secs(b)));
    sorted[sorted.len() / 2].clone()
}

fn secs(side: &Value) -> f64 {
    side["secs"].as_f64().unwrap_or(f64::NAN)
}

/// Free room of the disk, by `df`; none when it cannot be told.
fn free_bytes(folder: &Path) -> u64 {
    let mut command = process::command(Path::new("df"));
    command.args(["--output=avail", "-B1"]).arg(folder);
    let text = process::capture(&mut command, "df").unwrap_or_default();
    text.lines().last().and_then(|line| line.trim().parse().ok()).unwrap_or(0)
}
