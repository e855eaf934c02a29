//! [`Scores`]: the products of each row of a chunk with the keys before it, faded by what lies between.

use super::chunks::Chunk;
use crate::reference::matrix::Matrix;

/// `[steps, steps]`: in row `i` and column `j < i` the sum over channels of `rows[i] k[j]` times the decays of the
/// steps from `j + 1` to the end of `i`; in column `i` that of `rows[i] own k[i]`; 0 to the right.
pub(super) struct Scores<'a> {
    pub(super) chunk: &'a Chunk<'a>,
    /// `[steps, dk]`
    pub(super) rows: &'a Matrix,
    /// `[steps]`: before which step the decays end that a row meets, `i` or `i + 1`.
    pub(super) ends: Vec<usize>,
    /// `[dk]`
    pub(super) own: Vec<f64>,
}

/// Gradients of what scores come from.
pub(super) struct ScoreGradients {
    /// `[steps, dk]`
    pub(super) rows: Matrix,
    /// `[steps, dk]`
    pub(super) k: Matrix,
    /// `[steps, dk]`: of the sum of the logarithms of all decays up to a step.
    pub(super) decay_sums: Matrix,
    /// `[dk]`
    pub(super) own: Vec<f64>,
}

impl Scores<'_> {
    pub(super) fn matrix(&self) -> Matrix {
        let Chunk { k, .. } = self.chunk;
        let steps = self.chunk.steps;
        let mut result = Matrix::zeros(steps, steps);
        for start in (0..steps).step_by(self.chunk.sub_chunk) {
            let end = steps.min(start + self.chunk.sub_chunk);
            let (left, right) = (self.left(start, end), self.right(start));
            let outside = left.times(&right.transposed());
            for i in start..end {
                for j in 0..start {
                    *result.at_mut(i, j) = outside.at(i - start, j);
                }
                for j in start..i {
                    let products = (0..k.columns)
                        .map(|c| self.rows.at(i, c) * k.at(j, c) * self.between(i, j, c));
                    *result.at_mut(i, j) = products.sum();
                }
                let own = (0..k.columns).map(|c| self.rows.at(i, c) * self.own[c] * k.at(i, c));
                *result.at_mut(i, i) = own.sum();
            }
        }
        result
    }

    /// The gradients for `d`, that of the scores, of which only the left lower half counts.
    pub(super) fn gradients(&self, d: &Matrix) -> ScoreGradients {
        let Chunk { k, .. } = self.chunk;
        let steps = self.chunk.steps;
        let mut drows = Matrix::zeros(steps, k.columns);
        let mut dk = drows.clone();
        let mut decay_sums = drows.clone();
        for start in (0..steps).step_by(self.chunk.sub_chunk) {
            let end = steps.min(start + self.chunk.sub_chunk);
            let (left, right) = (self.left(start, end), self.right(start));
            let outside = Matrix::new(end - start, start, |i, j| d.at(start + i, j));
            let (dleft, dright) = (outside.times(&right), outside.transposed().times(&left));
            for c in 0..k.columns {
                for j in 0..start {
                    *dk.at_mut(j, c) += dright.at(j, c) * self.chunk.decay(j + 1..start, c);
                    *decay_sums.at_mut(j, c) -= dright.at(j, c) * right.at(j, c);
                }
                for i in start..end {
                    let after = self.chunk.decay(start..self.ends[i], c);
                    *drows.at_mut(i, c) += dleft.at(i - start, c) * after;
                    let mut passed = dleft.at(i - start, c) * left.at(i - start, c);
                    for j in start..i {
                        let factor = d.at(i, j) * self.between(i, j, c);
                        let (row, key) = (self.rows.at(i, c), k.at(j, c));
                        *drows.at_mut(i, c) += factor * key;
                        *dk.at_mut(j, c) += factor * row;
                        passed += factor * key * row;
                        *decay_sums.at_mut(j, c) -= factor * key * row;
                    }
                    // without an end there is no step before, and nothing was passed
                    if let Some(last) = self.ends[i].checked_sub(1) {
                        *decay_sums.at_mut(last, c) += passed;
                    }
                }
            }
        }
        for c in 0..k.columns {
            for i in 0..steps {
                *drows.at_mut(i, c) += d.at(i, i) * self.own[c] * k.at(i, c);
                *dk.at_mut(i, c) += d.at(i, i) * self.own[c] * self.rows.at(i, c);
            }
        }
        let own = |c| {
            let products = (0..steps).map(|i| d.at(i, i) * self.rows.at(i, c) * k.at(i, c));
            products.sum()
        };
        let own = (0..k.columns).map(own).collect();
        ScoreGradients {
            rows: drows,
            k: dk,
            decay_sums,
            own,
        }
    }

    /// The rows of the sub-chunk from `start`, faded since then.
    fn left(&self, start: usize, end: usize) -> Matrix {
        Matrix::new(end - start, self.rows.columns, |i, c| {
            let i = start + i;
            (self.chunk.round)(self.rows.at(i, c) * self.chunk.decay(start..self.ends[i], c))
        })
    }

    /// The keys before the sub-chunk from `start`, faded until then.
    fn right(&self, start: usize) -> Matrix {
        Matrix::new(start, self.rows.columns, |j, c| {
            (self.chunk.round)(self.chunk.k.at(j, c) * self.chunk.decay(j + 1..start, c))
        })
    }

    /// What is left of the update of step `j` where row `i` meets it.
    fn between(&self, i: usize, j: usize, c: usize) -> f64 {
        self.chunk.decay(j + 1..self.ends[i], c)
    }
}
