//! Rows that belong together.

use std::collections::HashMap;
use std::hash::Hash;

use crate::{Error, Result};

/// The statistics of clusters: the sums over the rows of each, in the order in which clusters first
/// occur. [`Bootstrap`](super::Bootstrap) then resamples clusters in place of rows.
///
/// Near-duplicates and rows of one document, customer or conversation are right or wrong together:
/// resampled one by one they would count as more evidence than they are.
///
/// ```
/// use tunebook_evaluate::statistics::cluster_sums;
///
/// let rows = [vec![1.0, 1.0], vec![0.0, 1.0], vec![1.0, 1.0]];
/// assert_eq!(cluster_sums(&rows, &["a", "b", "a"])?, [[2.0, 2.0], [0.0, 1.0]]);
/// # Ok::<(), tunebook_evaluate::Error>(())
/// ```
///
/// # Errors
///
/// If there are not as many clusters' names as rows.
pub fn cluster_sums<C: Eq + Hash>(rows: &[Vec<f64>], clusters: &[C]) -> Result<Vec<Vec<f64>>> {
    if rows.len() != clusters.len() {
        return Err(Error::Lengths {
            left_name: "the list of statistics",
            left: rows.len(),
            right_name: "the list of clusters",
            right: clusters.len(),
        });
    }
    let mut places: HashMap<&C, usize> = HashMap::new();
    let mut sums: Vec<Vec<f64>> = Vec::new();
    for (row, cluster) in rows.iter().zip(clusters) {
        let place = *places.entry(cluster).or_insert(sums.len());
        match sums.get_mut(place) {
            Some(sum) => sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value),
            None => sums.push(row.clone()),
        }
    }
    Ok(sums)
}
