//! Vectorised arithmetic on slices.

use super::multiversion;

/// Lanes of a reduction: sixteen partial sums are one AVX-512 register.
const LANES: usize = 16;

/// `eˣ` to about 2 units in the last place, in a form that vectorises (range reduction by ln 2,
/// polynomial of Cephes' `expf`). Below −87 the result is 0, above 88 infinity's neighbour.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.; // 1.5 · 2²³: adding it leaves the nearest integer in the low bits
    let inside = x.clamp(-87.3, 88.7);
    let shifted = inside * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = inside - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = p * r * r + r + 1.;
    // 2ⁿ through the exponent bits, in two halves so that n = 128 does not overflow.
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = bits >> 1;
    let scale = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    let y = value * scale(half) * scale(bits - half);
    if x < -87.3 { 0. } else { y }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1. / (1. + exp(-x))
}

/// Sum of `f(i)` over `0..n` in sixteen lanes.
#[inline(always)]
pub fn lanes(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(i + lane);
        }
        i += LANES;
    }
    let mut total = 0.;
    for sum in sums {
        total += sum;
    }
    for j in whole..n {
        total += f(j);
    }
    total
}

multiversion! {
    /// Dot product.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        // Four times sixteen lanes hide the latency of the additions.
        let mut sums = [0f32; 4 * LANES];
        let (x, y) = (a.chunks_exact(4 * LANES), b.chunks_exact(4 * LANES));
        let rest: f32 = x.remainder().iter().zip(y.remainder()).map(|(p, q)| p * q).sum();
        for (p, q) in x.zip(y) {
            for i in 0..4 * LANES {
                sums[i] += p[i] * q[i];
            }
        }
        let mut total = [0f32; LANES];
        for (i, sum) in sums.iter().enumerate() {
            total[i % LANES] += sum;
        }
        total.iter().sum::<f32>() + rest
    }
}

multiversion! {
    /// `y += a · x`.
    pub fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    }
}

multiversion! {
    /// `y *= a`.
    pub fn scale(y: &mut [f32], a: f32) {
        for y in y {
            *y *= a;
        }
    }
}

multiversion! {
    /// The largest value, −∞ of none.
    pub fn max(x: &[f32]) -> f32 {
        let mut most = [f32::NEG_INFINITY; LANES];
        let chunks = x.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (m, v) in most.iter_mut().zip(chunk) {
                *m = if *v > *m { *v } else { *m };
            }
        }
        most.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
    }
}

multiversion! {
    /// `ln Σ eˣ`.
    pub fn log_sum_exp(x: &[f32]) -> f32 {
        let most = max(x);
        most + lanes(x.len(), |i| exp(x[i] - most)).ln()
    }
}

/// `x = e^(x − shift)`; returns the sum.
pub fn exp_sum(x: &mut [f32], shift: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if super::avx512::available() {
        // SAFETY: the processor was asked.
        return unsafe { super::avx512::exp_sum(x, shift) };
    }
    exp_sum_portable(x, shift)
}

multiversion! {
    /// See [`exp_sum`].
    pub fn exp_sum_portable(x: &mut [f32], shift: f32) -> f32 {
        for v in x.iter_mut() {
            *v = exp(*v - shift);
        }
        lanes(x.len(), |i| x[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_over_its_whole_range() {
        for i in -8700..=8850 {
            let x = i as f32 / 100.;
            let right = f64::from(x).exp();
            let error = (f64::from(exp(x)) - right).abs() / right;
            assert!(error < 3e-7, "exp({x}): {} for {right}", exp(x));
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.);
        assert_eq!(exp(-200.), 0.);
        assert_eq!(exp(0.), 1.);
    }

    #[test]
    fn both_forms_of_exp_sum_are_close() {
        for n in [0, 1, 15, 16, 17, 100, 2016] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() * 40. - 20.).collect();
            let right: Vec<f64> = x.iter().map(|&v| (f64::from(v) - 20.).exp()).collect();
            for form in [exp_sum, exp_sum_portable] {
                let mut powers = x.clone();
                if n > 2 {
                    powers[2] = f32::NEG_INFINITY;
                }
                let sum = form(&mut powers, 20.);
                let (mut expected, mut worst) = (0f64, 0f64);
                for (i, (&found, &right)) in powers.iter().zip(&right).enumerate() {
                    if i == 2 {
                        assert_eq!(found, 0.);
                        continue;
                    }
                    expected += right;
                    worst = worst.max((f64::from(found) - right).abs() / right);
                }
                // The difference from the shift is rounded before the power is taken.
                assert!(worst < 6e-6, "{n}: {worst}");
                assert!(
                    (f64::from(sum) - expected).abs() <= 6e-6 * expected,
                    "{n}: {sum} for {expected}"
                );
            }
        }
    }

    #[test]
    fn reductions_agree_with_plain_loops() {
        let a: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.11).cos()).collect();
        let right: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        assert!((f64::from(dot(&a, &b)) - right).abs() < 1e-4);
        assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
