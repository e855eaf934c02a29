//! Square matrices: as much linear algebra as the discretisations need.

/// A square matrix of `f64`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct SquareMatrix {
    size: usize,
    elements: Vec<f64>,
}

impl SquareMatrix {
    /// Rows, and columns.
    pub fn size(&self) -> usize {
        self.size
    }

    /// `[size, size]`
    pub fn elements(&self) -> &[f64] {
        &self.elements
    }

    /// `exp(self)`, by scaling and squaring with a Padé approximant of order 6: Golub and Van Loan, "Matrix
    /// Computations", algorithm 9.3.1.
    ///
    /// It is accurate to about a rounding error of the largest element on the way. Elements that are not finite, or
    /// whose exponential is not, give such elements.
    ///
    /// ```
    /// use seqmix::state_space::Dense;
    ///
    /// // A turn by a quarter.
    /// let quarter = std::f64::consts::FRAC_PI_2;
    /// let turn = Dense::new(vec![0.0, -quarter, quarter, 0.0], vec![0.0; 2])?.a().exponential();
    /// for (found, expected) in turn.elements().iter().zip([0.0, -1.0, 1.0, 0.0]) {
    ///     assert!((found - expected).abs() < 1e-15);
    /// }
    /// # Ok::<(), seqmix::Error>(())
    /// ```
    pub fn exponential(&self) -> Self {
        // Below a norm of 1/2 this order leaves less than a rounding error.
        const ORDER: i32 = 6;
        let norm = self.norm();
        let squarings = if norm.is_finite() && norm > 0.5 {
            (2.0 * norm).log2().ceil()
        } else {
            0.0
        };
        let scaled = self.scaled((-squarings).exp2());
        let identity = Self::from_fn(self.size, |i, j| f64::from(u8::from(i == j)));
        let (mut numerator, mut denominator) = (identity.clone(), identity.clone());
        let (mut power, mut coefficient) = (identity, 1.0);
        for k in 1..=ORDER {
            coefficient *= f64::from(ORDER - k + 1) / f64::from((2 * ORDER - k + 1) * k);
            power = power.times(&scaled);
            numerator = numerator.plus(&power.scaled(coefficient));
            let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
            denominator = denominator.plus(&power.scaled(sign * coefficient));
        }
        let mut result = denominator.solve(&numerator);
        for _ in 0..squarings as u32 {
            result = result.times(&result);
        }
        result
    }

    /// The matrix whose element of row `i` and column `j` is `f(i, j)`.
    pub(super) fn from_fn(size: usize, f: impl Fn(usize, usize) -> f64) -> Self {
        let rows = (0..size).flat_map(|i| (0..size).map(move |j| (i, j)));
        Self {
            size,
            elements: rows.map(|(i, j)| f(i, j)).collect(),
        }
    }

    /// The element of row `i` and column `j`.
    pub(super) fn at(&self, i: usize, j: usize) -> f64 {
        self.elements[i * self.size + j]
    }

    /// `factor self`
    pub(super) fn scaled(&self, factor: f64) -> Self {
        Self::from_fn(self.size, |i, j| factor * self.at(i, j))
    }

    /// `self + other`
    pub(super) fn plus(&self, other: &Self) -> Self {
        Self::from_fn(self.size, |i, j| self.at(i, j) + other.at(i, j))
    }

    /// `self other`
    pub(super) fn times(&self, other: &Self) -> Self {
        let mut elements = vec![0.0; self.size * self.size];
        for i in 0..self.size {
            let row = &mut elements[i * self.size..(i + 1) * self.size];
            for k in 0..self.size {
                let factor = self.at(i, k);
                let from = &other.elements[k * self.size..(k + 1) * self.size];
                row.iter_mut().zip(from).for_each(|(x, y)| *x += factor * y);
            }
        }
        Self {
            size: self.size,
            elements,
        }
    }

