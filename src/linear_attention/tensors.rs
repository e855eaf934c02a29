//! What a layer is made of: options and tensors.

pub use crate::abi::linear_attention::FeatureMap;
use crate::tensor::{TensorMut, TensorRef};

/// Options of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Applied to each element of queries and keys, and rounded to their type.
    pub feature_map: FeatureMap,
    /// Multiplies the mapped queries; `None`: `1 / sqrt(dk)`.
    pub scale: Option<f32>,
    /// `Some(eps)`: outputs are divided by `eps` plus what they would be if all values were 1.
    pub normalize: Option<f32>,
    /// Whether a query reads the state of its own step or, if `false`, that after the last step of its sequence;
    /// `true` by default.
    pub causal: bool,
    /// Steps after which a sequence is cut into segments that run side by side, rounded up to a multiple of 64, or of
    /// 32, as the kernel takes them; `None`: as it takes to fill the device. The result does not depend on it but for
    /// rounding.
    pub segment: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            feature_map: FeatureMap::Identity,
            scale: None,
            normalize: None,
            causal: true,
            segment: None,
        }
    }
}

impl Config {
    /// What [`Layer::rwkv6`] is computed with: a scale of 1.
    pub fn rwkv6() -> Self {
        Self {
            scale: Some(1.0),
            ..Self::default()
        }
    }
}

/// How the state fades before each update: natural logarithms, not above 0; minus infinity forgets everything.
#[derive(Clone, Debug, Default)]
pub enum Decay<'a> {
    /// Not at all.
    #[default]
    None,
    /// `[heads]`: alike at each step; RetNet: Sun et al., "Retentive Network", 2023; Lightning Attention-2: Qin et
    /// al., 2024.
    PerHead(TensorRef<'a, f32, 1>),
    /// `[batch, seqlen, heads]`: a gate of each step, as in Mamba-2; Gated DeltaNet: Yang et al., 2024.
    PerStep(TensorRef<'a, f32, 3>),
    /// `[batch, seqlen, heads, dk]`, the last axis contiguous: a gate of each step for each channel of the keys; Gated
    /// Linear Attention: Yang et al., 2023; RWKV-6: Peng et al., "Eagle and Finch", 2024; by the delta rule Kimi Delta
    /// Attention: Kimi Team, "Kimi Linear", 2025.
    PerChannel(TensorRef<'a, f32, 4>),
}

/// What a step adds to the state.
#[derive(Clone, Debug, Default)]
pub enum Rule<'a, T> {
    /// `k v^T`: a sum of outer products.
    #[default]
    Linear,
    /// `k (beta (v - S^T k))^T`: what the state has for this key moves towards `v`, wholly if `beta` is 1 and `k` of
    /// length 1. Schlag et al., "Linear Transformers Are Secretly Fast Weight Programmers", 2021; Yang et al.,
    /// "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024.
    Delta {
        /// `[batch, seqlen, heads]`, of any strides.
        beta: TensorRef<'a, T, 3>,
    },
}

/// The inputs of a layer.
///
/// There are `heads` states, each with its own decay, update and output. Queries, keys and values may be shared:
/// `heads_q`, `heads_k` and `heads_v` divide `heads`, and state `h` takes its key from head `h / (heads / heads_k)`,
/// and so on.
///
/// `dk` is at most 256. The last axis of `q`, `k` and `v` is contiguous: parts of one projection's output will do. The
/// same holds for outputs and gradients of these shapes. Where all rows of these tensors, and of decays per channel,
/// have a multiple of 16 bytes, and so have their strides and addresses, they are copied by that; otherwise by 4 bytes
/// or by an element, which takes longer.
///
/// With `cu_seqlens` the batch is 1, and its steps are those of several sequences, one after the other: sequence
/// `i` has the steps from `cu_seqlens[i]` to `cu_seqlens[i + 1]`, maybe none. They do not see each other, and
/// each has a state of its own. Without it each row of the batch is a sequence.
#[derive(Clone, Debug)]
pub struct Layer<'a, T> {
    /// `[batch, seqlen, heads_q, dk]`: queries.
    pub q: TensorRef<'a, T, 4>,
    /// `[batch, seqlen, heads_k, dk]`: keys.
    pub k: TensorRef<'a, T, 4>,
    /// `[batch, seqlen, heads_v, dv]`: values.
    pub v: TensorRef<'a, T, 4>,
    /// How states fade.
    pub decay: Decay<'a>,
    /// What a step adds.
    pub rule: Rule<'a, T>,
    /// `[heads, dk]`: a query reads the state before its own step, and of its own step what this factor of each
    /// channel of the key lets through, as in RWKV-6.
    pub bonus: Option<TensorRef<'a, f32, 2>>,
    /// `[sequences, heads, dk, dv]`: the state before each sequence; `None`: zeros.
    pub initial_state: Option<TensorRef<'a, f32, 4>>,
    /// `[sequences, heads, dk]`: the normaliser's state before each sequence, only with
    /// [`normalize`](Config::normalize); `None`: zeros.
    pub initial_z: Option<TensorRef<'a, f32, 3>>,
    /// `[sequences + 1]`, never falling. Values are clamped to the steps that there are; steps before the first
    /// or after the last belong to no sequence, and what is written stays as it is there.
    pub cu_seqlens: Option<TensorRef<'a, i32, 1>>,
}

