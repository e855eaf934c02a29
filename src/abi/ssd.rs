//! The kernels of state space duality: parameters and table.

use super::{Dtype, Dtype::BF16, Dtype::F16, Entry, Unit, params};

/// Steps of a chunk, the unit of computation in time.
pub const CHUNK: usize = 64;

/// Channels of a slice: heads are cut into these.
pub const SLICE: usize = 64;

/// Warps of a block.
const WARPS: usize = 4;

/// Five numbers for each step of a chunk, and three for all of it, aligned to 16 bytes.
const STEPS_BYTES: usize = (4 * (5 * CHUNK + 3)).next_multiple_of(16);

params! {
    /// A tensor with a row for each step and each head or group. Strides count elements.
    pub struct Rows as "seqmix::ssd::Rows" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one row of the batch to the next; 0 with `cu_seqlens`.
        pub batch_stride: i64,
        /// From one step to the next.
        pub step_stride: i64,
        /// From one head or group to the next.
        pub head_stride: i64,
    }
}

params! {
    /// States `[sequence, head, channel, state]` of f32, the last axis contiguous. Strides count
    /// elements.
    pub struct States as "seqmix::ssd::States" {
        /// Their address; 0: there are none.
        pub at: u64,
        /// From one sequence to the next.
        pub sequence_stride: i64,
        /// From one head to the next.
        pub head_stride: i64,
        /// From one channel to the next.
        pub channel_stride: i64,
    }
}

params! {
    /// What is computed, and how it is cut into blocks. Strides count elements.
    pub struct Layer as "seqmix::ssd::Layer" with [Rows] {
        /// `[batch, steps, heads, headdim]`
        pub x: Rows,
        /// `[batch, steps, heads]`
        pub dt: Rows,
        /// `[batch, steps, groups, dstate]`
        pub b: Rows,
        /// As `b`.
        pub c: Rows,
        /// As `x`, or none.
        pub z: Rows,
        /// Address of `[heads]` in f32.
        pub a: u64,
        /// Address of `[heads]` in f32; 0 for none.
        pub dt_bias: u64,
        /// Address of `[heads]` or `[heads, headdim]` in f32; 0 for none.
        pub d: u64,
        /// Address of `[sequences + 1]` in i32; 0 if each row of the batch is a sequence.
        pub cu_seqlens: u64,
        /// From one head of `d` to the next.
        pub d_head_stride: i64,
        /// From one channel of `d` to the next; 0: one number a head.
        pub d_channel_stride: i64,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub steps: i32,
        /// Heads.
        pub heads: i32,
        /// Heads that share B and C.
        pub heads_per_group: i32,
        /// Channels of a head, a multiple of 8.
        pub headdim: i32,
        /// States of a channel, a multiple of 8.
        pub dstate: i32,
        /// Steps of a segment, a multiple of [`CHUNK`].
        pub segment: i32,
        /// 1: step sizes are softplus(dt + dt_bias); 0: dt + dt_bias.
        pub softplus: i32,
        /// The least step size.
        pub dt_min: f32,
        /// The largest step size.
        pub dt_max: f32,
    }
}

params! {
    /// Parameters of the forward kernels.
    pub struct ForwardParams as "seqmix::ssd::ForwardParams" with [Rows, States, Layer] {
        /// What is computed.
        pub layer: Layer,
        /// As `x`, written.
        pub out: Rows,
        /// The states before each sequence, or none: zeros.
        pub initial: States,
        /// The states after each sequence, written, or none.
        pub last: States,
        /// Address of `[slot, head, headdim, dstate]` in f32: the states before segments; 0: there is
        /// one segment a sequence.
        pub starts: u64,
    }
}

params! {
    /// Parameters of the kernels that compute the end states of segments.
    pub struct SegmentParams as "seqmix::ssd::SegmentParams" with [Rows, Layer] {
        /// What is computed.
        pub layer: Layer,
        /// Address of `[slot, head, headdim, dstate]` in f32, written: the states after segments that
        /// begin with zeros.
        pub states: u64,
        /// Address of `[slot, head]` in f32, written: what a segment multiplies the state before it by.
        pub decays: u64,
    }
}

params! {
    /// Parameters of the kernel that passes states from segment to segment.
    pub struct CarryParams as "seqmix::ssd::CarryParams" with [States] {
        /// The states before each sequence, or none: zeros.
        pub initial: States,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`SegmentParams`]; afterwards the states before each segment.
        pub states: u64,
        /// As in [`SegmentParams`].
        pub decays: u64,
        /// Numbers of a head's state.
        pub head_size: i64,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub steps: i32,
        /// Heads.
        pub heads: i32,
        /// States of a channel.
        pub dstate: i32,
        /// Steps of a segment.
        pub segment: i32,
    }
}

/// A tuned variant of the kernels that walk over a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Walk {
    /// Type of x, dt, B, C, z and out.
    pub dtype: Dtype,
    /// Columns of the tiles of B and C: serves every dstate up to it.
    pub size: usize,
    /// Tiles of 16 channels of one warp.
    pub tiles: usize,
}

const fn walk(dtype: Dtype, size: usize, tiles: usize) -> Walk {
    Walk { dtype, size, tiles }
}

