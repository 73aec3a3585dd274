//! Rows that say nearly the same as another one.

use std::borrow::Cow;
use std::collections::HashMap;

use rayon::prelude::*;

use crate::clean::rows::{CleaningRows, Drops};
use crate::clean::step::Survivor;
use crate::error::Result;
use crate::near::{self, Likeness};

/// Of each group of similar rows all but the one that `keep` names, and whether every candidate
/// pair was compared: then no two of the rows that stay are alike.
pub(crate) fn drops(
    rows: &CleaningRows<'_>,
    likeness: Likeness,
    keep: Survivor,
) -> Result<(Drops, bool)> {
    let staying: Vec<usize> = rows.staying().collect();
    let texts: Vec<Cow<str>> = staying
        .par_iter()
        .with_min_len(1024)
        .map(|&row| match &*rows.prompts[row] {
            "" => Cow::Borrowed(&*rows.completions[row]),
            prompt => Cow::Owned(format!("{prompt}\n{}", rows.completions[row])),
        })
        .collect();
    let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
    let clusters = near::clusters(&texts, likeness)?;
    // The members of each cluster, in the order of the set.
    let mut members: Vec<Vec<usize>> = Vec::new();
    let mut places: HashMap<usize, usize> = HashMap::new();
    for (text, &of) in clusters.of.iter().enumerate().filter(|(text, of)| *text != **of) {
        let at = *places.entry(of).or_insert(members.len());
        if at == members.len() {
            members.push(vec![of]);
        }
        members[at].push(text);
    }
    let reason = |group: &[usize], kept: Option<usize>, text: usize| {
        let Some(kept) = kept else {
            return format!("{} rows say nearly the same", group.len());
        };
        let similarity = clusters
            .known
            .get(&(kept.min(text) as u32, kept.max(text) as u32))
            .copied()
            .unwrap_or_else(|| near::similarity(texts[kept], texts[text], likeness.shingles));
        let which = match keep {
            Survivor::First => String::new(),
            _ => format!(", {}", keep.word()),
        };
        match similarity >= likeness.threshold {
            true => format!("{:.0} % like row {}{which}", 100.0 * similarity, staying[kept]),
            // Like a row in between, which is like the one that stays.
            false => {
                format!(
                    "in the group of row {}{which}, {:.0} % like it",
                    staying[kept],
                    100.0 * similarity
                )
            }
        }
    };
    let (staying, reason) = (&staying, &reason);
    let mut drops: Vec<(usize, String)> = members
        .par_iter()
        .flat_map_iter(|group| {
            let kept = keep.of(group, |text| rows.completions[staying[text]].chars().count());
            let going = group.iter().copied().filter(move |&text| Some(text) != kept);
            going.map(move |text| (staying[text], reason(group, kept, text)))
        })
        .collect();
    drops.par_sort_unstable();
    Ok((drops, clusters.complete))
}
