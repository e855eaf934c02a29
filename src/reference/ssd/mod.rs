//! State space duality, the layer of Mamba-2, by its recurrence: Dao and Gu, "Transformers are SSMs: Generalized
//! Models and Efficient Algorithms Through Structured State Space Duality", 2024, where A is one number a head. The
//! chunked algorithm of that paper computes the same numbers.

mod backward;
mod step;
#[cfg(test)]
mod tests;

pub use backward::{Backward, Gradients};
pub use step::Step;

use super::pointwise::{silu, softplus};
use super::{Mismatch, Sequence, check_groups, check_length, check_optional, sequences};

/// D: the skip from input to output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Skip<'a> {
    /// `[nheads]`
    PerHead(&'a [f64]),
    /// `[nheads, headdim]`
    PerChannel(&'a [f64]),
}

/// One problem: sizes, tensors (contiguous, row-major) and options.
///
/// ```
/// use seqmix::reference::ssd::Forward;
///
/// // One head with one state that halves with each unit of time, after one and after two units.
/// let problem = Forward {
///     batch: 1, seqlen: 2, nheads: 1, headdim: 1, groups: 1, dstate: 1,
///     x: &[3.0, 5.0], dt: &[1.0, 2.0],
///     a: &[-std::f64::consts::LN_2],
///     b: &[1.0, 1.0], c: &[1.0, 1.0],
///     ..Forward::default()
/// };
/// let result = problem.run()?;
/// assert_eq!(result.out, [3.0, 0.25 * 3.0 + 2.0 * 5.0]);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// Number of independent sequences; 1 with `cu_seqlens`.
    pub batch: usize,
    /// Steps of each sequence; with `cu_seqlens`, of all together.
    pub seqlen: usize,
    /// Heads.
    pub nheads: usize,
    /// Channels of a head.
    pub headdim: usize,
    /// Groups of heads that share B and C; a divisor of `nheads`: head `h` uses group `h / (nheads / groups)`.
    pub groups: usize,
    /// States of a channel (N).
    pub dstate: usize,
    /// `[batch, seqlen, nheads, headdim]`: the input.
    pub x: &'a [f64],
    /// `[batch, seqlen, nheads]`: the step sizes, before `dt_bias`, softplus and `dt_limit`.
    pub dt: &'a [f64],
    /// A, `[nheads]`.
    pub a: &'a [f64],
    /// B, `[batch, seqlen, groups, dstate]`.
    pub b: &'a [f64],
    /// C, `[batch, seqlen, groups, dstate]`.
    pub c: &'a [f64],
    /// D
    pub d: Option<Skip<'a>>,
    /// `[batch, seqlen, nheads, headdim]`: the gate.
    pub z: Option<&'a [f64]>,
    /// `[nheads]`: added to `dt`.
    pub dt_bias: Option<&'a [f64]>,
    /// Whether step sizes are `softplus(dt + dt_bias)` or `dt + dt_bias`, before `dt_limit`.
    pub dt_softplus: bool,
    /// The least and the largest step size; `(0, infinity)` by default, as in mamba-ssm.
    pub dt_limit: (f64, f64),
    /// `[sequences, nheads, headdim, dstate]`: the state before each sequence; `None`: zeros.
    pub initial_states: Option<&'a [f64]>,
    /// `[sequences + 1]`: sequences of different lengths, one after the other: sequence `i` holds the steps
    /// `cu_seqlens[i]` to `cu_seqlens[i + 1]`. `None`: one sequence for each of `batch`.
    pub cu_seqlens: Option<&'a [usize]>,
}

impl Default for Forward<'_> {
    fn default() -> Self {
        Self {
            batch: 0,
            seqlen: 0,
            nheads: 0,
            headdim: 0,
            groups: 0,
            dstate: 0,
            x: &[],
            dt: &[],
            a: &[],
            b: &[],
            c: &[],
            d: None,
            z: None,
            dt_bias: None,
            dt_softplus: false,
            dt_limit: (0.0, f64::INFINITY),
            initial_states: None,
            cu_seqlens: None,
        }
    }
}

/// What the layer returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// As `x`.
    pub out: Vec<f64>,
    /// `[sequences, nheads, headdim, dstate]`: the state after the last step of each sequence, the initial state of
    /// what follows.
    pub final_states: Vec<f64>,
}

