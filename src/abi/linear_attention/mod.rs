//! The kernels of linear attention: parameters and tables.

mod delta;
mod gradient;
mod gradient_params;
mod params;
mod step;

pub use delta::{
    DELTA, DELTA_GRADIENTS, DeltaGradientParams, DeltaParams, SUM_BETAS_STEPS, SumBetasParams,
    sum_betas,
};
pub use gradient::{
    DTYPES, GRADIENT_WALK, GradientGate, GradientWalk, SPAN, decay_gradient, sum_heads, sum_spans,
};
pub use gradient_params::{
    DecayGradientParams, GradientWalkParams, SumHeadsParams, SumSpansParams,
};
pub use params::{CarryParams, Decays, Layer, Rows, States, WalkParams};
pub use step::{STEP_SIZES, STEP_UNIT, STEP_WIDTH, StepParams, step};

use super::{Dtype, Dtype::BF16, Dtype::F16, Dtype::F32, Entry, Unit};

/// Steps of a chunk, the unit of computation in time.
pub const CHUNK: usize = 16;

/// Warps of a block.
const WARPS: usize = 4;

/// What queries and keys go through, as kernels count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FeatureMap {
    /// `x`
    #[default]
    Identity,
    /// `elu(x) + 1`, which is `x + 1` above 0 and `exp(x)` elsewhere: Katharopoulos et al., "Transformers are RNNs",
    /// 2020, equation 7.
    EluPlusOne,
    /// `max(x, 0)`; a NaN stays.
    Relu,
    /// `max(x, 0)^2`; a NaN stays.
    ReluSquared,
    /// `x / (1 + exp(-x))`
    Silu,
    /// `exp(x)`
    Exp,
}

/// What a walk does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// States and outputs: segments begin with the states in `segments`.
    #[default]
    Whole,
    /// States only: segments begin with zeros, and the states after them are stored there; not of the last ones, behind
    /// which none waits.
    States,
    /// The same of all segments.
    All,
    /// Outputs only: all steps read the state in the sequence's first slot.
    Read,
}

/// A tuned variant of the kernels that walk over sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Walk {
    /// Type of queries, keys, values and outputs.
    pub dtype: Dtype,
    /// Columns of the tiles of queries and keys: serves every dk up to it.
    pub size: usize,
    /// Tiles of 16 channels of the values of one warp.
    pub tiles: usize,
    /// Steps of a tile, of which a warp prepares 16.
    pub count: usize,
    /// Tiles of steps in shared memory: with 2 the next one is on its way.
    pub stages: usize,
}

const fn walk(dtype: Dtype, size: usize, tiles: usize, count: usize, stages: usize) -> Walk {
    Walk {
        dtype,
        size,
        tiles,
        count,
        stages,
    }
}

/// No kernel exists that is not a row here, and no row without a kernel. Of the rows that fit a
/// problem the first is used.
///
/// dv is no column: the channels of a head's values do not see each other, and are cut into slices.
#[rustfmt::skip]
pub const WALK: &[Walk] = &[
    //   dtype size tiles count stages
    walk(F16,   64, 1, 64, 2),
    walk(F16,  128, 2, 32, 2), // two tiles use each fragment of keys and queries twice; two blocks an SM
    walk(F16,  256, 1, 32, 2), // the state of two tiles would take all 256 registers
    walk(BF16,  64, 1, 64, 2),
    walk(BF16, 128, 2, 32, 2),
    walk(BF16, 256, 1, 32, 2),
    walk(F32,   64, 1, 32, 2),
    walk(F32,  128, 1, 32, 2),
    walk(F32,  256, 1, 32, 1),
];

impl Walk {
    /// Channels of the values of one block.
    pub const fn width(&self) -> usize {
        WARPS * 16 * self.tiles
    }

    /// Shared memory of a block.
    pub const fn shared_bytes(&self) -> usize {
        let stage = self.dtype.bytes() * self.count * (2 * self.size + self.width());
        // decays: four numbers a step, and four chunks; a factor and a unit a step
        let numbers = 4 * (4 * self.count + 4 + 2 * self.count);
        (self.stages * stage + self.squares_bytes() + numbers).next_multiple_of(128)
    }

    /// A square matrix for each chunk of a tile; those of f32 lie side by side in pairs.
    const fn squares_bytes(&self) -> usize {
        let beside = if self.dtype.bytes() == 4 { 2 } else { 1 };
        let rows = if self.count / beside < CHUNK {
            CHUNK
        } else {
            self.count / beside
        };
        (self.dtype.bytes() * rows * beside * CHUNK).next_multiple_of(128)
    }

    /// The kernel of this row.
    pub fn entry(&self) -> Entry {
        let Self {
            dtype,
            size,
            tiles,
            count,
            stages,
        } = *self;
        Entry {
            name: format!("linear_attention_walk_{}_n{size}", dtype.name()),
            instance: format!(
                "seqmix::linear_attention::Walk<{}, {size}, {tiles}, {count}, {stages}>",
                dtype.cpp()
            ),
            params: WalkParams::PARAMS,
            threads: 32 * WARPS as u32,
            blocks: 1,
            shared_bytes: self.shared_bytes(),
        }
    }
}

/// Threads of the kernel that passes states on, each of which owns a number.
pub const CARRY_THREADS: usize = 128;

/// The kernel that passes states from segment to segment.
pub fn carry() -> Entry {
    Entry {
        name: "linear_attention_carry".into(),
        instance: "seqmix::linear_attention::Carry".into(),
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
    let mut units = vec![unit(carry(), "linear_attention/carry.cuh"), step::unit()];
    for row in WALK {
        units.push(unit(row.entry(), "linear_attention/walk.cuh"));
    }
    units.extend(gradient::units());
    units.extend(delta::units());
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
            assert!(row.shared_bytes() <= SHARED_BYTES, "{}", row.entry().name);
        }
    }

    #[test]
    fn each_dtype_has_each_size_once_and_in_order() {
        for dtype in [F16, BF16, F32] {
            let rows = WALK.iter().filter(|row| row.dtype == dtype);
            let sizes: Vec<usize> = rows.map(|row| row.size).collect();
            assert_eq!(sizes, [64, 128, 256], "{dtype:?}");
        }
    }

    #[test]
    fn a_row_spells_its_kernel() {
        let entry = walk(BF16, 128, 2, 32, 2).entry();
        assert_eq!(entry.name, "linear_attention_walk_bf16_n128");
        assert_eq!(
            entry.instance,
            "seqmix::linear_attention::Walk<__nv_bfloat16, 128, 2, 32, 2>"
        );
        assert_eq!((entry.threads, entry.shared_bytes), (128, 51_072));
    }
}
