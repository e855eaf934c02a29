//! What a layer is made of: options and tensors.

use crate::tensor::{TensorMut, TensorRef};

/// Options of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Whether step sizes are `softplus(dt + dt_bias)` or `dt + dt_bias`, before `dt_limit`; `false` by
    /// default.
    pub dt_softplus: bool,
    /// The least and the largest step size, neither negative; `(0, infinity)` by default.
    pub dt_limit: (f32, f32),
    /// Steps after which a sequence is cut into segments that run side by side, rounded up to a
    /// multiple of 64; `None`: as it takes to fill the device. It is what other implementations call a
    /// chunk size: the distance at which states go through memory. The result does not depend on it
    /// but for rounding.
    pub segment: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dt_softplus: false,
            dt_limit: (0.0, f32::INFINITY),
            segment: None,
        }
    }
}

/// D: the skip from input to output.
#[derive(Clone, Debug)]
pub enum Skip<'a> {
    /// `[heads]`
    PerHead(TensorRef<'a, f32, 1>),
    /// `[heads, headdim]`
    PerChannel(TensorRef<'a, f32, 2>),
}

/// Tensors of [`Ssd::forward`](super::Ssd::forward).
///
/// `groups` divides `heads`, and head `h` uses B and C of group `h / (heads / groups)`. `headdim` and `dstate`
/// are multiples of 8, `dstate` up to 256. The last axis of `x`, `b`, `c`, `z`, `out` and states is contiguous,
/// and their other strides and addresses are multiples of 16 bytes: parts of one projection's output will do.
///
/// With `cu_seqlens` the batch is 1, and its steps are those of several sequences, one after the other: sequence
/// `i` has the steps from `cu_seqlens[i]` to `cu_seqlens[i + 1]`, maybe none. They do not see each other, and
/// each has states of its own. Without it each row of the batch is a sequence.
#[derive(Debug)]
pub struct Forward<'a, T> {
    /// `[batch, seqlen, heads, headdim]`: the input.
    pub x: TensorRef<'a, T, 4>,
    /// `[batch, seqlen, heads]`, of any strides: step sizes, before `dt_bias`, softplus and limits.
    pub dt: TensorRef<'a, T, 3>,
    /// A, `[heads]`: rates, not positive where states decay.
    pub a: TensorRef<'a, f32, 1>,
    /// B, `[batch, seqlen, groups, dstate]`
    pub b: TensorRef<'a, T, 4>,
    /// C, as `b`.
    pub c: TensorRef<'a, T, 4>,
    /// D
    pub d: Option<Skip<'a>>,
    /// As `x`: the gate.
    pub z: Option<TensorRef<'a, T, 4>>,
    /// `[heads]`: added to `dt`.
    pub dt_bias: Option<TensorRef<'a, f32, 1>>,
    /// `[sequences, heads, headdim, dstate]`: the state before each sequence; `None`: zeros.
    pub initial_states: Option<TensorRef<'a, f32, 4>>,
    /// `[sequences + 1]`, never falling. Values are clamped to the steps that there are; steps before the first
    /// or after the last belong to no sequence, and `out` stays as it is there.
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
    /// As `x`.
    pub out: TensorMut<'a, T, 4>,
    /// As `initial_states`: the state after each sequence.
    pub final_states: Option<TensorMut<'a, f32, 4>>,
}
