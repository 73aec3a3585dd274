//! Several tests at once.

/// Holm's correction: p-values that hold for all tests together, in the order given (Holm 1979).
///
/// With ten metrics, two in five comparisons of equal models show some p-value under 0.05. After
/// the correction, the chance that any does is 5 % at most, whether or not the metrics depend on
/// each other.
///
/// ```
/// use tunebook_evaluate::statistics::holm;
///
/// assert_eq!(holm(&[0.01, 0.04, 0.03]), [0.03, 0.06, 0.06]);
/// ```
#[must_use]
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&left, &right| p_values[left].total_cmp(&p_values[right]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest = 0.0_f64;
    for (rank, &test) in order.iter().enumerate() {
        let tests_left = (p_values.len() - rank) as f64;
        largest = largest.max(tests_left * p_values[test]).min(1.0);
        adjusted[test] = largest;
    }
    adjusted
}
