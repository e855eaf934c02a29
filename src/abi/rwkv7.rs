//! The kernels of RWKV-7's recurrence: parameters and tables.

use super::{Entry, Unit, params};

params! {
    /// `[batch, seqlen, heads, channels]`, whose channels lie contiguously. Strides count elements.
    pub struct Rows as "seqmix::rwkv7::Rows" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one sequence of the batch to the next.
        pub batch_stride: i64,
        /// From one step to the next.
        pub step_stride: i64,
        /// From one head to the next.
        pub head_stride: i64,
    }
}

params! {
    /// `[entries, heads, dk, dv]` of f32 whose last axis is contiguous. Strides count elements.
    pub struct States as "seqmix::rwkv7::States" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one sequence, or one entry, to the next.
        pub entry_stride: i64,
        /// From one head to the next.
        pub head_stride: i64,
        /// From one channel of the keys to the next.
        pub key_stride: i64,
    }
}

params! {
    /// What all kernels read.
    pub struct Layer as "seqmix::rwkv7::Layer" {
        /// Receptances.
        pub r: Rows,
        /// Keys to write by.
        pub k: Rows,
        /// What looks up.
        pub a: Rows,
        /// Where changes go.
        pub b: Rows,
        /// Logarithms of decays, of f32.
        pub decay: Rows,
        /// Values.
        pub v: Rows,
        /// Address of `[sequences + 1]` of i32; 0: one sequence for each of the batch.
        pub cu_seqlens: u64,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub seqlen: i32,
        /// Heads.
        pub heads: i32,
        /// Channels of a key.
        pub dk: i32,
        /// Channels of a value.
        pub dv: i32,
        /// [`Dtype::number`](super::Dtype::number) of all rows that are not said to be of f32.
        pub dtype: i32,
        /// 0: four channels of any row can be accessed at once.
        pub ragged: i32,
        /// The same of states.
        pub ragged_states: i32,
        /// Blocks along the values of a head.
        pub slices: i32,
    }
}

params! {
    /// Parameters of the pass that computes outputs, and of one step.
    pub struct ForwardParams as "seqmix::rwkv7::ForwardParams" with [Layer, Rows, States] {
        /// What is read.
        pub layer: Layer,
        /// Written.
        pub out: Rows,
        /// What each step looked up, of f32, written, or none.
        pub lookups: Rows,
        /// Or none.
        pub initial_state: States,
        /// Written, or none; may be the initial one.
        pub final_state: States,
        /// Address of `[batch]` of i32: the entry of each row; 0: each row's own number.
        pub entries_of_rows: u64,
        /// Entries that there are.
        pub entries: i64,
    }
}

params! {
    /// Parameters of the two passes that compute gradients.
    pub struct BackwardParams as "seqmix::rwkv7::BackwardParams" with [Layer, Rows, States] {
        /// What is read.
        pub layer: Layer,
        /// The gradient of `out`.
        pub dout: Rows,
        /// What each step looked up, of f32.
        pub lookups: Rows,
        /// Its gradient, of f32: from the first pass to the second.
        pub dlookups: Rows,
        /// Written by the second pass.
        pub dr: Rows,
        /// Written by the first pass.
        pub dk: Rows,
        /// Likewise.
        pub dv: Rows,
        /// Written by the second pass.
        pub da: Rows,
        /// Written by the first pass.
        pub db: Rows,
        /// Written by the second pass, of f32; holds something else in between.
        pub ddecay: Rows,
        /// Or none.
        pub initial_state: States,
        /// The gradient of the final state, or none.
        pub dfinal_state: States,
        /// The gradient of the initial state, written, or none.
        pub dinitial_state: States,
        /// Address of `[spans, heads, size, size]` of f32: the gradient of the state that enters each span of
        /// [`SPAN`] steps.
        pub spans: u64,
    }
}

/// Sizes of heads, to which others are filled up.
pub const SIZES: [usize; 3] = [32, 64, 128];

