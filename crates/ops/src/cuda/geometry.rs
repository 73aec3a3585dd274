//! How many threads and blocks a kernel is launched with, and how a row-major product is put to
//! cuBLAS: the parts of a launch that a CPU can test.

/// Threads of a block that has one row.
pub const ROW_THREADS: usize = 256;
/// Threads of a block of an elementwise kernel.
pub const ELEMENT_THREADS: usize = 256;
/// Threads of a block of the attention kernels: four warps of 16 rows.
pub const ATTENTION_THREADS: usize = 128;
/// Queries, or keys, of a block of the attention kernels.
pub const ATTENTION_ROWS: usize = 64;

/// Blocks of an elementwise kernel.
pub fn element_blocks(n: usize) -> usize {
    n.div_ceil(ELEMENT_THREADS)
}

/// A product as cuBLAS takes it: matrices by columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByColumns {
    /// Whether the first matrix is read transposed; the second never is.
    pub transposed: bool,
    /// Rows of the result by columns.
    pub m: usize,
    /// Columns of it.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Numbers between two columns of the first matrix.
    pub lda: usize,
    /// The same of the second.
    pub ldb: usize,
    /// The same of the result.
    pub ldc: usize,
}

impl ByColumns {
    /// `y [n, out] += left [n, k] · right`, all by rows, with `right` `[k, out]`, or `[out, k]` to
    /// be read transposed. A matrix by rows is its transpose by columns, so `right` comes first.
    pub fn of(n: usize, out: usize, k: usize, right_transposed: bool) -> Self {
        let lda = if right_transposed { k } else { out };
        Self { transposed: right_transposed, m: out, n, k, lda, ldb: k, ldc: out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cuBLAS's manual says that `gemm` computes, with beta 1.
    fn gemm(how: ByColumns, a: &[f32], b: &[f32], c: &mut [f32]) {
        for i in 0..how.m {
            for j in 0..how.n {
                for l in 0..how.k {
                    let left = if how.transposed { a[l + i * how.lda] } else { a[i + l * how.lda] };
                    c[i + j * how.ldc] += left * b[l + j * how.ldb];
                }
            }
        }
    }

    #[test]
    fn a_product_by_rows_is_put_right() {
        let (n, out, k) = (3, 5, 2);
        let numbers =
            |count: usize, from: f32| (0..count).map(|i| from + i as f32).collect::<Vec<_>>();
        let left = numbers(n * k, 1.);
        for transposed in [false, true] {
            let right = numbers(k * out, -4.);
            let mut y = numbers(n * out, 100.);
            let mut expected = y.clone();
            for i in 0..n {
                for j in 0..out {
                    for l in 0..k {
                        let right = if transposed { right[j * k + l] } else { right[l * out + j] };
                        expected[i * out + j] += left[i * k + l] * right;
                    }
                }
            }
            gemm(ByColumns::of(n, out, k, transposed), &right, &left, &mut y);
            assert_eq!(y, expected);
        }
    }
}
