//! What a unit is made of: options and tensors.

use crate::tensor::{TensorMut, TensorRef};

/// Options of a unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Multiplies scores before the bias is added and they are squared; 1 by default. Models take one over the
    /// length or the chunk.
    pub scale: f32,
    /// Whether a step sees only itself and those before it; `false` by default.
    pub causal: bool,
    /// Value channels that a block computes, of those that [`abi`](crate::abi::gated_attention_unit::ATTEND) has;
    /// `None`: what the cost model finds cheapest. The result does not depend on it.
    pub channels: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scale: 1.0,
            causal: false,
            channels: None,
        }
    }
}

/// What makes queries, or keys, of the channels that they share: `gamma z + beta`, each channel by itself.
#[derive(Clone, Debug)]
pub struct Affine<'a> {
    /// `[dz]`
    pub gamma: TensorRef<'a, f32, 1>,
    /// `[dz]`
    pub beta: TensorRef<'a, f32, 1>,
}

/// Queries and keys of the same channels.
#[derive(Clone, Debug)]
pub struct Pair<'a> {
    /// Makes queries.
    pub q: Affine<'a>,
    /// Makes keys.
    pub k: Affine<'a>,
}

/// Attention between chunks, which is linear.
#[derive(Clone, Debug)]
pub struct Mixed<'a> {
    /// Steps of a chunk, a multiple of 64; the last one of a sequence may have fewer.
    pub chunk: usize,
    /// What makes queries and keys of the linear part.
    pub linear: Pair<'a>,
    /// Multiplies the linear part.
    pub scale: f32,
}

/// The inputs of a unit.
///
/// `dz` and `dv` are multiples of 8, `dz` up to 256. The last axis of `u`, `v` and `z` is contiguous, and their other
/// strides and addresses are multiples of 16 bytes: parts of one projection's output will do. The same holds for
/// outputs and gradients of these shapes. Vectors are contiguous.
///
/// With `cu_seqlens` the batch is 1, and its steps are those of several sequences, one after the other: sequence
/// `i` has the steps from `cu_seqlens[i]` to `cu_seqlens[i + 1]`, maybe none. They do not see each other. Without it
/// each row of the batch is a sequence.
#[derive(Clone, Debug)]
pub struct Unit<'a, T> {
    /// `[batch, seqlen, dv]`: the gate.
    pub u: TensorRef<'a, T, 3>,
    /// `[batch, seqlen, dv]`: the values.
    pub v: TensorRef<'a, T, 3>,
    /// `[batch, seqlen, dz]`: what queries and keys are made of.
    pub z: TensorRef<'a, T, 3>,
    /// What makes queries and keys of the quadratic part.
    pub quadratic: Pair<'a>,
    /// `[2 n - 1]`, where `n` is the steps of a chunk, or `seqlen` if all is quadratic: added to scores by distance,
    /// `bias[n - 1 + i - j]` for query `i` and key `j`.
    pub bias: Option<TensorRef<'a, f32, 1>>,
    /// Chunks, and attention between them; `None`: all is quadratic.
    pub mixed: Option<Mixed<'a>>,
    /// `[sequences + 1]`, never falling. Values are clamped to the steps that there are; steps before the first
    /// or after the last belong to no sequence, and what is written stays as it is there.
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
}

impl<'a, T> Unit<'a, T> {
    /// A unit without what may be absent.
    pub fn new(
        u: TensorRef<'a, T, 3>,
        v: TensorRef<'a, T, 3>,
        z: TensorRef<'a, T, 3>,
        quadratic: Pair<'a>,
    ) -> Self {
        Self {
            u,
            v,
            z,
            quadratic,
            bias: None,
            mixed: None,
            cu_seqlens: None,
        }
    }
}

/// Tensors of [`GatedAttentionUnit::forward`](super::GatedAttentionUnit::forward).
#[derive(Debug)]
pub struct Forward<'a, T> {
    /// What is computed.
    pub unit: Unit<'a, T>,
    /// As `u`.
    pub out: TensorMut<'a, T, 3>,
}

/// Gradients with respect to an [`Affine`].
#[derive(Debug)]
pub struct AffineMut<'a> {
    /// `[dz]`
    pub dgamma: TensorMut<'a, f32, 1>,
    /// `[dz]`
    pub dbeta: TensorMut<'a, f32, 1>,
}

/// Gradients with respect to a [`Pair`].
#[derive(Debug)]
pub struct PairMut<'a> {
    /// Of what makes queries.
    pub q: AffineMut<'a>,
    /// Of what makes keys.
    pub k: AffineMut<'a>,
}

/// Tensors of [`GatedAttentionUnit::backward`](super::GatedAttentionUnit::backward).
#[derive(Debug)]
pub struct Backward<'a, T> {
    /// The unit whose gradients are asked for.
    pub unit: Unit<'a, T>,
    /// As `u`: the gradient of `out`.
    pub dout: TensorRef<'a, T, 3>,
    /// As `u`.
    pub du: TensorMut<'a, T, 3>,
    /// As `v`.
    pub dv: TensorMut<'a, T, 3>,
    /// As `z`.
    pub dz: TensorMut<'a, T, 3>,
    /// Of what makes queries and keys of the quadratic part.
    pub quadratic: PairMut<'a>,
    /// The same of the linear part, if and only if there is one.
    pub linear: Option<PairMut<'a>>,
    /// As `bias`, which must exist then.
    pub dbias: Option<TensorMut<'a, f32, 1>>,
}
