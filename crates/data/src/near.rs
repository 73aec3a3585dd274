//! Near-duplicates: MinHash over character 5-grams, locality-sensitive hashing to find candidates, and the true Jaccard
//! similarity to decide.
//!
//! The steps are those of datatrove and text-dedup (Broder 1997; Leskovec, Rajaraman and Ullman, *Mining of Massive
//! Datasets*, chapter 3). Two choices differ, because prompts are short. Shingles are of 5 characters, not 5 words: one changed
//! word in a sentence of ten would leave no 5-gram of words in common. And every candidate pair is checked by its true similarity, so
//! the bands can be narrow: 24 bands of 5 rows miss fewer than 1 in 100 pairs at a similarity of 0.72, and no pair is
//! reported that is below the threshold.

use std::collections::HashMap;

use rayon::prelude::*;
use tunebook_progress::interrupt;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::Result;
use crate::key;

/// Characters of a shingle.
const SHINGLE_CHARS: usize = 5;
/// Rows of a band: hashes that must all agree for two texts to become candidates.
const BAND_ROWS: usize = 5;
/// Bands: chances to agree.
const BANDS: usize = 24;
const HASHES: usize = BANDS * BAND_ROWS;
/// In a larger bucket each text is compared with this many before it, not with all.
const MAX_BUCKET: usize = 64;

/// Five standard deviations of the estimate from 120 hashes, rounded up.
const ESTIMATE_MARGIN: f64 = 0.21;

/// The usual threshold: datatrove's setting finds half of the pairs at about this similarity.
pub(crate) const THRESHOLD: f64 = 0.72;

/// Two texts, by their index, and how similar they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pair {
    /// The earlier text.
    pub first: usize,
    /// The later text.
    pub second: usize,
    /// Jaccard similarity of their shingles.
    pub similarity: f64,
}

/// The Jaccard similarity of two texts: shared shingles over all shingles, case, punctuation and spaces aside.
pub(crate) fn similarity(a: &str, b: &str) -> f64 {
    jaccard(&shingles(a), &shingles(b))
}

/// Pairs of texts at least as similar as `threshold`, each text with the first one before it that the search finds (so a
/// group of n copies gives n - 1 pairs), in the order of the later text. `keep` says which pairs are of interest.
pub(crate) fn pairs(
    texts: &[&str],
    threshold: f64,
    keep: &(dyn Fn(usize, usize) -> bool + Sync),
) -> Result<Vec<Pair>> {
    Ok(pairs_of(texts, threshold, keep)?.0)
}

/// [`pairs`], and whether every candidate was looked at: in a very large bucket some are not.
pub(crate) fn pairs_of(
    texts: &[&str],
    threshold: f64,
    keep: &(dyn Fn(usize, usize) -> bool + Sync),
) -> Result<(Vec<Pair>, bool)> {
    let coefficients = coefficients();
    let signatures: Vec<[u32; HASHES]> = texts
        .par_iter()
        .map(|text| {
            interrupt::check()?;
            Ok(signature(&all_shingles(text), &coefficients))
        })
        .collect::<Result<_>>()?;
    let bands = (0..BANDS)
        .into_par_iter()
        .map(|band| {
            interrupt::check()?;
            Ok(candidates_of_band(&signatures, band, keep))
        })
        .collect::<Result<Vec<_>>>()?;
    let complete = bands.iter().all(|band| band.1);
    let mut candidates: Vec<(u32, u32)> = bands.into_iter().flat_map(|band| band.0).collect();
    candidates.par_sort_unstable();
    candidates.dedup();
    // The share of equal hashes is an estimate of the similarity; one that is far too low spares the true one.
    let hopeless = (threshold - ESTIMATE_MARGIN) * HASHES as f64;
    let candidates: Vec<(u32, u32)> = candidates
        .into_par_iter()
        .filter(|&(first, second)| {
            let (a, b) = (&signatures[first as usize], &signatures[second as usize]);
            a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 >= hopeless
        })
        .collect();
    drop(signatures);
    let mut pairs: Vec<Pair> = candidates
        .par_iter()
        .map(|&(first, second)| {
            interrupt::check()?;
            let (first, second) = (first as usize, second as usize);
            Ok(Pair { first, second, similarity: similarity(texts[first], texts[second]) })
        })
        .collect::<Result<Vec<_>>>()?;
    pairs.retain(|pair| pair.similarity >= threshold);
    pairs.sort_unstable_by_key(|pair| (pair.second, pair.first));
    Ok((pairs, complete))
}

