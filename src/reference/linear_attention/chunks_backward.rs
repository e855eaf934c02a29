//! The gradients by the chunked algorithm: chunk by chunk from the last to the first.

use super::Chunks;
use super::chunks::{Chunk, transform};
use super::head::{Head, HeadGradients, Reads};
use crate::reference::matrix::Matrix;

impl Chunks {
    /// The gradients of a head; `dout` is `[steps, dv]`, `dstate` that of the last state.
    ///
    /// In the notation of [`Chunks`], with `G` the gradient of the state after the chunk, first that of `U` and then
    /// all others; `<,>` is the sum of products along rows:
    ///
    /// ```text
    /// dU = A^T dout + (K P[n] / P) G            dA = dout U^T
    /// dQ = P (dout S^T) + from A                dK = (P[n] / P) (U G^T) + from A
    /// G before = P[n] G + (Q P)^T dout          dV = dU
    /// ```
    ///
    /// The delta rule adds, with `E = V - (K P) S - M U`,
    ///
    /// ```text
    /// dV = T^T dU       dbeta[i] = (dU - M^T dV)[i] . E[i]       dM = -dV U^T
    /// dK -= P (dV S^T) + from M                                  G before -= (K P)^T dV
    /// ```
    ///
    /// The gradient of a step's logarithm is the sum of all that its decay stands in, each times its gradient. For step
    /// `t`, that is
    ///
    /// ```text
    /// <P[n] S, G>                                           what passes the whole chunk
    /// sum over i >= t of (Q P)[i] (dout S^T)[i]             what comes from before the chunk
    /// sum over j < t of (K P[n] / P)[j] (U G^T)[j]          what goes beyond it
    /// sum over j < t <= i of what A[i,j] consists of, times dA[i,j]
    /// ```
    ///
    /// and likewise for `K P` and `M` of the delta rule. The last line is the sum over `i >= t` of `Q dQ` minus that
    /// over `j >= t` of `K dK`, of the parts that come from `A`: those `i` and `j` that do not lie on both sides of `t`
    /// cancel. With a bonus, `t` is not among the decays before query `t`.
    pub(super) fn gradients(
        self,
        head: &Head,
        dout: &[f64],
        dstate: &[f64],
        round: &dyn Fn(f64) -> f64,
    ) -> HeadGradients {
        let mut result = HeadGradients::zeros(head);
        let mut states = vec![Matrix::of(head.dk, head.dv, &head.state)];
        let chunks: Vec<Chunk<'_>> = self.of(head, round).collect();
        for (at, chunk) in chunks.iter().enumerate() {
            let u = chunk.updates(&states[at]);
            states.push(chunk.next(&states[at], &u));
        }
        let dout = Matrix::of(head.steps, head.dv, dout);
        let mut g = Matrix::of(head.dk, head.dv, dstate);
        if let (Reads::Last, Some(last)) = (&head.reads, states.last()) {
            let q = Matrix::of(head.steps, head.dk, &head.q);
            result.q = dout.times(&last.map(round).transposed()).values;
            g = g.plus(&q.transposed().times(&dout));
        }
        for (chunk, before) in chunks.iter().zip(&states).rev() {
            g = chunk.gradients(&mut result, &dout, before, &g);
        }
        result.state = g.values;
        result
    }
}

