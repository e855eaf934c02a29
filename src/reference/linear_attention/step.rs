//! One step of attention, with a state that is kept between calls.

use super::{Decay, FeatureMap, Forward, Mismatch, Output, Readout, Rule};

/// One step: sizes, tensors (contiguous, row-major) and options, as those of [`Forward`] without the axis of steps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step<'a> {
    /// Number of independent sequences.
    pub batch: usize,
    /// States of a sequence, and heads of the output.
    pub heads: usize,
    /// Heads of `q`; a divisor of `heads`, as the next two.
    pub heads_q: usize,
    /// Heads of `k`.
    pub heads_k: usize,
    /// Heads of `v`.
    pub heads_v: usize,
    /// Channels of a query and of a key.
    pub dk: usize,
    /// Channels of a value.
    pub dv: usize,
    /// `[batch, heads_q, dk]`
    pub q: &'a [f64],
    /// `[batch, heads_k, dk]`
    pub k: &'a [f64],
    /// `[batch, heads_v, dv]`
    pub v: &'a [f64],
    /// Applied to `q` and to `k`.
    pub feature_map: FeatureMap,
    /// Multiplies the mapped queries; `None`: `1 / sqrt(dk)`.
    pub scale: Option<f64>,
    /// How states fade; `[heads]`, `[batch, heads]` or `[batch, heads, dk]`.
    pub decay: Decay<'a>,
    /// What the step adds; `beta` is `[batch, heads]`.
    pub rule: Rule<'a>,
    /// Which state the query reads; of one step, [`Readout::Last`] is [`Readout::Updated`].
    pub readout: Readout<'a>,
    /// `Some(eps)`: outputs are divided by `eps` plus what they would be if all values were 1.
    pub normalize: Option<f64>,
    /// `[batch, heads, dk, dv]`: the state before the step.
    pub state: &'a [f64],
    /// `[batch, heads, dk]`: the normaliser's state before the step, with `normalize`.
    pub z: Option<&'a [f64]>,
}

impl Step<'_> {
    /// The step: a sequence of length 1. `out` is `[batch, heads, dv]`; `final_state` and `final_z` are the states
    /// after the step.
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
            heads: self.heads,
            heads_q: self.heads_q,
            heads_k: self.heads_k,
            heads_v: self.heads_v,
            dk: self.dk,
            dv: self.dv,
            q: self.q,
            k: self.k,
            v: self.v,
            feature_map: self.feature_map,
            scale: self.scale,
            decay: self.decay,
            rule: self.rule,
            readout: self.readout,
            normalize: self.normalize,
            initial_state: Some(self.state),
            initial_z: self.z,
            cu_seqlens: None,
        };
        forward.run_rounded(round)
    }
}
