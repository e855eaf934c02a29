//! The recurrence of RWKV-7: Peng et al., "RWKV-7 \"Goose\" with Expressive Dynamic State Evolution", 2025. Decays of
//! each channel, and a delta rule whose key to remove by is not the one to write by.

#[cfg(test)]
mod tests;

use super::{Mismatch, Sequence, check_length, check_optional, sequences};

/// One problem: sizes and tensors (contiguous, row-major).
///
/// With the names of the paper, `a` is the negative of the normalised removal key, `b` that key times the in-context
/// learning rate, `k` the replacement key, and `decay` the logarithm of `w`. States are transposed: keys' channels come
/// first here.
///
/// ```
/// use seqmix::reference::rwkv7::Forward;
///
/// let problem = Forward {
///     batch: 1, seqlen: 2, heads: 1, dk: 1, dv: 1,
///     r: &[1.0, 1.0],
///     decay: &[0.0, 0.0],
///     k: &[1.0, 1.0],
///     v: &[4.0, 6.0],
///     a: &[-1.0, -1.0],
///     b: &[0.0, 0.5], // the second step removes half of what there was
///     ..Forward::default()
/// };
/// assert_eq!(problem.run()?.out, [4.0, 2.0 + 6.0]);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward<'a> {
    /// Number of independent sequences; 1 with `cu_seqlens`.
    pub batch: usize,
    /// Steps of each sequence; with `cu_seqlens`, of all together.
    pub seqlen: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of a key.
    pub dk: usize,
    /// Channels of a value.
    pub dv: usize,
    /// `[batch, seqlen, heads, dk]`: the receptance, which reads.
    pub r: &'a [f64],
    /// `[batch, seqlen, heads, dk]`: natural logarithms of decays.
    pub decay: &'a [f64],
    /// `[batch, seqlen, heads, dk]`: the key to write by.
    pub k: &'a [f64],
    /// `[batch, seqlen, heads, dv]`: the value.
    pub v: &'a [f64],
    /// `[batch, seqlen, heads, dk]`: looks up what to change.
    pub a: &'a [f64],
    /// `[batch, seqlen, heads, dk]`: where the change goes.
    pub b: &'a [f64],
    /// `[sequences, heads, dk, dv]`: the state before each sequence; `None`: zeros.
    pub initial_state: Option<&'a [f64]>,
    /// `[sequences + 1]`: sequences of different lengths, one after the other: sequence `i` holds the steps
    /// `cu_seqlens[i]` to `cu_seqlens[i + 1]`. `None`: one sequence for each of `batch`.
    pub cu_seqlens: Option<&'a [usize]>,
}

/// What the recurrence returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// As `v`.
    pub out: Vec<f64>,
    /// `[sequences, heads, dk, dv]`: the state after the last step of each sequence.
    pub final_state: Vec<f64>,
}

/// The gradients of the recurrence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backward<'a> {
    /// The recurrence whose gradients are asked for.
    pub forward: Forward<'a>,
    /// As `v`: the gradient of `out`.
    pub dout: &'a [f64],
    /// As the final state: its gradient; `None`: zeros.
    pub dfinal_state: Option<&'a [f64]>,
}

/// What [`Backward`] returns, each as what it is the gradient of.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// As `r`.
    pub dr: Vec<f64>,
    /// As `decay`: of the logarithms.
    pub ddecay: Vec<f64>,
    /// As `k`.
    pub dk: Vec<f64>,
    /// As `v`.
    pub dv: Vec<f64>,
    /// As `a`.
    pub da: Vec<f64>,
    /// As `b`.
    pub db: Vec<f64>,
    /// As the initial state, which counts as zeros if absent.
    pub dinitial_state: Vec<f64>,
}

