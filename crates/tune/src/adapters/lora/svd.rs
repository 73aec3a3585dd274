//! Decompositions of a weight: initial weights of PiSSA and OLoRA, and combinations of LoRAs.
//!
//! All of them need a few directions of a large matrix. The largest singular directions come from
//! a block Krylov space that is restarted until they have converged ([Musco and Musco
//! 2015](https://arxiv.org/abs/1504.05477)): all work on the whole matrix is in products with
//! blocks of vectors, in f64, on all threads. The small matrices in between are taken apart by
//! one-sided Jacobi rotations ([Hestenes 1958](https://doi.org/10.1137/0106005)): simple, exact and
//! cubic in the smaller side.
//!
//! A block of vectors is a tensor of rows, `[vectors, length]`.

use candle_core::{DType, Device, Tensor};

use crate::error::Result;
use crate::train::rng::Stream;

/// A thin singular value decomposition: `a = u · diag(s) · vᵀ`, the largest first. `u` and `v` are
/// lists of columns.
struct Svd {
    u: Vec<Vec<f64>>,
    s: Vec<f64>,
    v: Vec<Vec<f64>>,
}

/// # Shapes
/// `a` a list of rows, `[m, n]` -> min(m, n) columns.
fn svd(a: &[Vec<f64>]) -> Svd {
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

/// A matrix whose smaller side is at most this is taken apart whole.
const SMALL: usize = 128;
/// Vectors beyond those asked for: the more, the larger the gap behind the last one asked for.
const OVERSAMPLING: usize = 16;
/// Products with the matrix and its transpose between two restarts.
const DEPTH: usize = 6;
/// A direction has converged when `‖AᵀA·v − s²·v‖` is at most this part of the largest s².
const CONVERGED: f64 = 1e-8;
/// Restarts, at most. Where the singular values lie so close that these do not suffice, directions
/// are taken for each other whose values differ by less than rounding to f32 does.
const RESTARTS: usize = 100;

/// The `k` largest singular directions, or as many as the matrix has.
///
/// # Shapes
/// `a` `[m, n]` f64, on the CPU.
fn largest(a: &Tensor, k: usize) -> Result<Svd> {
    let (m, n) = a.dims2()?;
    let side = m.min(n);
    let block = (k + OVERSAMPLING.max(k / 2)).min(side);
    if side <= SMALL.max(3 * block) {
        let mut found = svd(&a.to_vec2()?);
        found.u.truncate(k);
        found.s.truncate(k);
        found.v.truncate(k);
        return Ok(found);
    }
    if n > m {
        let turned = largest(&a.t()?.contiguous()?, k)?;
        return Ok(Svd { u: turned.v, s: turned.s, v: turned.u });
    }
    let mut stream = Stream::new(0, "singular directions", 0);
    let random: Vec<f64> = (0..block * n).map(|_| f64::from(stream.normal())).collect();
    let mut start = Tensor::from_vec(random, (block, n), &Device::Cpu)?;
    let mut restarts = 0;
    loop {
        // The space of V, AᵀA·V, (AᵀA)²·V …, and the images A·V of its basis.
        let mut basis: Vec<Tensor> = Vec::new();
        let mut images: Vec<Tensor> = Vec::new();
        let mut next = start;
        for _ in 0..DEPTH {
            let Some(vectors) = orthonormal(&next, &basis)? else { break };
            let image = vectors.matmul(&a.t()?)?; // [b, n] · [n, m]
            next = image.matmul(a)?; // [b, m] · [m, n]
            basis.push(vectors);
            images.push(image);
        }
        if basis.is_empty() {
            return Ok(Svd { u: Vec::new(), s: Vec::new(), v: Vec::new() }); // a matrix of zeros
        }
        let (basis, images) = (Tensor::cat(&basis, 0)?, Tensor::cat(&images, 0)?);
        // The best of the space: the eigenvectors of the images' products with each other.
        let products = images.matmul(&images.t()?)?;
        let inner = svd(&products.to_vec2()?);
        let count = block.min(inner.s.len());
        let turn = matrix(&inner.u[..count])?; // [count, basis]
        let (v, u) = (turn.matmul(&basis)?, turn.matmul(&images)?);
        let s: Vec<f64> = inner.s[..count].iter().map(|square| square.max(0.0).sqrt()).collect();
        let wanted = k.min(count);
        let squares = Tensor::from_slice(&inner.s[..wanted], (wanted, 1), &Device::Cpu)?;
        let residual = (u.narrow(0, 0, wanted)?.matmul(a)?
            - v.narrow(0, 0, wanted)?.broadcast_mul(&squares)?)?;
        let residuals = residual.sqr()?.sum(1)?.to_vec1::<f64>()?;
        let bound = CONVERGED * inner.s[0];
        if restarts == RESTARTS || residuals.iter().all(|square| square.sqrt() <= bound) {
            let unit = |(u, s): (Vec<f64>, &f64)| {
                let norm = s.max(f64::MIN_POSITIVE);
                u.into_iter().map(|value| value / norm).collect()
            };
            let u: Vec<Vec<f64>> = u.narrow(0, 0, wanted)?.to_vec2()?;
            return Ok(Svd {
                u: u.into_iter().zip(&s).map(unit).collect(),
                v: v.narrow(0, 0, wanted)?.to_vec2()?,
                s: s[..wanted].to_vec(),
            });
        }
        start = v;
        restarts += 1;
    }
}

/// An orthonormal basis of the rows of `block`, less what `basis` spans already. Rows that depend
/// on others leave none; `None` if no row is left.
///
/// # Shapes
/// `block` `[b, n]`, all of `basis` `[.., n]` -> `[at most b, n]`.
fn orthonormal(block: &Tensor, basis: &[Tensor]) -> Result<Option<Tensor>> {
    let mut block = block.clone();
    // Twice: once leaves rounding errors behind, all the larger the more of a row was taken away.
    for _ in 0..2 {
        let lengths = block.sqr()?.sum(1)?.to_vec1::<f64>()?;
        for known in basis {
            block = (&block - block.matmul(&known.t()?)?.matmul(known)?)?;
        }
        let mut rows: Vec<Vec<f64>> = Vec::new();
        for (mut row, length) in block.to_vec2::<f64>()?.into_iter().zip(lengths) {
            for other in &rows {
                let along = dot(other, &row);
                row.iter_mut().zip(other).for_each(|(value, other)| *value -= along * other);
            }
            let norm = dot(&row, &row).sqrt();
            if norm > 1e-10 * length.sqrt() {
                row.iter_mut().for_each(|value| *value /= norm);
                rows.push(row);
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        block = matrix(&rows)?;
    }
    Ok(Some(block))
}

/// PiSSA's A `[r, in]` and B `[out, r]`: `scaling · B·A` is the best approximation of the weight of
/// rank r.
///
/// # Shapes
/// `weight` `[out, in]`.
pub(crate) fn principal(weight: &Tensor, r: usize, scaling: f64) -> Result<(Tensor, Tensor)> {
    let found = largest(&host(weight)?, r)?;
    let root = |i: usize| (found.s[i] / scaling).sqrt();
    let (out, inp) = weight.dims2()?;
    let (a, b) = (scaled(&found.v, root, r, inp), scaled(&found.u, root, r, out));
    Ok((tensor(&a, weight)?, tensor(&b, weight)?.t()?.contiguous()?))
}

/// A `[rank, in]` and B `[out, rank]`, so that B·A is the best approximation of that rank of the
/// product of two matrices; zeros beyond its own rank.
///
/// # Shapes
/// `left` `[out, n]`, `right` `[n, in]`, with n small beside the other sides.
pub(crate) fn truncated(left: &Tensor, right: &Tensor, rank: usize) -> Result<(Tensor, Tensor)> {
    let (out, inp) = (left.dim(0)?, right.dim(1)?);
    let (left64, right64) = (host(left)?, host(right)?);
    // left = (left·Q)·Qᵀ and likewise right: what is left between is no larger than n x n.
    let columns = orthonormal(&left64.t()?.contiguous()?, &[])?;
    let rows = orthonormal(&right64, &[])?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    if let (Some(columns), Some(rows)) = (columns, rows) {
        let core = columns.matmul(&left64)?.matmul(&right64.matmul(&rows.t()?)?)?;
        let found = svd(&core.to_vec2()?);
        let kept = rank.min(found.s.len());
        let turned = |by: &[Vec<f64>], basis: &Tensor| -> Result<Vec<Vec<f64>>> {
            Ok(matrix(&by[..kept])?.matmul(basis)?.to_vec2()?)
        };
        a = turned(&found.v, &rows)?;
        b = scaled(&turned(&found.u, &columns)?, |i| found.s[i], kept, out);
    }
    a.resize(rank, vec![0.0; inp]);
    b.resize(rank, vec![0.0; out]);
    Ok((tensor(&a, right)?, tensor(&b, left)?.t()?.contiguous()?))
}

/// OLoRA's A `[r, in]` and B `[out, r]`: the first r rows of R and columns of Q of the weight's QR
/// decomposition.
///
/// # Shapes
/// `weight` `[out, in]`.
pub(crate) fn orthogonal(weight: &Tensor, r: usize) -> Result<(Tensor, Tensor)> {
    let w = host(weight)?;
    let (out, inp) = w.dims2()?;
    let first = w.narrow(1, 0, r)?.t()?.contiguous()?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    if let Some(q) = orthonormal(&first, &[])? {
        // R = Qᵀ·W, upper triangular
        (a, b) = (q.matmul(&w)?.to_vec2()?, q.to_vec2()?);
    }
    a.resize(r, vec![0.0; inp]);
    b.resize(r, vec![0.0; out]);
    Ok((tensor(&a, weight)?, tensor(&b, weight)?.t()?.contiguous()?))
}

/// The first `count` vectors times their factors; zeros where there are fewer.
fn scaled(
    vectors: &[Vec<f64>],
    factor: impl Fn(usize) -> f64,
    count: usize,
    length: usize,
) -> Vec<Vec<f64>> {
    let vector = |i: usize| match vectors.get(i) {
        Some(vector) => vector.iter().map(|value| value * factor(i)).collect(),
        None => vec![0.0; length],
    };
    (0..count).map(vector).collect()
}

fn rotate(columns: &mut [Vec<f64>], p: usize, q: usize, c: f64, s: f64) {
    let (left, right) = columns.split_at_mut(q);
    for (x, y) in left[p].iter_mut().zip(&mut right[0]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Eight sums side by side, which the compiler turns into vectors.
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a8.iter().zip(b8) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

fn transposed(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let width = rows.first().map_or(0, Vec::len);
    (0..width).map(|column| rows.iter().map(|row| row[column]).collect()).collect()
}

/// f64, on the CPU.
fn host(weight: &Tensor) -> Result<Tensor> {
    Ok(weight.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.contiguous()?)
}

fn matrix(rows: &[Vec<f64>]) -> Result<Tensor> {
    let width = rows.first().map_or(0, Vec::len);
    Ok(Tensor::from_vec(rows.concat(), (rows.len(), width), &Device::Cpu)?)
}

/// f32, where the other one is.
fn tensor(rows: &[Vec<f64>], like: &Tensor) -> Result<Tensor> {
    Ok(matrix(rows)?.to_dtype(DType::F32)?.to_device(like.device())?)
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

    /// Rows of random numbers.
    fn random(rows: usize, columns: usize, name: &str) -> Tensor {
        let mut stream = Stream::new(1, name, 0);
        let values: Vec<f64> = (0..rows * columns).map(|_| f64::from(stream.normal())).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    /// The largest sine of an angle between the two spaces.
    fn apart(found: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
        let rest = |vector: &Vec<f64>| {
            let mut rest = vector.clone();
            for other in expected {
                let along = dot(other, vector);
                rest.iter_mut().zip(other).for_each(|(value, other)| *value -= along * other);
            }
            dot(&rest, &rest).sqrt()
        };
        found.iter().map(rest).fold(0.0, f64::max)
    }

    #[test]
    fn the_largest_directions_are_those_of_the_whole_decomposition() {
        // Of random numbers: the singular values lie as close as they ever do.
        for (m, n) in [(300, 260), (260, 300)] {
            let a = random(m, n, "a");
            let (found, whole) = (largest(&a, 8).unwrap(), svd(&a.to_vec2().unwrap()));
            for (found, expected) in found.s.iter().zip(&whole.s) {
                assert!((found - expected).abs() < 1e-9 * expected, "{found} {expected}");
            }
            assert_eq!(found.s.len(), 8);
            assert!(apart(&found.u, &whole.u[..8]) < 1e-6);
            assert!(apart(&found.v, &whole.v[..8]) < 1e-6);
        }
    }

    #[test]
    fn a_matrix_of_1024_rows_gives_the_directions_it_was_made_of() {
        const N: usize = 1024;
        let orthogonal = |name: &str| orthonormal(&random(N, N, name), &[]).unwrap().unwrap();
        let (u, v) = (orthogonal("u"), orthogonal("v"));
        // As of a trained weight: a few large values, and a long tail that falls slowly.
        let s: Vec<f64> =
            (0..N).map(|i| 8.0 / (1.0 + i as f64).powf(0.6) + 1.0 - i as f64 / N as f64).collect();
        let scale = Tensor::from_slice(&s, (N, 1), &Device::Cpu).unwrap();
        let a = u.broadcast_mul(&scale).unwrap().t().unwrap().matmul(&v).unwrap();
        let found = largest(&a, 16).unwrap();
        for (found, expected) in found.s.iter().zip(&s) {
            assert!((found - expected).abs() < 1e-10 * expected, "{found} {expected}");
        }
        let (u, v) = (u.to_vec2::<f64>().unwrap(), v.to_vec2::<f64>().unwrap());
        for i in 0..16 {
            let (u, v) = (dot(&found.u[i], &u[i]), dot(&found.v[i], &v[i]));
            assert!(u.abs() > 1.0 - 1e-9 && (u - v).abs() < 1e-8, "{i}: {u} {v}");
        }
    }

    #[test]
    fn matrices_of_low_rank_have_no_more_directions_than_their_rank() {
        let low = random(400, 3, "left").matmul(&random(3, 300, "right")).unwrap();
        let found = largest(&low, 8).unwrap();
        assert!(found.s[2] > 1.0 && found.s[3..].iter().all(|s| *s < 1e-4), "{:?}", found.s);
        let zeros = Tensor::zeros((400, 300), DType::F64, &Device::Cpu).unwrap();
        let (a, b) = principal(&zeros, 4, 1.0).unwrap();
        assert_eq!((a.dims(), b.dims()), (&[4, 300][..], &[400, 4][..]));
    }

    #[test]
    fn a_product_is_cut_to_its_best_approximation() {
        let (left, right) = (random(60, 6, "left"), random(6, 50, "right"));
        let product = left.matmul(&right).unwrap();
        let whole = svd(&product.to_vec2().unwrap());
        for rank in [2, 6, 9] {
            let (a, b) = truncated(&left, &right, rank).unwrap();
            assert_eq!((a.dims(), b.dims()), (&[rank, 50][..], &[60, rank][..]));
            let rest = (b.matmul(&a).unwrap().to_dtype(DType::F64).unwrap() - &product).unwrap();
            let rest = rest.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
            let least: f64 = whole.s.iter().skip(rank).map(|s| s * s).sum::<f64>().sqrt();
            assert!((rest - least).abs() < 1e-4 * whole.s[0], "{rank}: {rest} {least}");
        }
    }
}
