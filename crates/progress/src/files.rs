//! Outputs kept as files: a notebook that runs as a program has no front end to show them.
//!
//! Each form of an output is a file of its own (`cell_07.html`, `cell_07.svg`, `cell_07.txt`); the
//! second output of a cell is `cell_07_2`. An output that is replaced replaces its files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::Value;

use crate::bundle::MimeBundle;
use crate::sink::sink;

/// Keeps each output of this process in `folder`, too, which is made with its first output. Files
/// of an earlier run are replaced by those of the same name and stay otherwise.
pub fn keep_in(folder: impl Into<PathBuf>) {
    sink().keep(Files::new(folder.into()));
}

/// Names the outputs that follow by this cell. Does nothing before [`keep_in`].
pub fn begin_cell(number: usize) {
    if let Some(files) = sink().files() {
        files.begin_cell(number);
    }
}

/// The files of a process's outputs.
pub(crate) struct Files {
    folder: PathBuf,
    cell: usize,
    /// The outputs of the cell so far.
    count: usize,
    /// The names of the outputs that may be replaced.
    names: HashMap<String, String>,
}

impl Files {
    fn new(folder: PathBuf) -> Self {
        Self { folder, cell: 0, count: 0, names: HashMap::new() }
    }

    fn begin_cell(&mut self, number: usize) {
        (self.cell, self.count) = (number, 0);
    }

    /// Writes an output in all its forms.
    ///
    /// # Errors
    /// When the folder cannot be made or a file cannot be written.
    pub(crate) fn write(&mut self, id: Option<&str>, bundle: &MimeBundle) -> io::Result<()> {
        let name = match id.and_then(|id| self.names.get(id)) {
            Some(name) => name.clone(),
            None => self.next_name(id),
        };
        fs::create_dir_all(&self.folder)?;
        for (mime, value) in &bundle.data {
            let Some(extension) = extension(mime) else { continue };
            let path = self.folder.join(format!("{name}.{extension}"));
            fs::write(&path, content(mime, value, &name)).map_err(|error| named(&path, error))?;
        }
        Ok(())
    }

    fn next_name(&mut self, id: Option<&str>) -> String {
        self.count += 1;
        let name = match self.count {
            1 => format!("cell_{:02}", self.cell),
            count => format!("cell_{:02}_{count}", self.cell),
        };
        if let Some(id) = id {
            self.names.insert(id.to_owned(), name.clone());
        }
        name
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The end of the file's name. Pictures in base64 are left out: every output with one has another
/// form, too.
fn extension(mime: &str) -> Option<&'static str> {
    match mime {
        "text/plain" => Some("txt"),
        "text/html" => Some("html"),
        "text/markdown" => Some("md"),
        "text/latex" => Some("tex"),
        "image/svg+xml" => Some("svg"),
        "application/vnd.plotly.v1+json" => Some("plotly.json"),
        other => (other == "application/json" || other.ends_with("+json")).then_some("json"),
    }
}

fn content(mime: &str, value: &Value, title: &str) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    match mime {
        // A front end gets a piece of a page; a browser that opens the file needs to be told how
        // it is encoded.
        "text/html" => {
            format!("<!doctype html>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n{text}\n")
        }
        "text/plain" if !text.ends_with('\n') => format!("{text}\n"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_a_file_and_a_replaced_output_replaces_it() {
        let folder = std::env::temp_dir().join(format!("tunebook-files-{}", std::process::id()));
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let mut files = Files::new(folder.clone());
        files.begin_cell(7);
        files.write(Some("a"), &MimeBundle::text("first").html("<b>ä</b>")).expect("a folder");
        files
            .write(None, &MimeBundle::default().with("application/json", serde_json::json!([1])))
            .expect("a folder");
        files.begin_cell(12);
        files.write(Some("a"), &MimeBundle::text("second")).expect("a folder");
        files.write(None, &MimeBundle::default().with("image/png", "iVBO")).expect("a folder");
        assert_eq!(read("cell_07.txt"), "second\n");
        assert!(read("cell_07.html").ends_with("\n<b>ä</b>\n"));
        assert_eq!(read("cell_07_2.json"), "[1]");
        let mut names: Vec<_> = fs::read_dir(&folder)
            .expect("a folder")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        assert_eq!(names, ["cell_07.html", "cell_07.txt", "cell_07_2.json"]);
        fs::remove_dir_all(&folder).expect("a folder");
    }
}
