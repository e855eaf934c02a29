//! One step of the layer, with a state that is kept between calls.

use super::{Forward, Mismatch, Output, Skip};

/// One step: sizes, tensors (contiguous, row-major) and options. The defaults are those of [`Forward`].
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Number of independent sequences.
    pub batch: usize,
    /// Heads.
    pub nheads: usize,
    /// Channels of a head.
    pub headdim: usize,
    /// Groups of heads that share B and C; a divisor of `nheads`.
    pub groups: usize,
    /// States of a channel (N).
    pub dstate: usize,
    /// `[batch, nheads, headdim, dstate]`: the state before the step.
    pub state: &'a [f64],
    /// `[batch, nheads, headdim]`: the input.
    pub x: &'a [f64],
    /// `[batch, nheads]`: the step sizes, before `dt_bias`, softplus and `dt_limit`.
    pub dt: &'a [f64],
    /// A, `[nheads]`.
    pub a: &'a [f64],
    /// B, `[batch, groups, dstate]`.
    pub b: &'a [f64],
    /// C, `[batch, groups, dstate]`.
    pub c: &'a [f64],
    /// D
    pub d: Option<Skip<'a>>,
    /// `[batch, nheads, headdim]`: the gate.
    pub z: Option<&'a [f64]>,
    /// `[nheads]`: added to `dt`.
    pub dt_bias: Option<&'a [f64]>,
    /// Whether step sizes are `softplus(dt + dt_bias)` or `dt + dt_bias`, before `dt_limit`.
    pub dt_softplus: bool,
    /// The least and the largest step size.
    pub dt_limit: (f64, f64),
}

impl Default for Step<'_> {
    fn default() -> Self {
        Self {
            batch: 0,
            nheads: 0,
            headdim: 0,
            groups: 0,
            dstate: 0,
            state: &[],
            x: &[],
            dt: &[],
            a: &[],
            b: &[],
            c: &[],
            d: None,
            z: None,
            dt_bias: None,
            dt_softplus: false,
            dt_limit: Forward::default().dt_limit,
        }
    }
}

impl Step<'_> {
    /// The step: a sequence of length 1. `out` is `[batch, nheads, headdim]`, and `final_states` is the state after
    /// the step.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(&self) -> Result<Output, Mismatch> {
        self.run_rounded(|x| x)
    }

    /// As [`Forward::run_rounded`].
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run_rounded(&self, round: impl Fn(f64) -> f64) -> Result<Output, Mismatch> {
        let forward = Forward {
            batch: self.batch,
            seqlen: 1,
            nheads: self.nheads,
            headdim: self.headdim,
            groups: self.groups,
            dstate: self.dstate,
            x: self.x,
            dt: self.dt,
            a: self.a,
            b: self.b,
            c: self.c,
            d: self.d,
            z: self.z,
            dt_bias: self.dt_bias,
            dt_softplus: self.dt_softplus,
            dt_limit: self.dt_limit,
            initial_states: Some(self.state),
            cu_seqlens: None,
        };
        forward.run_rounded(round)
    }
}
