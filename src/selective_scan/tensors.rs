//! What a caller gives to the operation: tensors and options.

pub use crate::abi::selective_scan::Numbers;
use crate::causal_conv1d::Activation;
use crate::tensor::{Dtype, Float, Layout, TensorMut, TensorRef};

/// Options of a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Config {
    /// What A, B, C and states consist of.
    pub numbers: Numbers,
    /// Whether step sizes are `softplus(delta + delta_bias)` or `delta + delta_bias`.
    pub delta_softplus: bool,
    /// Which end of each sequence the scan begins at.
    pub direction: Direction,
    /// Into how many segments each sequence is cut, which are scanned side by side; `None`: as many as a
    /// cost model finds best. Changes the results by roundings only.
    pub segments: Option<usize>,
}

/// Which end of a sequence a scan begins at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// From the first step to the last.
    #[default]
    Forward,
    /// From the last step to the first: the initial state is that behind the last step, and the last
    /// state is the one of step 0.
    Reverse,
}

/// B or C.
///
/// With [`Numbers::Complex`], a complex number takes two places along the axis of states: `states` is
/// `2 dstate`, real and imaginary parts in turn.
#[derive(Clone, Debug)]
pub enum Coefficient<'a, T> {
    /// `[batch, groups, states, seqlen]`: another one for each step; channel `i` uses group
    /// `i / (dim / groups)`. Fastest if either steps or states lie contiguously.
    Variable(TensorRef<'a, T, 4>),
    /// `[dim, states]`: the same for all steps, as in a time-invariant state space model.
    Constant(TensorRef<'a, f32, 2>),
}

/// A parameter of each channel, in `f32` or in the type of the other tensors.
#[derive(Clone, Debug)]
pub enum Weight<'a, T, const N: usize> {
    /// In `f32`.
    F32(TensorRef<'a, f32, N>),
    /// In the type of the other tensors.
    Same(TensorRef<'a, T, N>),
}

impl<T: Float, const N: usize> Weight<'_, T, N> {
    pub(super) fn layout(&self) -> (Layout<N>, Dtype) {
        match self {
            Self::F32(tensor) => (tensor.layout(), Dtype::F32),
            Self::Same(tensor) => (tensor.layout(), T::DTYPE),
        }
    }
}

impl<'a, T, const N: usize> From<TensorRef<'a, f32, N>> for Weight<'a, T, N> {
    fn from(tensor: TensorRef<'a, f32, N>) -> Self {
        Self::F32(tensor)
    }
}

/// What a scan reads, forward and backward.
///
/// `u`, `delta`, `z` and what is computed of them are `[batch, dim, seqlen]` by index. In memory they may
/// lie anyhow; they are copied 16 bytes at a time if either steps or channels lie contiguously, the same in
/// all of them, and rows begin at multiples of 16 bytes. A tensor that is `[batch, seqlen, dim]` in memory
/// is a view of it with the last two axes swapped: [`TensorRef::transposed`].
#[derive(Clone, Debug)]
pub struct Inputs<'a, T> {
    /// `[batch, dim, seqlen]`: the input.
    pub u: TensorRef<'a, T, 3>,
    /// `[batch, dim, seqlen]`: the step sizes, before `delta_bias` and softplus.
    pub delta: TensorRef<'a, T, 3>,
    /// A, `[dim, states]`; `states` is `dstate`, 1 to 256, or `2 dstate` of complex numbers, up to 128 of
    /// them, see [`Coefficient`].
    pub a: TensorRef<'a, f32, 2>,
    /// B
    pub b: Coefficient<'a, T>,
    /// C
    pub c: Coefficient<'a, T>,
    /// D, `[dim]`: the skip from input to output.
    pub d: Option<Weight<'a, T, 1>>,
    /// `[batch, dim, seqlen]`: the gate.
    pub z: Option<TensorRef<'a, T, 3>>,
    /// `[dim]`: added to `delta`.
    pub delta_bias: Option<Weight<'a, T, 1>>,
    /// `[sequences, dim, states]`: the state before each scan; `None`: zeros. There is a sequence for each
    /// of `batch`, or those of `cu_seqlens`.
    pub initial_state: Option<TensorRef<'a, f32, 3>>,
    /// `[sequences + 1]`: sequences of different lengths, one after the other in a batch of 1: sequence
    /// `i` holds the steps `cu_seqlens[i] .. cu_seqlens[i + 1]`. Values on the device: the kernels clamp
    /// them to `0 ..= seqlen`.
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
}

impl<'a, T> Inputs<'a, T> {
    /// What a scan cannot do without; the rest is set in the struct that this returns.
    pub fn new(
        u: TensorRef<'a, T, 3>,
        delta: TensorRef<'a, T, 3>,
        a: TensorRef<'a, f32, 2>,
        b: Coefficient<'a, T>,
        c: Coefficient<'a, T>,
    ) -> Self {
        Self {
            u,
            delta,
            a,
            b,
            c,
            d: None,
            z: None,
            delta_bias: None,
            initial_state: None,
            cu_seqlens: None,
        }
    }
}

