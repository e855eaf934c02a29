//! Eigenvalues and eigenvectors of Hermitian matrices.

use num_complex::Complex64;

/// Eigenvalues, and eigenvectors of length 1 in the same order: `vectors[i]` belongs to `values[i]`.
pub(super) struct Eigen {
    pub(super) values: Vec<f64>,
    pub(super) vectors: Vec<Vec<Complex64>>,
}

/// Diagonalises the Hermitian matrix whose element of row `i` and column `j` is `f(i, j)`, by Jacobi's rotations:
/// Golub and Van Loan, "Matrix Computations", section 8.5. Eigenvalues come in falling order.
pub(super) fn hermitian(size: usize, f: impl Fn(usize, usize) -> Complex64) -> Eigen {
    // A sweep squares what is off the diagonal, once that is small; ten are plenty at any size in use.
    const SWEEPS: usize = 30;
    let mut h: Vec<Vec<Complex64>> = (0..size)
        .map(|i| (0..size).map(|j| f(i, j)).collect())
        .collect();
    let unit = |i, j| Complex64::from(f64::from(u8::from(i == j)));
    let mut vectors: Vec<Vec<Complex64>> = (0..size)
        .map(|i| (0..size).map(|j| unit(i, j)).collect())
        .collect();
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for p in 0..size {
            for q in p + 1..size {
                let off = h[p][q].norm();
                let (at_p, at_q) = (h[p][p].re, h[q][q].re);
                // What this adds to neither is lost in rounding.
                if at_p.abs() + off == at_p.abs() && at_q.abs() + off == at_q.abs() {
                    continue;
                }
                rotated = true;
                // The phase makes the pair real, the angle makes it diagonal.
                let phase = h[p][q].conj() / off;
                let ratio = (at_q - at_p) / (2.0 * off);
                let tangent = ratio.signum() / (ratio.abs() + ratio.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let sine = tangent * cosine;
                let turn = |x: &mut Complex64, y: &mut Complex64, phase: Complex64| {
                    let (from_x, from_y) = (*x, *y * phase);
                    *x = from_x * cosine - from_y * sine;
                    *y = from_x * sine + from_y * cosine;
                };
                for row in &mut h {
                    let (left, right) = row.split_at_mut(q);
                    turn(&mut left[p], &mut right[0], phase);
                }
                let (above, below) = h.split_at_mut(q);
                for (x, y) in above[p].iter_mut().zip(&mut below[0]) {
                    turn(x, y, phase.conj());
                }
                let (before, behind) = vectors.split_at_mut(q);
                for (x, y) in before[p].iter_mut().zip(&mut behind[0]) {
                    turn(x, y, phase);
                }
            }
        }
        if !rotated {
            break;
        }
    }
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&i, &j| h[j][j].re.total_cmp(&h[i][i].re));
    Eigen {
        values: order.iter().map(|&i| h[i][i].re).collect(),
        vectors: order.iter().map(|&i| vectors[i].clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_two_by_two_matrix_by_hand() {
        // [2, i; -i, 2]: 3 and 1
        let off = Complex64::new(0.0, 1.0);
        let found = hermitian(2, |i, j| match (i, j) {
            (0, 1) => off,
            (1, 0) => off.conj(),
            _ => 2.0.into(),
        });
        assert!((found.values[0] - 3.0).abs() < 1e-15);
        assert!((found.values[1] - 1.0).abs() < 1e-15);
    }

    #[test]
    fn eigenvectors_are_orthonormal_and_make_the_matrix() {
        for size in [1, 2, 5, 16] {
            let f = |i: usize, j: usize| {
                let (low, high) = (i.min(j) as f64, i.max(j) as f64);
                let entry = Complex64::new((1.0 + low * high).sin(), (high - low).sin());
                if i <= j { entry } else { entry.conj() }
            };
            let Eigen { values, vectors } = hermitian(size, f);
            assert!(values.is_sorted_by(|x, y| x >= y));
            for i in 0..size {
                for j in 0..size {
                    let pairs = vectors[i].iter().zip(&vectors[j]);
                    let product: Complex64 = pairs.map(|(x, y)| x.conj() * y).sum();
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((product - expected).norm() < 1e-13, "{size}: {i}, {j}");
                    let made: Complex64 = (0..size)
                        .map(|k| vectors[k][i] * values[k] * vectors[k][j].conj())
                        .sum();
                    assert!((made - f(i, j)).norm() < 1e-13, "{size}: {i}, {j}");
                }
            }
        }
    }
}
