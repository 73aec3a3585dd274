//! The Rust side of `cargo xtask bench data`, and the maker of its files.
//!
//! ```text
//! bench_data rows DATA ROWS OUT.jsonl      damaged pairs made of banking77 and gsm8k
//! bench_data documents DATA COUNT OUT.jsonl  documents with planted near-duplicates
//! bench_data clean FILE                    read, clean, drop duplicates, split
//! bench_data minhash FILE SHINGLES OUT.jsonl  read, drop near-duplicates by words or chars, write
//!                                             the rest
//! bench_data stream DATA BYTES FOLDER      profile, clean, dedup and split a file made on the fly
//!                                          and deleted afterwards
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use tunebook_data::{Cleaning, Dataset, Shingles, Split, Survivor};
use xxhash_rust::xxh3::xxh3_64_with_seed;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answer = match words.as_slice() {
        ["rows", data, rows, out] => make_rows(data, rows.parse()?, out)?,
        ["documents", data, count, out] => make_documents(data, count.parse()?, out)?,
        ["clean", file] => clean(file)?,
        ["minhash", file, shingles, out] => minhash(file, shingles, out)?,
        ["stream", data, bytes, folder] => stream(data, bytes.parse()?, folder)?,
        other => return Err(format!("unknown command {other:?}").into()),
    };
    println!("{answer}");
    Ok(())
}

/// Numbers that are the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 += 1;
        (xxh3_64_with_seed(&self.0.to_le_bytes(), 7) % n as u64) as usize
    }
}

/// The pairs of both sets.
fn real(data: &str) -> Result<Vec<(String, String)>, Box<dyn std::error::Error>> {
    let gsm8k = Dataset::read(Path::new(data).join("gsm8k/train.jsonl"))?;
    let banking =
        Dataset::read_keys(Path::new(data).join("banking77/train.csv"), "text", "category")?;
    let pairs = |set: &Dataset| {
        set.rows().into_iter().map(|row| (row.prompt, row.completion)).collect::<Vec<_>>()
    };
    Ok(pairs(&gsm8k).into_iter().chain(pairs(&banking)).collect())
}

/// One damaged pair: a real one under a template, with markup and odd spaces; one in five says what
/// an earlier one does.
fn damaged(pairs: &[(String, String)], row: usize) -> (String, String) {
    let row = if row % 5 == 4 { row / 2 } else { row };
    let mut random = Random(row as u64 * 16);
    let (prompt, completion) = &pairs[random.below(pairs.len())];
    let number = row % 100_000;
    let prompt = match random.below(4) {
        0 => format!("<p>{prompt}</p><br/>Ref. {number}"),
        1 => format!("  {prompt} \t (case {number})  "),
        2 => format!("{prompt} &amp; my number is {number}"),
        _ => format!("{prompt} Case {number}."),
    };
    let completion = match random.below(5) {
        0 => format!("<div><b>{completion}</b></div>"),
        1 => format!("{completion}&nbsp;&quot;done&quot;"),
        2 if number % 50 == 0 => "<br/>  ".to_owned(),
        _ => completion.clone(),
    };
    (prompt, completion)
}

fn make_rows(data: &str, rows: usize, out: &str) -> Result<Value, Box<dyn std::error::Error>> {
    let pairs = real(data)?;
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(out)?);
    for row in 0..rows {
        let (prompt, completion) = damaged(&pairs, row);
        serde_json::to_writer(&mut file, &json!({"prompt": prompt, "completion": completion}))?;
        file.write_all(b"\n")?;
    }
    file.flush()?;
    Ok(json!({"rows": rows, "bytes": std::fs::metadata(out)?.len()}))
}