    /// `self^-1 other`, by elimination with row pivots; not finite where `self` is singular.
    pub(super) fn solve(&self, other: &Self) -> Self {
        let size = self.size;
        let (mut left, mut right) = (self.clone(), other.clone());
        for k in 0..size {
            let largest = |i: &usize, j: &usize| {
                let (x, y) = (left.at(*i, k).abs(), left.at(*j, k).abs());
                x.total_cmp(&y)
            };
            let pivot = (k..size).max_by(largest).unwrap_or(k);
            for matrix in [&mut left, &mut right] {
                for j in 0..size {
                    matrix.elements.swap(k * size + j, pivot * size + j);
                }
            }
            for i in k + 1..size {
                let factor = left.at(i, k) / left.at(k, k);
                for matrix in [&mut left, &mut right] {
                    for j in 0..size {
                        matrix.elements[i * size + j] -= factor * matrix.at(k, j);
                    }
                }
            }
        }
        for i in (0..size).rev() {
            for j in 0..size {
                let known = (i + 1..size).map(|k| left.at(i, k) * right.at(k, j));
                let rest = right.at(i, j) - known.sum::<f64>();
                right.elements[i * size + j] = rest / left.at(i, i);
            }
        }
        right
    }

    /// The largest sum of absolute values of a row.
    fn norm(&self) -> f64 {
        let rows = (0..self.size).map(|i| (0..self.size).map(|j| self.at(i, j).abs()).sum());
        rows.fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(found: &SquareMatrix, expected: &[f64], tolerance: f64) {
        assert_eq!(found.elements().len(), expected.len());
        for (found, expected) in found.elements().iter().zip(expected) {
            assert!(
                (found - expected).abs() <= tolerance * expected.abs().max(1.0),
                "{found} is not {expected}"
            );
        }
    }

    fn matrix(elements: &[f64]) -> SquareMatrix {
        let size = elements.len().isqrt();
        SquareMatrix::from_fn(size, |i, j| elements[i * size + j])
    }

    #[test]
    fn elimination_solves_and_needs_pivots() {
        let left = matrix(&[0.0, 2.0, 1.0, 1.0, 1.0, 0.0, 3.0, 0.0, 1.0]);
        let right = matrix(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0]);
        let found = left.solve(&left.times(&right));
        assert_near(&found, right.elements(), 1e-14);
        let singular = matrix(&[1.0, 2.0, 2.0, 4.0]);
        let found = singular.solve(&matrix(&[1.0, 0.0, 0.0, 1.0]));
        assert!(found.elements().iter().all(|x| !x.is_finite()));
    }

    #[test]
    fn exponentials_have_their_known_values() {
        let diagonal = matrix(&[-3.0, 0.0, 0.0, 2.0]).exponential();
        let expected = [(-3.0_f64).exp(), 0.0, 0.0, 2.0_f64.exp()];
        assert_near(&diagonal, &expected, 1e-14);
        // nilpotent: the series ends
        let nilpotent = matrix(&[0.0, 8.0, 5.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0]).exponential();
        let expected = [1.0, 8.0, 5.0 + 16.0, 0.0, 1.0, 4.0, 0.0, 0.0, 1.0];
        assert_near(&nilpotent, &expected, 1e-13);
        // a turn by 20 with growth: exp(a) (cos, -sin, sin, cos)
        let turn = matrix(&[1.0, -20.0, 20.0, 1.0]).exponential();
        let (sin, cos) = 20.0_f64.sin_cos();
        let expected = [cos, -sin, sin, cos].map(|x| x * 1.0_f64.exp());
        assert_near(&turn, &expected, 1e-13);
        assert_near(&matrix(&[-1e4]).exponential(), &[0.0], 0.0);
        assert_eq!(matrix(&[]).exponential().elements(), [0.0; 0]);
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        assert!(!matrix(&[f64::NAN]).exponential().elements()[0].is_finite());
        assert!(!matrix(&[1e5]).exponential().elements()[0].is_finite());
    }
}
