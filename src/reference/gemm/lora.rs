//! [`LoraBackward`]: the gradients of a product with an adapter of low rank.

use super::product;
use crate::reference::{Mismatch, check_length};

/// The gradients of `d = a b + scale (a down) up` from that of `d`, where `b` is frozen: Hu et al., "LoRA: Low-Rank
/// Adaptation of Large Language Models", 2021, equation 3. Tensors are contiguous, row-major.
///
/// ```
/// use seqmix::reference::gemm::LoraBackward;
///
/// let problem = LoraBackward {
///     batch: 1, m: 1, n: 1, k: 1, rank: 1,
///     a: &[2.0], b: &[3.0], down: &[5.0], up: &[7.0], scale: 0.5, dd: &[1.0],
/// };
/// let gradients = problem.run()?;
/// assert_eq!(gradients.da, [3.0 + 0.5 * 5.0 * 7.0]);
/// assert_eq!(gradients.ddown, [0.5 * 2.0 * 7.0]);
/// assert_eq!(gradients.dup, [0.5 * 2.0 * 5.0]);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LoraBackward<'a> {
    /// Number of independent products.
    pub batch: usize,
    /// Rows of `a` and of `dd`.
    pub m: usize,
    /// Columns of `b` and of `dd`.
    pub n: usize,
    /// Columns of `a`, rows of `b`.
    pub k: usize,
    /// Columns of `down`, rows of `up`.
    pub rank: usize,
    /// `[batch, m, k]`
    pub a: &'a [f64],
    /// `[batch, k, n]`
    pub b: &'a [f64],
    /// `[batch, k, rank]`
    pub down: &'a [f64],
    /// `[batch, rank, n]`
    pub up: &'a [f64],
    /// Factor of the adapter.
    pub scale: f64,
    /// `[batch, m, n]`: the gradient of `d`.
    pub dd: &'a [f64],
}

/// What [`LoraBackward`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraGradients {
    /// `[batch, m, k]`
    pub da: Vec<f64>,
    /// `[batch, k, rank]`
    pub ddown: Vec<f64>,
    /// `[batch, rank, n]`
    pub dup: Vec<f64>,
}

impl LoraBackward<'_> {
    /// The gradients, in `f64` throughout:
    ///
    /// ```text
    /// da    = dd b^T + scale (dd up^T) down^T
    /// ddown = scale a^T (dd up^T)
    /// dup   = scale (a down)^T dd
    /// ```
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for.
    pub fn run(&self) -> Result<LoraGradients, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formulas as an implementation computes them that keeps every intermediate in a narrow type: `round`
    /// (to that type and back) is applied to each product, the inner ones too, and to the results. Sums are exact.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<LoraGradients, Mismatch> {
        self.check()?;
        let Self {
            batch,
            m,
            n,
            k,
            rank,
            a,
            b,
            down,
            up,
            scale,
            dd,
        } = *self;
        let multiply = |sizes, x: &[f64], y: &[f64]| product(batch, sizes, x, y, &round);
        let transposed = |rows, columns, x| transposed(batch, rows, columns, x);
        let scaled = |x: Vec<f64>| x.into_iter().map(|x| round(scale * x)).collect();

        let inner = multiply([m, k, rank], a, down);
        let dinner = multiply([m, n, rank], dd, &transposed(rank, n, up));
        let through_b = multiply([m, n, k], dd, &transposed(k, n, b));
        let through_adapter = multiply([m, rank, k], &dinner, &transposed(k, rank, down));
        let both = through_b.iter().zip(&through_adapter);
        Ok(LoraGradients {
            da: both.map(|(x, y)| round(x + scale * y)).collect(),
            ddown: scaled(multiply([k, m, rank], &transposed(m, k, a), &dinner)),
            dup: scaled(multiply([rank, m, n], &transposed(m, rank, &inner), dd)),
        })
    }

    fn check(&self) -> Result<(), Mismatch> {
        let Self {
            batch,
            m,
            n,
            k,
            rank,
            ..
        } = *self;
        check_length("elements of a", &[batch, m, k], self.a.len())?;
        check_length("elements of b", &[batch, k, n], self.b.len())?;
        check_length("elements of down", &[batch, k, rank], self.down.len())?;
        check_length("elements of up", &[batch, rank, n], self.up.len())?;
        check_length("elements of dd", &[batch, m, n], self.dd.len())
    }
}

/// `batch` matrices of `rows` by `columns`, each transposed.
fn transposed(batch: usize, rows: usize, columns: usize, x: &[f64]) -> Vec<f64> {
    let mut result = Vec::with_capacity(x.len());
    for matrix in 0..batch {
        for column in 0..columns {
            for row in 0..rows {
                result.push(x[(matrix * rows + row) * columns + column]);
            }
        }
    }
    result
}
