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