/// For each text the index of the earliest text of its group; groups are closed under the pairs.
pub(crate) fn groups(texts: usize, pairs: &[Pair]) -> Vec<usize> {
    let mut parent: Vec<usize> = (0..texts).collect();
    fn root(parent: &mut [usize], mut at: usize) -> usize {
        while parent[at] != at {
            parent[at] = parent[parent[at]];
            at = parent[at];
        }
        at
    }
    for pair in pairs {
        let (a, b) = (root(&mut parent, pair.first), root(&mut parent, pair.second));
        // The earlier one stays the root, whatever the order of the pairs.
        parent[a.max(b)] = a.min(b);
    }
    (0..texts).map(|text| root(&mut parent, text)).collect()
}

/// Candidate pairs (earlier, later) of one band, and whether these are all.
fn candidates_of_band(
    signatures: &[[u32; HASHES]],
    band: usize,
    keep: &(dyn Fn(usize, usize) -> bool + Sync),
) -> (Vec<(u32, u32)>, bool) {
    let mut complete = true;
    let mut buckets: HashMap<[u32; BAND_ROWS], Vec<u32>> = HashMap::with_capacity(signatures.len());
    let mut candidates = Vec::new();
    for (text, signature) in signatures.iter().enumerate() {
        let Some(rows) = signature[band * BAND_ROWS..].first_chunk::<BAND_ROWS>() else { continue };
        let bucket = buckets.entry(*rows).or_default();
        candidates.extend(
            bucket.iter().filter(|&&before| keep(before as usize, text)).map(|&before| (before, text as u32)),
        );
        if bucket.len() < MAX_BUCKET {
            bucket.push(text as u32);
        } else {
            complete = false;
        }
    }
    (candidates, complete)
}

/// The sorted set of a text's shingles, as hashes.
fn shingles(text: &str) -> Vec<u32> {
    let mut shingles = all_shingles(text);
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

/// A text's shingles in their order, repeated ones included.
fn all_shingles(text: &str) -> Vec<u32> {
    let key = key::normalized(text);
    let starts: Vec<usize> = key.char_indices().map(|(at, _)| at).chain([key.len()]).collect();
    let hash = |piece: &str| xxh3_64_with_seed(piece.as_bytes(), 0) as u32;
    match starts.len() - 1 {
        0 => Vec::new(),
        // Shorter than a shingle: the text itself.
        n if n < SHINGLE_CHARS => vec![hash(&key)],
        _ => starts
            .windows(SHINGLE_CHARS + 1)
            .map(|window| hash(&key[window[0]..window[SHINGLE_CHARS]]))
            .collect(),
    }
}

fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                shared += 1;
                i += 1;
                j += 1;
            }
        }
    }
    let all = a.len() + b.len() - shared;
    // Two texts without a word are the same.
    if all == 0 { 1.0 } else { shared as f64 / all as f64 }
}

