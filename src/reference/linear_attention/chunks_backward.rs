//! The gradients by the chunked algorithm: chunk by chunk from the last to the first.

use super::Chunks;
use super::chunks::Chunk;
use super::head::{Head, HeadGradients, Reads};
use crate::reference::matrix::Matrix;

impl Chunks {
    /// The gradients of a head; `dout` is `[steps, dv]`, `dstate` that of the last state.
    ///
    /// In the notation of [`Chunks`], with `G` the gradient of the state after the chunk, first that of `U` and then all
    /// others; `<,>` is the sum of products along rows:
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
    /// Decays stand only in exponents, of which each is a difference of two of the sums of logarithms up to a step. What
    /// is multiplied with a factor `P[i]` gives the sum up to `i` the product of itself and its gradient, and what is
    /// divided by it the same with a minus sign; the sum up to `n` also gets `<G, S after>`. A step's own logarithm is
    /// part of all sums from its own on.
    pub(super) fn gradients(self, head: &Head, dout: &[f64], dstate: &[f64]) -> HeadGradients {
        let mut result = HeadGradients::zeros(head);
        let mut states = vec![Matrix::of(head.dk, head.dv, &head.state)];
        for (at, chunk) in self.of(head).enumerate() {
            let u = chunk.updates(&states[at]);
            states.push(chunk.next(&states[at], &u));
        }
        let dout = Matrix::of(head.steps, head.dv, dout);
        let mut g = Matrix::of(head.dk, head.dv, dstate);
        if let (Reads::Last, Some(last)) = (&head.reads, states.last()) {
            let q = Matrix::of(head.steps, head.dk, &head.q);
            result.q = dout.times(&last.transposed()).values;
            g = g.plus(&q.transposed().times(&dout));
        }
        let chunks: Vec<Chunk<'_>> = self.of(head).collect();
        for (chunk, ends) in chunks.iter().zip(states.windows(2)).rev() {
            g = chunk.gradients(&mut result, &dout, [&ends[0], &ends[1]], &g);
        }
        result.state = g.values;
        result
    }
}

impl Chunk<'_> {
    /// Adds the gradients of this chunk's steps, and returns that of the state before it; `g` is that of the state after
    /// it.
    fn gradients(
        &self,
        result: &mut HeadGradients,
        dout: &Matrix,
        [before, after]: [&Matrix; 2],
        g: &Matrix,
    ) -> Matrix {
        let Head { dk, dv, .. } = *self.head;
        let dout = Matrix::new(self.steps, dv, |i, e| dout.at(self.from + i, e));
        let u = self.updates(before);
        let (q_before, k_after) = (self.q_before(), self.k_after());

        let mut du = k_after.times(g);
        let mut g_before = self.fade(g);
        let mut decay_sums = Matrix::zeros(self.steps, dk);
        for c in 0..dk {
            *decay_sums.at_mut(self.steps - 1, c) += g.dot(c, after, c);
        }

        // what the state after the chunk has of K
        let from_state = u.times(&g.transposed());
        let mut dkey = Matrix::new(self.steps, dk, |j, c| {
            from_state.at(j, c) * self.decay(j + 1..self.steps, c)
        });
        for j in 0..self.steps {
            for c in 0..dk {
                *decay_sums.at_mut(j, c) -= self.k.at(j, c) * dkey.at(j, c);
            }
        }

        if !matches!(self.head.reads, Reads::Last) {
            let scores = self.scores();
            du = du.plus(&scores.matrix().transposed().times(&dout));
            g_before = g_before.plus(&q_before.transposed().times(&dout));
            let from_scores = scores.gradients(&dout.times(&u.transposed()));
            let from_state = dout.times(&before.transposed());
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

        let overlaps = self.overlaps();
        let m = overlaps.matrix();
        if let Some(transform) = self.transform(&m) {
            let k_before = self.k_before();
            let error = self.v.minus(&k_before.times(before)).minus(&m.times(&u));
            let dv = transform.transposed().times(&du);
            let du_of_error = du.minus(&m.transposed().times(&dv));
            for i in 0..self.steps {
                result.beta[self.from + i] = du_of_error.dot(i, &error, i);
            }
            let from_overlaps = overlaps.gradients(
                &Matrix::zeros(self.steps, self.steps).minus(&dv.times(&u.transposed())),
            );
            let from_state = dv.times(&before.transposed());
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
        for c in 0..dk {
            let mut sum = 0.0;
            for i in (0..self.steps).rev() {
                sum += decay_sums.at(i, c);
                result.decay[(self.from + i) * dk + c] = sum;
            }
        }
        g_before
    }
}

/// Writes a matrix to the rows that begin with `to`.
fn put(to: &mut [f64], from: &Matrix) {
    to[..from.values.len()].copy_from_slice(&from.values);
}
