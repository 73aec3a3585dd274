//! Rows of results, and the files that they go to.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// One metric of a case.
pub(crate) fn row(case: &str, metric: &str, ours: f64, peer: Option<f64>) -> Value {
    json!({
        "case": case,
        "metric": metric,
        "ours": ours,
        "peer": peer,
        "ratio": peer.map(|peer| ours / peer),
    })
}

/// Writes one line of JSON.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(path: &Path, value: &Value) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    std::fs::write(path, format!("{value}\n")).map_err(Error::io("write", path))
}

/// A row for the screen.
pub(crate) fn line(row: &Value) -> String {
    let of = |key: &str| row[key].as_f64().map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
    let metric = row["metric"].as_str().unwrap_or_default();
    let mut line = format!(
        "  {metric:24} ours {:>9}   peer {:>9}   ratio {:>6}",
        of("ours"),
        of("peer"),
        of("ratio")
    );
    if row["limit"].is_number() {
        line.push_str(&format!("   limit {:>9}", of("limit")));
    }
    if let Some(reason) = row["reason"].as_str() {
        line.push_str(&format!("   ({reason})"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_what_its_row_has() {
        let row = json!({
            "metric": "tokens_per_s", "ours": 50.0, "peer": null, "ratio": null, "limit": 140.25,
            "reason": "llama_cpp_python is not there",
        });
        let expected = "  tokens_per_s             ours     50.00   peer         -   ratio      -   \
                        limit    140.25   (llama_cpp_python is not there)";
        assert_eq!(line(&row), expected);
        let row = json!({"metric": "seconds", "ours": 2.0, "peer": 4.0, "ratio": 0.5});
        let expected = "  seconds                  ours      2.00   peer      4.00   ratio   0.50";
        assert_eq!(line(&row), expected);
    }
}
