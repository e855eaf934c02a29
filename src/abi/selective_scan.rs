//! The kernels of the selective scan: parameters and tables.

use super::{Entry, Params, Unit, params};

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
        /// As [`ForwardParams::checkpoints`].
        pub checkpoints: u64,
        /// Address of `[batch, blocks of channels, seqlen, 2, states]` of f32: each block's sums of dB and
        /// dC; 0 if both are constant.
        pub of_steps: u64,
        /// Address of `[3, sequences, segments, dim, states]` of f32, of which the second and the third
        /// part exist in kernels of [`Source::Any`]: sums of dA, dB and dC.
        pub of_states: u64,
        /// Address of `[2, sequences, segments, dim]` of f32: sums of dD and `ddelta_bias`.
        pub of_channels: u64,
        /// As [`ForwardParams::pass`].
        pub pass: i64,
    }
}

params! {
    /// Parameters of the last sums of dB and dC.
    pub struct StepSumsParams as "seqmix::selective_scan::StepSumsParams" with [Coefficient] {
        /// As [`BackwardParams::of_steps`].
        pub from: u64,
        /// dB, written, or none.
        pub b: Coefficient,
        /// dC, written, or none.
        pub c: Coefficient,
        /// As [`Scan::cu_seqlens`].
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
        /// Type of dB and dC, as [`Elements::dtype`].
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

params! {
    /// A tensor by batch, head, channel of the head, and state; axes that it lacks have a stride of 0.
    pub struct Heads as "seqmix::selective_scan::Heads" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one sequence to the next.
        pub batch_stride: i64,
        /// From one head to the next; of B and C, from one group.
        pub head_stride: i64,
        /// From one channel of a head to the next.
        pub channel_stride: i64,
        /// From one state to the next.
        pub state_stride: i64,
        /// 1: four states lie aligned as one.
        pub vector: i32,
        /// As [`Elements::dtype`].
        pub dtype: i32,
    }
}

params! {
    /// Parameters of one step.
    pub struct StepParams as "seqmix::selective_scan::StepParams" with [Heads] {
        /// Read and written.
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
        /// Channels of all heads of the batch.
        pub rows: i64,
        /// Heads.
        pub heads: i32,
        /// Channels of a head.
        pub channels: i32,
        /// Heads that share B and C.
        pub heads_of_group: i32,
        /// Floats of a channel's state.
        pub states: i32,
        /// Lanes that share a channel.
        pub lanes: i32,
        /// 1: step sizes are `softplus(dt + dt_bias)`.
        pub softplus: i32,
        /// The least step size.
        pub dt_min: f32,
        /// The largest step size.
        pub dt_max: f32,
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
            Self::Complex => 3, // and a sine and a cosine
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

/// A tuned variant of the scan. The type of `u` is a run-time field: it changes no inner loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forward {
    /// What states consist of.
    pub numbers: Numbers,
    /// Floats of a channel's state: serves every state up to it.
    pub states: usize,
    /// Lanes that share a channel.
    pub lanes: usize,
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
    lanes: usize,
    channels: usize,
    row_bytes: usize,
    blocks: u32,
    source: Source,
) -> Forward {
    Forward {
        numbers,
        states,
        lanes,
        channels,
        row_bytes,
        blocks,
        source,
    }
}

use Numbers::{Complex, Real};
use Source::{Any, Variable};

/// No kernel exists that is not a row here, and no row without a kernel. Of the rows that fit a problem
/// the first is used.
///
/// Four lanes to a channel are few enough that what they do alike (reading step sizes, adding up y) costs
/// little beside the exponentials, and give four times as many warps as channels alone would. A tile is 64
/// bytes of each channel, two sectors, as long as its B and C leave room for several blocks side by side.
#[rustfmt::skip]
pub const FORWARD: &[Forward] = &[
    //      numbers states lanes channels row blocks B and C
    forward(Real,      4,  4, 64, 64, 3, Variable),
    forward(Real,     16,  4, 64, 64, 3, Variable),
    forward(Real,     32,  8, 32, 64, 3, Variable),
    forward(Real,     64,  8, 64, 32, 1, Variable), // 16 floats a lane would take twice the registers
    forward(Real,    128, 16, 32, 32, 1, Variable),
    forward(Real,    256, 32, 16, 32, 1, Variable),
    forward(Real,     64,  8, 32, 32, 2, Any),
    forward(Real,    256, 32, 16, 32, 1, Any),
    forward(Complex,  64,  8, 32, 32, 2, Any),
    forward(Complex, 256, 16, 16, 32, 1, Any), // 32 lanes would do more alike, and 512 threads would spill
];

/// Bytes of the floats of a tile of `u` or what is like it, in rows of odd numbers of 16 bytes.
const fn element_bytes(channels: usize, row_bytes: usize) -> usize {
    4 * (channels * (row_bytes / 2 + 4) + 16)
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
        Variable => 0,
        Any => channels * (states + 16),
    };
    let floats = if variable > constant { variable } else { constant };
    let along_steps = states * chunks;
    let copied = if along_steps > steps { along_steps } else { steps };
    let pieces = (2 * copied).div_ceil(threads);
    2 * 4 * floats + CHUNK_BYTES * pieces * threads
}

impl Forward {
    /// Threads of a block.
    pub const fn threads(&self) -> usize {
        self.channels * self.lanes
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
            channels,
            row_bytes,
            blocks,
            source,
        } = *self;
        let own = states / lanes / numbers.floats();
        Entry {
            name: format!(
                "selective_scan_forward_{}_{states}{}",
                numbers.name(),
                source.name()
            ),
            instance: format!(
                "seqmix::selective_scan::Forward<{}, {lanes}, {own}, {channels}, {row_bytes}, {}>",
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
    /// Which B and C.
    pub source: Source,
}

const fn backward(
    numbers: Numbers,
    states: usize,
    (lanes, own, depth): (usize, usize, usize),
    channels: usize,
    row_bytes: usize,
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
        source,
    }
}

/// As [`FORWARD`].
///
/// Registers decide: of each state and step of a part a lane holds a decay and what it left, besides the
/// state, its gradient, A and dA. Two channels a lane halve what it costs to add dB and dC over channels.
#[rustfmt::skip]
pub const BACKWARD: &[Backward] = &[
    //       numbers states (lanes, own, depth) channels row  B and C
    backward(Real,     16, ( 4, 2, 4), 64, 32, Variable),
    backward(Real,     64, (16, 2, 4), 32, 32, Variable),
    backward(Real,    256, (32, 1, 2),  8, 16, Variable),
    backward(Real,     64, (16, 1, 4), 16, 32, Any),
    backward(Real,    256, (32, 1, 2),  8, 16, Any),
    backward(Complex,  64, (16, 1, 4), 16, 32, Any),
    backward(Complex, 256, (32, 1, 2),  8, 16, Any),
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
            blocks: 1, // a lane keeps all that it holds of a part in registers
            shared_bytes: self.shared_bytes(),
        }
    }
}