impl<'a, T> Layer<'a, T> {
    /// A layer by the linear rule, without decays and without the tensors that may be absent.
    pub fn new(q: TensorRef<'a, T, 4>, k: TensorRef<'a, T, 4>, v: TensorRef<'a, T, 4>) -> Self {
        Self {
            q,
            k,
            v,
            decay: Decay::None,
            rule: Rule::Linear,
            bonus: None,
            initial_state: None,
            initial_z: None,
            cu_seqlens: None,
        }
    }

    /// A layer of RWKV-6, for [`Config::rwkv6`]: `[batch, seqlen, heads, 64]` in its models, `decay` of the same shape,
    /// the `-exp(w)` of each step and channel, and `bonus` its `u`, `[heads, 64]`. Peng et al., "Eagle and Finch", 2024.
    pub fn rwkv6(
        receptance: TensorRef<'a, T, 4>,
        key: TensorRef<'a, T, 4>,
        value: TensorRef<'a, T, 4>,
        decay: TensorRef<'a, f32, 4>,
        bonus: TensorRef<'a, f32, 2>,
    ) -> Self {
        Self {
            decay: Decay::PerChannel(decay),
            bonus: Some(bonus),
            ..Self::new(receptance, key, value)
        }
    }
}

/// Tensors of [`LinearAttention::forward`](super::LinearAttention::forward).
#[derive(Debug)]
pub struct Forward<'a, T> {
    /// What is computed.
    pub layer: Layer<'a, T>,
    /// `[batch, seqlen, heads, dv]`
    pub out: TensorMut<'a, T, 4>,
    /// `[sequences, heads, dk, dv]`: the state after each sequence.
    pub final_state: Option<TensorMut<'a, f32, 4>>,
    /// `[sequences, heads, dk]`: the normaliser's state after each sequence, only with
    /// [`normalize`](Config::normalize).
    pub final_z: Option<TensorMut<'a, f32, 3>>,
    /// `[batch, seqlen, heads]`: what outputs were divided by, less eps, only with
    /// [`normalize`](Config::normalize). The backward pass needs it.
    pub normalizer: Option<TensorMut<'a, f32, 3>>,
}

