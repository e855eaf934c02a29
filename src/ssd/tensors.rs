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
    /// multiple of 64, or of 32 in `f32`; `None`: as it takes to fill the device. It is what other implementations call a
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

/// D to write: its gradient.
#[derive(Debug)]
pub enum SkipMut<'a> {
    /// `[heads]`
    PerHead(TensorMut<'a, f32, 1>),
    /// `[heads, headdim]`
    PerChannel(TensorMut<'a, f32, 2>),
}

/// The inputs of a layer.
///
/// `groups` divides `heads`, and head `h` uses B and C of group `h / (heads / groups)`. `headdim` and `dstate`
/// are multiples of 8, `dstate` up to 256. The last axis of `x`, `b`, `c`, `z` and states is contiguous, and
/// their other strides and addresses are multiples of 16 bytes: parts of one projection's output will do. The
/// same holds for outputs and gradients of these shapes.
///
/// With `cu_seqlens` the batch is 1, and its steps are those of several sequences, one after the other: sequence
/// `i` has the steps from `cu_seqlens[i]` to `cu_seqlens[i + 1]`, maybe none. They do not see each other, and
/// each has states of its own. Without it each row of the batch is a sequence.
#[derive(Clone, Debug)]
pub struct Layer<'a, T> {
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
    /// or after the last belong to no sequence, and what is written stays as it is there.
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
}

impl<'a, T> Layer<'a, T> {
    /// A layer without the tensors that may be absent.
    pub fn new(
        x: TensorRef<'a, T, 4>,
        dt: TensorRef<'a, T, 3>,
        a: TensorRef<'a, f32, 1>,
        b: TensorRef<'a, T, 4>,
        c: TensorRef<'a, T, 4>,
    ) -> Self {
        Self {
            x,
            dt,
            a,
            b,
            c,
            d: None,
            z: None,
            dt_bias: None,
            initial_states: None,
            cu_seqlens: None,
        }
    }
}

/// Tensors of [`Ssd::forward`](super::Ssd::forward).
#[derive(Debug)]
pub struct Forward<'a, T> {
    /// What is computed.
    pub layer: Layer<'a, T>,
    /// As `x`.
    pub out: TensorMut<'a, T, 4>,
    /// As `initial_states`: the state after each sequence.
    pub final_states: Option<TensorMut<'a, f32, 4>>,
}

/// Tensors of [`Ssd::backward`](super::Ssd::backward).
#[derive(Debug)]
pub struct Backward<'a, T> {
    /// The layer whose gradients are asked for.
    pub layer: Layer<'a, T>,
    /// As `x`: the gradient of `out`.
    pub dout: TensorRef<'a, T, 4>,
    /// As `initial_states`: the gradient of `final_states`; `None`: zeros.
    pub dfinal_states: Option<TensorRef<'a, f32, 4>>,
    /// As `x`.
    pub dx: TensorMut<'a, T, 4>,
    /// As `dt`: with respect to what was given, before bias, softplus and limits.
    pub ddt: TensorMut<'a, T, 3>,
    /// As `a`.
    pub da: TensorMut<'a, f32, 1>,
    /// As `b`.
    pub db: TensorMut<'a, T, 4>,
    /// As `c`.
    pub dc: TensorMut<'a, T, 4>,
    /// As `d`, which need not exist.
    pub dd: Option<SkipMut<'a>>,
    /// As `z`, if and only if there is one.
    pub dz: Option<TensorMut<'a, T, 4>>,
    /// `[heads]`, whether or not there is a `dt_bias`.
    pub ddt_bias: Option<TensorMut<'a, f32, 1>>,
    /// As `initial_states`, which need not exist.
    pub dinitial_states: Option<TensorMut<'a, f32, 4>>,
}
