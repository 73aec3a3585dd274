//! Shingles: the runs of neighbouring characters or words that two texts are compared by.

use serde::{Deserialize, Serialize};

use crate::key;

/// The shingles by which texts are compared: overlapping runs of characters or words, case,
/// punctuation and spaces aside.
///
/// Characters suit prompts and answers: one changed word in a sentence of ten leaves most runs of 5
/// characters as they were, and no run of 5 words. Words suit documents of a hundred words and
/// more, and are what datatrove and text-dedup count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Shingles {
    /// Runs of this many characters, the blank between words included.
    Chars(usize),
    /// Runs of this many words.
    Words(usize),
}

impl Default for Shingles {
    fn default() -> Self {
        Self::Chars(5)
    }
}

/// The longest run.
const MAX_UNITS: usize = 64;

/// Odd numbers without a pattern (digits of pi and e): multipliers of the hashes.
const BASE: u64 = 0x243f_6a88_85a3_08d3;
const UNIT: u64 = 0xb7e1_5162_8aed_2a6b;
const LAST: u64 = 0x9e37_79b9_7f4a_7c15;

impl Shingles {
    /// Characters or words of a run.
    pub(crate) fn units(self) -> usize {
        match self {
            Self::Chars(units) | Self::Words(units) => units,
        }
    }

    /// The error message for a size out of range.
    pub(crate) fn problem(self) -> Option<String> {
        let units = self.units();
        (!(1..=MAX_UNITS).contains(&units)).then(|| {
            format!("expected shingles of 1 to {MAX_UNITS} characters or words, found {units}")
        })
    }

    /// Puts the hashes of a text's shingles into `hashes`, in their order, repeated ones included.
    /// A text shorter than a shingle is one itself; one of nothing but blanks has none.
    pub(crate) fn hashes(self, text: &str, hashes: &mut Vec<u64>) {
        hashes.clear();
        match self {
            Self::Chars(units) => {
                let mut run = Run::new(units, hashes);
                key::each_char(text, |c| run.push(mixed(u64::from(c) + 1)));
                run.finish();
            }
            Self::Words(units) => {
                let mut run = Run::new(units, hashes);
                let mut word = 0u64;
                key::each_char(text, |c| match c {
                    ' ' => run.push(mixed(std::mem::take(&mut word))),
                    c => word = (word ^ u64::from(c)).wrapping_mul(UNIT).rotate_left(29),
                });
                if word != 0 {
                    run.push(mixed(word));
                }
                run.finish();
            }
        }
    }

    /// The sorted set of a text's shingles.
    pub(crate) fn set(self, text: &str, hashes: &mut Vec<u64>) -> Vec<u32> {
        self.hashes(text, hashes);
        let mut set: Vec<u32> = hashes.iter().map(|&hash| hash as u32).collect();
        set.sort_unstable();
        set.dedup();
        set
    }
}

fn mixed(unit: u64) -> u64 {
    let unit = unit.wrapping_mul(LAST);
    (unit ^ (unit >> 32)).wrapping_mul(UNIT)
}

/// The polynomial hash of the last `units` units, rolled on from unit to unit (Karp and Rabin
/// 1987).
struct Run<'h> {
    hashes: &'h mut Vec<u64>,
    /// The last units, the oldest at `at`.
    ring: [u64; MAX_UNITS],
    units: usize,
    at: usize,
    seen: usize,
    hash: u64,
    /// The weight that the oldest unit has once another one has come.
    leaving: u64,
}

impl<'h> Run<'h> {
    fn new(units: usize, hashes: &'h mut Vec<u64>) -> Self {
        let units = units.clamp(1, MAX_UNITS);
        let leaving = (0..units).fold(1u64, |weight, _| weight.wrapping_mul(BASE));
        Self { hashes, ring: [0; MAX_UNITS], units, at: 0, seen: 0, hash: 0, leaving }
    }

    #[inline]
    fn push(&mut self, unit: u64) {
        let oldest = std::mem::replace(&mut self.ring[self.at], unit);
        self.at = if self.at + 1 == self.units { 0 } else { self.at + 1 };
        self.hash = self
            .hash
            .wrapping_mul(BASE)
            .wrapping_add(unit)
            .wrapping_sub(oldest.wrapping_mul(self.leaving));
        self.seen += 1;
        if self.seen >= self.units {
            self.hashes.push(mixed(self.hash));
        }
    }

    fn finish(self) {
        if self.hashes.is_empty() && self.seen > 0 {
            self.hashes.push(mixed(self.hash));
        }
    }
}

/// The Jaccard similarity of two sets: what they share over all they have, from 0 to 1. A value
/// below `least` may be too low.
pub(crate) fn jaccard(a: &[u32], b: &[u32], least: f64) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0);
    // So many may be missed from here on: s / (a + b - s) >= t means s >= t (a + b) / (1 + t).
    let needed = (least * (a.len() + b.len()) as f64 / (1.0 + least)).floor() as usize;
    while i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        shared += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
        if i & 31 == 0 && shared + (a.len() - i).min(b.len() - j) < needed {
            break;
        }
    }
    let all = a.len() + b.len() - shared;
    // Two texts without a word are the same.
    if all == 0 { 1.0 } else { shared as f64 / all as f64 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    /// The shingles as texts, by the definition.
    fn texts(shingles: Shingles, text: &str) -> HashSet<String> {
        let key = key::normalized(text);
        let (units, between): (Vec<String>, &str) = match shingles {
            Shingles::Chars(_) => (key.chars().map(String::from).collect(), ""),
            Shingles::Words(_) => {
                (key.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect(), " ")
            }
        };
        match units.len() {
            0 => HashSet::new(),
            n if n < shingles.units() => HashSet::from([units.join(between)]),
            _ => units.windows(shingles.units()).map(|run| run.join(between)).collect(),
        }
    }

    fn shingles() -> impl Strategy<Value = Shingles> {
        prop_oneof![(1usize..9).prop_map(Shingles::Chars), (1usize..6).prop_map(Shingles::Words)]
    }

    proptest! {
        /// Equal runs have equal hashes and different ones different hashes, wherever they stand.
        #[test]
        fn hashes_stand_for_the_runs(a in "[abÄß .!🙂\\n]{0,40}", b in "\\PC{0,30}", shingles in shingles()) {
            let mut buffer = Vec::new();
            let (x, y) = (shingles.set(&a, &mut buffer), shingles.set(&b, &mut buffer));
            let (s, t) = (texts(shingles, &a), texts(shingles, &b));
            prop_assert_eq!((x.len(), y.len()), (s.len(), t.len()));
            let all = s.union(&t).count();
            let truth = if all == 0 { 1.0 } else { s.intersection(&t).count() as f64 / all as f64 };
            prop_assert_eq!(jaccard(&x, &y, 0.0), truth);
        }

        /// The early end never takes a pair away that is alike enough.
        #[test]
        fn an_early_end_is_only_for_those_below(
            a in proptest::collection::btree_set(0u32..200, 0..150),
            b in proptest::collection::btree_set(0u32..200, 0..150),
            least in 0.0f64..1.0,
        ) {
            let (a, b): (Vec<u32>, Vec<u32>) = (a.into_iter().collect(), b.into_iter().collect());
            let (truth, told) = (jaccard(&a, &b, 0.0), jaccard(&a, &b, least));
            prop_assert!(told == truth || (told < truth && truth < least), "{} {} {}", told, truth, least);
        }
    }
}
