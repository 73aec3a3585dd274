//! Boilerplate: greetings and signatures that stand at the beginning or end of many texts, word for
//! word.

use std::borrow::Cow;
use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

/// Fewer rows cannot tell a habit from chance.
const MIN_ROWS: usize = 20;
/// A line must stand in this many rows at least, whatever the share.
const MIN_COUNT: usize = 5;

/// Takes first and last lines that at least `min_share` of the texts have away, where something
/// else remains. Returns the changed rows with their texts before.
pub(crate) fn strip(
    texts: &mut [Cow<'_, str>],
    alive: &[bool],
    min_share: f64,
) -> Vec<(usize, String)> {
    let rows = alive.iter().filter(|alive| **alive).count();
    if rows < MIN_ROWS {
        return Vec::new();
    }
    let least = ((rows as f64 * min_share).ceil() as usize).max(MIN_COUNT);
    let mut changed: HashMap<usize, String> = HashMap::new();
    loop {
        let mut counts: HashMap<u64, usize> = HashMap::new();
        for (text, _) in texts.iter().zip(alive).filter(|(_, alive)| **alive) {
            let (first, last) = ends(text);
            *counts.entry(hash(first)).or_default() += 1;
            if last != first {
                *counts.entry(hash(last)).or_default() += 1;
            }
        }
        let common = |line: &str| counts.get(&hash(line)).is_some_and(|&count| count >= least);
        let mut again = false;
        for (row, text) in texts.iter_mut().enumerate().filter(|(row, _)| alive[*row]) {
            let Some(shorter) = without_ends(text, &common) else { continue };
            changed.entry(row).or_insert_with(|| text.to_string());
            *text = Cow::Owned(shorter);
            again = true;
        }
        if !again {
            break;
        }
    }
    let mut changed: Vec<(usize, String)> = changed.into_iter().collect();
    changed.sort_unstable();
    changed
}

fn hash(line: &str) -> u64 {
    xxh3_64(line.as_bytes())
}

/// The first and the last line that are not blank.
fn ends(text: &str) -> (&str, &str) {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    (first, lines.next_back().unwrap_or(first))
}

/// The text without common lines at its ends; `None` when there is none, or nothing would remain.
fn without_ends(text: &str, common: &dyn Fn(&str) -> bool) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let filled: Vec<usize> = (0..lines.len()).filter(|&at| !lines[at].trim().is_empty()).collect();
    let leading = filled.iter().take_while(|&&at| common(lines[at].trim())).count();
    let trailing = filled.iter().rev().take_while(|&&at| common(lines[at].trim())).count();
    if leading + trailing == 0 || leading + trailing >= filled.len() {
        return None;
    }
    let (from, to) = (filled[leading], filled[filled.len() - 1 - trailing]);
    Some(lines[from..=to].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_go_and_answers_stay() {
        let mut texts: Vec<Cow<str>> = (0..30)
            .map(|i| {
                Cow::Owned(format!(
                    "Hello!\n\nAnswer {i}.\nMore of {i}.\n\nKind regards\nYour desk"
                ))
            })
            .chain([Cow::Borrowed("Hello!"), Cow::Borrowed("Kind regards"), Cow::Borrowed("Alone")])
            .collect();
        let alive = vec![true; texts.len()];
        let changed = strip(&mut texts, &alive, 0.3);
        assert_eq!(changed.len(), 30);
        assert_eq!(texts[7], "Answer 7.\nMore of 7.");
        assert_eq!(texts[30], "Hello!", "nothing else would remain");
        assert!(strip(&mut texts, &alive, 0.3).is_empty());
    }

    #[test]
    fn a_small_set_is_left_alone() {
        let mut texts: Vec<Cow<str>> = vec![Cow::Borrowed("Hi\na"); 10];
        assert!(strip(&mut texts, &[true; 10], 0.1).is_empty());
    }
}
