//! The kernels of causal convolution: parameters and tables.

use super::{Dtype, Dtype::BF16, Dtype::F16, Dtype::F32, Entry, Unit, params};

params! {
    /// A tensor `[batch, dim, seqlen]` that is contiguous along dim or along seqlen. Strides count elements.
    pub struct Signal as "seqmix::causal_conv1d::Signal" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one row of the batch to the next.
        pub batch_stride: i64,
        /// Along the axis that does not lie contiguously.
        pub line_stride: i64,
        /// 1: address and strides are multiples of 16 bytes; 0: they are not.
        pub vector: i64,
    }
}

params! {
    /// A tensor `[sequences, dim, width - 1]`, or one step `[batch, dim]`. Strides count elements.
    pub struct State as "seqmix::causal_conv1d::State" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one sequence to the next.
        pub sequence_stride: i64,
        /// From one channel to the next.
        pub channel_stride: i64,
        /// From one step to the next; 0 where there is only one.
        pub step_stride: i64,
    }
}

params! {
    /// The taps and biases of all channels, or their gradients. Strides count elements.
    pub struct Filter as "seqmix::causal_conv1d::Filter" {
        /// Address of `[dim, width]`; of gradients 0 for none.
        pub weight: u64,
        /// Address of `[dim]`; 0 for none.
        pub bias: u64,
        /// From one channel of `weight` to the next.
        pub weight_channel_stride: i64,
        /// From one tap of `weight` to the next.
        pub weight_tap_stride: i64,
        /// From one channel of `bias` to the next.
        pub bias_stride: i64,
        /// Type of both: 0 f16, 1 bf16, 2 f32.
        pub dtype: i32,
        /// Taps of a channel.
        pub width: i32,
    }
}

params! {
    /// How the steps of a row are divided into sequences.
    pub struct Packing as "seqmix::causal_conv1d::Packing" {
        /// Address of `[sequences + 1]` in i32; 0: a row is one sequence.
        pub cu_seqlens: u64,
        /// Sequences of a row.
        pub sequences: i32,
        /// Steps of a row.
        pub seqlen: i32,
    }
}

params! {
    /// Parameters of the forward kernels.
    pub struct ForwardParams as "seqmix::causal_conv1d::ForwardParams"
        with [Signal, State, Filter, Packing] {
        /// `[batch, dim, seqlen]`
        pub x: Signal,
        /// Weights and biases.
        pub filter: Filter,
        /// `[sequences, dim, width - 1]`, or none.
        pub initial_states: State,
        /// As `x`, written.
        pub out: Signal,
        /// As `initial_states`, written, or none.
        pub final_states: State,
        /// The sequences of a row.
        pub packing: Packing,
        /// Channels.
        pub dim: i32,
        /// Tiles along the channels.
        pub channel_tiles: i32,
        /// Tiles along the steps of a row.
        pub step_tiles: i32,
        /// Log2 of the 16-byte chunks of a tile's lines, if these lie along seqlen.
        pub line_chunks: i32,
        /// 1: silu is applied; 0: nothing.
        pub silu: i32,
    }
}

params! {
    /// Parameters of the backward kernels.
    pub struct BackwardParams as "seqmix::causal_conv1d::BackwardParams"
        with [Signal, State, Filter, Packing] {
        /// `[batch, dim, seqlen]`
        pub x: Signal,
        /// Weights and biases.
        pub filter: Filter,
        /// `[sequences, dim, width - 1]`, or none.
        pub initial_states: State,
        /// As `x`.
        pub dout: Signal,
        /// As `initial_states`, or none.
        pub dfinal_states: State,
        /// As `x`, written, or none.
        pub dx: Signal,
        /// As `initial_states`, written, or none.
        pub dinitial_states: State,
        /// Address of `[slot, width + 1, dim]` in f32, written; 0 for none.
        pub partial: u64,
        /// The sequences of a row.
        pub packing: Packing,
        /// Channels.
        pub dim: i32,
        /// Tiles along the channels.
        pub channel_tiles: i32,
        /// Tiles along the steps of a row.
        pub step_tiles: i32,
        /// Tiles along the steps of all rows.
        pub tiles: i32,
        /// Of them those of one slot.
        pub slot_tiles: i32,
        /// Log2 of the 16-byte chunks of a tile's lines, if these lie along seqlen.
        pub line_chunks: i32,
        /// 1: silu is applied; 0: nothing.
        pub silu: i32,
    }
}

