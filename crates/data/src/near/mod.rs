//! Near-duplicates: MinHash sketches, locality-sensitive hashing to find candidates, and the true
//! Jaccard similarity to decide.
//!
//! The steps are those of datatrove and text-dedup (Broder 1997; Leskovec, Rajaraman and Ullman,
//! *Mining of Massive Datasets*, chapter 3), with two differences. Shingles are of 5 characters by
//! default, not of 5 words, because prompts are short ([`Shingles`]). And every candidate pair is
//! checked by its true similarity, so the bands can be narrow: 24 bands of 5 places miss fewer than
//! 1 in 100 pairs at a similarity of 0.72, where datatrove's 14 buckets of 8 miss a third, and no
//! pair is taken that is below the threshold.
//!
//! Only what may still change the result is checked: texts of the same words are one, candidates
//! whose sketches differ too much are passed over, and in [`clusters`] pairs that are in one
//! cluster already.

mod minhash;
pub(crate) mod shingles;

use std::collections::HashMap;

use rayon::prelude::*;
use tunebook_progress::interrupt;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::Result;
use crate::key;
use crate::near::minhash::{PLACES, Sketch};
use crate::near::shingles::{Shingles, jaccard};

/// In a larger bucket each text is compared with this many before it, not with all.
const MAX_BUCKET: usize = 64;
/// Candidates that are checked at a time: their sets of shingles are in memory together.
const BATCH: usize = 32 << 10;

/// The usual threshold: datatrove's setting finds half of the pairs at about this similarity.
pub(crate) const THRESHOLD: f64 = 0.72;

/// Two texts, by their index, and how similar they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SimilarPair {
    /// The earlier text.
    pub first: usize,
    /// The later text.
    pub second: usize,
    /// Jaccard similarity of their shingles.
    pub similarity: f64,
}

/// The criterion for near-duplicates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Likeness {
    /// The least similarity, above 0 and up to 1.
    pub threshold: f64,
    /// The shingles that are compared.
    pub shingles: Shingles,
}

impl Default for Likeness {
    fn default() -> Self {
        Self { threshold: THRESHOLD, shingles: Shingles::default() }
    }
}

/// The Jaccard similarity of two texts: shared shingles over all shingles, case, punctuation and
/// spaces aside.
pub(crate) fn similarity(a: &str, b: &str, shingles: Shingles) -> f64 {
    let mut buffer = Vec::new();
    jaccard(&shingles.set(a, &mut buffer), &shingles.set(b, &mut buffer), 0.0)
}

/// Pairs of texts that are nearly the same, in the order of the later text. `keep` says which pairs
/// are of interest.
pub(crate) fn pairs(
    texts: &[&str],
    likeness: Likeness,
    keep: &(dyn Fn(usize, usize) -> bool + Sync),
) -> Result<Vec<SimilarPair>> {
    let rows: Vec<u32> = (0..texts.len() as u32).collect();
    let (candidates, _) = Sketches::of(texts, &rows, likeness)?.candidates(keep)?;
    let mut found = Vec::new();
    for batch in candidates.chunks(BATCH) {
        found.extend(checked(texts, batch, likeness)?);
    }
    found.sort_unstable_by_key(|pair| (pair.second, pair.first));
    Ok(found)
}

/// The clusters of near-duplicates.
pub(crate) struct Clusters {
    /// For each text the index of the earliest one of its cluster.
    pub of: Vec<usize>,
    /// The similarities of the pairs (earlier, later) that were checked.
    pub known: HashMap<(u32, u32), f64>,
    /// Whether every candidate was checked: in a very large bucket some are not.
    pub complete: bool,
}

