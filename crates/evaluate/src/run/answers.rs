//! Answers and scores on disk, appended row by row.
//!
//! A file belongs to one model as it answers (its weights, adapter, tokenizer and template, by
//! content) and has a line for each row and each thing that was asked of it, under a key of what it
//! was asked with. A line that a killed process left unfinished is cut off.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tunebook_models::{ChoiceScore, FinishReason, TextLoss};

use crate::{Error, Result};

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerEnd {
    /// The model ended it.
    Stop,
    /// It has the most tokens that were allowed; it may go on.
    Length,
    /// Prompt and answer fill the context; it may go on.
    Context,
    /// It was chosen from given answers.
    Chosen,
}

impl AnswerEnd {
    pub(crate) fn of(reason: &FinishReason) -> Option<Self> {
        match reason {
            FinishReason::Stop => Some(Self::Stop),
            FinishReason::Length => Some(Self::Length),
            FinishReason::Context => Some(Self::Context),
            FinishReason::Interrupted | FinishReason::Misformed(_) | FinishReason::Failed(_) => {
                None
            }
        }
    }
}

/// What is known of one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Line {
    /// A generated answer.
    Answer { key: String, text: String, end: AnswerEnd, prompt_tokens: usize, tokens: usize },
    /// The loss of the reference.
    Loss { key: String, sum: f64, tokens: usize, correct: usize },
    /// Log-likelihoods of the answers to choose from; those that are not exact are at most that.
    Choices { key: String, sums: Vec<f64>, exact: Vec<bool> },
}

impl Line {
    pub(crate) fn loss(key: String, loss: &TextLoss) -> Self {
        let TextLoss { sum, tokens, correct } = *loss;
        Self::Loss { key, sum, tokens, correct }
    }

    pub(crate) fn choices(key: String, scores: &[ChoiceScore]) -> Self {
        Self::Choices {
            key,
            sums: scores.iter().map(|score| score.log_likelihood).collect(),
            exact: scores.iter().map(|score| score.is_exact).collect(),
        }
    }

    fn key(&self) -> (u8, &str) {
        match self {
            Self::Answer { key, .. } => (0, key),
            Self::Loss { key, .. } => (1, key),
            Self::Choices { key, .. } => (2, key),
        }
    }
}

/// The lines of one model.
pub(crate) struct Answers {
    known: HashMap<(u8, String), Line>,
    file: Option<(PathBuf, File)>,
}

impl Answers {
    /// The lines of the model with this fingerprint; in memory only without a folder.
    ///
    /// # Errors
    /// The file cannot be read or written, or another process writes it.
    pub(crate) fn open(folder: Option<&Path>, fingerprint: &str) -> Result<Self> {
        let Some(folder) = folder else {
            return Ok(Self { known: HashMap::new(), file: None });
        };
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join(format!("{fingerprint}.jsonl"));
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        if file.try_lock().is_err() {
            return Err(Error::InUse { path });
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(Error::io("read", &path))?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            file.set_len(whole as u64).map_err(Error::io("write", &path))?;
            file.seek(SeekFrom::End(0)).map_err(Error::io("write", &path))?;
        }
        let mut known = HashMap::new();
        for (number, line) in text[..whole].split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let line: Line = serde_json::from_slice(line).map_err(|error| Error::Answers {
                path: path.clone(),
                line: number + 1,
                problem: error.to_string(),
            })?;
            let (kind, key) = line.key();
            known.insert((kind, key.to_owned()), line);
        }
        Ok(Self { known, file: Some((path, file)) })
    }

    pub(crate) fn answer(&self, key: &str) -> Option<&Line> {
        self.known.get(&(0, key.to_owned()))
    }

    pub(crate) fn loss(&self, key: &str) -> Option<&Line> {
        self.known.get(&(1, key.to_owned()))
    }

    pub(crate) fn choices(&self, key: &str) -> Option<&Line> {
        self.known.get(&(2, key.to_owned()))
    }

    /// Adds lines, on disk by one write.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn append(&mut self, mut lines: Vec<Line>) -> Result<()> {
        if let Some((path, file)) = &mut self.file
            && !lines.is_empty()
        {
            let mut text = Vec::new();
            for line in &mut lines {
                let begins = text.len();
                serde_json::to_writer(&mut text, line).map_err(Error::json)?;
                // As it will be read, to the last bit.
                *line = serde_json::from_slice(&text[begins..]).map_err(Error::json)?;
                text.push(b'\n');
            }
            file.write_all(&text).map_err(Error::io("write", path))?;
            file.sync_data().map_err(Error::io("write", path))?;
        }
        for line in lines {
            let (kind, key) = line.key();
            let key = (kind, key.to_owned());
            self.known.insert(key, line);
        }
        Ok(())
    }
}
