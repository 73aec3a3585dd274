//! The edits of TER: a greedy search for shifts around a beamed edit distance, as Tercom does it
//! and sacreBLEU after it. Its limits and its order of preference decide the number, so they are
//! kept.

use std::cmp::Reverse;
use std::collections::HashMap;

/// The longest shift, in words.
const MAX_SHIFT_WORDS: usize = 10;
/// The largest distance between the places of a shift, in words.
const MAX_SHIFT_DISTANCE: usize = 50;
/// The number of shifts that are tried for a pair of texts.
const MAX_CANDIDATES: usize = 1000;
/// How far from the diagonal the edit distance looks, in words.
const BEAM_WORDS: usize = 25;

/// More than any number of edits.
const UNREACHED: u32 = u32::MAX / 2;

/// The number of edits, shifts included, that make the answer the reference.
pub(super) fn edits(answer: &[String], reference: &[String]) -> usize {
    if reference.is_empty() {
        return answer.len();
    }
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut numbered = |word| {
        let next = numbers.len() as u32;
        *numbers.entry(word).or_insert(next)
    };
    let mut answer: Vec<u32> = answer.iter().map(|word| numbered(word.as_str())).collect();
    let reference: Vec<u32> = reference.iter().map(|word| numbered(word.as_str())).collect();

    let mut shifts = 0;
    let mut tried = 0;
    loop {
        let table = Table::new(&answer, &reference);
        let better = best_shift(&table, &mut tried);
        match better {
            Some(shifted) if tried < MAX_CANDIDATES => answer = shifted,
            _ => return shifts + table.distance() as usize,
        }
        shifts += 1;
    }
}

/// The last edit on the way to a cell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Edit {
    Keep,
    Substitute,
    /// A word of the answer goes.
    Delete,
    /// A word of the reference comes.
    Insert,
}

/// The fewest edits up to a place in the answer and one in the reference, and the last of them.
type Cell = (u32, Edit);

/// The edit distances of all starts of an answer and of a reference.
struct Table<'t> {
    answer: &'t [u32],
    reference: &'t [u32],
    /// One row for each start of the answer, a cell for each start of the reference.
    rows: Vec<Vec<Cell>>,
}

impl<'t> Table<'t> {
    fn new(answer: &'t [u32], reference: &'t [u32]) -> Self {
        let first = (0..=reference.len() as u32).map(|inserted| (inserted, Edit::Insert));
        let mut rows = vec![first.collect::<Vec<_>>()];
        for (i, &word) in answer.iter().enumerate() {
            let mut row = Vec::new();
            next_row(&rows[i], &mut row, i + 1, answer.len(), word, reference);
            rows.push(row);
        }
        Self { answer, reference, rows }
    }

    fn distance(&self) -> u32 {
        self.rows.last().and_then(|row| row.last()).map_or(0, |cell| cell.0)
    }

    /// The distance of another order of the same words, whose rows equal these while its words do.
    fn distance_of(&self, shifted: &[u32]) -> u32 {
        let same = self.answer.iter().zip(shifted).take_while(|(old, new)| old == new).count();
        let mut row = self.rows[same].clone();
        let mut next = Vec::new();
        for (i, &word) in shifted.iter().enumerate().skip(same) {
            next_row(&row, &mut next, i + 1, shifted.len(), word, self.reference);
            std::mem::swap(&mut row, &mut next);
        }
        row.last().map_or(0, |cell| cell.0)
    }

    /// The edits of the cheapest way, in order.
    fn edits(&self) -> Vec<Edit> {
        let (mut i, mut j) = (self.answer.len(), self.reference.len());
        let mut edits = Vec::with_capacity(i + j);
        while i > 0 || j > 0 {
            let edit = match self.rows[i][j].1 {
                Edit::Insert if j == 0 => Edit::Delete,
                edit => edit,
            };
            match edit {
                Edit::Keep | Edit::Substitute => (i, j) = (i - 1, j - 1),
                Edit::Delete => i -= 1,
                Edit::Insert => j -= 1,
            }
            edits.push(edit);
        }
        edits.reverse();
        edits
    }
}