params! {
    /// Parameters of the kernel that adds the sums of the backward kernel's slots.
    pub struct SumParams as "seqmix::causal_conv1d::SumParams" with [Filter] {
        /// Address of `[slot, width + 1, dim]` in f32.
        pub partial: u64,
        /// dweight and dbias, written.
        pub gradient: Filter,
        /// Slots.
        pub slots: i32,
        /// Channels.
        pub dim: i32,
    }
}

params! {
    /// Parameters of the kernels for one step.
    pub struct UpdateParams as "seqmix::causal_conv1d::UpdateParams" with [State, Filter] {
        /// `[batch, dim]`
        pub x: State,
        /// `[entries, dim, width - 1]`, read and written.
        pub conv_state: State,
        /// Weights and biases.
        pub filter: Filter,
        /// As `x`, written.
        pub out: State,
        /// Address of `[batch]` in i32; 0: row b has entry b.
        pub conv_state_indices: u64,
        /// Entries of `conv_state`.
        pub entries: i32,
        /// Channels.
        pub dim: i32,
        /// Tiles along the channels.
        pub channel_tiles: i32,
        /// 1: silu is applied; 0: nothing.
        pub silu: i32,
    }
}

/// Threads of a block of every kernel.
pub const THREADS: usize = 256;

/// Taps that a filter may have.
pub const WIDTHS: std::ops::RangeInclusive<usize> = 2..=8;

/// Bytes that a thread copies at a time.
const CHUNK_BYTES: usize = 16;

/// Chunks of a tile's line along dim, and the least along seqlen.
const DIM_CHUNKS: usize = 8;
const SEQLEN_CHUNKS: usize = 8;

/// Warps of a block, of which each has one of a tile's lines along seqlen at least.
const WARPS: usize = THREADS / 32;

/// Forward or backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// out and the final states.
    Forward,
    /// All gradients.
    Backward,
}

impl Pass {
    /// Chunks of a tile.
    const fn chunks(self) -> usize {
        match self {
            // 33 KiB: for each byte of it a thread does little, so that a smaller tile would spend as much
            // on finding its place
            Self::Forward => 2048,
            // twice 17 KiB: two blocks share a multiprocessor, and each walks over several tiles
            Self::Backward => 1024,
        }
    }
}

/// The axis of the tensors that lies contiguously in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Channels: `[batch, seqlen, dim]` in memory.
    Dim,
    /// Steps: `[batch, dim, seqlen]` in memory.
    Seqlen,
}

impl Axis {
    /// The axis as callers know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dim => "dim",
            Self::Seqlen => "seqlen",
        }
    }
}

/// The kernels, forward and backward, of filters up to a width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Convolve {
    /// Type of x, out, the states and their gradients.
    pub dtype: Dtype,
    /// The axis that is contiguous.
    pub axis: Axis,
    /// Taps that the registers of a thread hold.
    pub width: usize,
}

const fn convolve(dtype: Dtype, axis: Axis, width: usize) -> Convolve {
    Convolve { dtype, axis, width }
}

/// No convolution kernel exists that is not in a row here, and no row without kernels. Of the rows
/// that fit a problem the first is used.
///
/// What lies contiguously changes how a tile is read, and the width how much of it a thread keeps.
/// All else is a run-time field: types of the weights, layouts of the states, packed sequences,
/// silu, and widths below that of the row.
#[rustfmt::skip]
pub const CONVOLVE: &[Convolve] = &[
    // Models have 4 taps. One class for all that is wider: its threads hold twice the window.
    convolve(F16,  Axis::Dim, 4),    convolve(F16,  Axis::Dim, 8),
    convolve(F16,  Axis::Seqlen, 4), convolve(F16,  Axis::Seqlen, 8),
    convolve(BF16, Axis::Dim, 4),    convolve(BF16, Axis::Dim, 8),
    convolve(BF16, Axis::Seqlen, 4), convolve(BF16, Axis::Seqlen, 8),
    convolve(F32,  Axis::Dim, 4),    convolve(F32,  Axis::Dim, 8),
    convolve(F32,  Axis::Seqlen, 4), convolve(F32,  Axis::Seqlen, 8),
];

/// Types of x of the kernels for one step.
pub const UPDATE: &[Dtype] = &[F16, BF16, F32];

/// How the steps and channels of a problem are divided into tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tile {
    /// Channels of a tile.
    pub channels: usize,
    /// Steps of a tile.
    pub steps: usize,
    /// Log2 of the chunks of a line along seqlen; 0 along dim.
    pub line_chunks: u32,
}

impl Convolve {
    /// Elements of a chunk.
    const fn chunk(&self) -> usize {
        CHUNK_BYTES / self.dtype.bytes()
    }

