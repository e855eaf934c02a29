//! The kernels of the selective scan: parameters and tables.

mod backward;
mod forward;
mod small;
mod step;
#[cfg(test)]
mod tests;

use super::{Entry, Unit, params};

pub use backward::{BACKWARD, Backward, BackwardParams};
pub use forward::{FORWARD, Forward, ForwardParams};
pub use small::{
    CARRY_UNIT, CarryParams, ChannelSum, ChannelSumsParams, SMALL_THREADS, STEP_SUMS_SIDE,
    SUMS_UNIT, StepSumsParams, carry, channel_sums, step_sums,
};
pub use step::{Heads, MAX_STATES, STEP_THREADS, STEP_UNIT, StepConvolution, StepParams, step};

params! {
    /// `u` and what is like it: `[batch, dim, seqlen]`. Strides count elements.
    pub struct Elements as "seqmix::selective_scan::Elements" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one sequence of the batch to the next.
        pub batch_stride: i64,
        /// From one channel to the next.
        pub channel_stride: i64,
        /// From one step to the next.
        pub step_stride: i64,
        /// 1: address and strides are multiples of 16 bytes, but for that of 1; 0: they are not.
        pub vector: i32,
        /// 0 f16, 1 bf16, 2 f32.
        pub dtype: i32,
    }
}

params! {
    /// B or C. A complex number takes two places along the axis of states.
    pub struct Coefficient as "seqmix::selective_scan::Coefficient" {
        /// Address of `[batch, groups, states, seqlen]`, or of `[dim, states]` of f32.
        pub at: u64,
        /// From one sequence of the batch to the next; 0 if constant.
        pub batch_stride: i64,
        /// From one group to the next; from one channel to the next if constant.
        pub group_stride: i64,
        /// From one state to the next.
        pub state_stride: i64,
        /// From one step to the next; 0 if constant.
        pub step_stride: i64,
        /// As [`Elements::vector`].
        pub vector: i32,
        /// 0 along steps, 1 along states, 2 constant.
        pub kind: i32,
    }
}

params! {
    /// f32: `[sequences, dim, states]`, or A with a sequence stride of 0.
    pub struct States as "seqmix::selective_scan::States" {
        /// Its address; 0: there are none.
        pub at: u64,
        /// From one sequence to the next.
        pub sequence_stride: i64,
        /// From one channel to the next.
        pub channel_stride: i64,
        /// From one float of a state to the next.
        pub state_stride: i64,
    }
}

params! {
    /// `[dim]`
    pub struct Vector as "seqmix::selective_scan::Vector" {
        /// Its address; 0: zeros.
        pub at: u64,
        /// From one channel to the next.
        pub stride: i64,
    }
}

params! {
    /// States and sums of segments, which count in the order of the scan.
    pub struct Segments as "seqmix::selective_scan::Segments" {
        /// Address of `[sequences, segments, dim, states]` of f32; 0 for one segment.
        pub states: u64,
        /// Address of `[sequences, segments, dim]` of f32: sums of step sizes times log2(e).
        pub deltas: u64,
    }
}

params! {
    /// What all passes of a scan have in common.
    pub struct Scan as "seqmix::selective_scan::Scan" {
        /// The input.
        pub u: Elements,
        /// Step sizes, before bias and softplus.
        pub delta: Elements,
        /// The gate, or none.
        pub z: Elements,
        /// A
        pub a: States,
        /// B
        pub b: Coefficient,
        /// C
        pub c: Coefficient,
        /// D
        pub skip: Vector,
        /// Added to `delta`.
        pub delta_bias: Vector,
        /// What enters the first step of each sequence, or none for zeros.
        pub initial_state: States,
        /// Address of `[sequences + 1]` of i32; 0: one sequence for each of the batch.
        pub cu_seqlens: u64,
        /// Sequences.
        pub sequences: i32,
        /// Channels.
        pub dim: i32,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub seqlen: i32,
        /// Floats of a channel's state.
        pub states: i32,
        /// Groups of channels that share B and C.
        pub groups: i32,
        /// Parts of each sequence that run side by side.
        pub segments: i32,
        /// Type of D, as [`Elements::dtype`].
        pub skip_dtype: i32,
        /// Type of `delta_bias`, as [`Elements::dtype`].
        pub delta_bias_dtype: i32,
        /// 1: step sizes are `softplus(delta + delta_bias)`.
        pub softplus: i32,
        /// 1: from the last step to the first.
        pub reverse: i32,
        /// 1: channels lie contiguously; 0: steps do.
        pub along_channels: i32,
        /// 2 to this power steps lie between the states that are kept for the backward pass.
        pub checkpoint_bits: i32,
    }
}

