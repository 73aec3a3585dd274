//! `--read result.json`: the table for `docs/measurements.md`, and the kernels that passed.
//!
//! Strict, as a kernel that passes becomes the default on every GPU: the program of this checkout
//! says which comparisons there have to be (`gpu_kit plan`), each must be there once and have passed,
//! and the kit must have been built of the same sources.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::report::{clean, findings, judged, parts};
use crate::error::{Error, Result};
use crate::process;
use crate::stamp::write_atomically;

/// Where the proofs belong.
const TABLE: &str = "crates/ops/src/cuda/proven.rs";

/// What a comparison's result depends on. The table itself changes with every proof.
const SOURCES: [&str; 4] =
    ["Cargo.lock", "crates/ops", "crates/tune/examples/gpu_kit", ":!crates/ops/src/cuda/proven.rs"];

/// Writes the table and says which kernels passed, of the comparisons in `plan`.
///
/// # Errors
/// A file that is no result, or the result of a run that no GPU took part in.
pub(super) fn read(root: &Path, file: &Path, plan: &[Value]) -> Result<()> {
    let bytes = std::fs::read(file).map_err(Error::io("read", file))?;
    let mut result: Value = serde_json::from_slice(&bytes).map_err(|error| {
        Error::Other(format!("{}: expected the kit's result.json: {error}", file.display()))
    })?;
    clean(&mut result);
    let heading = heading(&result)
        .map_err(|why| Error::Other(format!("{}: {why}; nothing was written", file.display())))?;
    let docs = root.join("docs/measurements.md");
    let text = std::fs::read_to_string(&docs).map_err(Error::io("read", &docs))?;
    let with = placed(&text, &heading, &section(&result, &heading));
    write_atomically(&docs, with.as_bytes())?;
    let took = if text.lines().any(|line| line == heading) { "replaced" } else { "new" };
    println!("{}: section `{heading}`, {took}", docs.display());
    let refused = refusal(&result, plan)
        .or_else(|| other_sources(root, self::text(&result["kit"]["commit"])));
    print!("{}", verdict(&result, plan, refused.as_deref()));
    Ok(())
}

