//! The kernels of a single step.

use super::{Decays, Rows, States};
use crate::abi::{Entry, Unit, params};

params! {
    /// Parameters of one step. Strides count elements.
    pub struct StepParams as "seqmix::linear_attention::StepParams" with [Rows, Decays, States] {
        /// `[batch, heads_q, dk]`; its step stride is not used, as those of the others.
        pub q: Rows,
        /// `[batch, heads_k, dk]`
        pub k: Rows,
        /// `[batch, heads_v, dv]`
        pub v: Rows,
        /// `[batch, heads, dv]`, written.
        pub out: Rows,
        /// `[batch, heads]`, or none: the linear rule.
        pub beta: Rows,
        /// Of each row of the batch.
        pub decays: Decays,
        /// `[entries, heads, dk, dv]`, read and written.
        pub state: States,
        /// `[entries, heads, dk]`, read and written, or none: outputs are not normalised.
        pub z: States,
        /// Address of `[heads, dk]` in f32, or 0.
        pub bonus: u64,
        /// From one head of it to the next.
        pub bonus_stride: i64,
        /// Address of `[batch]` of i32: the entry of each row; 0: each row's own number.
        pub entries_of_rows: u64,
        /// States that there are.
        pub entries: i32,
        /// Heads of the output.
        pub heads: i32,
        /// Channels of queries and keys.
        pub dk: i32,
        /// Channels of values.
        pub dv: i32,
        /// Slices of a block.
        pub slices: i32,
        /// Blocks along a head's slices.
        pub blocks_of_head: i32,
        /// The number of a [`FeatureMap`](super::FeatureMap).
        pub feature_map: i32,
        /// Of all elements: 0 f16, 1 bf16, 2 f32.
        pub dtype: i32,
        /// 0: rows of the state are pieces of 16 bytes at addresses that are multiples of that. 1: they are not.
        pub ragged: i32,
        /// Multiplies mapped queries.
        pub scale: f32,
        /// Added to what outputs are divided by.
        pub eps: f32,
    }
}

/// Channels of queries and keys: a kernel serves every dk up to its own.
pub const STEP_SIZES: [usize; 3] = [64, 128, 256];

/// Channels of values of a slice, of which a block takes one or more.
pub const STEP_WIDTH: usize = 32;

/// The kernel of a size.
pub fn step(size: usize) -> Entry {
    const WARPS: usize = 4;
    // q, k and decays; two sums of each warp for each channel of a slice, and a value; three sums of each warp
    let numbers = 3 * size + (2 * WARPS + 1) * STEP_WIDTH + 3 * WARPS;
    Entry {
        name: format!("linear_attention_step_n{size}"),
        instance: format!("seqmix::linear_attention::Step<{size}>"),
        params: StepParams::PARAMS,
        threads: 32 * WARPS as u32,
        // at most 128 registers, of which the largest state takes 64
        blocks: 4,
        shared_bytes: size_of::<f32>() * numbers,
    }
}

/// The image of all sizes.
pub const STEP_UNIT: &str = "linear_attention_step";

/// Its unit.
pub(super) fn unit() -> Unit {
    Unit {
        name: STEP_UNIT.into(),
        header: "linear_attention/step.cuh",
        entries: STEP_SIZES.map(step).into(),
    }
}
