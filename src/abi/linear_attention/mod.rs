//! The kernels of linear attention: parameters and tables.

mod delta;
mod gradient;
mod gradient_params;
mod last;
mod params;
mod step;

pub use delta::{
    DELTA, DELTA_CARRY_COLUMNS, DELTA_GRADIENTS, DeltaCarryParams, DeltaGradientParams,
    DeltaParams, SUM_BETAS_STEPS, SumBetasParams, delta_carry, sum_betas,
};
pub use gradient::{
    DTYPES, GRADIENT_WALK, GradientWalk, SPAN, bonus_gradient, decay_gradient, head_decay,
    last_decays, normalizer_gradient, row_products, sum_heads, sum_spans,
};
pub use gradient_params::{
    BonusGradientParams, DecayGradientParams, GradientWalkParams, HeadDecayParams,
    LastDecaysParams, NormalizerGradientParams, RowProductsParams, SumHeadsParams, SumSpansParams,
};
pub use last::{
    LAST_STATES_CHANNELS, LastChannelsParams, LastPass, LastStatesParams, last_channels,
    last_states,
};
pub use params::{CarryParams, Decays, Layer, Rows, States, WalkParams};
pub use step::{STEP_SIZES, STEP_UNIT, STEP_WIDTH, StepParams, step};

use Gate::{Channel, Step};

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

/// What decays depend on, besides the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The step.
    Step,
    /// The step and the channel of the keys.
    Channel,
}

impl Gate {
    /// Both, each of which has a row for each dtype and size.
    pub const ALL: [Self; 2] = [Self::Step, Self::Channel];

    /// The name in kernel symbols, and in C++.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Step => ("step", "Step"),
            Self::Channel => ("channel", "Channel"),
        }
    }
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
    /// Which decays it takes.
    pub gate: Gate,
}

const fn walk(
    gate: Gate,
    dtype: Dtype,
    size: usize,
    tiles: usize,
    count: usize,
    stages: usize,
) -> Walk {
    Walk {
        dtype,
        size,
        tiles,
        count,
        stages,
        gate,
    }
}

/// No kernel exists that is not a row here, and no row without a kernel. Of the rows that fit a
/// problem the first is used.
///
/// dv is no column: the channels of a head's values do not see each other, and are cut into slices.
#[rustfmt::skip]
pub const WALK: &[Walk] = &[
    //   gate   dtype size tiles count stages
    walk(Step,    F16,   64, 1, 64, 2),
    walk(Step,    F16,  128, 2, 32, 2), // two tiles use each fragment of keys and queries twice; two blocks an SM
    walk(Step,    F16,  256, 1, 32, 2), // the state of two tiles would take all 256 registers
    walk(Step,    BF16,  64, 1, 64, 2),
    walk(Step,    BF16, 128, 2, 32, 2),
    walk(Step,    BF16, 256, 1, 32, 2),
    walk(Step,    F32,   64, 1, 32, 2),
    walk(Step,    F32,  128, 1, 32, 2),
    walk(Step,    F32,  256, 1, 32, 1),
    // Decays are as large as queries and keys together. All four warps prepare a chunk, which takes as long as the
    // walk over it.
    walk(Channel, F16,   64, 1, 64, 1),
    walk(Channel, F16,  128, 2, 64, 1),
    walk(Channel, F16,  256, 1, 32, 1),
    walk(Channel, BF16,  64, 1, 64, 1),
    walk(Channel, BF16, 128, 2, 64, 1),
    walk(Channel, BF16, 256, 1, 32, 1),
    walk(Channel, F32,   64, 1, 64, 1),
    walk(Channel, F32,  128, 1, 32, 1),
    walk(Channel, F32,  256, 1, 16, 1),
];

impl Walk {
    /// Channels of the values of one block.
    pub const fn width(&self) -> usize {
        WARPS * 16 * self.tiles
    }

    /// Shared memory of a block.
    pub const fn shared_bytes(&self) -> usize {
        let Self { size, count, .. } = *self;
        let chunks = count / CHUNK;
        let row = self.dtype.bytes() * (2 * size + self.width());
        // decays of a tile, and what a segment has passed
        let (gates, decays, passed) = match self.gate {
            // four numbers a step, and four chunks
            Gate::Step => (0, 4 * count + 4, 4),
            // a number a step and channel; those of chunks, and the bonus
            Gate::Channel => (4 * size, (chunks + 1) * size, size),
        };
        // z and sums of keys of each chunk, z behind the tile, and sums of scores; a factor and a unit a step
        let normalizer = (2 * chunks + 1) * size + count;
        let numbers = decays + passed + normalizer + 2 * count;
        let stages = self.stages * count * (row + gates);
        (stages + squares_bytes(self.dtype, self.count) + 4 * numbers).next_multiple_of(128)
    }

    /// The kernel of this row.
    pub fn entry(&self) -> Entry {
        let Self {
            dtype,
            size,
            tiles,
            count,
            stages,
            gate,
        } = *self;
        let (name, kind) = gate.names();
        Entry {
            name: format!("linear_attention_walk_{name}_{}_n{size}", dtype.name()),
            instance: format!(
                "seqmix::linear_attention::Walk<{}, {size}, {tiles}, {count}, {stages}, \
                 seqmix::linear_attention::Gate::{kind}>",
                dtype.cpp()
            ),
            params: WalkParams::PARAMS,
            threads: 32 * WARPS as u32,
            blocks: 1,
            shared_bytes: self.shared_bytes(),
        }
    }
}

/// A square matrix for each chunk of a tile of `count` steps; those of f32 lie side by side in pairs.
const fn squares_bytes(dtype: Dtype, count: usize) -> usize {
    let beside = if dtype.bytes() == 4 { 2 } else { 1 };
    let rows = if count / beside < CHUNK {
        CHUNK
    } else {
        count / beside
    };
    (dtype.bytes() * rows * beside * CHUNK).next_multiple_of(128)
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
    units.extend(delta::units());
    units.extend(gradient::units());
    units.extend(last::units());
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
            for gate in Gate::ALL {
                let rows = WALK.iter();
                let rows = rows.filter(|row| row.dtype == dtype && row.gate == gate);
                let sizes: Vec<usize> = rows.map(|row| row.size).collect();
                assert_eq!(sizes, [64, 128, 256], "{dtype:?} {gate:?}");
            }
        }
    }

    #[test]
    fn a_row_spells_its_kernel() {
        let entry = walk(Channel, BF16, 128, 2, 64, 1).entry();
        assert_eq!(entry.name, "linear_attention_walk_channel_bf16_n128");
        assert_eq!(
            entry.instance,
            "seqmix::linear_attention::Walk<__nv_bfloat16, 128, 2, 64, 1, \
             seqmix::linear_attention::Gate::Channel>"
        );
        assert_eq!((entry.threads, entry.shared_bytes), (128, 92_416));
    }
}