/// Why the kit's sources are not those of this checkout.
fn other_sources(root: &Path, commit: &str) -> Option<String> {
    // A word that git could take for an option is no commit.
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let commit = if commit.bytes().all(is_word) { commit.trim_start_matches('-') } else { "" };
    let commit = format!("{commit}^{{commit}}");
    let mut git = process::command("git");
    git.current_dir(root).args(["rev-parse", "--verify", "--quiet", "--end-of-options", &commit]);
    let Ok(commit) = process::capture(&mut git, "git") else {
        return Some("the kit's commit is none of this repository".to_owned());
    };
    let mut git = process::command("git");
    git.current_dir(root).args(["diff", "--quiet", commit.trim(), "--"]).args(SOURCES);
    process::capture(&mut git, "git").err().map(|_| {
        "the kernels, their comparisons or Cargo.lock have changed since the kit was built"
            .to_owned()
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The heading of the section of this run; a second run of the same parts on the same card and day
/// replaces it.
fn heading(result: &Value) -> std::result::Result<String, &'static str> {
    let (card, date) = (text(&result["card"]), text(&result["date"]));
    if !result["parts"].is_array() || card.is_empty() || date.is_empty() {
        return Err("expected the kit's result.json, with `card`, `date` and `parts`");
    }
    if result["tiny"] != false {
        return Err("a run in small on the CPU measures nothing");
    }
    // As nvidia-smi names it. Without a device, or without its name, this is something else.
    if result["details"]["card"] != card {
        return Err("the run found no device, or not its name");
    }
    let parts = text(&result["command"]).trim_start_matches("./run.sh").trim();
    let parts = if parts.is_empty() { String::new() } else { format!(", parts {parts}") };
    Ok(format!("### GPU kit, {card}, {date}{parts}"))
}

fn number(value: &Value, decimals: usize) -> String {
    value.as_f64().map_or_else(String::new, |number| format!("{number:.decimals$}"))
}

fn section(result: &Value, heading: &str) -> String {
    let mut page = format!("{heading}\n\n");
    let details = &result["details"];
    let _ = writeln!(
        page,
        "`{}` of the kit of commit {}; kernels: {}; driver {}; peers: torch {}, transformers {}, peft {}.\n",
        text(&result["command"]),
        text(&result["kit"]["commit"]),
        text(&result["kernels"]),
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
            text(&part["status"]),
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

/// Why no kernel is proven by a run, whatever its comparisons say.
fn refusal(result: &Value, plan: &[Value]) -> Option<String> {
    let kit = &result["kit"];
    let commit = text(&kit["commit"]);
    if commit.is_empty() || commit == "unknown" || commit.ends_with("-dirty") {
        return Some(format!("the kit is of commit `{commit}`, expected one without changes"));
    }
    if kit["version"] != env!("CARGO_PKG_VERSION") {
        return Some("the kit is of another version".to_owned());
    }
    let parts: Vec<Value> = parts(result).into_iter().filter(|part| part["part"] == "b").collect();
    let [part] = parts.as_slice() else {
        return Some(format!("part b is there {} times, expected once", parts.len()));
    };
    // Cut off, ended by a signal, or not ended: then the findings do not say the status.
    if text(&part["status"]) != judged(&part["findings"]) {
        return Some(format!("part b did not end: {}", text(&part["status"])));
    }
    let findings = findings(part);
    let sane = findings.iter().any(|f| f["name"] == "ceilings" && f["passed"] == true);
    if !sane {
        return Some("the card's bandwidth and peak were not measured".to_owned());
    }
    let expected = plan.len() + 1;
    (findings.len() != expected)
        .then(|| format!("part b has {} findings, expected {expected}", findings.len()))
}

/// What was found of a kernel in a type.
#[derive(Default)]
struct Found {
    checks: usize,
    failed: Vec<String>,
    /// How many times as fast as the composed form, at the size where it gains least.
    faster: Option<f64>,
}

fn kernels(result: &Value, plan: &[Value]) -> BTreeMap<(String, String), Found> {
    let all: Vec<Value> =
        parts(result).iter().filter(|part| part["part"] == "b").flat_map(findings).collect();
    let mut kernels: BTreeMap<_, Found> = BTreeMap::new();
    for planned in plan {
        let of = (text(&planned["kernel"]).to_owned(), text(&planned["dtype"]).to_owned());
        let found = kernels.entry(of).or_default();
        found.checks += 1;
        if let Err(why) = compared(planned, &all, &mut found.faster) {
            found.failed.push(format!("{}: {why}", text(&planned["name"])));
        }
    }
    kernels
}

/// Whether one comparison was made and passed; the least gain so far is kept.
fn compared(
    planned: &Value,
    all: &[Value],
    least: &mut Option<f64>,
) -> std::result::Result<(), &'static str> {
    let mut named = all.iter().filter(|finding| finding["name"] == planned["name"]);
    let (Some(finding), None) = (named.next(), named.next()) else {
        return Err("expected once");
    };
    if ["kernel", "dtype", "timed"].iter().any(|key| finding[key] != planned[key]) {
        return Err("of another kernel or type");
    }
    if finding["passed"] != true {
        return Err("failed");
    }
    if finding["launches"].as_object().is_none_or(serde_json::Map::is_empty) {
        return Err("no kernel was launched");
    }
    if planned["timed"] != true {
        return Ok(());
    }
    let time = |key: &str| finding[key].as_f64().filter(|ms| *ms > 0.0 && ms.is_finite());
    let (Some(composed), Some(fused)) = (time("composed_ms"), time("fused_ms")) else {
        return Err("not timed");
    };
    let faster = composed / fused;
    *least = Some(least.map_or(faster, |least| least.min(faster)));
    if faster < 1.0 { Err("slower than the composed form") } else { Ok(()) }
}

/// Which kernels passed, with the lines that make them the default.
fn verdict(result: &Value, plan: &[Value], refused: Option<&str>) -> String {
    let (mut page, mut lines) = (String::new(), String::new());
    for ((kernel, dtype), found) in kernels(result, plan) {
        let agrees = found.failed.is_empty() && found.faster.is_some();
        let passed = agrees && refused.is_none();
        let speed =
            found.faster.map_or_else(|| "not timed".to_owned(), |f| format!("{f:.2} x as fast"));
        let _ = match agrees {
            true => {
                let word = if passed { "passed" } else { "agrees" };
                writeln!(page, "{word}  {kernel} in {dtype}: {} checks, {speed}", found.checks)
            }
            false => {
                writeln!(page, "not     {kernel} in {dtype}: {speed}; {}", found.failed.join("; "))
            }
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
    let _ = match (refused, lines.is_empty()) {
        (Some(why), _) => writeln!(page, "the run proves no kernel: {why}; PROVEN stays as it is"),
        (None, true) => writeln!(page, "no kernel passed: PROVEN stays as it is"),
        (None, false) => write!(page, "for PROVEN in {TABLE}:\n{lines}"),
    };
    page
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(kernel: &str, dtype: &str, timed: bool) -> Value {
        let of = if timed { "of 8 x 4" } else { "small" };
        json!({"name": format!("{kernel} {of}, {dtype}"), "kernel": kernel, "dtype": dtype, "timed": timed})
    }

    fn plan() -> Vec<Value> {
        [("Rope", "BF16"), ("Gated", "F32")]
            .into_iter()
            .flat_map(|(kernel, dtype)| [false, true].map(|timed| planned(kernel, dtype, timed)))
            .collect()
    }

    /// A whole run in which all passed, changed by `change`.
    fn result(change: impl Fn(&mut Value)) -> Value {
        let mut findings = vec![json!({"name": "ceilings", "passed": true})];
        for mut finding in plan() {
            finding["passed"] = json!(true);
            finding["launches"] = json!({"rope_bf16": 2});
            if finding["timed"] == true {
                for (key, value) in [("composed_ms", 2.0), ("fused_ms", 1.0), ("difference", 1e-3)]
                {
                    finding[key] = json!(value);
                }
                finding["fraction_of_ceiling"] = json!(0.5);
                finding["ceiling"] = json!("bandwidth");
            }
            findings.push(finding);
        }
        let mut result = json!({
            "card": "NVIDIA X", "date": "2026-12-01", "command": "./run.sh", "tiny": false,
            "details": {"card": "NVIDIA X", "driver": "580"}, "kernels": "proven",
            "kit": {"commit": "abc1234", "arch": "90", "version": env!("CARGO_PKG_VERSION")},
            "parts": [{"part": "b", "title": "kernels", "status": "passed", "secs": 3.0, "findings": findings}],
        });
        change(&mut result);
        result
    }

    fn page(change: impl Fn(&mut Value)) -> String {
        let result = result(change);
        verdict(&result, &plan(), refusal(&result, &plan()).as_deref())
    }

    #[test]
    fn a_kernel_passed_when_all_its_comparisons_did_and_it_gains() {
        let whole = page(|_| ());
        assert!(whole.contains("passed  Rope in BF16: 2 checks, 2.00 x as fast"), "{whole}");
        let line = "    Proof { kernel: Kernel::Rope, dtype: DType::BF16, card: \"NVIDIA X\", date: \"2026-12-01\", command: \"./run.sh\" },";
        assert!(whole.contains(line) && whole.contains("Kernel::Gated"), "{whole}");
        // Finding 3 is Gated's small one, 2 is Rope's timed one.
        let one = |change: fn(&mut Value)| {
            page(|result| {
                change(&mut result["parts"][0]["findings"]);
                let status = judged(&result["parts"][0]["findings"]);
                result["parts"][0]["status"] = json!(status);
            })
        };
        // An error names the kernel, too, and proves nothing.
        let failed = one(|f| f[3] = json!({"name": f[3]["name"], "passed": false, "reason": "no"}));
        assert!(failed.contains("not     Gated in F32") && failed.contains(line), "{failed}");
        assert!(!failed.contains("Kernel::Gated"), "{failed}");
        let changes: [fn(&mut Value); 8] = [
            |f| f[2]["passed"] = json!(false),
            |f| f[2]["passed"] = json!("true"),
            |f| f[2]["fused_ms"] = json!(20.0),
            |f| f[2]["fused_ms"] = json!(-1.0),
            |f| f[2]["composed_ms"] = Value::Null,
            |f| f[2]["launches"] = json!({}),
            |f| f[2]["dtype"] = json!("F64"),
            |f| f[1] = f[2].clone(),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let page = one(change);
            assert!(page.contains("not     Rope in BF16"), "{index}: {page}");
            assert!(!page.contains("Kernel::Rope"), "{index}: {page}");
        }
    }

    #[test]
    fn a_run_that_is_not_whole_proves_nothing() {
        let changes: [fn(&mut Value); 12] = [
            |r| r["parts"][0]["status"] = json!("failed: ended after 100 s, 5 findings"),
            |r| r["parts"][0]["status"] = json!("failed (exit status: 1): log.txt says why of 5"),
            |r| r["parts"][0]["status"] = json!("not ended"),
            |r| r["parts"][0]["part"] = json!("a"),
            |r| r["parts"] = json!([r["parts"][0], r["parts"][0]]),
            |r| r["kit"]["commit"] = json!("abc1234-dirty"),
            |r| r["kit"]["commit"] = json!("unknown"),
            |r| r["kit"] = Value::Null,
            |r| r["kit"]["version"] = json!("99"),
            |r| r["parts"][0]["findings"][0]["passed"] = json!(false),
            |r| drop(r["parts"][0]["findings"].as_array_mut().unwrap().pop()),
            |r| r["parts"][0]["findings"].as_array_mut().unwrap().push(json!({"passed": true})),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let page = page(change);
            assert!(!page.contains("Proof"), "{index}: {page}");
            assert!(page.contains("the run proves no kernel"), "{index}: {page}");
            assert!(!page.lines().any(|l| l.starts_with("passed")), "{index}: {page}");
        }
    }

    #[test]
    fn the_kit_has_the_sources_of_this_checkout() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for commit in ["", "0000000", "--help", "HEAD~1"] {
            assert!(other_sources(&root, commit).is_some(), "{commit}");
        }
    }

    #[test]
    fn only_runs_on_a_gpu_are_written_down() {
        assert_eq!(heading(&result(|_| ())).unwrap(), "### GPU kit, NVIDIA X, 2026-12-01");
        let parts = result(|result| result["command"] = json!("./run.sh b f"));
        assert_eq!(heading(&parts).unwrap(), "### GPU kit, NVIDIA X, 2026-12-01, parts b f");
        let refused = |key: &str, value: Value| {
            assert!(
                heading(&result(|result| result[key] = value.clone())).is_err(),
                "{key} {value}"
            );
        };
        for tiny in [json!(true), json!("true"), json!(1), Value::Null] {
            refused("tiny", tiny);
        }
        for card in ["no device: no driver", "unknown", "none: tried out on the CPU, in small", ""]
        {
            refused("card", json!(card));
        }
        refused("details", Value::Null);
        refused("parts", Value::Null);
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
        let page = section(&result(|_| ()), "### h");
        assert!(
            page.contains("| Rope of 8 x 4, BF16 | 1.000 | 2.000 | 50 % of bandwidth | 1.0e-3 |"),
            "{page}"
        );
        assert!(page.contains("| b | kernels | passed | 3 |"), "{page}");
    }
}
