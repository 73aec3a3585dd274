//! Optimizer states in 8 bits, block by block ([Dettmers et al.
//! 2021](https://arxiv.org/abs/2110.02861)), as bitsandbytes keeps them.
//!
//! Each block of [`BLOCK`] values is divided by its largest magnitude and rounded to the nearest of
//! 256 values that lie dense near zero: seven decades, each with twice as many values as the one
//! below it (the paper's dynamic tree). A moment then takes 1.016 bytes a value in place of 4.

use std::sync::OnceLock;

/// Values that share one scale.
pub(crate) const BLOCK: usize = 256;

/// Tensors with fewer values keep their moments in f32, as in bitsandbytes (`min_8bit_size`).
pub(crate) const LEAST: usize = 4096;

/// The 256 values that a byte stands for, and how to find the nearest.
pub(crate) struct Code {
    values: [f32; 256],
    /// Half-way between a value and the next.
    middle: [f32; 255],
    /// For the upper 16 bits of an f32, a value near it.
    near: Vec<u8>,
}

impl Code {
    /// For the first moment, -1 … 1.
    pub(crate) fn signed() -> &'static Self {
        static CODE: OnceLock<Code> = OnceLock::new();
        CODE.get_or_init(|| Self::new(true))
    }

    /// For the second moment, 0 … 1.
    pub(crate) fn unsigned() -> &'static Self {
        static CODE: OnceLock<Code> = OnceLock::new();
        CODE.get_or_init(|| Self::new(false))
    }

    /// bitsandbytes' `create_dynamic_map(signed, max_exponent_bits=7, total_bits=8)`.
    fn new(signed: bool) -> Self {
        const EXPONENTS: i32 = 7;
        let mut all = vec![0f64, 1.0];
        for i in 0..EXPONENTS {
            let count = if signed { 1 << i } else { 2 << i };
            let power = 10f64.powi(i - (EXPONENTS - 1));
            for k in 0..count {
                // The middle of one of `count` equal parts of 0.1 … 1.
                let mean = power * (0.1 + 0.9 * (f64::from(k) + 0.5) / f64::from(count));
                all.push(mean);
                if signed {
                    all.push(-mean);
                }
            }
        }
        all.sort_by(f64::total_cmp);
        let mut values = [0f32; 256];
        values.iter_mut().zip(&all).for_each(|(value, exact)| *value = *exact as f32);
        let mut middle = [0f32; 255];
        for (i, middle) in middle.iter_mut().enumerate() {
            *middle = (values[i] + values[i + 1]) / 2.0;
        }
        let near = (0..=u16::MAX)
            .map(|upper| {
                let value = f32::from_bits(u32::from(upper) << 16);
                middle.partition_point(|middle| *middle < value) as u8
            })
            .collect();
        Self { values, middle, near }
    }

    /// The nearest value's byte.
    #[inline]
    fn nearest(&self, value: f32) -> u8 {
        let mut byte = self.near[(value.to_bits() >> 16) as usize];
        while byte < 255 && self.middle[byte as usize] < value {
            byte += 1;
        }
        while byte > 0 && self.middle[byte as usize - 1] >= value {
            byte -= 1;
        }
        byte
    }

    /// One block's values.
    pub(crate) fn decode(&self, bytes: &[u8], absmax: f32, into: &mut [f32]) {
        for (value, byte) in into.iter_mut().zip(bytes) {
            *value = self.values[*byte as usize] * absmax;
        }
    }

    /// One block in bytes; returns its largest magnitude.
    pub(crate) fn encode(&self, values: &[f32], bytes: &mut [u8]) -> f32 {
        let absmax = values.iter().fold(0f32, |most, value| most.max(value.abs()));
        let inverse = if absmax > 0.0 { 1.0 / absmax } else { 0.0 };
        for (byte, value) in bytes.iter_mut().zip(values) {
            *byte = self.nearest(value * inverse);
        }
        absmax
    }
}

/// One moment of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Quantized {
    pub(crate) bytes: Vec<u8>,
    /// One for each block.
    pub(crate) absmax: Vec<f32>,
}

impl Quantized {
    /// `count` zeros.
    pub(crate) fn zeros(count: usize, code: &Code) -> Self {
        Self { bytes: vec![code.nearest(0.0); count], absmax: vec![0.0; count.div_ceil(BLOCK)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ends and some inner values of `bitsandbytes.functional.create_dynamic_map()`.
    #[test]
    fn the_values_are_those_of_bitsandbytes() {
        let (signed, unsigned) = (&Code::signed().values, &Code::unsigned().values);
        let near = |a: f32, b: f64| (f64::from(a) - b).abs() <= 1e-6 * b.abs();
        assert!(
            near(signed[0], -0.992_968_75)
                && near(signed[255], 1.0)
                && near(signed[254], 0.992_968_75)
        );
        assert_eq!(signed[127], 0.0);
        assert!(
            near(signed[128], 5.5e-7) && near(signed[126], -5.5e-7) && near(signed[129], 3.25e-6)
        );
        assert!(
            near(unsigned[1], 3.25e-7) && near(unsigned[2], 7.75e-7) && near(unsigned[255], 1.0)
        );
        assert_eq!(unsigned[0], 0.0);
        for code in [signed, unsigned] {
            assert!(code.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn the_nearest_value_is_found() {
        for code in [Code::signed(), Code::unsigned()] {
            for i in -2000..=2000 {
                let value = (f64::from(i) / 2000.0).powi(3) as f32;
                let found = code.values[code.nearest(value) as usize];
                let best =
                    code.values.iter().map(|v| (v - value).abs()).fold(f32::INFINITY, f32::min);
                // A tie may go either way.
                assert!((found - value).abs() <= best * (1.0 + 1e-5), "{value}: {found}");
            }
        }
    }

    #[test]
    fn a_block_keeps_its_largest_value_and_every_other_within_its_step() {
        let values: Vec<f32> = (0..BLOCK).map(|i| ((i as f32) * 0.7).sin() * 3e-5).collect();
        let (mut bytes, mut back) = (vec![0; BLOCK], vec![0.0; BLOCK]);
        let absmax = Code::signed().encode(&values, &mut bytes);
        Code::signed().decode(&bytes, absmax, &mut back);
        for (a, b) in values.iter().zip(&back) {
            assert!((a - b).abs() <= 0.0075 * absmax, "{a} {b}");
        }
        assert_eq!(Code::signed().encode(&[0.0; 4], &mut bytes[..4]), 0.0);
    }
}