/// The gradient of [`Decay`], of the same form: of the logarithms.
#[derive(Debug)]
pub enum DecayMut<'a> {
    /// `[heads]`
    PerHead(TensorMut<'a, f32, 1>),
    /// `[batch, seqlen, heads]`
    PerStep(TensorMut<'a, f32, 3>),
    /// `[batch, seqlen, heads, dk]`, the last axis contiguous.
    PerChannel(TensorMut<'a, f32, 4>),
}

/// Tensors of [`LinearAttention::backward`](super::LinearAttention::backward).
///
/// Gradients that are `None` are not computed. dk and dv are at most 256.
#[derive(Debug)]
pub struct Backward<'a, T> {
    /// What was computed.
    pub layer: Layer<'a, T>,
    /// `[batch, seqlen, heads, dv]`: the output, with [`normalize`](Config::normalize) and only then.
    pub out: Option<TensorRef<'a, T, 4>>,
    /// `[batch, seqlen, heads]`: what the forward pass wrote as [`Forward::normalizer`], with
    /// [`normalize`](Config::normalize) and only then.
    pub normalizer: Option<TensorRef<'a, f32, 3>>,
    /// `[batch, seqlen, heads, dv]`: the gradient of the output.
    pub dout: TensorRef<'a, T, 4>,
    /// `[sequences, heads, dk, dv]`: the gradient of the state after each sequence; `None`: zeros.
    pub dfinal_state: Option<TensorRef<'a, f32, 4>>,
    /// `[sequences, heads, dk]`: the gradient of the normaliser's state after each sequence, only with
    /// [`normalize`](Config::normalize); `None`: zeros.
    pub dfinal_z: Option<TensorRef<'a, f32, 3>>,
    /// `[batch, seqlen, heads_q, dk]`
    pub dq: TensorMut<'a, T, 4>,
    /// `[batch, seqlen, heads_k, dk]`
    pub dk: TensorMut<'a, T, 4>,
    /// `[batch, seqlen, heads_v, dv]`
    pub dv: TensorMut<'a, T, 4>,
    /// Of the decays, of their form. Where a decay is 0, which is what is left of logarithms below -104 in `f32`, so
    /// is its gradient.
    pub ddecay: Option<DecayMut<'a>>,
    /// `[batch, seqlen, heads]`, only by the delta rule.
    pub dbeta: Option<TensorMut<'a, T, 3>>,
    /// `[sequences, heads, dk, dv]`: of the state before each sequence, zeros or not.
    pub dinitial_state: Option<TensorMut<'a, f32, 4>>,
    /// `[sequences, heads, dk]`: of the normaliser's state before each sequence, zeros or not, only with
    /// [`normalize`](Config::normalize).
    pub dinitial_z: Option<TensorMut<'a, f32, 3>>,
    /// Gradient of the bonus, `[heads, dk]`, the last axis contiguous; only if there is one.
    pub dbonus: Option<TensorMut<'a, f32, 2>>,
}

impl<'a, T> Backward<'a, T> {
    /// The gradients `[dq, dk, dv]` of a layer, without the tensors that may be absent.
    pub fn new(
        layer: Layer<'a, T>,
        dout: TensorRef<'a, T, 4>,
        [dq, dk, dv]: [TensorMut<'a, T, 4>; 3],
    ) -> Self {
        Self {
            layer,
            out: None,
            normalizer: None,
            dout,
            dfinal_state: None,
            dfinal_z: None,
            dq,
            dk,
            dv,
            ddecay: None,
            dbeta: None,
            dbonus: None,
            dinitial_state: None,
            dinitial_z: None,
        }
    }
}

/// Tensors of [`LinearAttention::step`](super::LinearAttention::step): those of a [`Layer`] of one step. The last axis
/// of `q`, `k`, `v` and `bonus` is contiguous; other strides are any.
#[derive(Debug)]
pub struct Step<'a, T> {
    /// `[batch, 1, heads_q, dk]`: queries.
    pub q: TensorRef<'a, T, 4>,
    /// `[batch, 1, heads_k, dk]`: keys.
    pub k: TensorRef<'a, T, 4>,
    /// `[batch, 1, heads_v, dv]`: values.
    pub v: TensorRef<'a, T, 4>,
    /// How states fade, with a sequence length of 1.
    pub decay: Decay<'a>,
    /// What the step adds, likewise.
    pub rule: Rule<'a, T>,
    /// As [`Layer::bonus`].
    pub bonus: Option<TensorRef<'a, f32, 2>>,
    /// `[batch, heads, dk, dv]`, or `[entries, heads, dk, dv]` with `state_batch_indices`: the state, read and
    /// replaced. The last axis is contiguous; it is fastest where its size, other strides and the address are multiples
    /// of 16 bytes.
    pub state: TensorMut<'a, f32, 4>,
    /// `[batch, heads, dk]`, or `[entries, heads, dk]`: the normaliser's state, read and replaced; with
    /// [`normalize`](Config::normalize), and only then.
    pub z: Option<TensorMut<'a, f32, 3>>,
    /// `[batch]`: the entry of `state` and `z` that each row has, no two the same. One that does not exist, such as -1,
    /// marks a row of padding, of which nothing is read or written. `None`: each row's own number.
    pub state_batch_indices: Option<TensorRef<'a, i32, 1>>,
    /// `[batch, 1, heads, dv]`, written.
    pub out: TensorMut<'a, T, 4>,
}