impl Forward<'_> {
    /// The recurrence, in `f64` throughout. For each head, with `S[t]` a matrix `[dk, dv]` and `S[-1]` the initial
    /// state:
    ///
    /// ```text
    /// S[t]   = (diag(exp(decay[t])) + b[t] a[t]^T) S[t-1] + k[t] v[t]^T
    /// out[t] = S[t]^T r[t]
    /// ```
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for, or `cu_seqlens` do not fit them.
    pub fn run(&self) -> Result<Output, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formula as a naive implementation on tensor cores of a narrow type computes it: `round` (to that type
    /// and back) is applied to the state where it is multiplied with `a` or `r`, to `S^T a`, and to the result. Sums
    /// are exact, and the state that is carried on is not rounded.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output, Mismatch> {
        let sequences = self.check()?;
        let mut result = Output {
            out: vec![0.0; self.v.len()],
            final_state: Vec::new(),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for h in 0..self.heads {
                let mut state = self.state(self.initial_state, i, h);
                for t in sequence.steps.clone() {
                    let (_, after) = self.next(sequence, t, h, &state, &round);
                    state = after;
                    let (at_k, at_v) = self.at(sequence, t, h);
                    for c in 0..self.dk {
                        for e in 0..self.dv {
                            let read = round(state[c * self.dv + e]);
                            result.out[at_v + e] += self.r[at_k + c] * read;
                        }
                    }
                }
                result.final_state.extend(state);
            }
        }
        result.out.iter_mut().for_each(|x| *x = round(*x));
        Ok(result)
    }

    /// `S^T a` of a step, and the state after it.
    fn next(
        &self,
        sequence: &Sequence,
        t: usize,
        h: usize,
        before: &[f64],
        round: &impl Fn(f64) -> f64,
    ) -> (Vec<f64>, Vec<f64>) {
        let (at_k, at_v) = self.at(sequence, t, h);
        let mut found = vec![0.0; self.dv];
        for c in 0..self.dk {
            for (e, found) in found.iter_mut().enumerate() {
                *found += self.a[at_k + c] * round(before[c * self.dv + e]);
            }
        }
        found.iter_mut().for_each(|x| *x = round(*x));
        let mut after = Vec::with_capacity(before.len());
        for c in 0..self.dk {
            let decay = self.decay[at_k + c].exp();
            for (e, found) in found.iter().enumerate() {
                let kept = decay * before[c * self.dv + e];
                let written = self.k[at_k + c] * self.v[at_v + e];
                after.push(kept + self.b[at_k + c] * found + written);
            }
        }
        (found, after)
    }

    /// Where head `h` begins at step `t`, in tensors of keys and of values.
    fn at(&self, sequence: &Sequence, t: usize, h: usize) -> (usize, usize) {
        let row = (sequence.batch * self.seqlen + t) * self.heads + h;
        (row * self.dk, row * self.dv)
    }

    /// Head `h` of the `i`-th sequence in a tensor of states.
    fn state(&self, states: Option<&[f64]>, i: usize, h: usize) -> Vec<f64> {
        let size = self.dk * self.dv;
        match states {
            Some(states) => states[(i * self.heads + h) * size..][..size].to_vec(),
            None => vec![0.0; size],
        }
    }

    fn check(&self) -> Result<Vec<Sequence>, Mismatch> {
        let sequences = sequences(self.batch, self.seqlen, self.cu_seqlens)?;
        let keys = [self.batch, self.seqlen, self.heads, self.dk];
        let values = [self.batch, self.seqlen, self.heads, self.dv];
        check_length("length of r", &keys, self.r.len())?;
        check_length("length of decay", &keys, self.decay.len())?;
        check_length("length of k", &keys, self.k.len())?;
        check_length("length of v", &values, self.v.len())?;
        check_length("length of a", &keys, self.a.len())?;
        check_length("length of b", &keys, self.b.len())?;
        let states = [sequences.len(), self.heads, self.dk, self.dv];
        check_optional("length of initial_state", &states, self.initial_state)?;
        Ok(sequences)
    }
}

