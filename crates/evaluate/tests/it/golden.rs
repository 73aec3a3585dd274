//! The files of `tests/golden/evaluate`.

use std::path::Path;

use serde::de::DeserializeOwned;

/// Reads a file of golden values.
pub(crate) fn read<T: DeserializeOwned>(name: &str) -> T {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/evaluate");
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Answers, each with its references.
pub(crate) fn pairs() -> Vec<(String, Vec<String>)> {
    read("pairs.json")
}

/// Asserts that two values differ by at most 1e-9, of 1 or of the larger one.
#[track_caller]
pub(crate) fn close(found: f64, expected: f64, what: impl std::fmt::Display) {
    let error = (found - expected).abs();
    assert!(error <= 1e-9 * expected.abs().max(1.0), "{what}: {found}, expected {expected}");
}
