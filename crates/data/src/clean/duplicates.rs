//! Rows that say the same as an earlier one, case, spaces and the punctuation of prose aside.

use std::collections::HashMap;

use crate::clean::rows::{CleaningRows, Drops};
use crate::key::Identity;

/// All rows of the same words but the first.
pub(crate) fn drops(rows: &mut CleaningRows<'_>) -> Drops {
    rows.fill_keys();
    let mut first: HashMap<u128, usize, Identity> =
        HashMap::with_capacity_and_hasher(rows.keys.len(), Identity);
    let mut drops = Vec::new();
    for (row, key) in rows.keys.iter().enumerate() {
        let (Some((key, _)), true) = (key, rows.alive[row]) else { continue };
        let kept = *first.entry(*key).or_insert(row);
        if kept != row {
            let same = rows.prompts[kept] == rows.prompts[row]
                && rows.completions[kept] == rows.completions[row];
            let how = if same { "the same as" } else { "the same words as" };
            drops.push((row, format!("{how} row {kept}")));
        }
    }
    drops
}
