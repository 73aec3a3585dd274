//! The distributions that the tests need.

use statrs::distribution::{Binomial, ContinuousCDF, Discrete, DiscreteCDF, Normal, StudentsT};

/// The probability that a standard normal value is at most `z`.
pub(super) fn normal_cdf(z: f64) -> f64 {
    Normal::standard().cdf(z)
}

/// The value that a standard normal value stays below with the probability.
pub(super) fn normal_quantile(probability: f64) -> f64 {
    Normal::standard().inverse_cdf(probability)
}

/// The probability that the square of a standard normal value is at least `square`: the upper tail
/// of the chi-square distribution with one degree of freedom.
pub(super) fn chi_square_tail(square: f64) -> f64 {
    2.0 * normal_cdf(-square.sqrt())
}

/// The probability that a value of Student's distribution is at most `t`.
pub(super) fn student_cdf(t: f64, freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::NAN, |student| student.cdf(t))
}

/// The value that one of Student's distribution stays below with the probability.
pub(super) fn student_quantile(probability: f64, freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::NAN, |student| student.inverse_cdf(probability))
}

/// The probabilities of at most and of exactly `heads` heads in so many tosses of a fair coin.
pub(super) fn coin(heads: u64, tosses: u64) -> (f64, f64) {
    Binomial::new(0.5, tosses)
        .map_or((f64::NAN, f64::NAN), |coin| (coin.cdf(heads), coin.pmf(heads)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of scipy 1.17: `norm.ppf`, `t(freedom).ppf`, `t(freedom).cdf`.
    #[test]
    fn quantiles_equal_scipys() {
        let close = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 1e-9, "{found}, expected {expected}");
        };
        close(normal_quantile(1e-12), -7.034_483_825_301_131);
        close(normal_quantile(0.025), -1.959_963_984_540_054_5);
        for (probability, freedom, expected) in [
            (0.0005, 1.0, -636.619_248_768_719_6),
            (0.2, 1.0, -1.376_381_920_471_173_6),
            (0.005, 2.0, -9.924_843_200_918_293),
            (0.025, 4.0, -2.776_445_105_197_794_3),
            (0.0005, 19.0, -3.883_405_852_592_083),
            (0.2, 49.0, -0.849_018_398_538_077),
            (0.025, 999.0, -1.962_341_461_133_449_8),
        ] {
            close(student_quantile(probability, freedom), expected);
        }
        for (t, freedom, expected) in [
            (-30.0, 1.0, 0.010_606_402_405_535_426),
            (-2.5, 4.0, 0.033_383_272_405_994_07),
            (-30.0, 19.0, 9.048_659_208_625_223e-18),
            (-0.3, 999.0, 0.382_119_783_284_905_8),
        ] {
            close(student_cdf(t, freedom), expected);
        }
    }
}
