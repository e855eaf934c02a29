//! The kernels of the linear recurrent unit: parameters and tables.

use super::{Dtype, Entry, Params, Unit, params};

params! {
    /// `[batch, seqlen, states]` of complex numbers, whose states lie contiguously. Strides count numbers.
    pub struct Signal as "seqmix::lru::Signal" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one sequence of the batch to the next.
        pub batch_stride: i64,
        /// From one step to the next.
        pub step_stride: i64,
    }
}

params! {
    /// `[rows, states]` of complex numbers of f32, whose states lie contiguously. The stride counts numbers.
    pub struct Rows as "seqmix::lru::Rows" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one sequence, or one entry, to the next.
        pub row_stride: i64,
    }
}

params! {
    /// What all passes read.
    pub struct Layer as "seqmix::lru::Layer" with [Signal, Rows] {
        /// Inputs of the states.
        pub x: Signal,
        /// Address of `[states]` of complex numbers: logarithms of eigenvalues.
        pub a: u64,
        /// Address of `[states]`; 0: ones.
        pub gamma: u64,
        /// What enters each sequence, or none: zeros.
        pub initial: Rows,
        /// Address of `[sequences + 1]` of i32; 0: one sequence for each of the batch.
        pub cu_seqlens: u64,
        /// Address of `[sequences, segments, 2, states]` of complex numbers; 0 for one segment.
        pub ends: u64,
        /// Sequences.
        pub sequences: i32,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub seqlen: i32,
        /// States of a sequence.
        pub states: i32,
        /// Parts of each sequence that run side by side.
        pub segments: i32,
        /// Blocks along the states.
        pub tiles: i32,
    }
}

params! {
    /// Parameters of the passes from the first step to the last.
    pub struct ForwardParams as "seqmix::lru::ForwardParams" with [Layer, Signal, Rows] {
        /// What is read.
        pub layer: Layer,
        /// The states after each step, written, or none.
        pub out: Signal,
        /// Read by [`Purpose::Turns`].
        pub dout: Signal,
        /// The states after each sequence, written, or none.
        pub last: Rows,
        /// Address of `[slots, states]` of complex numbers: what enters each group of steps.
        pub kept: u64,
        /// Address of `[sequences, segments, 2, states]` of complex numbers.
        pub turns: u64,
    }
}

params! {
    /// Parameters of the gradients.
    pub struct BackwardParams as "seqmix::lru::BackwardParams" with [Layer, Signal, Rows] {
        /// What is read.
        pub layer: Layer,
        /// The gradient of the states after each step.
        pub dout: Signal,
        /// Written.
        pub dx: Signal,
        /// The gradient of the states after each sequence, or none.
        pub dlast: Rows,
        /// That of the states before each sequence, written, or none.
        pub dinitial: Rows,
        /// As [`ForwardParams::kept`].
        pub kept: u64,
        /// As [`ForwardParams::turns`]; 0 for one segment.
        pub turns: u64,
        /// Address of `[sequences, segments, 2, states]` of complex numbers, written.
        pub sums: u64,
    }
}

params! {
    /// Parameters of the last sums of da and dgamma.
    pub struct SumsParams as "seqmix::lru::SumsParams" {
        /// As [`BackwardParams::sums`].
        pub sums: u64,
        /// Address of `[states]` of complex numbers, written; 0 for none.
        pub da: u64,
        /// Address of `[states]`, written; 0 for none.
        pub dgamma: u64,
        /// Sequences times segments.
        pub rows: i32,
        /// States of a sequence.
        pub states: i32,
    }
}

params! {
    /// Parameters of one step.
    pub struct StepParams as "seqmix::lru::StepParams" with [Signal, Rows] {
        /// Inputs, with a step stride of 0, as `out`.
        pub x: Signal,
        /// The states after the step, written.
        pub out: Signal,
        /// As [`Layer::a`].
        pub a: u64,
        /// As [`Layer::gamma`].
        pub gamma: u64,
        /// By entry, read and written.
        pub state: Rows,
        /// Address of `[batch]` of i32: the entry of each row; 0: each row's own number.
        pub entries_of_rows: u64,
        /// Entries that there are.
        pub entries: i32,
        /// States of a row.
        pub states: i32,
        /// Blocks along the states.
        pub tiles: i32,
    }
}

/// States of a block of all kernels but [`sums`], one a thread.
pub const THREADS: usize = 128;

/// Steps from one kept state to the next.
pub const GROUP: usize = 8;

/// Complex numbers of a state for each segment in a workspace: of what it does to what enters it, and of sums.
pub const STRETCH: usize = 2;

/// States of a block of [`sums`].
pub const SUMS_STATES: usize = 32;

/// Types of inputs and outputs.
pub const DTYPES: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

/// What a pass from the first step to the last is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What each segment does to the state that enters it.
    Ends,
    /// The states after all steps, and the last one.
    Out,
    /// What enters each group of steps, for the gradients.
    States,
    /// That, and what each segment does to the gradient that comes from the one after.
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
    let arguments = format!("{}, seqmix::lru::Purpose::{purpose:?}", dtype.cpp());
    let name = format!("{}_{}", purpose.name(), dtype.name());
    entry(&name, "Forward", &arguments, ForwardParams::PARAMS)
}

/// The kernel of the gradients.
pub fn backward(dtype: Dtype) -> Entry {
    let name = format!("backward_{}", dtype.name());
    entry(&name, "Backward", dtype.cpp(), BackwardParams::PARAMS)
}

/// The kernel of one step.
pub fn step(dtype: Dtype) -> Entry {
    let name = format!("step_{}", dtype.name());
    entry(&name, "OneStep", dtype.cpp(), StepParams::PARAMS)
}

fn entry(name: &str, cpp: &str, arguments: &str, params: Params) -> Entry {
    Entry {
        name: format!("lru_{name}"),
        instance: format!("seqmix::lru::{cpp}<{arguments}>"),
        params,
        threads: THREADS as u32,
        // more fit without a limit: at most 108 registers
        blocks: 1,
        // that of an empty struct in C++
        shared_bytes: 1,
    }
}

/// The kernel that adds da and dgamma over sequences and segments.
pub fn sums() -> Entry {
    const THREADS: usize = 256;
    Entry {
        name: "lru_sums".into(),
        instance: "seqmix::lru::Sums".into(),
        params: SumsParams::PARAMS,
        threads: THREADS as u32,
        blocks: 1,
        shared_bytes: 2 * size_of::<f32>() * THREADS,
    }
}

/// The image of the kernels of [`forward()`].
pub const FORWARD_UNIT: &str = "lru_forward";

/// The image of the kernels of [`backward()`].
pub const BACKWARD_UNIT: &str = "lru_backward";

/// The image of [`sums`].
pub const SUMS_UNIT: &str = "lru_sums";

/// The image of the kernels of [`step()`].
pub const STEP_UNIT: &str = "lru_step";

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
            "lru/forward.cuh",
            DTYPES.into_iter().flat_map(passes).collect(),
        ),
        unit(
            BACKWARD_UNIT,
            "lru/backward.cuh",
            DTYPES.map(backward).into(),
        ),
        unit(SUMS_UNIT, "lru/sums.cuh", vec![sums()]),
        unit(STEP_UNIT, "lru/step.cuh", DTYPES.map(step).into()),
    ]
}
