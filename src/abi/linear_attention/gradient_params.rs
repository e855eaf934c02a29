//! What the kernels of gradients are given: the structs of `kernels/linear_attention/gradient_params.h`.

use super::super::params;
use super::{Decays, Layer, Rows, States};

params! {
    /// Parameters of the walks that compute gradients, by other roles than those of the forward pass: the gradient of
    /// q is `do` reading what `v` and `k` make, from the first step on; that of k is `v` reading what `do` and q make,
    /// and that of v is k reading what q and `do` make, both from the last step on.
    pub struct GradientWalkParams as "seqmix::linear_attention::GradientWalkParams"
        with [Rows, Decays, States, Layer] {
        /// Of these roles: `dk` counts the channels of its queries and keys, `dv` those of its values.
        pub layer: Layer,
        /// `[batch, steps, heads, dv]`, written.
        pub out: Rows,
        /// `[batch, steps, heads]` in f32, written, or none: products of each step's query and key, which are then left
        /// out.
        pub own: Rows,
        /// `[batch, steps, heads, 16]` in f32, written, or none: by what each step multiplies the values of those of its
        /// chunk that are before it.
        pub pairs: Rows,
        /// `[batch, steps, heads, 2]` in f32, or none: of the gradient of each step's output, what multiplies it, and its
        /// channel of the normaliser.
        pub factors: Rows,
        /// Where the walk begins, or none: zeros.
        pub initial: States,
        /// Where it ends, written, or none.
        pub last: States,
        /// The same of the normaliser, without keys.
        pub initial_z: States,
        /// Likewise.
        pub last_z: States,
        /// As in [`WalkParams`](super::WalkParams), a slot for each sequence stride.
        pub segments: States,
        /// Address of `[slot, head, dv]` in f32, likewise.
        pub z_segments: u64,
        /// As in [`WalkParams`](super::WalkParams); by [`Mode::Read`](super::Mode) those of segments from the first step
        /// on.
        pub decays: u64,
        /// Address of `[span slot, head, ...]`: the states at the borders of spans, as lanes hold them; 0 for none.
        pub spans: u64,
        /// Address of `[span slot, head, slice, warp]` in f32: what they were divided by.
        pub span_units: u64,
        /// Address of `[span slot, head, dv]` in f32: the normaliser's.
        pub z_spans: u64,
        /// Address of `[span slot, head, dv]` in f32, written: the products of these states with those of this walk, at
        /// the same borders or `across` spans; 0: this walk stores them.
        pub dots: u64,
        /// Steps of a span: a multiple of a chunk that divides [`SPAN`](super::SPAN).
        pub span: i32,
        /// The number of a [`Mode`](super::Mode).
        pub mode: i32,
        /// 1: the state has a channel of the normaliser.
        pub normalize: i32,
        /// 1: `factors` are those of keys; 0: of queries.
        pub factored_keys: i32,
        /// The number of the [`FeatureMap`](super::FeatureMap) of the values.
        pub value_map: i32,
        /// 1: there is a step more than in time; the first has no key and no value, and the last no query.
        pub shift: i32,
        /// 1: `out` is of f32; 2: as 1, and `out` and `dots` are added to.
        pub parts: i32,
        /// 1: `dots` are of the state before a span in time with that of this walk behind it.
        pub across: i32,
        /// Multiplies what is added to the state, as `layer.scale` does what is read of it.
        pub weight: f32,
        /// Multiplies `factors`, and with them `own`.
        pub factor_scale: f32,
    }
}

params! {
    /// Parameters of the kernels that add the gradients of heads that share a tensor.
    pub struct SumHeadsParams as "seqmix::linear_attention::SumHeadsParams" with [Rows] {
        /// `[batch, steps, heads, channels]` in f32.
        pub parts: Rows,
        /// As `parts`, or none: added to them.
        pub more: Rows,
        /// `[batch, steps, heads]` in f32, or none: what multiplies `other` of the same step.
        pub own: Rows,
        /// The same of each step and the one before it in time, or none.
        pub near: Rows,
        /// `[batch, steps, its heads, channels]`, mapped by `map` as well.
        pub other: Rows,
        /// `[batch, steps, heads that are shared, channels]`, or none: what was mapped.
        pub x: Rows,
        /// As `x`, written.
        pub out: Rows,
        /// Address of `[heads, channels]` in f32, or 0: multiplies `other`.
        pub bonus: u64,
        /// From one head of `bonus` to the next.
        pub bonus_stride: i64,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`Layer`].
        pub steps: i32,
        /// Heads that share one.
        pub heads: i32,
        /// Heads of `out`.
        pub shared: i32,
        /// Channels of all of these but `own` and `near`.
        pub channels: i32,
        /// The number of a [`FeatureMap`](super::FeatureMap).
        pub map: i32,
        /// 1: pairs of channels are not aligned, in any of these.
        pub single: i32,
        /// `near` multiplies `other` of the step before (-1) or after (1).
        pub neighbour: i32,
        /// Multiplies `own` and `near`.
        pub scale: f32,
    }
}

