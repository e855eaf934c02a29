//! [`Matrix`]: what the chunked algorithms are written in.

/// A matrix, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Vec<f64>,
}

impl Matrix {
    /// The matrix whose element in row `i` and column `j` is `element(i, j)`.
    pub(super) fn new(rows: usize, columns: usize, element: impl Fn(usize, usize) -> f64) -> Self {
        let element = &element;
        let row = |i| (0..columns).map(move |j| element(i, j));
        Self {
            rows,
            columns,
            values: (0..rows).flat_map(row).collect(),
        }
    }

    pub(super) fn zeros(rows: usize, columns: usize) -> Self {
        Self::new(rows, columns, |_, _| 0.0)
    }

    /// A copy of numbers that lie row by row.
    pub(super) fn of(rows: usize, columns: usize, values: &[f64]) -> Self {
        Self::new(rows, columns, |i, j| values[i * columns + j])
    }

    pub(super) fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.columns + j]
    }

    pub(super) fn at_mut(&mut self, i: usize, j: usize) -> &mut f64 {
        &mut self.values[i * self.columns + j]
    }

    pub(super) fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.columns..][..self.columns]
    }

    pub(super) fn transposed(&self) -> Self {
        Self::new(self.columns, self.rows, |i, j| self.at(j, i))
    }

    /// The product of two matrices.
    pub(super) fn times(&self, other: &Self) -> Self {
        let mut result = Self::zeros(self.rows, other.columns);
        for (i, sums) in result.values.chunks_mut(other.columns.max(1)).enumerate() {
            for (k, factor) in self.row(i).iter().enumerate() {
                for (sum, x) in sums.iter_mut().zip(other.row(k)) {
                    *sum += factor * x;
                }
            }
        }
        result
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        Self::new(self.rows, self.columns, |i, j| {
            self.at(i, j) + other.at(i, j)
        })
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        Self::new(self.rows, self.columns, |i, j| {
            self.at(i, j) - other.at(i, j)
        })
    }

    /// The matrix of `f` of each element.
    pub(super) fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self::new(self.rows, self.columns, |i, j| f(self.at(i, j)))
    }

    /// The sum of products of elements of row `i` of this and row `j` of another matrix.
    pub(super) fn dot(&self, i: usize, other: &Self, j: usize) -> f64 {
        let products = self.row(i).iter().zip(other.row(j)).map(|(x, y)| x * y);
        products.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::Matrix;

    #[test]
    fn products_and_transposes_are_those_of_matrices() {
        let a = Matrix::of(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let b = Matrix::of(3, 1, &[1.0, 0.0, -1.0]);
        assert_eq!(a.times(&b).values, [-2.0, -2.0]);
        assert_eq!(a.transposed().values, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(a.dot(0, &a, 1), 4.0 + 10.0 + 18.0);
        assert_eq!(a.plus(&a).minus(&a), a);
        assert_eq!(b.map(|x| x + 1.0).values, [2.0, 1.0, 0.0]);
    }
}
