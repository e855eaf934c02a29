//! The gated attention unit, and attention in chunks of mixed forms: Hua, Dai, Liu and Le, "Transformer Quality in
//! Linear Time", 2022. The unit is GAU; in chunks of mixed forms, it is the layer of FLASH.

mod backward;
#[cfg(test)]
mod tests;

pub use backward::{AffineGradients, Backward, Gradients, PairGradients};

use std::ops::Range;

use super::matrix::Matrix;
use super::pointwise::relu;
use super::{Mismatch, Sequence, check_length, check_optional, sequences};

/// What makes queries, or keys, of the channels that they share: `gamma z + beta`, each channel by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Affine<'a> {
    /// `[dz]`
    pub gamma: &'a [f64],
    /// `[dz]`
    pub beta: &'a [f64],
}

/// Queries and keys of the same channels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pair<'a> {
    /// Makes queries.
    pub q: Affine<'a>,
    /// Makes keys.
    pub k: Affine<'a>,
}

/// Attention between chunks, which is linear.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mixed<'a> {
    /// Steps of a chunk; the last one of a sequence may have fewer.
    pub chunk: usize,
    /// What makes queries and keys of the linear part.
    pub linear: Pair<'a>,
    /// Multiplies the linear part.
    pub scale: f64,
}

/// One problem: sizes, tensors (contiguous, row-major) and options. The projections around it, with their activations,
/// are done: `u`, `v` and `z` are what they gave.
///
/// ```
/// use seqmix::reference::gated_attention_unit::{Affine, Forward, Pair};
///
/// let (one, zero) = (&[1.0][..], &[0.0][..]);
/// let plain = Affine { gamma: one, beta: zero };
/// let problem = Forward {
///     batch: 1, seqlen: 2, dz: 1, dv: 1,
///     u: &[1.0, 0.5],
///     v: &[1.0, 10.0],
///     z: &[1.0, 2.0],
///     quadratic: Pair { q: plain, k: plain },
///     causal: true,
///     ..Forward::default()
/// };
/// // scores (1), (2, 4); squares (1), (4, 16)
/// assert_eq!(problem.run()?, [1.0, 0.5 * (4.0 + 160.0)]);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// Number of independent sequences; 1 with `cu_seqlens`.
    pub batch: usize,
    /// Steps of each sequence; with `cu_seqlens`, of all together.
    pub seqlen: usize,
    /// Channels of a query and of a key.
    pub dz: usize,
    /// Channels of a value.
    pub dv: usize,
    /// `[batch, seqlen, dv]`: the gate.
    pub u: &'a [f64],
    /// `[batch, seqlen, dv]`: the values.
    pub v: &'a [f64],
    /// `[batch, seqlen, dz]`: what queries and keys are made of.
    pub z: &'a [f64],
    /// What makes queries and keys of the quadratic part.
    pub quadratic: Pair<'a>,
    /// Multiplies scores before they are squared; 1 by default.
    pub scale: f64,
    /// Added to scores by distance: `[2 n - 1]`, where `n` is the steps of a chunk, or `seqlen` if all is quadratic;
    /// `bias[n - 1 + i - j]` for query `i` and key `j`.
    pub bias: Option<&'a [f64]>,
    /// Whether a step sees only itself and those before it.
    pub causal: bool,
    /// Chunks, and attention between them; `None`: all is quadratic.
    pub mixed: Option<Mixed<'a>>,
    /// `[sequences + 1]`: sequences of different lengths, one after the other: sequence `i` holds the steps
    /// `cu_seqlens[i]` to `cu_seqlens[i + 1]`. `None`: one sequence for each of `batch`.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl Default for Forward<'_> {
    fn default() -> Self {
        Self {
            batch: 0,
            seqlen: 0,
            dz: 0,
            dv: 0,
            u: &[],
            v: &[],
            z: &[],
            quadratic: Pair::default(),
            scale: 1.0,
            bias: None,
            causal: false,
            mixed: None,
            cu_seqlens: None,
        }
    }
}

/// The tensors of one sequence, and what is made of them.
struct Unit {
    /// `[steps, dv]`
    v: Matrix,
    /// `[steps, dz]`
    z: Matrix,
    /// `[steps, dz]`
    q: Matrix,
    /// `[steps, dz]`
    k: Matrix,
    /// Queries, scaled, and keys of the linear part.
    linear: Option<(Matrix, Matrix)>,
}

