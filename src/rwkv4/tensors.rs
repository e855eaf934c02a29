//! What callers hand over: options and tensors.

use crate::tensor::{TensorMut, TensorRef};

/// Options of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Parts of each sequence that run side by side, 1 to 64; `None`: as many as the device needs to be busy. They
    /// change the order of sums, and so the last bits of results.
    pub segments: Option<usize>,
}

/// Sums of weighted values and of weights, both divided by `exp(exponent)`.
///
/// Each may have any strides: the three can be parts of one tensor.
#[derive(Debug)]
pub struct State<'a> {
    /// `[sequences, dim]`: the sum of weighted values.
    pub numerator: TensorRef<'a, f32, 2>,
    /// `[sequences, dim]`: the sum of weights.
    pub denominator: TensorRef<'a, f32, 2>,
    /// `[sequences, dim]`: a natural logarithm; `-infinity` for nothing.
    pub exponent: TensorRef<'a, f32, 2>,
}

/// [`State`] to write. The exponent that is written is the logarithm of the largest weight so far.
#[derive(Debug)]
pub struct StateMut<'a> {
    /// As [`State::numerator`].
    pub numerator: TensorMut<'a, f32, 2>,
    /// As [`State::denominator`].
    pub denominator: TensorMut<'a, f32, 2>,
    /// As [`State::exponent`].
    pub exponent: TensorMut<'a, f32, 2>,
}

/// The gradients of a [`State`] at its exponents, which do not count as variables.
#[derive(Debug)]
pub struct StateGradient<'a> {
    /// `[sequences, dim]`
    pub numerator: TensorRef<'a, f32, 2>,
    /// `[sequences, dim]`
    pub denominator: TensorRef<'a, f32, 2>,
}

/// [`StateGradient`] to write.
#[derive(Debug)]
pub struct StateGradientMut<'a> {
    /// `[sequences, dim]`
    pub numerator: TensorMut<'a, f32, 2>,
    /// `[sequences, dim]`
    pub denominator: TensorMut<'a, f32, 2>,
}

/// What both passes read. Channels of `k`, `v` and what is like them lie contiguously.
#[derive(Debug)]
pub struct Inputs<'a, T> {
    /// `[batch, seqlen, dim]`: logarithms of weights.
    pub k: TensorRef<'a, T, 3>,
    /// `[batch, seqlen, dim]`: what is averaged.
    pub v: TensorRef<'a, T, 3>,
    /// `[dim]`: the natural logarithm of the decay of a step. Models have `-exp(w)` of their parameter `w` here.
    pub decay: TensorRef<'a, f32, 1>,
    /// `[dim]`: added to the key of a step's own value.
    pub bonus: TensorRef<'a, f32, 1>,
    /// The sums before each sequence; `None`: nothing.
    pub initial_state: Option<State<'a>>,
    /// `[sequences + 1]`, with a batch of 1: sequence `i` holds the steps `cu_seqlens[i]` to `cu_seqlens[i + 1]`.
    /// `None`: one sequence for each of the batch. Values beyond the tensor are clamped; what steps of no sequence
    /// would give is not written.
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
}

/// Tensors of [`Rwkv4::forward`](super::Rwkv4::forward).
#[derive(Debug)]
pub struct Forward<'a, T> {
    /// What is read.
    pub inputs: Inputs<'a, T>,
    /// `[batch, seqlen, dim]`: the averages, written.
    pub out: TensorMut<'a, T, 3>,
    /// The sums after the last step of each sequence, written.
    pub final_state: Option<StateMut<'a>>,
}

/// Tensors of [`Rwkv4::backward`](super::Rwkv4::backward).
#[derive(Debug)]
pub struct Backward<'a, T> {
    /// What the forward pass read.
    pub inputs: Inputs<'a, T>,
    /// `[batch, seqlen, dim]`: the gradient of `out`.
    pub dout: TensorRef<'a, T, 3>,
    /// The gradients of the final state; `None`: zeros.
    pub dfinal_state: Option<StateGradient<'a>>,
    /// `[batch, seqlen, dim]`, written.
    pub dk: TensorMut<'a, T, 3>,
    /// `[batch, seqlen, dim]`, written.
    pub dv: TensorMut<'a, T, 3>,
    /// `[dim]`: of the logarithm of the decay, summed over all steps, written.
    pub ddecay: Option<TensorMut<'a, f32, 1>>,
    /// `[dim]`, likewise.
    pub dbonus: Option<TensorMut<'a, f32, 1>>,
    /// The gradients of the initial state, written.
    pub dinitial_state: Option<StateGradientMut<'a>>,
}

/// Tensors of [`Rwkv4::step`](super::Rwkv4::step).
#[derive(Debug)]
pub struct Step<'a, T> {
    /// `[batch, dim]`: logarithms of weights.
    pub k: TensorRef<'a, T, 2>,
    /// `[batch, dim]`: what is averaged.
    pub v: TensorRef<'a, T, 2>,
    /// As [`Inputs::decay`].
    pub decay: TensorRef<'a, f32, 1>,
    /// As [`Inputs::bonus`].
    pub bonus: TensorRef<'a, f32, 1>,
    /// `[batch, dim]`, or `[entries, dim]` with `state_batch_indices`: read, and replaced by what follows the step.
    pub state: StateMut<'a>,
    /// `[batch]`: the entry of `state` that each row has, no two the same. One that does not exist, such as -1, marks
    /// a row of padding, of which nothing is read or written. `None`: each row's own number.
    pub state_batch_indices: Option<TensorRef<'a, i32, 1>>,
    /// `[batch, dim]`: the averages, written.
    pub out: TensorMut<'a, T, 2>,
}