params! {
    /// Parameters of the kernels that compute the gradients of decays.
    pub struct DecayGradientParams as "seqmix::linear_attention::DecayGradientParams" with [Rows, Decays] {
        /// `[batch, steps, heads_q, dk]`
        pub q: Rows,
        /// `[batch, steps, heads_k, dk]`
        pub k: Rows,
        /// `[batch, steps, heads, dk]` in f32, without what passes no decay, by the mapped queries.
        pub dq: Rows,
        /// The same by the mapped keys.
        pub dk: Rows,
        /// As `dk`, or none: what keys add as queries do, by the delta rule.
        pub lookups: Rows,
        /// The decays.
        pub decays: Decays,
        /// As `decays`, written.
        pub out: Decays,
        /// Address of `[span slot, head, dk]` in f32.
        pub dots: u64,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`Layer`].
        pub steps: i32,
        /// Heads of the output.
        pub heads: i32,
        /// `dk`
        pub channels: i32,
        /// The number of the [`FeatureMap`](super::FeatureMap) of the queries.
        pub query_map: i32,
        /// That of the keys.
        pub key_map: i32,
        /// 1: a gradient for each channel; 0: their sum.
        pub per_channel: i32,
        /// As in [`GradientWalkParams`].
        pub span: i32,
        /// As in [`GradientWalkParams`]: a step's key and decay are those of the one before it in time.
        pub shift: i32,
    }
}

params! {
    /// Parameters of the kernels that compute the gradients of decays that a head has for all steps.
    pub struct HeadDecayParams as "seqmix::linear_attention::HeadDecayParams" with [Rows, Decays] {
        /// As in [`DecayGradientParams`], as are the next four.
        pub q: Rows,
        /// The keys.
        pub k: Rows,
        /// The gradients of the mapped queries.
        pub dq: Rows,
        /// Those of the mapped keys.
        pub dk: Rows,
        /// What keys add as queries do, or none.
        pub lookups: Rows,
        /// `[batch, steps, heads, 16]` in f32: what in `dq` multiplies the keys of the chunk.
        pub pairs: Rows,
        /// The same in `lookups`.
        pub lookup_pairs: Rows,
        /// The decays.
        pub decays: Decays,
        /// Address of `[span slot, head]` in f32, written: sums over the steps of a chunk.
        pub out: u64,
        /// Address of `[span slot, head, dk]` in f32: in the slot of the border before each chunk.
        pub dots: u64,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`Layer`].
        pub steps: i32,
        /// Heads of the output.
        pub heads: i32,
        /// `dk`
        pub channels: i32,
        /// The number of the [`FeatureMap`](super::FeatureMap) of the queries.
        pub query_map: i32,
        /// That of the keys.
        pub key_map: i32,
        /// As in [`DecayGradientParams`].
        pub shift: i32,
        /// 1: `pairs` have the decay between the two steps.
        pub faded: i32,
    }
}

params! {
    /// Parameters of the kernels that compute what the normaliser makes of the gradient of the output.
    pub struct NormalizerGradientParams as "seqmix::linear_attention::NormalizerGradientParams" with [Rows] {
        /// `[batch, steps, heads, channels]`
        pub out: Rows,
        /// As `out`.
        pub dout: Rows,
        /// `[batch, steps, heads]` in f32: what outputs were divided by, less `eps`.
        pub normalizer: Rows,
        /// `[batch, steps, heads, 2]` in f32, written: `1 / (normalizer + eps)`, and the gradient of `normalizer`.
        pub factors: Rows,
        /// As `dout`, written, or none: `dout` times `scale / (normalizer + eps)`, for a walk that takes no factors.
        pub weighted: Rows,
        /// `[batch, steps, heads_q, keys]`
        pub q: Rows,
        /// `[batch, steps, heads, keys]`, written, or none: `q`, mapped, times a power of two that `weighted` has less, so
        /// that each has half of the factor's exponent.
        pub balanced: Rows,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`Layer`].
        pub steps: i32,
        /// `dv`
        pub channels: i32,
        /// `dk`
        pub keys: i32,
        /// The number of the [`FeatureMap`](super::FeatureMap) of `q`.
        pub map: i32,
        /// Added to what outputs were divided by.
        pub eps: f32,
        /// Multiplies `weighted`.
        pub scale: f32,
    }
}