/// The clusters of texts that are nearly the same: two texts are in one if a chain of pairs above
/// the threshold leads from one to the other.
pub(crate) fn clusters(texts: &[&str], likeness: Likeness) -> Result<Clusters> {
    // Of texts of the same words the first stands for all.
    let words: Vec<u64> = texts
        .par_iter()
        .with_min_len(256)
        .map_init(String::new, |key, text| {
            key.clear();
            key::push_normalized(text, key);
            xxh3_64_with_seed(key.as_bytes(), 1)
        })
        .collect();
    let mut first: HashMap<u64, u32, key::Identity> =
        HashMap::with_capacity_and_hasher(texts.len(), key::Identity);
    let mut forest = Forest::new(texts.len());
    let mut rows: Vec<u32> = Vec::with_capacity(texts.len());
    for (row, words) in words.into_iter().enumerate() {
        let row = row as u32;
        match first.entry(words) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(row);
                rows.push(row);
            }
            std::collections::hash_map::Entry::Occupied(entry) => forest.join(*entry.get(), row),
        }
    }
    drop(first);
    let (mut candidates, complete) =
        Sketches::of(texts, &rows, likeness)?.candidates(&|_, _| true)?;
    // The likeliest first: most of the others are then in one cluster already.
    candidates.sort_unstable_by_key(|candidate| {
        (std::cmp::Reverse(candidate.agreeing), candidate.first, candidate.second)
    });
    let mut known = HashMap::new();
    let mut rest = candidates.as_slice();
    while !rest.is_empty() {
        let mut batch = Vec::with_capacity(BATCH.min(rest.len()));
        while let ([candidate, after @ ..], true) = (rest, batch.len() < BATCH) {
            if forest.root(candidate.first) != forest.root(candidate.second) {
                batch.push(*candidate);
            }
            rest = after;
        }
        for pair in checked(texts, &batch, likeness)? {
            forest.join(pair.first as u32, pair.second as u32);
            known.insert((pair.first as u32, pair.second as u32), pair.similarity);
        }
    }
    let of = (0..texts.len() as u32).map(|text| forest.root(text) as usize).collect();
    Ok(Clusters { of, known, complete })
}

/// For each text the index of the earliest text of its group; groups are closed under the pairs.
pub(crate) fn groups(texts: usize, pairs: &[SimilarPair]) -> Vec<usize> {
    let mut forest = Forest::new(texts);
    for pair in pairs {
        forest.join(pair.first as u32, pair.second as u32);
    }
    (0..texts as u32).map(|text| forest.root(text) as usize).collect()
}

/// Sets that grow together (union-find); the earliest member is the root.
struct Forest(Vec<u32>);

impl Forest {
    fn new(members: usize) -> Self {
        Self((0..members as u32).collect())
    }

    fn root(&mut self, mut at: u32) -> u32 {
        let parent = &mut self.0;
        while parent[at as usize] != at {
            parent[at as usize] = parent[parent[at as usize] as usize];
            at = parent[at as usize];
        }
        at
    }

    /// The earlier root stays the root, whatever the order of the pairs.
    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b) as usize] = a.min(b);
    }
}

/// Two texts that share a band.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    first: u32,
    second: u32,
    /// Places in which their sketches agree.
    agreeing: u8,
}

/// The similarity of each candidate; those below the threshold are left out.
fn checked(
    texts: &[&str],
    candidates: &[Candidate],
    likeness: Likeness,
) -> Result<Vec<SimilarPair>> {
    let mut rows: Vec<u32> = candidates.iter().flat_map(|pair| [pair.first, pair.second]).collect();
    rows.par_sort_unstable();
    rows.dedup();
    let sets: Vec<Vec<u32>> = rows
        .par_iter()
        .with_min_len(64)
        .map_init(Vec::new, |buffer, &row| {
            interrupt::check()?;
            Ok(likeness.shingles.set(texts[row as usize], buffer))
        })
        .collect::<Result<_>>()?;
    let set = |row: u32| rows.binary_search(&row).map_or(&[][..], |at| sets[at].as_slice());
    let pairs = candidates.par_iter().with_min_len(256).filter_map(|candidate| {
        let (first, second) = (candidate.first, candidate.second);
        let similarity = jaccard(set(first), set(second), likeness.threshold);
        (similarity >= likeness.threshold).then_some(SimilarPair {
            first: first as usize,
            second: second as usize,
            similarity,
        })
    });
    Ok(pairs.collect())
}

/// The sketches of some of the texts.
struct Sketches<'r> {
    /// The texts' indices, ascending.
    rows: &'r [u32],
    bytes: Vec<[u8; PLACES]>,
    /// [band][text]
    keys: Vec<Vec<u32>>,
    hopeless: usize,
}

