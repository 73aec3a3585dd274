//! The result of a run: `result.json`, written after every finding, and a page of it for people.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::parts::Part;
use crate::error::{Error, Result};
use crate::stamp::write_atomically;

/// What a run has found so far. A disk that is full stops no part: the next finding tries again.
pub(super) struct Report {
    folder: PathBuf,
    value: Value,
    /// Why it was not written the last time.
    pub unwritten: Option<String>,
}

impl Report {
    /// Nothing yet. `about` is what the figures belong to: kit, machine, card, command.
    pub(super) fn new(folder: &Path, about: Value) -> Self {
        let mut value = about;
        value["date"] = json!(today());
        value["parts"] = json!([]);
        let mut report = Self { folder: folder.to_path_buf(), value, unwritten: None };
        report.write();
        report
    }

    /// Begins a part; what is found belongs to it from now on.
    pub(super) fn begin(&mut self, part: &Part) {
        if let Some(parts) = self.value["parts"].as_array_mut() {
            parts.push(json!({
                "part": part.name, "title": part.title, "status": "not ended", "findings": [],
            }));
        }
        self.write();
    }

    /// Adds a finding.
    pub(super) fn add(&mut self, mut finding: Value) {
        clean(&mut finding);
        if let Some(findings) = self.last().and_then(|part| part["findings"].as_array_mut()) {
            findings.push(finding);
        }
        self.write();
    }

    /// Ends the part: what became of it, and how long it took. Without a word of the part's own its
    /// findings decide.
    pub(super) fn end(&mut self, status: Option<String>, secs: f64) -> String {
        let mut said = String::new();
        if let Some(part) = self.last() {
            said = plain(&status.unwrap_or_else(|| judged(&part["findings"])));
            part["status"] = json!(said);
            part["secs"] = json!(secs);
        }
        self.write();
        said
    }

    /// Whether every part passed.
    pub(super) fn passed(&self) -> bool {
        parts(&self.value)
            .iter()
            .all(|part| part["status"].as_str().is_some_and(|status| status.starts_with("passed")))
    }

    fn last(&mut self) -> Option<&mut Value> {
        self.value["parts"].as_array_mut()?.last_mut()
    }

    fn write(&mut self) {
        let write = || -> Result<()> {
            let text = serde_json::to_string_pretty(&self.value)
                .map_err(|error| Error::Other(format!("the result cannot be written: {error}")))?;
            write_atomically(&self.folder.join("result.json"), text.as_bytes())?;
            write_atomically(&self.folder.join("summary.txt"), summary(&self.value).as_bytes())
        };
        self.unwritten = write().err().map(|error| error.to_string());
    }
}

/// Text without what a terminal or a table of Markdown takes for its own.
pub(super) fn plain(text: &str) -> String {
    let plain = |c: char| match c {
        c if c.is_control() => ' ',
        '|' => '/',
        '<' | '`' => '\'',
        c => c,
    };
    text.chars().map(plain).collect()
}

/// [`plain`] of every text in a value.
pub(super) fn clean(value: &mut Value) {
    match value {
        Value::String(text) => *text = plain(text),
        Value::Array(list) => list.iter_mut().for_each(clean),
        Value::Object(all) => all.values_mut().for_each(clean),
        _ => {}
    }
}

/// The parts of a result.
pub(super) fn parts(result: &Value) -> Vec<Value> {
    result["parts"].as_array().cloned().unwrap_or_default()
}

/// The findings of a part.
pub(super) fn findings(part: &Value) -> Vec<Value> {
    part["findings"].as_array().cloned().unwrap_or_default()
}

/// What the findings say of a part: one has to be proven and none may fail.
pub(super) fn judged(findings: &Value) -> String {
    let list = findings.as_array().map(Vec::as_slice).unwrap_or_default();
    let with = |passed: Value| list.iter().filter(|finding| finding["passed"] == passed).count();
    let undone = |finding: &&Value| finding["passed"].is_null() && finding["reason"].is_string();
    match (with(json!(false)), with(json!(true)), list.iter().filter(undone).count()) {
        (0, 0, _) => "failed: nothing was proven".to_owned(),
        (0, _, 0) => "passed".to_owned(),
        (0, _, undone) => format!("passed, but for {undone} not done"),
        (failed, ..) => format!("failed: {failed} of {}", list.len()),
    }
}

/// One page.
pub(super) fn summary(result: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "unknown".to_owned(),
        other => other.to_string(),
    };
    let mut page = String::new();
    let _ = writeln!(page, "card      {}", text(&result["card"]));
    let _ = writeln!(page, "date      {}", text(&result["date"]));
    let _ = writeln!(page, "kit       {}", text(&result["kit"]["commit"]));
    let _ = writeln!(page, "command   {}", text(&result["command"]));
    for part in parts(result) {
        let secs = part["secs"].as_f64().unwrap_or_default();
        let _ = write!(
            page,
            "\n{}  {}\n   {}, {secs:.0} s\n",
            text(&part["part"]),
            text(&part["title"]),
            text(&part["status"])
        );
        for finding in findings(&part) {
            if let Some(line) = line(&finding) {
                let _ = writeln!(page, "   {line}");
            }
        }
    }
    page
}

