//! What the kernels of linear attention are given: the structs of `kernels/linear_attention/params.h`.

use super::super::params;

params! {
    /// A tensor with a row for each step and each of its heads. Strides count elements.
    pub struct Rows as "seqmix::linear_attention::Rows" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one row of the batch to the next; 0 with `cu_seqlens`.
        pub batch_stride: i64,
        /// From one step to the next.
        pub step_stride: i64,
        /// From one of its heads to the next.
        pub head_stride: i64,
        /// Heads of the output that share one of this tensor, at least 1.
        pub shared: i64,
    }
}

params! {
    /// Natural logarithms of decays in f32. A stride, counted in numbers, is 0 along what they do not depend on.
    pub struct Decays as "seqmix::linear_attention::Decays" {
        /// Their address; 0: there are none.
        pub at: u64,
        /// From one row of the batch to the next; 0 with `cu_seqlens`.
        pub batch_stride: i64,
        /// From one step to the next.
        pub step_stride: i64,
        /// From one head to the next.
        pub head_stride: i64,
        /// From one channel of the keys to the next.
        pub channel_stride: i64,
    }
}

params! {
    /// States of f32, a number for each sequence, head, channel of the keys and channel of the values. Strides count
    /// numbers.
    pub struct States as "seqmix::linear_attention::States" {
        /// Their address; 0: there are none.
        pub at: u64,
        /// From one sequence to the next.
        pub sequence_stride: i64,
        /// From one head to the next.
        pub head_stride: i64,
        /// From one channel of the keys to the next.
        pub key_stride: i64,
        /// From one channel of the values to the next.
        pub value_stride: i64,
    }
}

params! {
    /// What is computed, and how it is cut into blocks: queries read a state that keys and values make. Strides count
    /// elements.
    pub struct Layer as "seqmix::linear_attention::Layer" with [Rows, Decays] {
        /// `[batch, steps, heads_q, dk]`
        pub q: Rows,
        /// `[batch, steps, heads_k, dk]`
        pub k: Rows,
        /// `[batch, steps, heads_v, dv]`
        pub v: Rows,
        /// Of each step.
        pub decays: Decays,
        /// Address of `[heads, dk]` in f32, the last axis contiguous; 0: queries read their own step's state.
        pub bonus: u64,
        /// From one head of the bonus to the next.
        pub bonus_head_stride: i64,
        /// Address of `[sequences + 1]` in i32; 0 if each row of the batch is a sequence.
        pub cu_seqlens: u64,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub steps: i32,
        /// Heads of the output.
        pub heads: i32,
        /// Channels of queries and keys, a multiple of 8.
        pub dk: i32,
        /// Channels of values, a multiple of 8.
        pub dv: i32,
        /// Steps of a segment, a multiple of a tile of the kernel.
        pub segment: i32,
        /// The number of the [`FeatureMap`](crate::abi::linear_attention::FeatureMap) of the queries.
        pub query_map: i32,
        /// That of the keys.
        pub key_map: i32,
        /// 1: from the last step to the first; a step's decay then comes after it.
        pub reversed: i32,
        /// Multiplies what is read.
        pub scale: f32,
    }
}

params! {
    /// Parameters of the kernels that walk over sequences.
    pub struct WalkParams as "seqmix::linear_attention::WalkParams" with [Rows, Decays, States, Layer] {
        /// What is computed.
        pub layer: Layer,
        /// `[batch, steps, heads, dv]`, written.
        pub out: Rows,
        /// `[batch, steps, heads]` in f32, written, or none: what outputs are divided by, less eps.
        pub normalizer: Rows,
        /// The states before each sequence, or none: zeros.
        pub initial: States,
        /// The states after each sequence, written, or none.
        pub last: States,
        /// As `initial`, of the normaliser: states without values.
        pub initial_z: States,
        /// As `last`, of the normaliser.
        pub last_z: States,
        /// Address of `[slot, head, dk, dv]` in f32, see [`Mode`](crate::abi::linear_attention::Mode); 0: there is one
        /// segment a sequence.
        pub segments: u64,
        /// Address of `[slot, head]` or per channel `[slot, head, dk]` in f32: what a segment multiplies the state
        /// before it by.
        pub decays: u64,
        /// Address of `[slot, head, dk]` in f32, as `segments`.
        pub z_segments: u64,
        /// The number of a [`Mode`](crate::abi::linear_attention::Mode).
        pub mode: i32,
        /// 1: outputs are divided.
        pub normalize: i32,
        /// Added to what they are divided by.
        pub eps: f32,
        /// 1: `out` is of f32; by [`Gate::Channel`](crate::abi::linear_attention::Gate) only.
        pub parts: i32,
        /// Multiplies what is added to the state; likewise.
        pub weight: f32,
        /// Pads the struct.
        pub padding: i32,
    }
}

params! {
    /// Parameters of the kernel that passes states from segment to segment.
    pub struct CarryParams as "seqmix::linear_attention::CarryParams" with [States] {
        /// As in [`WalkParams`].
        pub initial: States,
        /// The states after each sequence, written, or none; only with `all`.
        pub last: States,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`WalkParams`]: at first the states after segments, afterwards those before them, or with `all` the
        /// last one in the sequence's first slot.
        pub segments: u64,
        /// As in [`WalkParams`].
        pub decays: u64,
        /// Numbers of a head's state.
        pub head_size: i64,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub steps: i32,
        /// Heads.
        pub heads: i32,
        /// Channels of values; 1 for the normaliser's states.
        pub dv: i32,
        /// Steps of a segment.
        pub segment: i32,
        /// Decays of a head: 1, or one for each channel of the keys.
        pub decays_of_head: i32,
        /// 1: the last segment of each sequence was computed too.
        pub all: i32,
    }
}