impl<'r> Sketches<'r> {
    fn of(texts: &[&str], rows: &'r [u32], likeness: Likeness) -> Result<Self> {
        const CHUNK_ROWS: usize = 256;
        let width = minhash::rows(likeness.threshold);
        let bands = PLACES / width;
        let parts: Vec<(Vec<[u8; PLACES]>, Vec<u32>)> = rows
            .par_chunks(CHUNK_ROWS)
            .map_init(Vec::new, |hashes, rows| {
                interrupt::check()?;
                let mut bytes = Vec::with_capacity(rows.len());
                let mut keys = Vec::with_capacity(rows.len() * bands);
                for &row in rows {
                    likeness.shingles.hashes(texts[row as usize], hashes);
                    let sketch = Sketch::of(hashes);
                    bytes.push(sketch.bytes());
                    keys.extend(sketch.bands(width));
                }
                Ok((bytes, keys))
            })
            .collect::<Result<_>>()?;
        let keys = (0..bands)
            .into_par_iter()
            .map(|band| {
                parts
                    .iter()
                    .flat_map(|part| part.1[band..].iter().step_by(bands).copied())
                    .collect()
            })
            .collect();
        let bytes = parts.into_iter().flat_map(|part| part.0).collect();
        Ok(Self { rows, bytes, keys, hopeless: minhash::hopeless(likeness.threshold) })
    }

    /// The pairs that share a band and are not hopelessly far apart, each once; and whether these
    /// are all.
    fn candidates(
        &self,
        keep: &(dyn Fn(usize, usize) -> bool + Sync),
    ) -> Result<(Vec<Candidate>, bool)> {
        let bands: Vec<(Vec<Candidate>, bool)> = self
            .keys
            .par_iter()
            .map(|keys| {
                interrupt::check()?;
                Ok(self.of_band(keys, keep))
            })
            .collect::<Result<_>>()?;
        let complete = bands.iter().all(|band| band.1);
        let mut candidates: Vec<Candidate> = bands.into_iter().flat_map(|band| band.0).collect();
        candidates.par_sort_unstable();
        candidates.dedup();
        Ok((candidates, complete))
    }

