//! The kernels of state space duality: parameters and tables.

mod params;

pub use params::{
    CarryParams, ForwardParams, GradientParams, Layer, Rows, States, SumCoefficientsParams,
    SumParametersParams, SweepParams,
};

use super::{Dtype, Dtype::BF16, Dtype::F16, Dtype::F32, Entry, Unit};

/// Steps of a chunk, the unit of computation in time: a row of a tile is 128 bytes.
pub const fn chunk(dtype: Dtype) -> usize {
    128 / dtype.bytes()
}

/// Channels of a slice: heads are cut into these.
pub const fn slice(dtype: Dtype) -> usize {
    chunk(dtype)
}

/// Warps of a block.
const WARPS: usize = 4;

/// Five numbers for each step of a chunk, and four for all of it.
const fn steps_bytes(dtype: Dtype) -> usize {
    4 * (5 * chunk(dtype) + 4)
}

/// A slice of a chunk.
const fn square_bytes(dtype: Dtype) -> usize {
    chunk(dtype) * slice(dtype) * dtype.bytes()
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
    // Each multiplication of f32 is six, so that loads and what blocks share matter less.
    walk(F32,  128, 1),
    walk(F32,  256, 1),
];

impl Walk {
    /// Slices of one block.
    pub const fn slices(&self) -> usize {
        WARPS * 16 * self.tiles / slice(self.dtype)
    }

    /// Shared memory of a block of the forward kernel.
    pub const fn forward_shared_bytes(&self) -> usize {
        let tiles = 2 * self.coefficient_bytes();
        // x and scores; half a chunk of z; decays, D, and a number for each step
        let of_slice = square_bytes(self.dtype) * 5 / 2;
        let numbers = steps_bytes(self.dtype) + 4 * slice(self.dtype) + 4 * chunk(self.dtype);
        (tiles + self.slices() * (of_slice + numbers)).next_multiple_of(128)
    }

    /// Shared memory of a block of the walk that computes states.
    pub const fn sweep_shared_bytes(&self, way: Direction) -> usize {
        let of_slice = square_bytes(self.dtype);
        let slices = self.slices() * (of_slice + steps_bytes(self.dtype));
        let stage = self.coefficient_bytes() + slices;
        // two stages, and the magnitude of each warp's state for two chunks
        let both = 2 * stage.next_multiple_of(128) + (2 * 4 * WARPS).next_multiple_of(128);
        match way {
            Direction::Forward => both,
            Direction::Backward => both + self.slices() * of_slice,
        }
    }

    /// Bytes of a tile of B or C.
    const fn coefficient_bytes(&self) -> usize {
        chunk(self.dtype) * self.size * self.dtype.bytes()
    }

    /// The forward kernel of this row.
    pub fn forward(&self) -> Entry {
        let Self { dtype, size, tiles } = *self;
        Entry {
            name: format!("ssd_forward_{}_n{size}", dtype.name()),
            instance: format!("seqmix::ssd::Forward<{}, {size}, {tiles}>", dtype.cpp()),
            params: ForwardParams::PARAMS,
            threads: 32 * WARPS as u32,
            blocks: 1,
            shared_bytes: self.forward_shared_bytes(),
        }
    }

    /// The kernel of this row that walks over sequences and computes states, or their gradients.
    pub fn sweep(&self, way: Direction) -> Entry {
        let Self { dtype, size, tiles } = *self;
        let (name, direction) = match way {
            Direction::Forward => ("sweep", "Forward"),
            Direction::Backward => ("sweep_back", "Backward"),
        };
        Entry {
            name: format!("ssd_{name}_{}_n{size}", dtype.name()),
            instance: format!(
                "seqmix::ssd::Sweep<{}, {size}, {tiles}, seqmix::ssd::Direction::{direction}>",
                dtype.cpp()
            ),
            params: SweepParams::PARAMS,
            threads: 32 * WARPS as u32,
            blocks: 1,
            shared_bytes: self.sweep_shared_bytes(way),
        }
    }
}

/// Which way a walk goes over a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first step to the last: states.
    Forward,
    /// From the last step to the first: gradients of states.
    Backward,
}

/// A tuned variant of the kernels that compute the gradients of a chunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gradient {
    /// Type of x, dt, B, C, z and their gradients.
    pub dtype: Dtype,
    /// Columns of the tiles of B and C: serves every dstate up to it.
    pub size: usize,
    /// Columns of dB and dC that one block computes.
    pub columns: usize,
}

const fn gradient(dtype: Dtype, size: usize, columns: usize) -> Gradient {
    Gradient {
        dtype,
        size,
        columns,
    }
}

/// As [`WALK`], for the gradients.
#[rustfmt::skip]
pub const GRADIENT: &[Gradient] = &[
    //       dtype size columns
    gradient(F16,   64,  64),
    gradient(F16,  128, 128),
    gradient(F16,  256, 128), // the sums of 256 columns would take half of all registers, and spill
    gradient(BF16,  64,  64),
    gradient(BF16, 128, 128),
    gradient(BF16, 256, 128),
    gradient(F32,  128, 128),
    gradient(F32,  256, 128),
];

impl Gradient {
    /// Blocks that share the columns of dB and dC.
    pub const fn column_parts(&self) -> usize {
        self.size / self.columns
    }

    /// Warps of a block: two for 16 steps.
    const fn warps(&self) -> usize {
        chunk(self.dtype) / 8
    }

