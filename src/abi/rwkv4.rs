//! The kernels of RWKV-4's average: parameters and tables.

use super::{Dtype, Entry, Params, Unit, params};

params! {
    /// `[batch, seqlen, dim]`, whose channels lie contiguously. Strides count elements.
    pub struct Signal as "seqmix::rwkv4::Signal" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one sequence of the batch to the next.
        pub batch_stride: i64,
        /// From one step to the next.
        pub step_stride: i64,
    }
}

params! {
    /// `[rows, dim]` of f32, or `[dim]` with a row stride of 0. Strides count elements.
    pub struct Rows as "seqmix::rwkv4::Rows" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one sequence, or one entry, to the next.
        pub row_stride: i64,
        /// From one channel to the next.
        pub channel_stride: i64,
    }
}

params! {
    /// What all passes read.
    pub struct Layer as "seqmix::rwkv4::Layer" {
        /// Keys.
        pub k: Signal,
        /// Values.
        pub v: Signal,
        /// The logarithm of each channel's decay.
        pub decay: Rows,
        /// Added to the key of a step's own value.
        pub bonus: Rows,
        /// What enters each sequence, or none.
        pub numerator: Rows,
        /// Likewise.
        pub denominator: Rows,
        /// Likewise.
        pub exponent: Rows,
        /// Address of `[sequences + 1]` of i32; 0: one sequence for each of the batch.
        pub cu_seqlens: u64,
        /// Address of `[sequences, segments, AVERAGE_FLOATS, dim]` of f32; 0 for one segment.
        pub ends: u64,
        /// Sequences.
        pub sequences: i32,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub seqlen: i32,
        /// Channels.
        pub dim: i32,
        /// Parts of each sequence that run side by side.
        pub segments: i32,
        /// Blocks along the channels.
        pub channel_tiles: i32,
    }
}

params! {
    /// Parameters of the passes from the first step to the last.
    pub struct ForwardParams as "seqmix::rwkv4::ForwardParams" with [Layer, Signal, Rows] {
        /// What is read.
        pub layer: Layer,
        /// Written, or none.
        pub out: Signal,
        /// Read by [`Purpose::Turns`].
        pub dout: Signal,
        /// What leaves each sequence, written, or none.
        pub final_numerator: Rows,
        /// Likewise.
        pub final_denominator: Rows,
        /// Likewise.
        pub final_exponent: Rows,
        /// Address of `[slots, AVERAGE_FLOATS, dim]` of f32: what enters each group of steps.
        pub kept: u64,
        /// Address of `[sequences, segments, TURN_FLOATS, dim]` of f32.
        pub turns: u64,
    }
}

params! {
    /// Parameters of the gradients.
    pub struct BackwardParams as "seqmix::rwkv4::BackwardParams" with [Layer, Signal, Rows] {
        /// What is read.
        pub layer: Layer,
        /// The gradient of `out`.
        pub dout: Signal,
        /// Written.
        pub dk: Signal,
        /// Written.
        pub dv: Signal,
        /// Gradients of what leaves each sequence, or none.
        pub dfinal_numerator: Rows,
        /// Likewise.
        pub dfinal_denominator: Rows,
        /// Gradients of what enters each sequence, written, or none.
        pub dinitial_numerator: Rows,
        /// Likewise.
        pub dinitial_denominator: Rows,
        /// As [`ForwardParams::kept`].
        pub kept: u64,
        /// As [`ForwardParams::turns`]; 0 for one segment.
        pub turns: u64,
        /// Address of `[sequences, segments, SUM_FLOATS, dim]` of f32, written.
        pub sums: u64,
    }
}

params! {
    /// Parameters of the last sums of the gradients of decay and bonus.
    pub struct SumsParams as "seqmix::rwkv4::SumsParams" with [Rows] {
        /// As [`BackwardParams::sums`].
        pub sums: u64,
        /// Written, or none.
        pub ddecay: Rows,
        /// Written, or none.
        pub dbonus: Rows,
        /// Sequences times segments.
        pub rows: i32,
        /// Channels.
        pub dim: i32,
    }
}

params! {
    /// Parameters of one step.
    pub struct StepParams as "seqmix::rwkv4::StepParams" with [Signal, Rows] {
        /// Keys, with a step stride of 0, as the next and `out`.
        pub k: Signal,
        /// Values.
        pub v: Signal,
        /// As [`Layer::decay`].
        pub decay: Rows,
        /// As [`Layer::bonus`].
        pub bonus: Rows,
        /// By entry, read and written, as the next two.
        pub numerator: Rows,
        /// Likewise.
        pub denominator: Rows,
        /// Likewise.
        pub exponent: Rows,
        /// Written.
        pub out: Signal,
        /// Address of `[batch]` of i32: the entry of each row; 0: each row's own number.
        pub entries_of_rows: u64,
        /// Entries that there are.
        pub entries: i32,
        /// Channels.
        pub dim: i32,
        /// Blocks along the channels.
        pub channel_tiles: i32,
    }
}