/// Tensors of [`SelectiveScan::forward`](super::SelectiveScan::forward).
#[derive(Debug)]
pub struct Forward<'a, T> {
    /// What is read.
    pub inputs: Inputs<'a, T>,
    /// As `u`. Steps of no sequence are left as they are.
    pub out: TensorMut<'a, T, 3>,
    /// As `u`: `out` before the gate.
    pub ungated: Option<TensorMut<'a, T, 3>>,
    /// `[sequences, dim, states]`: the state after the last step of each scan.
    pub last_state: Option<TensorMut<'a, f32, 3>>,
    /// `[batch, intervals, dim, states]`, contiguous: the states that the backward pass begins at, which
    /// it otherwise computes again; see
    /// [`SelectiveScan::checkpoint_shape`](super::SelectiveScan::checkpoint_shape). Only those are written
    /// that it will read.
    pub checkpoints: Option<TensorMut<'a, f32, 4>>,
}

impl<'a, T> Forward<'a, T> {
    /// Writes `out`; what else is wanted is set in the struct that this returns.
    pub fn new(inputs: Inputs<'a, T>, out: TensorMut<'a, T, 3>) -> Self {
        Self {
            inputs,
            out,
            ungated: None,
            last_state: None,
            checkpoints: None,
        }
    }
}

/// The gradient of a [`Coefficient`], of the same kind and shape.
#[derive(Debug)]
pub enum CoefficientMut<'a, T> {
    /// `[batch, groups, states, seqlen]`. Steps of no sequence are left as they are.
    Variable(TensorMut<'a, T, 4>),
    /// `[dim, states]`
    Constant(TensorMut<'a, f32, 2>),
}

/// What [`SelectiveScan::backward`](super::SelectiveScan::backward) writes.
///
/// The gradient with respect to a complex number is that of its real part and that of its imaginary part,
/// as in PyTorch.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// As `u`. Steps of no sequence are left as they are, here and in all that is like `u`.
    pub du: TensorMut<'a, T, 3>,
    /// As `delta`: with respect to what was given, before bias and softplus.
    pub ddelta: TensorMut<'a, T, 3>,
    /// As A.
    pub da: Option<TensorMut<'a, f32, 2>>,
    /// As B.
    pub db: Option<CoefficientMut<'a, T>>,
    /// As C.
    pub dc: Option<CoefficientMut<'a, T>>,
    /// `[dim]`: that of D, also of one that is absent and counts as zeros.
    pub dd: Option<TensorMut<'a, f32, 1>>,
    /// As `z`, if there is one.
    pub dz: Option<TensorMut<'a, T, 3>>,
    /// `[dim]`: that of `delta_bias`, also of one that is absent and counts as zeros.
    pub ddelta_bias: Option<TensorMut<'a, f32, 1>>,
    /// `[sequences, dim, states]`: that of the initial state, also of one that is absent and counts as
    /// zeros.
    pub dinitial_state: Option<TensorMut<'a, f32, 3>>,
}

impl<'a, T> Gradients<'a, T> {
    /// The gradients of `u` and `delta`; what else is wanted is set in the struct that this returns.
    pub fn new(du: TensorMut<'a, T, 3>, ddelta: TensorMut<'a, T, 3>) -> Self {
        Self {
            du,
            ddelta,
            da: None,
            db: None,
            dc: None,
            dd: None,
            dz: None,
            ddelta_bias: None,
            dinitial_state: None,
        }
    }
}

/// Tensors of [`SelectiveScan::backward`](super::SelectiveScan::backward).
#[derive(Debug)]
pub struct Backward<'a, T> {
    /// What the scan read.
    pub inputs: Inputs<'a, T>,
    /// As `u`: the gradient of `out`.
    pub dout: TensorRef<'a, T, 3>,
    /// `[sequences, dim, states]`: the gradient of the last state; `None`: zeros.
    pub dlast_state: Option<TensorRef<'a, f32, 3>>,
    /// What [`Forward::checkpoints`] wrote; `None`: those states are computed again, in the workspace.
    pub checkpoints: Option<TensorRef<'a, f32, 4>>,
    /// What is wanted.
    pub gradients: Gradients<'a, T>,
}

impl<'a, T> Backward<'a, T> {
    /// The gradients of a scan whose last state was not used; the rest is set in the struct that this
    /// returns.
    pub fn new(
        inputs: Inputs<'a, T>,
        dout: TensorRef<'a, T, 3>,
        gradients: Gradients<'a, T>,
    ) -> Self {
        Self {
            inputs,
            dout,
            dlast_state: None,
            checkpoints: None,
            gradients,
        }
    }
}

