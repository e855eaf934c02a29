//! Systems with a dense A.

use super::SquareMatrix;
use crate::{Error, Result};

/// A and B of a system with one input: `x' = A x + B u` in continuous time, `x[t] = A x[t-1] + B u[t]` in discrete
/// time.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    a: SquareMatrix,
    b: Vec<f64>,
}

impl Dense {
    /// The system of these numbers: `a` is `[dstate, dstate]`, row-major, and `b` is `[dstate]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `a` has not as many elements as the square of `b`'s.
    pub fn new(a: Vec<f64>, b: Vec<f64>) -> Result<Self> {
        let dstate = b.len();
        if dstate.checked_mul(dstate) != Some(a.len()) {
            return Err(Error::Shape {
                op: "state_space::Dense::new",
                tensor: "a",
                expected: format!("{dstate} rows of {dstate}, as b has {dstate} elements"),
                found: format!("{} elements", a.len()),
            });
        }
        let a = SquareMatrix::from_fn(dstate, |i, j| a[i * dstate + j]);
        Ok(Self { a, b })
    }

    /// The system of a matrix and as many inputs as it has rows.
    pub(super) fn of(a: SquareMatrix, b: Vec<f64>) -> Self {
        Self { a, b }
    }

    /// `[dstate, dstate]`
    pub fn a(&self) -> &SquareMatrix {
        &self.a
    }

    /// `[dstate]`
    pub fn b(&self) -> &[f64] {
        &self.b
    }

    /// `A x + B u`: in discrete time the state after `x`, in continuous time its slope. Of `x`, numbers beyond
    /// `dstate` are not read, and missing ones count as zeros.
    pub fn apply(&self, x: &[f64], u: f64) -> Vec<f64> {
        let dstate = self.b.len();
        let row = |i| {
            let products = (0..dstate).zip(x).map(|(j, x)| self.a.at(i, j) * x);
            products.sum::<f64>() + self.b[i] * u
        };
        (0..dstate).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_product() {
        let system = Dense::new(vec![1.0, 2.0, 3.0, 4.0], vec![10.0, 20.0]).unwrap();
        assert_eq!(system.apply(&[1.0, -1.0], 0.5), [4.0, 9.0]);
    }

    #[test]
    fn sizes_that_disagree_are_named() {
        let error = Dense::new(vec![0.0; 5], vec![0.0; 2]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "state_space::Dense::new: a has 5 elements, expected 2 rows of 2, as b has 2 elements"
        );
    }
}