/// A kernel of few threads' work each, of which there is one for each kind of number.
fn small(name: &str, numbers: Numbers, cpp: &str, params: Params, shared_bytes: usize) -> Entry {
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

/// The kernel of one step.
pub fn step(numbers: Numbers) -> Entry {
    small("step", numbers, "Step", StepParams::PARAMS, NOTHING)
}

/// Threads of a block of [`carry`], [`step_sums`], [`channel_sums`] and [`step`].
pub const SMALL_THREADS: usize = 256;

/// Steps, and states, whose sums a block of [`step_sums`] stores.
pub const STEP_SUMS_SIDE: usize = 32;

/// The image of [`carry`].
pub const CARRY_UNIT: &str = "selective_scan_carry";

/// The image of [`step_sums`] and [`channel_sums`].
pub const SUMS_UNIT: &str = "selective_scan_sums";

/// The image of [`step`].
pub const STEP_UNIT: &str = "selective_scan_step";

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
            .flat_map(|kernel| [Real, Complex].map(kernel))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What GPUs of compute capability 8.6, 8.9 and 12.0 give to one block: the least since 8.0.
    const SHARED_BYTES: usize = 99 << 10;

    #[test]
    fn rows_fit_every_gpu_since_ampere() {
        for row in FORWARD {
            let Entry { name, threads, .. } = row.entry();
            assert!(row.shared_bytes() <= SHARED_BYTES, "{name}");
            assert!(threads <= 1024, "{name}");
            let own = row.states / row.lanes;
            assert_eq!(own * row.lanes, row.states, "{name}: lanes share the states");
            assert!(own == 1 || own % 4 == 0, "{name}: whole pieces of 16 bytes");
        }
        for row in BACKWARD {
            let Entry { name, threads, .. } = row.entry();
            assert!(row.shared_bytes() <= SHARED_BYTES, "{name}");
            assert!(threads <= 1024, "{name}");
            assert_eq!(
                row.states % (4 * row.lanes),
                0,
                "{name}: whole pieces of 16 bytes"
            );
            // those of f32, which are half as many
            let steps = row.row_bytes / 4;
            assert_eq!(steps % row.depth, 0, "{name}: whole parts");
        }
    }

    #[test]
    fn tiles_of_the_scan_are_whole_intervals_of_the_gradients() {
        for forward in FORWARD {
            for backward in BACKWARD {
                assert_eq!(
                    forward.row_bytes % backward.row_bytes,
                    0,
                    "{} and {}",
                    forward.entry().name,
                    backward.entry().name
                );
            }
        }
    }

    #[test]
    fn every_state_size_has_a_row() {
        for (numbers, source) in [(Real, Variable), (Real, Any), (Complex, Any)] {
            let forward = FORWARD.iter();
            let forward = forward.filter(|row| row.numbers == numbers && row.source == source);
            let backward = BACKWARD.iter();
            let backward = backward.filter(|row| row.numbers == numbers && row.source == source);
            let states: [Vec<usize>; 2] = [
                forward.map(|row| row.states).collect(),
                backward.map(|row| row.states).collect(),
            ];
            for states in states {
                assert!(states.is_sorted(), "{numbers:?} {source:?}: {states:?}");
                assert_eq!(states.last(), Some(&256), "{numbers:?} {source:?}");
            }
        }
    }

    #[test]
    fn a_row_spells_its_kernel() {
        let entry = FORWARD[1].entry();
        assert_eq!(entry.name, "selective_scan_forward_real_16");
        assert_eq!(
            entry.instance,
            "seqmix::selective_scan::Forward<seqmix::selective_scan::Real, 4, 4, 64, 64, \
             seqmix::selective_scan::Source::Variable>"
        );
        assert_eq!((entry.threads, entry.shared_bytes), (256, 48_128));
    }
}