/// Options of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepConfig {
    /// What A, B, C and states consist of.
    pub numbers: Numbers,
    /// Whether step sizes are `softplus(dt + dt_bias)` or `dt + dt_bias`, before `dt_limit`.
    pub dt_softplus: bool,
    /// The least and the largest step size.
    pub dt_limit: (f32, f32),
}

impl Default for StepConfig {
    /// Real numbers, no softplus, no limits.
    fn default() -> Self {
        Self {
            numbers: Numbers::Real,
            dt_softplus: false,
            dt_limit: (f32::NEG_INFINITY, f32::INFINITY),
        }
    }
}

/// Tensors of [`SelectiveScan::step`](super::SelectiveScan::step), which serves Mamba-1 and Mamba-2.
///
/// In Mamba-2 a head's channels share A, D, `dt` and `dt_bias`: views with a stride of 0. In Mamba-1 the
/// channels of a group are one head, or each is a head. `states` is `dstate`, or `2 dstate` as in
/// [`Coefficient`].
#[derive(Debug)]
pub struct Step<'a, T> {
    /// `[entries, heads, headdim, states]`: replaced by the states after the step. `entries` is `batch`,
    /// without `state_batch_indices`.
    pub state: TensorMut<'a, f32, 4>,
    /// `[batch]`: the entry of each row of the batch, no two alike; a row whose entry does not exist, such
    /// as -1, is padding: nothing is done for it, and its `out` stays as it is. `None`: row `i` has entry
    /// `i`.
    pub state_batch_indices: Option<TensorRef<'a, i32, 1>>,
    /// `[batch, heads, headdim]`: the input.
    pub x: TensorRef<'a, T, 3>,
    /// `[batch, heads, headdim]`: the step sizes, before `dt_bias`, softplus and limits.
    pub dt: TensorRef<'a, T, 3>,
    /// A, `[heads, headdim, states]`.
    pub a: TensorRef<'a, f32, 3>,
    /// B, `[batch, groups, states]`; head `i` uses group `i / (heads / groups)`.
    pub b: TensorRef<'a, T, 3>,
    /// C, as B.
    pub c: TensorRef<'a, T, 3>,
    /// What is done to `x`, B and C first.
    pub convolution: Option<StepConvolution<'a, T>>,
    /// D, `[heads, headdim]`: the skip from input to output.
    pub d: Option<Weight<'a, T, 2>>,
    /// `[batch, heads, headdim]`: the gate.
    pub z: Option<TensorRef<'a, T, 3>>,
    /// `[heads, headdim]`: added to `dt`.
    pub dt_bias: Option<Weight<'a, T, 2>>,
    /// `[batch, heads, headdim]`
    pub out: TensorMut<'a, T, 3>,
}

impl<'a, T> Step<'a, T> {
    /// A step without a convolution, D, gate and bias; what else is wanted is set in the struct that this
    /// returns.
    pub fn new(
        state: TensorMut<'a, f32, 4>,
        (x, dt): (TensorRef<'a, T, 3>, TensorRef<'a, T, 3>),
        a: TensorRef<'a, f32, 3>,
        (b, c): (TensorRef<'a, T, 3>, TensorRef<'a, T, 3>),
        out: TensorMut<'a, T, 3>,
    ) -> Self {
        Self {
            state,
            state_batch_indices: None,
            x,
            dt,
            a,
            b,
            c,
            convolution: None,
            d: None,
            z: None,
            dt_bias: None,
            out,
        }
    }
}

/// The causal convolution before a step of Mamba-2: that of
/// [`CausalConv1d::update`](crate::causal_conv1d::CausalConv1d::update) on `x`, B and C side by side, in
/// the same launch as the step and with the same bits.
///
/// `channels` is `heads headdim + 2 groups states`: those of `x`, then of B, then of C. The last inputs of
/// a channel are kept in a ring: the input of step `i` in slot `i` modulo `slots`. After
/// [`CausalConv1d::forward`](crate::causal_conv1d::CausalConv1d::forward) on a prompt, with its final
/// states written to the first `width - 1` slots, the next step is number `width - 1`.
#[derive(Debug)]
pub struct StepConvolution<'a, T> {
    /// `[entries, channels, slots]`, with `slots` at least the filter's width: takes the inputs of this
    /// step.
    pub conv_state: TensorMut<'a, T, 3>,
    /// `[batch]`: the number of this step, which the caller counts.
    pub cache_seqlens: TensorRef<'a, i32, 1>,
    /// `[channels, width]`, of width 2 to 8; the last tap meets the current step.
    pub weight: Weight<'a, T, 2>,
    /// `[channels]`
    pub bias: Option<Weight<'a, T, 1>>,
    /// What is applied to each sum.
    pub activation: Activation,
}