/// The cells of a row near the diagonal; the others stay unreached.
fn next_row(
    above: &[Cell],
    row: &mut Vec<Cell>,
    i: usize,
    answer_words: usize,
    word: u32,
    reference: &[u32],
) {
    row.clear();
    row.resize(reference.len() + 1, (UNREACHED, Edit::Insert));
    let ratio = reference.len() as f64 / answer_words as f64;
    let beam = if (BEAM_WORDS as f64) < ratio / 2.0 {
        (ratio / 2.0 + BEAM_WORDS as f64).ceil() as usize
    } else {
        BEAM_WORDS
    };
    let diagonal = (i as f64 * ratio).floor() as usize;
    let end = if i == answer_words { row.len() } else { row.len().min(diagonal + beam) };
    for j in diagonal.saturating_sub(beam)..end {
        if j == 0 {
            row[0] = (above[0].0 + 1, Edit::Delete);
            continue;
        }
        let (cost, edit) =
            if word == reference[j - 1] { (0, Edit::Keep) } else { (1, Edit::Substitute) };
        // The first of the cheapest counts.
        for cell in [
            (above[j - 1].0 + cost, edit),
            (above[j].0 + 1, Edit::Delete),
            (row[j - 1].0 + 1, Edit::Insert),
        ] {
            if cell.0 < row[j].0 {
                row[j] = cell;
            }
        }
    }
}

/// The places of an answer and its reference beside each other.
struct Alignment {
    /// For each word of the reference, the number of words of the answer up to its place.
    places: Vec<usize>,
    reference_errors: Vec<bool>,
    answer_errors: Vec<bool>,
}

impl Alignment {
    fn new(edits: &[Edit]) -> Self {
        let mut alignment =
            Self { places: Vec::new(), reference_errors: Vec::new(), answer_errors: Vec::new() };
        for &edit in edits {
            let error = edit != Edit::Keep;
            if edit != Edit::Insert {
                alignment.answer_errors.push(error);
            }
            if edit != Edit::Delete {
                alignment.places.push(alignment.answer_errors.len());
                alignment.reference_errors.push(error);
            }
        }
        alignment
    }
}

/// The shift that lowers the edit distance the most; among equals the longest, the earliest, and
/// the one to the earliest place. `None` if none lowers it.
fn best_shift(table: &Table, tried: &mut usize) -> Option<Vec<u32>> {
    let (answer, reference) = (table.answer, table.reference);
    let alignment = Alignment::new(&table.edits());
    let distance = i64::from(table.distance());
    let mut best = None;
    'all: for start in 0..answer.len() {
        for place in 0..reference.len() {
            if start.abs_diff(place) > MAX_SHIFT_DISTANCE {
                continue;
            }
            let pairs = answer[start..].iter().zip(&reference[place..]).take(MAX_SHIFT_WORDS);
            let longest = pairs.take_while(|(answer, reference)| answer == reference).count();
            for length in 1..=longest {
                let wrong = |errors: &[bool], from: usize| {
                    errors[from..from + length].iter().any(|&error| error)
                };
                // The words right before the aligned place; one less is their index.
                let aligned = alignment.places[place];
                let within = start < aligned && aligned <= start + length;
                if !wrong(&alignment.answer_errors, start)
                    || !wrong(&alignment.reference_errors, place)
                    || within
                {
                    continue;
                }
                let mut previous = None;
                for offset in 0..=length {
                    // Before the first word, or after the place of the word before.
                    let target = match (place + offset).checked_sub(1) {
                        None => 0,
                        Some(before) => match alignment.places.get(before) {
                            Some(&target) => target,
                            None => break,
                        },
                    };
                    if previous == Some(target) {
                        continue;
                    }
                    previous = Some(target);
                    let shifted = shift(answer, start, length, target);
                    let gain = distance - i64::from(table.distance_of(&shifted));
                    let rank = (gain, length, Reverse(start), Reverse(target));
                    *tried += 1;
                    if best.as_ref().is_none_or(|(best, _)| rank > *best) {
                        best = Some((rank, shifted));
                    }
                }
                if *tried >= MAX_CANDIDATES {
                    break 'all;
                }
            }
        }
    }
    best.filter(|((gain, ..), _)| *gain > 0).map(|(_, shifted)| shifted)
}

/// The words with `length` of them moved from `start` to before `target`.
fn shift(words: &[u32], start: usize, length: usize, target: usize) -> Vec<u32> {
    let end = start + length;
    let (from, to) = if target < start {
        return [&words[..target], &words[start..end], &words[target..start], &words[end..]]
            .concat();
    } else if target > end {
        (end, target)
    } else {
        // A target within the moved words: as many of the words after them come before them.
        (end, (length + target).min(words.len()))
    };
    [&words[..start], &words[from..to], &words[start..end], &words[to..]].concat()
}
