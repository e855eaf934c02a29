//! Diagonal initialisations of A: Gu, Gupta, Goel and Ré, "On the Parameterization and Initialization of Diagonal
//! State Space Models" (S4D), 2022.
//!
//! A complex state stands for a conjugate pair, so `dstate` numbers here are the paper's N = 2 `dstate` states, as in
//! the scan; their imaginary parts are positive or 0.

use std::f64::consts::PI;

use num_complex::Complex64;

use super::eigen::{Eigen, hermitian};
use super::{Dense, legs_low_rank};

/// S4D-Lin: frequencies in equal distances, those of a Fourier series.
///
/// ```text
/// A[n] = -1/2 + i pi n
/// ```
pub fn s4d_lin(dstate: usize) -> Vec<Complex64> {
    let a = |n| Complex64::new(-0.5, PI * n as f64);
    (0..dstate).map(a).collect()
}

/// S4D-Inv: frequencies that approximate those of [`s4d_legs`], with N = 2 `dstate`.
///
/// ```text
/// A[n] = -1/2 + i N/pi (N/(2n+1) - 1)
/// ```
pub fn s4d_inv(dstate: usize) -> Vec<Complex64> {
    let size = 2.0 * dstate as f64;
    let a = |n| {
        let frequency = size / PI * (size / (2.0 * n as f64 + 1.0) - 1.0);
        Complex64::new(-0.5, frequency)
    };
    (0..dstate).map(a).collect()
}

/// S4D-Real: decays without frequencies, the diagonal of HiPPO-LegS; the initial A of Mamba.
///
/// ```text
/// A[n] = -(n+1)
/// ```
pub fn s4d_real(dstate: usize) -> Vec<f64> {
    (0..dstate).map(|n| -(n as f64 + 1.0)).collect()
}

/// S4D-LegS: A and B of the normal part of HiPPO-LegS with N = 2 `dstate` states, diagonalised; also the
/// initialisation of S5 (Smith et al., 2022). Frequencies fall.
///
/// With `A + P P^T = V diag(a) V*` ([`legs_low_rank`]) these are `a` and `V* B`, of each conjugate pair the one whose
/// frequency is positive. The phase of each eigenvector is chosen so that its `V* B` is a positive number.
pub fn s4d_legs(dstate: usize) -> (Vec<Complex64>, Vec<Complex64>) {
    let size = 2 * dstate;
    let (legs, p) = (Dense::hippo_legs(size), legs_low_rank(size));
    // -1/2 + S with S skew-symmetric: the eigenvalues of S are i times those of the Hermitian -i S.
    let skew = |n: usize, k: usize| match n == k {
        true => 0.0,
        false => legs.a().at(n, k) + p[n] * p[k],
    };
    let Eigen { values, vectors } = hermitian(size, |n, k| Complex64::new(0.0, -skew(n, k)));
    let a = values
        .iter()
        .map(|&frequency| Complex64::new(-0.5, frequency));
    let b = vectors.iter().map(|vector| {
        let products = vector.iter().zip(legs.b()).map(|(v, b)| v.conj() * b);
        Complex64::from(products.sum::<Complex64>().norm())
    });
    (a.take(dstate).collect(), b.take(dstate).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(found: &[Complex64], expected: &[(f64, f64)]) {
        assert_eq!(found.len(), expected.len());
        for (found, &(re, im)) in found.iter().zip(expected) {
            let difference = (found - Complex64::new(re, im)).norm();
            assert!(
                difference < 1e-12 * found.norm(),
                "{found} is not {re} + {im} i"
            );
        }
    }

    /// Computed from the formulas with 30 digits.
    #[test]
    fn the_formulas_at_four_states() {
        let linear = [0.0, PI, 2.0 * PI, 9.424_777_960_769_38];
        let inverse = [
            17.825_353_626_292_276,
            4.244_131_815_783_876,
            1.527_887_453_682_195_2,
            0.363_782_727_067_189_35,
        ];
        assert_near(&s4d_lin(4), &linear.map(|frequency| (-0.5, frequency)));
        assert_near(&s4d_inv(4), &inverse.map(|frequency| (-0.5, frequency)));
        assert_eq!(s4d_real(4), [-1.0, -2.0, -3.0, -4.0]);
    }

    /// The two eigenvalues of [[-1/2, w], [-w, -1/2]] with w = sqrt(3) / 2 are a cube root of 1 and its conjugate.
    #[test]
    fn one_pair_of_legs_by_hand() {
        let (a, b) = s4d_legs(1);
        assert_near(&a, &[(-0.5, 0.75_f64.sqrt())]);
        // V* B for B = (1, sqrt 3) and the vector (1, i) / sqrt 2
        assert_near(&b, &[(2.0_f64.sqrt(), 0.0)]);
    }

    /// What eigenvalues and transformed inputs have in common with the matrix: a pair's impulse responses add up to
    /// that of the normal system.
    #[test]
    fn the_pairs_of_legs_make_the_normal_system() {
        let (dstate, size) = (4, 8);
        let (legs, p) = (Dense::hippo_legs(size), legs_low_rank(size));
        let normal: Vec<f64> = (0..size * size)
            .map(|at| legs.a().at(at / size, at % size) + p[at / size] * p[at % size])
            .collect();
        let normal = Dense::new(normal, legs.b().to_vec()).unwrap();
        let (a, b) = s4d_legs(dstate);
        // B^T (normal)^k B is the sum of |b|^2 a^k over both of each pair.
        let (mut x, mut scale) = (legs.b().to_vec(), 1.0);
        for k in 0..6 {
            let expected: f64 = x.iter().zip(legs.b()).map(|(x, b)| x * b).sum();
            let pairs = a.iter().zip(&b);
            let found: f64 = pairs
                .map(|(a, b)| 2.0 * (a.powi(k) * b.norm_sqr()).re)
                .sum();
            scale = f64::max(scale, expected.abs());
            assert!(
                (found - expected).abs() < 1e-12 * scale,
                "power {k}: {found} {expected}"
            );
            x = normal.apply(&x, 0.0);
        }
    }

    /// The paper's conjecture of how frequencies grow: the largest one is that of S4D-Inv to leading order, N^2 / pi,
    /// and what it differs from that by tends to a constant, which is close to -pi / 6.
    #[test]
    fn the_largest_frequency_grows_as_the_square_of_the_size() {
        for (dstate, tolerance) in [(8, 3e-3), (16, 7e-4), (32, 2e-4)] {
            let size = 2.0 * dstate as f64;
            let (largest, inverse) = (s4d_legs(dstate).0[0].im, s4d_inv(dstate)[0].im);
            let rest = largest - size * size / PI;
            assert!((rest + PI / 6.0).abs() < tolerance, "{size}: {rest}");
            assert!((inverse / largest - 1.0).abs() < 1.1 / size, "{size}");
        }
    }

    #[test]
    fn no_states_are_no_numbers() {
        assert!(s4d_lin(0).is_empty() && s4d_inv(0).is_empty() && s4d_real(0).is_empty());
        assert!(s4d_legs(0).0.is_empty());
    }
}
