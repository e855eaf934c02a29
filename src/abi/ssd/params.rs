//! What the kernels of state space duality are given: the structs of `kernels/ssd/params.h`.

use super::super::params;

params! {
    /// A tensor with a row for each step and each head or group. Strides count elements.
    pub struct Rows as "seqmix::ssd::Rows" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one row of the batch to the next; 0 with `cu_seqlens`.
        pub batch_stride: i64,
        /// From one step to the next.
        pub step_stride: i64,
        /// From one head or group to the next.
        pub head_stride: i64,
    }
}

params! {
    /// States `[sequence, head, channel, state]` of f32, the last axis contiguous. Strides count
    /// elements.
    pub struct States as "seqmix::ssd::States" {
        /// Their address; 0: there are none.
        pub at: u64,
        /// From one sequence to the next.
        pub sequence_stride: i64,
        /// From one head to the next.
        pub head_stride: i64,
        /// From one channel to the next.
        pub channel_stride: i64,
    }
}

params! {
    /// What is computed, and how it is cut into blocks. Strides count elements.
    pub struct Layer as "seqmix::ssd::Layer" with [Rows] {
        /// `[batch, steps, heads, headdim]`
        pub x: Rows,
        /// `[batch, steps, heads]`
        pub dt: Rows,
        /// `[batch, steps, groups, dstate]`
        pub b: Rows,
        /// As `b`.
        pub c: Rows,
        /// As `x`, or none.
        pub z: Rows,
        /// Address of `[heads]` in f32.
        pub a: u64,
        /// Address of `[heads]` in f32; 0 for none.
        pub dt_bias: u64,
        /// Address of `[heads]` or `[heads, headdim]` in f32; 0 for none.
        pub d: u64,
        /// Address of `[sequences + 1]` in i32; 0 if each row of the batch is a sequence.
        pub cu_seqlens: u64,
        /// From one head of `d` to the next.
        pub d_head_stride: i64,
        /// From one channel of `d` to the next; 0: one number a head.
        pub d_channel_stride: i64,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub steps: i32,
        /// Heads.
        pub heads: i32,
        /// Heads that share B and C.
        pub heads_per_group: i32,
        /// Channels of a head, a multiple of 8.
        pub headdim: i32,
        /// States of a channel, a multiple of 8.
        pub dstate: i32,
        /// Steps of a segment, a multiple of [`chunk`](super::chunk).
        pub segment: i32,
        /// 1: step sizes are softplus(dt + dt_bias); 0: dt + dt_bias.
        pub softplus: i32,
        /// The least step size.
        pub dt_min: f32,
        /// The largest step size.
        pub dt_max: f32,
    }
}

params! {
    /// Parameters of the forward kernels.
    pub struct ForwardParams as "seqmix::ssd::ForwardParams" with [Rows, States, Layer] {
        /// What is computed.
        pub layer: Layer,
        /// As `x`, written.
        pub out: Rows,
        /// The states before each sequence, or none: zeros.
        pub initial: States,
        /// The states after each sequence, written, or none.
        pub last: States,
        /// Address of `[slot, head, headdim, dstate]` in f32: the states before segments; 0: there is
        /// one segment a sequence.
        pub starts: u64,
    }
}

params! {
    /// Parameters of the walks over sequences that compute states, or backwards their gradients.
    pub struct SweepParams as "seqmix::ssd::SweepParams" with [Rows, States, Layer] {
        /// What is computed; backwards, `x` is the gradient of the outputs and `b` is C.
        pub layer: Layer,
        /// Where the walk begins, or none: zeros.
        pub before: States,
        /// Where it ends, written, or none.
        pub after: States,
        /// Address of `[slot, head, headdim, dstate]` in f32: in phase 0 the states after segments,
        /// written; in phase 1 those before them. 0: there is one segment a sequence.
        pub segments: u64,
        /// Address of `[slot, head]` in f32, written in phase 0: what a segment multiplies the state
        /// before it by.
        pub decays: u64,
        /// Address of `[chunk slot, head, headdim, dstate]`, written in phase 1: the states before each
        /// chunk of the walk, divided by their units.
        pub chunks: u64,
        /// Address of `[chunk slot, head, slice]` in f32, written in phase 1.
        pub units: u64,
        /// Backwards: `chunks` of the forward walk.
        pub met: u64,
        /// Backwards: `units` of the forward walk.
        pub met_units: u64,
        /// Backwards: address of `[chunk slot, head, slice, 4]` in f32, written in phase 1: summands of
        /// the product of both states.
        pub dots: u64,
        /// 0: segments begin with zeros; 1: with the states in `segments`.
        pub phase: i32,
    }
}

