//! Decompositions of a weight, in f64 on the host: initial weights of PiSSA and OLoRA.
//!
//! The singular values come from one-sided Jacobi rotations ([Hestenes
//! 1958](https://doi.org/10.1137/0106005)): simple and exact, and cubic in the smaller side, a
//! second or so for a weight of 576 x 576.

use candle_core::{DType, Tensor};

use crate::error::Result;

/// A thin singular value decomposition: `a = u · diag(s) · vᵀ`, the largest first. `u` and `v` are
/// lists of columns.
pub(crate) struct Svd {
    pub(crate) u: Vec<Vec<f64>>,
    pub(crate) s: Vec<f64>,
    pub(crate) v: Vec<Vec<f64>>,
}

/// # Shapes
/// `a` a list of rows, `[m, n]` -> min(m, n) columns.
pub(crate) fn svd(a: &[Vec<f64>]) -> Svd {
    let (m, n) = (a.len(), a.first().map_or(0, Vec::len));
    if m < n {
        let turned = svd(&transposed(a));
        return Svd { u: turned.v, s: turned.s, v: turned.u };
    }
    let mut columns = transposed(a);
    let mut v: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    const SWEEPS: usize = 60; // ten are usual
    for _ in 0..SWEEPS {
        let mut turned = false;
        for p in 0..n {
            for q in p + 1..n {
                let (alpha, beta) = (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]));
                let gamma = dot(&columns[p], &columns[q]);
                if gamma.abs() <= 1e-14 * (alpha * beta).sqrt() {
                    continue;
                }
                turned = true;
                let zeta = (beta - alpha) / (2.0 * gamma);
                let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                rotate(&mut columns, p, q, c, c * t);
                rotate(&mut v, p, q, c, c * t);
            }
        }
        if !turned {
            break;
        }
    }
    let norms: Vec<f64> = columns.iter().map(|column| dot(column, column).sqrt()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| norms[*b].total_cmp(&norms[*a]));
    let unit = |index: &usize| {
        let norm = norms[*index].max(f64::MIN_POSITIVE);
        columns[*index].iter().map(|value| value / norm).collect()
    };
    Svd {
        u: order.iter().map(unit).collect(),
        s: order.iter().map(|index| norms[*index]).collect(),
        v: order.iter().map(|index| v[*index].clone()).collect(),
    }
}

/// PiSSA's A `[r, in]` and B `[out, r]`: `scaling · B·A` is the best approximation of the weight of
/// rank r.
///
/// # Shapes
/// `weight` `[out, in]`.
pub(crate) fn principal(weight: &Tensor, r: usize, scaling: f64) -> Result<(Tensor, Tensor)> {
    let found = svd(&rows(weight)?);
    let root = |i: usize| (found.s[i] / scaling).sqrt();
    let scaled = |vectors: &[Vec<f64>]| -> Vec<Vec<f64>> {
        (0..r).map(|i| vectors[i].iter().map(|value| value * root(i)).collect()).collect()
    };
    Ok((tensor(&scaled(&found.v), weight)?, tensor(&transposed(&scaled(&found.u)), weight)?))
}

/// A `[rank, in]` and B `[out, rank]`, so that B·A is the best approximation of `delta` of that
/// rank; zeros beyond its own.
///
/// # Shapes
/// `delta` `[out, in]`.
pub(crate) fn truncated(delta: &Tensor, rank: usize) -> Result<(Tensor, Tensor)> {
    let (out, inp) = delta.dims2()?;
    let found = svd(&rows(delta)?);
    let (mut a, mut b) = (vec![vec![0.0; inp]; rank], vec![vec![0.0; out]; rank]);
    for i in 0..rank.min(found.s.len()) {
        a[i].clone_from(&found.v[i]);
        b[i] = found.u[i].iter().map(|value| value * found.s[i]).collect();
    }
    Ok((tensor(&a, delta)?, tensor(&transposed(&b), delta)?))
}

/// OLoRA's A `[r, in]` and B `[out, r]`: the first r rows of R and columns of Q of the weight's QR
/// decomposition.
///
/// # Shapes
/// `weight` `[out, in]`.
pub(crate) fn orthogonal(weight: &Tensor, r: usize) -> Result<(Tensor, Tensor)> {
    let rows = rows(weight)?;
    let columns = transposed(&rows);
    let mut q: Vec<Vec<f64>> = Vec::with_capacity(r);
    for column in columns.iter().take(r) {
        let mut next = column.clone();
        // Gram and Schmidt, twice: once leaves rounding errors behind.
        for _ in 0..2 {
            for other in &q {
                let along = dot(other, &next);
                next.iter_mut().zip(other).for_each(|(value, other)| *value -= along * other);
            }
        }
        let norm = dot(&next, &next).sqrt().max(f64::MIN_POSITIVE);
        q.push(next.iter().map(|value| value / norm).collect());
    }
    // R = Qᵀ·W, upper triangular
    let r =
        q.iter().map(|q| columns.iter().map(|column| dot(q, column)).collect()).collect::<Vec<_>>();
    Ok((tensor(&r, weight)?, tensor(&transposed(&q), weight)?))
}

fn rotate(columns: &mut [Vec<f64>], p: usize, q: usize, c: f64, s: f64) {
    let (left, right) = columns.split_at_mut(q);
    for (x, y) in left[p].iter_mut().zip(&mut right[0]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn transposed(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let width = rows.first().map_or(0, Vec::len);
    (0..width).map(|column| rows.iter().map(|row| row[column]).collect()).collect()
}

fn rows(weight: &Tensor) -> Result<Vec<Vec<f64>>> {
    Ok(weight.to_dtype(DType::F64)?.to_vec2()?)
}

/// f32, where the weight is.
fn tensor(rows: &[Vec<f64>], like: &Tensor) -> Result<Tensor> {
    let (m, n) = (rows.len(), rows.first().map_or(0, Vec::len));
    let values: Vec<f32> = rows.iter().flatten().map(|value| *value as f32).collect();
    Ok(Tensor::from_vec(values, (m, n), like.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn singular_values_and_vectors_make_the_matrix() {
        for (m, n) in [(7, 4), (4, 7), (5, 5)] {
            let a: Vec<Vec<f64>> = (0..m)
                .map(|i| (0..n).map(|j| ((3 * i + 7 * j * j) as f64).sin()).collect())
                .collect();
            let found = svd(&a);
            assert!(found.s.windows(2).all(|pair| pair[0] >= pair[1]));
            for (i, row) in a.iter().enumerate() {
                for (j, value) in row.iter().enumerate() {
                    let sum: f64 = (0..found.s.len())
                        .map(|k| found.u[k][i] * found.s[k] * found.v[k][j])
                        .sum();
                    assert!((sum - value).abs() < 1e-12, "{sum} {value}");
                }
            }
            for (k, u) in found.u.iter().enumerate() {
                for (l, other) in found.u.iter().enumerate() {
                    assert!((dot(u, other) - f64::from(u8::from(k == l))).abs() < 1e-12);
                }
            }
        }
    }
}
