//! The gradients of the scan: their parameters and the rows of their table.

use super::Numbers::{self, Complex, Real};
use super::Source::{self, Any, Variable};
use super::{
    Coefficient, Elements, Scan, Segments, States, Vector, coefficient_bytes, element_bytes,
    slot_bytes,
};
use crate::abi::{Entry, params};

params! {
    /// Parameters of the gradients of the scan.
    pub struct BackwardParams as "seqmix::selective_scan::BackwardParams"
        with [Scan, Elements, Coefficient, States, Vector, Segments]
    {
        /// The problem.
        pub scan: Scan,
        /// The gradient of the result.
        pub dout: Elements,
        /// Written.
        pub du: Elements,
        /// Written.
        pub ddelta: Elements,
        /// Written, or none.
        pub dz: Elements,
        /// The gradient of the last state, or none for zeros.
        pub dlast_state: States,
        /// Written, or none.
        pub dinitial_state: States,
        /// For several segments: gradients of states.
        pub segments: Segments,
        /// As [`ForwardParams::checkpoints`](super::ForwardParams::checkpoints).
        pub checkpoints: u64,
        /// Address of `[batch, blocks of channels, seqlen, 2, states]` of f32: each block's sums of dB and
        /// dC; 0 if neither is wanted, or both are constant.
        pub of_steps: u64,
        /// Address of `[3, sequences, segments, dim, states]` of f32: sums of dA, and of dB and dC where those
        /// are constant. Without constants there is only the first part.
        pub of_states: u64,
        /// Address of `[2, sequences, segments, dim]` of f32: sums of dD and `ddelta_bias`.
        pub of_channels: u64,
        /// As [`ForwardParams::pass`](super::ForwardParams::pass).
        pub pass: i64,
    }
}

/// A tuned variant of the gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backward {
    /// What states consist of.
    pub numbers: Numbers,
    /// Floats of a channel's state: serves every state up to it.
    pub states: usize,
    /// Lanes that share channels.
    pub lanes: usize,
    /// Channels that the lanes share.
    pub own: usize,
    /// Steps whose gradients are computed from registers.
    pub depth: usize,
    /// Channels of a block.
    pub channels: usize,
    /// Bytes of a channel's row of `u` in a tile, between the states that the forward pass keeps.
    pub row_bytes: usize,
    /// Blocks that run side by side on a multiprocessor, see [`Entry::blocks`].
    pub blocks: u32,
    /// Which B and C.
    pub source: Source,
}

const fn backward(
    numbers: Numbers,
    states: usize,
    (lanes, own, depth): (usize, usize, usize),
    channels: usize,
    row_bytes: usize,
    blocks: u32,
    source: Source,
) -> Backward {
    Backward {
        numbers,
        states,
        lanes,
        own,
        depth,
        channels,
        row_bytes,
        blocks,
        source,
    }
}

/// As [`FORWARD`](super::FORWARD).
///
/// Registers decide: of each state and step of a part a lane holds a decay and what it left, besides the
/// state, its gradient, A and dA. Two channels a lane halve what it costs to add dB and dC over channels.
#[rustfmt::skip]
pub const BACKWARD: &[Backward] = &[
    //       numbers states (lanes, own, depth) channels row blocks B and C
    backward(Real,     16, ( 4, 2, 4), 64, 32, 3, Variable), // 168 registers; a fourth block would spill them
    backward(Real,     64, (16, 2, 4), 32, 32, 1, Variable), // and here, and below, a second one
    backward(Real,    256, (32, 1, 2),  8, 16, 1, Variable),
    backward(Real,     64, (16, 1, 4), 16, 32, 1, Any),
    backward(Real,    256, (32, 1, 2),  8, 16, 1, Any),
    backward(Complex,  64, (16, 1, 4), 16, 32, 1, Any),
    backward(Complex, 256, (32, 1, 2),  8, 16, 1, Any),
];

impl Backward {
    /// Threads of a block.
    pub const fn threads(&self) -> usize {
        self.channels / self.own * self.lanes
    }

    /// Shared memory of a block: floats of step sizes, inputs and gradients, B and C, states that enter the
    /// parts of a tile, sums of dB and dC, slots of copies, D and bias.
    pub const fn shared_bytes(&self) -> usize {
        let Self {
            states,
            depth,
            channels,
            row_bytes,
            source,
            ..
        } = *self;
        let parts = row_bytes / 2 / depth;
        3 * element_bytes(channels, row_bytes)
            + coefficient_bytes(states, channels, row_bytes, self.threads(), source)
            + 4 * parts * channels * states
            + 4 * self.threads() / 32 * depth * 2 * states
            + 4 * slot_bytes(channels, row_bytes)
            + 2 * 4 * channels
    }

    /// The kernel of this row.
    pub fn entry(&self) -> Entry {
        let Self {
            numbers,
            states,
            lanes,
            own,
            depth,
            channels,
            row_bytes,
            blocks,
            source,
        } = *self;
        let of_lane = states / lanes / numbers.floats();
        Entry {
            name: format!(
                "selective_scan_backward_{}_{states}{}",
                numbers.name(),
                source.name()
            ),
            instance: format!(
                "seqmix::selective_scan::Backward<{}, {lanes}, {of_lane}, {own}, {depth}, {channels}, \
                 {row_bytes}, {}>",
                numbers.cpp(),
                source.cpp()
            ),
            params: BackwardParams::PARAMS,
            threads: self.threads() as u32,
            blocks,
            shared_bytes: self.shared_bytes(),
        }
    }
}
