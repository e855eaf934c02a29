//! The chunked algorithm: within a chunk of steps, attention by products of matrices; from chunk to chunk, the state.

use std::ops::Range;

use super::head::{Head, HeadOutput, Reads};
use super::scores::Scores;
use crate::reference::Mismatch;
use crate::reference::matrix::Matrix;

/// How the chunked algorithm cuts a sequence; the result does not depend on it but for rounding.
///
/// For a chunk of steps from 1 to `n` with the state `S` before it, let `P[i]` be the product of the decays of the
/// steps from 1 to `i`, a number for each channel, and `Q`, `K`, `V`, `U` matrices of a row for each step. Then
///
/// ```text
/// out     = (Q P) S + A U              A[i,j] = sum over channels of Q[i] K[j] P[i] / P[j]   for j <= i, else 0
/// S after = P[n] S + (K P[n] / P)^T U
/// U       = V                          delta rule: U = T (V - (K P) S),  T = (1 + B M)^-1 B
/// ```
///
/// where `B` is the diagonal matrix of `beta`, and `M` is as `A`, with `K` for `Q` and only `j < i`: the WY
/// representation. With a bonus, decays of `Q` are those of the step before, and `A[i,i]` is the sum of
/// `Q[i] bonus K[i]`.
///
/// `P` becomes so small that `1 / P` would overflow, so it is never computed. All factors are exponentials of sums of
/// logarithms over steps that lie between two others, which are not positive: for `A` and `M`, those from `j` to the
/// beginning of the sub-chunk of `i`, times those from there to `i`; within a sub-chunk, those from `j` to `i`, pair by
/// pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Steps of a chunk.
    pub chunk: usize,
    /// Steps of a sub-chunk; need not divide those of a chunk.
    pub sub_chunk: usize,
}

impl Default for Chunks {
    /// 64 and 16, as kernels have them.
    fn default() -> Self {
        Self {
            chunk: 64,
            sub_chunk: 16,
        }
    }
}

impl Chunks {
    pub(super) fn check(self) -> Result<(), Mismatch> {
        for (what, found) in [
            ("steps of a chunk", self.chunk),
            ("steps of a sub-chunk", self.sub_chunk),
        ] {
            if found == 0 {
                return Err(Mismatch {
                    what,
                    expected: 1,
                    found,
                });
            }
        }
        Ok(())
    }

    /// `out` and the last state of a head, as `Forward::run_chunked_rounded` says.
    pub(super) fn run(self, head: &Head, round: &dyn Fn(f64) -> f64) -> HeadOutput {
        let mut state = Matrix::of(head.dk, head.dv, &head.state);
        let mut out = Vec::with_capacity(head.steps * head.dv);
        for chunk in self.of(head, round) {
            let u = chunk.updates(&state);
            if !matches!(head.reads, Reads::Last) {
                let inside = chunk.scores().matrix().map(round).times(&u);
                let before = chunk.q_before().times(&state.map(round));
                out.extend(before.plus(&inside).values);
            }
            state = chunk.next(&state, &u);
        }
        if matches!(head.reads, Reads::Last) {
            let q = Matrix::of(head.steps, head.dk, &head.q);
            out = q.times(&state.map(round)).values;
        }
        HeadOutput {
            out,
            state: state.values,
        }
    }

    /// The chunks of a head, in order.
    pub(super) fn of<'a>(
        self,
        head: &'a Head,
        round: &'a dyn Fn(f64) -> f64,
    ) -> impl Iterator<Item = Chunk<'a>> {
        (0..head.steps.div_ceil(self.chunk)).map(move |at| {
            let from = at * self.chunk;
            let steps = self.chunk.min(head.steps - from);
            let rows = |values: &[f64], width| Matrix::of(steps, width, &values[from * width..]);
            Chunk {
                head,
                from,
                steps,
                sub_chunk: self.sub_chunk,
                round,
                q: rows(&head.q, head.dk),
                k: rows(&head.k, head.dk),
                v: rows(&head.v, head.dv),
            }
        })
    }
}

