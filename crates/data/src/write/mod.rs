//! Writing: JSONL, Parquet, and the chat format that OpenAI takes for fine-tuning.

pub(crate) mod openai;

use std::io::{BufWriter, Write};
use std::path::Path;

use polars::prelude::*;
use polars_io::prelude::ParquetWriter;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tunebook_disk::{WholeFile, folder_of, sync_folder};

use crate::dataset::Dataset;
use crate::error::{DataError, Result};
use crate::read::parquet;
use crate::training_text::TrainingText;
use crate::turn::{Role, Turn};

/// Rows that become text at a time.
const CHUNK_ROWS: usize = 64 << 10;
/// Rows of one thread.
const THREAD_ROWS: usize = 2048;

impl Dataset {
    /// Writes the rows as JSONL, all columns, nulls left out. The file appears whole or not at all,
    /// and takes the place of one of that name. Returns the number of rows.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_jsonl(&self, path: impl AsRef<Path>) -> Result<usize> {
        jsonl(self, path.as_ref())
    }

    /// Writes the rows as Parquet, all columns. The file appears whole or not at all, and takes the
    /// place of one of that name. Returns the number of rows.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_parquet(&self, path: impl AsRef<Path>) -> Result<usize> {
        parquet_file(self, path.as_ref())
    }

    /// Writes the rows in the chat format that OpenAI takes for fine-tuning, checked against the
    /// published rules ([`validate_openai_chat`](crate::validate_openai_chat)). A column `system`
    /// becomes the system message; other columns are left out. The file appears whole or not at all,
    /// and takes the place of one of that name. Returns the number of rows.
    ///
    /// # Errors
    /// The provider would refuse the file (fewer than ten rows, an empty text), or it cannot be
    /// written.
    pub fn write_openai_chat(&self, path: impl AsRef<Path>) -> Result<usize> {
        openai_chat(self, path.as_ref())
    }
}

fn jsonl(dataset: &Dataset, path: &Path) -> Result<usize> {
    whole(path, |file| lines(dataset.frame_ref(), file))?;
    Ok(dataset.len())
}

/// One JSON object a line, nulls left out.
pub(crate) fn lines(frame: &DataFrame, file: &mut dyn Write) -> std::io::Result<()> {
    for start in (0..frame.height()).step_by(CHUNK_ROWS) {
        let end = frame.height().min(start + CHUNK_ROWS);
        let starts: Vec<usize> = (start..end).step_by(THREAD_ROWS).collect();
        let texts: Vec<Vec<u8>> = starts
            .into_par_iter()
            .map(|start| {
                let mut text = Vec::with_capacity(THREAD_ROWS * 256);
                for row in start..end.min(start + THREAD_ROWS) {
                    object(frame, row, &mut text)?;
                    text.push(b'\n');
                }
                Ok(text)
            })
            .collect::<std::io::Result<_>>()?;
        for text in texts {
            file.write_all(&text)?;
        }
    }
    Ok(())
}

/// One row as a JSON object.
fn object(frame: &DataFrame, row: usize, text: &mut Vec<u8>) -> std::io::Result<()> {
    text.push(b'{');
    let mut first = true;
    for column in frame.columns() {
        let value = match column.get(row) {
            Ok(AnyValue::Null) | Err(_) => continue,
            Ok(value) => value,
        };
        if !std::mem::take(&mut first) {
            text.push(b',');
        }
        serde_json::to_writer(&mut *text, column.name().as_str())?;
        text.push(b':');
        match value {
            AnyValue::String(value) => serde_json::to_writer(&mut *text, value)?,
            value => serde_json::to_writer(&mut *text, &parquet::json(&value))?,
        }
    }
    text.push(b'}');
    Ok(())
}

fn parquet_file(dataset: &Dataset, path: &Path) -> Result<usize> {
    let mut frame = dataset.frame();
    whole(path, |file| {
        ParquetWriter::new(file).finish(&mut frame).map(drop).map_err(std::io::Error::other)
    })?;
    Ok(dataset.len())
}

fn openai_chat(dataset: &Dataset, path: &Path) -> Result<usize> {
    let mut text = Vec::new();
    for conversation in dataset.conversations() {
        let turns = match conversation {
            TrainingText::Conversation(turns) => turns,
            // Refused below, as the provider does.
            TrainingText::Text(text) => {
                vec![Turn::new(Role::User, ""), Turn::new(Role::Assistant, text)]
            }
        };
        let messages = turns.into_iter().map(|turn| {
            let mut message = json!({"role": turn.role, "content": turn.content});
            // Only the assistant's messages may have a weight.
            if let (Role::Assistant, Some(train)) = (turn.role, turn.train) {
                message["weight"] = u8::from(train).into();
            }
            message
        });
        let messages: Vec<Value> = messages.collect();
        let example = Map::from_iter([("messages".to_owned(), Value::Array(messages))]);
        // Writing to memory cannot fail.
        let _ = serde_json::to_writer(&mut text, &example);
        text.push(b'\n');
    }
    let problems = openai::problems(&text);
    if let Some(first) = problems.first() {
        return Err(DataError::OpenAi {
            path: path.to_owned(),
            count: problems.len(),
            line: first.line,
            problem: first.problem.clone(),
        });
    }
    whole(path, |file| file.write_all(&text))?;
    Ok(dataset.len())
}

/// Writes a file that appears whole or not at all.
pub(crate) fn whole(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let io = |source| DataError::Io { action: "write", path: path.to_owned(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let written = (|| {
        let mut file = BufWriter::with_capacity(1 << 20, WholeFile::create(path)?);
        write(&mut file)?;
        file.into_inner().map_err(|error| error.into_error())?.put()?;
        sync_folder(folder_of(path))
    })();
    written.map_err(io)
}