impl Forward<'_> {
    /// The unit, in `f64` throughout: `[batch, seqlen, dv]`. With `A` the scores between steps of one chunk, or of one
    /// sequence if all is quadratic:
    ///
    /// ```text
    /// q[i]   = gamma_q z[i] + beta_q                      k, and those of the linear part, with their own numbers
    /// A[i,j] = max(scale q[i] . k[j] + bias[i - j], 0)^2  causal: 0 for j > i
    /// a[i]   = sum over j of A[i,j] v[j]
    /// out[i] = u[i] a[i]
    /// ```
    ///
    /// In chunks of mixed forms, with `S` the sum over the steps of all chunks, or if causal of the chunks before that
    /// of `i`,
    ///
    /// ```text
    /// S      = sum over j of k_linear[j] v[j]^T
    /// a[i]  += scale_linear S^T q_linear[i]
    /// ```
    ///
    /// So one chunk is the quadratic form if causal. If not, its steps see each other twice, as the authors have it.
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for, `cu_seqlens` do not fit them, or a chunk has no steps.
    pub fn run(&self) -> Result<Vec<f64>, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formula as a naive implementation on tensor cores of a narrow type computes it: `round` (to that type
    /// and back) is applied to what enters a product, which is queries, keys, `A` and `S`; and to `a` and the result.
    /// Sums are exact.
    ///
    /// How far this lies from [`run`](Self::run) is a yardstick for kernels.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Vec<f64>, Mismatch> {
        let mut out = vec![0.0; self.u.len()];
        for sequence in self.check()? {
            let at = self.row(&sequence) * self.dv;
            let attended = self.unit(&sequence, &round).attend(self, &round);
            let gates = self.u[at..].iter().zip(&attended.values);
            for (out, (u, a)) in out[at..].iter_mut().zip(gates) {
                *out = round(u * round(*a));
            }
        }
        Ok(out)
    }

    /// The row of a sequence's first step in tensors.
    fn row(&self, sequence: &Sequence) -> usize {
        sequence.batch * self.seqlen + sequence.steps.start
    }

    /// Takes a sequence out of the tensors.
    fn unit(&self, sequence: &Sequence, round: &impl Fn(f64) -> f64) -> Unit {
        let (row, steps) = (self.row(sequence), sequence.steps.len());
        let z = Matrix::of(steps, self.dz, &self.z[row * self.dz..]);
        let apply = |by: Affine<'_>| {
            Matrix::new(steps, self.dz, |i, c| {
                round(by.gamma[c] * z.at(i, c) + by.beta[c])
            })
        };
        Unit {
            v: Matrix::of(steps, self.dv, &self.v[row * self.dv..]),
            q: apply(self.quadratic.q),
            k: apply(self.quadratic.k),
            linear: self.mixed.map(|mixed| {
                let q = apply(mixed.linear.q);
                let scaled = Matrix::new(steps, self.dz, |i, c| mixed.scale * q.at(i, c));
                (scaled, apply(mixed.linear.k))
            }),
            z,
        }
    }

    /// The steps within which attention is quadratic.
    fn reach(&self) -> usize {
        self.mixed.map_or(self.seqlen, |mixed| mixed.chunk)
    }

    fn check(&self) -> Result<Vec<Sequence>, Mismatch> {
        let Self {
            batch,
            seqlen,
            dz,
            dv,
            ..
        } = *self;
        let sequences = sequences(batch, seqlen, self.cu_seqlens)?;
        check_length("length of u", &[batch, seqlen, dv], self.u.len())?;
        check_length("length of v", &[batch, seqlen, dv], self.v.len())?;
        check_length("length of z", &[batch, seqlen, dz], self.z.len())?;
        let pairs = [Some(self.quadratic), self.mixed.map(|mixed| mixed.linear)];
        for Affine { gamma, beta } in pairs
            .into_iter()
            .flatten()
            .flat_map(|pair| [pair.q, pair.k])
        {
            check_length("length of gamma", &[dz], gamma.len())?;
            check_length("length of beta", &[dz], beta.len())?;
        }
        if let Some(Mixed { chunk: 0, .. }) = self.mixed {
            return Err(Mismatch {
                what: "steps of a chunk",
                expected: 1,
                found: 0,
            });
        }
        let distances = self.reach().saturating_mul(2).saturating_sub(1);
        check_optional("length of bias", &[distances], self.bias)?;
        Ok(sequences)
    }
}

impl Unit {
    /// `a`
    fn attend(&self, problem: &Forward<'_>, round: &impl Fn(f64) -> f64) -> Matrix {
        let mut a = Matrix::zeros(self.v.rows, problem.dv);
        for i in 0..self.v.rows {
            for j in self.sees(problem, i) {
                let factor = round(self.score(problem, i, j).powi(2));
                for e in 0..problem.dv {
                    *a.at_mut(i, e) += factor * self.v.at(j, e);
                }
            }
        }
        let Some((q, k)) = &self.linear else {
            return a;
        };
        for chunk in self.chunks(problem) {
            let state = outer(k, &self.v, self.passes(problem, &chunk), round);
            for i in chunk {
                for c in 0..problem.dz {
                    for e in 0..problem.dv {
                        *a.at_mut(i, e) += q.at(i, c) * state.at(c, e);
                    }
                }
            }
        }
        a
    }

    /// The root of `A[i,j]`.
    fn score(&self, problem: &Forward<'_>, i: usize, j: usize) -> f64 {
        let bias = problem
            .bias
            .map_or(0.0, |bias| bias[self.distance(problem, i, j)]);
        relu(problem.scale * self.q.dot(i, &self.k, j) + bias)
    }

    /// Where `bias` has the number of a pair.
    fn distance(&self, problem: &Forward<'_>, i: usize, j: usize) -> usize {
        problem.reach() - 1 + i - j
    }

    /// The steps that step `i` has scores with.
    fn sees(&self, problem: &Forward<'_>, i: usize) -> Range<usize> {
        let reach = problem.reach();
        let start = i / reach * reach;
        match problem.causal {
            true => start..i + 1,
            false => start..self.v.rows.min(start.saturating_add(reach)),
        }
    }

    fn chunks(&self, problem: &Forward<'_>) -> impl Iterator<Item = Range<usize>> {
        let (reach, steps) = (problem.reach().max(1), self.v.rows);
        let starts = (0..steps).step_by(reach);
        starts.map(move |start| start..steps.min(start.saturating_add(reach)))
    }

    /// The steps whose values reach a chunk through the linear part.
    fn passes(&self, problem: &Forward<'_>, chunk: &Range<usize>) -> Range<usize> {
        match problem.causal {
            true => 0..chunk.start,
            false => 0..self.v.rows,
        }
    }
}

/// The sum over `steps` of the outer products of rows of `x` and `y`, rounded.
fn outer(x: &Matrix, y: &Matrix, steps: Range<usize>, round: &impl Fn(f64) -> f64) -> Matrix {
    Matrix::new(x.columns, y.columns, |c, e| {
        let products = steps.clone().map(|i| x.at(i, c) * y.at(i, e));
        round(products.sum())
    })
}
