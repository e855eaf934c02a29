//! The kernel of a single step, one for each kind of number.

use super::Numbers;
use super::small::small;
use crate::abi::{Entry, params};

params! {
    /// A tensor by row of the batch, head, channel of the head, and state; axes that it lacks have a stride of 0.
    pub struct Heads as "seqmix::selective_scan::Heads" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one row of the batch to the next.
        pub batch_stride: i64,
        /// From one head to the next; of B and C, from one group.
        pub head_stride: i64,
        /// From one channel of a head to the next.
        pub channel_stride: i64,
        /// From one state to the next.
        pub state_stride: i64,
        /// How four states lie: 0 one by one, 1 aligned as one, 2 as one number that stands for all states.
        pub pieces: i32,
        /// As [`Elements::dtype`](super::Elements::dtype).
        pub dtype: i32,
    }
}

params! {
    /// A causal convolution of x, B and C, in this order, whose last inputs are kept in rings.
    pub struct StepConvolution as "seqmix::selective_scan::StepConvolution" {
        /// Address of `[entries, channels, slots]`, read and written; 0: there is no convolution.
        pub ring: u64,
        /// From one entry to the next.
        pub ring_entry_stride: i64,
        /// From one channel to the next.
        pub ring_channel_stride: i64,
        /// From one slot to the next.
        pub ring_slot_stride: i64,
        /// Address of `[channels, width]`.
        pub weight: u64,
        /// From one channel to the next.
        pub weight_channel_stride: i64,
        /// From one tap to the next.
        pub weight_tap_stride: i64,
        /// Address of `[channels]`; 0: zeros.
        pub bias: u64,
        /// From one channel to the next.
        pub bias_stride: i64,
        /// Address of `[batch]` of i32: numbers of the current steps.
        pub steps: u64,
        /// As [`Elements::dtype`](super::Elements::dtype).
        pub weight_dtype: i32,
        /// As [`Elements::dtype`](super::Elements::dtype).
        pub bias_dtype: i32,
        /// Slots of a ring: more than inputs before the current one are read.
        pub slots: i32,
        /// Taps of a filter.
        pub width: i32,
        /// 1: silu is applied to the sums.
        pub silu: i32,
    }
}

params! {
    /// Parameters of one step.
    pub struct StepParams as "seqmix::selective_scan::StepParams" with [Heads, StepConvolution] {
        /// Read and written; by entry, not by row.
        pub state: Heads,
        /// The input.
        pub x: Heads,
        /// Step sizes.
        pub dt: Heads,
        /// A
        pub a: Heads,
        /// B
        pub b: Heads,
        /// C
        pub c: Heads,
        /// D, or none.
        pub skip: Heads,
        /// Added to `dt`, or none.
        pub dt_bias: Heads,
        /// The gate, or none.
        pub z: Heads,
        /// Written.
        pub out: Heads,
        /// Of x, B and C, or none.
        pub convolution: StepConvolution,
        /// Address of `[batch]` of i32: the entry of each row; 0: each row's own number.
        pub entries_of_rows: u64,
        /// States that there are.
        pub entries: i32,
        /// Groups of heads that share B and C.
        pub groups: i32,
        /// Heads of a group.
        pub heads_of_group: i32,
        /// Channels of a head.
        pub channels: i32,
        /// Channels of a block: as many as its warps work on at a time, or several times as many.
        pub tile: i32,
        /// Blocks of a group.
        pub group_tiles: i32,
        /// Floats of a channel's state.
        pub states: i32,
        /// log2 of the lanes that share a channel.
        pub lane_bits: i32,
        /// 1: step sizes are `softplus(dt + dt_bias)`.
        pub softplus: i32,
        /// The least step size.
        pub dt_min: f32,
        /// The largest step size.
        pub dt_max: f32,
    }
}

/// Floats of the largest state.
pub const MAX_STATES: usize = 256;

/// Threads of a block.
pub const STEP_THREADS: usize = 256;

/// The kernel.
pub fn step(numbers: Numbers) -> Entry {
    let of_channels = STEP_THREADS * (2 * size_of::<i64>() + 3 * size_of::<f32>());
    let convolved = (STEP_THREADS + 2 * MAX_STATES) * size_of::<f32>();
    let shared_bytes = convolved + of_channels;
    let entry = small("step", numbers, "Step", StepParams::PARAMS, shared_bytes);
    // 64 registers: more of the state is under way at a time
    Entry { blocks: 4, ..entry }
}

/// Its image.
pub const STEP_UNIT: &str = "selective_scan_step";