impl Forward<'_> {
    /// The layer, in `f64` throughout. For each head, with the state `S[t]` a matrix `[headdim, dstate]`, and `S[-1]`
    /// the initial state:
    ///
    /// ```text
    /// dt'[t] = clamp(softplus(dt[t] + dt_bias), dt_limit)      or without softplus
    /// S[t]   = exp(dt'[t] A) S[t-1] + (dt'[t] x[t]) B[t]^T
    /// y[t]   = S[t] C[t] + D x[t]
    /// out[t] = y[t] silu(z[t])                                 or y[t] without z
    /// ```
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for, `cu_seqlens` do not fit them, or `groups` does not
    /// divide `nheads`.
    pub fn run(&self) -> Result<Output, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formula as a naive implementation on tensor cores of a narrow type computes it: `round` (to that type
    /// and back) is applied to what enters a product, which is `dt' x` and, where `y` is read out of it, `S`; and to
    /// what an unfused implementation stores, which is `y`, `silu(z)` and the result. Sums are exact. Step sizes,
    /// decays and the state that is carried on are in `f32` in every implementation that works at all, and are not
    /// rounded here.
    ///
    /// How far this lies from [`run`](Self::run) is a yardstick for kernels. A chunked kernel rounds other products,
    /// of decays with `C B^T` and of decays with `B`, but not more of them.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output, Mismatch> {
        let sequences = self.check()?;
        let mut result = Output {
            out: vec![0.0; self.x.len()],
            final_states: Vec::new(),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for h in 0..self.nheads {
                let mut state = self.initial_state(i, h);
                for t in sequence.steps.clone() {
                    let step = self.step(sequence, t, h);
                    state = self.next(&step, &state, &round);
                    for (p, y) in self.readout(&step, &state, &round).into_iter().enumerate() {
                        let at = step.x + p;
                        result.out[at] = self.z.map_or(y, |z| round(y * round(silu(z[at]))));
                    }
                }
                result.final_states.extend(state);
            }
        }
        Ok(result)
    }

    /// The state before head `h` of the `i`-th sequence.
    fn initial_state(&self, i: usize, h: usize) -> Vec<f64> {
        let size = self.headdim * self.dstate;
        let from = (i * self.nheads + h) * size;
        match self.initial_states {
            Some(states) => states[from..from + size].to_vec(),
            None => vec![0.0; size],
        }
    }

    /// What head `h` meets at step `t`.
    fn step(&self, sequence: &Sequence, t: usize, h: usize) -> Place {
        let token = sequence.batch * self.seqlen + t;
        let group = h / (self.nheads / self.groups);
        let dt = token * self.nheads + h;
        let biased = self.dt[dt] + self.dt_bias.map_or(0.0, |bias| bias[h]);
        let unlimited = match self.dt_softplus {
            true => softplus(biased),
            false => biased,
        };
        let (low, high) = self.dt_limit;
        let size = match unlimited {
            dt if dt < low => low,
            dt if dt > high => high,
            dt => dt,
        };
        Place {
            h,
            x: dt * self.headdim,
            b: (token * self.groups + group) * self.dstate,
            dt,
            biased,
            limited: unlimited < low || unlimited > high,
            size,
            decay: (size * self.a[h]).exp(),
        }
    }

    /// The state after a step.
    fn next(&self, step: &Place, before: &[f64], round: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut state = Vec::with_capacity(before.len());
        for p in 0..self.headdim {
            let x = round(step.size * self.x[step.x + p]);
            for n in 0..self.dstate {
                let kept = step.decay * before[p * self.dstate + n];
                state.push(kept + x * self.b[step.b + n]);
            }
        }
        state
    }

    /// `[headdim]`: `y` of a step after which the state is `state`.
    fn readout(&self, step: &Place, state: &[f64], round: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut ys = Vec::with_capacity(self.headdim);
        for p in 0..self.headdim {
            let mut y = self.skip(step.h, p) * self.x[step.x + p];
            for n in 0..self.dstate {
                y += round(state[p * self.dstate + n]) * self.c[step.b + n];
            }
            ys.push(round(y));
        }
        ys
    }

    /// D of channel `p` of head `h`.
    fn skip(&self, h: usize, p: usize) -> f64 {
        match self.d {
            None => 0.0,
            Some(Skip::PerHead(d)) => d[h],
            Some(Skip::PerChannel(d)) => d[h * self.headdim + p],
        }
    }

    fn check(&self) -> Result<Vec<Sequence>, Mismatch> {
        let Self {
            batch,
            seqlen,
            nheads,
            headdim,
            groups,
            dstate,
            ..
        } = *self;
        let sequences = sequences(batch, seqlen, self.cu_seqlens)?;
        check_groups(
            ("nheads (a multiple of groups)", nheads),
            ("groups", groups),
        )?;
        let inputs = [batch, seqlen, nheads, headdim];
        let coefficients = [batch, seqlen, groups, dstate];
        let states = [sequences.len(), nheads, headdim, dstate];
        check_length("length of x", &inputs, self.x.len())?;
        check_length("length of dt", &[batch, seqlen, nheads], self.dt.len())?;
        check_length("length of A", &[nheads], self.a.len())?;
        check_length("length of B", &coefficients, self.b.len())?;
        check_length("length of C", &coefficients, self.c.len())?;
        match self.d {
            None => {}
            Some(Skip::PerHead(d)) => check_length("length of D per head", &[nheads], d.len())?,
            Some(Skip::PerChannel(d)) => {
                check_length("length of D per channel", &[nheads, headdim], d.len())?;
            }
        }
        check_optional("length of z", &inputs, self.z)?;
        check_optional("length of dt_bias", &[nheads], self.dt_bias)?;
        check_optional("length of initial_states", &states, self.initial_states)?;
        Ok(sequences)
    }
}

/// One step of one head: where its numbers lie, and its step size.
struct Place {
    h: usize,
    /// Of the head's first channel, in `x`, `z` and `out`.
    x: usize,
    /// Of the group's first state, in B and C.
    b: usize,
    /// In `dt`.
    dt: usize,
    /// What softplus gets.
    biased: f64,
    /// Whether `dt_limit` changed the step size.
    limited: bool,
    /// `dt'`
    size: f64,
    /// `exp(dt' A)`
    decay: f64,
}
