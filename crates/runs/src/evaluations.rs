//! Evaluations: scores by what answered. They belong to an adapter by the fingerprint of its answers,
//! not by a name that somebody gives.

use std::path::Path;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tunebook_evaluate::{Evaluation, Score};

use crate::data::without_place;
use crate::disk;
use crate::error::Result;

/// The folder of all evaluations.
pub(crate) const FOLDER: &str = "evaluations";

/// An evaluation without its rows, whose texts stay where they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Its id: a hash of the rest, but for the time.
    #[serde(default)]
    pub id: String,
    /// The fingerprint of what answered.
    pub fingerprint: String,
    /// The model's name.
    pub model: String,
    /// What answered, by the name that it had then.
    pub active: String,
    /// All settings that the scores depend on.
    pub settings: BTreeMap<String, String>,
    /// The scores over all rows.
    pub scores: Vec<Score>,
    /// How many rows were judged.
    pub rows: usize,
    /// How many there were to judge.
    pub planned_rows: usize,
    /// When it was added, in seconds of Unix time.
    #[serde(default)]
    pub at: f64,
}

impl EvaluationRecord {
    fn of(evaluation: &Evaluation) -> Result<Self> {
        let mut record = Self {
            id: String::new(),
            fingerprint: evaluation.fingerprint.clone(),
            model: without_place(&evaluation.model).to_owned(),
            active: evaluation.active.clone(),
            settings: evaluation.settings.clone(),
            scores: evaluation.scores.clone(),
            rows: evaluation.rows.len(),
            planned_rows: evaluation.planned_rows,
            at: 0.0,
        };
        record.id = disk::sha256(&serde_json::to_vec(&record)?)[..16].to_owned();
        record.at = disk::now();
        Ok(record)
    }

    /// With the length of its file; `None` if that is no evaluation.
    pub(crate) fn read(root: &Path, id: &str) -> Result<Option<(Self, u64)>> {
        let bytes = disk::read(&root.join(FOLDER).join(format!("{id}.json")))?.unwrap_or_default();
        let length = bytes.len() as u64;
        Ok(serde_json::from_slice(&bytes).ok().map(|record| (record, length)))
    }

    /// The scores in one line: `exact_match 0.9100 [0.8800, 0.9300] n=300`.
    pub fn scores_text(&self) -> String {
        self.scores.iter().map(Score::to_string).collect::<Vec<_>>().join("; ")
    }
}

/// Writes an evaluation down, unless it is there. Gives its id.
pub(crate) fn add(root: &Path, evaluation: &Evaluation) -> Result<String> {
    let record = EvaluationRecord::of(evaluation)?;
    let folder = root.join(FOLDER);
    disk::create_dir(&folder)?;
    let path = folder.join(format!("{}.json", record.id));
    if !path.exists() {
        disk::write_whole(&path, &serde_json::to_vec_pretty(&record)?)?;
    }
    Ok(record.id)
}
