//! Text files: one row each, with the columns `file` and `text`.

use std::borrow::Cow;
use std::io::Read;
use std::sync::Arc;

use tunebook_progress::interrupt;

use crate::error::{DataError, Result};
use crate::read::decompress;
use crate::read::fields::Field;
use crate::read::input::{Input, other_format};
use crate::read::jsonl::Limits;
use crate::read::shape::RowShape;
use crate::read::table::{Part, Sink};

/// Text files, one row each, with the column `file`.
pub(crate) fn each(inputs: &[&Input], shape: &Option<RowShape>, sink: &mut Sink<'_>) -> Result<()> {
    let shape = shape.as_ref().unwrap_or(&RowShape::Text);
    if !matches!(shape, RowShape::Text | RowShape::Columns { .. } | RowShape::Template { .. }) {
        return Err(DataError::TextFiles { shape: shape.to_string() });
    }
    for input in inputs {
        interrupt::check()?;
        let mut part = match bytes(input) {
            Ok((bytes, None)) => row(input, &bytes, shape),
            Ok((bytes, Some(reason))) => torn(&bytes, reason),
            Err(error) => torn(b"", error.to_string()),
        };
        part.lines += 1;
        sink(input, Some(shape), vec![part])?;
    }
    Ok(())
}

/// The bytes of a file, and the reason why they are not the whole of it.
fn bytes(input: &Input) -> Result<(Vec<u8>, Option<String>)> {
    let mut bytes = Vec::new();
    let limit = Limits::default().line;
    let mut plain = decompress::open(&input.path, Arc::default())?;
    (&mut plain)
        .take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| DataError::Io { action: "read", path: input.path.clone(), source })?;
    let reason = match plain.damage() {
        Some(damage) => Some(plain.damage_reason(&damage)),
        None => too_long(bytes.len(), limit),
    };
    Ok((bytes, reason))
}

/// The reason why a text of that many bytes is no row.
pub(crate) fn too_long(bytes: usize, limit: usize) -> Option<String> {
    (bytes > limit).then(|| {
        format!("expected a text of at most {} MiB, found a longer one: split it", limit >> 20)
    })
}

/// A file of which only a part is there: a piece of a text is not the text.
pub(crate) fn torn(bytes: &[u8], reason: String) -> Part {
    let mut part = Part::with_capacity(0);
    part.reject(0, reason, bytes);
    part
}

/// The row of one file, or the reason why there is none.
pub(crate) fn row(input: &Input, bytes: &[u8], shape: &RowShape) -> Part {
    let mut part = Part::with_capacity(1);
    if let Some((found, remedy)) = other_format(bytes) {
        part.reject(1, format!("expected a text in UTF-8, found {found}. {remedy}"), bytes);
        return part;
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + memchr::memchr_iter(b'\n', &bytes[..error.valid_up_to()]).count() as u64;
        (line, format!("expected UTF-8, found the byte 0x{:02X}", bytes[error.valid_up_to()]))
    });
    let pair = text.and_then(|text| {
        if let Some(at) = memchr::memchr(0, bytes) {
            let line = 1 + memchr::memchr_iter(b'\n', &bytes[..at]).count() as u64;
            return Err((line, "expected text, found a null byte".to_owned()));
        }
        let fields = vec![
            (Cow::Borrowed("file"), Field::Text(Cow::Borrowed(input.name.as_str()))),
            (Cow::Borrowed("text"), Field::Text(Cow::Borrowed(text))),
        ];
        shape.pair(fields).map_err(|reason| (1, reason))
    });
    match pair {
        Ok(pair) => part.push(pair),
        Err((line, reason)) => part.reject(line, reason, bytes),
    }
    part
}
