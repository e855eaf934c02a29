//! The selective scan by the formula: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State
//! Spaces", 2023, equation 2 with the discretisation of algorithm 2, as the mamba-ssm package computes it; and
//! beyond that package with an initial state, packed sequences, both directions, and the last state's gradient.

mod backward;
mod number;
mod step;
#[cfg(test)]
mod tests;

pub use backward::{Backward, Gradients};
pub use number::Number;
pub use step::Step;

use super::pointwise::{silu, softplus};
use super::{Mismatch, Sequence, check_groups, check_length, check_optional, sequences};

/// B or C: numbers of type `S`, [`f64`] or [`Complex64`](num_complex::Complex64).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Coefficient<'a, S> {
    /// `[dim, dstate]`: the same for all steps, as in a time-invariant state space model (S4D).
    Constant(&'a [S]),
    /// `[batch, groups, dstate, seqlen]`: another one for each step; channel `d` uses group `d / (dim / groups)`.
    Variable(&'a [S]),
}

impl<S> Default for Coefficient<'_, S> {
    fn default() -> Self {
        Self::Variable(&[])
    }
}

impl<'a, S> Coefficient<'a, S> {
    /// The numbers, however they are arranged.
    fn values(self) -> &'a [S] {
        match self {
            Self::Constant(values) | Self::Variable(values) => values,
        }
    }
}

/// Which end of a sequence a scan begins at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// From the first step to the last.
    #[default]
    Forward,
    /// From the last step to the first: the state before the scan is that behind the last step, and the last state
    /// is the one of step 0.
    Reverse,
}

/// One problem: sizes, tensors (contiguous, row-major) and options. `S` is `f64` or
/// [`Complex64`](num_complex::Complex64), see [`Number`].
///
/// ```
/// use seqmix::reference::selective_scan::{Coefficient, Forward};
///
/// // A state that halves with each unit of time, after one and after two units.
/// let problem = Forward {
///     batch: 1, dim: 1, seqlen: 2, dstate: 1, groups: 1,
///     u: &[3.0, 5.0], delta: &[1.0, 2.0],
///     a: &[-std::f64::consts::LN_2],
///     b: Coefficient::Constant(&[1.0]), c: Coefficient::Constant(&[1.0]),
///     ..Forward::default()
/// };
/// let result = problem.run()?;
/// assert_eq!(result.out, [3.0, 0.25 * 3.0 + 2.0 * 5.0]);
/// # Ok::<(), seqmix::reference::Mismatch>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward<'a, S = f64> {
    /// Number of independent sequences; 1 with `cu_seqlens`.
    pub batch: usize,
    /// Channels.
    pub dim: usize,
    /// Steps of each sequence; with `cu_seqlens`, of all together.
    pub seqlen: usize,
    /// States of a channel (N).
    pub dstate: usize,
    /// Groups of channels that share a [`Coefficient::Variable`]; a divisor of `dim`.
    pub groups: usize,
    /// `[batch, dim, seqlen]`: the input.
    pub u: &'a [f64],
    /// `[batch, dim, seqlen]`: the step sizes, before `delta_bias` and softplus.
    pub delta: &'a [f64],
    /// A, `[dim, dstate]`.
    pub a: &'a [S],
    /// B
    pub b: Coefficient<'a, S>,
    /// C
    pub c: Coefficient<'a, S>,
    /// D, `[dim]`: the skip from input to output.
    pub d: Option<&'a [f64]>,
    /// `[batch, dim, seqlen]`: the gate.
    pub z: Option<&'a [f64]>,
    /// `[dim]`: added to `delta`.
    pub delta_bias: Option<&'a [f64]>,
    /// Whether step sizes are `softplus(delta + delta_bias)` or `delta + delta_bias`.
    pub delta_softplus: bool,
    /// `[sequences, dim, dstate]`: the state before each scan; `None`: zeros.
    pub initial_state: Option<&'a [S]>,
    /// `[sequences + 1]`: sequences of different lengths, one after the other: sequence `i` holds the steps
    /// `cu_seqlens[i]` to `cu_seqlens[i + 1]`. `None`: one sequence for each of `batch`.
    pub cu_seqlens: Option<&'a [usize]>,
    /// Which end of each sequence the scan begins at.
    pub direction: Direction,
}

/// What the scan returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Output<S = f64> {
    /// As `u`.
    pub out: Vec<f64>,
    /// `[sequences, dim, dstate]`: the state after the last step of each scan, the initial state of what follows.
    pub last_state: Vec<S>,
}

