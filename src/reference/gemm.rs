//! Matrix multiplication by the formula, with what is done to the product in the same call.

use super::{Mismatch, check_length};

/// What is applied to each element of `alpha A B + beta C + bias`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`
    Relu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`: Hendrycks and Gimpel, "Gaussian Error Linear Units",
    /// 2016.
    GeluTanh,
    /// `x / 2 (1 + erf(x / sqrt(2)))`: the same, exactly.
    GeluErf,
    /// `x / (1 + exp(-x))`
    Silu,
}

impl Activation {
    /// The function's value.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Self::None => x,
            Self::Relu => x.max(0.0),
            Self::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + u.tanh())
            }
            Self::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            Self::Silu => x / (1.0 + (-x).exp()),
        }
    }
}

/// The error function, to about 15 digits: `2 / sqrt(pi) exp(-x^2) sum over i of 2^i x^(2 i + 1) / (1 3 .. (2 i + 1))`,
/// whose terms all have the sign of `x`.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, 0.0);
    for i in 1..200 {
        sum += term;
        term *= 2.0 * x * x / f64::from(2 * i + 1);
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// One problem: sizes, tensors (contiguous, row-major) and options.
///
/// ```
/// use seqmix::reference::gemm::{Activation, Multiply};
///
/// let problem = Multiply {
///     batch: 1, m: 1, n: 2, k: 2,
///     a: &[1.0, 2.0],
///     b: &[1.0, -1.0, 1.0, -1.0],
///     bias: Some(&[0.5, 0.5]),
///     activation: Activation::Relu,
///     ..Multiply::default()
/// };
/// assert_eq!(problem.run()?, [3.5, 0.0]);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Multiply<'a> {
    /// Number of independent products.
    pub batch: usize,
    /// Rows of `a` and of the result.
    pub m: usize,
    /// Columns of `b` and of the result.
    pub n: usize,
    /// Columns of `a`, rows of `b`.
    pub k: usize,
    /// `[batch, m, k]`
    pub a: &'a [f64],
    /// `[batch, k, n]`
    pub b: &'a [f64],
    /// `[batch, m, n]`
    pub c: Option<&'a [f64]>,
    /// `[n]`
    pub bias: Option<&'a [f64]>,
    /// `[batch, m, n]`
    pub residual: Option<&'a [f64]>,
    /// Factor of the product; 1 by default.
    pub alpha: f64,
    /// Factor of `c`; 1 by default.
    pub beta: f64,
    /// What is applied before `residual` is added.
    pub activation: Activation,
}

impl Default for Multiply<'_> {
    fn default() -> Self {
        Self {
            batch: 0,
            m: 0,
            n: 0,
            k: 0,
            a: &[],
            b: &[],
            c: None,
            bias: None,
            residual: None,
            alpha: 1.0,
            beta: 1.0,
            activation: Activation::None,
        }
    }
}