/// How many blocks divide the values of a head among them.
pub const SLICES: [usize; 2] = [1, 4];

/// Steps that a block reads together.
const STEPS: usize = 8;

/// Steps from one kept gradient of the state to the next.
pub const SPAN: usize = 64;

/// Lanes that share a column of the state.
const ROW_LANES: usize = 8;

/// Columns of a thread, where a block takes a whole head.
const COLUMNS: usize = 4;

/// Floats of a thread in a tile of rows.
const PIECE: usize = 4;

/// Threads of a block: each moves one piece of a tile of rows.
const fn threads(size: usize) -> usize {
    STEPS * size / PIECE
}

/// The kernel that computes outputs of heads of up to `size` channels, in so many slices.
pub fn forward(size: usize, slices: usize) -> Entry {
    let columns = COLUMNS / slices;
    let width = threads(size) / ROW_LANES * columns;
    let rows = 5 * size + 3 * width; // r, decay, k, a, b; v, out, lookups
    // wide blocks of heads of 128 channels would spill with fewer
    let registers = if columns * size < 512 { 128 } else { 255 };
    Entry {
        name: format!("rwkv7_forward_n{size}_s{slices}"),
        instance: format!("seqmix::rwkv7::Forward<{size}, {columns}>"),
        params: ForwardParams::PARAMS,
        threads: threads(size) as u32,
        blocks: blocks_of(registers, size),
        shared_bytes: STEPS * rows * size_of::<f32>(),
    }
}

/// The kernel that computes the gradients which need no state.
pub fn backward(size: usize) -> Entry {
    // heads of 32 channels would spill with as few as those of 64
    let registers = match size {
        32 => 170,
        64 => 128,
        _ => 255,
    };
    gradients("backward", "Backward", size, registers)
}

/// The kernel that computes the others.
pub fn replay(size: usize) -> Entry {
    let registers = if size < 128 { 170 } else { 255 };
    gradients("replay", "Replay", size, registers)
}

/// Blocks that fit a multiprocessor if a thread has so many registers. Without this limit the compiler takes more, for
/// loads that are on their way; with it nothing spills.
const fn blocks_of(registers: usize, size: usize) -> u32 {
    const OF_MULTIPROCESSOR: usize = 1 << 16;
    (OF_MULTIPROCESSOR / registers / threads(size)) as u32
}

fn gradients(name: &str, cpp: &str, size: usize, registers: usize) -> Entry {
    let warps = threads(size) / 32;
    let rows = 8 * size + 2 * warps * size; // eight tiles, and two sums of each warp
    Entry {
        name: format!("rwkv7_{name}_n{size}"),
        instance: format!("seqmix::rwkv7::{cpp}<{size}>"),
        params: BackwardParams::PARAMS,
        threads: threads(size) as u32,
        blocks: blocks_of(registers, size),
        shared_bytes: STEPS * rows * size_of::<f32>(),
    }
}

/// The image of the kernels of [`forward()`].
pub const FORWARD_UNIT: &str = "rwkv7_forward";

/// The image of the kernels of [`backward()`].
pub const BACKWARD_UNIT: &str = "rwkv7_backward";

/// The image of the kernels of [`replay()`].
pub const REPLAY_UNIT: &str = "rwkv7_replay";

/// All units.
pub fn units() -> Vec<Unit> {
    let unit = |name: &str, header, entries| Unit {
        name: name.into(),
        header,
        entries,
    };
    let of_size = |size| SLICES.map(|slices| forward(size, slices));
    vec![
        unit(
            FORWARD_UNIT,
            "rwkv7/forward.cuh",
            SIZES.into_iter().flat_map(of_size).collect(),
        ),
        unit(
            BACKWARD_UNIT,
            "rwkv7/backward.cuh",
            SIZES.map(backward).into(),
        ),
        unit(REPLAY_UNIT, "rwkv7/replay.cuh", SIZES.map(replay).into()),
    ]
}
