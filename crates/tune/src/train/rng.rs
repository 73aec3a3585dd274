//! Seeded random numbers: initial weights, dropout masks and the order of the rows.
//!
//! Candle's CPU device cannot be seeded, so everything random in training is drawn here. A
//! [`Stream`] is named by what it is for, and by numbers such as the step: what one part draws
//! never depends on how much another has drawn, so that a run can be continued, and a block
//! recomputed, with the very same numbers.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// One sequence of random numbers, fixed by a seed, a purpose and a counter.
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    /// The sequence for `purpose` (a name) and `counter` (an epoch, a step …) under `seed`.
    pub(crate) fn new(seed: u64, purpose: &str, counter: u64) -> Self {
        // FNV-1a: short, fixed for all time, and far from adversarial here.
        let mut stream = 0xcbf2_9ce4_8422_2325_u64;
        for byte in purpose.bytes() {
            stream = (stream ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&counter.to_le_bytes());
        key[16..24].copy_from_slice(&stream.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in [0, 1), 24 bits.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Standard normal (Box and Muller).
    pub(crate) fn normal(&mut self) -> f32 {
        let (radius, angle) = (1.0 - self.uniform(), self.uniform()); // above 0: its logarithm is finite
        (-2.0 * radius.ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
    }

    /// 32 random bits.
    pub(crate) fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Fills `mask` with 0, with probability `drop`, and 1/(1 − drop) otherwise. `drop` counts to
    /// 16 bits.
    pub(crate) fn dropout(&mut self, mask: &mut [f32], drop: f64) {
        let below = (drop * 65_536.0).round() as u32;
        let keep = (1.0 / (1.0 - drop)) as f32;
        let mut bytes = [0u8; 2048];
        for values in mask.chunks_mut(bytes.len() / 2) {
            self.0.fill_bytes(&mut bytes[..2 * values.len()]);
            for (value, draw) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = if u32::from(u16::from_le_bytes([draw[0], draw[1]])) < below {
                    0.0
                } else {
                    keep
                };
            }
        }
    }

    /// Uniform in 0..n without bias. `n` must not be 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        // Lemire's multiply-and-reject.
        let n = n as u64;
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(n);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// `0..n` in random order (Fisher and Yates).
    pub(crate) fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_depend_on_seed_purpose_and_counter_only() {
        let draw = |seed, purpose, counter| {
            let mut stream = Stream::new(seed, purpose, counter);
            (0..4).map(|_| stream.uniform()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, "a", 0), draw(1, "a", 0));
        assert_ne!(draw(1, "a", 0), draw(2, "a", 0));
        assert_ne!(draw(1, "a", 0), draw(1, "b", 0));
        assert_ne!(draw(1, "a", 0), draw(1, "a", 1));
    }

    #[test]
    fn permutations_hold_every_number_once_and_are_not_the_identity() {
        let order = Stream::new(42, "shuffle", 0).permutation(100);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(order, sorted);
        assert!(Stream::new(42, "shuffle", 0).permutation(0).is_empty());
    }

    #[test]
    fn dropout_drops_its_part_and_keeps_the_mean() {
        let mut mask = vec![f32::NAN; 100_001];
        Stream::new(3, "dropout", 0).dropout(&mut mask, 0.1);
        let dropped = mask.iter().filter(|value| **value == 0.0).count();
        assert!((9_500..10_500).contains(&dropped), "{dropped}");
        assert!(mask.iter().all(|value| *value == 0.0 || *value == (1.0 / 0.9) as f32));
    }

    #[test]
    fn uniform_has_the_right_mean() {
        let mut stream = Stream::new(7, "mean", 0);
        let mean = (0..10_000).map(|_| f64::from(stream.uniform())).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }
}