impl Backward<'_> {
    /// The gradients, in `f64` throughout, in the notation of [`Forward::run`]; `G[t]` is the gradient of `S[t]`, and
    /// `<,>` the sum of products along rows:
    ///
    /// ```text
    /// dr[t]     = S[t] dout[t]
    /// G[t]      = r[t] dout[t]^T + diag(exp(decay[t+1])) G[t+1] + a[t+1] (G[t+1]^T b[t+1])^T
    /// dk[t]     = G[t] v[t]                      dv[t] = G[t]^T k[t]
    /// db[t]     = G[t] (S[t-1]^T a[t])           da[t] = S[t-1] (G[t]^T b[t])
    /// ddecay[t] = exp(decay[t]) <G[t], S[t-1]>
    /// ```
    ///
    /// at the last step with the gradient of the final state in place of what follows; what would follow for the step
    /// before the first one is the gradient of the initial state.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(&self) -> Result<Gradients, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formulas as a naive implementation on tensor cores of a narrow type computes them: `round` is applied
    /// to `S` and `G` where they are multiplied with a vector, to `S^T a` and `G^T b`, and to the gradients of all but
    /// `decay` and states. Sums are exact; `S` and `G` as they are carried on, and their product with each other, are
    /// not rounded.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Gradients, Mismatch> {
        let forward = &self.forward;
        let Forward { heads, dk, dv, .. } = *forward;
        let sequences = forward.check()?;
        check_length("length of dout", &[forward.v.len()], self.dout.len())?;
        let states = [sequences.len(), heads, dk, dv];
        check_optional("length of dfinal_state", &states, self.dfinal_state)?;
        let keys = || vec![0.0; forward.k.len()];
        let mut result = Gradients {
            dr: keys(),
            ddecay: keys(),
            dk: keys(),
            dv: vec![0.0; forward.v.len()],
            da: keys(),
            db: keys(),
            dinitial_state: Vec::new(),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for h in 0..heads {
                let mut states = vec![forward.state(forward.initial_state, i, h)];
                for (at, t) in sequence.steps.clone().enumerate() {
                    states.push(forward.next(sequence, t, h, &states[at], &round).1);
                }
                let mut g = forward.state(self.dfinal_state, i, h);
                for (at, t) in sequence.steps.clone().enumerate().rev() {
                    let (before, after) = (&states[at], &states[at + 1]);
                    let (found, _) = forward.next(sequence, t, h, before, &round);
                    let (at_k, at_v) = forward.at(sequence, t, h);
                    let mut dfound = vec![0.0; dv];
                    for c in at_k..at_k + dk {
                        for e in 0..dv {
                            let (place, dout) = ((c - at_k) * dv + e, self.dout[at_v + e]);
                            g[place] += forward.r[c] * dout;
                            let rounded = round(g[place]);
                            result.dr[c] += round(after[place]) * dout;
                            result.dk[c] += rounded * forward.v[at_v + e];
                            result.dv[at_v + e] += rounded * forward.k[c];
                            result.db[c] += rounded * found[e];
                            dfound[e] += rounded * forward.b[c];
                        }
                    }
                    dfound.iter_mut().for_each(|x| *x = round(*x));
                    for c in at_k..at_k + dk {
                        let decay = forward.decay[c].exp();
                        for (e, dfound) in dfound.iter().enumerate() {
                            let place = (c - at_k) * dv + e;
                            result.da[c] += round(before[place]) * dfound;
                            result.ddecay[c] += decay * g[place] * before[place];
                            g[place] = decay * g[place] + forward.a[c] * dfound;
                        }
                    }
                }
                result.dinitial_state.extend(g);
            }
        }
        let round_all = |values: &mut Vec<f64>| values.iter_mut().for_each(|x| *x = round(*x));
        let Gradients {
            dr, dk, dv, da, db, ..
        } = &mut result;
        [dr, dk, dv, da, db].into_iter().for_each(round_all);
        Ok(result)
    }
}
