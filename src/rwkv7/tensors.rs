//! What callers hand over: options and tensors.

use crate::tensor::{TensorMut, TensorRef};

/// Options of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Among how many blocks the values of a head are divided, 1 or 4; `None`: as the device needs it to be busy.
    /// Results have the same bits either way.
    pub slices: Option<usize>,
}

/// What both passes read. The last axis of each is contiguous, other strides are any; all is fastest where strides and
/// addresses are multiples of four elements, and heads have a multiple of four channels.
///
/// With the names of the paper, `a` is the negative of the normalised removal key, `b` that key times the in-context
/// learning rate, `k` the replacement key, and `decay` the logarithm of `w`.
#[derive(Debug)]
pub struct Inputs<'a, T> {
    /// `[batch, seqlen, heads, dk]`: the receptance, which reads.
    pub r: TensorRef<'a, T, 4>,
    /// `[batch, seqlen, heads, dk]`: natural logarithms of decays, down to `-infinity`.
    pub decay: TensorRef<'a, f32, 4>,
    /// `[batch, seqlen, heads, dk]`: the key to write by.
    pub k: TensorRef<'a, T, 4>,
    /// `[batch, seqlen, heads, dv]`: the value.
    pub v: TensorRef<'a, T, 4>,
    /// `[batch, seqlen, heads, dk]`: looks up what to change.
    pub a: TensorRef<'a, T, 4>,
    /// `[batch, seqlen, heads, dk]`: where the change goes.
    pub b: TensorRef<'a, T, 4>,
    /// `[sequences, heads, dk, dv]`: the state before each sequence; `None`: zeros. The paper's state is this one
    /// transposed.
    pub initial_state: Option<TensorRef<'a, f32, 4>>,
    /// `[sequences + 1]`, with a batch of 1: sequence `i` holds the steps `cu_seqlens[i]` to `cu_seqlens[i + 1]`.
    /// `None`: one sequence for each of the batch. Values beyond the tensor are clamped; what steps of no sequence
    /// would give is not written.
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
}

/// Tensors of [`Rwkv7::forward`](super::Rwkv7::forward).
#[derive(Debug)]
pub struct Forward<'a, T> {
    /// What is read.
    pub inputs: Inputs<'a, T>,
    /// `[batch, seqlen, heads, dv]`, written.
    pub out: TensorMut<'a, T, 4>,
    /// `[batch, seqlen, heads, dv]`: what each step looked up, `S[t-1]^T a[t]`, written. The gradients need it; nothing
    /// else does.
    pub lookups: Option<TensorMut<'a, f32, 4>>,
    /// `[sequences, heads, dk, dv]`: the state after the last step of each sequence, written.
    pub final_state: Option<TensorMut<'a, f32, 4>>,
}

/// Tensors of [`Rwkv7::backward`](super::Rwkv7::backward).
#[derive(Debug)]
pub struct Backward<'a, T> {
    /// What the forward pass read.
    pub inputs: Inputs<'a, T>,
    /// `[batch, seqlen, heads, dv]`: what it wrote as [`Forward::lookups`].
    pub lookups: TensorRef<'a, f32, 4>,
    /// `[batch, seqlen, heads, dv]`: the gradient of `out`.
    pub dout: TensorRef<'a, T, 4>,
    /// `[sequences, heads, dk, dv]`: the gradient of the final state; `None`: zeros.
    pub dfinal_state: Option<TensorRef<'a, f32, 4>>,
    /// `[batch, seqlen, heads, dk]`, written.
    pub dr: TensorMut<'a, T, 4>,
    /// `[batch, seqlen, heads, dk]`: of the logarithms, written.
    pub ddecay: TensorMut<'a, f32, 4>,
    /// `[batch, seqlen, heads, dk]`, written.
    pub dk: TensorMut<'a, T, 4>,
    /// `[batch, seqlen, heads, dv]`, written.
    pub dv: TensorMut<'a, T, 4>,
    /// `[batch, seqlen, heads, dk]`, written.
    pub da: TensorMut<'a, T, 4>,
    /// `[batch, seqlen, heads, dk]`, written.
    pub db: TensorMut<'a, T, 4>,
    /// `[sequences, heads, dk, dv]`: of the state before each sequence, zeros or not, written.
    pub dinitial_state: Option<TensorMut<'a, f32, 4>>,
}

/// Tensors of [`Rwkv7::step`](super::Rwkv7::step), with strides as in [`Inputs`].
#[derive(Debug)]
pub struct Step<'a, T> {
    /// `[batch, heads, dk]`: as [`Inputs::r`].
    pub r: TensorRef<'a, T, 3>,
    /// `[batch, heads, dk]`: as [`Inputs::decay`].
    pub decay: TensorRef<'a, f32, 3>,
    /// `[batch, heads, dk]`: as [`Inputs::k`].
    pub k: TensorRef<'a, T, 3>,
    /// `[batch, heads, dv]`: as [`Inputs::v`].
    pub v: TensorRef<'a, T, 3>,
    /// `[batch, heads, dk]`: as [`Inputs::a`].
    pub a: TensorRef<'a, T, 3>,
    /// `[batch, heads, dk]`: as [`Inputs::b`].
    pub b: TensorRef<'a, T, 3>,
    /// `[batch, heads, dk, dv]`, or `[entries, heads, dk, dv]` with `state_batch_indices`: read, and replaced by what
    /// follows the step.
    pub state: TensorMut<'a, f32, 4>,
    /// `[batch]`: the entry of `state` that each row has, no two the same. One that does not exist, such as -1, marks
    /// a row of padding, of which nothing is read or written. `None`: each row's own number.
    pub state_batch_indices: Option<TensorRef<'a, i32, 1>>,
    /// `[batch, heads, dv]`, written.
    pub out: TensorMut<'a, T, 3>,
}
