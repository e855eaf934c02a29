//! The gradients of the unit by their formulas.

use super::{Affine, Forward, Mismatch, Pair, Unit, check_length, outer};
use crate::reference::matrix::Matrix;

/// The gradients of the unit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backward<'a> {
    /// The unit whose gradients are asked for.
    pub forward: Forward<'a>,
    /// `[batch, seqlen, dv]`: the gradient of the output.
    pub dout: &'a [f64],
}

/// What [`Backward`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// As `u`.
    pub du: Vec<f64>,
    /// As `v`.
    pub dv: Vec<f64>,
    /// As `z`.
    pub dz: Vec<f64>,
    /// Of the quadratic part's numbers.
    pub quadratic: PairGradients,
    /// Of the linear part's numbers, if there is one.
    pub linear: Option<PairGradients>,
    /// As `bias`, if there is one.
    pub dbias: Option<Vec<f64>>,
}

/// Gradients with respect to a [`Pair`].
#[derive(Clone, Debug, PartialEq)]
pub struct PairGradients {
    /// Of what makes queries.
    pub q: AffineGradients,
    /// Of what makes keys.
    pub k: AffineGradients,
}

/// Gradients with respect to an [`Affine`].
#[derive(Clone, Debug, PartialEq)]
pub struct AffineGradients {
    /// `[dz]`
    pub dgamma: Vec<f64>,
    /// `[dz]`
    pub dbeta: Vec<f64>,
}

impl Backward<'_> {
    /// The gradients, in `f64` throughout, in the notation of [`Forward::run`]; `x[i,j]` is the score whose square is
    /// `A[i,j]`:
    ///
    /// ```text
    /// du[i]   = dout[i] a[i]
    /// da[i]   = dout[i] u[i]
    /// dv[j]   = sum over i of A[i,j] da[i]
    /// dx[i,j] = 2 x[i,j] (da[i] . v[j])                     0 where A is
    /// dq[i]   = scale (sum over j of dx[i,j] k[j]),         dk[j] = scale (sum over i of dx[i,j] q[i])
    /// dbias   = sum over all pairs of that distance of dx
    /// ```
    ///
    /// The linear part adds, with `D` the sum over the steps `i` of all chunks, or if causal of the chunks after that
    /// of `j`,
    ///
    /// ```text
    /// dq_linear[i] = scale_linear S da[i]
    /// D            = sum over i of scale_linear q_linear[i] da[i]^T
    /// dk_linear[j] = D v[j],       dv[j] += D^T k_linear[j]
    /// ```
    ///
    /// Of the gradient `d` of each kind of queries and keys come `dgamma = sum over steps of z d` and `dbeta = sum over
    /// steps of d`; and `dz` is the sum over all kinds of `gamma d`.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(&self) -> Result<Gradients, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formulas as a naive implementation on tensor cores of a narrow type computes them: `round` is applied
    /// to what enters a product, which is queries, keys, `A`, `dx`, `S`, `D` and `da`; to `a`; and to `du`, `dv` and
    /// `dz`. Sums are exact, and the gradients of `gamma`, `beta` and `bias` are in `f32` and not rounded.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Gradients, Mismatch> {
        let forward = &self.forward;
        let sequences = forward.check()?;
        check_length("length of dout", &[forward.u.len()], self.dout.len())?;
        let pair = || PairGradients::zeros(forward.dz);
        let mut result = Gradients {
            du: vec![0.0; forward.u.len()],
            dv: vec![0.0; forward.v.len()],
            dz: vec![0.0; forward.z.len()],
            quadratic: pair(),
            linear: forward.mixed.map(|_| pair()),
            dbias: forward.bias.map(|bias| vec![0.0; bias.len()]),
        };
        for sequence in sequences {
            let row = forward.row(&sequence);
            let steps = sequence.steps.len();
            let values =
                |tensor: &[f64]| Matrix::of(steps, forward.dv, &tensor[row * forward.dv..]);
            let (u, dout) = (values(forward.u), values(self.dout));
            let unit = forward.unit(&sequence, &round);
            let a = unit.attend(forward, &round);
            let du = Matrix::new(steps, forward.dv, |i, e| dout.at(i, e) * round(a.at(i, e)));
            let da = Matrix::new(steps, forward.dv, |i, e| round(dout.at(i, e) * u.at(i, e)));

            let mut dv = Matrix::zeros(steps, forward.dv);
            let mut dz = Matrix::zeros(steps, forward.dz);
            let (dq, dk) = unit.quadratic(forward, &da, &mut dv, &mut result.dbias, &round);
            result
                .quadratic
                .add(forward.quadratic, &unit.z, [&dq, &dk], &mut dz);
            if let (Some(mixed), Some(linear)) = (forward.mixed, &mut result.linear) {
                let (mut dq, dk) = unit.linear(forward, &da, &mut dv, &round);
                dq.values.iter_mut().for_each(|x| *x *= mixed.scale);
                linear.add(mixed.linear, &unit.z, [&dq, &dk], &mut dz);
            }
            for (to, from, width) in [
                (&mut result.du, du, forward.dv),
                (&mut result.dv, dv, forward.dv),
                (&mut result.dz, dz, forward.dz),
            ] {
                for (to, from) in to[row * width..].iter_mut().zip(from.values) {
                    *to = round(from);
                }
            }
        }
        Ok(result)
    }
}