params! {
    /// Parameters of the kernels that multiply two rows of each step.
    pub struct RowProductsParams as "seqmix::linear_attention::RowProductsParams" with [Rows] {
        /// `[batch, steps, its heads, channels]`, mapped by `map`.
        pub left: Rows,
        /// Likewise of its heads, not mapped.
        pub right: Rows,
        /// `[batch, steps, heads]` in f32, written.
        pub products: Rows,
        /// As in [`GradientWalkParams`], or none: makes scores of the products.
        pub factors: Rows,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`Layer`].
        pub steps: i32,
        /// Of both.
        pub channels: i32,
        /// The number of the [`FeatureMap`](super::FeatureMap) of `left`.
        pub map: i32,
        /// 1: `right` is of f32.
        pub wide: i32,
        /// Multiplies `factors`.
        pub factor_scale: f32,
        /// Pads the struct.
        pub padding: i32,
    }
}

params! {
    /// Parameters of the kernel that computes the gradients of decays where attention is not causal.
    pub struct LastDecaysParams as "seqmix::linear_attention::LastDecaysParams" with [Rows, Decays, States] {
        /// `[batch, steps, heads]` in f32: the products of keys, mapped, with their gradients.
        pub products: Rows,
        /// As the decays, written.
        pub out: Decays,
        /// Before each sequence, or none: zeros.
        pub initial: States,
        /// The same of the normaliser, without values.
        pub initial_z: States,
        /// Address of `[slot, head, dk, dv]` in f32: in a sequence's first slot, the gradient of its last state.
        pub gradients: u64,
        /// Address of `[slot, head, dk]` in f32, likewise.
        pub z_gradients: u64,
        /// Address of `[slot, head]` in f32: decays of segments.
        pub decays: u64,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`Layer`].
        pub steps: i32,
        /// Sequences.
        pub sequences: i32,
        /// Heads of the output.
        pub heads: i32,
        /// `dk`
        pub channels: i32,
        /// `dv`
        pub values: i32,
        /// As in [`Layer`].
        pub segment: i32,
        /// 1: a number a head, the sum over all steps.
        pub per_head: i32,
    }
}

params! {
    /// Parameters of the kernel that adds the sums of spans.
    pub struct SumSpansParams as "seqmix::linear_attention::SumSpansParams" {
        /// Address of `[span slot, numbers]` in f32.
        pub parts: u64,
        /// Address of `[numbers / columns, columns]` in f32, written.
        pub out: u64,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// From one row of `out` to the next.
        pub out_stride: i64,
        /// As in [`Layer`].
        pub steps: i32,
        /// Sequences.
        pub sequences: i32,
        /// Numbers of a span.
        pub numbers: i32,
        /// Of a row of `out`.
        pub columns: i32,
        /// As in [`GradientWalkParams`].
        pub span: i32,
        /// 1: there is a step more, as in [`GradientWalkParams`].
        pub shift: i32,
        /// Multiplies the sums.
        pub scale: f32,
    }
}

params! {
    /// Parameters of the kernels that compute the gradient of the bonus, of each span.
    pub struct BonusGradientParams as "seqmix::linear_attention::BonusGradientParams" with [Rows] {
        /// `[batch, steps, heads_q, dk]`
        pub q: Rows,
        /// `[batch, steps, heads_k, dk]`
        pub k: Rows,
        /// `[batch, steps, heads]` in f32: the product of each step's output's gradient and value.
        pub own: Rows,
        /// Address of `[span slot, head, dk]` in f32, written.
        pub parts: u64,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`Layer`].
        pub steps: i32,
        /// Heads of the output.
        pub heads: i32,
        /// `dk`
        pub channels: i32,
        /// The number of the [`FeatureMap`](super::FeatureMap) of queries and keys.
        pub map: i32,
    }
}
