//! Precision and recall of the search for near-duplicates, against the true similarity, over
//! planted edits.

use std::collections::HashSet;
use std::fmt::Write;

use tunebook_data::{Cleaning, Dataset, Shingles, Survivor};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Numbers that are the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 += 1;
        (xxh3_64_with_seed(&self.0.to_le_bytes(), 11) % n as u64) as usize
    }

    /// A word of two to four syllables; the first ones of the list are the commonest, as in a
    /// language.
    fn word(&mut self) -> String {
        let rank = self.below(60) * self.below(60);
        let mut of = Random(rank as u64 * 1000);
        (0..2 + rank % 3)
            .map(|_| {
                ["ba", "ten", "li", "sor", "ma", "kun", "pe", "dri", "o", "vash"][of.below(10)]
            })
            .collect()
    }
}

/// The shingles by their definition, as texts.
fn shingles(text: &str, by: Shingles) -> HashSet<String> {
    match by {
        Shingles::Words(n) => {
            let words: Vec<&str> = text.split(' ').collect();
            words.windows(n).map(|run| run.join(" ")).collect()
        }
        Shingles::Chars(n) => {
            let chars: Vec<char> = text.chars().collect();
            chars.windows(n).map(|run| run.iter().collect()).collect()
        }
        other => unreachable!("not measured: {other:?}"),
    }
}

fn jaccard(a: &str, b: &str, by: Shingles) -> f64 {
    let (a, b) = (shingles(a, by), shingles(b, by));
    a.intersection(&b).count() as f64 / a.union(&b).count() as f64
}

/// A text and the same with this share of its words replaced, left out or doubled.
fn planted(random: &mut Random, words: usize, percent: usize) -> (String, String) {
    let original: Vec<String> = (0..words).map(|_| random.word()).collect();
    let mut edited = original.clone();
    for _ in 0..(words * percent + 50) / 100 {
        let at = random.below(edited.len());
        match random.below(4) {
            0 => drop(edited.remove(at)),
            1 => edited.insert(at, random.word()),
            _ => edited[at] = random.word(),
        }
    }
    (original.join(" "), edited.join(" "))
}

#[derive(Default)]
struct Counts {
    pairs: usize,
    similarity: f64,
    alike: usize,
    found: usize,
    both: usize,
}

impl Counts {
    fn recall(&self) -> f64 {
        self.both as f64 / self.alike.max(1) as f64
    }

    fn precision(&self) -> f64 {
        self.both as f64 / self.found.max(1) as f64
    }
}

const EDITS: [usize; 9] = [0, 5, 10, 15, 20, 25, 30, 35, 40];
const PAIRS: usize = 250;

/// One row for each share of edits; a pair counts as found when the later text is dropped, and as
/// alike when the true similarity is at least the threshold.
fn curve(words: usize, by: Shingles, threshold: f64) -> (String, Counts) {
    let mut random = Random(words as u64);
    let mut texts: Vec<(String, String)> = Vec::new();
    for percent in EDITS {
        texts.extend((0..PAIRS).map(|_| planted(&mut random, words, percent)));
    }
    let rows: Vec<(&str, &str)> = texts
        .iter()
        .flat_map(|(original, edited)| [("", original.as_str()), ("", edited.as_str())])
        .collect();
    let cleaning = Cleaning::default().drop_near_duplicates_by(by, threshold, Survivor::First);
    let clean = Dataset::from_rows(&rows).clean(&cleaning).unwrap();
    let dropped: HashSet<i64> =
        clean.dropped().column("row").unwrap().i64().unwrap().into_no_null_iter().collect();
    // An original has nothing before it that it could be like.
    assert!(dropped.iter().all(|row| row % 2 == 1), "an original was taken for a copy");

    let mut table = String::from("edits  similarity  alike  found  recall  precision\n");
    let mut all = Counts::default();
    for (step, percent) in EDITS.iter().enumerate() {
        let mut counts = Counts::default();
        for (at, (original, edited)) in texts.iter().enumerate().skip(step * PAIRS).take(PAIRS) {
            let similarity = jaccard(original, edited, by);
            let (alike, found) = (similarity >= threshold, dropped.contains(&(2 * at as i64 + 1)));
            counts.pairs += 1;
            counts.similarity += similarity;
            counts.alike += usize::from(alike);
            counts.found += usize::from(found);
            counts.both += usize::from(alike && found);
        }
        let share = |value: f64, of: usize| {
            if of == 0 { "    -".to_owned() } else { format!("{value:.3}") }
        };
        writeln!(
            table,
            "{percent:>3} %  {:>10.3}  {:>5}  {:>5}  {:>6}  {:>9}  {}",
            counts.similarity / counts.pairs as f64,
            counts.alike,
            counts.found,
            share(counts.recall(), counts.alike),
            share(counts.precision(), counts.found),
            "█".repeat(counts.found * 25 / PAIRS)
        )
        .unwrap();
        all.pairs += counts.pairs;
        all.alike += counts.alike;
        all.found += counts.found;
        all.both += counts.both;
    }
    write!(
        table,
        "all    recall {:.3} of {} pairs, precision {:.3}",
        all.recall(),
        all.alike,
        all.precision()
    )
    .unwrap();
    (table, all)
}

/// text-dedup publishes a precision of 0.96 and a recall of 0.94.
#[test]
fn pairs_above_the_threshold_are_found_and_no_others() {
    let mut curves = String::new();
    for (what, words, by, threshold) in [
        ("questions of 12 words, 5 characters, 0.72", 12, Shingles::Chars(5), 0.72),
        ("answers of 40 words, 5 characters, 0.72", 40, Shingles::Chars(5), 0.72),
        ("documents of 200 words, 5 characters, 0.72", 200, Shingles::Chars(5), 0.72),
        ("documents of 200 words, 5 words, 0.72", 200, Shingles::Words(5), 0.72),
        ("documents of 200 words, 5 words, 0.5", 200, Shingles::Words(5), 0.5),
        ("answers of 40 words, 5 characters, 0.9", 40, Shingles::Chars(5), 0.9),
    ] {
        let (table, counts) = curve(words, by, threshold);
        assert!(counts.alike > 200, "{what}: too few pairs are alike to judge by\n{table}");
        assert!(counts.alike < counts.pairs, "{what}: all pairs are alike\n{table}");
        assert!(counts.precision() >= 0.96 && counts.recall() >= 0.94, "{what}\n{table}");
        writeln!(curves, "{what}\n{table}\n").unwrap();
    }
    insta::assert_snapshot!(curves);
}