impl Unit {
    /// The gradients of queries and keys of the quadratic part; adds to those of values and of `bias`.
    fn quadratic(
        &self,
        problem: &Forward<'_>,
        da: &Matrix,
        dv: &mut Matrix,
        dbias: &mut Option<Vec<f64>>,
        round: &impl Fn(f64) -> f64,
    ) -> (Matrix, Matrix) {
        let mut dq = Matrix::zeros(self.q.rows, problem.dz);
        let mut dk = dq.clone();
        for i in 0..self.q.rows {
            for j in self.sees(problem, i) {
                let score = self.score(problem, i, j);
                let factor = round(score.powi(2));
                for e in 0..problem.dv {
                    *dv.at_mut(j, e) += factor * da.at(i, e);
                }
                let dx = round(2.0 * score * da.dot(i, &self.v, j));
                if let Some(dbias) = dbias {
                    dbias[self.distance(problem, i, j)] += dx;
                }
                for c in 0..problem.dz {
                    *dq.at_mut(i, c) += problem.scale * dx * self.k.at(j, c);
                    *dk.at_mut(j, c) += problem.scale * dx * self.q.at(i, c);
                }
            }
        }
        (dq, dk)
    }

    /// The gradients of scaled queries and of keys of the linear part; adds to those of values.
    fn linear(
        &self,
        problem: &Forward<'_>,
        da: &Matrix,
        dv: &mut Matrix,
        round: &impl Fn(f64) -> f64,
    ) -> (Matrix, Matrix) {
        let mut dq = Matrix::zeros(self.q.rows, problem.dz);
        let mut dk = dq.clone();
        let Some((q, k)) = &self.linear else {
            return (dq, dk);
        };
        let chunks: Vec<_> = self.chunks(problem).collect();
        for chunk in &chunks {
            let state = outer(k, &self.v, self.passes(problem, chunk), round);
            for i in chunk.clone() {
                for c in 0..problem.dz {
                    *dq.at_mut(i, c) += state.dot(c, da, i);
                }
            }
            let later = match problem.causal {
                true => chunk.end..self.q.rows,
                false => 0..self.q.rows,
            };
            let dstate = outer(q, da, later, round);
            for j in chunk.clone() {
                for c in 0..problem.dz {
                    *dk.at_mut(j, c) += dstate.dot(c, &self.v, j);
                    for e in 0..problem.dv {
                        *dv.at_mut(j, e) += dstate.at(c, e) * k.at(j, c);
                    }
                }
            }
        }
        (dq, dk)
    }
}

impl PairGradients {
    fn zeros(dz: usize) -> Self {
        let affine = AffineGradients {
            dgamma: vec![0.0; dz],
            dbeta: vec![0.0; dz],
        };
        Self {
            q: affine.clone(),
            k: affine,
        }
    }

    /// Adds what the gradients of queries and keys of one sequence come to, here and in `dz`.
    fn add(&mut self, pair: Pair<'_>, z: &Matrix, [dq, dk]: [&Matrix; 2], dz: &mut Matrix) {
        self.q.add(pair.q, z, dq, dz);
        self.k.add(pair.k, z, dk, dz);
    }
}

impl AffineGradients {
    fn add(&mut self, by: Affine<'_>, z: &Matrix, d: &Matrix, dz: &mut Matrix) {
        for i in 0..z.rows {
            for c in 0..z.columns {
                self.dgamma[c] += z.at(i, c) * d.at(i, c);
                self.dbeta[c] += d.at(i, c);
                *dz.at_mut(i, c) += by.gamma[c] * d.at(i, c);
            }
        }
    }
}
