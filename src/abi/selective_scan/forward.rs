//! The scan: its parameters and the rows of its table.

use super::Numbers::{self, Complex, Real};
use super::Source::{self, Any, Variable};
use super::{
    Coefficient, Elements, Scan, Segments, States, Vector, coefficient_bytes, element_bytes,
    slot_bytes,
};
use crate::abi::{Entry, params};

params! {
    /// Parameters of the scan.
    pub struct ForwardParams as "seqmix::selective_scan::ForwardParams"
        with [Scan, Elements, Coefficient, States, Vector, Segments]
    {
        /// The problem.
        pub scan: Scan,
        /// Written, or none.
        pub out: Elements,
        /// `out` before the gate, or none.
        pub ungated: Elements,
        /// The state after the last step of each scan, or none.
        pub last_state: States,
        /// For several segments.
        pub segments: Segments,
        /// Address of `[batch, intervals, dim, states]` of f32: the state that enters each interval; 0 for
        /// none.
        pub checkpoints: u64,
        /// 0: scan from the true first states; 1: from zeros, for what each segment leaves behind.
        pub pass: i64,
    }
}

/// A tuned variant of the scan. The type of `u` is a run-time field: it changes no inner loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forward {
    /// What states consist of.
    pub numbers: Numbers,
    /// Floats of a channel's state: serves every state up to it.
    pub states: usize,
    /// Lanes that share a channel.
    pub lanes: usize,
    /// Channels that the lanes share: what a lane reads of B and C serves all of them.
    pub own: usize,
    /// Channels of a block.
    pub channels: usize,
    /// Bytes of a channel's row of `u` in a tile.
    pub row_bytes: usize,
    /// Blocks that run side by side on a multiprocessor, see [`Entry::blocks`].
    pub blocks: u32,
    /// Which B and C.
    pub source: Source,
}

const fn forward(
    numbers: Numbers,
    states: usize,
    (lanes, own): (usize, usize),
    channels: usize,
    row_bytes: usize,
    blocks: u32,
    source: Source,
) -> Forward {
    Forward {
        numbers,
        states,
        lanes,
        own,
        channels,
        row_bytes,
        blocks,
        source,
    }
}

/// No kernel exists that is not a row here, and no row without a kernel. Of the rows that fit a problem
/// the first is used.
///
/// Four lanes to a channel are few enough that what they do alike (reading step sizes, adding up y) costs
/// little beside the exponentials, and give four times as many warps as channels alone would. A tile is 64
/// bytes of each channel, two sectors, as long as its B and C leave room for several blocks side by side.
#[rustfmt::skip]
pub const FORWARD: &[Forward] = &[
    //       numbers states (lanes, own) channels row blocks B and C
    forward(Real,      4, ( 4, 1), 64, 64, 3, Variable),
    forward(Real,     16, ( 4, 2), 64, 32, 4, Variable),
    forward(Real,     32, ( 8, 2), 64, 32, 2, Variable),
    forward(Real,     64, (16, 2), 64, 32, 1, Variable), // 16 floats a lane would take twice the registers
    forward(Real,    128, (32, 2), 32, 32, 1, Variable),
    forward(Real,    256, (32, 1), 16, 32, 1, Variable),
    forward(Real,     64, ( 8, 1), 32, 32, 2, Any),
    forward(Real,    256, (32, 1), 16, 32, 1, Any),
    forward(Complex,  64, ( 8, 1), 32, 32, 2, Any),
    forward(Complex, 256, (16, 1), 16, 32, 1, Any), // 32 lanes would do more alike, and 512 threads would spill
];

impl Forward {
    /// Threads of a block.
    pub const fn threads(&self) -> usize {
        self.channels / self.own * self.lanes
    }

    /// Shared memory of a block: floats of step sizes and inputs, B and C, slots of copies, D and bias.
    pub const fn shared_bytes(&self) -> usize {
        let Self {
            states,
            channels,
            row_bytes,
            source,
            ..
        } = *self;
        2 * element_bytes(channels, row_bytes)
            + coefficient_bytes(states, channels, row_bytes, self.threads(), source)
            + 5 * slot_bytes(channels, row_bytes)
            + 2 * 4 * channels
    }

    /// The kernel of this row.
    pub fn entry(&self) -> Entry {
        let Self {
            numbers,
            states,
            lanes,
            own,
            channels,
            row_bytes,
            blocks,
            source,
        } = *self;
        let of_lane = states / lanes / numbers.floats();
        Entry {
            name: format!(
                "selective_scan_forward_{}_{states}{}",
                numbers.name(),
                source.name()
            ),
            instance: format!(
                "seqmix::selective_scan::Forward<{}, {lanes}, {of_lane}, {own}, {channels}, {row_bytes}, {}>",
                numbers.cpp(),
                source.cpp()
            ),
            params: ForwardParams::PARAMS,
            threads: self.threads() as u32,
            blocks,
            shared_bytes: self.shared_bytes(),
        }
    }
}
