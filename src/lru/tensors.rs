//! What callers hand over: options and tensors.

use crate::tensor::{TensorMut, TensorRef};

/// Options of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Parts of each sequence that run side by side, 1 to 64; `None`: as many as the device needs to be busy. They
    /// change the order of sums, and so the last bits of results.
    pub segments: Option<usize>,
}

/// What both passes read. The last axis of a complex tensor holds real and imaginary part; it and the axis of states
/// lie contiguously, other strides are even, and addresses are multiples of a number's bytes.
#[derive(Debug)]
pub struct Inputs<'a, T> {
    /// `[batch, seqlen, dstate, 2]`: inputs of the states, which are `B u` in the paper.
    pub x: TensorRef<'a, T, 4>,
    /// `[dstate, 2]`: logarithms of the eigenvalues; models have `-exp(nu_log) + i exp(theta_log)` here, which
    /// [`RingState::a`](crate::state_space::RingState::a) computes.
    pub a: TensorRef<'a, f32, 2>,
    /// `[dstate]`: factors of the inputs; `None`: 1.
    pub gamma: Option<TensorRef<'a, f32, 1>>,
    /// `[sequences, dstate, 2]`: the states before each sequence; `None`: zeros.
    pub initial_state: Option<TensorRef<'a, f32, 3>>,
    /// `[sequences + 1]`, with a batch of 1: sequence `i` holds the steps `cu_seqlens[i]` to `cu_seqlens[i + 1]`.
    /// `None`: one sequence for each of the batch. Values beyond the tensor are clamped; what steps of no sequence
    /// would give is not written.
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
}

/// Tensors of [`Lru::forward`](super::Lru::forward).
#[derive(Debug)]
pub struct Forward<'a, T> {
    /// What is read.
    pub inputs: Inputs<'a, T>,
    /// `[batch, seqlen, dstate, 2]`: the states after each step, written.
    pub states: TensorMut<'a, T, 4>,
    /// `[sequences, dstate, 2]`: the states after the last step of each sequence, written.
    pub final_state: Option<TensorMut<'a, f32, 3>>,
}

/// Tensors of [`Lru::backward`](super::Lru::backward). The gradient of a complex number is that with respect to its
/// real part plus `i` times that with respect to its imaginary part, as in PyTorch.
#[derive(Debug)]
pub struct Backward<'a, T> {
    /// What the forward pass read.
    pub inputs: Inputs<'a, T>,
    /// `[batch, seqlen, dstate, 2]`: the gradient of `states`.
    pub dstates: TensorRef<'a, T, 4>,
    /// `[sequences, dstate, 2]`: the gradient of the final state; `None`: zeros.
    pub dfinal_state: Option<TensorRef<'a, f32, 3>>,
    /// `[batch, seqlen, dstate, 2]`, written.
    pub dx: TensorMut<'a, T, 4>,
    /// `[dstate, 2]`: of the logarithms, summed over all steps, written.
    pub da: Option<TensorMut<'a, f32, 2>>,
    /// `[dstate]`, likewise; without `gamma`, as if it were 1.
    pub dgamma: Option<TensorMut<'a, f32, 1>>,
    /// `[sequences, dstate, 2]`: the gradient of the initial state, written; without one, as if it were 0.
    pub dinitial_state: Option<TensorMut<'a, f32, 3>>,
}

/// Tensors of [`Lru::step`](super::Lru::step).
#[derive(Debug)]
pub struct Step<'a, T> {
    /// `[batch, dstate, 2]`: inputs of the states.
    pub x: TensorRef<'a, T, 3>,
    /// As [`Inputs::a`].
    pub a: TensorRef<'a, f32, 2>,
    /// As [`Inputs::gamma`].
    pub gamma: Option<TensorRef<'a, f32, 1>>,
    /// `[batch, dstate, 2]`, or `[entries, dstate, 2]` with `state_batch_indices`: read, and replaced by the states
    /// after the step.
    pub state: TensorMut<'a, f32, 3>,
    /// `[batch]`: the entry of `state` that each row has, no two the same. One that does not exist, such as -1, marks
    /// a row of padding, of which nothing is read or written. `None`: each row's own number.
    pub state_batch_indices: Option<TensorRef<'a, i32, 1>>,
    /// `[batch, dstate, 2]`: the states after the step, rounded, written.
    pub out: TensorMut<'a, T, 3>,
}