    fn of_band(
        &self,
        keys: &[u32],
        keep: &(dyn Fn(usize, usize) -> bool + Sync),
    ) -> (Vec<Candidate>, bool) {
        // Sorted by key, and by text within one: the texts of a bucket stand together.
        let mut order: Vec<u64> =
            keys.iter().enumerate().map(|(at, &key)| (u64::from(key) << 32) | at as u64).collect();
        order.sort_unstable();
        let mut complete = true;
        let mut candidates = Vec::new();
        for bucket in order.chunk_by(|a, b| a >> 32 == b >> 32).filter(|bucket| bucket.len() > 1) {
            complete &= bucket.len() <= MAX_BUCKET;
            for (at, &second) in bucket.iter().enumerate() {
                let second = second as u32 as usize;
                for &first in &bucket[..at.min(MAX_BUCKET)] {
                    let first = first as u32 as usize;
                    if !keep(self.rows[first] as usize, self.rows[second] as usize) {
                        continue;
                    }
                    let agreeing = minhash::agreeing(&self.bytes[first], &self.bytes[second]);
                    if agreeing >= self.hopeless {
                        candidates.push(Candidate {
                            first: self.rows[first],
                            second: self.rows[second],
                            agreeing: agreeing as u8,
                        });
                    }
                }
            }
        }
        (candidates, complete)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(_: usize, _: usize) -> bool {
        true
    }

    fn at(threshold: f64) -> Likeness {
        Likeness { threshold, ..Default::default() }
    }

    #[test]
    fn a_changed_word_is_near_and_another_question_is_not() {
        let texts = [
            "Where is my parcel? It should have been here on Monday.",
            "Can I change the address of my order?",
            "where is my package? It should have been here on Monday",
            "Where is my parcel? It should have been here on Monday.",
        ];
        let found = pairs(&texts, at(0.6), &all).unwrap();
        let found: Vec<(usize, usize)> =
            found.iter().map(|pair| (pair.first, pair.second)).collect();
        assert_eq!(found, [(0, 2), (0, 3), (2, 3)]);
        assert_eq!(groups(4, &pairs(&texts, at(0.6), &all).unwrap()), [0, 1, 0, 0]);
        let clusters = clusters(&texts, at(0.6)).unwrap();
        assert_eq!((clusters.of, clusters.complete), (vec![0, 1, 0, 0], true));
    }

    #[test]
    fn empty_and_tiny_texts_are_equal_to_themselves_only() {
        let found = pairs(&["", "", "a", "b", "a", "?!"], at(0.72), &all).unwrap();
        let found: Vec<(usize, usize)> =
            found.iter().map(|pair| (pair.first, pair.second)).collect();
        assert_eq!(found, [(0, 1), (2, 4)]);
    }

    /// A thousand copies are linked without a million comparisons.
    #[test]
    fn many_copies_make_one_group() {
        let texts = vec!["The same sentence, over and over again."; 1000];
        let found = pairs(&texts, at(0.72), &all).unwrap();
        assert!(found.len() <= 1000 * MAX_BUCKET);
        assert!(groups(1000, &found).iter().all(|&group| group == 0));
        let clusters = clusters(&texts, at(0.72)).unwrap();
        assert!(clusters.complete && clusters.of.iter().all(|&of| of == 0));
        // Not quite the same, so no two are taken for one beforehand.
        let texts: Vec<String> = (0..1000)
            .map(|i| format!("The same sentence of many words, over and over again, number {i}."))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let clusters = super::clusters(&texts, at(0.6)).unwrap();
        assert!(!clusters.complete && clusters.of.iter().all(|&of| of == 0));
    }

    /// Precision and recall against the true similarity, on planted edits of 0 to 40 % of the
    /// words.
    #[test]
    fn nearly_all_pairs_above_the_threshold_are_found_and_no_other() {
        let words: Vec<String> = (0..400)
            .map(|i| {
                format!("{:x}", xxh3_64_with_seed(&[i as u8, (i >> 8) as u8], 7))
                    .chars()
                    .take(3 + i % 6)
                    .collect()
            })
            .collect();
        let mut state = 1u64;
        let mut random = move |n: usize| {
            state = xxh3_64_with_seed(&state.to_le_bytes(), 3);
            (state % n as u64) as usize
        };
        let mut texts: Vec<String> = Vec::new();
        for i in 0..600 {
            let original: Vec<&str> = (0..30).map(|_| words[random(400)].as_str()).collect();
            let mut edited = original.clone();
            // 0, 1, … 12 of 30 words.
            for _ in 0..i % 13 {
                let at = random(30);
                edited[at] = &words[random(400)];
            }
            texts.push(original.join(" "));
            texts.push(edited.join(" "));
        }
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let found = pairs(&texts, at(THRESHOLD), &all).unwrap();
        let planted = (0..600)
            .filter(|i| {
                similarity(texts[2 * i], texts[2 * i + 1], Shingles::default()) >= THRESHOLD
            })
            .count();
        let hits = found
            .iter()
            .filter(|pair| pair.first % 2 == 0 && pair.second == pair.first + 1)
            .count();
        assert!(planted > 150, "{planted}");
        assert!(hits as f64 >= 0.98 * planted as f64, "recall {hits}/{planted}");
        assert!(found.iter().all(|pair| pair.similarity >= THRESHOLD));
    }

    proptest! {
        #[test]
        fn groups_hold_their_pairs_together(edges in proptest::collection::vec((0usize..20, 0usize..20), 0..30)) {
            let pairs: Vec<SimilarPair> = edges.iter().map(|&(a, b)| SimilarPair { first: a.min(b), second: a.max(b), similarity: 1.0 }).collect();
            let groups = groups(20, &pairs);
            for pair in &pairs {
                prop_assert_eq!(groups[pair.first], groups[pair.second]);
            }
            for (text, &group) in groups.iter().enumerate() {
                prop_assert!(group <= text && groups[group] == group);
            }
        }

        #[test]
        fn similarity_is_symmetric_and_one_for_equals(a in "[a-d ]{0,20}", b in "[a-d ]{0,20}") {
            let similarity = |a: &str, b: &str| similarity(a, b, Shingles::default());
            prop_assert_eq!(similarity(&a, &b), similarity(&b, &a));
            prop_assert_eq!(similarity(&a, &a), 1.0);
            prop_assert!((0.0..=1.0).contains(&similarity(&a, &b)));
        }

        /// Checking only pairs that may still change the clusters gives the clusters of all pairs.
        #[test]
        fn clusters_are_the_groups_of_all_pairs(
            texts in proptest::collection::vec("(red|blue|green|a|tent|parcel|late| ){1,12}", 1..40),
            threshold in 0.3f64..1.0,
        ) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let found = pairs(&texts, at(threshold), &all).unwrap();
            let clusters = clusters(&texts, at(threshold)).unwrap();
            prop_assert_eq!(clusters.of, groups(texts.len(), &found));
            for ((first, second), similarity) in clusters.known {
                prop_assert!(similarity >= threshold);
                let pair = SimilarPair { first: first as usize, second: second as usize, similarity };
                prop_assert!(found.contains(&pair));
            }
        }
    }
}
