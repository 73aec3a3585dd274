//! MinHash sketches: two texts agree in each place of their sketches with a chance equal to their
//! similarity (Broder 1997).
//!
//! The places are filled as in "Fast Similarity Sketching" (Dahlgaard, Knudsen and Thorup 2017): a
//! round throws every shingle into one place, which keeps the smallest; rounds follow until no
//! place is empty. So a text costs about as many steps as it has shingles, where one hash function
//! for each place would cost a hundred times that, and the estimate is at least as good.

/// Places of a sketch. Many numbers divide it, so that bands of many widths fill it.
pub(crate) const PLACES: usize = 120;

/// The largest probability to miss a pair at the threshold.
const MISSED: f64 = 0.02;

/// A sketch, and a byte of each place for a first look.
pub(crate) struct Sketch([u64; PLACES]);

impl Sketch {
    /// The sketch of these hashes; of none, one that all empty texts have.
    pub(crate) fn of(hashes: &[u64]) -> Self {
        let mut places = [u64::MAX; PLACES];
        if hashes.is_empty() {
            return Self(places);
        }
        let mut empty = PLACES;
        for round in 0..2 * PLACES as u64 {
            // Another order of the shingles in each round.
            let salt = (round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for &hash in hashes {
                let mixed = (hash ^ salt).wrapping_mul(0xd6e8_feb8_6659_fd93);
                let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
                // The second half of the rounds fills what is left, place by place.
                let place = match round.checked_sub(PLACES as u64) {
                    None => (((mixed >> 32) * PLACES as u64) >> 32) as usize,
                    Some(place) => place as usize,
                };
                // Earlier rounds come first; within one, the smallest.
                let value = (round << 48) | (mixed & 0xffff_ffff);
                empty -= usize::from(places[place] == u64::MAX);
                places[place] = places[place].min(value);
            }
            if empty == 0 {
                break;
            }
        }
        Self(places)
    }

    /// A byte of each place. Equal places have equal bytes; different ones in one of 256 cases.
    pub(crate) fn bytes(&self) -> [u8; PLACES] {
        self.0
            .map(|value| ((value ^ (value >> 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
    }

    /// The key of each band of `rows` places.
    pub(crate) fn bands(&self, rows: usize) -> impl Iterator<Item = u32> + '_ {
        self.0.chunks_exact(rows).map(|rows| {
            let key = rows.iter().fold(0u64, |key, value| {
                (key.rotate_left(23) ^ value).wrapping_mul(0xff51_afd7_ed55_8ccd)
            });
            (key >> 32) as u32
        })
    }
}

/// In how many places two sketches agree, by their bytes.
pub(crate) fn agreeing(a: &[u8; PLACES], b: &[u8; PLACES]) -> usize {
    // Adding bytes to a byte is what processors do sixteen at a time; there are fewer than 256.
    usize::from(a.iter().zip(b).fold(0u8, |sum, (a, b)| sum + u8::from(a == b)))
}

/// Fewer agreeing places than this are not those of a pair at the threshold: five standard
/// deviations below the mean.
pub(crate) fn hopeless(threshold: f64) -> usize {
    let places = PLACES as f64;
    let deviation = (threshold * (1.0 - threshold) / places).sqrt();
    ((threshold - 5.0 * deviation) * places).floor().max(0.0) as usize
}

/// Places of a band: all of them must agree for two texts to become candidates. The most that miss
/// few pairs at the threshold: 5, in 24 bands, for 0.72.
pub(crate) fn rows(threshold: f64) -> usize {
    let misses = |rows: usize| (1.0 - threshold.powi(rows as i32)).powi((PLACES / rows) as i32);
    (1..=PLACES / 4)
        .filter(|rows| PLACES.is_multiple_of(*rows) && misses(*rows) <= MISSED)
        .max()
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64) -> impl Iterator<Item = u64> {
        (0u64..).map(move |i| xxhash_rust::xxh3::xxh3_64_with_seed(&i.to_le_bytes(), seed))
    }

    /// Sketches of sets that share a known part agree in that share of their places, large and
    /// small sets alike.
    #[test]
    fn the_share_of_agreeing_places_is_the_similarity() {
        for size in [3usize, 10, 100, 1000] {
            for shared in [0.0, 0.25, 0.5, 0.75, 1.0] {
                let common = (size as f64 * shared).round() as usize;
                let trials = 400;
                let (mut agreeing_places, mut squares) = (0.0, 0.0);
                for trial in 0..trials {
                    let mut numbers = random(trial);
                    let both: Vec<u64> = numbers.by_ref().take(common).collect();
                    let mut side = || -> Vec<u64> {
                        both.iter().copied().chain(numbers.by_ref().take(size - common)).collect()
                    };
                    let (a, b) = (Sketch::of(&side()), Sketch::of(&side()));
                    let share =
                        a.0.iter().zip(&b.0).filter(|(a, b)| a == b).count() as f64 / PLACES as f64;
                    agreeing_places += share / trials as f64;
                    squares += share * share / trials as f64;
                }
                let truth = common as f64 / (2 * size - common) as f64;
                // Five standard deviations of the mean of so many binomials.
                let deviation = (truth * (1.0 - truth) / (PLACES as f64 * trials as f64)).sqrt();
                assert!(
                    (agreeing_places - truth).abs() <= 5.0 * deviation + 1e-9,
                    "{size} {shared}: {agreeing_places} for {truth}"
                );
                // No worse than one hash function for each place.
                let variance = squares - agreeing_places * agreeing_places;
                assert!(
                    variance <= 1.3 * truth * (1.0 - truth) / PLACES as f64 + 1e-9,
                    "{size} {shared}: {variance}"
                );
            }
        }
    }

    #[test]
    fn bands_are_as_wide_as_the_threshold_allows() {
        assert_eq!([0.3, 0.5, 0.6, 0.72, 0.8, 0.9, 1.0].map(rows), [2, 3, 4, 5, 6, 10, 30]);
        assert_eq!((hopeless(0.72), hopeless(1.0), hopeless(0.01)), (61, 120, 0));
    }
}