/// Channels of a block of all kernels but [`sums`], one a thread.
pub const THREADS: usize = 128;

/// Steps from one kept average to the next.
pub const GROUP: usize = 8;

/// Floats of a channel's average in a workspace.
pub const AVERAGE_FLOATS: usize = 4;

/// Floats of a channel of what the gradients of a segment leave to the one before.
pub const TURN_FLOATS: usize = 3;

/// Floats of a channel that [`sums`] adds.
pub const SUM_FLOATS: usize = 2;

/// Channels of a block of [`sums`].
pub const SUMS_CHANNELS: usize = 32;

/// Types of keys and values.
pub const DTYPES: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

/// What a pass from the first step to the last is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What each segment adds to the average, from nothing.
    Ends,
    /// `out` and the final state.
    Out,
    /// What enters each group of steps, for the gradients.
    States,
    /// That, and what the gradients of each segment give to the one before.
    Turns,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ends, Self::Out, Self::States, Self::Turns];

    const fn name(self) -> &'static str {
        match self {
            Self::Ends => "ends",
            Self::Out => "forward",
            Self::States => "states",
            Self::Turns => "turns",
        }
    }
}

/// The kernel of a pass from the first step to the last.
pub fn forward(dtype: Dtype, purpose: Purpose) -> Entry {
    let arguments = format!("{}, seqmix::rwkv4::Purpose::{purpose:?}", dtype.cpp());
    let name = format!("{}_{}", purpose.name(), dtype.name());
    entry(&name, "Forward", &arguments, ForwardParams::PARAMS)
}

/// The kernel of the gradients.
pub fn backward(dtype: Dtype) -> Entry {
    let name = format!("backward_{}", dtype.name());
    Entry {
        // 168 registers, of which the averages of a group of steps take 64; with 128 it would spill
        blocks: 3,
        ..entry(&name, "Backward", dtype.cpp(), BackwardParams::PARAMS)
    }
}

/// The kernel of one step.
pub fn step(dtype: Dtype) -> Entry {
    let name = format!("step_{}", dtype.name());
    entry(&name, "OneStep", dtype.cpp(), StepParams::PARAMS)
}

fn entry(name: &str, cpp: &str, arguments: &str, params: Params) -> Entry {
    Entry {
        name: format!("rwkv4_{name}"),
        instance: format!("seqmix::rwkv4::{cpp}<{arguments}>"),
        params,
        threads: THREADS as u32,
        // more fit without a limit: at most 80 registers
        blocks: 1,
        // that of an empty struct in C++
        shared_bytes: 1,
    }
}

/// The kernel that adds the gradients of decay and bonus over sequences and segments.
pub fn sums() -> Entry {
    const THREADS: usize = 256;
    Entry {
        name: "rwkv4_sums".into(),
        instance: "seqmix::rwkv4::Sums".into(),
        params: SumsParams::PARAMS,
        threads: THREADS as u32,
        blocks: 1,
        shared_bytes: size_of::<f32>() * THREADS,
    }
}

/// The image of the kernels of [`forward()`].
pub const FORWARD_UNIT: &str = "rwkv4_forward";

/// The image of the kernels of [`backward()`].
pub const BACKWARD_UNIT: &str = "rwkv4_backward";

/// The image of [`sums`].
pub const SUMS_UNIT: &str = "rwkv4_sums";

/// The image of the kernels of [`step()`].
pub const STEP_UNIT: &str = "rwkv4_step";

/// All units.
pub fn units() -> Vec<Unit> {
    let unit = |name: &str, header, entries| Unit {
        name: name.into(),
        header,
        entries,
    };
    let passes = |dtype| Purpose::ALL.map(|purpose| forward(dtype, purpose));
    vec![
        unit(
            FORWARD_UNIT,
            "rwkv4/forward.cuh",
            DTYPES.into_iter().flat_map(passes).collect(),
        ),
        unit(
            BACKWARD_UNIT,
            "rwkv4/backward.cuh",
            DTYPES.map(backward).into(),
        ),
        unit(SUMS_UNIT, "rwkv4/sums.cuh", vec![sums()]),
        unit(STEP_UNIT, "rwkv4/step.cuh", DTYPES.map(step).into()),
    ]
}