impl Multiply<'_> {
    /// The result `[batch, m, n]`, in `f64` throughout:
    ///
    /// ```text
    /// d[i,j] = activation(alpha * (sum over l of a[i,l] b[l,j]) + beta * c[i,j] + bias[j]) + residual[i,j]
    /// ```
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for.
    pub fn run(&self) -> Result<Vec<f64>, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formula as an implementation computes it that keeps every intermediate in a narrow type: `round`
    /// (to that type and back) is applied to the product, to what the activation gets, to what it gives, and to the
    /// result. Sums are exact.
    ///
    /// How far this lies from [`run`](Self::run) is what a naive implementation of that precision loses, and so a
    /// yardstick for kernels.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Vec<f64>, Mismatch> {
        self.check()?;
        let Self { batch, m, n, k, .. } = *self;
        let mut result = Vec::new();
        for matrix in 0..batch {
            for i in 0..m {
                for j in 0..n {
                    let mut sum = 0.0;
                    for l in 0..k {
                        sum += self.a[(matrix * m + i) * k + l] * self.b[(matrix * k + l) * n + j];
                    }
                    let at = (matrix * m + i) * n + j;
                    let mut x = self.alpha * round(sum);
                    x += self.c.map_or(0.0, |c| self.beta * c[at]);
                    x += self.bias.map_or(0.0, |bias| bias[j]);
                    x = round(self.activation.apply(round(x)));
                    x += self.residual.map_or(0.0, |residual| residual[at]);
                    result.push(round(x));
                }
            }
        }
        Ok(result)
    }

    fn check(&self) -> Result<(), Mismatch> {
        let Self { batch, m, n, k, .. } = *self;
        check_length("elements of a", &[batch, m, k], self.a.len())?;
        check_length("elements of b", &[batch, k, n], self.b.len())?;
        if let Some(c) = self.c {
            check_length("elements of c", &[batch, m, n], c.len())?;
        }
        if let Some(bias) = self.bias {
            check_length("elements of bias", &[n], bias.len())?;
        }
        if let Some(residual) = self.residual {
            check_length("elements of residual", &[batch, m, n], residual.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of tables, 15 digits.
    #[test]
    fn the_error_function_has_its_known_values() {
        let known = [
            (0.0, 0.0),
            (0.1, 0.112_462_916_018_285),
            (0.5, 0.520_499_877_813_047),
            (1.0, 0.842_700_792_949_715),
            (2.0, 0.995_322_265_018_953),
            (3.0, 0.999_977_909_503_001),
            (5.0, 0.999_999_999_998_463),
            (7.0, 1.0),
        ];
        for (x, value) in known {
            assert!((erf(x) - value).abs() < 1e-14, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + value).abs() < 1e-14, "erf({}) = {}", -x, erf(-x));
        }
    }

    #[test]
    fn activations_have_their_known_values() {
        let at_one = [
            (Activation::None, 1.0),
            (Activation::Relu, 1.0),
            (Activation::GeluTanh, 0.841_191_990_608_276),
            (Activation::GeluErf, 0.841_344_746_068_543),
            (Activation::Silu, 0.731_058_578_630_005),
        ];
        for (activation, value) in at_one {
            let found = activation.apply(1.0);
            assert!((found - value).abs() < 1e-12, "{activation:?}: {found}");
            // all but these two: f(x) - f(-x) = x
            let difference = found - activation.apply(-1.0);
            let expected = if activation == Activation::None {
                2.0
            } else {
                1.0
            };
            assert!((difference - expected).abs() < 1e-12, "{activation:?}");
        }
    }

    #[test]
    fn a_product_by_hand() {
        // [1 2; 3 4] [5; 6] = [17; 39]
        let problem = Multiply {
            batch: 1,
            m: 2,
            n: 1,
            k: 2,
            a: &[1.0, 2.0, 3.0, 4.0],
            b: &[5.0, 6.0],
            ..Multiply::default()
        };
        assert_eq!(problem.run().unwrap(), [17.0, 39.0]);
        let all = Multiply {
            c: Some(&[1.0, 2.0]),
            bias: Some(&[-100.0]),
            residual: Some(&[7.0, 8.0]),
            alpha: 2.0,
            beta: 10.0,
            activation: Activation::Relu,
            ..problem
        };
        // 34 + 10 - 100 < 0; 78 + 20 - 100 < 0
        assert_eq!(all.run().unwrap(), [7.0, 8.0]);
        let positive = Multiply { bias: None, ..all };
        assert_eq!(positive.run().unwrap(), [51.0, 106.0]);
        let empty = Multiply {
            k: 0,
            a: &[],
            b: &[],
            ..positive
        };
        assert_eq!(empty.run().unwrap(), [17.0, 28.0]);
    }

    #[test]
    fn lengths_that_disagree_are_named() {
        let problem = Multiply {
            batch: 1,
            m: 1,
            n: 1,
            k: 1,
            a: &[1.0],
            b: &[1.0],
            ..Multiply::default()
        };
        let wrong = Multiply {
            bias: Some(&[1.0, 2.0]),
            ..problem
        };
        let text = wrong.run().unwrap_err().to_string();
        assert_eq!(text, "elements of bias: expected 1, found 2");
        let wrong = Multiply { a: &[], ..problem };
        assert!(wrong.run().is_err());
    }
}
