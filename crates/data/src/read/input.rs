//! One file to read: its path, its name in messages, and its format by name and first bytes.

use std::path::{Component, Path, PathBuf};

/// One file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Input {
    pub path: PathBuf,
    /// The name in messages and in the column `file`.
    pub name: String,
    pub format: Format,
}

/// The format of a file, by its name or its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    JsonLines,
    Json,
    Csv,
    Parquet,
    Text,
}

/// The kinds of files in words.
pub(crate) const KINDS: &str = "jsonl, json, csv, tsv, parquet, txt, md, each also as .gz or .zst";

impl Format {
    /// By the extension, with `.gz` and `.zst` aside.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let name = [".gz", ".zst", ".zstd"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(&name);
        Some(match name.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Self::JsonLines,
            "json" => Self::Json,
            "csv" | "tsv" => Self::Csv,
            "parquet" | "pq" => Self::Parquet,
            "txt" | "md" | "text" => Self::Text,
            _ => return None,
        })
    }

    /// The format by the first bytes, which take precedence over the name.
    pub(crate) fn sniffed(self, start: &[u8]) -> Self {
        if start.starts_with(b"PAR1") {
            return Self::Parquet;
        }
        let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
        match self {
            Self::Json | Self::JsonLines => {
                let first_line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
                if text.starts_with(b"[") {
                    // An array over several lines, or of objects: not just one odd line.
                    let rest = text[1..].trim_ascii_start();
                    let array =
                        rest.starts_with(b"{") || trim_start_blanks(&text[1..]).starts_with(b"\n");
                    return if array || self == Self::Json { Self::Json } else { Self::JsonLines };
                }
                // Objects after each other, each over several lines, have no line of their own.
                let several_lines = text.starts_with(b"{")
                    && (first_line.trim_ascii() == b"{" || begins_with_lines(text, first_line));
                if several_lines {
                    return Self::Json;
                }
                // `.json` is also what many call JSONL.
                let whole = serde_json::from_slice::<serde::de::IgnoredAny>(first_line).is_ok();
                let is_all = first_line.trim_ascii_end().len() == text.trim_ascii_end().len();
                match self {
                    // A document is what it is, whatever its name.
                    Self::JsonLines if text.starts_with(b"{") && whole && is_all => Self::Json,
                    Self::Json
                        if text.starts_with(b"{") && !whole && first_line.len() < text.len() =>
                    {
                        Self::Json
                    }
                    Self::Json if text.starts_with(b"{") && is_all => Self::Json,
                    Self::Json if !text.starts_with(b"{") => Self::Json,
                    _ => Self::JsonLines,
                }
            }
            other => other,
        }
    }
}

/// Whether a whole object stands at the beginning that its first line does not hold.
fn begins_with_lines(text: &[u8], first_line: &[u8]) -> bool {
    let mut values =
        serde_json::Deserializer::from_slice(text).into_iter::<serde::de::IgnoredAny>();
    matches!(values.next(), Some(Ok(_))) && values.byte_offset() > first_line.len()
}

/// The bytes without the blanks in front, line ends aside.
fn trim_start_blanks(bytes: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r');
    let at = bytes.iter().position(|byte| !blank(byte)).unwrap_or(bytes.len());
    &bytes[at..]
}

/// The format and the remedy for a file whose first bytes are of a format that cannot be read.
pub(crate) fn other_format(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let recode = "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE";
    match start {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            Some(("text in UTF-32", "Save it as UTF-8: iconv -f UTF-32 -t UTF-8 FILE"))
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(("text in UTF-16", recode)),
        // Letters of ASCII, each with a byte 0 before or behind it.
        [1..=0x7f, 0, 1..=0x7f, 0, ..] => Some((
            "text in UTF-16 without its byte order mark",
            "Save it as UTF-8: iconv -f UTF-16LE -t UTF-8 FILE",
        )),
        [0, 1..=0x7f, 0, 1..=0x7f, ..] => Some((
            "text in UTF-16 without its byte order mark",
            "Save it as UTF-8: iconv -f UTF-16BE -t UTF-8 FILE",
        )),
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Some(("compressed twice", "Decompress it once: gunzip FILE or unzstd FILE"))
        }
        [b'P', b'K', 3, 4, ..] => Some(("a ZIP archive", "Unpack it first: unzip FILE")),
        [b'%', b'P', b'D', b'F', ..] => {
            Some(("a PDF document", "Extract its text first: pdftotext FILE"))
        }
        _ => None,
    }
}

/// A test of relative paths.
pub(crate) type Matcher = Box<dyn Fn(&Path) -> bool>;

/// The test that a pattern stands for.
pub(crate) fn matcher(files: Option<&str>) -> Result<Matcher, String> {
    match files {
        None => Ok(Box::new(|_| true)),
        Some(files) => {
            let pattern = glob::Pattern::new(files)
                .map_err(|error| format!("\"{files}\" is no pattern: {error}"))?;
            Ok(Box::new(move |path| pattern.matches_path(path)))
        }
    }
}

/// Whether a name from elsewhere stays below the folder that it is put in.
pub(crate) fn is_below(name: &str) -> bool {
    Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_name() {
        for (name, format) in [
            ("a.jsonl", Some(Format::JsonLines)),
            ("a.JSONL.gz", Some(Format::JsonLines)),
            ("a.json.zst", Some(Format::Json)),
            ("a.tsv", Some(Format::Csv)),
            ("x/a.parquet", Some(Format::Parquet)),
            ("a.md", Some(Format::Text)),
            ("a.png", None),
            ("a", None),
        ] {
            assert_eq!(Format::of(Path::new(name)), format, "{name}");
        }
    }
}
