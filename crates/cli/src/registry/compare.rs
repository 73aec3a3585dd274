//! `tunebook registry compare`: strategy, arguments and scores first.

use std::error::Error;

use serde_json::Value;
use tunebook_runs::RunComparison;

use super::table::{Rows, aligned, cells, short};

/// The longest value that is shown whole without `--all`, in letters.
const LONGEST: usize = 40;

/// Settings of the data and the base that tell most of them; the others are below `--all`.
const SHOWN: [&str; 6] = [
    "base_model",
    "data.train.fingerprint",
    "data.train.rows",
    "data.train.source",
    "dtype",
    "parent",
];

/// Where a setting stands; the last place is the one below `--all`.
fn place(setting: &str) -> usize {
    match setting {
        _ if setting.starts_with("strategy") => 0,
        _ if setting.starts_with("args.") => 1,
        _ if SHOWN.contains(&setting) => 2,
        _ => REST,
    }
}

const REST: usize = 3;

pub(crate) fn text(compared: &RunComparison, all: bool) -> Result<String, Box<dyn Error>> {
    let mut settings = cells(&compared.settings())?;
    let names = settings.remove(0);
    for cell in settings.iter_mut().flat_map(|row| row.iter_mut().skip(1)) {
        *cell = value(cell, all);
    }
    settings.sort_by_key(|row| place(&row[0])); // of one place they stay in order
    let rest = settings.split_off(settings.partition_point(|row| place(&row[0]) < REST));
    let table = |rows: Rows| aligned(&[vec![names.clone()], rows].concat());
    let mut parts = vec![match settings.is_empty() {
        true => "strategy and arguments are the same".to_owned(),
        false => table(settings),
    }];
    parts.push(aligned(&cells(&compared.metrics())?));
    let more = rest.len();
    if all && more > 0 {
        parts.push(table(rest));
    }
    let same = format!("{} settings are the same", compared.same_settings());
    parts.push(match more {
        0 => same,
        _ if all => same,
        _ => format!("{same}, and {more} more differ (--all)"),
    });
    Ok(parts.join("\n\n"))
}

/// A value of one setting: hashes by their beginning, lists by their items.
fn value(text: &str, all: bool) -> String {
    let text = match serde_json::from_str(text) {
        Ok(Value::Array(items)) => items.iter().map(item).collect::<Vec<_>>().join(", "),
        _ => short(text).to_owned(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) if !all => format!("{}…", &text[..at]),
        _ => text,
    }
}

fn item(item: &Value) -> String {
    match item {
        Value::String(text) => short(text).to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short() {
        assert_eq!(value(r#"["imported","trl"]"#, false), "imported, trl");
        assert_eq!(value(&"ab".repeat(32), true), "abababababab");
        let long = "é".repeat(LONGEST + 1);
        assert_eq!(value(&long, false), format!("{}…", "é".repeat(LONGEST)));
        assert_eq!(value(&long, true), long);
        assert_eq!(value("0.001", false), "0.001");
    }
}
