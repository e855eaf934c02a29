//! The kernels of the gated attention unit: parameters and tables.

mod params;

pub use params::{
    Affine, AffineGradient, AttendParams, CarryParams, GradientParams, Layer, Rows, StatesParams,
    SumsParams,
};

use super::{Dtype, Dtype::BF16, Dtype::F16, Dtype::F32, Entry, Unit};

/// Rows of a tile of scores. Chunks are whole tiles.
pub const ROWS: usize = 64;

/// Value channels that share a unit of states: those of one block of [`carry`].
pub const SLICE: usize = 64;

/// Value channels of a block of [`Tiles::states`].
pub const STATES_CHANNELS: usize = 128;

/// Sums of one block of [`sums`].
pub const SUMS_COLUMNS: usize = 32;

/// Warps of a block.
const WARPS: usize = 8;

/// gamma and beta of a tile's channels, twice: of rows and of columns.
const fn coefficients_bytes(size: usize) -> usize {
    2 * 8 * (size + 16)
}

/// A tile's bias, and its units.
const fn scores_bytes(width: usize) -> usize {
    4 * (ROWS + width) + 4 * 4 * ROWS
}

/// A tuned variant of the kernel of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attend {
    /// Type of u, v, z and out.
    pub dtype: Dtype,
    /// Channels of the tiles of z: serves every dz up to it.
    pub size: usize,
    /// Columns of a tile of scores.
    pub width: usize,
    /// Value channels of a block: scores are computed once for all of them.
    pub channels: usize,
    /// Blocks that share a multiprocessor.
    pub blocks: u32,
}

const fn attend(dtype: Dtype, size: usize, width: usize, channels: usize, blocks: u32) -> Attend {
    Attend {
        dtype,
        size,
        width,
        channels,
        blocks,
    }
}

/// No kernel exists that is not a row here, and no row without a kernel. Of the rows of the least size that serves a
/// problem, the one with the most channels is used, unless its blocks are too few to fill the device.
#[rustfmt::skip]
pub const ATTEND: &[Attend] = &[
    // Multiply-adds per score are size + channels, of which size are computed again by each block of channels.
    //     dtype size width channels blocks
    attend(F16,   64, 64, 256, 2),
    attend(F16,  128, 64, 512, 1), // the sums of 512 channels take 128 registers of each lane
    attend(F16,  128, 64, 256, 2),
    attend(F16,  256, 32, 256, 2), // 64 columns would take more shared memory than every GPU has
    attend(BF16,  64, 64, 256, 2),
    attend(BF16, 128, 64, 512, 1),
    attend(BF16, 128, 64, 256, 2),
    attend(BF16, 256, 32, 256, 2),
    attend(F32,  128, 32, 256, 1),
    attend(F32,  256, 32, 128, 1),
];

impl Attend {
    /// Shared memory of a block.
    pub const fn shared_bytes(&self) -> usize {
        let Self {
            size,
            width,
            channels,
            ..
        } = *self;
        let z = (ROWS + width) * size;
        let tiles = self.dtype.bytes() * (z + width * channels + ROWS * width);
        (tiles + coefficients_bytes(size) + scores_bytes(width)).next_multiple_of(128)
    }

    /// The kernel of this row.
    pub fn entry(&self) -> Entry {
        let Self {
            dtype,
            size,
            width,
            channels,
            blocks,
        } = *self;
        Entry {
            name: format!(
                "gated_attention_unit_attend_{}_z{size}_v{channels}",
                dtype.name()
            ),
            instance: format!(
                "seqmix::gated_attention_unit::Attend<{}, {size}, {width}, {channels}>",
                dtype.cpp()
            ),
            params: AttendParams::PARAMS,
            threads: 32 * WARPS as u32,
            blocks,
            shared_bytes: self.shared_bytes(),
        }
    }
}