/// What A, B, C and states consist of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numbers {
    /// Real numbers.
    #[default]
    Real,
    /// Complex numbers: real and imaginary parts side by side.
    Complex,
}

impl Numbers {
    /// Floats of one number.
    pub const fn floats(self) -> usize {
        match self {
            Self::Real => 1,
            Self::Complex => 2,
        }
    }

    /// What the special function unit computes for each number and step.
    pub const fn exponentials(self) -> usize {
        match self {
            Self::Real => 1,
            Self::Complex => 4, // and a sine, a cosine and a rounding
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Complex => "complex",
        }
    }

    const fn cpp(self) -> &'static str {
        match self {
            Self::Real => "seqmix::selective_scan::Real",
            Self::Complex => "seqmix::selective_scan::Complex",
        }
    }
}

/// Which coefficients a kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// B and C vary from step to step.
    Variable,
    /// Each may also be constant.
    Any,
}

impl Source {
    const fn name(self) -> &'static str {
        match self {
            Self::Variable => "",
            Self::Any => "_any",
        }
    }

    const fn cpp(self) -> &'static str {
        match self {
            Self::Variable => "seqmix::selective_scan::Source::Variable",
            Self::Any => "seqmix::selective_scan::Source::Any",
        }
    }
}

/// Bytes of a chunk, which a thread copies at a time.
pub const CHUNK_BYTES: usize = 16;

/// Bytes of the floats of a tile of `u` or what is like it, in rows of odd numbers of 16 bytes.
const fn element_bytes(channels: usize, row_bytes: usize) -> usize {
    4 * (channels * (row_bytes / 2 + 4) + channels / 8 * 16)
}

/// Bytes of the slots of a tile of `u` or what is like it.
const fn slot_bytes(channels: usize, row_bytes: usize) -> usize {
    channels * row_bytes
}

/// Bytes of the floats and slots of a tile of B and C.
const fn coefficient_bytes(
    states: usize,
    channels: usize,
    row_bytes: usize,
    threads: usize,
    source: Source,
) -> usize {
    let (steps, chunks) = (row_bytes / 2, row_bytes / CHUNK_BYTES);
    let shift = if states < 16 { states } else { 16 };
    let variable = steps * states + shift * (chunks - 1);
    let constant = match source {
        Source::Variable => 0,
        Source::Any => channels * (states + 16),
    };
    let floats = if variable > constant {
        variable
    } else {
        constant
    };
    let along_steps = states * chunks;
    let copied = if along_steps > steps {
        along_steps
    } else {
        steps
    };
    let pieces = (2 * copied).div_ceil(threads);
    2 * 4 * floats + CHUNK_BYTES * pieces * threads
}

/// One unit a row, so that they compile in parallel.
pub fn units() -> Vec<Unit> {
    let unit = |header, entry: Entry| Unit {
        name: entry.name.clone(),
        header,
        entries: vec![entry],
    };
    let forward = FORWARD.iter().map(Forward::entry);
    let forward = forward.map(|entry| unit("selective_scan/forward.cuh", entry));
    let backward = BACKWARD.iter().map(Backward::entry);
    let backward = backward.map(|entry| unit("selective_scan/backward.cuh", entry));
    let small = |name: &str, header, kernels: &[fn(Numbers) -> Entry]| Unit {
        name: name.into(),
        header,
        entries: kernels
            .iter()
            .flat_map(|kernel| [Numbers::Real, Numbers::Complex].map(kernel))
            .collect(),
    };
    let others = [
        small(CARRY_UNIT, "selective_scan/carry.cuh", &[carry]),
        small(
            SUMS_UNIT,
            "selective_scan/sums.cuh",
            &[step_sums, channel_sums],
        ),
        small(STEP_UNIT, "selective_scan/step.cuh", &[step]),
    ];
    forward.chain(backward).chain(others).collect()
}
