//! Prompts that stand with different completions.

use std::collections::HashMap;

use polars::prelude::*;

use crate::clean::rows::{CleaningRows, Drops};
use crate::clean::step::Survivor;
use crate::columns::{COMPLETION, PROMPT};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::key;

impl Dataset {
    /// Prompts (case, spaces and the punctuation of prose aside) that stand with different completions: columns
    /// `group` (numbered), `row`, `prompt` and `completion`, the rows of a group together.
    ///
    /// [`Cleaning::resolve_conflicts`](crate::Cleaning::resolve_conflicts) keeps one of each.
    ///
    /// # Errors
    /// Polars refuses the frame.
    pub fn conflicts(&self) -> Result<DataFrame> {
        let mut groups: Vec<(Vec<usize>, Vec<u128>)> = Vec::new();
        let mut places: HashMap<u128, usize> = HashMap::new();
        for (row, (prompt, completion)) in
            self.pairs().enumerate().filter(|(_, pair)| !pair.0.is_empty())
        {
            let at =
                *places.entry(key::text_hash(&key::normalized(prompt))).or_insert(groups.len());
            if at == groups.len() {
                groups.push((Vec::new(), Vec::new()));
            }
            groups[at].0.push(row);
            groups[at].1.push(key::text_hash(&key::normalized(completion)));
        }
        groups.retain(|(_, answers)| answers.iter().any(|answer| *answer != answers[0]));
        let rows: Vec<IdxSize> =
            groups.iter().flat_map(|group| group.0.iter().map(|&row| row as IdxSize)).collect();
        let numbers: Vec<i64> = groups
            .iter()
            .enumerate()
            .flat_map(|(at, group)| vec![at as i64; group.0.len()])
            .collect();
        let taken = self
            .frame()
            .select([PROMPT, COMPLETION])?
            .take(&IdxCa::from_slice("row".into(), &rows))?;
        let mut columns = vec![
            Column::new("group".into(), numbers),
            Column::new("row".into(), rows.iter().map(|&row| i64::from(row)).collect::<Vec<_>>()),
        ];
        columns.extend(taken.columns().iter().cloned());
        Ok(DataFrame::new(rows.len(), columns)?)
    }
}

/// Of each prompt with different completions all rows but the one that `keep` names.
pub(crate) fn drops(rows: &mut CleaningRows<'_>, keep: Survivor) -> Drops {
    rows.fill_keys();
    let mut groups: HashMap<u128, Vec<usize>, key::Identity> = HashMap::default();
    for (row, key) in rows.keys.iter().enumerate() {
        // Texts without a prompt answer nothing.
        if let (Some((_, prompt)), true, false) =
            (key, rows.alive[row], rows.prompts[row].is_empty())
        {
            groups.entry(*prompt).or_default().push(row);
        }
    }
    let mut drops = Vec::new();
    for group in groups.values() {
        let pair = |row: usize| rows.keys[row].map(|key| key.0);
        if group.iter().all(|&row| pair(row) == pair(group[0])) {
            continue;
        }
        let kept = keep.of(group, |row| rows.completions[row].chars().count());
        for &row in group.iter().filter(|&&row| Some(row) != kept) {
            let why = match kept {
                Some(kept) if pair(kept) == pair(row) => {
                    format!("the same words as row {kept}")
                }
                Some(kept) => {
                    format!("row {kept}, {}, answers the same prompt otherwise", keep.word())
                }
                None => format!("{} rows answer this prompt in different ways", group.len()),
            };
            drops.push((row, why));
        }
    }
    drops.sort_unstable();
    drops
}
