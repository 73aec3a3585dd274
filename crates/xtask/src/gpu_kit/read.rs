//! `--read result.json`: the table for `docs/measurements.md`, and the kernels that passed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::report::{findings, parts};
use crate::error::{Error, Result};
use crate::stamp::write_atomically;

/// Where the proofs belong.
const TABLE: &str = "crates/ops/src/cuda/proven.rs";

/// Writes the table and says which kernels passed.
///
/// # Errors
/// A file that is no result, or the result of a run that no GPU took part in.
pub(super) fn read(root: &Path, file: &Path) -> Result<()> {
    let bytes = std::fs::read(file).map_err(Error::io("read", file))?;
    let result: Value = serde_json::from_slice(&bytes).map_err(|error| {
        Error::Other(format!("{}: expected the kit's result.json: {error}", file.display()))
    })?;
    let heading = heading(&result)
        .map_err(|why| Error::Other(format!("{}: {why}; nothing was written", file.display())))?;
    let docs = root.join("docs/measurements.md");
    let text = std::fs::read_to_string(&docs).map_err(Error::io("read", &docs))?;
    let with = placed(&text, &heading, &section(&result, &heading));
    write_atomically(&docs, with.as_bytes())?;
    println!("{}: section `{heading}`", docs.display());
    print!("{}", verdict(&result));
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The heading of the section of this run; a second run on the same card and day replaces it.
fn heading(result: &Value) -> std::result::Result<String, &'static str> {
    let (card, date) = (text(&result["card"]), text(&result["date"]));
    if result["tiny"] == true {
        return Err("a run in small on the CPU measures nothing");
    }
    if !result["parts"].is_array() || card.is_empty() || date.is_empty() {
        return Err("expected the kit's result.json, with `card`, `date` and `parts`");
    }
    if card.starts_with("no device") {
        return Err("the run found no device");
    }
    Ok(format!("### GPU kit, {card}, {date}"))
}

fn number(value: &Value, decimals: usize) -> String {
    value.as_f64().map_or_else(String::new, |number| format!("{number:.decimals$}"))
}

fn section(result: &Value, heading: &str) -> String {
    let mut page = format!("{heading}\n\n");
    let details = &result["details"];
    let _ = writeln!(
        page,
        "`{}` of the kit of commit {}; driver {}; peers: torch {}, transformers {}, peft {}.\n",
        text(&result["command"]),
        text(&result["kit"]["commit"]),
        text(&details["driver"]),
        text(&result["peers"]["torch"]),
        text(&result["peers"]["transformers"]),
        text(&result["peers"]["peft"]),
    );
    page.push_str("| part | what | result | seconds |\n|---|---|---|---|\n");
    for part in parts(result) {
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} |",
            text(&part["part"]),
            text(&part["title"]),
            text(&part["status"]).replace('|', "/"),
            number(&part["secs"], 0)
        );
    }
    let all: Vec<Value> = parts(result).iter().flat_map(findings).collect();
    let kernels: Vec<&Value> = all.iter().filter(|f| f["composed_ms"].is_number()).collect();
    if !kernels.is_empty() {
        page.push_str("\n| kernel, forward and backward | fused, ms | composed, ms | of the ceiling | difference |\n|---|---|---|---|---|\n");
        for finding in kernels {
            let share = finding["fraction_of_ceiling"].as_f64().map_or_else(String::new, |part| {
                format!("{:.0} % of {}", 100.0 * part, text(&finding["ceiling"]))
            });
            let _ = writeln!(
                page,
                "| {} | {} | {} | {share} | {} |",
                text(&finding["name"]),
                number(&finding["fused_ms"], 3),
                number(&finding["composed_ms"], 3),
                finding["difference"].as_f64().map_or("NaN".to_owned(), |d| format!("{d:.1e}")),
            );
        }
    }
    let rows: Vec<&Value> = all.iter().filter(|f| f["ours"].is_number()).collect();
    if !rows.is_empty() {
        page.push_str("\n| case and metric | ours | peer | ratio |\n|---|---|---|---|\n");
        for row in rows {
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} |",
                text(&row["name"]),
                number(&row["ours"], 2),
                number(&row["peer"], 2),
                number(&row["ratio"], 2)
            );
        }
    }
    let speeds: Vec<&Value> = all.iter().filter(|f| f["tokens_per_s"].is_number()).collect();
    if !speeds.is_empty() {
        page.push_str("\n| generation | tokens a second |\n|---|---|\n");
        for speed in speeds {
            let _ = writeln!(
                page,
                "| {} | {} |",
                text(&speed["name"]),
                number(&speed["tokens_per_s"], 0)
            );
        }
    }
    page
}

