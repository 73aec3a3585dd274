//! The source of rows: a file, a folder, a pattern, or a repository of the Hugging Face hub, as a
//! list of files.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};
use crate::read::hub;
use crate::read::input::{Format, Input, KINDS, matcher};

/// The depth to which a folder is searched.
const MAX_DEPTH: usize = 32;

/// The files of a source.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// The files with rows, in order.
    pub inputs: Vec<Input>,
    /// Files that are there, too, and are not read.
    pub skipped: Vec<String>,
}

/// The files that `given` names. `files` is a pattern over the files of a folder or a repository.
pub(crate) fn find(given: &Path, files: Option<&str>) -> Result<Source> {
    let text = given.to_string_lossy();
    if let Some(id) = text.strip_prefix("hf://datasets/") {
        return hub::fetch(id, files);
    }
    let io = |source| DataError::Io { action: "read", path: given.to_owned(), source };
    match std::fs::metadata(given) {
        Ok(metadata) if metadata.is_dir() => folder(given, files),
        Ok(_) => {
            let format = Format::of(given).unwrap_or(Format::JsonLines);
            Ok(Source { inputs: vec![input(given, format)], skipped: Vec::new() })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if text.contains(['*', '?', '[']) {
                return pattern(given, &text);
            }
            if is_repository(&text) {
                return hub::fetch(&text, files);
            }
            Err(DataError::NotFound {
                path: given.to_owned(),
                working_directory: std::env::current_dir().unwrap_or_default(),
            })
        }
        Err(error) => Err(io(error)),
    }
}

fn input(path: &Path, format: Format) -> Input {
    Input { path: path.to_owned(), name: path.display().to_string(), format }
}

/// `owner/name` or `owner/name@revision`.
fn is_repository(text: &str) -> bool {
    let Some((owner, name)) = text.split_once('/') else { return false };
    let word = |text: &str| {
        !text.is_empty()
            && !text.starts_with(['.', '-'])
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    word(owner) && word(name) && !revision.is_empty() && Format::of(Path::new(name)).is_none()
}

fn pattern(given: &Path, text: &str) -> Result<Source> {
    let unusable = |reason: String| DataError::Unusable { path: given.to_owned(), reason };
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
    let mut paths: Vec<PathBuf> = glob::glob_with(text, options)
        .map_err(|error| unusable(format!("it is no pattern: {error}")))?
        .filter_map(|path| path.ok())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    let source = chosen(&paths);
    if source.inputs.is_empty() {
        return Err(unusable(format!("no file of a known kind matches the pattern ({KINDS})")));
    }
    Ok(source)
}

fn folder(given: &Path, files: Option<&str>) -> Result<Source> {
    let mut paths = Vec::new();
    walk(given, 0, &mut paths)?;
    paths.sort();
    let wanted =
        matcher(files).map_err(|reason| DataError::Unusable { path: given.to_owned(), reason })?;
    paths.retain(|path| wanted(path.strip_prefix(given).unwrap_or(path)));
    let source = chosen(&paths);
    if source.inputs.is_empty() {
        let which = files.map_or_else(String::new, |files| format!(" that matches \"{files}\""));
        return Err(DataError::Unusable {
            path: given.to_owned(),
            reason: format!("it is a folder without a file of a known kind{which} ({KINDS})"),
        });
    }
    Ok(source)
}

/// Rows are in data files; where there is none, each text file is a row. A README beside the data
/// is not data.
fn chosen(paths: &[PathBuf]) -> Source {
    let data = paths.iter().filter_map(|path| Format::of(path)).any(|of| of != Format::Text);
    let mut source = Source::default();
    for path in paths {
        match Format::of(path).filter(|format| !data || *format != Format::Text) {
            Some(format) => source.inputs.push(input(path, format)),
            None => source.skipped.push(path.display().to_string()),
        }
    }
    source
}

fn walk(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<()> {
    let io = |source| DataError::Io { action: "read", path: folder.to_owned(), source };
    tunebook_progress::interrupt::check()?;
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        // A link back up would never end.
        if path.is_dir() && depth < MAX_DEPTH && !path.is_symlink() {
            walk(&path, depth + 1, paths)?;
        } else if path.is_file() {
            paths.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_by_name() {
        for name in ["openai/gsm8k", "a/b-c_d.e", "a/b@v1"] {
            assert!(is_repository(name), "{name}");
        }
        for name in
            ["data/missing.jsonl", "./a", "a", "a/b/c", "/a/b", "../b", "a/", "a b/c", "a/b@"]
        {
            assert!(!is_repository(name), "{name}");
        }
    }
}
