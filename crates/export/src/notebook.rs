//! The cells of a notebook's file (nbformat 4).

use std::collections::BTreeSet;

use serde_json::Value;

/// A cell of the notebook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Markdown or plain text.
    Text(String),
    /// Code that is not blank.
    Code(CodeCell),
}

/// A cell with code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CodeCell {
    /// The first is 1; blank cells do not count, as in a run from top to bottom.
    pub(crate) number: usize,
    pub(crate) source: String,
    pub(crate) tags: BTreeSet<String>,
}

/// Reads a notebook; says why it cannot.
pub(crate) fn read(text: &str) -> Result<Vec<Cell>, String> {
    let notebook: Value = serde_json::from_str(text).map_err(|error| format!("{error}"))?;
    match notebook["nbformat"].as_u64() {
        Some(4) => {}
        Some(other) => return Err(format!("its format is nbformat {other}, expected 4")),
        None => return Err("it has no `nbformat`".to_owned()),
    }
    let metadata = &notebook["metadata"];
    let language = metadata["kernelspec"]["language"]
        .as_str()
        .or_else(|| metadata["language_info"]["name"].as_str())
        .unwrap_or("rust");
    if !language.eq_ignore_ascii_case("rust") {
        return Err(format!("its language is {language}"));
    }
    let cells = notebook["cells"].as_array().ok_or("it has no `cells`")?;
    let mut number = 0;
    let mut read = Vec::new();
    for cell in cells {
        let source = source(&cell["source"])?;
        if source.trim().is_empty() {
            continue;
        }
        match cell["cell_type"].as_str() {
            Some("code") => {
                number += 1;
                let tags = cell["metadata"]["tags"].as_array().into_iter().flatten();
                let tags = tags.filter_map(Value::as_str).map(str::to_owned).collect();
                read.push(Cell::Code(CodeCell { number, source, tags }));
            }
            Some("markdown" | "raw") => read.push(Cell::Text(source)),
            Some(other) => return Err(format!("a cell's `cell_type` is {other:?}")),
            None => return Err("a cell has no `cell_type`".to_owned()),
        }
    }
    Ok(read)
}

/// A text, or the list of its lines.
fn source(value: &Value) -> Result<String, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        _ => return Err("a cell has no `source`".to_owned()),
    };
    // As rustc reads it.
    Ok(text.replace("\r\n", "\n"))
}