    /// The most channels of a tile.
    const fn max_channels(&self, pass: Pass) -> usize {
        match self.axis {
            Axis::Dim => DIM_CHUNKS * self.chunk(),
            Axis::Seqlen => pass.chunks() / SEQLEN_CHUNKS,
        }
    }

    /// The tiles of rows of `seqlen` steps: along seqlen, lines are no longer than the rows ask for.
    pub fn tile(&self, pass: Pass, seqlen: usize) -> Tile {
        match self.axis {
            Axis::Dim => Tile {
                channels: self.max_channels(pass),
                steps: pass.chunks() / DIM_CHUNKS,
                line_chunks: 0,
            },
            Axis::Seqlen => {
                let chunks = seqlen.div_ceil(self.chunk());
                let chunks = chunks.clamp(SEQLEN_CHUNKS, pass.chunks() / WARPS);
                let chunks = chunks.next_power_of_two();
                Tile {
                    channels: pass.chunks() / chunks,
                    steps: chunks * self.chunk(),
                    line_chunks: chunks.ilog2(),
                }
            }
        }
    }

    /// Bytes of a tile with room for `before` steps before it and `after` behind it.
    const fn tile_bytes(&self, pass: Pass, before: usize, after: usize) -> usize {
        let chunks = match self.axis {
            Axis::Dim => (before + pass.chunks() / DIM_CHUNKS + after) * DIM_CHUNKS,
            Axis::Seqlen => {
                let before = before.div_ceil(self.chunk());
                let after = after.div_ceil(self.chunk());
                let side = if before > after { before } else { after };
                let padded = side * (((before + after) / side) | 1);
                pass.chunks() + self.max_channels(pass) * padded
            }
        };
        (CHUNK_BYTES * chunks).next_multiple_of(128)
    }

    /// Bytes of a number for each tap and bias of a tile's channels.
    const fn taps_bytes(&self, pass: Pass) -> usize {
        let pitch = self.max_channels(pass) + 32 / self.width;
        (4 * (self.width + 1) * pitch).next_multiple_of(128)
    }

    /// `causal_conv1d_PASS_f16_w4_dim`
    fn name(&self, pass: &str) -> String {
        let (dtype, axis) = (self.dtype.name(), self.axis.name());
        format!("causal_conv1d_{pass}_{dtype}_w{}_{axis}", self.width)
    }

    /// The C++ type `KERNEL<Element, Axis, Chunks, Width>`.
    fn instance(&self, kernel: &str, pass: Pass) -> String {
        let (dtype, axis, width, chunks) = (self.dtype.cpp(), self.axis, self.width, pass.chunks());
        format!(
            "seqmix::causal_conv1d::{kernel}<{dtype}, seqmix::causal_conv1d::Axis::{axis:?}, \
             {chunks}, {width}>"
        )
    }

    /// The forward kernel of this row.
    pub fn forward(&self) -> Entry {
        let pass = Pass::Forward;
        Entry {
            name: self.name("forward"),
            instance: self.instance("Forward", pass),
            params: ForwardParams::PARAMS,
            threads: THREADS as u32,
            // 46 to 85 registers: more blocks fit without a limit
            blocks: 1,
            shared_bytes: self.tile_bytes(pass, self.width - 1, 0) + self.taps_bytes(pass),
        }
    }

    /// The backward kernel of this row.
    pub fn backward(&self) -> Entry {
        let (pass, beside) = (Pass::Backward, self.width - 1);
        let tiles = self.tile_bytes(pass, beside, beside) + self.tile_bytes(pass, 0, beside);
        Entry {
            name: self.name("backward"),
            instance: self.instance("Backward", pass),
            params: BackwardParams::PARAMS,
            threads: THREADS as u32,
            // 128 registers are too few for two channels of wide filters, and just enough for the rest
            blocks: if self.axis == Axis::Dim && self.width > 4 {
                1
            } else {
                2
            },
            shared_bytes: tiles + 2 * self.taps_bytes(pass),
        }
    }
}

/// The kernel for one step of inputs of this type.
pub fn update(dtype: Dtype) -> Entry {
    let width = *WIDTHS.end();
    Entry {
        name: format!("causal_conv1d_update_{}", dtype.name()),
        instance: format!("seqmix::causal_conv1d::Update<{}, {width}>", dtype.cpp()),
        params: UpdateParams::PARAMS,
        threads: THREADS as u32,
        blocks: 1,
        shared_bytes: 4 * THREADS * (width - 1),
    }
}

/// The kernel that adds the sums of the slots.
pub fn sum() -> Entry {
    Entry {
        name: "causal_conv1d_sum".into(),
        instance: "seqmix::causal_conv1d::Sum".into(),
        params: SumParams::PARAMS,
        threads: THREADS as u32,
        blocks: 1,
        shared_bytes: 4 * THREADS,
    }
}