params! {
    /// Parameters of the kernel that passes states from segment to segment.
    pub struct CarryParams as "seqmix::ssd::CarryParams" with [States] {
        /// As in [`SweepParams`].
        pub before: States,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`SweepParams`]: at first the states after segments, afterwards those before them.
        pub segments: u64,
        /// As in [`SweepParams`].
        pub decays: u64,
        /// Numbers of a head's state.
        pub head_size: i64,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub steps: i32,
        /// Heads.
        pub heads: i32,
        /// States of a channel.
        pub dstate: i32,
        /// Steps of a segment.
        pub segment: i32,
        /// 1: from the last segment to the first.
        pub backward: i32,
    }
}

params! {
    /// Parameters of the kernels that compute the gradients of a chunk.
    pub struct GradientParams as "seqmix::ssd::GradientParams" with [Rows, Layer] {
        /// What is computed.
        pub layer: Layer,
        /// As `x`.
        pub dout: Rows,
        /// As `x`, written.
        pub dx: Rows,
        /// As `x`, written, or none.
        pub dz: Rows,
        /// As `dt`, written.
        pub ddt: Rows,
        /// Address of `[chunk slot, head, headdim, dstate]`: the states before each chunk.
        pub states: u64,
        /// Address of `[chunk slot, head, slice]` in f32.
        pub state_units: u64,
        /// As `states`: the gradients of the states after each chunk.
        pub gradients: u64,
        /// As `state_units`.
        pub gradient_units: u64,
        /// Address of `[chunk slot, head, slice, 4]` in f32.
        pub dots: u64,
        /// Address of `[2, part, chunk slot, group, chunk, dstate]` in f32, written: parts of dB and dC.
        pub coefficients: u64,
        /// Address of `[chunk slot, head, sums_of_head]` in f32, written: sums of dA, ddt_bias and dD.
        pub sums: u64,
        /// Chunks that the workspace has room for.
        pub chunk_slots: i64,
        /// Heads of a group that one block takes.
        pub heads_per_part: i32,
        /// 3, or with D per channel 2 and one for each channel.
        pub sums_of_head: i32,
    }
}

params! {
    /// Parameters of the kernels that add the parts of dB and dC.
    pub struct SumCoefficientsParams as "seqmix::ssd::SumCoefficientsParams" with [Rows] {
        /// As in [`GradientParams`].
        pub coefficients: u64,
        /// As `b`, written.
        pub db: Rows,
        /// As `c`, written.
        pub dc: Rows,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// Chunks that the workspace has room for.
        pub chunk_slots: i64,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub steps: i32,
        /// Groups of heads.
        pub groups: i32,
        /// Parts of each group.
        pub parts: i32,
        /// States of a channel.
        pub dstate: i32,
    }
}

params! {
    /// Parameters of the kernel that adds the sums of dA, ddt_bias and dD.
    pub struct SumParametersParams as "seqmix::ssd::SumParametersParams" {
        /// As in [`GradientParams`].
        pub sums: u64,
        /// Address of `[heads]` in f32, written.
        pub da: u64,
        /// Address of `[heads]` in f32, written; 0 for none.
        pub ddt_bias: u64,
        /// Address of `[heads]` or `[heads, headdim]` in f32, written; 0 for none.
        pub dd: u64,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// From one head of `dd` to the next.
        pub dd_head_stride: i64,
        /// From one channel of `dd` to the next.
        pub dd_channel_stride: i64,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub steps: i32,
        /// Sequences.
        pub sequences: i32,
        /// Heads.
        pub heads: i32,
        /// As in [`GradientParams`].
        pub sums_of_head: i32,
        /// Steps of a chunk.
        pub chunk: i32,
    }
}
