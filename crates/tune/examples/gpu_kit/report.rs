//! Findings: one line of JSON each.
//!
//! `{"name": .., "passed": true, ..}`, with the figures that belong to it; `passed` is null where
//! something was measured that cannot fail, and then `reason` may say why it was not.

use std::error::Error;
use std::io::Write;

use serde_json::{Value, json};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Writes a finding.
pub(crate) fn tell(name: &str, passed: Option<bool>, figures: Value) -> Result<()> {
    let mut finding = json!({"name": name, "passed": passed});
    if let (Some(all), Some(more)) = (finding.as_object_mut(), figures.as_object()) {
        all.extend(more.clone());
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{finding}")?;
    Ok(out.flush()?)
}

/// Writes what came of it; an error is a finding that failed, and stops nothing after it.
pub(crate) fn judged(name: &str, found: Result<(bool, Value)>) -> Result<()> {
    judged_of(name, &json!({}), found)
}

/// The same of something that has a name in it whatever comes of it, such as a kernel.
pub(crate) fn judged_of(name: &str, of: &Value, found: Result<(bool, Value)>) -> Result<()> {
    let (passed, mut figures) =
        found.unwrap_or_else(|error| (false, json!({"reason": error.to_string()})));
    if let (Some(all), Some(of)) = (figures.as_object_mut(), of.as_object()) {
        all.extend(of.clone());
    }
    tell(name, Some(passed), figures)
}