/// Documents of about 120 words; every fourth is an earlier one with 0 to 40 % of its words
/// replaced.
fn make_documents(
    data: &str,
    count: usize,
    out: &str,
) -> Result<Value, Box<dyn std::error::Error>> {
    let pairs = real(data)?;
    let vocabulary: Vec<String> = pairs
        .iter()
        .flat_map(|(prompt, _)| prompt.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let mut random = Random(1);
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(out)?);
    let mut documents: Vec<Vec<String>> = Vec::with_capacity(count);
    for at in 0..count {
        let words: Vec<String> = if at % 4 == 3 {
            let mut copy = documents[random.below(at)].clone();
            let edits = copy.len() * random.below(41) / 100;
            for _ in 0..edits {
                let place = random.below(copy.len());
                copy[place].clone_from(&vocabulary[random.below(vocabulary.len())]);
            }
            copy
        } else {
            let mut words = Vec::new();
            while words.len() < 100 {
                let (prompt, completion) = &pairs[random.below(pairs.len())];
                words.extend(
                    prompt
                        .split_whitespace()
                        .chain(completion.split_whitespace())
                        .map(str::to_owned),
                );
            }
            words
        };
        serde_json::to_writer(&mut file, &json!({"text": words.join(" "), "id": at.to_string()}))?;
        file.write_all(b"\n")?;
        documents.push(words);
    }
    file.flush()?;
    Ok(json!({"documents": count}))
}

fn clean(file: &str) -> Result<Value, Box<dyn std::error::Error>> {
    let start = Instant::now();
    let raw = Dataset::read(file)?;
    let read = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let cleaning =
        Cleaning::default().strip_html().normalize_whitespace().drop_empty().drop_duplicates();
    let clean = raw.clean(&cleaning)?;
    let split = clean.split(&Split::holdout(0.12))?;
    let secs = start.elapsed().as_secs_f64();
    Ok(json!({
        "secs": secs, "read_secs": read, "rows": raw.len(), "kept": clean.len(), "train": split.train.len(),
        "validation": split.validation.len(), "peak_rss_mb": peak_rss_mb(),
    }))
}

/// Runs of 5 words, as datatrove's default, or of 5 characters, as this crate's default.
fn minhash(file: &str, shingles: &str, out: &str) -> Result<Value, Box<dyn std::error::Error>> {
    let shingles = match shingles {
        "words" => Shingles::Words(5),
        "chars" => Shingles::Chars(5),
        other => return Err(format!("expected words or chars, found {other}").into()),
    };
    let start = Instant::now();
    let raw = Dataset::read(file)?;
    let read_secs = start.elapsed().as_secs_f64();
    let clean =
        raw.clean(&Cleaning::default().drop_near_duplicates_by(shingles, 0.72, Survivor::First))?;
    clean.write_jsonl(out)?;
    let secs = start.elapsed().as_secs_f64();
    Ok(json!({
        "secs": secs, "read_secs": read_secs, "documents": raw.len(), "kept": clean.len(), "peak_rss_mb": peak_rss_mb(),
    }))
}

fn stream(data: &str, bytes: u64, folder: &str) -> Result<Value, Box<dyn std::error::Error>> {
    let folder = Path::new(folder);
    std::fs::create_dir_all(folder)?;
    let file = folder.join("large.jsonl");
    let done = streamed(data, bytes, folder, &file);
    std::fs::remove_dir_all(folder)?;
    done
}

fn streamed(
    data: &str,
    bytes: u64,
    folder: &Path,
    file: &Path,
) -> Result<Value, Box<dyn std::error::Error>> {
    let pairs = real(data)?;
    let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(file)?);
    let (mut written, mut row) = (0u64, 0usize);
    while written < bytes {
        let (prompt, completion) = damaged(&pairs, row);
        let line = json!({"prompt": prompt, "completion": completion}).to_string();
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
        written += line.len() as u64 + 1;
        row += 1;
    }
    out.flush()?;
    drop((out, pairs));
    let scan = Dataset::scan(file)?;
    let start = Instant::now();
    let profile = scan.profile()?;
    let profile_secs = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let cleaning =
        Cleaning::default().strip_html().normalize_whitespace().drop_empty().drop_duplicates();
    let done = scan.clean(&cleaning)?.split_into(&Split::holdout(0.12), folder.join("out"))?;
    let secs = start.elapsed().as_secs_f64();
    if profile.rows != row || done.report.rows_before != row {
        return Err(format!(
            "{row} rows were written, {} profiled, {} cleaned",
            profile.rows, done.report.rows_before
        )
        .into());
    }
    Ok(json!({
        "secs": secs, "profile_secs": profile_secs, "rows": row, "bytes": written, "kept": done.train_rows + done.validation_rows,
        "train": done.train_rows, "validation": done.validation_rows, "peak_rss_mb": peak_rss_mb(),
    }))
}

/// This process's own peak (`VmHWM`).
fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN)
        / 1000.0
}
