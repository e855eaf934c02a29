//! One step of the scan, with a state that is kept between calls.

use super::{Coefficient, Direction, Forward, Mismatch, Number, Output};

/// One step: sizes, tensors (contiguous, row-major) and options, with the names of mamba-ssm's
/// `selective_state_update`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step<'a, S = f64> {
    /// Number of independent sequences.
    pub batch: usize,
    /// Channels.
    pub dim: usize,
    /// States of a channel (N).
    pub dstate: usize,
    /// Groups of channels that share a [`Coefficient::Variable`]; a divisor of `dim`.
    pub groups: usize,
    /// `[batch, dim, dstate]`: the state before the step.
    pub state: &'a [S],
    /// `[batch, dim]`: the input.
    pub x: &'a [f64],
    /// `[batch, dim]`: the step sizes, before `dt_bias` and softplus.
    pub dt: &'a [f64],
    /// A, `[dim, dstate]`.
    pub a: &'a [S],
    /// B; `[batch, groups, dstate]` if variable.
    pub b: Coefficient<'a, S>,
    /// C; `[batch, groups, dstate]` if variable.
    pub c: Coefficient<'a, S>,
    /// D, `[dim]`: the skip from input to output.
    pub d: Option<&'a [f64]>,
    /// `[batch, dim]`: the gate.
    pub z: Option<&'a [f64]>,
    /// `[dim]`: added to `dt`.
    pub dt_bias: Option<&'a [f64]>,
    /// Whether step sizes are `softplus(dt + dt_bias)` or `dt + dt_bias`.
    pub dt_softplus: bool,
}

impl<S: Number> Step<'_, S> {
    /// The step: a sequence of length 1. `out` is `[batch, dim]`, and `last_state` is the state after the step.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(&self) -> Result<Output<S>, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// As [`Forward::run_rounded`].
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output<S>, Mismatch> {
        let forward = Forward {
            batch: self.batch,
            dim: self.dim,
            seqlen: 1,
            dstate: self.dstate,
            groups: self.groups,
            u: self.x,
            delta: self.dt,
            a: self.a,
            b: self.b,
            c: self.c,
            d: self.d,
            z: self.z,
            delta_bias: self.dt_bias,
            delta_softplus: self.dt_softplus,
            initial_state: Some(self.state),
            cu_seqlens: None,
            direction: Direction::Forward,
        };
        forward.run_rounded(round)
    }
}