/// A tuned variant of the kernels of states and of gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiles {
    /// Type of v, z and their gradients.
    pub dtype: Dtype,
    /// Channels of the tiles of z: serves every dz up to it.
    pub size: usize,
    /// Columns of a tile of scores; steps of a tile of states.
    pub width: usize,
    /// Blocks of gradients that share a multiprocessor.
    pub blocks: u32,
}

const fn tiles(dtype: Dtype, size: usize, width: usize, blocks: u32) -> Tiles {
    Tiles {
        dtype,
        size,
        width,
        blocks,
    }
}

/// As [`ATTEND`], for states and gradients; the first that serves a problem is used.
#[rustfmt::skip]
pub const TILES: &[Tiles] = &[
    //    dtype size width blocks
    tiles(F16,   64, 64, 2),
    tiles(F16,  128, 64, 2),
    tiles(F16,  256, 32, 1),
    tiles(BF16,  64, 64, 2),
    tiles(BF16, 128, 64, 2),
    tiles(BF16, 256, 32, 1),
    tiles(F32,  128, 32, 1),
    tiles(F32,  256, 32, 1),
];

impl Tiles {
    /// Shared memory of a block that computes states.
    pub const fn states_shared_bytes(&self) -> usize {
        let stage = self.dtype.bytes() * self.width * (self.size + STATES_CHANNELS);
        (2 * stage + coefficients_bytes(self.size) / 2).next_multiple_of(128)
    }

    /// Shared memory of a block that computes gradients.
    pub const fn gradients_shared_bytes(&self) -> usize {
        let Self { size, width, .. } = *self;
        let element = self.dtype.bytes();
        // a slice of values is 128 bytes of each step
        let (rows, left) = (element * ROWS * size, 2 * 128 * ROWS);
        let quadratic = element * (width * size + ROWS * width) + 2 * 128 * width;
        let states = 2 * 128 * size;
        let shared = if quadratic > states {
            quadratic
        } else {
            states
        };
        // what diagonals keep for the next tile, and two sums of each channel and 16 rows
        let sums = 4 * (2 * ROWS + 2 * (ROWS / 16) * (size + 8));
        let numbers = coefficients_bytes(size) + scores_bytes(width) + sums;
        (rows + left + shared + numbers).next_multiple_of(128)
    }

    /// The kernel of this row that computes the states of chunks.
    pub fn states(&self) -> Entry {
        Entry {
            name: self.name("states"),
            instance: self.instance("States"),
            params: StatesParams::PARAMS,
            threads: 32 * WARPS as u32,
            blocks: 1,
            shared_bytes: self.states_shared_bytes(),
        }
    }

    /// The kernel of this row that computes the gradients of queries, or of keys.
    pub fn gradients(&self) -> Entry {
        Entry {
            name: self.name("gradients"),
            instance: self.instance("Gradients"),
            params: GradientParams::PARAMS,
            threads: 32 * WARPS as u32,
            blocks: self.blocks,
            shared_bytes: self.gradients_shared_bytes(),
        }
    }

    fn name(&self, kernel: &str) -> String {
        let dtype = self.dtype.name();
        format!("gated_attention_unit_{kernel}_{dtype}_z{}", self.size)
    }

    fn instance(&self, kernel: &str) -> String {
        let Self {
            dtype, size, width, ..
        } = *self;
        format!(
            "seqmix::gated_attention_unit::{kernel}<{}, {size}, {width}>",
            dtype.cpp()
        )
    }
}

/// The dtypes of [`carry`].
pub const CARRY: [Dtype; 3] = [F16, BF16, F32];

/// The kernel that adds states up, from chunk to chunk.
pub fn carry(dtype: Dtype) -> Entry {
    Entry {
        name: format!("gated_attention_unit_carry_{}", dtype.name()),
        instance: format!("seqmix::gated_attention_unit::Carry<{}>", dtype.cpp()),
        params: CarryParams::PARAMS,
        threads: 32 * WARPS as u32,
        blocks: 1,
        shared_bytes: 4 * 2 * WARPS,
    }
}