impl Chunk<'_> {
    /// Adds the gradients of this chunk's steps, and returns that of the state before it; `g` is that of the state
    /// after it.
    fn gradients(
        &self,
        result: &mut HeadGradients,
        dout: &Matrix,
        before: &Matrix,
        g: &Matrix,
    ) -> Matrix {
        let Head { dk, dv, .. } = *self.head;
        let dout = Matrix::new(self.steps, dv, |i, e| dout.at(self.from + i, e));
        let u = self.updates(before);
        let (before_narrow, g_narrow) = (before.map(self.round), g.map(self.round));

        let mut du = self.k_after().times(&g_narrow);
        let mut g_before = self.fade(g);
        // in row i, the gradient of the sum of the logarithms up to i
        let mut decay_sums = Matrix::zeros(self.steps, dk);

        // what the state after the chunk has of K
        let from_state = u.times(&g_narrow.transposed());
        let mut dkey = Matrix::new(self.steps, dk, |j, c| {
            from_state.at(j, c) * self.decay(j + 1..self.steps, c)
        });
        let beyond = Matrix::new(self.steps, dk, |j, c| self.k.at(j, c) * dkey.at(j, c));

        if !matches!(self.head.reads, Reads::Last) {
            let scores = self.scores();
            let a = scores.matrix().map(self.round);
            du = du.plus(&a.transposed().times(&dout));
            g_before = g_before.plus(&self.q_before().transposed().times(&dout));
            let da = dout.times(&u.transposed()).map(self.round);
            let from_scores = scores.gradients(&da);
            let from_state = dout.times(&before_narrow.transposed());
            let dq = Matrix::new(self.steps, dk, |i, c| {
                from_state.at(i, c) * self.decay(0..self.read(i), c)
            });
            for i in 0..self.steps {
                // the first step's bonus meets the state before the chunk as it is
                if let Some(last) = self.read(i).checked_sub(1) {
                    for c in 0..dk {
                        *decay_sums.at_mut(last, c) += self.q.at(i, c) * dq.at(i, c);
                    }
                }
            }
            put(&mut result.q[self.from * dk..], &dq.plus(&from_scores.rows));
            dkey = dkey.plus(&from_scores.k);
            decay_sums = decay_sums.plus(&from_scores.decay_sums);
            for (dbonus, own) in result.bonus.iter_mut().zip(from_scores.own) {
                *dbonus += own;
            }
        }

        if let Some(beta) = self.beta() {
            let overlaps = self.overlaps();
            let exact = overlaps.matrix();
            let transform = transform(beta, &exact).map(self.round);
            let (m, k_before) = (exact.map(self.round), self.k_before());
            let looked_up = k_before.times(&before_narrow).plus(&m.times(&u));
            let error = self.v.minus(&looked_up);
            let dv = transform.transposed().times(&du.map(self.round));
            let dv = dv.map(self.round);
            let du_of_error = du.minus(&m.transposed().times(&dv));
            for i in 0..self.steps {
                result.beta[self.from + i] = du_of_error.dot(i, &error, i);
            }
            let dm = dv.times(&u.transposed()).map(|x| (self.round)(-x));
            let from_overlaps = overlaps.gradients(&dm);
            let from_state = dv.times(&before_narrow.transposed());
            let dlookup = Matrix::new(self.steps, dk, |i, c| {
                -from_state.at(i, c) * self.decay(0..i + 1, c)
            });
            for i in 0..self.steps {
                for c in 0..dk {
                    *decay_sums.at_mut(i, c) += self.k.at(i, c) * dlookup.at(i, c);
                }
            }
            dkey = dkey
                .plus(&dlookup)
                .plus(&from_overlaps.rows)
                .plus(&from_overlaps.k);
            decay_sums = decay_sums.plus(&from_overlaps.decay_sums);
            g_before = g_before.minus(&k_before.transposed().times(&dv));
            du = dv;
        }

        put(&mut result.k[self.from * dk..], &dkey);
        put(&mut result.v[self.from * dv..], &du);
        let kept = self.fade(before);
        for c in 0..dk {
            let passing = g.dot(c, &kept, c);
            for t in 0..self.steps {
                let from_before = (t..self.steps).map(|i| decay_sums.at(i, c)).sum::<f64>();
                let to_beyond = (0..t).map(|j| beyond.at(j, c)).sum::<f64>();
                result.decay[(self.from + t) * dk + c] = passing + from_before + to_beyond;
            }
        }
        g_before
    }
}

/// Writes a matrix to the rows that begin with `to`.
fn put(to: &mut [f64], from: &Matrix) {
    to[..from.values.len()].copy_from_slice(&from.values);
}