    /// Shared memory of a block.
    pub const fn shared_bytes(&self) -> usize {
        let (chunk, slice, warps) = (chunk(self.dtype), slice(self.dtype), self.warps());
        let coefficients = chunk * self.size * self.dtype.bytes();
        // a sum for each warp and step, eight numbers a step; D, and a sum for each warp and channel;
        // two magnitudes a warp
        let numbers = warps * chunk + 8 * chunk + slice + warps * slice + 2 * warps;
        let tiles = 3 * coefficients + 5 * square_bytes(self.dtype);
        let bytes = tiles + steps_bytes(self.dtype) + 4 * numbers;
        bytes.next_multiple_of(128)
    }

    /// The kernel of this row.
    pub fn entry(&self) -> Entry {
        let Self {
            dtype,
            size,
            columns,
        } = *self;
        Entry {
            name: format!("ssd_gradients_{}_n{size}", dtype.name()),
            instance: format!("seqmix::ssd::Gradients<{}, {size}, {columns}>", dtype.cpp()),
            params: GradientParams::PARAMS,
            threads: 32 * self.warps() as u32,
            blocks: 1,
            shared_bytes: self.shared_bytes(),
        }
    }
}

/// The kernel that adds the parts of dB and dC, in this type.
pub fn sum_coefficients(dtype: Dtype) -> Entry {
    Entry {
        name: format!("ssd_sum_coefficients_{}", dtype.name()),
        instance: format!("seqmix::ssd::SumCoefficients<{}>", dtype.cpp()),
        params: SumCoefficientsParams::PARAMS,
        threads: 256,
        blocks: 1,
        shared_bytes: 1, // an empty struct of C++
    }
}

/// The dtypes of [`sum_coefficients`].
pub const SUM_COEFFICIENTS: [Dtype; 3] = [F16, BF16, F32];

/// Sums of one block of the kernel that adds those of dA, ddt_bias and dD.
pub const SUM_PARAMETERS_COLUMNS: usize = 32;

/// The kernel that adds the sums of dA, ddt_bias and dD.
pub fn sum_parameters() -> Entry {
    Entry {
        name: "ssd_sum_parameters".into(),
        instance: "seqmix::ssd::SumParameters".into(),
        params: SumParametersParams::PARAMS,
        threads: 1024,
        blocks: 1,
        shared_bytes: 4 * 32 * SUM_PARAMETERS_COLUMNS,
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
        shared_bytes: 1, // an empty struct of C++
    }
}

/// One unit a kernel, so that they compile in parallel.
pub fn units() -> Vec<Unit> {
    let unit = |entry: Entry, header| Unit {
        name: entry.name.clone(),
        header,
        entries: vec![entry],
    };
    let mut units = vec![
        unit(carry(), "ssd/carry.cuh"),
        unit(sum_parameters(), "ssd/sum_parameters.cuh"),
    ];
    for row in WALK {
        units.push(unit(row.forward(), "ssd/forward.cuh"));
        for way in [Direction::Forward, Direction::Backward] {
            units.push(unit(row.sweep(way), "ssd/sweep.cuh"));
        }
    }
    for row in GRADIENT {
        units.push(unit(row.entry(), "ssd/gradients.cuh"));
    }
    for dtype in SUM_COEFFICIENTS {
        units.push(unit(sum_coefficients(dtype), "ssd/sum_coefficients.cuh"));
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
            let sweeps = [Direction::Forward, Direction::Backward].map(|way| row.sweep(way));
            for entry in sweeps.into_iter().chain([row.forward()]) {
                assert!(entry.shared_bytes <= SHARED_BYTES, "{}", entry.name);
            }
        }
        for row in GRADIENT {
            // the gradients of 256 states run where a block may have more: since 8.0, and 9.0
            let limit = if row.size > 128 {
                163 << 10
            } else {
                SHARED_BYTES
            };
            assert!(row.shared_bytes() <= limit, "{}", row.entry().name);
        }
    }

    #[test]
    fn each_dtype_has_each_size_once_and_in_order() {
        for (dtype, expected) in [
            (F16, &[64, 128, 256][..]),
            (BF16, &[64, 128, 256]),
            (F32, &[128, 256]),
        ] {
            let rows = WALK.iter().filter(|row| row.dtype == dtype);
            let sizes: Vec<usize> = rows.map(|row| row.size).collect();
            assert_eq!(sizes, expected, "{dtype:?}");
            let rows = GRADIENT.iter().filter(|row| row.dtype == dtype);
            let sizes: Vec<usize> = rows.map(|row| row.size).collect();
            assert_eq!(sizes, expected, "{dtype:?}");
        }
    }

    #[test]
    fn a_row_spells_its_kernels() {
        let row = walk(BF16, 128, 2);
        let (forward, sweep) = (row.forward(), row.sweep(Direction::Backward));
        assert_eq!(forward.name, "ssd_forward_bf16_n128");
        assert_eq!(
            forward.instance,
            "seqmix::ssd::Forward<__nv_bfloat16, 128, 2>"
        );
        assert_eq!((forward.threads, forward.shared_bytes), (128, 77_440));
        assert_eq!(sweep.name, "ssd_sweep_back_bf16_n128");
        assert_eq!(
            sweep.instance,
            "seqmix::ssd::Sweep<__nv_bfloat16, 128, 2, seqmix::ssd::Direction::Backward>"
        );
        assert_eq!((sweep.threads, sweep.shared_bytes), (128, 87_424));
        assert_eq!(row.slices(), 2);
        let gradients = gradient(F16, 128, 128).entry();
        assert_eq!(gradients.name, "ssd_gradients_f16_n128");
        assert_eq!((gradients.threads, gradients.shared_bytes), (256, 97_920));
    }
}