impl<S: Number> Forward<'_, S> {
    /// The scan, in `f64` throughout. For each channel, with `A`, `B[t]`, `C[t]` and the state `x[t]` vectors of
    /// `dstate` numbers that are multiplied element by element, and `x[-1]` the initial state:
    ///
    /// ```text
    /// delta'[t] = softplus(delta[t] + delta_bias)           or without softplus
    /// x[t]      = exp(delta'[t] A) x[t-1] + delta'[t] B[t] u[t]
    /// y[t]      = sum over states of C[t] x[t] + D u[t]     complex: 2 Re(sum) + D u[t]
    /// out[t]    = y[t] silu(z[t])                           or y[t] without z
    /// ```
    ///
    /// In [`Direction::Reverse`], `x[t]` comes from `x[t+1]`.
    ///
    /// # Errors
    /// If the length of a tensor is not what the sizes ask for, `cu_seqlens` do not fit them, or `groups` does not
    /// divide `dim`.
    pub fn run(&self) -> Result<Output<S>, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// The same formula as a naive implementation with tensors of a narrow type computes it: `round` (to that type
    /// and back) is applied to what it stores in that type between its parts, which is `y`, `silu(z)` and the
    /// result. Step sizes, decays and states are in `f32` in every implementation that works at all, and are not
    /// rounded here; so `last_state` is exact and needs a bound of its own.
    ///
    /// How far this lies from [`run`](Self::run) is a yardstick for kernels: they keep `y` in `f32` and should lose
    /// less.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output<S>, Mismatch> {
        let sequences = self.check()?;
        let mut result = Output {
            out: vec![0.0; self.u.len()],
            last_state: Vec::new(),
        };
        for (i, sequence) in sequences.iter().enumerate() {
            for d in 0..self.dim {
                let states = self.states(i, sequence, d);
                for (step, t) in self.order(sequence).into_iter().enumerate() {
                    let x = &states[(step + 1) * self.dstate..][..self.dstate];
                    let y = round(self.readout(sequence, d, t, x));
                    let at = self.at(sequence, d, t);
                    result.out[at] = self.z.map_or(y, |z| round(y * round(silu(z[at]))));
                }
                let last = &states[sequence.steps.len() * self.dstate..];
                result.last_state.extend(last);
            }
        }
        Ok(result)
    }

    /// All states of channel `d` of the `i`-th sequence, `[steps + 1, dstate]` in the order of the scan: the first is
    /// the initial state.
    fn states(&self, i: usize, sequence: &Sequence, d: usize) -> Vec<S> {
        let from = (i * self.dim + d) * self.dstate;
        let mut states = match self.initial_state {
            Some(initial) => initial[from..from + self.dstate].to_vec(),
            None => vec![S::default(); self.dstate],
        };
        for (step, t) in self.order(sequence).into_iter().enumerate() {
            let (delta, u) = (
                self.step_size(sequence, d, t),
                self.u[self.at(sequence, d, t)],
            );
            for n in 0..self.dstate {
                let decay = (self.a[d * self.dstate + n] * delta).exp();
                let b = self.b.values()[self.coefficient(self.b, sequence, d, n, t)];
                states.push(decay * states[step * self.dstate + n] + b * (delta * u));
            }
        }
        states
    }

    /// `y` of a step whose state is `x`.
    fn readout(&self, sequence: &Sequence, d: usize, t: usize, x: &[S]) -> f64 {
        let mut sum = 0.0;
        for (n, x) in x.iter().enumerate() {
            let c = self.c.values()[self.coefficient(self.c, sequence, d, n, t)];
            sum += S::READOUT * (c * *x).re();
        }
        sum + self
            .d
            .map_or(0.0, |skip| skip[d] * self.u[self.at(sequence, d, t)])
    }

    /// What softplus gets.
    fn biased(&self, sequence: &Sequence, d: usize, t: usize) -> f64 {
        self.delta[self.at(sequence, d, t)] + self.delta_bias.map_or(0.0, |bias| bias[d])
    }

    /// `delta'`
    fn step_size(&self, sequence: &Sequence, d: usize, t: usize) -> f64 {
        let biased = self.biased(sequence, d, t);
        if self.delta_softplus {
            softplus(biased)
        } else {
            biased
        }
    }

    /// The steps of a sequence in the order of the scan.
    fn order(&self, sequence: &Sequence) -> Vec<usize> {
        let steps = sequence.steps.clone();
        match self.direction {
            Direction::Forward => steps.collect(),
            Direction::Reverse => steps.rev().collect(),
        }
    }

    /// Where step `t` of channel `d` lies in `u`.
    fn at(&self, sequence: &Sequence, d: usize, t: usize) -> usize {
        (sequence.batch * self.dim + d) * self.seqlen + t
    }

    /// Where B or C of state `n` lies.
    fn coefficient(
        &self,
        coefficient: Coefficient<'_, S>,
        sequence: &Sequence,
        d: usize,
        n: usize,
        t: usize,
    ) -> usize {
        match coefficient {
            Coefficient::Constant(_) => d * self.dstate + n,
            Coefficient::Variable(_) => {
                let group = d / (self.dim / self.groups);
                ((sequence.batch * self.groups + group) * self.dstate + n) * self.seqlen + t
            }
        }
    }

    fn check(&self) -> Result<Vec<Sequence>, Mismatch> {
        let Self {
            batch,
            dim,
            seqlen,
            dstate,
            groups,
            ..
        } = *self;
        let sequences = sequences(batch, seqlen, self.cu_seqlens)?;
        let states = [sequences.len(), dim, dstate];
        check_length("length of u", &[batch, dim, seqlen], self.u.len())?;
        check_length("length of delta", &[batch, dim, seqlen], self.delta.len())?;
        check_length("length of A", &[dim, dstate], self.a.len())?;
        for (coefficient, constant, variable) in [
            (self.b, "length of constant B", "length of B"),
            (self.c, "length of constant C", "length of C"),
        ] {
            match coefficient {
                Coefficient::Constant(values) => {
                    check_length(constant, &[dim, dstate], values.len())?;
                }
                Coefficient::Variable(values) => {
                    check_groups(("dim (a multiple of groups)", dim), ("groups", groups))?;
                    let sizes = [batch, groups, dstate, seqlen];
                    check_length(variable, &sizes, values.len())?;
                }
            }
        }
        check_optional("length of D", &[dim], self.d)?;
        check_optional("length of z", &[batch, dim, seqlen], self.z)?;
        check_optional("length of delta_bias", &[dim], self.delta_bias)?;
        check_optional("length of initial_state", &states, self.initial_state)?;
        Ok(sequences)
    }
}