/// The kernel that adds the sums of all tiles: the gradients of gamma, beta and bias.
pub fn sums() -> Entry {
    Entry {
        name: "gated_attention_unit_sums".into(),
        instance: "seqmix::gated_attention_unit::Sums".into(),
        params: SumsParams::PARAMS,
        threads: 1024,
        blocks: 1,
        shared_bytes: 4 * 32 * SUMS_COLUMNS,
    }
}

/// One unit a kernel, so that they compile in parallel.
pub fn units() -> Vec<Unit> {
    let unit = |entry: Entry, header| Unit {
        name: entry.name.clone(),
        header,
        entries: vec![entry],
    };
    let mut units = vec![unit(sums(), "gated_attention_unit/sums.cuh")];
    for row in ATTEND {
        units.push(unit(row.entry(), "gated_attention_unit/attend.cuh"));
    }
    for row in TILES {
        units.push(unit(row.states(), "gated_attention_unit/states.cuh"));
        units.push(unit(row.gradients(), "gated_attention_unit/gradients.cuh"));
    }
    for dtype in CARRY {
        units.push(unit(carry(dtype), "gated_attention_unit/carry.cuh"));
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What GPUs of compute capability 8.6, 8.9 and 12.0 give to one block: the least since 8.0.
    const SHARED_BYTES: usize = 99 << 10;

    /// What those of compute capability 8.0 give, for rows that not every GPU runs.
    const MOST_BYTES: usize = 163 << 10;

    #[test]
    fn every_gpu_since_ampere_runs_128_channels_of_z() {
        for dtype in [F16, BF16, F32] {
            let fits = |row: &&Attend| row.dtype == dtype && row.shared_bytes() <= SHARED_BYTES;
            assert!(ATTEND.iter().filter(fits).any(|row| row.size == 128));
        }
        for row in ATTEND {
            assert!(row.shared_bytes() <= MOST_BYTES, "{}", row.entry().name);
        }
        for row in TILES {
            let limit = if row.size > 128 {
                MOST_BYTES
            } else {
                SHARED_BYTES
            };
            assert!(row.states_shared_bytes() <= limit, "{}", row.states().name);
            let gradients = row.gradients();
            assert!(gradients.shared_bytes <= limit, "{}", gradients.name);
        }
    }

    #[test]
    fn each_dtype_has_its_sizes_in_order() {
        for (dtype, attend, tiles) in [
            (F16, &[64, 128, 128, 256][..], &[64, 128, 256][..]),
            (BF16, &[64, 128, 128, 256], &[64, 128, 256]),
            (F32, &[128, 256], &[128, 256]),
        ] {
            let rows = ATTEND.iter().filter(|row| row.dtype == dtype);
            let sizes: Vec<usize> = rows.map(|row| row.size).collect();
            assert_eq!(sizes, attend, "{dtype:?}");
            let rows = TILES.iter().filter(|row| row.dtype == dtype);
            let sizes: Vec<usize> = rows.map(|row| row.size).collect();
            assert_eq!(sizes, tiles, "{dtype:?}");
        }
    }

    #[test]
    fn a_row_spells_its_kernels() {
        let entry = attend(BF16, 128, 64, 512, 1).entry();
        assert_eq!(entry.name, "gated_attention_unit_attend_bf16_z128_v512");
        assert_eq!(
            entry.instance,
            "seqmix::gated_attention_unit::Attend<__nv_bfloat16, 128, 64, 512>"
        );
        assert_eq!((entry.threads, entry.shared_bytes), (256, 110_336));
        let row = tiles(F16, 128, 64, 2);
        let (states, gradients) = (row.states(), row.gradients());
        assert_eq!(states.name, "gated_attention_unit_states_f16_z128");
        assert_eq!((states.threads, states.shared_bytes), (256, 66_688));
        assert_eq!(
            gradients.instance,
            "seqmix::gated_attention_unit::Gradients<__half, 128, 64>"
        );
        assert_eq!((gradients.threads, gradients.shared_bytes), (256, 82_432));
    }
}