/// The text with the section in it: in place of one of the same heading, else at the end.
fn placed(document: &str, heading: &str, section: &str) -> String {
    let lines: Vec<&str> = document.lines().collect();
    let Some(start) = lines.iter().position(|line| *line == heading) else {
        return format!("{}\n\n{section}", document.trim_end());
    };
    let length = lines[start + 1..]
        .iter()
        .position(|line| line.starts_with("## ") || line.starts_with("### "))
        .unwrap_or(lines.len() - start - 1);
    let before = lines[..start].join("\n");
    let after = lines[start + 1 + length..].join("\n");
    let with = format!("{before}\n{section}");
    if after.is_empty() { with } else { format!("{with}\n{after}\n") }
}

/// What was found of each kernel in each type.
#[derive(Default)]
struct Found {
    checks: usize,
    failed: Vec<String>,
    /// How many times as fast as the composed form, at the size where it gains least.
    faster: Option<f64>,
}

fn kernels(result: &Value) -> BTreeMap<(String, String), Found> {
    let mut kernels: BTreeMap<_, Found> = BTreeMap::new();
    for finding in parts(result).iter().flat_map(findings) {
        let (kernel, dtype) = (text(&finding["kernel"]), text(&finding["dtype"]));
        if kernel.is_empty() {
            continue;
        }
        let found = kernels.entry((kernel.to_owned(), dtype.to_owned())).or_default();
        found.checks += 1;
        if finding["passed"] != true {
            found.failed.push(text(&finding["name"]).to_owned());
        }
        if let Some(faster) = finding["faster"].as_f64() {
            found.faster = Some(found.faster.map_or(faster, |least| least.min(faster)));
        }
    }
    kernels
}

