//! What the calls of causal convolution take: options, and tensors by name.

use crate::tensor::{TensorMut, TensorRef};

/// What is applied to each sum, in `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `x / (1 + exp(-x))`, also called swish.
    Silu,
}

/// Options of a convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What is applied to each sum.
    pub activation: Activation,
}

/// Tensors of [`CausalConv1d::forward`](super::CausalConv1d::forward).
///
/// `x` and `out` are contiguous along dim or along seqlen, both alike; [`TensorRef::transposed`] turns a
/// `[batch, seqlen, dim]` tensor into such a view. All other strides are free. Where addresses and strides are
/// multiples of 16 bytes, copies are faster. `W`, the type of the weights, may be another than `T`.
///
/// With `cu_seqlens` the batch is 1, and its steps are those of several sequences, one after the other: sequence `i`
/// has the steps from `cu_seqlens[i]` to `cu_seqlens[i + 1]`, maybe none. They do not see each other, and each has
/// states of its own. Without it each row of the batch is a sequence.
#[derive(Debug)]
pub struct Forward<'a, T, W> {
    /// `[batch, dim, seqlen]`
    pub x: TensorRef<'a, T, 3>,
    /// `[dim, width]`, of width 2 to 8; the last tap meets the current step.
    pub weight: TensorRef<'a, W, 2>,
    /// `[dim]`
    pub bias: Option<TensorRef<'a, W, 1>>,
    /// `[sequences, dim, width - 1]`: the inputs before the first step, oldest first; `None`: zeros.
    pub initial_states: Option<TensorRef<'a, T, 3>>,
    /// `[sequences + 1]`, never falling. Values are clamped to the steps that there are; steps before the first or
    /// after the last belong to no sequence, and `out` stays as it is there.
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
    /// As `x`.
    pub out: TensorMut<'a, T, 3>,
    /// As `initial_states`: the last inputs of each sequence, of a short one preceded by its initial states.
    pub final_states: Option<TensorMut<'a, T, 3>>,
}

/// Tensors of [`CausalConv1d::backward`](super::CausalConv1d::backward). What is said of [`Forward`] holds here, of `dout` and `dx` as of `out`.
#[derive(Debug)]
pub struct Backward<'a, T, W> {
    /// `[batch, dim, seqlen]`
    pub x: TensorRef<'a, T, 3>,
    /// `[dim, width]`
    pub weight: TensorRef<'a, W, 2>,
    /// `[dim]`
    pub bias: Option<TensorRef<'a, W, 1>>,
    /// `[sequences, dim, width - 1]`
    pub initial_states: Option<TensorRef<'a, T, 3>>,
    /// `[sequences + 1]`
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
    /// As `x`: the gradient of `out`.
    pub dout: TensorRef<'a, T, 3>,
    /// As `initial_states`: the gradient of `final_states`; `None`: zeros.
    pub dfinal_states: Option<TensorRef<'a, T, 3>>,
    /// As `x`.
    pub dx: Option<TensorMut<'a, T, 3>>,
    /// As `weight`.
    pub dweight: Option<TensorMut<'a, W, 2>>,
    /// As `bias`, which need not exist.
    pub dbias: Option<TensorMut<'a, W, 1>>,
    /// As `initial_states`, which need not exist.
    pub dinitial_states: Option<TensorMut<'a, T, 3>>,
}

/// Tensors of [`CausalConv1d::update`](super::CausalConv1d::update). All strides are free.
#[derive(Debug)]
pub struct Update<'a, T, W> {
    /// `[batch, dim]`: one step of each sequence.
    pub x: TensorRef<'a, T, 2>,
    /// `[entries, dim, width - 1]`: the inputs before the step, oldest first; after the call those before the next.
    /// Of a longer state this is a view of its last `width - 1` steps.
    pub conv_state: TensorMut<'a, T, 3>,
    /// `[dim, width]`
    pub weight: TensorRef<'a, W, 2>,
    /// `[dim]`
    pub bias: Option<TensorRef<'a, W, 1>>,
    /// `[batch]`: which entry of `conv_state` belongs to each row, none to two of them; `None`: entry `b` to row `b`.
    /// A row whose index names no entry, e.g. -1, is padding: its `out` stays as it is.
    pub conv_state_indices: Option<TensorRef<'a, i32, 1>>,
    /// As `x`.
    pub out: TensorMut<'a, T, 2>,
}