/// A finding worth a line on the page: one that failed, or one with a figure.
fn line(finding: &Value) -> Option<String> {
    let name = finding["name"].as_str().unwrap_or_default();
    let number = |key: &str| finding[key].as_f64();
    if finding["passed"] == false {
        let why = finding["reason"].as_str().map_or_else(
            || {
                let mut figures = finding.clone();
                if let Some(all) = figures.as_object_mut() {
                    all.retain(|key, _| !["name", "passed", "losses"].contains(&key.as_str()));
                }
                figures.to_string()
            },
            str::to_owned,
        );
        return Some(format!("FAILED {name}: {}", why.chars().take(300).collect::<String>()));
    }
    if let Some(reason) = finding["reason"].as_str() {
        return Some(format!("{name}: {reason}"));
    }
    if let Some(ours) = number("ours") {
        let peer = number("peer").map_or_else(String::new, |peer| format!(", peer {peer:.2}"));
        let ratio = number("ratio").map_or_else(String::new, |ratio| format!(", ratio {ratio:.2}"));
        return Some(format!("{name}: {ours:.2}{peer}{ratio}"));
    }
    if let (Some(composed), Some(fraction)) = (number("composed_ms"), number("fraction_of_ceiling"))
    {
        let fused = number("fused_ms").map_or_else(|| "-".to_owned(), |ms| format!("{ms:.3}"));
        return Some(format!(
            "{name}: fused {fused} ms, composed {composed:.3} ms, {:.0} % of {}",
            100.0 * fraction,
            finding["ceiling"].as_str().unwrap_or_default()
        ));
    }
    if let Some(bytes) = number("bytes_per_s") {
        let operations = number("bf16_operations_per_s").unwrap_or_default();
        return Some(format!(
            "{name}: {:.2} TB/s, {:.0} TFLOP/s in bf16",
            bytes / 1e12,
            operations / 1e12
        ));
    }
    number("tokens_per_s").map(|speed| format!("{name}: {speed:.0} tokens/s"))
}

/// The day in UTC, as 2026-11-30.
fn today() -> String {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    date(secs / 86_400)
}

/// The date of a day since 1970-01-01, by Howard Hinnant's `civil_from_days`.
fn date(days: u64) -> String {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::super::parts::PARTS;
    use super::*;

    #[test]
    fn days_are_dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(19_782), "2024-02-29");
        assert_eq!(date(20_787), "2026-11-30");
    }

    #[test]
    fn a_part_is_judged_by_its_findings_and_every_finding_is_on_disk_at_once() {
        let folder = std::env::temp_dir().join(format!("xtask-gpu-kit-{}", std::process::id()));
        let mut report = Report::new(&folder, json!({"card": "a card"}));
        let on_disk = || -> Value {
            serde_json::from_slice(&std::fs::read(folder.join("result.json")).unwrap()).unwrap()
        };
        report.begin(&PARTS[0]);
        report.add(json!({"name": "x", "passed": true}));
        assert_eq!(on_disk()["parts"][0]["status"], "not ended");
        assert_eq!(on_disk()["parts"][0]["findings"][0]["name"], "x");
        assert_eq!(report.end(None, 1.0), "passed");
        assert!(report.passed());
        report.begin(&PARTS[1]);
        report.add(json!({"name": "y", "passed": false, "reason": "it is wrong"}));
        report.add(json!({"name": "speed", "passed": null, "tokens_per_s": 12.0}));
        assert_eq!(report.end(None, 1.0), "failed: 1 of 2");
        assert!(!report.passed());
        report.begin(&PARTS[2]);
        assert_eq!(report.end(None, 1.0), "failed: nothing was proven");
        let page = std::fs::read_to_string(folder.join("summary.txt")).unwrap();
        assert!(page.contains("FAILED y: it is wrong") && page.contains("speed: 12 tokens/s"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
    #[test]
    fn a_part_in_which_nothing_is_proven_has_not_passed() {
        let of = |passed: Value| json!({"name": "x", "passed": passed, "reason": "no PEFT"});
        assert_eq!(judged(&json!([of(Value::Null)])), "failed: nothing was proven");
        assert_eq!(
            judged(&json!([of(json!(true)), of(Value::Null)])),
            "passed, but for 1 not done"
        );
        assert_eq!(judged(&json!([of(json!(true)), of(json!(false))])), "failed: 1 of 2");
    }

    #[test]
    fn a_folder_that_cannot_be_written_stops_nothing() {
        let file = std::env::temp_dir().join(format!("xtask-no-folder-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        let mut report = Report::new(&file, json!({}));
        report.begin(&PARTS[0]);
        report.add(json!({"name": "x | \u{1b}[2J", "passed": true}));
        assert_eq!(report.end(None, 1.0), "passed");
        assert!(report.unwritten.is_some());
        assert_eq!(report.value["parts"][0]["findings"][0]["name"], "x /  [2J");
        std::fs::remove_file(&file).unwrap();
    }
}