/// Which kernels passed, with the lines that make them the default.
fn verdict(result: &Value) -> String {
    let (mut page, mut lines) = (String::new(), String::new());
    // A failure that has no kernel's name in it may be any kernel's: so says the status.
    let whole = parts(result).iter().any(|part| {
        part["part"] == "b"
            && (text(&part["status"]) == "passed"
                || text(&part["status"]).ends_with(&format!(" of {}", findings(part).len())))
    });
    for ((kernel, dtype), found) in kernels(result) {
        let passed = whole && found.failed.is_empty() && found.faster.is_some();
        let speed =
            found.faster.map_or_else(|| "not timed".to_owned(), |f| format!("{f:.2} x as fast"));
        let _ = match passed {
            true => writeln!(page, "passed  {kernel} in {dtype}: {} checks, {speed}", found.checks),
            false => writeln!(
                page,
                "not     {kernel} in {dtype}: {speed}; failed: {}",
                if found.failed.is_empty() { "the part did not end" } else { "" }.to_owned()
                    + &found.failed.join(", ")
            ),
        };
        if passed {
            let _ = writeln!(
                lines,
                "    Proof {{ kernel: Kernel::{kernel}, dtype: DType::{dtype}, card: {:?}, date: {:?}, command: {:?} }},",
                text(&result["card"]),
                text(&result["date"]),
                text(&result["command"])
            );
        }
    }
    match lines.is_empty() {
        true => page.push_str("no kernel passed: PROVEN stays as it is\n"),
        false => {
            let _ = write!(page, "for PROVEN in {TABLE}:\n{lines}");
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result(status: &str) -> Value {
        let kernel = |name: &str, dtype: &str, passed: bool, faster: Option<f64>| {
            json!({
                "name": format!("{name}, {dtype}"), "kernel": name, "dtype": dtype, "passed": passed,
                "composed_ms": 2.0, "fused_ms": 1.0, "faster": faster, "difference": 1e-3,
                "fraction_of_ceiling": 0.5, "ceiling": "bandwidth",
            })
        };
        json!({
            "card": "NVIDIA X", "date": "2026-12-01", "command": "./run.sh", "tiny": false,
            "parts": [{"part": "b", "title": "kernels", "status": status, "secs": 3.0, "findings": [
                kernel("Rope", "BF16", true, Some(2.0)),
                kernel("Rope", "BF16", true, Some(1.5)),
                kernel("Gated", "F32", true, Some(3.0)),
                kernel("Gated", "F32", false, Some(3.0)),
                kernel("LowRank", "F32", true, None),
            ]}],
        })
    }

    #[test]
    fn a_kernel_passed_when_all_its_checks_did_and_it_was_timed() {
        let page = verdict(&result("failed: 1 of 5"));
        assert!(page.contains("passed  Rope in BF16: 2 checks, 1.50 x as fast"), "{page}");
        assert!(page.contains("not     Gated in F32") && page.contains("failed: Gated, F32"));
        assert!(page.contains("not     LowRank in F32: not timed"), "{page}");
        let line = "    Proof { kernel: Kernel::Rope, dtype: DType::BF16, card: \"NVIDIA X\", date: \"2026-12-01\", command: \"./run.sh\" },";
        assert!(page.contains(line), "{page}");
        assert!(!page.contains("Kernel::Gated"), "{page}");
        // A part that was cut off has not said everything of any kernel.
        let page = verdict(&result("failed: ended after 100 s, 5 findings"));
        assert!(page.contains("no kernel passed"), "{page}");
    }

    #[test]
    fn only_runs_on_a_gpu_are_written_down() {
        assert_eq!(heading(&result("passed")).unwrap(), "### GPU kit, NVIDIA X, 2026-12-01");
        let changed = |key: &str, value: Value| {
            let mut result = result("passed");
            result[key] = value;
            heading(&result).is_err()
        };
        assert!(changed("tiny", json!(true)));
        assert!(changed("card", json!("no device: no driver")));
        assert!(changed("parts", Value::Null));
    }

    #[test]
    fn a_section_is_replaced_by_one_of_the_same_heading() {
        let heading = "### GPU kit, X, 2026-12-01";
        let once = placed("# M\n\n## Last\ntext\n", heading, &format!("{heading}\n\nfirst\n"));
        assert_eq!(once, format!("# M\n\n## Last\ntext\n\n{heading}\n\nfirst\n"));
        let twice = placed(&once, heading, &format!("{heading}\n\nsecond\n"));
        assert!(twice.contains("second") && !twice.contains("first") && twice.contains("## Last"));
        let middle = format!("# M\n\n{heading}\n\nfirst\n\n## Next\nrest\n");
        let found = placed(&middle, heading, &format!("{heading}\n\nsecond\n"));
        assert!(found.ends_with("second\n\n## Next\nrest\n"), "{found}");
        assert!(!found.contains("first"));
    }

    #[test]
    fn the_table_has_times_and_fractions() {
        let page = section(&result("passed"), "### h");
        assert!(
            page.contains("| Rope, BF16 | 1.000 | 2.000 | 50 % of bandwidth | 1.0e-3 |"),
            "{page}"
        );
        assert!(page.contains("| b | kernels | passed | 3 |"), "{page}");
    }
}