/// No kernel exists that is not a row here, and no row without a kernel. Of the rows that fit a
/// problem the first is used.
///
/// headdim is no column: the channels of a head do not see each other, and are cut into slices.
#[rustfmt::skip]
pub const WALK: &[Walk] = &[
    // A warp of 32 channels uses each fragment of B, C and the scores twice, and a block's two slices
    // share B, C and their product. Its state takes size registers of each lane.
    //   dtype size tiles
    walk(F16,   64, 2),
    walk(F16,  128, 2),
    walk(F16,  256, 1), // the state of 32 channels would take all 256 registers
    walk(BF16,  64, 2),
    walk(BF16, 128, 2),
    walk(BF16, 256, 1),
];

impl Walk {
    /// Slices of one block.
    pub const fn slices(&self) -> usize {
        WARPS * 16 * self.tiles / SLICE
    }

    /// Shared memory of a block of the forward kernel.
    pub const fn forward_shared_bytes(&self) -> usize {
        let tiles = 2 * self.coefficient_bytes();
        // x and scores; half a chunk of z; decays, D, and a number for each step
        let of_slice = SLICE * CHUNK * self.dtype.bytes() * 5 / 2;
        let numbers = STEPS_BYTES + 4 * SLICE + 4 * CHUNK;
        (tiles + self.slices() * (of_slice + numbers)).next_multiple_of(128)
    }

    /// Shared memory of a block of the kernel that computes the end states of segments.
    pub const fn segment_shared_bytes(&self) -> usize {
        let of_slice = SLICE * CHUNK * self.dtype.bytes() + STEPS_BYTES;
        let stage = self.coefficient_bytes() + self.slices() * of_slice;
        2 * stage.next_multiple_of(128)
    }

    /// Bytes of a tile of B or C.
    const fn coefficient_bytes(&self) -> usize {
        CHUNK * self.size * self.dtype.bytes()
    }

    /// The forward kernel of this row.
    pub fn forward(&self) -> Entry {
        self.entry(
            "forward",
            "Forward",
            ForwardParams::PARAMS,
            self.forward_shared_bytes(),
        )
    }

    /// The kernel of this row that computes the end states of segments.
    pub fn segment(&self) -> Entry {
        self.entry(
            "segment",
            "Segment",
            SegmentParams::PARAMS,
            self.segment_shared_bytes(),
        )
    }

    fn entry(&self, pass: &str, family: &str, params: super::Params, shared_bytes: usize) -> Entry {
        let Self { dtype, size, tiles } = *self;
        Entry {
            name: format!("ssd_{pass}_{}_n{size}", dtype.name()),
            instance: format!("seqmix::ssd::{family}<{}, {size}, {tiles}>", dtype.cpp()),
            params,
            threads: 32 * WARPS as u32,
            blocks: 1,
            shared_bytes,
        }
    }
}

/// Threads of the kernel that passes states on, each of which owns [`CARRY_VECTOR`] numbers.
pub const CARRY_THREADS: usize = 128;

/// Numbers of one thread of the kernel that passes states on.
pub const CARRY_VECTOR: usize = 4;

/// The kernel that passes states from segment to segment.
pub fn carry() -> Entry {
    Entry {
        name: "ssd_carry".into(),
        instance: "seqmix::ssd::Carry".into(),
        params: CarryParams::PARAMS,
        threads: CARRY_THREADS as u32,
        blocks: 1,
        shared_bytes: 1, // `sizeof` an empty struct
    }
}

/// One unit a kernel, so that they compile in parallel.
pub fn units() -> Vec<Unit> {
    let unit = |entry: Entry, header| Unit {
        name: entry.name.clone(),
        header,
        entries: vec![entry],
    };
    let mut units = vec![unit(carry(), "ssd/carry.cuh")];
    for row in WALK {
        units.push(unit(row.forward(), "ssd/forward.cuh"));
        units.push(unit(row.segment(), "ssd/segment.cuh"));
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What GPUs of compute capability 8.6, 8.9 and 12.0 give to one block: the least since 8.0.
    const SHARED_BYTES: usize = 99 << 10;

    #[test]
    fn rows_fit_every_gpu_since_ampere() {
        for row in WALK {
            for entry in [row.forward(), row.segment()] {
                assert!(entry.shared_bytes <= SHARED_BYTES, "{}", entry.name);
                assert!(entry.threads <= 1024, "{}", entry.name);
            }
        }
    }

    #[test]
    fn each_dtype_has_each_size_once_and_in_order() {
        for dtype in [F16, BF16] {
            let rows = WALK.iter().filter(|row| row.dtype == dtype);
            let sizes: Vec<usize> = rows.map(|row| row.size).collect();
            assert_eq!(sizes, [64, 128, 256], "{dtype:?}");
        }
    }

    #[test]
    fn a_row_spells_its_kernels() {
        let row = walk(BF16, 128, 2);
        let (forward, segment) = (row.forward(), row.segment());
        assert_eq!(forward.name, "ssd_forward_bf16_n128");
        assert_eq!(
            forward.instance,
            "seqmix::ssd::Forward<__nv_bfloat16, 128, 2>"
        );
        assert_eq!((forward.threads, forward.shared_bytes), (128, 77_440));
        assert_eq!(segment.name, "ssd_segment_bf16_n128");
        assert_eq!(row.slices(), 2);
    }
}