/// Some steps of a head. They are counted from 0 here.
pub(super) struct Chunk<'a> {
    pub(super) head: &'a Head,
    pub(super) from: usize,
    pub(super) steps: usize,
    pub(super) sub_chunk: usize,
    /// Applied to operands of products of matrices.
    pub(super) round: &'a dyn Fn(f64) -> f64,
    /// `[steps, dk]`
    pub(super) q: Matrix,
    /// `[steps, dk]`
    pub(super) k: Matrix,
    /// `[steps, dv]`
    pub(super) v: Matrix,
}

impl Chunk<'_> {
    /// What the decays of `steps` leave of channel `c`.
    pub(super) fn decay(&self, steps: Range<usize>, c: usize) -> f64 {
        let of = |i: usize| self.head.decay[(self.from + i) * self.head.dk + c];
        steps.map(of).sum::<f64>().exp()
    }

    /// The end of the steps whose decays lie before the query of step `i`.
    pub(super) fn read(&self, i: usize) -> usize {
        match self.head.reads {
            Reads::Bonus(_) => i,
            Reads::Updated | Reads::Last => i + 1,
        }
    }

    /// Queries as they meet the state before the chunk.
    pub(super) fn q_before(&self) -> Matrix {
        Matrix::new(self.steps, self.head.dk, |i, c| {
            (self.round)(self.q.at(i, c) * self.decay(0..self.read(i), c))
        })
    }

    /// Keys as the delta rule looks them up in the state before the chunk.
    pub(super) fn k_before(&self) -> Matrix {
        Matrix::new(self.steps, self.head.dk, |i, c| {
            (self.round)(self.k.at(i, c) * self.decay(0..i + 1, c))
        })
    }

    /// Keys as they are left in the state after the chunk.
    pub(super) fn k_after(&self) -> Matrix {
        Matrix::new(self.steps, self.head.dk, |i, c| {
            (self.round)(self.k.at(i, c) * self.decay(i + 1..self.steps, c))
        })
    }

    /// A matrix `[dk, dv]` after the decays of the whole chunk.
    pub(super) fn fade(&self, state: &Matrix) -> Matrix {
        let mut result = state.clone();
        for (c, row) in result.values.chunks_mut(state.columns.max(1)).enumerate() {
            let decay = self.decay(0..self.steps, c);
            row.iter_mut().for_each(|x| *x *= decay);
        }
        result
    }

    /// The state after the chunk.
    pub(super) fn next(&self, state: &Matrix, u: &Matrix) -> Matrix {
        let added = self.k_after().transposed().times(u);
        self.fade(state).plus(&added)
    }

    /// `A`: what queries see of the chunk's own updates.
    pub(super) fn scores(&self) -> Scores<'_> {
        Scores {
            chunk: self,
            rows: &self.q,
            ends: (0..self.steps).map(|i| self.read(i)).collect(),
            own: match &self.head.reads {
                Reads::Bonus(bonus) => bonus.clone(),
                Reads::Updated | Reads::Last => vec![1.0; self.head.dk],
            },
        }
    }

    /// `M`: what keys find of the updates of the steps before them.
    pub(super) fn overlaps(&self) -> Scores<'_> {
        Scores {
            chunk: self,
            rows: &self.k,
            ends: (1..self.steps + 1).collect(),
            own: vec![0.0; self.head.dk],
        }
    }

    /// `beta` of the steps, by the delta rule.
    pub(super) fn beta(&self) -> Option<&[f64]> {
        let beta = self.head.beta.as_ref()?;
        Some(&beta[self.from..][..self.steps])
    }

    /// `U`, `[steps, dv]`.
    pub(super) fn updates(&self, state: &Matrix) -> Matrix {
        let Some(beta) = self.beta() else {
            return self.v.clone();
        };
        let transform = transform(beta, &self.overlaps().matrix()).map(self.round);
        let w = transform.times(&self.k_before()).map(self.round);
        let looked_up = w.times(&state.map(self.round));
        transform.times(&self.v).minus(&looked_up).map(self.round)
    }
}

/// `T`, by forward substitution.
pub(super) fn transform(beta: &[f64], overlaps: &Matrix) -> Matrix {
    let mut result = Matrix::zeros(beta.len(), beta.len());
    for (i, beta) in beta.iter().enumerate() {
        for column in 0..=i {
            let mut sum = f64::from(i == column);
            for j in column..i {
                sum -= overlaps.at(i, j) * result.at(j, column);
            }
            *result.at_mut(i, column) = beta * sum;
        }
    }
    result
}
