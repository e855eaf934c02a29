//! The kernels between and after those of the tables, one for each kind of number: what carries states, what adds
//! sums up.

use super::{Coefficient, Numbers, Segments, States};
use crate::abi::{Entry, Params, params};

params! {
    /// Parameters of the kernel that carries states from segment to segment.
    pub struct CarryParams as "seqmix::selective_scan::CarryParams" with [States, Segments] {
        /// A
        pub a: States,
        /// What enters the first segment, or none for zeros.
        pub first: States,
        /// States are replaced by what enters the next segment.
        pub segments: Segments,
        /// Numbers of all channels of all sequences.
        pub numbers: i64,
        /// Channels.
        pub dim: i32,
        /// Floats of a channel's state.
        pub states: i32,
        /// Segments of each sequence.
        pub count: i32,
        /// 1: gradients, from the last segment to the first.
        pub backward: i32,
    }
}

params! {
    /// Parameters of the last sums of dB and dC.
    pub struct StepSumsParams as "seqmix::selective_scan::StepSumsParams" with [Coefficient] {
        /// As [`BackwardParams::of_steps`](super::BackwardParams::of_steps).
        pub from: u64,
        /// dB, written, or none.
        pub b: Coefficient,
        /// dC, written, or none.
        pub c: Coefficient,
        /// As [`Scan::cu_seqlens`](super::Scan::cu_seqlens).
        pub cu_seqlens: u64,
        /// Sequences.
        pub sequences: i32,
        /// Steps.
        pub seqlen: i32,
        /// Floats of a channel's state.
        pub states: i32,
        /// Groups of channels.
        pub groups: i32,
        /// Blocks of channels of each group.
        pub blocks_of_group: i32,
        /// Type of dB and dC, as [`Elements::dtype`](super::Elements::dtype).
        pub dtype: i32,
    }
}

params! {
    /// One gradient that belongs to channels.
    pub struct ChannelSum as "seqmix::selective_scan::ChannelSum" {
        /// Address of `[rows, dim, states]` of f32.
        pub from: u64,
        /// Address of `[dim, states]` of f32, written; 0 for none.
        pub to: u64,
        /// From one channel to the next.
        pub channel_stride: i64,
        /// From one state to the next.
        pub state_stride: i64,
        /// Floats of a channel.
        pub states: i32,
        /// 1: complex numbers are those of C, which is kept as twice its conjugate.
        pub readout: i32,
    }
}

params! {
    /// Parameters of the last sums of gradients that belong to channels.
    pub struct ChannelSumsParams as "seqmix::selective_scan::ChannelSumsParams" with [ChannelSum] {
        /// dA
        pub a: ChannelSum,
        /// dB, if constant.
        pub b: ChannelSum,
        /// dC, if constant.
        pub c: ChannelSum,
        /// dD
        pub skip: ChannelSum,
        /// `ddelta_bias`
        pub delta_bias: ChannelSum,
        /// Sequences times segments.
        pub rows: i64,
        /// Channels.
        pub dim: i64,
    }
}

/// A kernel of few threads' work each, of which there is one for each kind of number.
pub(super) fn small(
    name: &str,
    numbers: Numbers,
    cpp: &str,
    params: Params,
    shared_bytes: usize,
) -> Entry {
    Entry {
        name: format!("selective_scan_{name}_{}", numbers.name()),
        instance: format!("seqmix::selective_scan::{cpp}<{}>", numbers.cpp()),
        params,
        threads: SMALL_THREADS as u32,
        blocks: 1,
        shared_bytes,
    }
}

/// Shared memory of a kernel without any: an empty struct of C++.
const NOTHING: usize = 1;

/// The kernel that carries states from segment to segment.
pub fn carry(numbers: Numbers) -> Entry {
    small("carry", numbers, "Carry", CarryParams::PARAMS, NOTHING)
}

/// The kernel that adds dB and dC over blocks of channels.
pub fn step_sums(numbers: Numbers) -> Entry {
    let bytes = 4 * STEP_SUMS_SIDE * (STEP_SUMS_SIDE + 1);
    small(
        "step_sums",
        numbers,
        "StepSums",
        StepSumsParams::PARAMS,
        bytes,
    )
}

/// The kernel that adds gradients over sequences and segments.
pub fn channel_sums(numbers: Numbers) -> Entry {
    small(
        "channel_sums",
        numbers,
        "ChannelSums",
        ChannelSumsParams::PARAMS,
        NOTHING,
    )
}

/// Threads of a block of [`carry`], [`step_sums`], [`channel_sums`] and [`step`](super::step()).
pub const SMALL_THREADS: usize = 256;

/// Steps, and states, whose sums a block of [`step_sums`] stores.
pub const STEP_SUMS_SIDE: usize = 32;

/// The image of [`carry`].
pub const CARRY_UNIT: &str = "selective_scan_carry";

/// The image of [`step_sums`] and [`channel_sums`].
pub const SUMS_UNIT: &str = "selective_scan_sums";