/// Names of the images of one type's kernels, forward and backward, and of the others.
pub fn forward_unit(dtype: Dtype) -> String {
    format!("causal_conv1d_forward_{}", dtype.name())
}

/// As [`forward_unit`].
pub fn backward_unit(dtype: Dtype) -> String {
    format!("causal_conv1d_backward_{}", dtype.name())
}

/// As [`forward_unit`].
pub const UPDATE_UNIT: &str = "causal_conv1d_update";

/// As [`forward_unit`].
pub const SUM_UNIT: &str = "causal_conv1d_sum";

/// One unit a type and pass, so that they compile in parallel.
pub fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for &dtype in UPDATE {
        let rows = || CONVOLVE.iter().filter(move |row| row.dtype == dtype);
        units.push(Unit {
            name: forward_unit(dtype),
            header: "causal_conv1d/forward.cuh",
            entries: rows().map(Convolve::forward).collect(),
        });
        units.push(Unit {
            name: backward_unit(dtype),
            header: "causal_conv1d/backward.cuh",
            entries: rows().map(Convolve::backward).collect(),
        });
    }
    units.push(Unit {
        name: UPDATE_UNIT.into(),
        header: "causal_conv1d/update.cuh",
        entries: UPDATE.iter().map(|&dtype| update(dtype)).collect(),
    });
    units.push(Unit {
        name: SUM_UNIT.into(),
        header: "causal_conv1d/sum.cuh",
        entries: vec![sum()],
    });
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What GPUs of compute capability 8.6, 8.9 and 12.0 give to one block: the least since 8.0.
    const SHARED_BYTES: usize = 99 << 10;

    #[test]
    fn rows_fit_every_gpu_since_ampere() {
        for row in CONVOLVE {
            for entry in [row.forward(), row.backward()] {
                let Entry {
                    name, shared_bytes, ..
                } = entry;
                assert!(shared_bytes <= SHARED_BYTES, "{name}: {shared_bytes}");
            }
        }
    }

    #[test]
    fn each_dtype_and_axis_has_every_width() {
        for &dtype in UPDATE {
            for axis in [Axis::Dim, Axis::Seqlen] {
                let rows = CONVOLVE.iter();
                let rows = rows.filter(|row| row.dtype == dtype && row.axis == axis);
                let widths: Vec<usize> = rows.map(|row| row.width).collect();
                assert_eq!(widths, [4, *WIDTHS.end()], "{dtype:?} {axis:?}");
            }
        }
    }

    #[test]
    fn tiles_along_seqlen_are_as_long_as_rows_ask_for() {
        let tile = |dtype, pass, seqlen| {
            let row = convolve(dtype, Axis::Seqlen, 4);
            let Tile {
                channels, steps, ..
            } = row.tile(pass, seqlen);
            (channels, steps)
        };
        for seqlen in [0, 1, 64] {
            assert_eq!(tile(F16, Pass::Forward, seqlen), (256, 64));
            assert_eq!(tile(F16, Pass::Backward, seqlen), (128, 64));
        }
        assert_eq!(tile(F16, Pass::Forward, 65), (128, 128));
        assert_eq!(tile(F16, Pass::Backward, 513), (8, 1024));
        assert_eq!(tile(F16, Pass::Forward, 1 << 30), (8, 2048));
        assert_eq!(tile(F16, Pass::Backward, 1 << 30), (8, 1024));
        assert_eq!(tile(F32, Pass::Backward, 32), (128, 32));
        assert_eq!(tile(F32, Pass::Backward, 33), (64, 64));
        assert_eq!(tile(F32, Pass::Forward, 1 << 30), (8, 1024));
    }

    #[test]
    fn a_row_spells_its_kernels() {
        let forward = CONVOLVE[0].forward();
        assert_eq!(forward.name, "causal_conv1d_forward_f16_w4_dim");
        assert_eq!(
            forward.instance,
            "seqmix::causal_conv1d::Forward<__half, seqmix::causal_conv1d::Axis::Dim, 2048, 4>"
        );
        // 259 steps of 128 bytes; 5 rows of numbers for 64 channels and 8 more
        assert_eq!(forward.shared_bytes, 33_152 + 1536);
        let backward = CONVOLVE[7].backward();
        assert_eq!(backward.name, "causal_conv1d_backward_bf16_w8_seqlen");
        // lines of 11 chunks and of 9; twice 9 rows of numbers for 128 channels and 4 more
        assert_eq!(backward.shared_bytes, 22_528 + 18_432 + 2 * 4864);
    }
}