/// The smallest value of each of the hash functions over the shingles.
fn signature(shingles: &[u32], coefficients: &[[u32; HASHES]; 2]) -> [u32; HASHES] {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions.
            return unsafe { signature_avx512(shingles, coefficients) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions.
            return unsafe { signature_avx2(shingles, coefficients) };
        }
    }
    smallest(shingles, coefficients)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn signature_avx512(shingles: &[u32], coefficients: &[[u32; HASHES]; 2]) -> [u32; HASHES] {
    smallest(shingles, coefficients)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn signature_avx2(shingles: &[u32], coefficients: &[[u32; HASHES]; 2]) -> [u32; HASHES] {
    smallest(shingles, coefficients)
}

/// The loop over the functions is inside, so that it runs on vectors of them; integers only, so each instruction set gives the same.
#[inline(always)]
fn smallest(shingles: &[u32], coefficients: &[[u32; HASHES]; 2]) -> [u32; HASHES] {
    let [multipliers, masks] = coefficients;
    let mut smallest = [u32::MAX; HASHES];
    for &shingle in shingles {
        for ((smallest, multiplier), mask) in smallest.iter_mut().zip(multipliers).zip(masks) {
            let mixed = (shingle ^ mask).wrapping_mul(*multiplier);
            // Multiplication carries upwards only: the high bits go down once more before the values are compared.
            *smallest = (*smallest).min((mixed ^ (mixed >> 15)).wrapping_mul(0x2c1b_3c6d));
        }
    }
    smallest
}

/// The hash functions: fixed, so that the same data has the same near-duplicates everywhere.
fn coefficients() -> [[u32; HASHES]; 2] {
    let draw = |seed: u64| std::array::from_fn(|i| xxh3_64_with_seed(&(i as u64).to_le_bytes(), seed) as u32);
    let multipliers: [u32; HASHES] = draw(1);
    [multipliers.map(|multiplier| multiplier | 1), draw(2)]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(_: usize, _: usize) -> bool {
        true
    }

    #[test]
    fn a_changed_word_is_near_and_another_question_is_not() {
        let texts = [
            "Where is my parcel? It should have been here on Monday.",
            "Can I change the address of my order?",
            "where is my package? It should have been here on Monday",
            "Where is my parcel? It should have been here on Monday.",
        ];
        let found = pairs(&texts, 0.6, &all).unwrap();
        let found: Vec<(usize, usize)> = found.iter().map(|pair| (pair.first, pair.second)).collect();
        assert_eq!(found, [(0, 2), (0, 3), (2, 3)]);
        assert_eq!(groups(4, &pairs(&texts, 0.6, &all).unwrap()), [0, 1, 0, 0]);
    }

    #[test]
    fn empty_and_tiny_texts_are_equal_to_themselves_only() {
        let found = pairs(&["", "", "a", "b", "a", "?!"], 0.72, &all).unwrap();
        let found: Vec<(usize, usize)> = found.iter().map(|pair| (pair.first, pair.second)).collect();
        assert_eq!(found, [(0, 1), (2, 4)]);
    }

    /// A thousand copies are linked without a million comparisons.
    #[test]
    fn many_copies_make_one_group() {
        let texts = vec!["The same sentence, over and over again."; 1000];
        let found = pairs(&texts, 0.72, &all).unwrap();
        assert!(found.len() <= 1000 * MAX_BUCKET);
        assert!(groups(1000, &found).iter().all(|&group| group == 0));
    }

    /// Precision and recall against the true similarity, on planted edits of 0 to 40 % of the words.
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
        let found = pairs(&texts, THRESHOLD, &all).unwrap();
        let planted = (0..600).filter(|i| similarity(texts[2 * i], texts[2 * i + 1]) >= THRESHOLD).count();
        let hits = found.iter().filter(|pair| pair.first % 2 == 0 && pair.second == pair.first + 1).count();
        assert!(planted > 150, "{planted}");
        assert!(hits as f64 >= 0.98 * planted as f64, "recall {hits}/{planted}");
        assert!(found.iter().all(|pair| pair.similarity >= THRESHOLD));
    }

    proptest! {
        #[test]
        fn groups_hold_their_pairs_together(edges in proptest::collection::vec((0usize..20, 0usize..20), 0..30)) {
            let pairs: Vec<Pair> = edges.iter().map(|&(a, b)| Pair { first: a.min(b), second: a.max(b), similarity: 1.0 }).collect();
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
            prop_assert_eq!(similarity(&a, &b), similarity(&b, &a));
            prop_assert_eq!(similarity(&a, &a), 1.0);
            prop_assert!((0.0..=1.0).contains(&similarity(&a, &b)));
        }
    }
}
